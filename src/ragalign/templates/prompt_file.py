"""Published prompt files: texts with a preamble and constant demonstrations.

Reads the families of URIAL (Lin et al. 2023) and icl-alignment (Zhao et al. 2024), and any file in the form of a
template. All pieces keep their text unchanged, so that they add up to the file, byte for byte.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ragalign.errors import ConfigError, DataError
from ragalign.templates.template import Template
from ragalign.types import Demonstration, Turn

# The text that upstream's code inserts between a prompt file and the conversation, by form.
_JOIN = {"urial": "\n", "urial-v5": "\n", "urial-v6": "\n\n"}
_FENCE = "```"
# The parts of fence lines inside the fences: white space after the first, the line break before the last.
_FENCE_LINES = re.compile(r"\A[ \t]*\r?\n|\r?\n\Z")


@dataclass(frozen=True, slots=True)
class Constant:
    """A constant demonstration and its exact text in the prompt."""

    demonstration: Demonstration
    text: str


@dataclass(frozen=True, slots=True)
class PromptFile:
    """A parsed prompt file.

    Attributes:
        template: the form of conversations after it.
        preamble: the text before the first demonstration.
        constants: the demonstrations, with an empty response if the file has none.
        tail: the text after the last demonstration.
    """

    template: Template
    preamble: str
    constants: tuple[Constant, ...]
    tail: str

    @classmethod
    def load(cls, path: str | Path, form: str = "auto") -> PromptFile:
        """Read and parse a file; `form` names the template, if it cannot be detected from the content.

        Raises:
            DataError: the file cannot be read, or is not UTF-8.
            ConfigError: the form is unknown, or cannot be detected.
        """
        try:
            # newline="" keeps carriage returns: rendering must give the same bytes.
            with Path(path).open(encoding="utf-8", newline="") as file:
                text = file.read()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path}: cannot read the prompt file: {error}") from None
        return cls.parse(text, form=form, source=Path(path).name)

    @classmethod
    def parse(cls, text: str, form: str = "auto", source: str = "") -> PromptFile:
        """Parse the content of a prompt file.

        Raises:
            ConfigError: the form is unknown, or cannot be detected.
        """
        template = Template.load(_detect_form(text, source) if form == "auto" else form)
        sections = _sections(text, template)
        starts = [start for start, role, _, _ in sections if role == "user"]
        if not starts:
            return cls(template, text, (), "")
        end = sections[-1][3]
        constants = []
        for number, start in enumerate(starts):
            stop = starts[number + 1] if number + 1 < len(starts) else end
            inside = [(role, content) for at, role, content, _ in sections if start <= at < stop]
            response = next((content for role, content in inside if role == "assistant"), "")
            demonstration = Demonstration(inside[0][1], response, source=source, source_id=str(number + 1))
            constants.append(Constant(demonstration, text[start:stop]))
        return cls(template, text[: starts[0]], tuple(constants), text[end:])

    @property
    def text(self) -> str:
        """The content of the file."""
        return self.preamble + "".join(constant.text for constant in self.constants) + self.tail

    @property
    def join(self) -> str:
        """The text between the file and the conversation."""
        if self.template.name in _JOIN:
            return _JOIN[self.template.name]
        text = self.text
        closing = self.template.closing
        held = max((n for n in range(len(closing) + 1) if text.endswith(closing[:n])), default=0)
        return closing[held:] if text else ""

    def prompt_constants(self) -> tuple[Constant, ...]:
        """The constants for a packer, with tail and join after the last one."""
        if not self.constants:
            return ()
        *others, last = self.constants
        return (*others, replace(last, text=last.text + self.tail + self.join))

    def prompt_template(self) -> Template:
        """The template with the file's preamble (and tail and join, if there are no constants)."""
        return self.template.with_preamble(self.preamble if self.constants else self.text + self.join)

    def render(self, turns: Sequence[Turn]) -> str:
        """The file followed by the conversation in its form, as built by upstream's code."""
        return self.text + self.join + self.template.render_turns(turns)


def _headings(template: Template) -> tuple[str, str]:
    """Patterns for the headings of the user's and the assistant's parts, such as ``# Query:`` and ``# Answer:``.

    Raises:
        ConfigError: the template has fences but no headings.
    """
    found = []
    for string, before in ((template.opening, template.closing), (template.middle, "")):
        lines = [line.strip() for line in string.splitlines()]
        # Fences are handled separately, and middle begins with the one that closes the user's text.
        heading = [line for line in lines if line and not (template.fenced and line == _FENCE)]
        if not heading:
            raise ConfigError(f"template {template.name!r}: it has no headings, which reading a prompt file needs")
        above = before + string[: string.index(heading[0])]
        at_line_start = "^" if above.endswith(("\n", "\r")) else ""
        found.append(at_line_start + r"[ \t]*(?:\r?\n)+".join(map(re.escape, heading)))
    return found[0], found[1]


def _find(text: str, template: Template) -> list[re.Match[str]]:
    """Find the headings. In fenced forms, only headings above a fence count: answers can contain headings, too."""
    user, assistant = _headings(template)
    behind = rf"[ \t]*\r?\n(?:[ \t]*\r?\n)*(?={_FENCE})" if template.fenced else r"[ \t]*(?:\r?\n)?"
    return list(re.finditer(rf"(?:(?P<user>{user})|{assistant}){behind}", text, re.MULTILINE))


def _sections(text: str, template: Template) -> list[tuple[int, str, str, int]]:
    """(start, role, content, end of content and fence) of every part, in order."""
    found = _find(text, template)
    sections = []
    for number, match in enumerate(found):
        limit = found[number + 1].start() if number + 1 < len(found) else len(text)
        body = text[match.end() : limit]
        if template.fenced:
            # The last fence of a part closes it: instructions and answers can contain code fences.
            fence = _opening_fence(body)
            close = body.rfind(fence)
            content = body[len(fence) : close if close > 0 else len(body)]
            content = _FENCE_LINES.sub("", content)
            end = match.end() + (close + len(fence) if close > 0 else len(body))
        else:
            content = body.rstrip().removesuffix(template.closing.strip()) if template.closing.strip() else body
            # White space on the line of a heading belongs to the template.
            headed = template.middle.endswith(("\n", "\r"))
            content = _without_blank_lines(content) if headed else content.strip()
            end = match.end() + len(body.rstrip("\r\n"))
        sections.append((match.start(), "user" if match["user"] else "assistant", content, end))
    return sections


def _opening_fence(body: str) -> str:
    """The run of backticks that `body` begins with, if an equally long one closes it; otherwise three."""
    fence = body[: len(body) - len(body.lstrip("`"))]
    return fence if body.rfind(fence) > 0 else _FENCE


def _without_blank_lines(text: str) -> str:
    """`text` without blank lines at its ends; white space on other lines is kept."""
    end = len(text.rstrip())
    end += len(re.match(r"[ \t]*", text[end:])[0]) if end else 0  # type: ignore[index]
    return re.sub(r"\A(?:[ \t]*\r?\n)+", "", text[:end])


def _detect_form(text: str, source: str) -> str:
    """Detect the form from the content.

    Raises:
        ConfigError: there are no demonstrations, or none of a known form.
    """
    headed = re.findall(r"^# (User|Query):[ \t]*\r?\n(?!\s*```)([ \t]*\r?\n)?", text, re.MULTILINE)
    fenced = sum(1 for match in _find(text, Template.load("urial")) if match["user"])
    if fenced or headed:
        if fenced >= len(headed):
            return "urial"
        if sum(name == "Query" for name, _ in headed) * 2 > len(headed):
            return "urial-v2"
        return "urial-v5" if sum(bool(gap) for _, gap in headed) * 2 > len(headed) else "urial-v6"
    if "# Query" in text and "# User" not in text:
        return "urial"
    where = source or "prompt file"
    if "# User" in text:
        raise ConfigError(f"{where}: no demonstrations to detect the form by; choose urial-v5 or urial-v6 (--form)")
    for form in ("ica", "plain"):
        if _find(text, Template.load(form)):
            return form
    raise ConfigError(f"{where}: cannot detect the form of this prompt file; choose one (--form)")
