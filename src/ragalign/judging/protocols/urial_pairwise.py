"""URIAL's pairwise judge: A, B or tie on each of six aspects, in a random order that is recorded."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ragalign.errors import DataError
from ragalign.judging.base import Decision, Figures, Judgement, Protocol, UnreadableReplyError, Verdict
from ragalign.judging.protocols.grouping import figures, group, line, mean, merge_orders, observe, split_scored
from ragalign.judging.protocols.parsing import json_object
from ragalign.judging.protocols.prompt_files import parse_urial, prompt_text
from ragalign.judging.requests import Answer, Item, Json, JudgeParameters, JudgeReply, JudgeRequest

ASPECTS = ("helpfulness", "factuality", "depth", "engagement", "clarity", "safety")

_PARAMETERS = JudgeParameters(temperature=0.0, max_tokens=1024)
_CHOICES = ("A", "B", "tie")


class UrialPairwise(Protocol):
    """Compares two answers on six aspects.

    Args:
        strict: require A, B or tie for all six aspects; upstream counts the aspects that it recognises.
        prompt_file: URIAL's template with ``{$instruction}``, ``{$candidate_A}`` and ``{$candidate_B}``.
        both_orders: ask in both orders, and average.
        seed: seed of the random order, which is drawn for each item from the seed and the instruction.
    """

    name = "urial-pairwise"
    is_pairwise = True
    file_format = "json"

    def __init__(
        self,
        *,
        strict: bool = False,
        prompt_file: str | Path | None = None,
        both_orders: bool = False,
        seed: int = 42,
    ) -> None:
        super().__init__(strict=strict)
        self._both_orders = both_orders
        self._seed = seed
        text, where = prompt_text(prompt_file, "urial_pairwise.md")
        self._prompt = parse_urial(text, where)
        self._prompt.check(("instruction", "candidate_A", "candidate_B"), (), where)

    def build(self, item: Item) -> list[JudgeRequest]:
        """One request in the drawn order, and another in the other order with `both_orders`."""
        if item.baseline is None:
            raise DataError(f"item {item.id!r} has no baseline answer, which the protocol {self.name} needs")
        # Upstream draws from one stream, so an item's order depends on all items before it, which cannot be resumed.
        drawn = random.Random(f"{self._seed} {item.instruction}").random() >= 0.5
        requests = []
        for swapped in (drawn, not drawn) if self._both_orders else (drawn,):
            first, second = item.answer.text, item.baseline.text
            if swapped:
                first, second = second, first
            values = {"instruction": item.instruction, "candidate_A": first, "candidate_B": second}
            name = f"{item.id}/{item.sample}" + ("" if swapped == drawn else "/other-order")
            requests.append(JudgeRequest(name, item, self._prompt.render(values), _PARAMETERS, swapped=swapped))
        return requests

    def read(self, request: JudgeRequest, reply: JudgeReply) -> Decision:
        """A score per aspect: 1 if the model is better, 0 if the baseline is better, 0.5 for a tie."""
        choices = self._choices(reply.text)
        undecided = [aspect for aspect in ASPECTS if choices.get(aspect) not in _CHOICES]
        if self.strict and undecided:
            raise UnreadableReplyError(f"no A, B or tie for {', '.join(undecided)}")
        model = "B" if request.swapped else "A"
        scores = {
            aspect: 0.5 if choices[aspect] == "tie" else float(choices[aspect] == model)
            for aspect in ASPECTS
            if aspect not in undecided
        }
        if not scores:
            raise UnreadableReplyError("no aspect is decided as A, B or tie")
        return Decision(scores)

    def aggregate(self, verdicts: Sequence[Verdict]) -> list[Figures]:
        """Win, tie and lose shares per aspect, in percent of the comparisons with a decision on the aspect."""
        return [self._figures(members) for members in group(merge_orders(verdicts), line)]

    def replay(self, row: Json, position: int, source: str) -> list[Verdict]:
        """The choices in ``result``, mapped to the models by the stored assignment."""
        assignment = row.get("assignment")
        if not isinstance(assignment, dict) or not {"A", "B"} <= set(assignment):
            raise DataError("no 'assignment' of A and B")
        model, baseline = row.get("generator"), row.get("ref_generator")
        if not isinstance(model, str) or not isinstance(baseline, str):
            raise DataError("no string fields 'generator' and 'ref_generator'")
        # As upstream does: A is the baseline if it has the baseline's name, else the model.
        swapped = assignment["A"] == baseline
        config = row.get("eval_config")
        judge = str(config.get("gpt") or "") if isinstance(config, dict) else ""
        item = Item(
            str(row.get("id", position)),
            (str(row.get("input", "")),),
            Answer(model, (_first(row.get("model_output")),)),
            Answer(baseline, (_first(row.get("ref_output")),)),
            metadata={"source": source},
        )
        return [self.parse_recorded(item, row.get("result"), judge, swapped=swapped)]

    def record(self, judgements: Sequence[Judgement]) -> list[dict[str, Any]]:
        """Rows of URIAL's result file; an unscored row has no ``parsed_result``, which upstream skips."""
        rows = []
        for judgement in judgements:
            item, verdict = judgement.item, judgement.verdict
            baseline = item.baseline or Answer("", ("",))
            first, second = (baseline, item.answer) if verdict.swapped else (item.answer, baseline)
            row: dict[str, Any] = {
                "id": item.id,
                "input": item.instruction,
                "model_output": item.answer.text,
                "ref_output": baseline.text,
                "generator": item.answer.model,
                "ref_generator": baseline.model,
                "eval_config": {"mode": "pairwise", "gpt": verdict.judge, "max_words": -1},
                "assignment": {"A": first.model, "B": second.model},
                "prompt": judgement.request.messages[-1].content if judgement.request else "",
                "result": verdict.raw or "N/A",
            }
            if verdict.is_scored:
                choices = self._choices(verdict.raw)
                row["parsed_result"] = {"choices": {aspect: choices.get(aspect) for aspect in ASPECTS}}
            rows.append(row)
        return rows

    def _choices(self, text: str) -> Mapping[str, Any]:
        try:
            # As upstream does, remove fences and double backslashes; that breaks valid escapes, hence the second try.
            result = json_object(text.strip().strip("`").replace("\\", "\\\\"))
        except UnreadableReplyError:
            result = json_object(text.strip().strip("`"))
        choices = result.get("choices")
        if not isinstance(choices, dict):
            raise UnreadableReplyError("the reply has no object 'choices'")
        return choices

    def _figures(self, verdicts: Sequence[Verdict]) -> Figures:
        scored, _ = split_scored(verdicts)
        aspects = [aspect for aspect in ASPECTS if any(aspect in v.scores for v in scored)]
        decided: dict[str, Callable[[float], bool]] = {
            "win": lambda score: score > 0.5,
            "tie": lambda score: score == 0.5,
            "lose": lambda score: score < 0.5,
        }
        shares = {
            name: {aspect: observe(verdicts, _percent(aspect, holds), is_share=True) for aspect in aspects}
            for name, holds in decided.items()
        }
        values: dict[str, Any] = {
            name: {aspect: mean(observations) for aspect, observations in by_aspect.items()}
            for name, by_aspect in shares.items()
        }
        values["n_by_aspect"] = {aspect: len(observations.values) for aspect, observations in shares["win"].items()}
        observed = {
            f"{name}.{aspect}": observations
            for name, by_aspect in shares.items()
            for aspect, observations in by_aspect.items()
        }
        return figures(self.name, verdicts, values, observed)


def _percent(aspect: str, holds: Callable[[float], bool]) -> Callable[[Verdict], float | None]:
    return lambda verdict: 100.0 * holds(verdict.scores[aspect]) if aspect in verdict.scores else None


def _first(output: object) -> str:
    if isinstance(output, list):
        output = output[0] if output else ""
    return output if isinstance(output, str) else ""
