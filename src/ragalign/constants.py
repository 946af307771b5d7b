"""Constant demonstrations, which every prompt begins with, and the published ways to choose them.

URIAL (Lin et al. 2023) writes them by hand, in a prompt file. icl-alignment (Zhao et al. 2024) draws them from a pool,
at random or evenly across its sources, shows instructions without answers before a few answered ones, and pairs
instructions with wrong answers to measure how much answers matter. All draws depend only on the pool, `n` and `seed`.
"""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from ragalign.errors import ConfigError, DataError
from ragalign.pool import Pool
from ragalign.templates import Constant, Template
from ragalign.types import Demonstration

# The headings of instructions without answers, and of the answered ones that follow.
UNANSWERED_HEADING = "Users ask questions such as these:"
ANSWERED_HEADING = "From here on, every question is followed by its answer."


def make_constants(kind: str, pool: Pool, n: int, seed: int = 0, **options: object) -> tuple[Demonstration, ...]:
    """Choose constant demonstrations in one of the ways that recipes name.

    Args:
        kind: ``random``, ``diverse``, ``unsupervised``, ``circular_shift``, ``random_answer`` or
            ``random_answer_ood``; each is a function below.
        pool: the pool to draw from.
        n: number of demonstrations.
        seed: random seed.
        options: those of the function.

    Raises:
        ConfigError: no such kind or option, or the pool is too small.
        DataError: the pool lacks what the kind needs.
    """
    if kind not in _KINDS:
        raise ConfigError(f"no constant demonstrations of kind {kind!r}: use one of {', '.join(_KINDS)}")
    known = list(inspect.signature(_KINDS[kind]).parameters)[3:]
    for option in options:
        if option not in known:
            takes = ", ".join(known) or "none"
            raise ConfigError(f"constant demonstrations of kind {kind!r} take no option {option!r} (known: {takes})")
    return _KINDS[kind](pool, n, seed, **options)


def as_constants(template: Template, demonstrations: Sequence[Demonstration]) -> tuple[Constant, ...]:
    """Render demonstrations as constants of a prompt.

    If demonstrations without answers precede answered ones, each group gets a heading, as in icl-alignment's
    unsupervised prompts (in our own words).
    """
    answered = [bool(demonstration.response) for demonstration in demonstrations]
    mixed = any(answered) and not all(answered)
    constants = []
    for number, demonstration in enumerate(demonstrations):
        text = template.render_demonstration(demonstration)
        if mixed and (number == 0 or answered[number] != answered[number - 1]):
            text = f"{ANSWERED_HEADING if answered[number] else UNANSWERED_HEADING}\n\n{text}"
        constants.append(Constant(demonstration, text))
    return tuple(constants)


def random_constants(pool: Pool, n: int, seed: int = 0) -> tuple[Demonstration, ...]:
    """Draw `n` different demonstrations, all with equal probability.

    Raises:
        ConfigError: the pool has fewer than `n`.
    """
    _check_size(pool, n)
    return tuple(pool[position] for position in random.Random(seed).sample(range(len(pool)), n))


def diverse_constants(pool: Pool, n: int, seed: int = 0, by: str = "source") -> tuple[Demonstration, ...]:
    """Draw `n` different demonstrations as evenly as possible across the values of a field, in random order.

    Args:
        pool: the pool to draw from.
        n: number of demonstrations.
        seed: random seed.
        by: ``source``, or a metadata field.

    Raises:
        ConfigError: the pool has fewer than `n`.
        DataError: the field is missing or has the same value in every demonstration.
    """
    _check_size(pool, n)
    strata: dict[str, list[int]] = {}
    for position, demonstration in enumerate(pool):
        value = demonstration.source if by == "source" else demonstration.metadata.get(by)
        strata.setdefault("" if value is None else str(value), []).append(position)
    if len(strata) < 2:
        raise DataError(f"diverse constants: {by!r} is the same in the whole pool; choose another field (by)")
    generator = random.Random(seed)
    # Each round takes one demonstration from every stratum, in random order, until a stratum is empty.
    queues = [generator.sample(positions, len(positions)) for _, positions in sorted(strata.items())]
    taken: list[int] = []
    while len(taken) < n:
        queues = [queue for queue in generator.sample(queues, len(queues)) if queue]
        taken += [queue.pop() for queue in queues[: n - len(taken)]]
    return tuple(pool[position] for position in generator.sample(taken, n))


def unsupervised(
    pool: Pool, n: int, seed: int = 0, answered: Sequence[Demonstration] | int = 3
) -> tuple[Demonstration, ...]:
    """Draw `n` instructions without their answers, followed by a few answered demonstrations.

    Args:
        pool: the pool to draw from.
        n: number of instructions.
        seed: random seed.
        answered: the answered demonstrations, or how many to draw from the pool.

    Raises:
        ConfigError: the pool has fewer than `n`.
    """
    if isinstance(answered, int):
        drawn = random_constants(pool, n + answered, seed)
        shown: tuple[Demonstration, ...] = drawn[n:]
    else:
        shown = tuple(answered)
        rest = pool.without([demonstration.id for demonstration in shown if demonstration in pool])
        drawn = random_constants(rest, n, seed)
    return (*(replace(demonstration, response="") for demonstration in drawn[:n]), *shown)


def circular_shift(pool: Pool, n: int, seed: int = 0, base: Sequence[Demonstration] = ()) -> tuple[Demonstration, ...]:
    """Draw demonstrations and give each instruction the answer of the next one (the last that of the first).

    Args:
        pool: the pool to draw from.
        n: number of demonstrations.
        seed: random seed.
        base: use the first `n` of these instead of drawing from the pool.

    Raises:
        ConfigError: `n` is less than two, or the pool has fewer than `n`.
    """
    chosen = _base(pool, n, seed, base)
    if len(chosen) < 2:
        raise ConfigError(f"answers can be shifted among two or more constant demonstrations, not {len(chosen)}")
    following = (*chosen[1:], chosen[0])
    return tuple(_with_answer(mine, next_) for mine, next_ in zip(chosen, following, strict=True))


def random_answers(
    pool: Pool, n: int, seed: int = 0, base: Sequence[Demonstration] = (), answers: Pool | None = None
) -> tuple[Demonstration, ...]:
    """Draw demonstrations and replace their answers by random ones of other demonstrations.

    Args:
        pool: the pool to draw from.
        n: number of demonstrations.
        seed: random seed.
        base: use the first `n` of these instead of drawing from the pool.
        answers: the pool to draw answers from, such as another one for answers out of domain; `pool` by default.

    Raises:
        ConfigError: there are not enough instructions or answers.
    """
    chosen = _base(pool, n, seed, base)
    taken = {demonstration.response for demonstration in chosen}
    source = pool if answers is None else answers
    others = [position for position, response in enumerate(source.responses) if response not in taken]
    if len(others) < n:
        raise ConfigError(f"need {n} answers of other demonstrations, but the pool has only {len(others)}")
    # Another seed: with the same one, both pools would give the same positions.
    drawn = random.Random(f"answers {seed}").sample(others, n)
    return tuple(_with_answer(mine, source[position]) for mine, position in zip(chosen, drawn, strict=True))


def _random_answers_ood(
    pool: Pool, n: int, seed: int = 0, base: Sequence[Demonstration] = (), answers: Pool | None = None
) -> tuple[Demonstration, ...]:
    if answers is None:
        raise ConfigError("out-of-domain answers come from another pool: set answers to it")
    return random_answers(pool, n, seed, base, answers)


_KINDS: Mapping[str, Callable[..., tuple[Demonstration, ...]]] = {
    "random": random_constants,
    "diverse": diverse_constants,
    "unsupervised": unsupervised,
    "circular_shift": circular_shift,
    "random_answer": random_answers,
    "random_answer_ood": _random_answers_ood,
}


def _base(pool: Pool, n: int, seed: int, base: Sequence[Demonstration]) -> tuple[Demonstration, ...]:
    if not base:
        return random_constants(pool, n, seed)
    _check_size(base, n)
    return tuple(base[:n])


def _check_size(pool: Sequence[Demonstration], n: int) -> None:
    if not 0 <= n <= len(pool):
        raise ConfigError(f"need {n} constant demonstrations, but there are only {len(pool)} to choose from")


def _with_answer(demonstration: Demonstration, other: Demonstration) -> Demonstration:
    metadata = {**demonstration.metadata, "answer_of": other.id}
    return replace(demonstration, response=other.response, metadata=metadata)
