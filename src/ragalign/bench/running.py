"""Generating a benchmark's answers: every condition answers every case, in a resumable run folder.

run.json                      the settings; a folder with other settings is refused
conditions/NAME/turn-1.jsonl  completions as `ragalign generate` writes them, one file per turn
conditions/NAME/pieces.jsonl  one line per piece of work that ran to its end: how many answers
conditions/NAME/cached.jsonl  where work was interrupted: cached tokens of each prompt, measured again over all of them

An interruption empties the engine's prefix cache, so that the prompts after it would seem to share less than they do.
Once such a condition is answered, its prompts go through the engine again, in order and for one token each; the tokens
prefilled are then those of a run that was never interrupted.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

from ragalign.aligner import Aligner, Failure
from ragalign.bench.answers import Answered, condition_folders, read_answers
from ragalign.bench.cases import Cases
from ragalign.bench.conditions import Condition
from ragalign.bench.likelihood import keep_likelihoods, missing_likelihoods, read_likelihoods
from ragalign.bench.reusing import bytes_per_token, create_store, keep_used, reusing, store_folder
from ragalign.completions import CompletionFile, index_settings
from ragalign.errors import ConfigError
from ragalign.generator import Generator
from ragalign.indexes import Index
from ragalign.reuse.settings import ReuseSettings
from ragalign.runs import LineFile, RunFolder, write_lines
from ragalign.tokenization import Tokenizer
from ragalign.types import Query

_RUN = "run.json"
_PIECES = "pieces.jsonl"
_CACHED = "cached.jsonl"
_LIKELIHOOD = "likelihood.jsonl"
_FORMAT = 2
# Warms up the engine, so that the first condition is not slower.
_WARM_UP = 2


class Run:
    """A benchmark's run folder, with its conditions, cases and answers.

    Args:
        folder: the run folder, created if missing.
        conditions: the conditions.
        cases: the prompts.
        indexes: the indexes that conditions retrieve from, by name.
        model: the model's name, as given.
        others: further settings that determine the answers, such as the backend.

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
            "indexes": {name: index_settings(index) for name, index in indexes.items()},
            "conditions": {condition.name: condition.settings() for condition in conditions},
        }
        self._places = {name: self.folder / place for name, place in condition_folders(self.conditions).items()}
        self._session = uuid.uuid4().hex
        self._run = RunFolder(folder, record=_RUN)
        self._run.claim(self.settings, work="conditions/*")

    def writing(self) -> AbstractContextManager[None]:
        """Hold the folder's lock, such as while an engine starts.

        Raises:
            DataError: another process works in the folder.
        """
        return self._run.writing()

    def missing(self, condition: Condition, turn: int) -> list[str]:
        """Ids of the cases without an answer in a turn (from 1)."""
        present = read_answers(self._file(condition, turn))
        return [case.id for case in self.cases.cases if len(case.turns) >= turn and case.id not in present]

    @property
    def n_missing(self) -> int:
        """The number of missing answers of all conditions and turns."""
        return sum(len(self.missing(condition, turn)) for condition in self.conditions for turn in self._turns)

    @property
    def is_finished(self) -> bool:
        """Whether the engine has nothing left to do."""
        return not self.n_missing and not any(map(self._is_unmeasured, self.conditions))

    def generate(
        self,
        generator: Generator,
        tokenizer: Tokenizer,
        *,
        on_condition: Callable[[Condition, int], None] = lambda *_: None,
    ) -> list[tuple[Condition, Failure]]:
        """Generate the missing answers of one condition after another, each with an empty prefix cache.

        Args:
            generator: answers for all conditions.
            tokenizer: the model's.
            on_condition: told each condition and the number of its missing answers before they are asked for.

        Returns:
            The failures; a later run retries them.

        Raises:
            DataError: another process works in the folder, or what it holds does not fit.
            GenerationError: the generator failed as a whole; what was answered is kept.
        """
        with self.writing():
            return self._generate(generator, tokenizer, on_condition)

    def _generate(
        self, generator: Generator, tokenizer: Tokenizer, on_condition: Callable[[Condition, int], None]
    ) -> list[tuple[Condition, Failure]]:
        failures: list[tuple[Condition, Failure]] = []
        is_warm = False
        for condition in self.conditions:
            n_missing = sum(len(self.missing(condition, turn)) for turn in self._turns)
            if not n_missing and not self._is_unmeasured(condition):
                continue
            on_condition(condition, n_missing)
            aligner = self.aligner(condition, generator, tokenizer)
            if not is_warm:
                _warm_up(aligner, self.cases)
                is_warm = True
            generator.reset_prefix_cache()
            for turn in self._turns:
                failures += [(condition, failure) for failure in self._answer(aligner, condition, turn)]
            if self._is_unmeasured(condition):
                self._measure(aligner, condition, can_reset=generator.reset_prefix_cache())
        return failures

    def answered(self) -> list[Answered]:
        """The answers of every condition so far, in the order of the cases.

        Raises:
            DataError: a file of the folder is damaged.
        """
        found = []
        for condition in self.conditions:
            rows = self._rows(condition)
            path = self._places[condition.name] / _CACHED
            for row in read_answers(path).values() if path.exists() else ():
                turn, name = json.loads(row["id"])
                if name in rows[turn - 1]:
                    rows[turn - 1][name] = {**rows[turn - 1][name], "n_cached_tokens": row["n_cached_tokens"]}
            likelihoods = read_likelihoods(self._likelihood(condition), self.cases)
            size = bytes_per_token(self.folder) if condition.recipe.reuse.enabled else None
            found.append(Answered(condition, tuple(rows), likelihoods, size))
        return found

    @property
    def n_missing_likelihoods(self) -> int:
        """The number of missing likelihoods of all conditions and turns."""
        return sum(len(missing_likelihoods(self._likelihood(condition), self.cases)) for condition in self.conditions)

    def measure_likelihoods(
        self,
        generator: Generator,
        tokenizer: Tokenizer,
        *,
        on_condition: Callable[[Condition, int], None] = lambda *_: None,
    ) -> None:
        """Measure the missing likelihoods of the references.

        Args:
            generator: one that says how likely given tokens are.
            tokenizer: the model's.
            on_condition: told each condition and the number of its missing references.

        Raises:
            ConfigError: the generator does not say how likely given tokens are.
            GenerationError: the generator failed; what was measured is kept.
        """
        with self.writing():
            for condition in self.conditions:
                path = self._likelihood(condition)
                if n := len(missing_likelihoods(path, self.cases)):
                    on_condition(condition, n)
                    keep_likelihoods(path, self.aligner(condition, generator, tokenizer), self.cases)

    def answered_by_all(self) -> list[Query]:
        """The cases, up to their first answers, that every condition has answered."""
        rows = [self._rows(condition)[0] for condition in self.conditions]
        return [case.query for case in self.cases.cases if all(case.id in answers for answers in rows)]

    @property
    def _turns(self) -> range:
        return range(1, self.cases.n_turns + 1)

    def _likelihood(self, condition: Condition) -> Path:
        return self._places[condition.name] / _LIKELIHOOD

    def _file(self, condition: Condition, turn: int) -> Path:
        return self._places[condition.name] / f"turn-{turn}.jsonl"

    def connector(self, tokenizer: Tokenizer) -> dict[str, Any] | None:
        """The engine's `kv_transfer_config` for the conditions that reuse keys and values; None if there are none.

        Raises:
            ConfigError: they cannot share an engine.
        """
        found = [
            (condition, self.aligner(_without_reuse(condition), None, tokenizer))
            for condition in reusing(self.conditions)
        ]
        return create_store(self.folder, found) if found else None

    def aligner(self, condition: Condition, generator: Generator | None, tokenizer: Tokenizer) -> Aligner:
        """The aligner of a condition."""
        index = self.indexes[condition.index] if condition.retrieves else None
        store = store_folder(self.folder) if condition.recipe.reuse.enabled else None
        aligner = Aligner.from_recipe(condition.recipe, index=index, model=generator, tokenizer=tokenizer, store=store)
        if condition.retriever is not None and index is not None:
            return aligner.with_retriever(condition.retriever(index))
        return aligner

    def _rows(self, condition: Condition) -> list[dict[str, Mapping[str, Any]]]:
        """The completions of each turn, in the order of the cases."""
        found = []
        for turn in self._turns:
            present = read_answers(self._file(condition, turn))
            found.append({case.id: present[case.id] for case in self.cases.cases if case.id in present})
        return found

    def _queries(self, rows: Sequence[Mapping[str, Mapping[str, Any]]], turn: int) -> list[Query]:
        """The queries of a turn, without cases whose earlier turns failed."""
        before = rows[: turn - 1]
        return [
            case.query_of(turn, [str(answers[case.id]["response"]) for answers in before])
            for case in self.cases.cases
            if len(case.turns) >= turn and all(case.id in answers for answers in before)
        ]

    def _answer(self, aligner: Aligner, condition: Condition, turn: int) -> tuple[Failure, ...]:
        wanted = set(self.missing(condition, turn))
        if not wanted:
            return ()
        queries = [query for query in self._queries(self._rows(condition), turn) if query.id in wanted]
        keep_used(self.folder, aligner, queries, aligner.generator)
        path = self._file(condition, turn)
        with CompletionFile(path, queries, self.settings["conditions"][condition.name], record=False) as completions:
            report = completions.generate(aligner, generator=condition.name)
        if report.n_written:
            self._pieces(condition).append({"session": self._session, "turn": turn, "n": report.n_written})
        return report.failures

    def _pieces(self, condition: Condition) -> LineFile:
        return LineFile(self._places[condition.name] / _PIECES, ("session", "turn", "n"))

    def _is_unmeasured(self, condition: Condition) -> bool:
        """Whether cached tokens were counted, but not all in one uninterrupted run."""
        rows = self._rows(condition)
        if not any(row.get("n_cached_tokens") is not None for turn in rows for row in turn.values()):
            return False
        folder = self._places[condition.name]
        pieces = self._pieces(condition).read()
        n_timed = sum(piece["n"] for piece in pieces)
        whole = n_timed == sum(map(len, rows)) and len({piece["session"] for piece in pieces}) == 1
        whole = whole and len({piece["turn"] for piece in pieces}) == len(pieces)
        return not whole and len(read_answers(folder / _CACHED)) < sum(map(len, rows))

    def _measure(self, aligner: Aligner, condition: Condition, *, can_reset: bool) -> None:
        """Count the cached tokens of all prompts in order, as if nothing had been interrupted.

        Args:
            aligner: the condition's.
            condition: answered, in several pieces.
            can_reset: whether the engine's cache is ours; where it is a server's, the counts are left as they are.
        """
        rows = self._rows(condition)
        found = [{"id": json.dumps([turn, name]), "n_cached_tokens": row.get("n_cached_tokens")}
                 for turn, present in enumerate(rows, 1) for name, row in present.items()]  # fmt: skip
        if can_reset:
            found = []
            for turn in self._turns:
                queries = [query for query in self._queries(rows, turn) if query.id in rows[turn - 1]]
                # Later turns share a turn's answers, too; the last has none after it.
                decoding = aligner.decoding if turn < len(rows) else replace(aligner.decoding, max_tokens=1, n=1)
                for place, result in aligner.iter_generate(queries, decoding=decoding):
                    if not isinstance(result, Failure):
                        name = json.dumps([turn, queries[place].id])
                        found.append({"id": name, "n_cached_tokens": result.n_cached_tokens})
        write_lines(self._places[condition.name] / _CACHED, found)


def _without_reuse(condition: Condition) -> Condition:
    return replace(condition, recipe=replace(condition.recipe, reuse=ReuseSettings()))


def _warm_up(aligner: Aligner, cases: Cases) -> None:
    decoding = replace(aligner.decoding, max_tokens=2, n=1)
    for _ in aligner.iter_generate([case.query for case in cases.cases[:_WARM_UP]], decoding=decoding):
        pass
