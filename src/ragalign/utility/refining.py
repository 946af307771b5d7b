"""Replacing weak demonstrations by rewrites that the base model itself finds better.

As in Selective Reflection-Tuning (Li et al. 2024, arXiv 2402.10110), a rewrite is kept only if the base model's own
score improves; here also only if its meaning stays close to the original's, by the cosine of an encoder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from ragalign.encoders import Encoder
from ragalign.errors import ConfigError
from ragalign.measures.similarity import AnswerSimilarity
from ragalign.pool import Pool
from ragalign.pool.table import check_text
from ragalign.questions import BadRowError
from ragalign.types import Demonstration
from ragalign.utility.pool_scores import SCORES, ResponseScorer, measure_scores, require

OwnRule = Literal["ifd", "perplexity"]
REFINED = "refined"
"""The metadata field with the provenance of a rewritten response."""


@dataclass(frozen=True, slots=True)
class RewriteVerdict:
    """The outcome of a rewrite.

    Attributes:
        id: the original's.
        is_kept: whether it replaces the original.
        reason: why not; empty if it is kept.
        before, after: the base model's score of original and rewrite; None if there is none.
        similarity: cosine of both responses; None if there is no rewrite.
    """

    id: str
    is_kept: bool
    reason: str = ""
    before: float | None = None
    after: float | None = None
    similarity: float | None = None


def weakest(pool: Pool, rule: OwnRule, n: int) -> list[Demonstration]:
    """The demonstrations with the worst scores by a rule; those without a score are not among them.

    Raises:
        ConfigError: `n` is less than 1.
        DataError: the pool has no scores by the rule.
    """
    if n < 1:
        raise ConfigError(f"the number of demonstrations to refine must be at least 1, not {n}")
    known = [(place, score) for place, score in enumerate(require(pool, rule)) if score is not None]
    known.sort(key=lambda pair: _goodness(rule, pair[1]))
    return [pool[place] for place, _ in known[:n]]


def judge_rewrites(
    originals: Sequence[Demonstration],
    texts: Mapping[str, str | None],
    rule: OwnRule,
    scorer: ResponseScorer,
    encoder: Encoder,
    work: Path,
    settings: Mapping[str, Any],
    *,
    min_similarity: float = 0.7,
) -> list[RewriteVerdict]:
    """Decide which rewrites are kept.

    Args:
        originals: the demonstrations that were rewritten.
        texts: their rewrites; see `ragalign.utility.rewriting.Rewrites`.
        rule: the base model's score that has to improve.
        scorer: the base model.
        encoder: compares the responses.
        work: the file with scores that an interrupted run is resumed from.
        settings: what determines the scores.
        min_similarity: the lowest cosine of both responses.

    Raises:
        ConfigError: the similarity is outside [-1, 1], or the file was made with other settings.
        DataError, GenerationError: as `measure_scores`.
    """
    if not -1 <= min_similarity <= 1:
        raise ConfigError(f"the lowest similarity must be between -1 and 1, not {min_similarity:g}")
    changed = {
        one.id: replace(one, response=text)
        for one in originals
        if (text := texts.get(one.id)) is not None and text != one.response and _is_usable(text)
    }
    compared = [one for one in originals if one.id in changed]
    scored = Pool.from_demonstrations([*compared, *changed.values()])
    scores = measure_scores(scored, rule, scorer, work, settings) if compared else {}
    similar = AnswerSimilarity(encoder)
    verdicts = []
    for one in originals:
        if one.id not in changed:
            verdicts.append(RewriteVerdict(one.id, False, _why_none(one, texts)))
            continue
        new = changed[one.id]
        before, after = scores[one.id], scores[new.id]
        similarity = similar(new.response, [one.response])
        reason = ""
        if before is None or after is None:
            reason = "the base model cannot score it"
        elif _goodness(rule, after) <= _goodness(rule, before):
            reason = f"the base model's {rule} does not improve"
        elif similarity < min_similarity:
            reason = "its meaning differs"
        verdicts.append(RewriteVerdict(one.id, not reason, reason, before, after, similarity))
    return verdicts


def with_rewrites(
    pool: Pool, texts: Mapping[str, str | None], verdicts: Sequence[RewriteVerdict], rule: OwnRule, writer: str
) -> Pool:
    """The pool with the kept rewrites in place of the originals, each with its provenance in the metadata."""
    kept = {verdict.id: verdict for verdict in verdicts if verdict.is_kept}

    def refined(one: Demonstration) -> Demonstration:
        verdict = kept.get(one.id)
        text = texts.get(one.id)
        if verdict is None or text is None:
            return one
        provenance = {
            "original": {"id": one.id, "response": one.response},
            "by": writer,
            "rule": rule,
            "before": verdict.before,
            "after": verdict.after,
            "similarity": verdict.similarity,
        }
        # Scores by other rules are the original's.
        others = {name: value for name, value in one.metadata.items() if name != SCORES}
        return replace(one, response=text, metadata={**others, SCORES: {rule: verdict.after}, REFINED: provenance})

    return Pool.from_demonstrations(map(refined, pool))


def _goodness(rule: OwnRule, score: float) -> float:
    """Higher is better. An IFD of 1 and above is worst: the instruction does not help to predict the response."""
    if rule == "perplexity":
        return -score
    return score if score < 1 else -score


def _is_usable(text: str) -> bool:
    try:
        check_text("response", text)
    except BadRowError:
        return False
    return True


def _why_none(one: Demonstration, texts: Mapping[str, str | None]) -> str:
    if one.id not in texts:
        return "it was not rewritten"
    if texts[one.id] is None:
        return "the reply was empty, refused or cut off"
    return "the rewrite is the same" if texts[one.id] == one.response else "the rewrite is not valid text"
