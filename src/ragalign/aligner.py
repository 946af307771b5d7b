"""The aligner: retrieve, pack, generate."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Self, cast, get_args

from ragalign.errors import BudgetError, ConfigError, DataError, RagalignError
from ragalign.generation.presets import without_unsupported
from ragalign.indexes import Index
from ragalign.models import locate_model
from ragalign.packing import More, Packer, Packing
from ragalign.planning import OnlinePlanner, Plan, Planner, PlannerSettings, PrefixMemory
from ragalign.pool import Pool
from ragalign.recipes import Recipe
from ragalign.retrieval import Exclusion, Retriever, make_retriever
from ragalign.reuse.layout import ReusingPacker, manifest_for
from ragalign.reuse.opening import check_backend, check_model, default_store, engine_config, open_store, reusing
from ragalign.reuse.store import AssumedStore, Store
from ragalign.templates.streaming import CleanStream
from ragalign.templates.turns import check_turns
from ragalign.tokenization import Tokenizer
from ragalign.types import (
    ClosableIterator,
    Completion,
    Decoding,
    Delta,
    Generator,
    Hit,
    Output,
    Prompt,
    Query,
    Role,
    Turn,
)

# Queries that are retrieved for and packed together, while earlier ones are answered. Small batches let the engine
# start early and hide the most work, but prompts share prefixes only within a batch, and an engine on the CPU
# loses more to concurrent packing than it gains.
_FEW, _MANY = 64, 4096

Message = Turn | Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Failure:
    """A query without a completion, and the reason."""

    query: Query
    error: RagalignError


class Aligner:
    """Answers conversations with a retriever, a packer and a generator.

    Args:
        packer: makes prompts.
        retriever: finds demonstrations; None for prompts without retrieved demonstrations.
        generator: answers prompts; None for an aligner that only packs.
        decoding: the default decoding parameters.
        candidates: hits to retrieve per query at first, and the largest number of demonstrations in a prompt; None
            means the packer's `max_demonstrations`.
        exclude: demonstrations never to retrieve; by default those whose instruction is the query.
        where: metadata values that demonstrations must match.
        planner: how prompts are made to share prefixes; by default they are not.
        memory: an estimate of the generator's prefix cache; share it between aligners with the same generator.
        name: identifies this aligner in output files, such as the recipe's name.
        reuse: packs prompts that reuse kept keys and values; None for plain prompts.
    """

    def __init__(
        self,
        packer: Packer,
        retriever: Retriever | None = None,
        generator: Generator | None = None,
        *,
        decoding: Decoding | None = None,
        candidates: int | None = None,
        exclude: Exclusion | None = None,
        where: Mapping[str, Any] | None = None,
        planner: PlannerSettings | None = None,
        memory: PrefixMemory | None = None,
        name: str = "",
        reuse: ReusingPacker | None = None,
    ) -> None:
        self.packer = packer
        self.retriever = retriever
        self.decoding = decoding or Decoding()
        self.candidates = packer.packing.max_demonstrations if candidates is None else candidates
        self.exclude = Exclusion() if exclude is None else exclude
        self.where = where or None
        self.planner = planner or PlannerSettings()
        self.name = name
        self.reuse = reuse
        self._memory = memory or PrefixMemory()
        self._generator = generator

    @classmethod
    def from_recipe(
        cls,
        recipe: str | Path | Recipe,
        *,
        index: str | Path | Index | None = None,
        model: str | Path | Generator | None = None,
        backend: str = "auto",
        tokenizer: str | Path | Tokenizer | None = None,
        context_length: int | None = None,
        store: str | Path | None = None,
        **generator_options: Any,
    ) -> Self:
        """Build an aligner from a recipe.

        Args:
            recipe: a packaged recipe's name, a TOML file, or a `Recipe`.
            index: an index or its folder; required if the recipe retrieves.
            model: a model's folder or Hub id, a GGUF file, ``packaged:NAME``, or a generator; None for an aligner
                that only packs.
            backend: what runs the model: see `ragalign.generation.make_generator`.
            tokenizer: folder or Hub id of the tokenizer, if it is not stored with the model.
            context_length: maximum tokens of prompt and completion together; the model's by default.
            store: folder of kept keys and values, for recipes that reuse them; by default the recipe's, or else
                the one beside the index.
            generator_options: passed to the backend's class, such as ``dtype="bfloat16"``.

        Raises:
            ConfigError: the recipe is invalid, or an index, a model or a tokenizer is missing.
            GenerationError: the engine did not start.
        """
        recipe = recipe if isinstance(recipe, Recipe) else Recipe.load(recipe)
        # Check everything before the engine starts, which is slow.
        template, constants = recipe.make_template()
        retriever, pool, cache, folder = None, Pool.from_demonstrations([]), None, None
        if recipe.retriever.name != "none":
            if index is None:
                raise ConfigError(f"the recipe {recipe.name!r} retrieves demonstrations: name an index")
            if not isinstance(index, Index):
                index = Index.open(index)
            if index.folder is not None:
                folder = index.folder
                cache = index.folder.with_name(f"{index.folder.name}.tokens")
            retriever = make_retriever(recipe.retriever.name, index, **recipe.retriever.options)
            pool = retriever.pool
        if tokenizer is None:
            if not isinstance(model, str | Path):
                raise ConfigError("no tokenizer: name the folder or Hub id of the model's tokenizer")
            # Located as a model, so that a GGUF file's weights and tokenizer are read in one pass.
            tokenizer = locate_model(model)
        if not isinstance(tokenizer, Tokenizer):
            tokenizer = Tokenizer.load(tokenizer)
        kept = None
        if recipe.reuse.enabled:
            plain = Packer(template, tokenizer, pool, packing=recipe.packing, constants=constants, cache=cache)
            kept = _open_store(recipe, plain, folder, model, store)
            if kept is not None and isinstance(model, str | Path):
                check_backend(backend)
                check_model(model, context_length)
                generator_options["kv_transfer_config"] = engine_config(kept, recipe.reuse)
        generator = _generator(model, backend, context_length, generator_options)
        decoding = recipe.decoding
        if generator is not None:
            context_length = generator.context_length if context_length is None else context_length
            decoding, lost = without_unsupported(decoding, getattr(generator, "unsupported", ()))
            if lost:
                warnings.warn(
                    f"recipe {recipe.name}: ignoring {' and '.join(lost)}, which this backend does not support; run "
                    "the model with vLLM or transformers here, or choose another decoding",
                    stacklevel=2,
                )
        packer = Packer(
            template,
            tokenizer,
            pool,
            packing=recipe.packing,
            constants=constants,
            context_length=context_length,
            cache=cache,
        )
        settings = recipe.retriever
        return cls(
            packer,
            retriever,
            generator,
            decoding=decoding,
            candidates=settings.candidates,
            exclude=Exclusion(same_text=settings.exclude_same_text, near=settings.exclude_near),
            where=settings.where,
            planner=recipe.planner,
            name=recipe.name,
            reuse=None if kept is None else reusing(packer, kept, recipe.reuse),
        )

    @property
    def generator(self) -> Generator:
        """The generator.

        Raises:
            ConfigError: the aligner was made without a model.
        """
        if self._generator is None:
            raise ConfigError("this aligner has no generator: pass a model to Aligner.from_recipe")
        return self._generator

    @property
    def online(self) -> OnlinePlanner | ReusingPacker:
        """A planner for prompts that arrive one at a time, steering each towards earlier prefixes in `memory`.

        With reuse there is nothing to plan, and this is the reusing packer.
        """
        if self.reuse is not None:
            return self.reuse
        return OnlinePlanner(self.packer, self.planner, self._memory)

    def with_packing(self, packing: Packing, *, candidates: int | None = None) -> Self:
        """Return a copy with other prompt limits, and with as many candidates as they need unless given."""
        enough = max(self.candidates, packing.max_demonstrations)
        packer = self.packer.with_packing(packing)
        reuse = None if self.reuse is None else ReusingPacker(packer, self.reuse.store, self.reuse.real)
        return self._with(packer=packer, reuse=reuse, candidates=enough if candidates is None else candidates)

    def assuming_reuse(self, real: int) -> Self:
        """Return a copy that plans as if the keys and values of all demonstrations were kept, for simulations.

        Args:
            real: number of most similar demonstrations that are computed.
        """
        store = AssumedStore(manifest_for(self.packer))
        return self._with(reuse=ReusingPacker(self.packer, store, real), planner=PlannerSettings())

    def with_retriever(self, retriever: Retriever | None) -> Self:
        """Return a copy with another retriever over the same pool."""
        return self._with(retriever=retriever)

    def with_generator(self, generator: Generator | None) -> Self:
        """Return a copy with another generator and an empty prefix memory."""
        return self._with(generator=generator, memory=None)

    def _with(self, **changes: Any) -> Self:
        same: dict[str, Any] = {
            "packer": self.packer,
            "retriever": self.retriever,
            "generator": self._generator,
            "decoding": self.decoding,
            "candidates": self.candidates,
            "exclude": self.exclude,
            "where": self.where,
            "planner": self.planner,
            "memory": self._memory,
            "name": self.name,
            "reuse": self.reuse,
        }
        return type(self)(**(same | changes))

    @property
    def n_hits(self) -> int:
        """Hits per query that the packer and planner can use."""
        return max(self.candidates, Planner(self.packer, self.planner).n_candidates)

    def retrieve(
        self,
        queries: Sequence[str | Query],
        *,
        k: int | None = None,
        exclude: Exclusion | None = None,
        where: Mapping[str, Any] | None = None,
    ) -> list[list[Hit]]:
        """Retrieve `k` (default `n_hits`) candidates per query, best first, with the aligner's filters by default."""
        if self.retriever is None or self.candidates == 0:
            return [[] for _ in queries]
        exclude = self.exclude if exclude is None else exclude
        where = self.where if where is None else where or None
        return self.retriever.retrieve(queries, self.n_hits if k is None else k, exclude=exclude, where=where)

    def more(
        self,
        queries: Sequence[str | Query],
        *,
        exclude: Exclusion | None = None,
        where: Mapping[str, Any] | None = None,
    ) -> More:
        """A function that retrieves more candidates when packing skips some; see `Packing.refill`."""

        def retrieve(positions: Sequence[int], k: int) -> list[list[Hit]]:
            return self.retrieve([queries[position] for position in positions], k=k, exclude=exclude, where=where)

        return retrieve

    def pack(self, messages: str | Sequence[Message], *, decoding: Decoding | None = None) -> Prompt:
        """Retrieve demonstrations for one conversation or question, and pack its prompt.

        Without a planner this is the prompt that `pack_many` makes. With a planner it is steered towards prompts
        packed earlier, while `pack_many` plans its prompts together.

        Raises:
            BudgetError: the conversation does not fit.
            DataError: a message is malformed, or the roles do not alternate.
        """
        query = _query(messages)
        [hits] = self.retrieve([query])
        return self.online.pack(
            query.turns,
            hits,
            n_plain=self.candidates,
            more=self.more([query]),
            max_new_tokens=self._reserved(decoding or self.decoding),
        )

    def pack_many(self, queries: Sequence[Query], *, decoding: Decoding | None = None) -> list[Prompt | BudgetError]:
        """Retrieve, plan and pack a batch: for each query its prompt, or the error if it does not fit."""
        return self.plan(queries, decoding=decoding).prompts

    def plan(self, queries: Sequence[Query], *, decoding: Decoding | None = None) -> Plan:
        """Like `pack_many`, with the order in which to send the prompts and the relevance each has kept."""
        hits = self.retrieve(queries)
        if self.reuse is not None:
            packed = self.reuse.pack_many(
                [query.turns for query in queries],
                hits,
                n_plain=self.candidates,
                more=self.more(queries),
                max_new_tokens=self._reserved(decoding or self.decoding),
            )
            kept = [1.0 if isinstance(prompt, Prompt) else float("nan") for prompt in packed]
            return Plan(packed, list(range(len(packed))), kept)
        return Planner(self.packer, self.planner).plan(
            [query.turns for query in queries],
            hits,
            n_plain=self.candidates,
            more=self.more(queries),
            max_new_tokens=self._reserved(decoding or self.decoding),
        )

    def chat(self, messages: str | Sequence[Message], *, decoding: Decoding | None = None) -> Completion:
        """Answer one conversation, given as messages or as a single question.

        Raises:
            BudgetError: the conversation does not fit.
            DataError: a message is malformed, or the roles do not alternate.
            GenerationError: the generator failed.
        """
        prompt = self.pack(messages, decoding=decoding)
        [completion] = self.generator.generate([prompt], decoding or self.decoding)
        self.online.learn(prompt, completion.n_cached_tokens)
        return self._clean(completion)

    def stream(self, messages: str | Sequence[Message], *, decoding: Decoding | None = None) -> ClosableIterator[Delta]:
        """Answer one conversation, yielding the cleaned text as it is generated.

        The texts add up to the result of `chat`. The last part has the finish reason and the number of cached prompt
        tokens. Closing the iterator cancels the request.

        Raises:
            ConfigError: the decoding asks for more than one answer.
            BudgetError, DataError, GenerationError: as `chat`.
        """
        prompt = self.pack(messages, decoding=decoding)
        return self._cleaned_parts(prompt, self.generator.stream(prompt, decoding or self.decoding))

    def _cleaned_parts(self, prompt: Prompt, deltas: ClosableIterator[Delta]) -> ClosableIterator[Delta]:
        clean = CleanStream(self.packer.template)
        with closing(deltas):
            for delta in deltas:
                text = clean.push(delta.text)
                reason = delta.finish_reason
                # The answer is over, but the model continues; where tokens are counted as they come, stop here.
                if clean.ended and (reason is not None or delta.n_tokens):
                    reason = "stop"
                if reason is not None:
                    self.online.learn(prompt, delta.n_cached_tokens)
                    text += clean.finish(finished=reason != "length")
                if text or reason is not None:
                    yield replace(delta, text=text, finish_reason=reason)
                if reason is not None:
                    break

    def generate(
        self, queries: Sequence[Query | str | Sequence[Message]], *, decoding: Decoding | None = None
    ) -> list[Completion]:
        """Answer a batch, in input order.

        Raises:
            BudgetError, DataError, GenerationError: the first query that fails.
        """
        asked = [query if isinstance(query, Query) else _query(query, str(n)) for n, query in enumerate(queries)]
        found: dict[int, Completion] = {}
        for position, result in self.iter_generate(asked, decoding=decoding):
            if isinstance(result, Failure):
                raise result.error
            found[position] = result
        return [found[position] for position in range(len(asked))]

    def iter_generate(
        self, queries: Sequence[Query], *, decoding: Decoding | None = None
    ) -> Iterator[tuple[int, Completion | Failure]]:
        """Answer a batch, yielding (position, result) as each finishes; a query that does not fit yields a `Failure`.

        Raises:
            GenerationError: the generator failed as a whole.
        """
        size = _FEW if self.planner.strategy == "none" and not self.generator.shares_cpu else _MANY
        # For each query in packing order: its position if it has a prompt, else its failure.
        packed: SimpleQueue[int | tuple[int, Failure]] = SimpleQueue()

        def prompts_of(start: int) -> Iterator[Prompt]:
            plan = self.plan(queries[start : start + size], decoding=decoding)
            for place in plan.order:
                prompt = plan.prompts[place]
                if isinstance(prompt, BudgetError):
                    packed.put((start + place, Failure(queries[start + place], prompt)))
                else:
                    packed.put(start + place)
                    yield prompt

        # The generator reads prompts in a thread, so later batches are packed while it answers.
        prompts: Iterable[Prompt] = list(prompts_of(0))
        if len(queries) > size:
            prompts = chain(prompts, chain.from_iterable(map(prompts_of, range(size, len(queries), size))))
        places: list[int] = []  # of the prompts that the generator has read
        for number, completion in self.generator.iter_generate(prompts, decoding or self.decoding):
            while len(places) <= number:
                found = packed.get()
                if isinstance(found, int):
                    places.append(found)
                else:
                    yield found
            yield places[number], self._clean(completion)
        while not packed.empty():
            found = packed.get()
            if not isinstance(found, int):
                yield found

    def close(self) -> None:
        """Release the generator's resources."""
        if self._generator is not None:
            self._generator.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _reserved(self, decoding: Decoding) -> int:
        """Tokens to reserve for the completion; none without a generator."""
        return decoding.max_tokens if self._generator is not None else 0

    def _clean(self, completion: Completion) -> Completion:
        """The completion with its answers cleaned by the template."""
        return replace(completion, outputs=tuple(map(self._clean_output, completion.outputs)))

    def _clean_output(self, output: Output) -> Output:
        clean = CleanStream(self.packer.template)
        text = clean.push(output.text) + clean.finish(finished=output.finish_reason != "length")
        # An answer that is over has stopped, however long the model wrote on.
        return replace(output, text=text, finish_reason="stop" if clean.ended else output.finish_reason)


def _open_store(
    recipe: Recipe,
    packer: Packer,
    index: str | Path | None,
    model: str | Path | Generator | None,
    store: str | Path | None,
) -> Store | None:
    """The store that a recipe reuses; None if none is named and this machine runs no engine.

    Raises:
        ConfigError, DataError: an engine needs a store and there is none, or it was made for other prompts.
    """
    starts = isinstance(model, str | Path)
    named = store or (recipe.path(recipe.reuse.store) if recipe.reuse.store else None)
    if named is None and index is not None and isinstance(model, str | Path):
        named = default_store(index, recipe.name, model)
    if named is None:
        if starts:
            raise ConfigError(f"the recipe {recipe.name!r} reuses keys and values: name their folder (store)")
        return None
    return open_store(named, packer)


def _generator(
    model: str | Path | Generator | None, backend: str, context_length: int | None, options: Mapping[str, Any]
) -> Generator | None:
    if isinstance(model, str | Path):
        from ragalign.generation import make_generator

        return make_generator(backend, model=str(model), context_length=context_length, **options)
    if options:
        raise ConfigError(f"generator options ({', '.join(options)}) without a model: name one")
    return model


def _query(messages: str | Sequence[Message], id_: str = "0") -> Query:
    if isinstance(messages, str):
        return Query(id_, (Turn("user", messages),))
    turns = tuple(message if isinstance(message, Turn) else _turn(message, n) for n, message in enumerate(messages, 1))
    check_turns(turns)
    return Query(id_, turns)


def _turn(message: Mapping[str, str], number: int) -> Turn:
    role, content = message.get("role"), message.get("content")
    if role not in get_args(Role) or not isinstance(content, str):
        raise DataError(f"message {number}: expected 'role' (system, user or assistant) and 'content' (text)")
    return Turn(cast("Role", role), content)
