"""MT-Bench with single-answer grading: a score from 1 to 10 for each of two turns."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ragalign.errors import ConfigError, DataError
from ragalign.judging.base import Decision, Figures, Judgement, Protocol, UnreadableReplyError, Verdict
from ragalign.judging.protocols.grouping import figures, group, mean, observe
from ragalign.judging.protocols.parsing import finite, in_range
from ragalign.judging.protocols.prompt_files import JudgePrompt, parse_fastchat, prompt_text
from ragalign.judging.requests import Answer, Item, Json, JudgeParameters, JudgeReply, JudgeRequest

REFERENCE_CATEGORIES = frozenset({"math", "reasoning", "coding", "arena-hard-200"})
"""Categories that FastChat judges against a reference answer."""
PARAMETERS = JudgeParameters(temperature=0.0, max_tokens=2048)

_SCORE = re.compile(r"\[\[(\d+\.?\d*)\]\]")
_SCORE_FALLBACK = re.compile(r"\[(\d+\.?\d*)\]")
_FAILED = "$ERROR$"


class MtBench(Protocol):
    """One score per turn, then averages over turns.

    Args:
        strict: require a single ``[[x]]`` from 1 to 10; upstream takes the first, or
            else the first number in single brackets.
        prompt_file: FastChat's ``judge_prompts.jsonl``.
        categories: categories by question id, for averages by category if judgements lack them.
    """

    name = "mt-bench"
    is_pairwise = False
    file_format = "jsonl"

    def __init__(
        self,
        *,
        strict: bool = False,
        prompt_file: str | Path | None = None,
        categories: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(strict=strict)
        self._categories = dict(categories or {})
        self._prompts = load_prompts(prompt_file, "single", ("answer",), ("answer_1", "answer_2"))

    def build(self, item: Item) -> list[JudgeRequest]:
        """One request per turn; the second shows the judge the whole conversation."""
        requests = []
        for turn in check_turns(item, item.answer):
            values = {**conversation(item, turn), **_answers(item, turn)}
            prompt = self._prompts[prompt_name("single", "v1", item, turn)]
            name = f"{item.id}/{item.sample}/turn-{turn}"
            messages = prompt.render(values)
            requests.append(JudgeRequest(name, item, messages, PARAMETERS, turn=turn, prompt_name=prompt.name))
        return requests

    def read(self, request: JudgeRequest, reply: JudgeReply) -> Decision:
        """The first ``[[x]]``, or else the first ``[x]``."""
        text = reply.text
        if self.strict:
            found = set(_SCORE.findall(text))
            if len(found) != 1:
                raise UnreadableReplyError(f"the reply has {len(found)} different scores in double brackets")
            return Decision({"score": in_range(finite(found.pop(), "the score"), 1, 10, "the score")})
        match = _SCORE.search(text) or _SCORE_FALLBACK.search(text)
        if match is None:
            raise UnreadableReplyError("no score in brackets" if text != _FAILED else "the judge's endpoint failed")
        return Decision({"score": finite(match[1], "the score")})

    def aggregate(self, verdicts: Sequence[Verdict]) -> list[Figures]:
        """Mean scores of the first turn, of the second turn, and of all scored turns."""
        return [self._figures(verdicts) for verdicts in group(verdicts, lambda v: (v.model, v.judge))]

    def replay(self, row: Json, position: int, source: str) -> list[Verdict]:
        """The score in ``judgment``, or the stored ``score`` if there is no text.

        `Verdict.metadata` has ``stored``: the score in the file, -1 where upstream found none.
        """
        question, model, judge = question_id(row), row_text(row, "model"), judge_name(row)
        turn = row.get("turn", 1)
        if turn not in (1, 2):
            raise DataError(f"the turn is {turn!r}, not 1 or 2")
        stored = row.get("score")
        metadata = {"source": source} | ({"stored": stored} if isinstance(stored, int | float) else {})
        category = self._categories.get(question)
        item = Item(question, ("",), Answer(model, ("",)), category=category, metadata=metadata)
        if not isinstance(row.get("judgment"), str):
            if "stored" not in metadata:
                raise DataError("neither a text 'judgment' nor a number 'score'")
            return [_from_stored(self.name, item, judge, turn)]
        return [self.parse_recorded(item, row["judgment"], judge, turn=turn, suffix=f"/turn-{turn}")]

    def record(self, judgements: Sequence[Judgement]) -> list[dict[str, Any]]:
        """Rows of ``model_judgment/<judge>_single.jsonl``; an unscored turn has the score -1, as upstream stores it."""
        return [
            {
                "question_id": upstream_id(judgement.item.id),
                "model": judgement.verdict.model,
                "judge": [judgement.verdict.judge, judgement.request.prompt_name if judgement.request else ""],
                "user_prompt": judgement.request.messages[-1].content if judgement.request else "",
                "judgment": judgement.verdict.raw or _FAILED,
                "score": _whole(judgement.verdict.scores.get("score", -1)),
                "turn": judgement.verdict.turn,
                "tstamp": judgement.reply.created if judgement.reply else None,
            }
            for judgement in judgements
        ]

    def context(self, item: Item) -> Json:
        """The stored score of a replayed row."""
        return {key: item.metadata[key] for key in ("source", "stored") if key in item.metadata}

    def _figures(self, verdicts: Sequence[Verdict]) -> Figures:
        turns = {1: "turn_1", 2: "turn_2"}
        observed = {name: observe((v for v in verdicts if v.turn == turn), _score) for turn, name in turns.items()}
        observed["overall"] = observe(verdicts, _score)
        values: dict[str, Any] = {
            "mode": "single",
            **{name: mean(observations) for name, observations in observed.items()},
        }
        categories = group((v for v in verdicts if v.category is not None), lambda v: v.category)
        if categories:
            by_category = {str(members[0].category): observe(members, _score) for members in categories}
            values["categories"] = {name: mean(observations) for name, observations in by_category.items()}
            observed |= {f"categories.{name}": observations for name, observations in by_category.items()}
        checked = [v for v in verdicts if "stored" in v.metadata]
        if checked:
            values["n_stored"] = len(checked)
            values["n_stored_differing"] = sum(v.metadata["stored"] != v.scores.get("score", -1) for v in checked)
        return figures(self.name, verdicts, values, observed)


def load_prompts(
    prompt_file: str | Path | None, kind: str, one_turn: Sequence[str], two_turns: Sequence[str]
) -> dict[str, JudgePrompt]:
    """Load the four prompts of a kind (``single`` or ``pair``): with and without reference, for one and two turns.

    Raises:
        ConfigError: a prompt is missing, lacks a placeholder, or asks for another output format.
    """
    text, where = prompt_text(prompt_file, "mt_bench.jsonl")
    prompts = parse_fastchat(text, where)
    general, output_format = ("v1", "[[rating]]") if kind == "single" else ("v2", "[[A]]")
    for version, references in ((general, 0), ("math-v1", 1)):
        for suffix, answers in (("", one_turn), ("-multi-turn", two_turns)):
            name = f"{kind}-{version}{suffix}"
            if name not in prompts:
                raise ConfigError(f"{where} has no prompt {name!r}; it has {', '.join(prompts) or 'none'}")
            if prompts[name].output_format not in ("", output_format):
                raise ConfigError(f"the prompt {name!r} in {where} asks for another output format than {output_format}")
            n_turns = 2 if suffix else 1
            questions = [f"question_{turn}" for turn in (1, 2)] if suffix else ["question"]
            shown = [f"ref_answer_{turn + 1}" for turn in range(n_turns)] if references else []
            prompts[name].check([*questions, *answers, *shown], (), where)
    return prompts


def prompt_name(kind: str, general: str, item: Item, turn: int) -> str:
    """FastChat's prompt name for an item, by its category or by whether it has a reference."""
    needs_reference = item.category in REFERENCE_CATEGORIES if item.category else item.reference is not None
    return f"{kind}-{'math-v1' if needs_reference else general}" + ("-multi-turn" if turn == 2 else "")


def check_turns(item: Item, *answers: Answer) -> range:
    """The turns to judge: 1, or 1 and 2.

    Raises:
        DataError: there are more than two turns, an answer lacks one, or a reference is needed and missing.
    """
    n = len(item.turns)
    if n not in (1, 2):
        raise DataError(f"item {item.id!r} has {n} turns; MT-Bench judges one or two")
    if short := [answer.model for answer in answers if len(answer.turns) < n]:
        raise DataError(f"item {item.id!r}: the answer of {short[0]} lacks turn {n}")
    if item.category in REFERENCE_CATEGORIES and len(item.reference or ()) < n:
        raise DataError(f"item {item.id!r} of the category {item.category} needs a reference answer for {n} turns")
    return range(1, n + 1)


def conversation(item: Item, turn: int) -> dict[str, str]:
    """The values of placeholders common to both kinds of prompt: questions and references."""
    values = {"question": item.turns[0], "question_1": item.turns[0]}
    if turn == 2:
        values["question_2"] = item.turns[1]
    return values | {f"ref_answer_{number}": text for number, text in enumerate(item.reference or (), start=1)}


def question_id(row: Json) -> str:
    """The question's id as a string.

    Raises:
        DataError: it is missing.
    """
    value = row.get("question_id")
    if not isinstance(value, int | str) or isinstance(value, bool):
        raise DataError("no 'question_id'")
    return str(value)


def upstream_id(item_id: str) -> int | str:
    """An id as FastChat writes it: numeric ids as numbers."""
    return int(item_id) if item_id.isascii() and item_id.isdigit() else item_id


def judge_name(row: Json) -> str:
    """The judge's model, which FastChat stores with the prompt's name."""
    judge = row.get("judge")
    if isinstance(judge, list) and judge:
        judge = judge[0]
    return judge if isinstance(judge, str) else ""


def row_text(row: Json, key: str) -> str:
    """A string field.

    Raises:
        DataError: it is missing or not a string.
    """
    value = row.get(key)
    if not isinstance(value, str):
        raise DataError(f"no string field {key!r}")
    return value


def _answers(item: Item, turn: int) -> dict[str, str]:
    values = {"answer": item.answer.turns[0], "answer_1": item.answer.turns[0]}
    return values | ({"answer_2": item.answer.turns[1]} if turn == 2 else {})


def _from_stored(protocol: str, item: Item, judge: str, turn: int) -> Verdict:
    score = float(item.metadata["stored"])
    known = score != -1
    return Verdict(
        f"{item.id}/0/turn-{turn}",
        item.id,
        protocol,
        judge,
        item.answer.model,
        scores={"score": score} if known else {},
        reason=None if known else "the stored score is -1",
        turn=turn,
        category=item.category,
        metadata=item.metadata,
    )


def _score(verdict: Verdict) -> float:
    return verdict.scores["score"]


def _whole(score: float) -> float:
    return int(score) if score == int(score) else score
