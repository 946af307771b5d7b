"""The `ragalign` command: registers one module per command and turns errors into one line.

Command modules import only Typer and `ragalign_cli.console` at module level; the library is imported inside
the command functions, so that `ragalign --help` stays quick.
"""

from __future__ import annotations

import os
import sys

import typer

from ragalign.errors import ConfigError, RagalignError
from ragalign_cli import console

app = typer.Typer(
    name="ragalign",
    help="Make base language models answer like assistants: retrieve demonstrations, pack them, decode.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Entry point of the console script."""
    try:
        app()
    except ConfigError as error:
        console.error(str(error))
        sys.exit(console.EXIT_USAGE)
    except RagalignError as error:
        console.error(str(error))
        sys.exit(console.EXIT_FAILURE)
    except BrokenPipeError:
        # The reader of a pipe went away (`ragalign ... | head`); keep Python from complaining at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(console.EXIT_FAILURE)
    except KeyboardInterrupt:
        console.note("interrupted")
        sys.exit(console.EXIT_INTERRUPTED)
    except OSError as error:
        console.error(f"{error.strerror or error}" + (f": {error.filename}" if error.filename else ""))
        sys.exit(console.EXIT_FAILURE)
