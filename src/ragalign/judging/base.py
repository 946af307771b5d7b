"""Types shared by all judging protocols: verdicts, figures and the protocol itself.

A protocol does no I/O: it turns an item into requests (`Protocol.build`) and a judge's reply into a verdict
(`Protocol.parse`); `ragalign.judging.runner` asks the judge.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from ragalign.judging.requests import Item, Json, JudgeParameters, JudgeReply, JudgeRequest, JudgeUsage


@dataclass(frozen=True, slots=True)
class Verdict:
    """A judge's decision on a request: scored, or unscored with a reason.

    Attributes:
        id: the id of the request.
        item_id: the id of the prompt; statistics cluster by it.
        protocol: the protocol's name.
        judge: the judge's name.
        model: the judged model.
        baseline: the model it was compared with; None where answers are scored individually.
        scores: scores by the protocol's names and on its scale; empty if there are none.
        preference: the judge's preference, from 0 (the baseline is better) over
            0.5 (a tie) to 1 (the model is better); None for single answers and for unscored verdicts.
        reason: why there is no score; None if scored.
        swapped: whether the baseline was shown first; None where nothing was compared.
        turn: the judged turn, from 1.
        sample: the number of the judged answer among several to the prompt, from 0.
        category: the prompt's category.
        raw: the judge's reply.
        usage: tokens spent, even if the reply could not be parsed.
        metadata: other values that `Protocol.aggregate` needs (lengths, positions, stored values), JSON values.

    Raises:
        ValueError: the verdict is scored and has a reason, or has neither a score nor a reason.
    """

    id: str
    item_id: str
    protocol: str
    judge: str
    model: str
    baseline: str | None = None
    scores: Mapping[str, float] = field(default_factory=dict)
    preference: float | None = None
    reason: str | None = None
    swapped: bool | None = None
    turn: int = 1
    sample: int = 0
    category: str | None = None
    raw: str = ""
    usage: JudgeUsage | None = None
    metadata: Json = field(default_factory=dict)

    def __post_init__(self) -> None:
        has_score = bool(self.scores) or self.preference is not None
        if has_score == (self.reason is not None):
            raise ValueError(f"verdict {self.id!r} must have either a score or a reason why it has none")

    @property
    def is_scored(self) -> bool:
        """Whether the judge's decision is known."""
        return self.reason is None


@dataclass(frozen=True, slots=True)
class Judgement:
    """A verdict with its item, request and reply; the latter two are None if no judge had to be asked."""

    item: Item
    verdict: Verdict
    request: JudgeRequest | None = None
    reply: JudgeReply | None = None


@dataclass(frozen=True, slots=True)
class Observations:
    """The observations of a figure that is a mean, from which its interval is computed.

    Attributes:
        prompts: the prompt of each observation.
        values: the observations.
        n_unscored: verdicts without a value for the figure.
        is_share: whether the figure is a share of comparisons, with values 100 or 0 (or between, for a tie).
    """

    prompts: tuple[str, ...]
    values: tuple[float, ...]
    n_unscored: int = 0
    is_share: bool = False


@dataclass(frozen=True, slots=True)
class Figures:
    """A protocol's figures for one model.

    Attributes:
        protocol: the protocol's name.
        model: the judged model.
        judge: the judges, joined with commas where an evaluation uses several.
        baseline: the model it was compared with; None where answers are scored individually.
        n: scored verdicts.
        n_unscored: verdicts without a score, not included in `n`.
        values: figures by their upstream names; rates in percent. None where a figure is undefined.
        reasons: why verdicts are unscored, with counts.
        notes: notes for readers, such as why a figure is missing.
        files: the files of replayed verdicts.
        observations: the observations of each figure that is a mean; nested figures have dotted names.
        averages: for figures that are the unweighted mean of others, their names.
        resampled: for all other figures, their values on resamples of the prompts.
    """

    protocol: str
    model: str
    judge: str
    baseline: str | None
    n: int
    n_unscored: int
    values: Mapping[str, Any]
    reasons: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    observations: Mapping[str, Observations] = field(default_factory=dict)
    averages: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    resampled: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """A JSON object: protocol, models and counts, then the figures, then reasons, notes and files."""
        head = {"protocol": self.protocol, "model": self.model, "baseline": self.baseline, "judge": self.judge}
        counts = {"n": self.n, "n_unscored": self.n_unscored}
        rest = {"reasons": dict(self.reasons), "notes": list(self.notes), "files": list(self.files)}
        return {**head, **counts, **self.values, **rest}


class UnreadableReplyError(Exception):
    """A reply that a protocol cannot parse; `Protocol.parse` makes the message the verdict's reason."""


@dataclass(frozen=True, slots=True)
class Decision:
    """The decision parsed from a reply: see `Verdict.scores`, `Verdict.preference` and `Verdict.metadata`."""

    scores: Mapping[str, float] = field(default_factory=dict)
    preference: float | None = None
    metadata: Json = field(default_factory=dict)


class Protocol(ABC):
    """How an upstream tool prompts a judge, parses its replies and averages them.

    Subclasses implement `build`, `read` and `aggregate` for judging, `replay` and `record` for upstream files.
    `strict` makes `read` refuse what upstream would guess. `needs_text` is False where the decision is not in the
    reply's text. `asks_reward_models` tells protocols for reward models from those that ask in words.
    """

    name: ClassVar[str]
    is_pairwise: ClassVar[bool]
    file_format: ClassVar[Literal["json", "jsonl"]]
    needs_text: ClassVar[bool] = True
    asks_reward_models: ClassVar[bool] = False

    def __init__(self, *, strict: bool = False) -> None:
        self.strict = strict

    @abstractmethod
    def build(self, item: Item) -> list[JudgeRequest]:
        """The requests needed to judge an item.

        Raises:
            DataError: the item lacks what the protocol needs, such as a baseline or a second turn.
        """

    @abstractmethod
    def read(self, request: JudgeRequest, reply: JudgeReply) -> Decision:
        """Find the judge's decision in a reply with text.

        Raises:
            UnreadableReplyError: there is none.
        """

    @abstractmethod
    def aggregate(self, verdicts: Sequence[Verdict]) -> list[Figures]:
        """Average as the upstream tool does: one `Figures` per model, in order of first appearance."""

    @abstractmethod
    def replay(self, row: Json, position: int, source: str) -> list[Verdict]:
        """The verdicts of a row of an upstream judgement file, parsed again from the judge's recorded replies.

        Args:
            row: the row.
            position: its place in the file, from 0.
            source: the file's path, from which some protocols take the model's name.

        Raises:
            DataError: the row has another form; the message says what is missing.
        """

    @abstractmethod
    def record(self, judgements: Sequence[Judgement]) -> list[dict[str, Any]]:
        """The rows of an upstream judgement file, in the order of the judgements."""

    def settle(self, item: Item, judge: str) -> Verdict | None:
        """The verdict on an item that needs no judge, such as identical answers; None for others."""
        return None

    def parse(self, request: JudgeRequest, reply: JudgeReply) -> Verdict:
        """Parse a reply into a verdict: scored, or unscored with the reason. Never raises because of a reply."""
        if reply.refusal is not None:
            return self.unscored(request, f"the judge refused: {reply.refusal}", reply)
        if self.needs_text and not reply.text.strip():
            return self.unscored(request, reply.why_empty, reply)
        try:
            reading = self.read(request, reply)
        except UnreadableReplyError as error:
            return self.unscored(request, str(error), reply)
        return self._verdict(request, reply, reading, None)

    def unscored(self, request: JudgeRequest, reason: str, reply: JudgeReply | None = None, judge: str = "") -> Verdict:
        """The unscored verdict on a request; `judge` is the judge's name if there is no reply."""
        return self._verdict(request, reply or JudgeReply(judge, {}), Decision(), reason)

    def _verdict(self, request: JudgeRequest, reply: JudgeReply, reading: Decision, reason: str | None) -> Verdict:
        item = request.item
        return Verdict(
            id=request.id,
            item_id=item.id,
            protocol=self.name,
            judge=reply.judge,
            model=item.answer.model,
            baseline=item.baseline.model if item.baseline else None,
            scores=reading.scores,
            preference=reading.preference,
            reason=reason,
            swapped=request.swapped,
            turn=request.turn,
            sample=item.sample,
            category=item.category,
            raw=reply.text,
            usage=reply.usage,
            metadata={**self.context(item), **reading.metadata},
        )

    def context(self, item: Item) -> Json:
        """Values of an item that `aggregate` needs, for `Verdict.metadata`.

        They always include ``source``, the file of a replayed verdict.
        """
        return {"source": item.metadata["source"]} if "source" in item.metadata else {}

    def parse_recorded(
        self, item: Item, text: object, judge: str, *, swapped: bool | None = None, turn: int = 1, suffix: str = ""
    ) -> Verdict:
        """Parse a recorded reply; anything but a string counts as an empty reply."""
        name = f"{item.id}/{item.sample}{suffix}"
        request = JudgeRequest(name, item, (), JudgeParameters(), swapped=swapped, turn=turn)
        return self.parse(request, JudgeReply.from_text(text if isinstance(text, str) else "", judge))
