"""A conversation in the terminal: a typed line is a command or a message to the model."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from ragalign_cli import console, prompts

if TYPE_CHECKING:
    from ragalign.aligner import Aligner
    from ragalign.types import Turn

COMMANDS = {
    "/help": "show these commands",
    "/system TEXT": "set the system message; without TEXT, remove it",
    "/reset": "start a new conversation",
    "/show": "show the last prompt with its demonstrations",
    "/exit": "quit, as do an empty line and Ctrl-D",
}
_HELP = "send a line that starts with / (or use a leading space)"


class Conversation:
    """Answers lines from standard input until an empty line or its end.

    Args:
        aligner: the aligner that answers.
        system: the initial system message.
    """

    def __init__(self, aligner: Aligner, system: str | None = None) -> None:
        self._aligner = aligner
        self._system = system
        self._turns: list[Turn] = []
        self._last: list[Turn] = []

    def run(self) -> None:
        """Run until an empty line, /exit or the end of input."""
        from ragalign.errors import RagalignError

        while True:
            try:
                line = input("\n> " if sys.stdin.isatty() else "")
            except EOFError:
                return
            if not line.strip() or line.split()[0] == "/exit":
                return
            try:
                if line.startswith("/") and not line.startswith("//"):
                    self._obey(line.strip())
                else:
                    self._answer(line[1:].strip() if line.startswith(("//", " ")) else line.strip())
            except RagalignError as error:
                # The conversation continues without the turn that failed.
                console.error(str(error))

    def _obey(self, line: str) -> None:
        name, _, text = line.partition(" ")
        if name == "/help":
            console.print_table([("", "left"), ("", "left")], [*COMMANDS.items(), ("//TEXT", _HELP)])
        elif name == "/system":
            self._system = text.strip() or None
            console.note("system message set" if self._system else "no system message")
        elif name == "/reset":
            self._turns, self._last = [], []
            console.note("started a new conversation")
        elif name == "/show":
            self._show()
        else:
            names = ", ".join(command.partition(" ")[0] for command in COMMANDS)
            console.error(f"unknown command {name}: choose one of {names}; to send the line to the model, type /{line}")

    def _show(self) -> None:
        if not self._last:
            console.note("no question asked yet")
            return
        prompt = self._aligner.pack(self._last)
        prompts.show_prompt(prompt)
        prompts.show_budget(prompt, self._aligner.packer.context_length)

    def _answer(self, text: str) -> None:
        from ragalign.types import Turn

        spoken = [*self._turns, Turn("user", text)]
        asked = [Turn("system", self._system), *spoken] if self._system else spoken
        self._last = asked
        self._turns = [*spoken, Turn("assistant", say(self._aligner, asked))]


def say(aligner: Aligner, turns: list[Turn]) -> str:
    """Print an answer as it is generated, and return it."""
    pieces = []
    for delta in aligner.stream(turns):
        pieces.append(delta.text)
        sys.stdout.write(delta.text)
        sys.stdout.flush()
    sys.stdout.write("\n")
    return "".join(pieces)
