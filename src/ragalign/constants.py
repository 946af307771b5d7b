"""Constant demonstrations: the published ways to choose those that every prompt begins with.

URIAL (Lin et al. 2023) writes them by hand: a prompt file holds them. icl-alignment (Zhao et al. 2024) draws them
from a pool, at random or evenly from its sources, shows instructions without answers before a few answered ones, and
pairs instructions with wrong answers to see what answers are for. All of it here depends on the pool, `n` and `seed`
only.
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

# What stands above instructions without answers, and above the answered ones that follow them.
UNANSWERED_HEADING = "Users ask questions such as these:"
ANSWERED_HEADING = "From here on, every question is followed by its answer."


def make_constants(kind: str, pool: Pool, n: int, seed: int = 0, **options: object) -> tuple[Demonstration, ...]:
    """Constant demonstrations by the name of the way to choose them, as recipes do.

    Args:
        kind: ``random``, ``diverse``, ``unsupervised``, ``circular_shift``, ``random_answer`` or
            ``random_answer_ood``: see the function of each.
        pool: where they come from.
        n: how many.
        seed: of the draw.
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
    """The demonstrations as they stand in a prompt.

    Where some without answers come before answered ones, each group has its heading, as in icl-alignment's
    unsupervised prompts (in words of our own).
    """
    answered = [bool(one.response) for one in demonstrations]
    mixed = any(answered) and not all(answered)
    constants = []
    for number, one in enumerate(demonstrations):
        text = template.render_demonstration(one)
        if mixed and (number == 0 or answered[number] != answered[number - 1]):
            text = f"{ANSWERED_HEADING if answered[number] else UNANSWERED_HEADING}\n\n{text}"
        constants.append(Constant(one, text))
    return tuple(constants)


def random_constants(pool: Pool, n: int, seed: int = 0) -> tuple[Demonstration, ...]:
    """`n` different demonstrations, each as likely as any other.

    Raises:
        ConfigError: the pool has fewer.
    """
    _check_size(pool, n)
    return tuple(pool[position] for position in random.Random(seed).sample(range(len(pool)), n))


def diverse_constants(pool: Pool, n: int, seed: int = 0, by: str = "source") -> tuple[Demonstration, ...]:
    """`n` different demonstrations, as evenly as possible from the values of a field, in random order.

    Args:
        pool: where they come from.
        n: how many.
        seed: of the draw.
        by: ``source``, or a metadata field.

    Raises:
        ConfigError: the pool has fewer.
        DataError: the field is missing everywhere, or has a single value.
    """
    _check_size(pool, n)
    strata: dict[str, list[int]] = {}
    for position, one in enumerate(pool):
        value = one.source if by == "source" else one.metadata.get(by)
        strata.setdefault("" if value is None else str(value), []).append(position)
    if len(strata) < 2:
        raise DataError(f"diverse constants: {by!r} is the same for all of the pool; choose another field (by)")
    chosen = random.Random(seed)
    # Each round takes one of every stratum, in random order; strata that are used up drop out.
    queues = [chosen.sample(positions, len(positions)) for _, positions in sorted(strata.items())]
    taken: list[int] = []
    while len(taken) < n:
        queues = [queue for queue in chosen.sample(queues, len(queues)) if queue]
        taken += [queue.pop() for queue in queues[: n - len(taken)]]
    return tuple(pool[position] for position in chosen.sample(taken, n))


def unsupervised(
    pool: Pool, n: int, seed: int = 0, answered: Sequence[Demonstration] | int = 3
) -> tuple[Demonstration, ...]:
    """`n` instructions without their answers, then a few demonstrations.

    Args:
        pool: where they come from.
        n: how many instructions.
        seed: of the draw.
        answered: the demonstrations, or how many others to draw from the pool.

    Raises:
        ConfigError: the pool has fewer.
    """
    if isinstance(answered, int):
        drawn = random_constants(pool, n + answered, seed)
        shown: tuple[Demonstration, ...] = drawn[n:]
    else:
        shown = tuple(answered)
        drawn = random_constants(pool.without([one.id for one in shown if one in pool]), n, seed)
    return (*(replace(one, response="") for one in drawn[:n]), *shown)


def circular_shift(pool: Pool, n: int, seed: int = 0, base: Sequence[Demonstration] = ()) -> tuple[Demonstration, ...]:
    """Demonstrations in which each instruction has the answer of the next one, and the last that of the first.

    Args:
        pool: where they come from.
        n: how many.
        seed: of the draw.
        base: the first `n` of these, instead of a draw from the pool.

    Raises:
        ConfigError: fewer than two are asked for, or there are fewer.
    """
    chosen = _base(pool, n, seed, base)
    if len(chosen) < 2:
        raise ConfigError(f"answers can be shifted among two or more constant demonstrations, not {len(chosen)}")
    return tuple(_with_answer(one, other) for one, other in zip(chosen, (*chosen[1:], chosen[0]), strict=True))


def random_answers(
    pool: Pool, n: int, seed: int = 0, base: Sequence[Demonstration] = (), answers: Pool | None = None
) -> tuple[Demonstration, ...]:
    """Demonstrations whose instructions have answers of other ones, drawn at random.

    Args:
        pool: where they come from.
        n: how many.
        seed: of the draw.
        base: the first `n` of these, instead of a draw from the pool.
        answers: where the answers come from: another pool makes them out of domain. By default the pool itself.

    Raises:
        ConfigError: there are fewer instructions or answers.
    """
    chosen = _base(pool, n, seed, base)
    taken = {one.response for one in chosen}
    source = pool if answers is None else answers
    others = [position for position, response in enumerate(source.responses) if response not in taken]
    if len(others) < n:
        raise ConfigError(f"asked for {n} answers of other demonstrations, and there are {len(others)}")
    # A draw of its own: with the same one, both pools would give the same positions.
    drawn = random.Random(f"answers {seed}").sample(others, n)
    return tuple(_with_answer(one, source[position]) for one, position in zip(chosen, drawn, strict=True))


def _random_answers_ood(
    pool: Pool, n: int, seed: int = 0, base: Sequence[Demonstration] = (), answers: Pool | None = None
) -> tuple[Demonstration, ...]:
    if answers is None:
        raise ConfigError("answers out of domain come from another pool: name it (answers)")
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
        raise ConfigError(f"asked for {n} constant demonstrations, and there are {len(pool)} to choose from")


def _with_answer(one: Demonstration, other: Demonstration) -> Demonstration:
    return replace(one, response=other.response, metadata={**one.metadata, "answer_of": other.id})
