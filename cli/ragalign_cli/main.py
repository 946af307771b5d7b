"""The `ragalign` command: import the command that is called, and turn errors into one line and an exit code.

Only the called command is imported, and the library only inside its function, so that `ragalign --help` stays
fast.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from contextvars import copy_context
from pathlib import Path
from typing import Annotated, Optional

import typer

from ragalign.errors import ConfigError, RagalignError
from ragalign_cli import console
from ragalign_cli.help import Entry, LazyGroup
from ragalign_cli.usage import UsageError, asks_for_help, explain

PANELS = {
    "Build": (
        Entry("pool", "ragalign_cli.pool:app", "Inspect, convert, deduplicate, score and refine pools."),
        Entry("index", "ragalign_cli.index:app", "Build, update and check an index."),
        Entry("kv", "ragalign_cli.kv:app", "Store demonstrations' keys and values for reuse."),
    ),
    "Inspect": (
        Entry("search", "ragalign_cli.search:search", "Show the demonstrations found for a question."),
        Entry("pack", "ragalign_cli.pack:pack", "Show the prompt packed for a question."),
        Entry("render", "ragalign_cli.render:render", "Render conversations with a prompt file."),
        Entry("doctor", "ragalign_cli.doctor:doctor", "Check a model, a recipe and an index."),
        Entry("plan", "ragalign_cli.plan:plan", "Show what shared prefixes would save."),
    ),
    "Answer": (
        Entry("generate", "ragalign_cli.generate:generate", "Answer a file of questions."),
        Entry("chat", "ragalign_cli.chat:chat", "Chat with a base model in the terminal."),
    ),
    "Serve": (Entry("serve", "ragalign_cli.serve:serve", "Serve an OpenAI-compatible chat API."),),
    "Evaluate": (
        Entry("demo", "ragalign_cli.demo:demo", "See what retrieval does, in two minutes."),
        Entry("bench", "ragalign_cli.bench:bench", "Compare recipes for quality, cost and speed."),
        Entry("judge", "ragalign_cli.judge:app", "Judge answers, and average recorded judgements."),
        Entry("report", "ragalign_cli.report:report", "Turn judgements into figures and one HTML page."),
    ),
    "Study": (
        Entry("select", "ragalign_cli.select:select", "Search for the best constant demonstrations."),
        Entry("utility", "ragalign_cli.utility:app", "Measure how much demonstrations help, and train on it."),
        Entry("analyze", "ragalign_cli.analyze:app", "Measure what alignment changes in a model."),
        Entry("compare-ift", "ragalign_cli.compare_ift:compare_ift", "Compare demonstrations with fine-tuning."),
    ),
}


class _Commands(LazyGroup):
    panels = PANELS


app = typer.Typer(
    name="ragalign",
    cls=_Commands,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True, epilog="New here? `ragalign demo` needs no GPU and no model of yours.")
def top(
    context: typer.Context,
    cache_dir: Annotated[
        Optional[Path],
        typer.Option(
            envvar="RAGALIGN_CACHE", help="Cache folder for converted models and embeddings.", show_default=False
        ),
    ] = None,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Make base language models answer like assistants, without fine-tuning."""
    if cache_dir is not None:
        os.environ["RAGALIGN_CACHE"] = str(cache_dir)
    if version:
        from importlib.metadata import version as version_of

        typer.echo(f"ragalign {version_of('ragalign')}")
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(console.EXIT_USAGE)


_LOG_WARNINGS = console.LogWarnings()
_MODEL_NOTES = console.LogNotes()


def main() -> None:
    """Entry point of the console script; every expected error becomes one line and an exit code."""
    warnings.showwarning = lambda message, *_: console.warning(str(message))
    logging.getLogger("ragalign").addHandler(_LOG_WARNINGS)
    logging.getLogger("ragalign.models").addHandler(_MODEL_NOTES)
    logging.getLogger("ragalign.models").setLevel(logging.INFO)
    arguments = sys.argv[1:]
    try:
        # In its own context, so that settings such as --quiet end with the run.
        code = copy_context().run(app, arguments, prog_name="ragalign", standalone_mode=False)
    except UsageError as error:
        if asks_for_help(error):
            typer.echo(error.format_message(), err=True)
        else:
            console.error(explain(error, arguments))
        sys.exit(console.EXIT_USAGE)
    except ConfigError as error:
        console.error(str(error))
        sys.exit(console.EXIT_USAGE)
    except RagalignError as error:
        console.error(str(error))
        sys.exit(console.EXIT_FAILURE)
    except OSError as error:
        console.error(f"{error.strerror or error}" + (f": {error.filename}" if error.filename else ""))
        sys.exit(console.EXIT_FAILURE)
    sys.exit(code or 0)
