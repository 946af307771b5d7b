"""Prompts with one demonstration or none, in the form of a recipe, and what a model makes of the reference."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from ragalign.errors import BudgetError, DataError
from ragalign.generation.distributions import SupportsDistributions
from ragalign.measures.likelihood import continuation
from ragalign.packing import Packer, Packing
from ragalign.pool import Pool
from ragalign.recipes import Recipe
from ragalign.tokenization import Tokenizer
from ragalign.types import Demonstration, Hit, Prompt
from ragalign.utility.questions import AnsweredQuestion

_NO_LIMIT = 10**9


@dataclass(frozen=True, slots=True)
class Scored:
    """The log-likelihood of a reference, in nats, summed over its tokens."""

    logprob: float
    n_tokens: int


class PromptForm:
    """Packs a question with some demonstrations of a pool.

    Args:
        recipe: its template and constant demonstrations; a demonstration longer than its limit is never shown.
        pool: the demonstrations.
        tokenizer: the model's.
        context_length: maximum tokens of prompt and reference together.
        max_reference_tokens: only the first tokens of a reference count; None for all.

    Raises:
        ConfigError, DataError: the recipe is invalid.
    """

    def __init__(
        self,
        recipe: Recipe,
        pool: Pool,
        tokenizer: Tokenizer,
        *,
        context_length: int | None = None,
        max_reference_tokens: int | None = None,
    ) -> None:
        template, constants = recipe.make_template()
        packing = Packing(
            max_demonstrations=_NO_LIMIT,
            max_tokens=_NO_LIMIT,
            max_demonstration_tokens=_NO_LIMIT,
            refill=False,
            order=recipe.packing.order,
        )
        self.recipe = recipe
        self._packer = Packer(
            template, tokenizer, pool, packing=packing, constants=constants, context_length=context_length
        )
        self._limit = recipe.packing.max_demonstration_tokens
        self._max_reference_tokens = max_reference_tokens

    def accepts(self, demonstration: Demonstration) -> bool:
        """Whether the recipe shows demonstrations of this length."""
        text = self._packer.template.render_demonstration(demonstration)
        return len(self._packer.tokenizer.encode(text)) <= self._limit

    def prompt(self, question: AnsweredQuestion, demonstrations: Sequence[str] = ()) -> Prompt:
        """The prompt of a question with demonstrations by id, the most useful first.

        Raises:
            BudgetError: it does not fit.
        """
        hits = [Hit(id_, -float(rank), rank) for rank, id_ in enumerate(demonstrations, 1)]
        prompt = self._packer.pack(question.query.turns, hits)
        if len(prompt.dropped):
            raise BudgetError(f"the demonstrations of question {question.id!r} do not fit into the model's context")
        return prompt

    def reference(self, prompt: Prompt, question: AnsweredQuestion) -> list[int]:
        """The ids of the reference that are scored after a prompt.

        Raises:
            DataError: the reference is empty.
        """
        ids = continuation(prompt, question.reference, self._packer.template, self._packer.tokenizer)
        return ids[: self._max_reference_tokens]


Asked = tuple[AnsweredQuestion, Sequence[str]]


def score_references(
    form: PromptForm, generator: SupportsDistributions, asked: Sequence[Asked]
) -> Iterator[tuple[int, Scored | BudgetError | DataError]]:
    """The log-likelihood of each question's reference after its demonstrations, in any order.

    Raises:
        GenerationError: the engine failed.
    """
    context = generator.context_length
    places, sequences, starts = [], [], []
    for place, (question, demonstrations) in enumerate(asked):
        try:
            prompt = form.prompt(question, demonstrations)
            ids = [*prompt.token_ids, *form.reference(prompt, question)]
        except (BudgetError, DataError) as error:
            yield place, error
            continue
        if context is not None and len(ids) >= context:
            yield place, BudgetError(f"prompt and reference take {len(ids):,} of {context - 1:,} tokens")
            continue
        places.append(place)
        sequences.append(ids)
        starts.append(len(prompt.ids))
    if sequences:
        for number, logprobs in generator.token_logprobs(sequences, starts):
            yield places[number], Scored(float(logprobs.astype("float64").sum()), len(logprobs))


def without_retrieval(recipe: Recipe) -> Recipe:
    """The recipe's form, without its retriever."""
    return replace(recipe, retriever=replace(recipe.retriever, name="none", options={}))
