"""How demonstrations and conversation turns become text."""

from __future__ import annotations

import hashlib
import re
import tomllib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from ragalign.errors import ConfigError, DataError
from ragalign.templates.escaping import SPECIAL_TOKENS, Escaper
from ragalign.types import Demonstration, Turn

Escape = Literal["neutralise", "none"]

# What models write at the end of a text when their tokenizer lets special tokens through.
_END_OF_TEXT = re.compile(r"<\|(?:endoftext|end_of_text|im_end|eot_id)\|>|</s>")


@dataclass(frozen=True)
class Template:
    """Four strings around the texts of a turn pair, and what follows from them.

    A prompt is ``preamble``, then per demonstration ``opening instruction middle response closing``, then the
    conversation in the same form, whose last user turn is followed by ``cue`` instead of ``middle``.

    Attributes:
        name: shown to people.
        opening: before a user's text.
        middle: between a user's text and the assistant's.
        closing: after the assistant's text, up to the next turn.
        cue: what the prompt ends in; `middle` where it is not given.
        heading: what stands above a system text where there is no preamble yet.
        preamble: what the prompt begins with, up to the first turn.
        stop: strings that end a completion.
        protect: delimiters beside those that the four strings show.
        fenced: whether answers stand in a code fence, to be removed from completions.
        escape: what happens to delimiters in texts: "neutralise" (see `escaping`), or "none", which reproduces
            published prompts to the byte.
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
    escape: Escape = "neutralise"

    def __post_init__(self) -> None:
        for name in ("opening", "middle", "closing"):
            if not getattr(self, name).strip() and name != "closing":
                raise ConfigError(f"template {self.name!r}: {name!r} must hold more than white space")
        if not self.closing:
            raise ConfigError(f"template {self.name!r}: 'closing' must not be empty: it ends a demonstration")
        if self.escape not in ("neutralise", "none"):
            raise ConfigError(f"template {self.name!r}: escape is {self.escape!r}; use 'neutralise' or 'none'")
        if not self.cue:
            object.__setattr__(self, "cue", self.middle)

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
            values = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
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
        lines = "\n".join((self.opening, self.middle, self.closing, self.cue)).splitlines()
        return tuple(dict.fromkeys([*(line.strip() for line in lines if line.strip()), *self.protect]))

    @cached_property
    def escaper(self) -> Escaper:
        """Neutralises this template's delimiters and common special-token strings."""
        return Escaper((*self.delimiters, *SPECIAL_TOKENS))

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
        return replace(self, protect=tuple(dict.fromkeys([*self.protect, *sorted(tokens)])))

    def render_demonstration(self, demonstration: Demonstration) -> str:
        """One demonstration as text."""
        protect = self._protect()
        return (
            self.opening
            + protect(demonstration.instruction)
            + self.middle
            + protect(demonstration.response)
            + self.closing
        )

    def render_turns(self, turns: Sequence[Turn]) -> str:
        """A conversation as text, up to and including the cue. System turns are not rendered here.

        Raises:
            DataError: the turns do not alternate, beginning and ending with the user.
        """
        protect = self._protect()
        spoken = [turn for turn in turns if turn.role != "system"]
        check_turns(turns)
        parts = []
        for position, turn in enumerate(spoken):
            if turn.role == "user":
                last = position == len(spoken) - 1
                parts += [self.opening, protect(turn.content), self.cue if last else self.middle]
            else:
                parts += [protect(turn.content), self.closing]
        return "".join(parts)

    def render_preamble(self, system: str = "") -> str:
        """The preamble, with a conversation's system text as its last paragraph."""
        if not system:
            return self.preamble
        body = self.preamble.rstrip()
        gap = self.preamble[len(body) :] or self.closing[len(self.closing.rstrip()) :] or "\n\n"
        return (f"{body}\n\n" if body else self.heading) + self._protect()(system.strip()) + gap

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
        turns: list[Turn] = []
        rest = text
        while rest:
            if not rest.startswith(self.opening):
                raise DataError(f"not of template {self.name!r}: expected {self.opening!r}, found {rest[:40]!r}")
            rest = rest[len(self.opening) :]
            user, found, after = rest.partition(self.middle)
            if not found:
                if not rest.endswith(self.cue):
                    raise DataError(f"not of template {self.name!r}: the text does not end in {self.cue!r}")
                return [*turns, Turn("user", undo(rest.removesuffix(self.cue)))]
            if not after and self.cue == self.middle:
                return [*turns, Turn("user", undo(user))]
            answer, following, rest = after.partition(self.closing + self.opening)
            if following:
                rest = self.opening + rest
            else:
                answer = answer.removesuffix(self.closing)
            turns += [Turn("user", undo(user)), Turn("assistant", undo(answer))]
        return turns

    def clean(self, output: str, *, finished: bool = True) -> str:
        """A model's raw output as the answer that it is.

        Removes end-of-text marks, the closing fence of fenced templates and white space around, and undoes
        neutralising. Where the model was cut off (not `finished`), the beginning of a stop string at the
        end goes too.
        """
        text = _END_OF_TEXT.split(output, maxsplit=1)[0]
        for stop in self.stop:
            text = text.partition(stop)[0]
        if not finished:
            text = _without_partial_stop(text, self.stop)
        text = text.strip()
        if self.fenced:
            while text.endswith("```") and text.count("```") % 2:
                text = text.removesuffix("```").rstrip()
        return self.escaper.unescape(text) if self.escape == "neutralise" else text

    def _protect(self) -> Callable[[str], str]:
        return self.escaper.escape if self.escape == "neutralise" else str


_BUILT_IN = Path(__file__).parent / "forms"


def built_in() -> list[str]:
    """The names of the built-in templates."""
    return sorted(path.stem for path in _BUILT_IN.glob("*.toml"))


def system_text(turns: Sequence[Turn]) -> str:
    """The text of a conversation's leading system turns, as one."""
    return "\n\n".join(turn.content for turn in turns if turn.role == "system")


def check_turns(turns: Sequence[Turn]) -> None:
    """Refuse conversations that a template cannot render.

    Raises:
        DataError: naming the first turn that is out of place.
    """
    spoken = 0
    for number, turn in enumerate(turns, start=1):
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


def _without_partial_stop(text: str, stops: Sequence[str]) -> str:
    longest = max(
        (n for stop in stops for n in range(1, len(stop)) if text.endswith(stop[:n])),
        default=0,
    )
    return text[: len(text) - longest]
