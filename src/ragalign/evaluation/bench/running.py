"""Generation of a benchmark: every condition answers every case, into a folder that can be gone on with at any time.

run.json                      what was asked of whom; a folder made with other settings is refused
conditions/NAME/turn-1.jsonl  completions as `ragalign generate` writes them, one file per turn
conditions/NAME/speed.jsonl   one line per uninterrupted piece of work: how many answers, in how many seconds
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ragalign.aligner import Aligner, Failure
from ragalign.errors import ConfigError, DataError
from ragalign.evaluation.bench.cases import Cases
from ragalign.evaluation.bench.conditions import Condition
from ragalign.generation import BaseGenerator
from ragalign.indexes import Index
from ragalign.judging.files import read_rows, write_rows
from ragalign.tokenization import Tokenizer
from ragalign.types import Completion, Decoding, Prompt

_RUN = "run.json"
_SPEED = "speed.jsonl"
_FORMAT = 1
# Enough to load what engines load at their first prompts, so that the first condition does not pay for it.
_WARM_UP = 2


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast a condition was answered.

    Attributes:
        n: answers that were timed; those of a run that was killed are not.
        seconds: for all of them, retrieval and packing included.
        engine_seconds: of these, between handing prompts to the engine and its last token.
        n_chunks: uninterrupted pieces of work; each begins with an empty prefix cache.
    """

    n: int = 0
    seconds: float = 0.0
    engine_seconds: float = 0.0
    n_chunks: int = 0


@dataclass(frozen=True, slots=True)
class Answered:
    """What a condition answered.

    Attributes:
        condition: who.
        rows: its completions by turn (from 0), each by the case's id; a case that failed is missing.
        pace: how fast.
    """

    condition: Condition
    rows: tuple[Mapping[str, Mapping[str, Any]], ...]
    pace: Pace

    def requests(self) -> Iterator[Mapping[str, Any]]:
        """The completions of all turns."""
        for turn in self.rows:
            yield from turn.values()


class Run:
    """A benchmark's folder: which conditions answer which cases, and what has been answered.

    Args:
        folder: made if missing.
        conditions: who answers.
        cases: what is asked.
        indexes: where conditions retrieve from, by the name that they use.
        model: the model, as it is asked for.
        others: further settings that decide the answers, such as the backend.

    Raises:
        ConfigError: the folder was made with other settings, or a condition's index is missing.
        DataError: the folder holds something else.
    """

    def __init__(
        self,
        folder: str | Path,
        conditions: Sequence[Condition],
        cases: Cases,
        indexes: Mapping[str, Index],
        *,
        model: str,
        others: Mapping[str, Any] | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.conditions = tuple(conditions)
        self.cases = cases
        self.indexes = indexes
        for condition in conditions:
            if condition.retrieves and condition.index not in indexes:
                raise ConfigError(f"the recipe {condition.name!r} retrieves demonstrations: give an index or a pool")
        self.settings: dict[str, Any] = {
            "format": _FORMAT,
            "model": model,
            **(others or {}),
            "prompts": {"name": cases.name, "n": len(cases.cases), "fingerprint": cases.fingerprint},
            "indexes": {
                name: {"pool": index.pool.fingerprint, "encoder": index.manifest.encoder.id, "n": len(index)}
                for name, index in indexes.items()
            },
            "conditions": {condition.name: condition.settings() for condition in conditions},
        }
        self._places = {name: self.folder / place for name, place in _places(self.conditions).items()}
        self._claim()

    def missing(self, condition: Condition, turn: int) -> list[str]:
        """Ids of the cases whose answer in a turn (from 1) is not there yet."""
        present = _read(self._file(condition, turn))
        return [case.id for case in self.cases.cases if len(case.turns) >= turn and case.id not in present]

    @property
    def n_missing(self) -> int:
        """Answers that are not there yet, of all conditions and turns."""
        return sum(len(self.missing(one, turn)) for one in self.conditions for turn in self._turns)

    def generate(
        self,
        generator: BaseGenerator,
        tokenizer: Tokenizer,
        *,
        on_condition: Callable[[Condition, int], None] = lambda *_: None,
    ) -> list[tuple[Condition, Failure]]:
        """Answer what is missing, condition by condition, each with an empty prefix cache.

        Args:
            generator: answers for all conditions.
            tokenizer: the model's.
            on_condition: told each condition and the number of its missing answers before they are asked for.

        Returns:
            What could not be answered; a later run tries it again.

        Raises:
            GenerationError: the generator failed as a whole; what was answered is kept.
        """
        failures: list[tuple[Condition, Failure]] = []
        is_warm = False
        for condition in self.conditions:
            if not (n_missing := sum(len(self.missing(condition, turn)) for turn in self._turns)):
                continue
            on_condition(condition, n_missing)
            stopwatch = Stopwatch(generator)
            aligner = self._aligner(condition, stopwatch, tokenizer)
            if not is_warm:
                _warm_up(aligner, self.cases)
                is_warm = True
            generator.reset_prefix_cache()
            for turn in self._turns:
                failures += [(condition, one) for one in self._answer(aligner, stopwatch, condition, turn)]
        return failures

    def answered(self) -> list[Answered]:
        """What every condition has answered so far, in the order of the cases.

        Raises:
            DataError: a file of the folder is damaged.
        """
        found = []
        for condition in self.conditions:
            rows = []
            for turn in self._turns:
                present = _read(self._file(condition, turn))
                rows.append({case.id: present[case.id] for case in self.cases.cases if case.id in present})
            found.append(Answered(condition, tuple(rows), _pace(self._places[condition.name] / _SPEED)))
        return found

    @property
    def _turns(self) -> range:
        return range(1, self.cases.n_turns + 1)

    def _file(self, condition: Condition, turn: int) -> Path:
        return self._places[condition.name] / f"turn-{turn}.jsonl"

    def _aligner(self, condition: Condition, stopwatch: Stopwatch, tokenizer: Tokenizer) -> Aligner:
        index = self.indexes[condition.index] if condition.retrieves else None
        aligner = Aligner.from_recipe(condition.recipe, index=index, model=stopwatch, tokenizer=tokenizer)
        if condition.retriever is not None and index is not None:
            aligner.retriever = condition.retriever(index)
        return aligner

    def _answer(self, aligner: Aligner, stopwatch: Stopwatch, condition: Condition, turn: int) -> tuple[Failure, ...]:
        wanted = set(self.missing(condition, turn))
        if not wanted:
            return ()
        before = [_read(self._file(condition, earlier)) for earlier in range(1, turn)]
        # A turn whose earlier ones failed has nothing to follow.
        queries = [
            case.query_of(turn, [str(rows[case.id]["response"]) for rows in before])
            for case in self.cases.cases
            if case.id in wanted and all(case.id in rows for rows in before)
        ]
        path = self._file(condition, turn)
        n_before = len(_read(path))
        stopwatch.seconds = 0.0
        started = time.perf_counter()
        try:
            return aligner.generate_file(queries, path, generator=condition.name).failures
        finally:
            n = len(_read(path)) - n_before
            if n:
                seconds = time.perf_counter() - started
                line = {"turn": turn, "n": n, "seconds": seconds, "engine_seconds": stopwatch.seconds}
                with path.with_name(_SPEED).open("a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")

    def _claim(self) -> None:
        """Write down the settings, or compare them with what is written."""
        path = self.folder / _RUN
        settings = json.loads(json.dumps(self.settings))
        if not path.exists():
            if self.folder.is_dir() and any(self.folder.glob("conditions/*")):
                raise DataError(f"{self.folder} holds completions but no {_RUN}; choose another folder")
            write_rows(path, [settings], "jsonl")
            return
        [row] = read_rows(path)[:1]
        if row.value is None:
            raise DataError(f"{path}: {row.problem}; choose another folder")
        if differences := differences_of(dict(row.value), settings):
            raise ConfigError(
                f"{self.folder} was made with other settings: {'; '.join(differences[:3])}"
                + (f"; and {len(differences) - 3} more" if len(differences) > 3 else "")
                + ". Choose another folder, or repeat the settings"
            )


class Stopwatch:
    """A generator that adds up the seconds for which the one behind it is at work."""

    def __init__(self, generator: BaseGenerator) -> None:
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

    def generate(self, prompts: Sequence[Prompt], decoding: Decoding) -> list[Completion]:
        """Answer all prompts, in input order."""
        found = dict(self.iter_generate(prompts, decoding))
        return [found[place] for place in range(len(found))]

    def iter_generate(self, prompts: Sequence[Prompt], decoding: Decoding) -> Iterator[tuple[int, Completion]]:
        """Answer all prompts, yielding each as it is finished."""
        started = time.perf_counter()
        try:
            yield from self._generator.iter_generate(prompts, decoding)
        finally:
            self.seconds += time.perf_counter() - started

    def stream(self, prompt: Prompt, decoding: Decoding) -> Iterator[str]:
        """Answer one prompt in pieces; not timed."""
        return self._generator.stream(prompt, decoding)

    def close(self) -> None:
        """Nothing: the generator belongs to whoever made it."""


def _warm_up(aligner: Aligner, cases: Cases) -> None:
    decoding = replace(aligner.decoding, max_tokens=2, n=1)
    for _ in aligner.iter_generate([case.query for case in cases.cases[:_WARM_UP]], decoding=decoding):
        pass


def _places(conditions: Sequence[Condition]) -> dict[str, Path]:
    """A folder for each condition, called after it as far as file names allow."""
    places = {}
    for condition in conditions:
        plain = re.sub(r"[^\w.+=-]+", "-", condition.name).strip("-.")[:80]
        if plain != condition.name:
            # Names that differ in other characters only, or in long tails, stay apart.
            plain = f"{plain}-{hashlib.sha256(condition.name.encode()).hexdigest()[:6]}"
        places[condition.name] = Path("conditions") / plain
    return places


def _read(path: Path) -> dict[str, Mapping[str, Any]]:
    """The whole lines of a file of completions, by id; a last one that was cut off is not there yet."""
    if not path.exists():
        return {}
    content = path.read_bytes()
    rows = {}
    for number, line in enumerate(content[: content.rfind(b"\n") + 1].splitlines(), start=1):
        try:
            row = json.loads(line)
            rows[str(row["id"])] = row
        except (ValueError, KeyError, TypeError):
            raise DataError(f"{path}:{number}: not a completion of ragalign; delete the line or the file") from None
    return rows


def _pace(path: Path) -> Pace:
    chunks = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            chunk = json.loads(line)
            chunks.append((int(chunk["n"]), float(chunk["seconds"]), float(chunk["engine_seconds"])))
        except (ValueError, KeyError, TypeError):
            continue  # killed while writing: these answers are not timed
    return Pace(
        n=sum(chunk[0] for chunk in chunks),
        seconds=sum(chunk[1] for chunk in chunks),
        engine_seconds=sum(chunk[2] for chunk in chunks),
        n_chunks=len(chunks),
    )


def differences_of(old: Mapping[str, Any], new: Mapping[str, Any], where: str = "") -> list[str]:
    """What differs between two settings, in words."""
    found = []
    for key in dict.fromkeys((*old, *new)):
        name = f"{where}{key}"
        one, other = old.get(key), new.get(key)
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            found += differences_of(one, other, f"{name}.")
        elif key not in new:
            found.append(f"{name} was there and is not now")
        elif key not in old:
            found.append(f"{name} was not there and is now")
        elif one != other:
            found.append(f"{name} was {_brief(one)} and is {_brief(other)}")
    return found


def _brief(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
