"""The judge of the Llama-2 note on in-context alignment (ICA): two scores from 1 to 10 on the first line.

The judged model is always Assistant 1 and the baseline Assistant 2: the published figures use one order.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ragalign.errors import DataError
from ragalign.judging.base import Decision, Figures, Judgement, Protocol, UnreadableReplyError, Verdict
from ragalign.judging.protocols.grouping import figures, group, line, mean, merge_orders, observe, split_scored
from ragalign.judging.protocols.parsing import finite, in_range
from ragalign.judging.protocols.prompt_files import parse_reviewer, prompt_text
from ragalign.judging.requests import Answer, Item, Json, JudgeParameters, JudgeReply, JudgeRequest

_FILE_NAME = re.compile(r"(?P<model>.+)_vs_(?P<baseline>.+?)(?:_autoeval)?")
_PARAMETERS = JudgeParameters(temperature=0.2, max_tokens=500)


class Ica(Protocol):
    """Scores two answers; the higher score wins, equal scores are a draw.

    Args:
        strict: require a first line with exactly two numbers from 1 to 10.
        prompt_file: a reviewer prompt in FastChat's ``prompt.jsonl`` format.
        both_orders: ask in both orders, and average.
    """

    name = "ica"
    is_pairwise = True
    file_format = "jsonl"

    def __init__(
        self, *, strict: bool = False, prompt_file: str | Path | None = None, both_orders: bool = False
    ) -> None:
        super().__init__(strict=strict)
        self._orders = (False, True) if both_orders else (False,)
        text, where = prompt_text(prompt_file, "ica.jsonl")
        self._prompt = parse_reviewer(text, where)
        self._prompt.check(("question", "answer_1", "answer_2"), (), where)

    def build(self, item: Item) -> list[JudgeRequest]:
        """One request per order."""
        if item.baseline is None:
            raise DataError(f"item {item.id!r} has no baseline answer, which the protocol {self.name} needs")
        answers = (item.answer.text, item.baseline.text)
        requests = []
        for swapped in self._orders:
            first, second = reversed(answers) if swapped else answers
            values = {"question": item.instruction, "answer_1": first, "answer_2": second}
            name = f"{item.id}/{item.sample}" + ("/swapped" if swapped else "")
            requests.append(JudgeRequest(name, item, self._prompt.render(values), _PARAMETERS, swapped=swapped))
        return requests

    def read(self, request: JudgeRequest, reply: JudgeReply) -> Decision:
        """The two scores in the first line."""
        first, second = self._scores(reply.text)
        model, baseline = (second, first) if request.swapped else (first, second)
        preference = 0.5 if model == baseline else float(model > baseline)
        return Decision({"model": model, "baseline": baseline}, preference)

    def aggregate(self, verdicts: Sequence[Verdict]) -> list[Figures]:
        """Wins, draws and losses, as counts and as shares of all scored comparisons (draws are not halved)."""
        return [self._figures(verdicts) for verdicts in group(merge_orders(verdicts), line)]

    def replay(self, row: Json, position: int, source: str) -> list[Verdict]:
        """One verdict per text in ``autoeval_text_list``; the models' names come from the file name."""
        texts = row.get("autoeval_text_list")
        if not isinstance(texts, list) or not texts:
            raise DataError("'autoeval_text_list' is missing, empty or not a list")
        match = _FILE_NAME.fullmatch(Path(source).stem)
        model, baseline = (match["model"], match["baseline"]) if match else (Path(source).stem, "baseline")
        unknown = ("",)
        return [
            self.parse_recorded(
                Item(
                    str(position),
                    unknown,
                    Answer(model, unknown),
                    Answer(baseline, unknown),
                    sample=sample,
                    metadata={"source": source},
                ),
                text,
                judge="",
                swapped=False,
            )
            for sample, text in enumerate(texts)
        ]

    def record(self, judgements: Sequence[Judgement]) -> list[dict[str, Any]]:
        """One row per prompt with its scored, unswapped replies; upstream cannot read unscored ones."""
        rows = []
        for samples in group(judgements, lambda judgement: judgement.item.id):
            usable = [
                judgement.verdict
                for judgement in samples
                if judgement.verdict.is_scored and not judgement.verdict.swapped
            ]
            ordered = sorted(usable, key=lambda verdict: verdict.sample)
            rows.append({"autoeval_text_list": [verdict.raw for verdict in ordered]})
        return rows

    def _scores(self, text: str) -> tuple[float, float]:
        first_line = text.split("\n")[0]
        parts = first_line.split(" ")
        if len(parts) < 2 or (self.strict and len(parts) != 2):
            raise UnreadableReplyError(f"the first line is not two scores: {first_line[:60]!r}")
        first, second = finite(parts[0], "the first score"), finite(parts[1], "the second score")
        if self.strict:
            in_range(first, 1, 10, "the first score")
            in_range(second, 1, 10, "the second score")
        return first, second

    def _figures(self, verdicts: Sequence[Verdict]) -> Figures:
        scored, _ = split_scored(verdicts)
        counts = {
            "win": sum(_outcome(verdict) > 0 for verdict in scored),
            "draw": sum(_outcome(verdict) == 0 for verdict in scored),
            "lose": sum(_outcome(verdict) < 0 for verdict in scored),
        }
        observed = {
            "win_rate": observe(verdicts, lambda v: 100.0 * (_outcome(v) > 0), is_share=True),
            "draw_rate": observe(verdicts, lambda v: 100.0 * (_outcome(v) == 0), is_share=True),
            "lose_rate": observe(verdicts, lambda v: 100.0 * (_outcome(v) < 0), is_share=True),
            "avg_score_model": observe(verdicts, lambda v: v.scores["model"]),
            "avg_score_baseline": observe(verdicts, lambda v: v.scores["baseline"]),
        }
        values = counts | {name: mean(observations) for name, observations in observed.items()}
        return figures(self.name, verdicts, values, observed)


def _outcome(verdict: Verdict) -> int:
    # Compare the scores, not the preference: over both orders they are means, which decide more comparisons.
    model, baseline = verdict.scores["model"], verdict.scores["baseline"]
    return (model > baseline) - (model < baseline)
