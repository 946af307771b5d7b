"""The run: the aligned model answers, then the base model reads the answers in each context. Resumable throughout."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ragalign._progress import progress
from ragalign.aligner import Aligner
from ragalign.errors import BudgetError, ConfigError
from ragalign.generation import make_generator
from ragalign.generation.distributions import Distributions, SupportsDistributions
from ragalign.runs import RunFolder
from ragalign.studies.shift.contexts import SAME, AnswerInContext, Contexts, chat_prompt
from ragalign.studies.shift.divergence import divergences
from ragalign.studies.shift.files import ShiftFiles, context_settings
from ragalign.studies.shift.kinds import DEFAULT_CATEGORIES, categorise
from ragalign.studies.shift.record import AlignedAnswer, Place, Reading
from ragalign.studies.shift.tokens import Tokens, same_tokens, spans_of
from ragalign.types import Decoding, Prompt, Query

# Answers processed and saved together, which an interruption can lose.
_BATCH = 16


@dataclass(frozen=True, slots=True)
class ShiftSettings:
    """Settings of the analysis.

    Attributes:
        base, aligned: folders or hub ids of the two models.
        recipes: recipes of further contexts, after the aligned model's own.
        aligned_recipe: the recipe for the aligned model's prompts; None uses its own chat template, or
            "zero-shot" if it has none.
        index: the index that recipes retrieve from.
        max_tokens: maximum tokens per answer.
        top_k: see `SupportsDistributions.distributions`; None compares whole vocabularies.
        align_by_text: compare models with different tokenizers wherever both split the text alike.
        n_best: number of the base model's most probable tokens to keep for each position.
        backend, options: see `ragalign.generation.make_generator`.
        categories: regular expressions by name (see `kinds.categorise`).
    """

    base: str
    aligned: str
    recipes: tuple[str, ...] = ()
    aligned_recipe: str | None = None
    index: str | None = None
    max_tokens: int = 512
    top_k: int | None = None
    align_by_text: bool = False
    n_best: int = 5
    backend: str = "auto"
    options: Mapping[str, Any] = field(default_factory=dict)
    categories: Mapping[str, Sequence[str]] = field(default_factory=lambda: DEFAULT_CATEGORIES)

    @property
    def contexts(self) -> dict[str, str]:
        """The recipes of all contexts by name, the aligned model's own first.

        Raises:
            ConfigError: two recipes have the same name.
        """
        found = {SAME: ""}
        for recipe in self.recipes:
            name = Path(recipe).stem
            if found.setdefault(name, recipe) != recipe:
                raise ConfigError(f"two recipes are called {name!r}; rename one of the files")
        return found


@dataclass(frozen=True, slots=True)
class ShiftOutcome:
    """The answers and their readings.

    Attributes:
        answers: the aligned model's answers, in the order of the queries.
        readings: the readings by context, then by query id.
        failures: (context, query id, reason) of answers that did not fit.
        shared: whether both models have the same vocabulary.
    """

    answers: list[AlignedAnswer]
    readings: dict[str, dict[str, Reading]]
    failures: list[tuple[str, str, str]]
    shared: bool


def run(settings: ShiftSettings, queries: Sequence[Query], folder: str | Path) -> ShiftOutcome:
    """Run the analysis in a folder, or resume an interrupted one.

    Raises:
        ConfigError: the models have different tokenizers, the folder has another run, or a setting is invalid.
        GenerationError: a model could not be loaded or failed; the work so far is kept.
    """
    aligned, base = Tokens(settings.aligned), Tokens(settings.base)
    shared = same_tokens(aligned, base)
    if not shared and not settings.align_by_text:
        raise ConfigError(
            f"{settings.aligned} and {settings.base} have different tokenizers, so their tokens cannot be compared "
            "one to one; --align-by-text compares them wherever both split the text alike"
        )
    contexts = Contexts(base, shared=shared, index=settings.index)
    for recipe in settings.contexts.values():
        if recipe:
            contexts.aligner(recipe)  # reject invalid recipes before a model is loaded
    run_folder = RunFolder(folder)
    run_folder.claim(_identity(settings))
    files = ShiftFiles(run_folder, settings.contexts, settings.index)
    with run_folder.writing():
        _work(settings, queries, files, aligned, base, shared=shared)
        return load(settings, queries, files, shared=shared)


def _work(
    settings: ShiftSettings,
    queries: Sequence[Query],
    files: ShiftFiles,
    aligned: Tokens,
    base: Tokens,
    *,
    shared: bool,
) -> None:
    """Generate missing answers and readings."""
    found = files.answers(queries)
    todo = {name: _missing(files, name, queries) for name in settings.contexts}
    unread = {query.id for missing in todo.values() for query in missing}
    wanted = [query for query in queries if query.id not in found or query.id in unread]
    wanted = [query for query in wanted if _is_unknown(found.get(query.id), files)]
    if wanted:
        with closing(_generator(settings, settings.aligned)) as generator:
            _answer(settings, wanted, found, generator, aligned, files)
    if any(todo.values()):
        with closing(_generator(settings, settings.base)) as generator:
            contexts = Contexts(
                base,
                shared=shared,
                index=settings.index,
                context_length=generator.context_length,
                max_tokens=settings.max_tokens,
            )
            for name, missing in todo.items():
                _read(settings, name, missing, found, generator, contexts, base, files)
    files.clear_distributions()


def load(settings: ShiftSettings, queries: Sequence[Query], files: ShiftFiles, *, shared: bool) -> ShiftOutcome:
    """Load the answers and readings in a folder."""
    found = files.answers(queries)
    readings: dict[str, dict[str, Reading]] = {}
    failures = []
    for name in settings.contexts:
        readings[name] = {}
        for row in files.readings(name):
            if "error" in row:
                failures.append((name, row["id"], row["error"]))
            else:
                readings[name][row["id"]] = Reading.from_dict(row)
    return ShiftOutcome([found[query.id] for query in queries if query.id in found], readings, failures, shared)


def _answer(
    settings: ShiftSettings,
    queries: Sequence[Query],
    found: dict[str, AlignedAnswer],
    generator: SupportsDistributions,
    tokens: Tokens,
    files: ShiftFiles,
) -> None:
    """Generate the aligned model's missing answers, and save its distributions at every position."""
    decoding = Decoding(temperature=0.0, max_tokens=settings.max_tokens)
    asked = {query.id: query for query in queries}

    def keep(answer: AlignedAnswer) -> None:
        files.add_answer(answer, asked[answer.id])
        found[answer.id] = answer

    with progress("aligned model", len(queries), "answers") as advance:
        for batch in _batches(queries):
            new = [query for query in batch if query.id not in found]
            prompts = _prompts(settings, new, generator, tokens)
            fresh = {}
            for query, completion in zip(new, generator.generate(prompts, decoding), strict=True):
                output = completion.outputs[0]
                fresh[query.id] = _as_answer(query, completion.prompt, output.token_ids, output.text, tokens, settings)
            for answer in fresh.values():
                if not answer.token_ids:  # an empty answer has nothing to read
                    keep(answer)
            answers = [fresh.get(query.id) or found[query.id] for query in batch]
            answers = [answer for answer in answers if answer.token_ids]
            for number, shown in _expected(generator, answers, settings.top_k):
                answer = answers[number]
                files.save_distributions(answer.id, shown)
                if answer.id in fresh:
                    values = tuple(round(float(value), 5) for value in shown.logprobs)
                    keep(replace(answer, logprobs=values))
            advance(len(batch))


def _prompts(
    settings: ShiftSettings, queries: Sequence[Query], generator: SupportsDistributions, tokens: Tokens
) -> list[Prompt]:
    if settings.aligned_recipe is None and tokens.has_chat_template:
        return [chat_prompt(tokens, query) for query in queries]
    aligner = Aligner.from_recipe(
        settings.aligned_recipe or "zero-shot",
        index=settings.index,
        tokenizer=tokens.packing,
        context_length=generator.context_length,
    )
    packed = aligner.packer.pack_many(
        [query.turns for query in queries],
        aligner.retrieve(queries),
        n_plain=aligner.candidates,
        more=aligner.more(queries),
        max_new_tokens=settings.max_tokens,
    )
    for prompt in packed:
        if isinstance(prompt, BudgetError):
            raise prompt
    return [prompt for prompt in packed if isinstance(prompt, Prompt)]


def _as_answer(
    query: Query, prompt: Prompt, token_ids: Sequence[int], text: str, tokens: Tokens, settings: ShiftSettings
) -> AlignedAnswer:
    if not token_ids:
        raise ConfigError("this backend does not return token ids; use vllm or transformers")
    pieces = tokens.pieces(token_ids, prompt.token_ids)
    # Leave out the end of the answer: a stop string, which can be part of a token, and end-of-text tokens.
    n, length = 0, 0
    while n < len(pieces) and length + len(pieces[n]) <= len(text) and length < len(text):
        length += len(pieces[n])
        n += 1
    kept = pieces[:n]
    joined = "".join(kept)
    return AlignedAnswer(
        id=query.id,
        instruction=query.text,
        prompt_text=prompt.text,
        prompt_ids=tuple(prompt.token_ids),
        token_ids=tuple(token_ids[:n]),
        pieces=tuple(kept),
        categories=tuple(categorise(joined, spans_of(kept), settings.categories)),
        logprobs=(),
    )


def _read(
    settings: ShiftSettings,
    name: str,
    queries: Sequence[Query],
    answers: Mapping[str, AlignedAnswer],
    generator: SupportsDistributions,
    contexts: Contexts,
    tokens: Tokens,
    files: ShiftFiles,
) -> None:
    """Read the answers with the base model in a context."""
    with progress(f"base model, {name}", len(queries), "answers") as advance:
        for batch in _batches(queries):
            own = [answers[query.id] for query in batch]
            placed = contexts.place(settings.contexts[name], batch, own)
            fits: list[tuple[AlignedAnswer, AnswerInContext]] = []
            for answer, fitted in zip(own, placed, strict=True):
                if not answer.token_ids:
                    files.add_reading(name, Reading(answer.id, 0, 0, ()).to_dict())
                elif isinstance(fitted, BudgetError):
                    files.add_reading(name, {"id": answer.id, "error": str(fitted)})
                else:
                    fits.append((answer, fitted))
            sequences, starts = [fitted.ids for _, fitted in fits], [fitted.start for _, fitted in fits]
            for number, shown in generator.distributions(sequences, starts, top_k=settings.top_k):
                answer, fitted = fits[number]
                expected = files.load_distributions(answer.id)
                reading = _reading(answer, fitted, expected, shown, tokens, settings.n_best)
                files.add_reading(name, reading.to_dict())
            advance(len(batch))


def _reading(
    answer: AlignedAnswer,
    placed: AnswerInContext,
    aligned: Distributions,
    base: Distributions,
    tokens: Tokens,
    n_best: int,
) -> Reading:
    pairs = [(number, own) for number, own in enumerate(placed.own) if own is not None and placed.same_ids[number]]
    kl = {}
    if pairs:
        first, second = (list(numbers) for numbers in zip(*pairs, strict=True))
        values = divergences(_some(aligned, first), _some(base, second))
        kl = dict(zip(first, values.tolist(), strict=True))
    places: list[Place | None] = []
    for number, own in enumerate(placed.own):
        if own is None:
            places.append(None)
            continue
        best = tuple((tokens.show(id_), value) for id_, value in base.best(own, n_best))
        places.append(Place(int(base.ranks[own]), float(base.logprobs[own]), kl.get(number), best))
    return Reading(answer.id, placed.start, placed.n_demonstrations, tuple(places))


def _some(shown: Distributions, places: list[int]) -> Distributions:
    return Distributions(**{name: array[places] for name, array in shown.arrays().items()})


def _expected(
    generator: SupportsDistributions, answers: Sequence[AlignedAnswer], top_k: int | None
) -> Iterator[tuple[int, Distributions]]:
    sequences = [[*answer.prompt_ids, *answer.token_ids] for answer in answers]
    return generator.distributions(sequences, [len(answer.prompt_ids) for answer in answers], top_k=top_k)


def _generator(settings: ShiftSettings, model: str) -> SupportsDistributions:
    from ragalign._optional import is_installed

    options = dict(settings.options)
    if settings.backend == "vllm" or (settings.backend == "auto" and is_installed("vllm")):
        options.setdefault("max_logprobs", -1)
    return make_generator(settings.backend, model=model, **options)


def _identity(settings: ShiftSettings) -> dict[str, Any]:
    """The settings that must not change when a run is resumed; contexts can be added."""
    names = ("base", "aligned", "max_tokens", "top_k", "align_by_text", "n_best")
    aligned = None if settings.aligned_recipe is None else context_settings(settings.aligned_recipe, settings.index)
    return {name: getattr(settings, name) for name in names} | {
        "aligned_recipe": aligned,
        "categories": {name: list(patterns) for name, patterns in settings.categories.items()},
    }


def _missing(files: ShiftFiles, context: str, queries: Sequence[Query]) -> list[Query]:
    present = {row["id"] for row in files.readings(context)}
    return [query for query in queries if query.id not in present]


def _is_unknown(answer: AlignedAnswer | None, files: ShiftFiles) -> bool:
    """Whether an answer or its distributions are missing."""
    return answer is None or (bool(answer.token_ids) and not files.has_distributions(answer.id))


def _batches(queries: Sequence[Query]) -> Iterator[Sequence[Query]]:
    for start in range(0, len(queries), _BATCH):
        yield queries[start : start + _BATCH]
