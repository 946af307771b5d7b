"""How fast answers come: a stopwatch around an engine, and the pieces of work that it timed."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ragalign.types import ClosableIterator, Completion, Decoding, Delta, Generator, Prompt


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast a condition was answered.

    Attributes:
        n: answers that were timed; those of a piece of work that was interrupted are not.
        seconds: for all of them, retrieval and packing included.
        engine_seconds: of these, between handing prompts to the engine and its last token.
    """

    n: int = 0
    seconds: float = 0.0
    engine_seconds: float = 0.0


class Stopwatch:
    """A generator that adds up the seconds for which the one behind it is at work."""

    def __init__(self, generator: Generator) -> None:
        self._generator = generator
        self.seconds = 0.0

    @property
    def model(self) -> str:
        """The model's name or folder."""
        return self._generator.model

    @property
    def context_length(self) -> int | None:
        """Tokens that prompt and completion share."""
        return self._generator.context_length

    @property
    def shares_cpu(self) -> bool:
        """Whether answering keeps this machine's processors busy."""
        return self._generator.shares_cpu

    def generate(self, prompts: Sequence[Prompt], decoding: Decoding) -> list[Completion]:
        """Answer all prompts, in input order."""
        found = dict(self.iter_generate(prompts, decoding))
        return [found[place] for place in range(len(found))]

    def iter_generate(self, prompts: Iterable[Prompt], decoding: Decoding) -> Iterator[tuple[int, Completion]]:
        """Answer all prompts, yielding each as it is finished."""
        started = time.perf_counter()
        try:
            yield from self._generator.iter_generate(prompts, decoding)
        finally:
            self.seconds += time.perf_counter() - started

    def stream(self, prompt: Prompt, decoding: Decoding) -> ClosableIterator[Delta]:
        """Answer one prompt part by part; not timed."""
        return self._generator.stream(prompt, decoding)

    def reset_prefix_cache(self) -> bool:
        """Forget the prefixes of earlier prompts."""
        return self._generator.reset_prefix_cache()

    def close(self) -> None:
        """Nothing: the generator belongs to whoever made it."""


def read_pieces(path: Path) -> list[Mapping[str, Any]]:
    """The pieces of work that were timed; of a line that was cut off, the answers are not timed."""
    found: list[Mapping[str, Any]] = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            piece = json.loads(line)
            timed = {"n": int(piece["n"]), "seconds": float(piece["seconds"])}
            timed |= {"engine_seconds": float(piece["engine_seconds"])}
            found.append({**timed, "session": piece["session"], "turn": piece["turn"]})
        except (ValueError, KeyError, TypeError):
            continue
    return found


def read_pace(path: Path) -> Pace:
    """All timed pieces together."""
    pieces = read_pieces(path)
    return Pace(
        n=sum(piece["n"] for piece in pieces),
        seconds=sum(piece["seconds"] for piece in pieces),
        engine_seconds=sum(piece["engine_seconds"] for piece in pieces),
    )
