"""The aligner: retrieve, pack, generate."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Self

from ragalign.aligner.batches import FEW, MANY, Failure, iter_answers
from ragalign.aligner.building import parts_of
from ragalign.aligner.cleaning import cleaned, cleaned_parts
from ragalign.aligner.messages import Message, to_query
from ragalign.errors import BudgetError, ConfigError
from ragalign.generator import ClosableIterator, Generator
from ragalign.indexes import DiskIndex, Index
from ragalign.packing import More, Packer, Packing
from ragalign.planning import OnlinePlanner, Plan, Planner, PlannerSettings, PrefixMemory
from ragalign.recipes import Recipe
from ragalign.retrieval import Exclusion, SupportsRetrieve
from ragalign.reuse.layout import ReusingPacker, manifest_for
from ragalign.reuse.store import AssumedStore
from ragalign.tokenization import Tokenizer
from ragalign.types import Completion, Decoding, Delta, Hit, Prompt, Query


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
        retriever: SupportsRetrieve | None = None,
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
        index: str | Path | Index | DiskIndex | None = None,
        model: str | Path | Generator | None = None,
        backend: str = "auto",
        tokenizer: str | Path | Tokenizer | None = None,
        context_length: int | None = None,
        store: str | Path | None = None,
        ray: str | None = None,
        workers: int | None = None,
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
            ray: runs the model on a Ray cluster: ``local``, ``auto`` or an address; see
                `ragalign.executors.RayGenerator`. Retrieval and planning stay here.
            workers: number of engines on the cluster; by default as many as it has GPUs for.
            generator_options: passed to the backend's class, such as ``dtype="bfloat16"``.

        Raises:
            ConfigError: the recipe is invalid, or an index, a model or a tokenizer is missing.
            GenerationError: the engine did not start.
        """
        parts = parts_of(
            recipe if isinstance(recipe, Recipe) else Recipe.load(recipe),
            index=index,
            model=model,
            backend=backend,
            tokenizer=tokenizer,
            context_length=context_length,
            store=store,
            ray=ray,
            workers=workers,
            generator_options=generator_options,
        )
        return cls(**parts)

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

    def with_retriever(self, retriever: SupportsRetrieve | None) -> Self:
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
        query = to_query(messages)
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
        deltas = self.generator.stream(prompt, decoding or self.decoding)
        return cleaned_parts(deltas, self.packer.template, partial(self.online.learn, prompt))

    def generate(
        self, queries: Sequence[Query | str | Sequence[Message]], *, decoding: Decoding | None = None
    ) -> list[Completion]:
        """Answer a batch, in input order.

        Raises:
            BudgetError, DataError, GenerationError: the first query that fails.
        """
        asked = [query if isinstance(query, Query) else to_query(query, str(n)) for n, query in enumerate(queries)]
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
        size = FEW if self.planner.strategy == "none" and not self.generator.shares_cpu else MANY
        decoding = decoding or self.decoding
        plan = partial(self.plan, decoding=decoding)
        for position, result in iter_answers(queries, plan, self.generator, decoding, batch_size=size):
            yield position, result if isinstance(result, Failure) else self._clean(result)

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
        return replace(
            completion, outputs=tuple(cleaned(output, self.packer.template) for output in completion.outputs)
        )
