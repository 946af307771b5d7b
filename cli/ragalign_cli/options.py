"""Options that several commands share, so that one thing has one name and one meaning everywhere."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from ragalign_cli.paths import out_file, out_folder

if TYPE_CHECKING:
    from ragalign.recipes import Recipe
    from ragalign.types import Decoding, Query

# Panels of help.
QUESTIONS = "Questions"
METHOD = "Method"
MODEL = "Model"
DECODING = "Decoding"
EVALUATION = "Evaluation"
OUTPUT = "Output"

# Typer reads Optional[...] at run time.
Index = Annotated[
    Optional[Path],
    typer.Argument(metavar="[DIR]", help="The index; not needed by recipes that retrieve nothing.", show_default=False),
]
RecipeName = Annotated[
    str, typer.Option("--recipe", metavar="NAME", help="A recipe's name, or a TOML file.", rich_help_panel=METHOD)
]
Queries = Annotated[
    Path,
    typer.Option(
        metavar="FILE", help="A file of questions; - is standard input.", show_default=False, rich_help_panel=QUESTIONS
    ),
]
OptionalQueries = Annotated[
    Optional[Path],
    typer.Option(
        metavar="FILE", help="A file of questions; - is standard input.", show_default=False, rich_help_panel=QUESTIONS
    ),
]
PromptSet = Annotated[
    str,
    typer.Option(
        metavar="NAME|FILE",
        help="A file of questions, or alpaca-eval, mt-bench, just-eval, lima-test, ifeval or ifbench.",
        show_default=False,
        rich_help_panel=QUESTIONS,
    ),
]
Question = Annotated[
    Optional[str],
    typer.Option(
        metavar="TEXT",
        help="Ask only this question; for recipes without an index.",
        show_default=False,
        rich_help_panel=QUESTIONS,
    ),
]
First = Annotated[
    Optional[int],
    typer.Option(
        metavar="N", min=1, help="Take only the first N questions.", show_default=False, rich_help_panel=QUESTIONS
    ),
]
System = Annotated[
    Optional[str],
    typer.Option(
        metavar="TEXT",
        help="System message before every conversation that has none.",
        show_default=False,
        rich_help_panel=QUESTIONS,
    ),
]

Model = Annotated[
    str,
    typer.Option(
        help="Folder, GGUF file or hub id of a base model, or packaged:gemma-3-270m.",
        show_default=False,
        rich_help_panel=MODEL,
    ),
]
Backend = Annotated[
    str,
    typer.Option(
        help="What runs the model: auto, vllm, transformers, or the URL of an OpenAI-compatible server.",
        rich_help_panel=MODEL,
    ),
]
Tokenizer = Annotated[
    Optional[str],
    typer.Option(
        help="The model's tokenizer, where it is not with the model.", show_default=False, rich_help_panel=MODEL
    ),
]
ContextLength = Annotated[
    Optional[int],
    typer.Option(
        metavar="N",
        min=1,
        help="Tokens that prompt and completion share; the model's by default.",
        show_default=False,
        rich_help_panel=MODEL,
    ),
]
DType = Annotated[
    Optional[str],
    typer.Option(
        "--dtype",
        help="Of weights and activations, such as bfloat16; the model's by default.",
        show_default=False,
        rich_help_panel=MODEL,
    ),
]
TensorParallel = Annotated[
    Optional[int],
    typer.Option(
        metavar="N", min=1, help="GPUs that share the model; 1 by default.", show_default=False, rich_help_panel=MODEL
    ),
]
GpuMemory = Annotated[
    Optional[float],
    typer.Option(
        metavar="SHARE",
        help="Share of a GPU's memory for weights and cache, 0 to 1; 0.9 by default.",
        show_default=False,
        rich_help_panel=MODEL,
    ),
]

MaxNewTokens = Annotated[
    Optional[int],
    typer.Option(metavar="N", help="Most tokens of an answer.", show_default=False, rich_help_panel=DECODING),
]
Temperature = Annotated[
    Optional[float], typer.Option(help="0 is greedy.", show_default=False, rich_help_panel=DECODING)
]
TopP = Annotated[Optional[float], typer.Option(help="Nucleus sampling.", show_default=False, rich_help_panel=DECODING)]
Seed = Annotated[
    Optional[int],
    typer.Option(metavar="N", help="For answers that can be repeated.", show_default=False, rich_help_panel=DECODING),
]
Samples = Annotated[
    Optional[int],
    typer.Option("--n", metavar="N", help="Answers per question.", show_default=False, rich_help_panel=DECODING),
]
Stop = Annotated[
    Optional[list[str]],
    typer.Option(
        metavar="TEXT",
        help="End an answer at this text, too; escapes such as \\n count. Repeatable.",
        show_default=False,
        rich_help_panel=DECODING,
    ),
]

OutFile = Annotated[
    Path,
    typer.Option(
        "--out",
        metavar="FILE",
        help="JSON Lines; appended to, and resumed by id.",
        show_default=False,
        callback=out_file,
        rich_help_panel=OUTPUT,
    ),
]
OutFolder = Annotated[
    Path,
    typer.Option(
        "--out",
        metavar="DIR",
        help="Folder for the results; an interrupted run is resumed from it.",
        show_default=False,
        callback=out_folder,
        rich_help_panel=OUTPUT,
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but results, warnings and errors.")]


def decoding(recipe: Decoding, *, stop: list[str] | None = None, **given: Any) -> Decoding:
    """A recipe's decoding with what the command line gives; None leaves a value as it is."""
    from ragalign.generation import validate

    changes = {name: value for name, value in given.items() if value is not None}
    if stop:
        changes["stop"] = (*recipe.stop, *map(_unescaped, stop))
    changed = replace(recipe, **changes)
    validate(changed)
    return changed


def first_of(queries: list[Query], first: int | None) -> list[Query]:
    """The first queries; all without a number."""
    return queries if first is None else queries[:first]


def with_system(queries: list[Query], system: str | None) -> list[Query]:
    """The queries with a system message before those that have none."""
    from ragalign.types import Turn

    if not system:
        return queries
    return [
        query if query.turns[0].role == "system" else replace(query, turns=(Turn("system", system), *query.turns))
        for query in queries
    ]


def one_question(text: str | None, question: str | None) -> str | None:
    """The question, given as an argument after the index or as --question.

    Raises:
        ConfigError: it is given twice, or empty.
    """
    from ragalign.errors import ConfigError

    if text is not None and question is not None:
        raise ConfigError("give the question once: after DIR, or with --question")
    asked = text if question is None else question
    if asked is not None and not asked.strip():
        raise ConfigError("the question is empty")
    return asked


def engine(dtype: str | None, tensor_parallel: int | None, gpu_memory: float | None) -> dict[str, Any]:
    """The generator's options; what is not given is left to it, so that each backend refuses what it does not have."""
    given = {
        "dtype": dtype,
        "tensor_parallel_size": tensor_parallel,
        "gpu_memory_utilization": gpu_memory,
    }
    return {name: value for name, value in given.items() if value is not None}


def check_index(index: Path | None, recipe: Recipe, command: str) -> None:
    """Refuse a missing index where the recipe retrieves, and anything that is no index where it does not.

    Raises:
        ConfigError: as said. What is wrong with the index of a recipe that retrieves shows when it is opened.
    """
    from ragalign.errors import ConfigError

    retrieves = recipe.retriever.name != "none"
    if index is None:
        if retrieves:
            raise ConfigError(
                f"the recipe {recipe.name!r} retrieves demonstrations: give the folder of an index, as in "
                f"`ragalign {command} indexes/mine`, or a recipe that retrieves nothing, such as zero-shot or urial"
            )
        return
    if index.is_dir():
        return
    why = "it is a file" if index.exists() else "there is no such folder"
    advice = f"; build one with `ragalign index --pool FILE --out {index}`"
    if not retrieves:
        advice = f"; the recipe {recipe.name!r} needs none"
        advice += f", and --question asks a single question: --question {str(index)!r}" if command != "generate" else ""
    raise ConfigError(f"{str(index)!r} is not an index: {why}{advice}")


def check_model(model: str, backend: str, context_length: int | None, engine_options: dict[str, Any]) -> None:
    """Check all that can be wrong with a model before it is loaded."""
    from ragalign.generation import check_generator

    check_generator(backend, model=model, context_length=context_length, **engine_options)


def _unescaped(text: str) -> str:
    """``\\n``, ``\\t`` and ``\\\\`` as shells pass them on."""
    for written, meant in (("\\\\", "\0"), ("\\n", "\n"), ("\\t", "\t"), ("\0", "\\")):
        text = text.replace(written, meant)
    return text
