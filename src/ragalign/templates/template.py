"""How demonstrations and conversation turns become text."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property, lru_cache
from itertools import product
from pathlib import Path
from typing import Any, Literal

from ragalign._parsing import parse_toml
from ragalign.errors import ConfigError, DataError
from ragalign.templates.escaping import MARK, SPECIAL_TOKENS, Escaper
from ragalign.templates.streaming import Cleaning, CleanStream
from ragalign.types import Demonstration, Turn

Escape = Literal["neutralise", "none"]

# What models write at the end of a text when their tokenizer lets special tokens through.
END_OF_TEXT = ("<|endoftext|>", "<|end_of_text|>", "<|im_end|>", "<|eot_id|>", "</s>")
# A closing that is a code fence on a line of its own.
_FENCE = re.compile(r"\n(`{3,}|~{3,})[^\S\n]*(?:\n\s*)?")


@dataclass(frozen=True)
class Template:
    r"""Four strings around the texts of a turn pair, and what follows from them.

    A prompt is ``preamble``, then per demonstration ``opening instruction middle response closing``, then the
    conversation in the same form, whose last user turn is followed by ``cue`` instead of ``middle``. A TOML file
    with these attributes is a template (see `load`):

        preamble = "Below, a careful assistant answers questions.\n\n"
        opening = "### Question:\n"
        middle = "\n\n### Answer:\n"
        closing = "\n\n"

    With ``escape = "neutralise"`` every template is checked when it is made: its strings must be such that no text
    can imitate them once it is neutralised (see `_imitable`).

    Attributes:
        name: shown to people.
        opening: before a user's text.
        middle: between a user's text and the assistant's.
        closing: after the assistant's text, up to the next turn.
        cue: what the prompt ends in; `middle` where it is not given.
        heading: what stands above a system text where there is no preamble yet.
        preamble: what the prompt begins with, up to the first turn.
        stop: strings that end an answer; by default, the beginning of the next turn and what closes an answer. Engines
            get `stops`, which holds more.
        protect: delimiters beside those that the strings above show. A leading ``#`` makes a heading, a trailing
            colon a label at the start of a line.
        fenced: whether answers are in a code fence; follows from `closing`.
        erase: strings that the published clean-up deletes from answers, wherever they are; with escape "none" only.
        escape: what happens to delimiters in texts: "neutralise" (see `escaping`), or "none", which reproduces
            published prompts, and the published clean-up of answers, to the byte.
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
                raise ConfigError(f"template {self.name!r}: {name!r} must hold more than white space")
        if not self.closing:
            raise ConfigError(f"template {self.name!r}: 'closing' must not be empty: it ends a demonstration")
        if self.escape not in ("neutralise", "none"):
            raise ConfigError(f"template {self.name!r}: escape is {self.escape!r}; use 'neutralise' or 'none'")
        if self.cue and not self.cue.strip():
            raise ConfigError(f"template {self.name!r}: 'cue' must hold more than white space")
        if not self.cue:
            object.__setattr__(self, "cue", self.middle)
        if not self.stop:
            object.__setattr__(self, "stop", _default_stop(self.opening, self.closing))
        if self.fenced and not self.fence:
            raise ConfigError(
                f"template {self.name!r} is fenced, but its 'closing' is not a fence on a line of its own, such as "
                "three backticks between two line breaks"
            )
        object.__setattr__(self, "fenced", bool(self.fence))
        if self.escape == "neutralise":
            self._check_imitable()

    @classmethod
    def load(cls, name_or_file: str | Path) -> Template:
        """A built-in template by name, or a TOML file that sets this class's attributes.

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
        """A template from the keys of a TOML file; `where` names the place in errors."""
        kinds = {field.name: field.type for field in fields(cls)}
        for key, value in values.items():
            if key not in kinds:
                raise ConfigError(f"{where}: unknown key {key!r}; known are {', '.join(kinds)}")
            kind = kinds[key]
            right = (
                isinstance(value, bool)
                if kind == "bool"
                else isinstance(value, list) and all(isinstance(item, str) for item in value)
                if kind == "tuple[str, ...]"
                else isinstance(value, str)
            )
            if not right:
                expected = {"bool": "true or false", "tuple[str, ...]": "a list of strings"}.get(str(kind), "a string")
                raise ConfigError(f"{where}: {key!r} must be {expected}")
        missing = [key for key in ("name", "opening", "middle", "closing") if key not in values]
        if missing:
            raise ConfigError(f"{where}: missing {', '.join(map(repr, missing))}")
        settings: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
        }
        return cls(**settings)

    @cached_property
    def delimiters(self) -> tuple[str, ...]:
        """What the template's own strings consist of, line by line, and `protect`."""
        lines, strings = self._delimiters
        return (*lines, *strings)

    @cached_property
    def escaper(self) -> Escaper:
        """Neutralises this template's delimiters and common special-token strings."""
        return _escaper(*self._delimiters)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over everything that shapes rendered text, 16 hex digits."""
        shaping = (self.opening, self.middle, self.closing, self.cue, self.escape, *self.delimiters)
        return hashlib.sha256("\0".join(shaping).encode()).hexdigest()[:16]

    def with_preamble(self, preamble: str) -> Template:
        """The same template behind another preamble."""
        return replace(self, preamble=preamble)

    def with_system(self, system: str) -> Template:
        """The same template with an operator's system text, taken as it is, in its preamble."""
        return self.with_preamble(replace(self, escape="none").render_preamble(system))

    def protecting(self, tokens: Iterable[str]) -> Template:
        """The same template with more delimiters, such as the special tokens of the tokenizer at hand."""
        # A string with the mark in it cannot be neutralised by one; the packer takes it as plain text all the same.
        more = sorted(token for token in tokens if MARK not in token)
        return replace(self, protect=tuple(dict.fromkeys([*self.protect, *more])))

    def render_demonstration(self, demonstration: Demonstration) -> str:
        """One demonstration as text; one with an empty response is shown without an answer at all.

        Raises:
            DataError: a text is no valid Unicode.
        """
        instruction, response = demonstration.instruction, demonstration.response
        check_text(instruction, f"the instruction of demonstration {demonstration.id}")
        check_text(response, f"the response of demonstration {demonstration.id}")
        protect = self._protect()
        answer = self.middle + protect(response) if response else ""
        return self.opening + protect(instruction) + answer + self.closing

    def render_turns(self, turns: Sequence[Turn]) -> str:
        """A conversation as text, up to and including the cue. System turns are not rendered here.

        Raises:
            DataError: the turns do not alternate, beginning and ending with the user, or hold no valid Unicode.
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
            DataError: the text is no valid Unicode.
        """
        check_text(text, "the answer")
        # Some cues leave out the space at the end of `middle`, since models write it.
        lead = self.middle[len(self.cue) :] if self.middle.startswith(self.cue) else ""
        return lead + self._protect()(text)

    def render_preamble(self, system: str = "") -> str:
        """The preamble, with a conversation's system text as its last paragraph."""
        system = system.strip()
        if not system:
            return self.preamble
        body = self.preamble.rstrip()
        gap = self.preamble[len(body) :] or self.closing[len(self.closing.rstrip()) :] or "\n\n"
        return (f"{body}\n\n" if body else self.heading) + self._protect()(system) + gap

    def render(self, turns: Sequence[Turn], demonstrations: Sequence[Demonstration] = ()) -> str:
        """The whole prompt as text: preamble, demonstrations, conversation."""
        shown = [self.render_demonstration(demonstration) for demonstration in demonstrations]
        return "".join([self.render_preamble(system_text(turns)), *shown, self.render_turns(turns)])

    def parse(self, text: str) -> list[Turn]:
        """The turns in what `render_turns` or `render_demonstration` made, delimiters taken at their word.

        Raises:
            DataError: the text is not of this template's form.
        """
        undo = self.escaper.unescape if self.escape == "neutralise" else str
        between = self.closing + self.opening
        turns: list[Turn] = []
        if not text:
            return turns
        if not text.startswith(self.opening):
            raise DataError(f"not of template {self.name!r}: expected {self.opening!r}, found {text[:40]!r}")
        start = len(self.opening)
        # The cue may hold or resemble the middle; what ends the text is not looked at as one.
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

        The answer ends at the first stop string, end-of-text mark or closing fence; white space around it goes, and
        neutralising is undone. Code blocks inside the answer of a fenced template stay. Where the model was cut off
        (not `finished`), the beginning of a stop string or of a closing fence on the last line goes too. With escape
        "none", `erase` and end-of-text marks are deleted as upstream's evaluation code does it. Lone surrogates become
        U+FFFD.
        """
        stream = CleanStream(self)
        return stream.push(output) + stream.finish(finished=finished)

    @cached_property
    def cleaning(self) -> Cleaning:
        """How `clean` and `CleanStream` clean answers."""
        erases = self.escape == "none" and bool(self.erase)
        return Cleaning(
            # A fence is told from that of a code block, which strings cannot do.
            stop=self.stop if self.fence else self.stops,
            end_marks=END_OF_TEXT,
            erase=(*self.erase, *END_OF_TEXT) if erases else (),
            begins_line=self.cue.endswith("\n"),
            fence=self.fence,
            escaper=self.escaper if self.escape == "neutralise" else None,
        )

    @property
    def fence(self) -> str:
        """The fence that answers are in, such as three backticks; "" where they are in none."""
        return self.closing.strip() if _FENCE.fullmatch(self.closing) else ""

    @property
    def stops(self) -> tuple[str, ...]:
        """The strings that end a completion in an engine: `stop`, and what closes an answer before any new turn.

        A model may make up a turn under a heading of its own, such as ``# Question:`` where the template has ``#
        Query:``. So the closing followed by the marker of the template's heading ends a completion too, where the
        closing is more than a blank line. An engine compares strings: it also stops at a code block of the answer's own
        that a heading of the same level follows, and `clean` gives that block its fence back. Not with escape
        "none", which repeats published settings.
        """
        if self.escape == "none":
            return self.stop
        return tuple(dict.fromkeys((*self.stop, *_made_up_turn(self.opening, self.closing))))

    @cached_property
    def _delimiters(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Delimiters that stand at the start of a line, and those that may stand anywhere."""
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

    def _check_imitable(self) -> None:
        constants = (self.opening, self.middle, self.closing, self.cue)
        between = self.closing + self.opening
        if between.startswith(self.middle) or self.middle.startswith(between) or self.closing.endswith(self.cue):
            raise ConfigError(f"template {self.name!r}: 'middle' or 'cue' cannot be told from what ends an answer")
        if any(MARK in string for string in (*constants, *self.protect)):
            raise ConfigError(
                f"template {self.name!r}: a backslash cannot be part of a delimiter, since neutralising inserts "
                "backslashes; use other characters"
            )
        found = _imitable(self._delimiters, self.opening, self.middle, self.closing)
        if found is not None:
            raise ConfigError(
                f"template {self.name!r}: a text could imitate {found!r}; give it a line of its own that holds more "
                "than one character and does not repeat, such as '### Answer:'"
            )

    def _protect(self) -> Callable[[str], str]:
        return self.escaper.escape if self.escape == "neutralise" else str


_BUILT_IN = Path(__file__).parent / "forms"


def built_in() -> list[str]:
    """The names of the built-in templates."""
    return sorted(path.stem for path in _BUILT_IN.glob("*.toml"))


def system_text(turns: Sequence[Turn]) -> str:
    """The text of a conversation's leading system turns, as one."""
    return "\n\n".join(turn.content for turn in turns if turn.role == "system")


def check_text(text: str, what: str) -> None:
    """Refuse a text with lone surrogates, which no tokenizer takes; `what` names it in the message.

    Raises:
        DataError: naming the character.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        raise DataError(
            f"{what} is no valid Unicode: character {error.start + 1} is a lone surrogate (U+{code:04X}); remove it"
        ) from None


def check_turns(turns: Sequence[Turn]) -> None:
    """Refuse conversations that a template cannot render.

    Raises:
        DataError: naming the first turn that is out of place, or that is no valid Unicode.
    """
    spoken = 0
    for number, turn in enumerate(turns, start=1):
        check_text(turn.content, f"turn {number}")
        if turn.role == "system":
            if spoken:
                raise DataError(f"turn {number}: a system turn must come before all others")
            continue
        expected = "assistant" if spoken % 2 else "user"
        if turn.role != expected:
            raise DataError(f"turn {number}: expected a turn of the {expected}, found {turn.role!r}")
        spoken += 1
    if spoken % 2 == 0:
        raise DataError("the conversation must end with a turn of the user" if spoken else "the conversation is empty")


@lru_cache(maxsize=256)
def _escaper(lines: tuple[str, ...], strings: tuple[str, ...]) -> Escaper:
    return Escaper(lines, (*strings, *SPECIAL_TOKENS))


@lru_cache(maxsize=256)
def _imitable(
    delimiters: tuple[tuple[str, ...], tuple[str, ...]], opening: str, middle: str, closing: str
) -> str | None:
    """Which string of a template a neutralised text could imitate; None where that is proven impossible.

    What ends a user's text is `middle`, what ends an answer `closing + opening`. A text holds a copy of such a
    string only if no cut lies inside the copy, since the strings have no mark in them. So every copy must have a
    cut, and so must every beginning of it that a text can end with, where the rest could be what the template puts
    behind the text.
    """
    escaper = _escaper(*delimiters)
    ends = (middle, closing + opening)
    neighbours = ("", "a", "\n", " ", "#", "`", "\n\n")
    for string in ends:
        parts = [string]
        for n in range(1, len(string)):
            rest = string[n:]
            # Behind a closing comes the end or the next turn; the texts behind the other two may be anyone's.
            if closing.startswith(rest) or any(end.startswith(rest) or rest.startswith(end) for end in ends):
                parts.append(string[:n])
        for part in parts:
            followed = neighbours if part == string else ("",)
            for before, after in product(neighbours, followed):
                cuts = escaper.cuts(before + part + after)
                if not any(len(before) < cut < len(before + part) for cut in cuts):
                    return string
    return None


def _default_stop(opening: str, closing: str) -> tuple[str, ...]:
    """The beginning of the next turn, and what closes an answer, unless answers may hold that too: a code fence."""
    heading = opening.strip().splitlines()[0]
    next_turn = f"\n{heading}" if closing.endswith("\n") else heading
    # From its own line on, so that the same characters inside a line do not end an answer.
    ends = re.search(r"(\n?)[^\S\n]*(\S.*)", closing.rstrip(), re.DOTALL)
    closes = (ends[1] + ends[2],) if ends and not _FENCE.fullmatch(closing) else ()
    return tuple(dict.fromkeys((next_turn, *closes)))


def _made_up_turn(opening: str, closing: str) -> tuple[str, ...]:
    """A closing that is more than a blank line, up to the marker of the heading that would follow."""
    marker = re.match(r"\s*(#+ )", opening)
    distinct = closing.strip() or closing.count("\n") > 2
    return (closing + marker[0],) if marker and distinct else ()
