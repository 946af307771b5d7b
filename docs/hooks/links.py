"""Links in Markdown."""

from __future__ import annotations

import re

# The target of an inline link or image: up to the closing parenthesis, without a title.
LINK = re.compile(r"\]\(([^()\s]+)\)")
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*:", re.IGNORECASE)


def is_relative(target: str) -> bool:
    """Whether a link leads to a file beside its page, and not to a place on the page, a host or a mail address."""
    return not target.startswith(("#", "/")) and not _SCHEME.match(target)
