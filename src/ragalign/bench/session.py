"""The steps of a benchmark session: indexes, tokenizer, engine, judges."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ragalign.aligner import Failure
from ragalign.bench import timing
from ragalign.bench.conditions import MAIN, Condition
from ragalign.bench.judging import items
from ragalign.bench.running import Run
from ragalign.bench.scoring import Scorer, score_all
from ragalign.encoders import DEFAULT_ENCODER, Encoder
from ragalign.errors import ConfigError, DataError
from ragalign.executors.factory import start_generator
from ragalign.generation import BaseGenerator, check_generator
from ragalign.indexes import Index
from ragalign.judging.base import Protocol, Verdict
from ragalign.judging.cache import ReplyCache
from ragalign.judging.judges import AnyJudge
from ragalign.judging.output import VERDICTS, write_run
from ragalign.judging.runner import run_judge
from ragalign.judging.runs import JudgeRun, RunOptions
from ragalign.measures.likelihood import supporting
from ragalign.models import display_name, locate_model
from ragalign.pool import Pool
from ragalign.runs import machine_facts, write_lines
from ragalign.tokenization import Tokenizer

_REPLIES = "replies.sqlite"


@dataclass(frozen=True, slots=True)
class Engine:
    """The model and the settings of its engine.

    Attributes:
        model: a folder or hub id, or the name under which an endpoint serves it.
        backend: see `ragalign.generation.make_generator`.
        tokenizer: where the tokenizer is, if not with the model.
        context_length: tokens that prompt and completion share, where it is to be less than the model's.
        options: arguments of the backend's class.
        name: what reports call the model; by default its folder's name or its id.
        ray: ``local``, ``auto`` or the address of a Ray cluster; None for this process.
        workers: number of engines on the cluster.
    """

    model: str
    backend: str = "auto"
    tokenizer: str | None = None
    context_length: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    name: str = ""
    ray: str | None = None
    workers: int | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """Settings that determine the answers, besides the model."""
        dtype = {"dtype": self.options["dtype"]} if "dtype" in self.options else {}
        return {"backend": self.backend, "tokenizer": self.tokenizer, "context_length": self.context_length, **dtype}

    def check(self) -> None:
        """Check everything before the engine starts, which is slow.

        Raises:
            ConfigError: there is no such backend or model folder, or an option is unknown or out of range.
        """
        check_generator(self.backend, model=self.model, context_length=self.context_length, **self.options)

    def start(self, connector: Mapping[str, Any] | None = None) -> BaseGenerator:
        """Start the generator, which is slow, with a `kv_transfer_config` if given.

        Raises:
            ConfigError, GenerationError: as `start_generator`.
        """
        options = {**self.options, **({} if connector is None else {"kv_transfer_config": connector})}
        return start_generator(
            self.backend,
            model=self.model,
            context_length=self.context_length,
            tokenizer=self.tokenizer,
            ray=self.ray,
            workers=self.workers,
            **options,
        )

    def load_tokenizer(self) -> Tokenizer:
        """The model's tokenizer.

        Raises:
            ConfigError: there is none.
        """
        # Locate it as a model, so that a GGUF file's weights and tokenizer are read together.
        return Tokenizer.load(self.tokenizer or locate_model(self.model))


def open_indexes(
    conditions: Sequence[Condition],
    *,
    index: str | Path | None = None,
    pool: Sequence[str] = (),
    encoder: str | None = None,
    folder: Path,
) -> dict[str, Index]:
    """Open or build the indexes that conditions retrieve from, by name.

    Args:
        conditions: those named after an encoder need an index with it.
        index: the main index's folder,
        pool: or files to build it from.
        encoder: what to build it with.
        folder: where built indexes are kept.

    Raises:
        ConfigError: neither index nor pool is given and a condition retrieves, or both are.
        DataError, IndexFormatError: a pool or an index cannot be read.
    """
    if index is not None and pool:
        raise ConfigError("give an index or a pool, not both: an index already contains its pool")
    names = list(dict.fromkeys(condition.index for condition in conditions if condition.retrieves))
    if not names:
        return {}
    if index is None and not pool:
        first = next(condition.name for condition in conditions if condition.retrieves)
        raise ConfigError(f"the recipe {first!r} retrieves demonstrations: give an index or a pool")
    if index is not None:
        main = Index.open(index)
    else:
        main = build_index(Pool.load(pool), encoder or DEFAULT_ENCODER, folder / "index")
    others = {name: build_index(main.pool, name, folder / f"index-{_plain(name)}") for name in names if name != MAIN}
    return ({MAIN: main} if MAIN in names else {}) | others


def build_index(pool: Pool, encoder: str, folder: Path) -> Index:
    """The index of a pool in a folder, built if it does not exist."""
    loaded = Encoder.load(encoder)
    if (folder / "manifest.json").is_file():
        there = Index.open(folder, encoder=loaded)
        if there.pool.fingerprint == pool.fingerprint:
            return there
    Index.build(pool, loaded, show_progress=True).save(folder)
    return Index.open(folder, encoder=loaded)


def generate(
    run: Run,
    engine: Engine,
    *,
    rounds: int = timing.ROUNDS,
    likelihoods: bool = False,
    fixed: str | None = None,
    on_condition: Callable[[Condition, int], None] = lambda *_: None,
    on_start: Callable[[], None] = lambda: None,
    on_likelihoods: Callable[[Condition, int], None] = lambda *_: None,
    on_round: Callable[[int], None] = lambda _: None,
) -> list[tuple[Condition, Failure]]:
    """Generate a run's missing answers and time its conditions; the engine starts only if something is missing.

    Args:
        run: the run.
        engine: the model that answers.
        rounds: number of rounds for timing; 0 skips timing.
        likelihoods: whether to measure how likely the model finds the references.
        fixed: the condition that prices are relative to; by default the first whose demonstrations are fixed, or else
            the first.
        on_condition: see `Run.generate`.
        on_start: called before the engine starts.
        on_likelihoods: see `Run.measure_likelihoods`.
        on_round: see `ragalign.bench.timing.measure`.

    Raises:
        ConfigError, GenerationError: the engine did not start, or failed as a whole.
    """
    if is_finished(run, rounds, likelihoods=likelihoods):
        return []
    engine.check()
    with run.writing():
        tokenizer = engine.load_tokenizer()
        connector = run.connector(tokenizer)
        on_start()
        with engine.start(connector) as generator:
            if likelihoods:
                supporting(generator)
            failures = run.generate(generator, tokenizer, on_condition=on_condition)
            if likelihoods:
                run.measure_likelihoods(generator, tokenizer, on_condition=on_likelihoods)
            queries = run.answered_by_all()
            if queries and not _is_timed(run, rounds):
                timing.measure(
                    run.folder,
                    {condition.name: run.aligner(condition, generator, tokenizer) for condition in run.conditions},
                    generator,
                    queries,
                    base=fixed
                    or next(
                        (condition.name for condition in run.conditions if condition.is_fixed), run.conditions[0].name
                    ),
                    facts=machine_facts(),
                    n_rounds=rounds,
                    on_round=on_round,
                )
    return failures


def is_finished(run: Run, rounds: int = timing.ROUNDS, *, likelihoods: bool = False) -> bool:
    """Whether all answers are there, speed has been measured in the requested rounds, and likelihoods if requested."""
    return run.is_finished and _is_timed(run, rounds) and not (likelihoods and run.n_missing_likelihoods)


def _is_timed(run: Run, rounds: int) -> bool:
    present = timing.read_timings(run.folder)
    return not rounds or (present is not None and len(present.rounds) == rounds)


def judge(
    run: Run,
    protocol: Protocol,
    judges: Sequence[AnyJudge],
    *,
    baseline: str | None = None,
    baseline_file: str | Path | None = None,
    options: RunOptions | None = None,
) -> JudgeRun:
    """Judge a run's answers; replies are stored in the run folder, so judging can be resumed.

    Raises:
        ConfigError, DataError, JudgeError: as `run_judge`, or there is no baseline where the protocol needs one.
    """
    if protocol.is_pairwise and baseline is None and baseline_file is None:
        raise ConfigError(f"the protocol {protocol.name} compares two answers: name a baseline")
    asked = items(
        run.cases,
        run.answered(),
        baseline=baseline if protocol.is_pairwise and baseline_file is None else None,
        baseline_file=baseline_file if protocol.is_pairwise else None,
    )
    folder = run.folder / "judged"
    options = options or RunOptions()
    with run.writing(), ReplyCache(folder / _REPLIES) as cache:
        done = run_judge(protocol, asked, judges, cache=cache, options=options, show_progress=True)
        write_run(folder, protocol, done.judgements, options.prices)
    return done


def score(run: Run, *scorers: Scorer) -> list[Verdict]:
    """The verdicts of metrics, the headline first.

    They are also written to ``verdicts.jsonl`` in the run's folder, for `ragalign report`.

    Raises:
        DataError: a metric has no score for any answer.
    """
    verdicts = score_all(scorers, run.cases, run.answered())
    for scorer in scorers:
        if not any(scorer.name in verdict.scores for verdict in verdicts):
            reason = verdicts[0].reason or verdicts[0].metadata["unscored"][scorer.name]
            raise DataError(f"the metric {scorer.name!r} scored no answer; the first reason: {reason}")
    with run.writing():
        write_lines(run.folder / "judged" / VERDICTS, map(asdict, verdicts))
    return verdicts


def facts(run: Run, engine: Engine) -> dict[str, str]:
    """Model, prompts, pool and machine, for the head of a report; a local model is named after its folder."""
    model = engine.name or display_name(engine.model)
    prompts = f"{run.cases.name}, {len(run.cases.cases):,} prompts"
    timings = timing.read_timings(run.folder)
    pools = {f"{len(index):,} demonstrations" for name, index in run.indexes.items() if name != "planted"}
    return {
        "model": model,
        "prompts": prompts,
        **({"pool": " / ".join(sorted(pools))} if pools else {}),
        **(timings.facts if timings else machine_facts()),
    }


def _plain(name: str) -> str:
    return re.sub(r"[^\w.+=-]+", "-", name).strip("-.")
