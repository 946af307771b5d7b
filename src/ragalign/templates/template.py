"""Templates: render demonstrations and conversations as text, and clean answers."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from ragalign._parsing import parse_toml
from ragalign._settings import from_flat_table
from ragalign.errors import ConfigError, DataError
from ragalign.templates.checking import check_delimiters
from ragalign.templates.escaping import MARK, Escaper, escaper_for
from ragalign.templates.stops import END_OF_TEXT, answer_heading, default_stop, fence_of, invented_turn
from ragalign.templates.streaming import Cleaning, CleanStream
from ragalign.templates.turns import check_text, check_turns, system_text
from ragalign.types import Demonstration, Turn

Escape = Literal["neutralise", "none"]


@dataclass(frozen=True)
class Template:
    r"""The form of a prompt: four strings around the texts of each turn pair.

    A prompt is ``preamble``, then per demonstration ``opening instruction middle response closing``, then the
    conversation in the same form, whose last user turn is followed by ``cue`` instead of ``middle``. A TOML file
    with these attributes is a template (see `load`):

        preamble = "Below, a careful assistant answers questions.\n\n"
        opening = "### Question:\n"
        middle = "\n\n### Answer:\n"
        closing = "\n\n"

    With ``escape = "neutralise"`` every new template is checked: no neutralised text must be able to imitate its
    strings (see `ragalign.templates.checking`).

    Attributes:
        name: name for messages.
        opening: text before a user's text.
        middle: text between a user's text and the assistant's.
        closing: text after the assistant's text, up to the next turn.
        cue: end of the prompt; `middle` by default.
        heading: heading of a system text, if there is no preamble.
        preamble: beginning of the prompt, up to the first turn.
        stop: strings that end an answer; by default the beginning of the next turn and the end of `closing`. Engines
            use `stops`, which has more.
        protect: delimiters in addition to the strings above. A leading ``#`` makes a heading, a trailing colon a label
            at the start of a line.
        fenced: whether answers are in a code fence; set from `closing`.
        erase: strings that the published clean-up deletes anywhere in answers; only with escape "none".
        escape: how to treat delimiters in texts: "neutralise" (see `escaping`), or "none", which reproduces published
            prompts, and the published clean-up of answers, byte for byte.
    """

    name: str
    opening: str
    middle: str
    closing: str
    cue: str = ""
    heading: str = ""
    preamble: str = ""
    stop: tuple[str, ...] = ()
    protect: tuple[str, ...] = ()
    fenced: bool = False
    erase: tuple[str, ...] = ()
    escape: Escape = "neutralise"

    def __post_init__(self) -> None:
        for name in ("opening", "middle"):
            if not getattr(self, name).strip():
                raise ConfigError(f"template {self.name!r}: {name!r} must not be blank")
        if not self.closing:
            raise ConfigError(f"template {self.name!r}: 'closing' must not be empty, since it ends a demonstration")
        if self.escape not in ("neutralise", "none"):
            raise ConfigError(f"template {self.name!r}: escape must be 'neutralise' or 'none', not {self.escape!r}")
        if self.cue and not self.cue.strip():
            raise ConfigError(f"template {self.name!r}: 'cue' must not be blank")
        if not self.cue:
            object.__setattr__(self, "cue", self.middle)
        if not self.stop:
            object.__setattr__(self, "stop", default_stop(self.opening, self.closing))
        if self.fenced and not self.fence:
            raise ConfigError(
                f"template {self.name!r} is fenced, but its 'closing' is not a fence on its own line, such as "
                "three backticks between two line breaks"
            )
        object.__setattr__(self, "fenced", bool(self.fence))
        if self.escape == "neutralise":
            strings = (self.opening, self.middle, self.closing, self.cue)
            check_delimiters(self.name, strings, self.protect, self._delimiters)

    @classmethod
    def load(cls, name_or_file: str | Path) -> Template:
        """Load a built-in template by name, or a TOML file with the attributes of this class.

        Raises:
            ConfigError: no such template, or a file with a missing, unknown or mistyped key.
        """
        path = Path(name_or_file)
        if path.suffix != ".toml":
            path = _BUILT_IN / f"{name_or_file}.toml"
            if not path.is_file():
                raise ConfigError(
                    f"no template {str(name_or_file)!r}: use one of {', '.join(built_in())}, or a .toml file"
                )
        try:
            values = parse_toml(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"template {path}: {error}") from None
        return cls.from_dict({"name": path.stem, **values}, where=str(path))

    @classmethod
    def from_dict(cls, values: dict[str, Any], where: str = "template") -> Template:
        """Create a template from the keys of a TOML file; `where` opens error messages."""
        return from_flat_table(cls, values, where)

    @cached_property
    def delimiters(self) -> tuple[str, ...]:
        """The lines of the template's strings, and `protect`."""
        lines, strings = self._delimiters
        return (*lines, *strings)

    @cached_property
    def escaper(self) -> Escaper:
        """Neutralises this template's delimiters and common special-token strings."""
        return escaper_for(*self._delimiters)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over everything that affects rendered text, 16 hex digits."""
        shaping = (self.opening, self.middle, self.closing, self.cue, self.escape, *self.delimiters)
        return hashlib.sha256("\0".join(shaping).encode()).hexdigest()[:16]

    def with_preamble(self, preamble: str) -> Template:
        """Return a copy with another preamble."""
        return replace(self, preamble=preamble)

    def with_system(self, system: str) -> Template:
        """Return a copy with an operator's system text, unescaped, in its preamble."""
        return self.with_preamble(replace(self, escape="none").render_preamble(system))

    def protecting(self, tokens: Iterable[str]) -> Template:
        """Return a copy with more delimiters, such as the special tokens of the model's tokenizer."""
        # Strings that contain the mark cannot be neutralised; the packer treats them as plain text anyway.
        more = sorted(token for token in tokens if MARK not in token)
        return replace(self, protect=tuple(dict.fromkeys([*self.protect, *more])))

    def render_demonstration(self, demonstration: Demonstration) -> str:
        """Render a demonstration; if its response is empty, without an answer.

        Raises:
            DataError: a text is not valid Unicode.
        """
        instruction, response = demonstration.instruction, demonstration.response
        check_text(instruction, f"the instruction of demonstration {demonstration.id}")
        check_text(response, f"the response of demonstration {demonstration.id}")
        protect = self._protect()
        answer = self.middle + protect(response) if response else ""
        return self.opening + protect(instruction) + answer + self.closing

    def render_turns(self, turns: Sequence[Turn]) -> str:
        """Render a conversation without its system turns, up to and including the cue.

        Raises:
            DataError: the turns do not alternate, do not begin and end with the user, or are not valid Unicode.
        """
        check_turns(turns)
        protect = self._protect()
        spoken = [turn for turn in turns if turn.role != "system"]
        parts = []
        for position, turn in enumerate(spoken):
            if turn.role == "user":
                last = position == len(spoken) - 1
                parts += [self.opening, protect(turn.content), self.cue if last else self.middle]
            else:
                parts += [protect(turn.content), self.closing]
        return "".join(parts)

    def render_answer(self, text: str) -> str:
        """An assistant's text as it follows the cue that ends a prompt.

        Raises:
            DataError: the text is not valid Unicode.
        """
        check_text(text, "the answer")
        # Some cues leave out the space at the end of `middle`, since models write it.
        lead = self.middle[len(self.cue) :] if self.middle.startswith(self.cue) else ""
        return lead + self._protect()(text)

    def render_preamble(self, system: str = "") -> str:
        """Render the preamble, with a conversation's system text as its last paragraph."""
        system = system.strip()
        if not system:
            return self.preamble
        body = self.preamble.rstrip()
        gap = self.preamble[len(body) :] or self.closing[len(self.closing.rstrip()) :] or "\n\n"
        return (f"{body}\n\n" if body else self.heading) + self._protect()(system) + gap

    def render(self, turns: Sequence[Turn], demonstrations: Sequence[Demonstration] = ()) -> str:
        """Render the whole prompt: preamble, demonstrations, conversation."""
        shown = [self.render_demonstration(demonstration) for demonstration in demonstrations]
        return "".join([self.render_preamble(system_text(turns)), *shown, self.render_turns(turns)])

    def parse(self, text: str) -> list[Turn]:
        """Parse the turns in a text of `render_turns` or `render_demonstration`.

        Raises:
            DataError: the text does not have the template's form.
        """
        undo = self.escaper.unescape if self.escape == "neutralise" else str
        between = self.closing + self.opening
        turns: list[Turn] = []
        if not text:
            return turns
        if not text.startswith(self.opening):
            raise DataError(f"not of template {self.name!r}: expected {self.opening!r}, found {text[:40]!r}")
        start = len(self.opening)
        # The cue can contain or resemble the middle, so do not search the end of the text for it.
        waits = text.endswith(self.cue) and len(text) >= start + len(self.cue)
        end = len(text) - len(self.cue) if waits else len(text)
        middle = 0
        while True:
            if 0 <= middle < start:
                middle = text.find(self.middle, start, end)
            after = text.find(between, start, end)
            if middle >= 0 and (after < 0 or middle < after):
                turns.append(Turn("user", undo(text[start:middle])))
                start = middle + len(self.middle)
                after = text.find(between, start, end)
                if after < 0:
                    return [*turns, Turn("assistant", undo(text[start:].removesuffix(self.closing)))]
                turns.append(Turn("assistant", undo(text[start:after])))
            elif after >= 0:
                # A demonstration without an answer.
                turns.append(Turn("user", undo(text[start:after])))
            elif waits:
                return [*turns, Turn("user", undo(text[start:end]))]
            elif text.endswith(self.closing):
                return [*turns, Turn("user", undo(text[start:].removesuffix(self.closing)))]
            else:
                raise DataError(f"not of template {self.name!r}: the text does not end in {self.cue!r}")
            start = after + len(between)

    def clean(self, output: str, *, finished: bool = True) -> str:
        """Turn a model's raw output into the answer.

        The answer ends at the first stop string, end-of-text mark or closing fence. White space around it is removed,
        and neutralising is undone. Code blocks inside the answer of a fenced template are kept. If the model was cut
        off (not `finished`), a prefix of a stop string or of a closing fence at the end is also removed. With escape
        "none", `erase` and end-of-text marks are deleted as in upstream's evaluation code. Lone surrogates become
        U+FFFD.
        """
        stream = CleanStream(self)
        return stream.push(output) + stream.finish(finished=finished)

    @cached_property
    def cleaning(self) -> Cleaning:
        """The rules of `clean` and `CleanStream`."""
        erases = self.escape == "none" and bool(self.erase)
        return Cleaning(
            # Fences of answers are distinguished from those of code blocks, which strings cannot do.
            stop=self._text_stops if self.fence else self.stops,
            end_marks=END_OF_TEXT,
            erase=(*self.erase, *END_OF_TEXT) if erases else (),
            begins_line=self.cue.endswith("\n"),
            fence=self.fence,
            escaper=self.escaper if self.escape == "neutralise" else None,
        )

    @property
    def fence(self) -> str:
        """The fence around answers, such as three backticks, or ""."""
        return fence_of(self.closing)

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings for an engine: `stop`, and the closing of an answer followed by any new turn.

        A model can invent a turn with another heading, such as ``# Question:`` instead of ``# Query:``, or begin
        another answer. So the closing followed by the marker of the template's heading also ends a completion, unless
        the closing is only a blank line, and so does the heading above answers. Engines compare strings, so they also
        stop at the end of a code block followed by a heading of the same level; `clean` restores the fence of such a
        block. With escape "none", which reproduces published settings, these are just `stop`.
        """
        if self.escape == "none":
            return self.stop
        return tuple(dict.fromkeys((*self._text_stops, *invented_turn(self.opening, self.closing))))

    @property
    def _text_stops(self) -> tuple[str, ...]:
        """The stop strings that no code block of an answer ends with."""
        return self.stop if self.escape == "none" else (*self.stop, *answer_heading(self.middle))

    @cached_property
    def _delimiters(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Delimiters at the start of a line, and delimiters anywhere."""
        lines: list[str] = []
        strings: list[str] = []
        for constant in (self.opening, self.middle, self.closing, self.cue):
            first, *others = (part.strip() for part in re.split(r"\r\n|[\r\n]", constant))
            alone = constant is self.opening and self.closing.endswith(("\n", "\r"))
            (lines if alone else strings).append(first)
            lines += others
        for string in self.protect:
            (lines if string.startswith("#") or string.endswith(":") else strings).append(string)
        return tuple(dict.fromkeys(filter(None, lines))), tuple(dict.fromkeys(filter(None, strings)))

    def _protect(self) -> Callable[[str], str]:
        return self.escaper.escape if self.escape == "neutralise" else str


_BUILT_IN = Path(__file__).parent / "forms"


def built_in() -> list[str]:
    """The names of the built-in templates."""
    return sorted(path.stem for path in _BUILT_IN.glob("*.toml"))
