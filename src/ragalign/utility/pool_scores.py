"""Which demonstrations of a pool are worth keeping: scores by rule, and selecting by them.

length       tokens of the response (long is more: Zhao et al. 2024, arXiv 2402.04833)
perplexity   exp of the mean negative log-likelihood of the response given the instruction
ifd          perplexity given the instruction / perplexity of the response alone (Li et al. 2024, arXiv 2402.00530);
             1 and above means that the instruction does not help, so such a pair is dropped
utility      mean gain over other questions, in nats per token (see `ragalign.utility.scoring`)
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ragalign._progress import progress
from ragalign.errors import ConfigError, DataError
from ragalign.generation.distributions import SupportsDistributions
from ragalign.measures.likelihood import continuation
from ragalign.packing import Packer, Packing
from ragalign.pool import Pool
from ragalign.pool.wrappers import question_key
from ragalign.recipes import Recipe
from ragalign.runs import OutputFile
from ragalign.tokenization import Tokenizer
from ragalign.types import Demonstration, Turn
from ragalign.utility.prompts import PromptForm, Scored, score_references
from ragalign.utility.questions import AnsweredQuestion

Rule = Literal["length", "ifd", "utility", "perplexity"]
SCORES = "scores"
"""The metadata field with a demonstration's scores by rule."""

_KEYS = ("id", "score")
_BATCH = 32
# Lower is better for these rules.
_ASCENDING = frozenset({"perplexity"})
_IFD_LIMIT = 1.0


class ResponseScorer:
    """Perplexity and IFD of pairs under a model, with the response after the prompt that a recipe makes.

    Args:
        recipe: its template; without demonstrations.
        tokenizer: the model's.
        generator: gives probabilities of given tokens.
    """

    def __init__(self, recipe: Recipe, tokenizer: Tokenizer, generator: SupportsDistributions) -> None:
        template, _ = recipe.make_template()
        self._packer = Packer(template, tokenizer, Pool.from_demonstrations([]), packing=Packing(0))
        self._generator = generator

    def perplexities(self, demonstrations: Sequence[Demonstration]) -> list[float | None]:
        """Perplexity of each response given its instruction; None if the pair does not fit into the context."""
        asked = [self._conditional(one) for one in demonstrations]
        return [None if loss is None else math.exp(loss) for loss in self._losses(asked)]

    def ifds(self, demonstrations: Sequence[Demonstration]) -> list[float | None]:
        """The ratio of both perplexities of each response; None if the pair does not fit, or has only one token.

        Alone, the response follows the tokens that a model's texts begin with (BOS). If there are none, its first token
        is only read, in both perplexities, since nothing comes before it.
        """
        conditional, alone = [], []
        for one in demonstrations:
            ids, start = self._conditional(one)
            before, rest = ids[:start], ids[start:]
            prefix = list(self._packer.tokenizer.prefix_ids)
            n_read = 0 if prefix else 1
            conditional.append(([*before, *rest], start + n_read))
            alone.append(([*prefix, *rest], len(prefix) + n_read))
        given, without = self._losses(conditional), self._losses(alone)
        return [
            None if first is None or second is None else math.exp(first - second)
            for first, second in zip(given, without, strict=True)
        ]

    def _conditional(self, one: Demonstration) -> tuple[list[int], int]:
        prompt = self._packer.pack([Turn("user", one.instruction)], [])
        answer = continuation(prompt, one.response, self._packer.template, self._packer.tokenizer)
        return [*prompt.token_ids, *answer], len(prompt.ids)

    def _losses(self, asked: Sequence[tuple[list[int], int]]) -> list[float | None]:
        """Mean negative log-likelihoods from a position on."""
        context = self._generator.context_length
        places = [
            place
            for place, (ids, start) in enumerate(asked)
            if 1 <= start < len(ids) and (context is None or len(ids) < context)
        ]
        found: list[float | None] = [None] * len(asked)
        sequences, starts = [asked[place][0] for place in places], [asked[place][1] for place in places]
        if places:
            for number, logprobs in self._generator.token_logprobs(sequences, starts):
                found[places[number]] = -float(logprobs.astype(np.float64).mean())
        return found


def measure_scores(
    pool: Pool, rule: Rule, scorer: ResponseScorer, work: Path, settings: Mapping[str, Any]
) -> dict[str, float | None]:
    """Measure perplexity or IFD of all demonstrations, with what is measured kept in a file.

    Args:
        pool: the pool.
        rule: ``perplexity`` or ``ifd``.
        scorer: measures.
        work: the JSON Lines file with the scores by id, which an interrupted run is resumed from.
        settings: what determines the scores.

    Raises:
        ConfigError: the file was made with other settings.
        DataError: the file has other content.
        GenerationError: the engine failed; what was measured is kept.
    """
    measure = {"perplexity": scorer.perplexities, "ifd": scorer.ifds}[rule]
    with OutputFile(work, settings, _KEYS) as file:
        found: dict[str, float | None] = {row["id"]: row["score"] for row in file.rows}
        # Of similar length, so that batches have little padding.
        waiting = sorted((one for one in pool if one.id not in found), key=lambda one: len(one.response))
        with progress(f"scoring by {rule}", len(waiting), "demonstrations") as advance:
            for first in range(0, len(waiting), _BATCH):
                batch = waiting[first : first + _BATCH]
                for one, score in zip(batch, measure(batch), strict=True):
                    found[one.id] = score
                    file.append({"id": one.id, "score": score})
                advance(len(batch))
    return found


def measure_utilities(
    pool: Pool,
    questions: Sequence[AnsweredQuestion],
    form: PromptForm,
    generator: SupportsDistributions,
    work: Path,
    settings: Mapping[str, Any],
) -> dict[str, float | None]:
    """Measure the mean gain of each demonstration over the same questions, in nats per token.

    A question that a demonstration asks itself does not count for it. See `measure_scores` for the other arguments.

    Raises:
        ConfigError, DataError, GenerationError: as `measure_scores`.
    """
    own = [{question_key(text) for text in question.query.own_texts} for question in questions]
    with OutputFile(work, settings, _KEYS) as file:
        found: dict[str, float | None] = {row["id"]: row["score"] for row in file.rows}
        waiting = [one for one in pool if one.id not in found]
        if not waiting:
            return found
        plain = dict(score_references(form, generator, [(question, ()) for question in questions]))
        with progress("scoring by utility", len(waiting), "demonstrations") as advance:
            for one in waiting:
                asked = [place for place, keys in enumerate(own) if question_key(one.instruction) not in keys]
                gains = []
                shown = [(questions[place], (one.id,)) for place in asked] if form.accepts(one) else []
                for number, scored in score_references(form, generator, shown):
                    without = plain[asked[number]]
                    if isinstance(scored, Scored) and isinstance(without, Scored):
                        gains.append((scored.logprob - without.logprob) / scored.n_tokens)
                found[one.id] = fmean(gains) if gains else None
                file.append({"id": one.id, "score": found[one.id]})
                advance(1)
    return found


def check_output(work: Path, settings: Mapping[str, Any]) -> None:
    """Check, before an engine starts, that scores can be written to `work` or resumed from it.

    Raises:
        ConfigError: they were made with other settings.
        DataError: the file has other content, or another process is writing it.
    """
    with OutputFile(work, settings, _KEYS):
        pass


def lengths(pool: Pool, tokenizer: Tokenizer) -> dict[str, float | None]:
    """Tokens of each response."""
    return {one.id: float(len(tokenizer.encode(one.response))) for one in pool}


def with_scores(pool: Pool, rule: Rule, scores: Mapping[str, float | None]) -> Pool:
    """The pool with a score by this rule in the metadata field ``scores``; earlier scores by other rules are kept."""

    def scored() -> Iterator[Demonstration]:
        for one in pool:
            old = one.metadata.get(SCORES)
            known = dict(old) if isinstance(old, Mapping) else {}
            yield replace(one, metadata={**one.metadata, SCORES: {**known, rule: scores.get(one.id)}})

    return Pool.from_demonstrations(scored())


def scores_of(pool: Pool) -> dict[str, list[float | None]]:
    """The scores in a pool's metadata by rule, in pool order; None where a demonstration has none."""
    rows = [one.metadata.get(SCORES) for one in pool]
    known = [row if isinstance(row, Mapping) else {} for row in rows]
    rules = [rule for rule in get_args(Rule) if any(rule in row for row in known)]
    return {rule: [_number(row.get(rule)) for row in known] for rule in rules}


def require(pool: Pool, rule: Rule) -> list[float | None]:
    """The scores of a pool by a rule, in pool order.

    Raises:
        DataError: there is none.
    """
    scores = scores_of(pool).get(rule, [])
    if not any(score is not None for score in scores):
        raise DataError(f"the pool has no scores by {rule}; add them with `ragalign pool score --by {rule}`")
    return scores


def select(
    pool: Pool, rule: Rule, top: int, *, vectors: NDArray[np.float32] | None = None, ceiling: float = 0.9
) -> Pool:
    """The best demonstrations of a scored pool, best first.

    By perplexity lower is better, by the other rules higher. By IFD, pairs of 1 and above are dropped.

    Args:
        pool: with scores by the rule.
        rule: see `Rule`.
        top: how many; fewer are left if the pool has no more that qualify.
        vectors: unit vectors of the demonstrations, float32 [n, d], to skip those that are at least as similar to a
            better one as `ceiling` (as Deita does, Liu et al. 2024, arXiv 2312.15685); None skips none.
        ceiling: the highest cosine between two selected demonstrations.

    Raises:
        ConfigError: `top` is less than 1, or the ceiling is outside (-1, 1].
        DataError: the pool has no scores by the rule.
    """
    if top < 1:
        raise ConfigError(f"top must be at least 1, not {top}")
    if not -1 < ceiling <= 1:
        raise ConfigError(f"the ceiling of similarity must be above -1 and at most 1, not {ceiling:g}")
    scores = require(pool, rule)
    known = [(place, score) for place, score in enumerate(scores) if score is not None]
    if rule == "ifd":
        known = [(place, score) for place, score in known if score < _IFD_LIMIT]
    known.sort(key=lambda pair: pair[1] if rule in _ASCENDING else -pair[1])
    chosen: list[int] = []
    for place, _ in known:
        if len(chosen) == top:
            break
        if vectors is None or not chosen or float((vectors[chosen] @ vectors[place]).max()) < ceiling:
            chosen.append(place)
    return pool.take(chosen)


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)
