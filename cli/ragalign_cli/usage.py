"""Usage errors as one line that suggests the right arguments."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any, TypeAlias, cast

import typer

# Typer's usage error, which it exports only as the base of this class.
UsageError = cast("type[typer.BadParameter]", typer.BadParameter.__bases__[0])
_UsageError: TypeAlias = typer.BadParameter

# Option names from other tools and earlier versions, with their names here. The first one that the command has is
# suggested.
_SYNONYMS: dict[str, tuple[str, ...]] = {
    "--input": ("--queries", "--pool", "--answers"),
    "--prompts": ("--queries",),
    "--questions": ("--queries",),
    "--query": ("--queries",),
    "--query-file": ("--queries",),
    "--turns": ("--queries",),
    "--output": ("--out",),
    "--output-dir": ("--out",),
    "--output-file": ("--out",),
    "--out-dir": ("--out",),
    "--plot": ("--out",),
    "--limit": ("--first",),
    "--num-prompts": ("--first",),
    "--n-queries": ("--first",),
    "--queries": ("--first",),
    "--recipes": ("--recipe", "--also"),
    "--sizes": ("--size",),
    "--methods": ("--method",),
    "--completions": ("--answers",),
    "--pools": ("--pool",),
    "--judges": ("--judge",),
    "--metrics": ("--metric",),
    "--max-tokens": ("--max-new-tokens",),
    "--max-model-len": ("--context-length",),
    "--tensor-parallel-size": ("--tensor-parallel",),
    "--gpu-memory-utilization": ("--gpu-memory",),
    "--system-prompt": ("--system",),
    "--top-k": ("-k",),
    "--k": ("-k",),
    "--samples": ("--n",),
}


def asks_for_help(error: _UsageError) -> bool:
    """Whether a group of commands was called without arguments, which prints its help."""
    return type(error).__name__ == "NoArgsIsHelpError"


def explain(error: _UsageError, arguments: Sequence[str]) -> str:
    """Explain a usage error on one line, with a suggestion; Typer would print three lines."""
    command = error.ctx.command if error.ctx is not None else None
    path = error.ctx.command_path if error.ctx is not None else "ragalign"
    # Typer's converters name the exception that they raised.
    message = error.format_message().rstrip(".").replace(": Value error, ", ": ")
    hint = ""
    if (option := getattr(error, "option_name", None)) and getattr(error, "possibilities", "") != "":
        message = f"no such option: {option}"
        hint = _right_option(option, command)
    elif command is not None:
        hint = _repeated_option(arguments, command)
    return f"{message[:1].lower()}{message[1:]}{hint}; see `{path} --help`"


def _right_option(option: str, command: Any) -> str:
    """Suggest the option that was probably meant: a synonym, or one with a similar spelling."""
    if command is None:
        return ""
    names = [name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)]
    names = [name for name in names if name.startswith("-")]
    known = [name for name in _SYNONYMS.get(option, ()) if name in names][:1]
    if not known:
        # A misspelt synonym also leads to its option.
        alike = get_close_matches(option, [*names, *_SYNONYMS], n=5)
        meant = [new for name in alike for new in ((name,) if name in names else _SYNONYMS[name]) if new in names]
        known = meant[:1]
    return f"; did you mean {known[0]}?" if known else ""


def _repeated_option(arguments: Sequence[str], command: Any) -> str:
    """If several values follow an option that takes one value at a time, explain how to repeat it."""
    multiple = {
        name for parameter in command.params if getattr(parameter, "multiple", False) for name in parameter.opts
    }
    for position, argument in enumerate(arguments):
        values = []
        if argument in multiple:
            for value in arguments[position + 1 :]:
                if value.startswith("-"):
                    break
                values.append(value)
        if len(values) > 1:
            return f"; to give several, repeat the option: {' '.join(f'{argument} {value}' for value in values[:2])}"
    return ""
