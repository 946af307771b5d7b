"""Greedy search for constant demonstrations, as in icl-alignment (Zhao et al. 2024, arXiv 2405.19874).

Starting from a recipe's constant demonstrations, each round adds the candidate that gives the highest mean score on
development prompts. The best of many noisy means overestimates the gain, so some prompts are held out: the optimism
of the search is its gain on its own prompts minus its gain on those.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import tomli_w

from ragalign.aligner import Aligner, Failure
from ragalign.bench.answers import Answered
from ragalign.bench.cases import Cases
from ragalign.bench.conditions import as_condition
from ragalign.bench.likelihood import measure_likelihoods
from ragalign.bench.scoring import Scorer, score_all
from ragalign.errors import ConfigError, DataError
from ragalign.generator import Generator
from ragalign.packing import Packing
from ragalign.pool import Pool
from ragalign.pool.wrappers import question_key
from ragalign.recipes import ConstantSettings, Recipe
from ragalign.runs import LineFile, RunFolder, write_lines
from ragalign.statistics import Estimate, mean, paired_difference
from ragalign.studies.selection_result import SearchOptions, SelectionResult, Step
from ragalign.tokenization import Tokenizer
from ragalign.types import Demonstration

_SETTINGS = "search.json"
_SCORES = "evaluations.jsonl"
_CONSTANTS = "constants.jsonl"
_TRIAL = "trial.jsonl"
_RECIPE = "recipe.toml"

Ids = tuple[str, ...]


class Search:
    """A greedy search in a folder, which keeps all evaluations so that none is repeated.

    Args:
        folder: created if missing.
        recipe: provides the initial constant demonstrations; it must not retrieve.
        pool: the pool to draw candidates from.
        cases: the development prompts.
        scorer: the metric to maximise, or to minimise if lower is better.
        model: the model's name.
        options: see `SearchOptions`.
        ranking: ids of demonstrations by how much each alone helps, best first (see `ragalign.utility.Gains.ranking`):
            the first of them are the candidates. None draws the candidates at random.
        others: other settings that affect the answers.

    Raises:
        ConfigError: the recipe retrieves, the pool or the prompts are too small, or the folder was created with other
            settings.
        DataError: the folder is damaged.
    """

    def __init__(
        self,
        folder: str | Path,
        recipe: Recipe,
        pool: Pool,
        cases: Cases,
        scorer: Scorer,
        *,
        model: str,
        options: SearchOptions | None = None,
        ranking: Sequence[str] | None = None,
        others: Mapping[str, Any] | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.recipe = recipe
        self.options = options or SearchOptions()
        self.scorer = scorer
        if recipe.retriever.name != "none":
            raise ConfigError(
                f"the recipe {recipe.name!r} retrieves: start from a recipe without retrieval, such as urial"
            )
        if recipe.template.prompt_file:
            raise ConfigError(f"the recipe {recipe.name!r} uses a prompt file: start from a recipe with [constants]")
        begun = tuple(constant.demonstration for constant in recipe.make_template()[1])
        self._demonstrations = {demonstration.id: demonstration for demonstration in begun}
        self._begun: Ids = tuple(demonstration.id for demonstration in begun)
        asked = {question_key(text) for case in cases.cases for text in (*case.query.own_texts, *case.further)}
        free = [
            place
            for place, (name, text) in enumerate(zip(pool.ids, pool.instructions, strict=True))
            if name not in self._demonstrations and question_key(text) not in asked
        ]
        if not free:
            raise ConfigError("the pool has no demonstrations except the prompts themselves")
        draw = random.Random(self.options.seed)
        if ranking is not None:
            order = {name: rank for rank, name in enumerate(ranking)}
            free = sorted((place for place in free if pool.ids[place] in order), key=lambda at: order[pool.ids[at]])
            if not free:
                raise ConfigError("the pool has no demonstration whose gain was measured: measure gains on its index")
            places = free[: self.options.candidates]
        else:
            places = draw.sample(free, min(self.options.candidates, len(free)))
        drawn = [pool[place] for place in places]
        self._candidates: Ids = tuple(demonstration.id for demonstration in drawn)
        self._demonstrations |= {demonstration.id: demonstration for demonstration in drawn}
        shuffled = draw.sample(cases.cases, len(cases.cases))
        n_held_out = round(self.options.held_out * len(shuffled))
        if not 0 < n_held_out < len(shuffled):
            raise ConfigError(f"{len(shuffled)} prompts are too few to hold out {self.options.held_out:.0%} of them")
        # Only the first answer of a conversation is scored.
        shuffled = [replace(case, further=()) for case in shuffled]
        self.seen = replace(cases, cases=tuple(shuffled[n_held_out:]))
        self.held_out = replace(cases, cases=tuple(shuffled[:n_held_out]))
        self._settings = {
            "model": model,
            **(others or {}),
            "prompts": cases.fingerprint,
            "metric": scorer.name,
            **({"lower_is_better": True} if scorer.lower_is_better else {}),
            "begin": as_condition(recipe).settings(),
            "seed": self.options.seed,
            "held_out": self.options.held_out,
            "candidates": list(self._candidates),
        }
        self._run = RunFolder(folder, record=_SETTINGS)
        self._run.claim(self._settings, work=_SCORES)
        self.scores_file = self._run.lines(_SCORES, ("constants", "held_out", "scores"))
        self.known = dict(_read(self.scores_file))

    def run(
        self,
        start: Callable[[], tuple[Generator, Tokenizer]],
        *,
        on_evaluation: Callable[[int, int], None] = lambda *_: None,
    ) -> SelectionResult:
        """Search, evaluate on the held-out prompts, and write the recipe.

        Args:
            start: creates the generator and its tokenizer; called for the first set that has no evaluation yet.
            on_evaluation: called with the number of sets evaluated and the maximum.

        Raises:
            DataError: no answer has a score, or another process is searching in the folder.
            GenerationError: the generator failed; the evaluations so far are kept.
        """
        with self._run.writing():
            self.known.update(_read(self.scores_file))
            return self._search(_Measure(self, start), on_evaluation)

    def _search(self, measure: _Measure, on_evaluation: Callable[[int, int], None]) -> SelectionResult:
        n = 0

        def seen(ids: Ids) -> float:
            nonlocal n
            n += 1
            on_evaluation(n, self.options.max_evaluations)
            return _mean(measure(ids, held_out=False))

        chosen, best = self._begun, seen(self._begun)
        steps: list[Step] = []
        for _ in range(self.options.add):
            left = [candidate for candidate in self._candidates if candidate not in chosen]
            tried = left[: max(0, self.options.max_evaluations - n)]
            scores = {candidate: seen((*chosen, candidate)) for candidate in tried}
            # Prefer the first drawn of equally good candidates; one without a gain is not worth its tokens.
            winner = max(scores, key=lambda candidate: self._sign * scores[candidate], default=None)
            is_better = winner is not None and self._sign * scores[winner] > self._sign * best
            added = winner if is_better else None
            best = scores[winner] if winner is not None and is_better else best
            steps.append(Step(added, best, len(tried), len(tried) == len(left)))
            if added is None or len(tried) < len(left):
                chosen = (*chosen, added) if added is not None else chosen
                break
            chosen = (*chosen, added)
        gains = [self._gain(measure, chosen, held_out=held_out) for held_out in (False, True)]
        selection = SelectionResult(
            constants=tuple(self._demonstrations[id_] for id_ in chosen),
            n_begun=len(self._begun),
            steps=tuple(steps),
            n_evaluations=n,
            search_gain=gains[0],
            held_out_gain=gains[1],
            before=_estimate(measure(self._begun, held_out=True)),
            after=_estimate(measure(chosen, held_out=True)),
        )
        self._write(selection)
        return selection

    def with_constants(self, ids: Ids) -> Recipe:
        """The recipe with other constant demonstrations, which are written to a file."""
        rows = [_row(self._demonstrations[id_]) for id_ in ids]
        path = self.folder / _TRIAL
        write_lines(path, rows)
        settings = ConstantSettings(file=str(path.resolve())) if ids else ConstantSettings()
        return replace(self.recipe, constants=settings, packing=self._room(len(ids)))

    def _room(self, n: int) -> Packing:
        packing = self.recipe.packing
        return replace(packing, max_demonstrations=max(packing.max_demonstrations, n))

    @property
    def _sign(self) -> int:
        """-1 if lower is better, else 1."""
        return -1 if self.scorer.lower_is_better else 1

    def _gain(self, measure: _Measure, chosen: Ids, *, held_out: bool) -> Estimate:
        """The gain of the chosen demonstrations; positive is better, even if the metric is lower-is-better."""
        after, before = measure(chosen, held_out=held_out), measure(self._begun, held_out=held_out)
        gained = paired_difference(list(after.values()), list(before.values()), list(after))
        return gained.scaled(self._sign)

    def _write(self, selection: SelectionResult) -> None:
        """Write the constants, and the recipe with these constants."""
        rows = [_row(demonstration) for demonstration in selection.constants]
        write_lines(self.folder / _CONSTANTS, rows)
        n_added = len(selection.constants) - selection.n_begun
        description = f"{self.recipe.name} with {n_added} more constant demonstrations, found by greedy search."
        found = replace(self.recipe, description=description, packing=self._room(len(rows)))
        (self.folder / _RECIPE).write_text(recipe_toml(found, _CONSTANTS), encoding="utf-8")
        (self.folder / _TRIAL).unlink(missing_ok=True)


class _Measure:
    """Scores per prompt of a set of demonstrations, evaluated once."""

    def __init__(self, search: Search, start: Callable[[], tuple[Generator, Tokenizer]]) -> None:
        self._search = search
        self._start = start
        self._started: tuple[Generator, Tokenizer] | None = None

    def __call__(self, ids: Ids, *, held_out: bool) -> dict[str, float | None]:
        known = self._search.known
        key = (ids, held_out)
        if key not in known:
            known[key] = self._ask(ids, self._search.held_out if held_out else self._search.seen)
            row = {"constants": list(ids), "held_out": held_out, "scores": known[key]}
            self._search.scores_file.append(row)
        return known[key]

    def _ask(self, ids: Ids, cases: Cases) -> dict[str, float | None]:
        search = self._search
        self._started = self._started or self._start()
        generator, tokenizer = self._started
        recipe = search.with_constants(ids)
        aligner = Aligner.from_recipe(recipe, model=generator, tokenizer=tokenizer)
        ask = _measured if search.scorer.needs_likelihoods else _answered
        answered = ask(aligner, recipe, cases, ids)
        verdicts = score_all((search.scorer,), cases, [answered])
        if not any(verdict.is_scored for verdict in verdicts):
            raise DataError(f"the metric {search.scorer.name!r} scored no answer: {verdicts[0].reason}")
        scores: dict[str, list[float]] = {}
        for verdict in verdicts:
            scores.setdefault(verdict.item_id, []).extend(verdict.scores.values())
        return {name: sum(values) / len(values) if values else None for name, values in scores.items()}


def _answered(aligner: Aligner, recipe: Recipe, cases: Cases, ids: Ids) -> Answered:
    """Answer all cases."""
    rows: dict[str, Mapping[str, Any]] = {}
    for place, result in aligner.iter_generate([case.query for case in cases.cases]):
        if not isinstance(result, Failure):
            outputs = [output.text for output in result.outputs]
            rows[cases.cases[place].id] = {
                "response": outputs[0],
                "responses": outputs,
                "finish_reason": result.finish_reason,
                "demonstrations": list(ids),
            }
    return Answered(as_condition(recipe), (rows,))


def _measured(aligner: Aligner, recipe: Recipe, cases: Cases, ids: Ids) -> Answered:
    """Measure the likelihood of the references, without generating answers."""
    answer = {"response": "", "finish_reason": "stop", "demonstrations": list(ids)}
    found = {(row["turn"], row["id"]): row for row in measure_likelihoods(aligner, cases)}
    return Answered(as_condition(recipe), ({case.id: answer for case in cases.cases},), found)


def _row(demonstration: Demonstration) -> dict[str, Any]:
    return {
        "id": demonstration.source_id or demonstration.id,
        "instruction": demonstration.instruction,
        "response": demonstration.response,
    }


def recipe_toml(recipe: Recipe, constants: str) -> str:
    """A recipe as TOML, with its constant demonstrations in a file beside it; other files by absolute paths."""
    template = asdict(recipe.template)
    for key in ("form", "system_file"):
        name = template[key]
        is_file = name and not name.startswith("package:") and (key != "form" or name.endswith(".toml"))
        template[key] = str(recipe.path(name).resolve()) if is_file else name
    tables = {
        "template": {key: value for key, value in template.items() if value},
        "constants": {"file": constants},
        "retriever": {"name": "none"},
        "packing": asdict(recipe.packing),
        "decoding": {key: value for key, value in asdict(recipe.decoding).items() if value is not None},
    }
    return tomli_w.dumps({"description": recipe.description, **tables})


def _read(file: LineFile) -> Iterator[tuple[tuple[Ids, bool], dict[str, float | None]]]:
    """The scores of earlier runs, by set of demonstrations and whether the prompts are held out."""
    for number, row in enumerate(file.read(), start=1):
        try:
            yield (tuple(row["constants"]), bool(row["held_out"])), dict(row["scores"])
        except (ValueError, TypeError):
            raise DataError(f"{file.path}, line {number}: not an evaluation; choose another folder") from None


def _mean(scores: Mapping[str, float | None]) -> float:
    known = [score for score in scores.values() if score is not None]
    return sum(known) / len(known)


def _estimate(scores: Mapping[str, float | None]) -> Estimate:
    return mean(list(scores.values()), list(scores))
