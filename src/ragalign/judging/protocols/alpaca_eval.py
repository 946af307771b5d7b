"""AlpacaEval 1 and 2: which of two answers is preferred, in an order drawn from the instruction."""

from __future__ import annotations

import ast
import math
import random
from abc import abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ragalign._parsing import parse_json
from ragalign.errors import DataError
from ragalign.judging.base import Decision, Figures, Judgement, Protocol, UnreadableReplyError, Verdict
from ragalign.judging.protocols.alpaca_figures import leaderboard_line
from ragalign.judging.protocols.grouping import group, line, merge_orders
from ragalign.judging.protocols.length_control import LengthControl
from ragalign.judging.protocols.parsing import finite
from ragalign.judging.protocols.prompt_files import parse_chatml, prompt_text
from ragalign.judging.requests import Answer, Item, Json, JudgeParameters, JudgeReply, JudgeRequest

_IDENTICAL = "identical answers"


def is_swapped(instruction: str) -> bool:
    """Whether AlpacaEval shows the model's answer first: drawn with the instruction as the seed (annotator seed 0)."""
    return random.Random("is_switched_outputs" + instruction + "0").choices([False, True])[0]


class _AlpacaEval(Protocol):
    """The base of both versions.

    Args:
        strict: see the subclasses.
        prompt_file: an AlpacaEval prompt with ``<|im_start|>`` blocks.
        both_orders: ask in both orders, and average.
        length_control: how to control for length; None leaves the figure out.
    """

    is_pairwise = True
    file_format = "json"
    own_prompt: ClassVar[str]
    annotators: ClassVar[Mapping[str, str]]
    parameters: ClassVar[JudgeParameters]

    def __init__(
        self,
        *,
        strict: bool = False,
        prompt_file: str | Path | None = None,
        both_orders: bool = False,
        length_control: LengthControl | None = None,
    ) -> None:
        super().__init__(strict=strict)
        self._both_orders = both_orders
        self._length_control = length_control
        text, where = prompt_text(prompt_file, self.own_prompt)
        self._prompt = parse_chatml(text, where)
        self._prompt.check(("instruction", "output_1", "output_2"), (), where)

    def settle(self, item: Item, judge: str) -> Verdict | None:
        """Settle identical answers as a draw, without asking the judge."""
        if item.baseline is None or item.answer.text != item.baseline.text:
            return None
        return Verdict(
            f"{item.id}/{item.sample}",
            item.id,
            self.name,
            judge,
            model=item.answer.model,
            baseline=item.baseline.model,
            preference=0.5,
            sample=item.sample,
            category=item.category,
            raw=_IDENTICAL,
            metadata=self.context(item),
        )

    def build(self, item: Item) -> list[JudgeRequest]:
        """One request in the drawn order, and another in the other order with `both_orders`."""
        if item.baseline is None:
            raise DataError(f"item {item.id!r} has no baseline answer, which the protocol {self.name} needs")
        usual = is_swapped(item.instruction)
        requests = []
        for swapped in (usual, not usual) if self._both_orders else (usual,):
            # "Swapped" as upstream uses it: the baseline is output_1, so unswapped means that it is shown first.
            first, second = item.baseline.text, item.answer.text
            if swapped:
                first, second = second, first
            values = {"instruction": item.instruction, "output_1": first, "output_2": second}
            name = f"{item.id}/{item.sample}" + ("" if swapped == usual else "/other-order")
            messages = self._prompt.render(values)
            requests.append(JudgeRequest(name, item, messages, self.parameters, swapped=not swapped))
        return requests

    def read(self, request: JudgeRequest, reply: JudgeReply) -> Decision:
        """The preference, where 1 means that the model is better."""
        preference = self.read_preference(reply.choice) - 1
        return Decision(preference=preference if request.swapped else 1 - preference)

    @abstractmethod
    def read_preference(self, choice: Json) -> float:
        """Upstream's preference, from 1 (the first answer shown is better) to 2 (the second is better).

        Raises:
            UnreadableReplyError: the reply has no preference.
        """

    def context(self, item: Item) -> Json:
        """The lengths in characters, and the row's position for the instruction difficulties."""
        kept = {key: item.metadata[key] for key in ("dataset", "position", "source") if key in item.metadata}
        len_1 = len(item.baseline.text) if item.baseline else 0
        return {"len_1": len_1, "len_2": len(item.answer.text), **kept}

    def aggregate(self, verdicts: Sequence[Verdict]) -> list[Figures]:
        """One leaderboard line per model; a recorded file can have several annotators."""
        groups = group(merge_orders(verdicts), _leaderboard_line)
        return [leaderboard_line(self.name, verdicts, self._length_control) for verdicts in groups]

    def replay(self, row: Json, position: int, source: str) -> list[Verdict]:
        """The stored preference, which upstream averages; the recorded reply is parsed again to check it.

        `Verdict.metadata` has ``rederived`` if the recorded reply has the form that this protocol asks for: the
        preference parsed again, or None if there is none.
        """
        keys = ("instruction", "output_1", "generator_1", "output_2", "generator_2")
        instruction, output_1, generator_1, output_2, generator_2 = (_text(row, key) for key in keys)
        if "preference" not in row:
            raise DataError("no field 'preference'")
        item = Item(
            str(position),
            (instruction,),
            Answer(generator_2, (output_2,)),
            Answer(generator_1, (output_1,)),
            metadata={"position": position, "dataset": row.get("dataset"), "source": source},
        )
        raw = row.get("raw_completion", row.get("preference_raw_completion"))
        preference, reason = _stored_preference(row["preference"])
        metadata = dict(self.context(item))
        judge = str(row.get("annotator") or "")
        rederived = self._rederive(item, raw)
        # Other annotators reply in other forms, which cannot be checked.
        if rederived is not None or (raw is not None and judge in self.annotators.values()):
            metadata["rederived"] = rederived
        return [
            Verdict(
                f"{position}/0",
                str(position),
                self.name,
                judge=judge,
                model=generator_2,
                baseline=generator_1,
                preference=preference,
                reason=reason,
                swapped=not is_swapped(instruction),
                raw=raw if isinstance(raw, str) else JudgeReply("", raw if isinstance(raw, dict) else {}).text,
                metadata=metadata,
            )
        ]

    def record(self, judgements: Sequence[Judgement]) -> list[dict[str, Any]]:
        """Rows of ``annotations.json``; the preference of unscored ones is null, as upstream stores them."""
        rows = []
        for item, verdict, _, reply in (
            (judgement.item, judgement.verdict, judgement.request, judgement.reply) for judgement in judgements
        ):
            baseline = item.baseline or Answer("", ("",))
            row: dict[str, Any] = {
                "dataset": item.metadata.get("dataset") or "",
                "instruction": item.instruction,
                "output_1": baseline.text,
                "generator_1": baseline.model,
                "output_2": item.answer.text,
                "generator_2": item.answer.model,
                "annotator": self.annotators.get(verdict.judge, verdict.judge),
                "preference": None if verdict.preference is None else 1 + verdict.preference,
                "raw_completion": dict(reply.choice) if reply is not None and reply.choice else None,
            }
            rows.append(row)
        return rows

    def _rederive(self, item: Item, raw: object) -> float | None:
        if (settled := self.settle(item, "")) is not None:
            return settled.preference
        if isinstance(raw, str):
            try:
                decoded = parse_json(raw)
            except ValueError:
                decoded = None
            raw = decoded if isinstance(decoded, dict) else {"message": {"content": raw}}
        if not isinstance(raw, dict):
            return None
        try:
            preference = self.read_preference(raw) - 1
        except UnreadableReplyError:
            return None
        return 1 - preference if is_swapped(item.instruction) else preference


class AlpacaEval1(_AlpacaEval):
    """AlpacaEval 1 (``alpaca_eval_gpt4``): the judge returns a ranking as a Python literal.

    ``strict`` requires exactly two models with the ranks 1 and 2; upstream reads the rank of the first model only.
    """

    name = "alpaca-eval-1"
    own_prompt = "alpaca_eval_1.txt"
    annotators: ClassVar[Mapping[str, str]] = {"gpt-4": "alpaca_eval_gpt4"}
    parameters = JudgeParameters(temperature=0.0, max_tokens=100)

    def read_preference(self, choice: Json) -> float:
        """The rank of ``model_1``; rank 1 means that the first answer is better."""
        text = JudgeReply("", choice).text
        try:
            ranking = ast.literal_eval(text)
            ranks = [(entry["model"], entry["rank"]) for entry in ranking]
        except (ValueError, SyntaxError, TypeError, KeyError, MemoryError, RecursionError):
            raise UnreadableReplyError("the reply is not a ranking of model_1 and model_2") from None
        if self.strict and sorted(ranks, key=repr) not in (
            [("model_1", 1), ("model_2", 2)],
            [("model_1", 2), ("model_2", 1)],
        ):
            raise UnreadableReplyError("the ranking does not give ranks 1 and 2 to model_1 and model_2")
        rank = next((rank for model, rank in ranks if model == "model_1"), None)
        if rank not in (1, 2):
            raise UnreadableReplyError(f"the rank of model_1 is {rank!r}, not 1 or 2")
        return float(rank)


class AlpacaEval2(_AlpacaEval):
    """AlpacaEval 2 (``weighted_alpaca_eval_gpt4_turbo``): the probability of the token that names the better model.

    ``strict`` requires both tokens among the five most likely ones; upstream gives a missing token the probability 0.
    """

    name = "alpaca-eval-2"
    own_prompt = "alpaca_eval_2.txt"
    annotators: ClassVar[Mapping[str, str]] = {"gpt-4-1106-preview": "weighted_alpaca_eval_gpt4_turbo"}
    parameters = JudgeParameters(temperature=1.0, max_tokens=1, top_logprobs=5)
    needs_text = False

    def read_preference(self, choice: Json) -> float:
        """2 - P(m) / (P(m) + P(M)), where m names the first answer and M the second."""
        try:
            candidates = choice["logprobs"]["content"][0]["top_logprobs"]
            logprobs = {entry["token"]: entry["logprob"] for entry in candidates}
        except (KeyError, IndexError, TypeError):
            raise UnreadableReplyError("the reply has no log probabilities") from None
        first, second = logprobs.get("m"), logprobs.get("M")
        if first is None and second is None:
            raise UnreadableReplyError("neither m nor M is among the most likely tokens")
        if first is None or second is None:
            if self.strict:
                raise UnreadableReplyError(f"{'m' if first is None else 'M'} is not among the most likely tokens")
            return 2.0 if first is None else 1.0
        difference = finite(second, "a log probability") - finite(first, "a log probability")
        return 2 - float(np.exp(-np.logaddexp(0.0, difference)))


def _stored_preference(value: object) -> tuple[float | None, str | None]:
    """The preference from 0 to 1, or the reason why there is none. Upstream reads 0 as a draw."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None, "no preference is stored"
    try:
        preference = finite(value, "the stored preference")
    except UnreadableReplyError as error:
        return None, str(error)
    if preference == 0:
        preference = 1.5
    if not 1 <= preference <= 2:
        return None, f"the stored preference {preference:g} is not between 1 and 2"
    return preference - 1, None


def _leaderboard_line(verdict: Verdict) -> tuple[Hashable, ...]:
    model, baseline, judge, source = line(verdict)
    return model, baseline, None if source is not None else judge, source


def _text(row: Json, key: str) -> str:
    value = row.get(key)
    if not isinstance(value, str):
        raise DataError(f"no string field {key!r}")
    return value
