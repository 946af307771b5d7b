"""The demo's first part: a real base model answers with and without retrieved demonstrations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ragalign_cli import console, prompts

if TYPE_CHECKING:
    from ragalign.types import Completion

MODEL = "packaged:gemma-3-270m"
MAX_NEW_TOKENS = 90
# Enough to show the style, in half a minute instead of a full one.
_DEMONSTRATION_TOKENS = 900


@dataclass(frozen=True, slots=True)
class SideBySide:
    """A question with the model's two answers."""

    question: str
    without: Completion
    retrieved: Completion
    shown: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON values: both answers with finish reasons, and the instructions of the demonstrations."""
        return {
            "question": self.question,
            "shown": list(self.shown),
            "without": {"response": self.without.text, "finish_reason": self.without.finish_reason},
            "retrieved": {"response": self.retrieved.text, "finish_reason": self.retrieved.finish_reason},
        }


def answer(questions: Sequence[str], folder: Path) -> list[SideBySide]:
    """Index the starter pool in `folder` and answer each question twice, with the same greedy decoding.

    Raises:
        MissingDependencyError: the packaged model, or a package to load it, is not installed.
        GenerationError: the model could not be loaded.
    """
    from dataclasses import replace

    from ragalign.aligner import Aligner
    from ragalign.encoders import Encoder
    from ragalign.generation import TransformersGenerator, decoding_preset
    from ragalign.indexes import Index
    from ragalign.models import locate_model
    from ragalign.pool import Pool
    from ragalign.recipes import Recipe, data_folder
    from ragalign.tokenization import Tokenizer

    located = locate_model(MODEL)
    encoder = Encoder.load()
    pool = Pool.load(data_folder() / "starter.jsonl")
    Index.build(pool, encoder).save(folder)
    index, tokenizer = Index.open(folder, encoder=encoder), Tokenizer.load(located)
    bare, ica = Recipe.load("zero-shot"), Recipe.load("ica")
    ica = replace(ica, packing=replace(ica.packing, max_tokens=_DEMONSTRATION_TOKENS))
    console.note(
        f"the base model {MODEL} answers {len(questions)} questions twice (half a minute on two CPU cores) ..."
    )
    # The same decoding for both sides; without the penalty, most answers without demonstrations repeat themselves.
    decoding = replace(decoding_preset("urial-output"), max_tokens=MAX_NEW_TOKENS)
    completions = []
    # Half precision is slower on most CPUs.
    with TransformersGenerator(located, dtype="float32", batch_size=len(questions)) as generator:
        for recipe in (bare, ica):
            aligner = Aligner.from_recipe(recipe, index=index, model=generator, tokenizer=tokenizer)
            completions.append(aligner.generate(questions, decoding=decoding))
    instructions = dict(zip(pool.ids, pool.instructions, strict=True))
    return [
        SideBySide(
            question,
            without,
            retrieved,
            tuple(instructions[demonstration.id] for demonstration in retrieved.prompt.demonstrations),
        )
        for question, without, retrieved in zip(questions, *completions, strict=True)
    ]


def show(answered: Sequence[SideBySide]) -> None:
    """Print each question with its demonstrations, both answers, and how they ended."""
    from rich.table import Table
    from rich.text import Text

    out = console.stdout()
    for answer in answered:
        console.heading(answer.question)
        n_tokens = answer.retrieved.prompt.n_demonstration_tokens
        out.print(f"[dim]shown: {len(answer.shown)} demonstrations, {n_tokens:,} tokens, the most similar first[/dim]")
        for instruction in reversed(answer.shown):  # the most similar is last in the prompt
            out.print(Text(f"  {console.shortened(instruction, 74)}", style="dim"))
        table = Table(expand=True, box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
        table.add_column("a system prompt only", ratio=1)
        table.add_column("retrieved demonstrations", ratio=1)
        sides = (answer.without, answer.retrieved)
        table.add_row(*(Text(prompts.visible(side.text.strip())) for side in sides))
        table.add_row(*(Text(_ending(side), style="dim") for side in sides))
        out.print(table)
    console.note(
        "A base model of 270 million parameters knows little, reasons badly, repeats itself and states wrong facts "
        "confidently, which demonstrations cannot fix. They change the form of its answers; three questions cannot "
        "show whether that helps."
    )


def _ending(completion: Completion) -> str:
    if completion.finish_reason == "stop":
        return f"stopped on its own after {completion.n_output_tokens} tokens"
    return f"did not stop: cut off after {completion.n_output_tokens} tokens"
