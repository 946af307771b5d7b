"""The `ragalign` command: registers one module per command and turns errors into one line.

Command modules import only Typer and `ragalign_cli.console` at module level; the library is imported inside
the command functions, so that `ragalign --help` stays quick.
"""

from __future__ import annotations

import sys
import warnings
from typing import Annotated, cast

import typer

from ragalign.errors import ConfigError, RagalignError
from ragalign_cli import (
    analyze,
    bench,
    chat,
    compare_ift,
    console,
    demo,
    generate,
    index,
    judge,
    judge_run,
    pack,
    plan,
    pool,
    render,
    report,
    search,
    select,
    serve,
)
from ragalign_cli.arguments import expand

# What Typer raises for any wrong argument: a class that it exports only as the base of this one.
_UsageError = cast("type[typer.BadParameter]", typer.BadParameter.__bases__[0])

app = typer.Typer(
    name="ragalign",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


app.add_typer(index.app, name="index")
app.command("pack")(pack.pack)
app.command("plan")(plan.plan)
app.add_typer(pool.app, name="pool")
app.command("render")(render.render)
app.command("search")(search.search)
judge.app.command("run")(judge_run.run)
app.add_typer(judge.app, name="judge")
app.command("report")(report.report)
app.add_typer(analyze.app, name="analyze")
app.command("compare-ift")(compare_ift.compare_ift)
app.command("bench")(bench.bench)
app.command("select")(select.select)
app.command("generate")(generate.generate)
app.command("chat")(chat.chat)
app.command("serve")(serve.serve)
app.command("demo")(demo.demo)


@app.callback(invoke_without_command=True)
def top(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Make base language models answer like assistants: retrieve demonstrations, pack them, decode."""
    if version:
        from importlib.metadata import version as version_of

        typer.echo(f"ragalign {version_of('ragalign')}")
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(console.EXIT_USAGE)


def main() -> None:
    """Entry point of the console script; every expected error becomes one line and an exit code."""
    warnings.showwarning = lambda message, *_: console.warning(str(message))
    try:
        code = app(expand(sys.argv[1:]), prog_name="ragalign", standalone_mode=False)
    except _UsageError as error:
        console.error(_usage(error))
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


def _usage(error: typer.BadParameter) -> str:
    """What is wrong with the arguments, on one line: Typer would print three."""
    message = error.format_message().rstrip(".")
    command = error.ctx.command_path if error.ctx is not None else "ragalign"
    return f"{message[:1].lower()}{message[1:]}; see `{command} --help`"
