"""Running a whole benchmark: check everything, answer, score or judge, report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from ragalign.aligner import Failure
from ragalign.bench import session
from ragalign.bench.cases import Cases
from ragalign.bench.conditions import Condition, checked, decoded, guarded
from ragalign.bench.expected import Expectation, expectations
from ragalign.bench.figures import check_named, report_of
from ragalign.bench.reusing import reusing
from ragalign.bench.running import Run
from ragalign.bench.scoring import Scorer, make_scorer
from ragalign.bench.session import Engine
from ragalign.bench.testbed import World, world_engine
from ragalign.bench.timing import ROUNDS
from ragalign.errors import ConfigError
from ragalign.indexes import Index
from ragalign.judging.base import Protocol, Verdict
from ragalign.judging.judges import AnyJudge, Judge, check_judges
from ragalign.judging.runs import JudgeRun, RunOptions
from ragalign.reports.page import write_page
from ragalign.reports.published import Published
from ragalign.reports.report import Report
from ragalign.reuse.opening import can_reuse, check_backend, check_model
from ragalign.runs import write_json
from ragalign.types import Decoding


@dataclass(frozen=True, slots=True)
class Judging:
    """How answers are judged.

    Attributes:
        protocol: the protocol.
        judges: the judges.
        baseline_file: answers to compare with instead of the baseline's, for pairwise protocols.
        options: see `RunOptions`.
        published: published results of the protocol, to show beside.
    """

    protocol: Protocol
    judges: tuple[AnyJudge, ...]
    baseline_file: Path | None = None
    options: RunOptions = field(default_factory=RunOptions)
    published: tuple[Published, ...] = ()


@dataclass(frozen=True, slots=True)
class Outcome:
    """The figures of a benchmark.

    Attributes:
        report: the report; its `bench` is never None.
        expected: for the testbed, the expected results.
        judged: the requests and costs of judging; None without judges.
    """

    report: Report
    expected: tuple[Expectation, ...] = ()
    judged: JudgeRun | None = None

    @property
    def broken(self) -> list[Expectation]:
        """The expectations that do not hold."""
        return [expectation for expectation in self.expected if not expectation.holds]

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        expected = {"expected": [figure.to_dict() for figure in self.expected]} if self.expected else {}
        return self.report.to_dict() | expected


class Benchmark:
    """A comparison of recipes on the same prompts, in a folder from which it can be resumed.

    The constructor checks everything that can be checked before an engine starts.

    Args:
        folder: the run folder, created if missing.
        conditions: the recipes; each gets the leakage guard.
        cases: the prompts.
        engine: the model that answers.
        indexes: makes the indexes that conditions retrieve from; called after all other checks.
        scorers: metrics, the headline first.
        judging: how to judge, in place of metrics.
        baseline: the condition to compare the others with; by default `fixed`, or the first with fixed
            demonstrations, or the first.
        fixed: the condition that prices are relative to.
        exclude_near: also exclude demonstrations with at least this cosine similarity to the prompt.
        change: changes every condition's decoding.
        rounds: number of rounds for timing; 0 does not measure speed.
        title: the report's heading.
        notes: lines for the report's head.

    Raises:
        ConfigError: a name, a key, a number or a combination is wrong, or the folder was made with other settings.
        DataError, IndexFormatError: prompts, pool or index cannot be read.
    """

    def __init__(
        self,
        folder: Path,
        conditions: Sequence[Condition],
        cases: Cases,
        engine: Engine,
        *,
        indexes: Callable[[Sequence[Condition]], Mapping[str, Index]],
        scorers: Sequence[Scorer] = (),
        judging: Judging | None = None,
        baseline: str | None = None,
        fixed: str | None = None,
        exclude_near: float | None = None,
        change: Callable[[Decoding], Decoding] | None = None,
        rounds: int = ROUNDS,
        title: str | None = None,
        notes: Sequence[str] = (),
    ) -> None:
        if scorers and judging is not None:
            raise ConfigError("give metrics or judges, not both; to add the other, run again with the same folder")
        if judging is not None:
            check_judges(judging.protocol, judging.judges)
            for judge in judging.judges:
                if isinstance(judge, Judge):
                    judge.key()
        for name in (baseline, fixed):
            check_named([condition.name for condition in conditions], name)
        if not folder.exists():  # an existing folder can be complete
            engine.check()
            if reusing(conditions):
                check_backend(engine.backend)
                check_model(engine.model, engine.context_length, engine.options)
        conditions = guarded(decoded(conditions, change) if change else conditions, exclude_near)
        self.engine, self.scorers, self.judging = engine, tuple(scorers), judging
        self.fixed, self.rounds, self.title, self.notes = fixed, rounds, title, tuple(notes)
        self.baseline = (
            baseline
            or fixed
            or next((condition.name for condition in conditions if condition.is_fixed), conditions[0].name)
        )
        self.is_testbed = False
        self.run = Run(folder, conditions, cases, indexes(conditions), model=engine.model, others=engine.settings)

    @classmethod
    def of_testbed(
        cls,
        folder: Path,
        backend: str = "auto",
        *,
        first: int | None = None,
        names: Sequence[str] | None = None,
        title: str | None = None,
        **others: Any,
    ) -> Self:
        """Create the packaged testbed, scored by exact match and compared with random demonstrations.

        Args:
            folder: made if missing.
            backend: what runs the model; without vLLM, there are no conditions that reuse keys and values.
            first: number of queries to use; all by default.
            names: conditions to use; all by default.
            title: the report's heading.
            others: `change`, `rounds` and `notes` of the benchmark.
        """
        world = World.load(first=first)
        made = cls(
            folder,
            checked(world.conditions(reuse=can_reuse(backend)) if names is None else world.chosen(names)),
            world.cases,
            world_engine(backend),
            indexes=lambda _: dict(world.indexes),
            scorers=[make_scorer("exact-match")],
            baseline="random",
            title=title or "The testbed: retrieved against fixed demonstrations",
            **others,
        )
        made.is_testbed = True
        return made

    @property
    def n_answers(self) -> int:
        """The total number of answers of all conditions."""
        return sum(len(case.turns) for case in self.run.cases.cases) * len(self.run.conditions)

    @property
    def needs_likelihoods(self) -> bool:
        """Whether a metric needs the model's likelihood of the references."""
        return any(scorer.needs_likelihoods for scorer in self.scorers)

    @property
    def is_answered(self) -> bool:
        """Whether all answers and timings exist, so that no engine needs to start."""
        return session.is_finished(self.run, self.rounds, likelihoods=self.needs_likelihoods)

    def answer(self, **on: Any) -> list[tuple[Condition, Failure]]:
        """Generate the missing answers; the arguments, such as `on_start`, are those of `session.generate`.

        Raises:
            ConfigError, GenerationError: the engine did not start, or failed as a whole; what was answered is kept.
        """
        return session.generate(
            self.run,
            self.engine,
            rounds=self.rounds,
            likelihoods=self.needs_likelihoods,
            fixed=self.fixed,
            **on,
        )

    def evaluate(self) -> Outcome:
        """Score or judge the answers and compute all figures.

        Raises:
            DataError: a metric scored no answer, or a file of the folder is damaged.
            ConfigError, JudgeError: as `session.judge`.
        """
        verdicts: Sequence[Verdict] = ()
        judged: JudgeRun | None = None
        if self.scorers:
            verdicts = session.score(self.run, *self.scorers)
        elif self.judging is not None:
            judged = session.judge(
                self.run,
                self.judging.protocol,
                self.judging.judges,
                baseline=self.baseline,
                baseline_file=self.judging.baseline_file,
                options=self.judging.options,
            )
            verdicts = judged.verdicts
        report = report_of(
            self.run,
            verdicts,
            baseline=self.baseline,
            fixed=self.fixed,
            title=self.title,
            facts=session.facts(self.run, self.engine),
            published=self.judging.published if self.judging is not None else (),
            notes=self.notes,
        )
        assert report.bench is not None  # always set for a run
        expected = expectations(report.bench, self.run.answered()) if self.is_testbed else []
        return Outcome(report, tuple(expected), judged)

    def write(self, outcome: Outcome, browse: int | None = None) -> Path:
        """Write ``report.json`` and ``report.html``.

        Args:
            outcome: the outcome to write.
            browse: number of prompts whose single answers the page lists; all by default.

        Returns:
            The page.
        """
        write_json(self.run.folder / "report.json", outcome.to_dict())
        page = self.run.folder / "report.html"
        write_page(outcome.report, page, created=datetime.now(UTC), browse=browse)
        return page
