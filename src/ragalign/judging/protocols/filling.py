"""Fills the placeholders of judge prompts in one pass, so that placeholders in inserted text are kept."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Literal, TypeAlias

from ragalign.errors import ConfigError

Syntax: TypeAlias = Literal["format", "braces", "dollar", "urial"]
"""How a prompt marks its placeholders.

``format``: ``{name}``, with ``{{`` for a brace (FastChat, Arena-Hard).
``braces``: ``{name}``, other braces are text (AlpacaEval).
``dollar``: ``${name}`` or ``$name``, with ``$$`` for a dollar (just-eval).
``urial``: ``{$name}`` (URIAL).
"""

_PATTERNS: dict[Syntax, re.Pattern[str]] = {
    "format": re.compile(r"(?P<escape>\{\{|\}\})|\{(?P<name>\w+)\}"),
    "braces": re.compile(r"(?P<escape>(?!))|\{(?P<name>\w+)\}"),
    "dollar": re.compile(r"(?P<escape>\$\$)|\$(?:\{(?P<name>\w+)\}|(?P<bare>[a-zA-Z_]\w*))"),
    "urial": re.compile(r"(?P<escape>(?!))|\{\$(?P<name>\w+)\}"),
}


def fill(template: str, values: Mapping[str, str], syntax: Syntax) -> str:
    """Replace every placeholder in `values`; inserted text is not scanned."""

    def replace(match: re.Match[str]) -> str:
        if match["escape"]:
            return match["escape"][0]
        return values.get(_name(match), match[0])

    return _PATTERNS[syntax].sub(replace, template)


def placeholders(template: str, syntax: Syntax) -> set[str]:
    """The names of all placeholders in a template."""
    return {_name(match) for match in _PATTERNS[syntax].finditer(template) if not match["escape"]}


def check_placeholders(
    template: str, required: Iterable[str], allowed: Iterable[str], syntax: Syntax, where: str
) -> None:
    """Check that a prompt has all required placeholders and no unknown ones.

    Raises:
        ConfigError: a required placeholder is missing, or (in ``format`` and ``dollar`` prompts, where every
            marked name is a placeholder) one is unknown.
    """
    found = placeholders(template, syntax)
    required = set(required)
    if missing := required - found:
        raise ConfigError(f"{where} lacks the placeholder {', '.join(sorted(missing))}")
    if syntax in ("format", "dollar") and (unknown := found - required - set(allowed)):
        raise ConfigError(f"{where} has an unknown placeholder {', '.join(sorted(unknown))}")


def _name(match: re.Match[str]) -> str:
    groups = match.groupdict()
    return str(groups["name"] or groups.get("bare") or "")
