"""Options shared by several commands, so that they have one name and meaning everywhere."""

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
CLUSTER = "Cluster"
EVALUATION = "Evaluation"
OUTPUT = "Output"

# Typer reads Optional[...] at run time.
Index = Annotated[
    Optional[Path],
    typer.Argument(metavar="[DIR]", help="The index folder; only recipes that retrieve need it.", show_default=False),
]
RecipeName = Annotated[
    str, typer.Option("--recipe", metavar="NAME", help="A recipe's name or TOML file.", rich_help_panel=METHOD)
]
Queries = Annotated[
    Path,
    typer.Option(
        metavar="FILE", help="A question file, or - for standard input.", show_default=False, rich_help_panel=QUESTIONS
    ),
]
OptionalQueries = Annotated[
    Optional[Path],
    typer.Option(
        metavar="FILE", help="A question file, or - for standard input.", show_default=False, rich_help_panel=QUESTIONS
    ),
]
PromptSet = Annotated[
    str,
    typer.Option(
        metavar="NAME|FILE",
        help="A question file, or alpaca-eval, mt-bench, just-eval, lima-test, ifeval or ifbench.",
        show_default=False,
        rich_help_panel=QUESTIONS,
    ),
]
Question = Annotated[
    Optional[str],
    typer.Option(
        metavar="TEXT",
        help="Ask this question, without an index.",
        show_default=False,
        rich_help_panel=QUESTIONS,
    ),
]
First = Annotated[
    Optional[int],
    typer.Option(
        metavar="N", min=1, help="Use only the first N questions.", show_default=False, rich_help_panel=QUESTIONS
    ),
]
System = Annotated[
    Optional[str],
    typer.Option(
        metavar="TEXT",
        help="System message for conversations that have none.",
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
        help="auto, vllm, transformers, or the URL of an OpenAI-compatible server.",
        rich_help_panel=MODEL,
    ),
]
Tokenizer = Annotated[
    Optional[str],
    typer.Option(help="Tokenizer to use if the model has none of its own.", show_default=False, rich_help_panel=MODEL),
]
ContextLength = Annotated[
    Optional[int],
    typer.Option(
        metavar="N",
        min=1,
        help="Maximum tokens of prompt and completion together; by default the model's.",
        show_default=False,
        rich_help_panel=MODEL,
    ),
]
DType = Annotated[
    Optional[str],
    typer.Option(
        "--dtype",
        help="Data type, such as bfloat16; by default the model's.",
        show_default=False,
        rich_help_panel=MODEL,
    ),
]
TensorParallel = Annotated[
    Optional[int],
    typer.Option(
        metavar="N",
        min=1,
        help="Number of GPUs to split the model across; by default 1.",
        show_default=False,
        rich_help_panel=MODEL,
    ),
]
GpuMemory = Annotated[
    Optional[float],
    typer.Option(
        metavar="SHARE",
        help="Share of GPU memory for weights and cache, 0 to 1; by default 0.9.",
        show_default=False,
        rich_help_panel=MODEL,
    ),
]

Ray = Annotated[
    Optional[str],
    typer.Option(
        "--ray",
        metavar="ADDRESS",
        help="Work on a Ray cluster: local (started here), auto (the one that is running), or its head's HOST:PORT.",
        show_default=False,
        rich_help_panel=CLUSTER,
    ),
]
Workers = Annotated[
    Optional[int],
    typer.Option(
        metavar="N",
        min=1,
        help="With --ray: how many models work side by side; by default one per GPU, or one without GPUs.",
        show_default=False,
        rich_help_panel=CLUSTER,
    ),
]

MaxNewTokens = Annotated[
    Optional[int],
    typer.Option(metavar="N", help="Maximum tokens per answer.", show_default=False, rich_help_panel=DECODING),
]
Temperature = Annotated[
    Optional[float],
    typer.Option(help="Sampling temperature; 0 is greedy.", show_default=False, rich_help_panel=DECODING),
]
TopP = Annotated[
    Optional[float], typer.Option(help="Nucleus sampling threshold.", show_default=False, rich_help_panel=DECODING)
]
Seed = Annotated[
    Optional[int],
    typer.Option(metavar="N", help="Seed for reproducible answers.", show_default=False, rich_help_panel=DECODING),
]
Samples = Annotated[
    Optional[int],
    typer.Option("--n", metavar="N", help="Answers per question.", show_default=False, rich_help_panel=DECODING),
]
Stop = Annotated[
    Optional[list[str]],
    typer.Option(
        metavar="TEXT",
        help="Additional stop string; \\n and \\t are unescaped. Repeatable.",
        show_default=False,
        rich_help_panel=DECODING,
    ),
]

OutFile = Annotated[
    Path,
    typer.Option(
        "--out",
        metavar="FILE",
        help="JSON Lines file for the answers; an interrupted run is resumed from it.",
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
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print only results, warnings and errors.")]


def decoding(recipe: Decoding, *, stop: list[str] | None = None, **given: Any) -> Decoding:
    """A recipe's decoding with the values from the command line; None keeps the recipe's value."""
    from ragalign.generation import validate

    changes = {name: value for name, value in given.items() if value is not None}
    if stop:
        changes["stop"] = (*recipe.stop, *map(_unescaped, stop))
    changed = replace(recipe, **changes)
    validate(changed)
    return changed


def first_of(queries: list[Query], first: int | None) -> list[Query]:
    """The first queries; all if `first` is None."""
    return queries if first is None else queries[:first]


def with_system(queries: list[Query], system: str | None) -> list[Query]:
    """The queries, with a system message added to those that have none."""
    from ragalign.types import Turn

    if not system:
        return queries
    return [
        query if query.turns[0].role == "system" else replace(query, turns=(Turn("system", system), *query.turns))
        for query in queries
    ]


def one_question(text: str | None, question: str | None) -> str | None:
    """The question from the argument after the index, or from --question.

    Raises:
        ConfigError: both are given, or the question is empty.
    """
    from ragalign.errors import ConfigError

    if text is not None and question is not None:
        raise ConfigError("give the question once: after DIR, or with --question")
    asked = text if question is None else question
    if asked is not None and not asked.strip():
        raise ConfigError("the question is empty")
    return asked


def engine(dtype: str | None, tensor_parallel: int | None, gpu_memory: float | None) -> dict[str, Any]:
    """The given generator options; the others are left out, so that backends can reject options they lack."""
    given = {
        "dtype": dtype,
        "tensor_parallel_size": tensor_parallel,
        "gpu_memory_utilization": gpu_memory,
    }
    return {name: value for name, value in given.items() if value is not None}


def check_index(index: Path | None, recipe: Recipe, command: str) -> None:
    """Reject a missing index if the recipe retrieves, and a path that is not a folder.

    Raises:
        ConfigError: the index is missing or not a folder. Its content is checked when it is opened.
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
    why = "it is a file" if index.exists() else "no such folder"
    advice = f"; build one with `ragalign index --pool FILE --out {index}`"
    if not retrieves:
        advice = f"; the recipe {recipe.name!r} needs no index"
        advice += f"; to ask a question, use --question {str(index)!r}" if command != "generate" else ""
    raise ConfigError(f"{str(index)!r} is not an index: {why}{advice}")


def check_model(model: str, backend: str, context_length: int | None, engine_options: dict[str, Any]) -> None:
    """Check a model and its options before it is loaded."""
    from ragalign.generation import check_generator

    check_generator(backend, model=model, context_length=context_length, **engine_options)


def check_gives_probabilities(backend: str) -> None:
    """Reject a server, which gives no probabilities of given tokens, before anything is read.

    Raises:
        ConfigError: the backend is a server.
    """
    from ragalign.errors import ConfigError

    if backend == "openai" or backend.startswith(("http://", "https://")):
        raise ConfigError(f"--backend {backend} gives no probabilities of given tokens; use vllm or transformers")


def check_cluster(ray: str | None, workers: int | None, backend: str = "auto") -> None:
    """Reject options of a cluster without one, and a cluster for an endpoint.

    Raises:
        ConfigError: --workers without --ray, or --ray with an endpoint.
        MissingDependencyError: Ray is not installed.
    """
    from ragalign._optional import is_installed, require
    from ragalign.errors import ConfigError

    if ray is None:
        if workers is not None:
            raise ConfigError("--workers counts the models on a Ray cluster: give --ray local, auto or an address")
        return
    if backend.startswith(("http://", "https://")):
        raise ConfigError("an endpoint needs no Ray cluster: leave out --ray, or --backend")
    if not is_installed("ray"):
        require("ray", "--ray")


def _unescaped(text: str) -> str:
    """Replace the escapes ``\\n``, ``\\t`` and ``\\\\``, which shells pass on unchanged."""
    for written, meant in (("\\\\", "\0"), ("\\n", "\n"), ("\\t", "\t"), ("\0", "\\")):
        text = text.replace(written, meant)
    return text
