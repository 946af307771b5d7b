"""Judged answers: verdicts with their texts, both orders merged, grouped by model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from ragalign.comparisons.completions import Completions
from ragalign.comparisons.computed import is_pairwise
from ragalign.comparisons.sources import VerdictSource
from ragalign.comparisons.texts import Texts
from ragalign.judging.base import Verdict
from ragalign.judging.protocols.grouping import group, merge_orders
from ragalign.text import normalise


@dataclass(frozen=True)
class Judged:
    """A judged answer (or turn), in one order or both.

    Attributes:
        verdict: the decision from all orders.
        orders: the verdicts as recorded, one per order.
        texts: the judged texts.
        category: the prompt's category; for AlpacaEval its dataset.
    """

    verdict: Verdict
    orders: tuple[Verdict, ...]
    texts: Texts
    category: str | None = None

    @cached_property
    def prompt(self) -> str:
        """The prompt's identity across models: its text, or its id where the text is unknown."""
        return normalise("\n".join(self.texts.turns)) if self.texts.turns else self.verdict.item_id

    @property
    def n_characters(self) -> int | None:
        """The answer's length in characters."""
        return _length(self.texts.answer_of(self.verdict.turn), self.verdict, "len_2")

    @property
    def n_baseline_characters(self) -> int | None:
        """The baseline's length in characters."""
        return _length(self.texts.baseline_of(self.verdict.turn), self.verdict, "len_1")

    @property
    def n_words(self) -> int | None:
        """The answer's length in words."""
        text = self.texts.answer_of(self.verdict.turn)
        known = self.verdict.metadata.get("n_words")
        return len(text.split()) if text is not None else known if isinstance(known, int) else None


@dataclass(frozen=True, slots=True)
class ModelVerdicts:
    """All that one judge said about one model under one protocol.

    Attributes:
        protocol, model, baseline, judge: what the verdicts have in common.
        files: where they come from.
        verdicts: as recorded.
        judged: the answers they are about.
    """

    protocol: str
    model: str
    baseline: str | None
    judge: str
    files: tuple[str, ...]
    verdicts: tuple[Verdict, ...]
    judged: tuple[Judged, ...]


def verdicts_by_model(sources: Sequence[VerdictSource], completions: Completions) -> list[ModelVerdicts]:
    """Group verdicts by protocol, model, baseline and judge, in order of first appearance."""
    found = []
    for of_protocol in group(sources, lambda source: source.protocol):
        entries = [_Entry(verdict, source) for source in of_protocol for verdict in source.verdicts]
        for members in group(entries, lambda entry: (entry.verdict.model, entry.verdict.baseline)):
            found += [
                _model_verdicts(part, completions) for by_judge in _by_judge(members) for part in _by_file(by_judge)
            ]
    return found


@dataclass(frozen=True, slots=True)
class _Entry:
    verdict: Verdict
    source: VerdictSource

    @property
    def unit(self) -> Hashable:
        """The identity of the judged answer, the same for both orders."""
        verdict = self.verdict
        metadata = verdict.metadata
        return (
            self.source.file,
            verdict.item_id,
            verdict.sample,
            verdict.turn,
            metadata.get("row"),
            metadata.get("mode"),
        )


def _by_judge(members: list[_Entry]) -> list[list[_Entry]]:
    """Separate the judges, unless each judged a different part of the answers, such as their safety."""
    judges = group(members, lambda entry: entry.verdict.judge)
    kinds = group(members, lambda entry: (entry.verdict.metadata.get("mode"), entry.verdict.judge))
    modes = {entry.verdict.metadata.get("mode") for entry in members}
    return [members] if len(kinds) <= len(modes) else judges


def _by_file(members: list[_Entry]) -> list[list[_Entry]]:
    """Separate files that judge the same answers, as different runs do; files with different answers are parts."""
    files = group(members, lambda entry: entry.source.file)
    seen = Counter(unit[1:] for unit in {entry.unit for entry in members} if isinstance(unit, tuple))
    is_repeated = any(count > 1 for count in seen.values())
    return files if is_repeated or is_pairwise(members[0].source.protocol) else [members]


def _model_verdicts(members: list[_Entry], completions: Completions) -> ModelVerdicts:
    first = members[0].verdict
    judges = dict.fromkeys(entry.verdict.judge for entry in members if entry.verdict.judge)
    protocol = members[0].source.protocol
    judged = []
    for entries in group(members, lambda entry: entry.unit):
        orders = tuple(entry.verdict for entry in entries)
        texts = _texts(entries[0], completions)
        category = completions.category(orders[0])
        judged += [_judged(verdict, orders, texts, category) for verdict in merge_orders(orders)]
    return ModelVerdicts(
        protocol=protocol,
        model=first.model,
        baseline=first.baseline,
        judge=", ".join(judges),
        files=tuple(dict.fromkeys(entry.source.file for entry in members)),
        verdicts=tuple(entry.verdict for entry in members),
        judged=tuple(judged),
    )


def _judged(merged: Verdict, orders: tuple[Verdict, ...], texts: Texts, category: str | None) -> Judged:
    dataset = merged.metadata.get("dataset")
    kind = merged.category or category or (dataset if isinstance(dataset, str) and dataset else None)
    both = {order.swapped for order in orders} == {False, True} and len(orders) == 2
    return Judged(_settled(merged, orders), orders if both else (merged,), texts, kind)


def _settled(merged: Verdict, orders: tuple[Verdict, ...]) -> Verdict:
    """The verdict under the protocol's own rule where that differs from the mean preference of both orders."""
    if merged.preference is None:
        return merged
    if {"model", "baseline"} <= set(merged.scores):  # ICA compares mean scores
        difference = merged.scores["model"] - merged.scores["baseline"]
        return replace(merged, preference=0.5 + 0.5 * ((difference > 0) - (difference < 0)))
    if merged.protocol == "mt-bench-pairwise" and len({order.preference for order in orders}) > 1:
        return replace(merged, preference=0.5)
    return merged


def _texts(entry: _Entry, completions: Completions) -> Texts:
    verdict = entry.verdict
    recorded = entry.source.texts.get((verdict.item_id, verdict.model, verdict.turn), Texts())
    return completions.complete(verdict, recorded)


def _length(text: str | None, verdict: Verdict, key: str) -> int | None:
    if text is not None:
        return len(text)
    known = verdict.metadata.get(key)
    return known if isinstance(known, int) else None
