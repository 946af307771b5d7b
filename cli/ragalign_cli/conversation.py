"""A conversation in the terminal: what is typed is a command, or goes to the model."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from ragalign_cli import console, prompts

if TYPE_CHECKING:
    from ragalign.aligner import Aligner
    from ragalign.types import Decoding, Turn

COMMANDS = {
    "/help": "show these commands",
    "/system TEXT": "set the system message; without a text, remove it",
    "/reset": "forget the conversation and begin another",
    "/show": "show the prompt of the last question, with its demonstrations",
    "/exit": "leave; an empty line or Ctrl-D does, too",
}
_HELP = "a line that begins with // or with a space goes to the model, without the first character"


class Conversation:
    """Reads lines and answers them, until there is none or one is empty.

    Args:
        aligner: answers.
        decoding: how to decode.
        system: the system message to begin with.
    """

    def __init__(self, aligner: Aligner, decoding: Decoding, system: str | None = None) -> None:
        self._aligner = aligner
        self._decoding = decoding
        self._system = system
        self._turns: list[Turn] = []
        self._last: list[Turn] = []

    def run(self) -> None:
        """Converse to the end of the input."""
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
            console.note("the conversation begins again")
        elif name == "/show":
            self._show()
        else:
            names = ", ".join(command.partition(" ")[0] for command in COMMANDS)
            console.error(f"no command {name}: there are {names}; to send the line to the model, write /{line}")

    def _show(self) -> None:
        if not self._last:
            console.note("nothing has been asked yet")
            return
        prompt = self._aligner.pack(self._last, decoding=self._decoding)
        prompts.show_prompt(prompt)
        prompts.show_budget(prompt, self._aligner.packer.context_length)

    def _answer(self, text: str) -> None:
        from ragalign.types import Turn

        spoken = [*self._turns, Turn("user", text)]
        asked = [Turn("system", self._system), *spoken] if self._system else spoken
        self._last = asked
        self._turns = [*spoken, Turn("assistant", say(self._aligner, asked, self._decoding))]


def say(aligner: Aligner, turns: list[Turn], decoding: Decoding) -> str:
    """Print an answer as it comes, and return it."""
    pieces = []
    for delta in aligner.stream(turns, decoding=decoding):
        pieces.append(delta.text)
        sys.stdout.write(delta.text)
        sys.stdout.flush()
    sys.stdout.write("\n")
    return "".join(pieces)
