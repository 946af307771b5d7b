"""Measuring gains: the log-likelihood of a question's reference after each candidate, against none."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, get_args

from ragalign._progress import progress
from ragalign.errors import ConfigError, DataError
from ragalign.generation.distributions import SupportsDistributions
from ragalign.indexes import Index
from ragalign.recipes import Recipe
from ragalign.runs import OutputFile, fingerprint
from ragalign.tokenization import Tokenizer
from ragalign.utility.candidates import Kind, choose_candidates
from ragalign.utility.files import KEYS, GainFiles
from ragalign.utility.prompts import Asked, PromptForm, Scored, score_references
from ragalign.utility.questions import AnsweredQuestion

# Questions scored together. More share more of their candidates, and fewer lose less when interrupted.
_BLOCK = 256


@dataclass(frozen=True, slots=True)
class ScoreOptions:
    """Options of `score_gains`.

    Attributes:
        candidates: demonstrations per question.
        max_reference_tokens: only the first tokens of a reference count; None for all.
        seed: seed of the middling and random candidates.

    Raises:
        ConfigError: a number is less than 1.
    """

    candidates: int = 20
    max_reference_tokens: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("candidates", "max_reference_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, not {value}")


class GainRun:
    """A measurement that can be interrupted and resumed.

    Args:
        index: the pool whose demonstrations are candidates, with its vectors.
        questions: with references; ids must be unique.
        out: a ``.jsonl`` file, or a folder; see `ragalign.utility.files`.
        recipe: the form of prompts; its constant demonstrations are in all of them.
        tokenizer: the model's.
        settings: what else determines the gains: the model and its engine.
        options: see `ScoreOptions`.
        context_length: maximum tokens of prompt and reference together.

    Raises:
        ConfigError: there is no question, or the output was made with other settings.
        DataError: the output has other content, or an id occurs twice.
    """

    def __init__(
        self,
        index: Index,
        questions: Sequence[AnsweredQuestion],
        out: str | Path,
        *,
        recipe: Recipe,
        tokenizer: Tokenizer,
        settings: Mapping[str, Any],
        options: ScoreOptions | None = None,
        context_length: int | None = None,
    ) -> None:
        self.options = options or ScoreOptions()
        if not questions:
            raise ConfigError("no question has a reference answer: add a field `reference` to the rows")
        if len({question.id for question in questions}) < len(questions):
            raise DataError("two questions have the same id; make the ids unique")
        self.files = GainFiles(out)
        self._questions = questions
        self._form = PromptForm(
            recipe,
            index.pool,
            tokenizer,
            context_length=context_length,
            max_reference_tokens=self.options.max_reference_tokens,
        )
        self._candidates = choose_candidates(
            index,
            [question.query for question in questions],
            self.options.candidates,
            seed=self.options.seed,
            accepts=self._form.accepts,
        )
        self._pool = index.pool
        content = recipe.content()
        self._settings = {
            **settings,
            "pool": index.pool.fingerprint,
            "encoder": index.encoder.fingerprint,
            "text": index.manifest.text,
            "questions": fingerprint(
                [
                    [question.id, [[turn.role, turn.content] for turn in question.query.turns], question.reference]
                    for question in questions
                ]
            ),
            "form": {name: content[name] for name in ("template", "constants")},
            "max_demonstration_tokens": recipe.packing.max_demonstration_tokens,
            **asdict(self.options),
        }

    @property
    def n_pairs(self) -> int:
        """Pairs of question and candidate."""
        return sum(map(len, self._candidates))

    @property
    def n_missing(self) -> int:
        """Pairs that are not measured yet."""
        return sum(len(names) for _, names in self._waiting(self.files.lines().read()))

    def run(
        self, start: Callable[[], SupportsDistributions], *, on_pairs: Callable[[int], None] = lambda _: None
    ) -> None:
        """Measure what is missing, and append each gain as soon as it is known.

        Args:
            start: returns the model; called only if something is missing.
            on_pairs: called with the number of pairs just measured.

        Raises:
            ConfigError: the output was made with other settings, or the model gives no probabilities of given tokens.
            DataError: another process is writing the output.
            GenerationError: the engine failed; what was measured is kept.
        """
        with OutputFile(self.files.path, self._settings, KEYS, stamped=False) as file:
            names = dict.fromkeys(name for found in self._candidates for name in found)
            self.files.write_texts(
                {question.id: question.query.text for question in self._questions}, map(self._pool.get, names)
            )
            waiting = self._waiting(file.rows)
            if not waiting:
                return
            generator = start()
            with progress("measuring gains", sum(len(names) for _, names in waiting), "pairs") as advance:
                for first in range(0, len(waiting), _BLOCK):
                    for row in self._measure(generator, waiting[first : first + _BLOCK]):
                        file.append(row)
                        advance(1)
                        on_pairs(1)

    def summary(self) -> dict[str, Any]:
        """The mean gain by kind of candidate, in nats per token, and what could not be measured."""
        rows = self.files.lines().read()
        kinds = {
            (q.id, name): kind
            for q, names in zip(self._questions, self._candidates, strict=True)
            for name, kind in names.items()
        }
        values: dict[str, list[float]] = {}
        for row in rows:
            kind = kinds.get((row["id"], row["candidate"]))
            if kind is not None and row["gain"] is not None:
                values.setdefault(kind, []).append(row["gain"] / row["n_tokens"])
        failed = [row["reason"] for row in rows if row["gain"] is None]
        return {
            "n_questions": len(self._questions),
            "n_pairs": self.n_pairs,
            "gain_per_token": {
                kind: {"n": len(of), "mean": fmean(of), "share_positive": sum(gain > 0 for gain in of) / len(of)}
                for kind in get_args(Kind)
                if (of := values.get(kind))
            },
            "n_unmeasured": len(failed),
            **({"reason": failed[0]} if failed else {}),
        }

    def _waiting(self, rows: Sequence[Mapping[str, Any]]) -> list[Asked]:
        """The questions with the candidates that no row is about."""
        done = {(row["id"], row["candidate"]) for row in rows}
        left = [
            (question, [name for name in names if (question.id, name) not in done])
            for question, names in zip(self._questions, self._candidates, strict=True)
        ]
        return [(question, names) for question, names in left if names]

    def _measure(self, generator: SupportsDistributions, block: Sequence[Asked]) -> Iterator[dict[str, Any]]:
        none: Sequence[str] = ()
        without = dict(score_references(self._form, generator, [(question, none) for question, _ in block]))
        asked = [(place, (block[place][0], (name,))) for place in range(len(block)) for name in block[place][1]]
        for number, found in score_references(self._form, generator, [pair for _, pair in asked]):
            place, (question, names) = asked[number]
            plain = without[place]
            row = {"id": question.id, "candidate": names[0], "gain": None, "n_tokens": 0}
            if isinstance(found, Scored) and isinstance(plain, Scored):
                yield row | {"gain": found.logprob - plain.logprob, "n_tokens": found.n_tokens}
            else:
                yield row | {"reason": str(plain if isinstance(found, Scored) else found)}


def score_gains(
    index: Index,
    questions: Sequence[AnsweredQuestion],
    generator: SupportsDistributions,
    out: str | Path,
    *,
    tokenizer: Tokenizer,
    recipe: str | Recipe = "ica",
    options: ScoreOptions | None = None,
) -> GainFiles:
    """Measure gains with a generator at hand; see `GainRun`.

    Raises:
        ConfigError, DataError, GenerationError: as `GainRun`.
    """
    run = GainRun(
        index,
        questions,
        out,
        recipe=recipe if isinstance(recipe, Recipe) else Recipe.load(recipe),
        tokenizer=tokenizer,
        settings={"model": generator.model},
        options=options,
        context_length=generator.context_length,
    )
    run.run(lambda: generator)
    return run.files
