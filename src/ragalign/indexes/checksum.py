"""The checksum inside a JSON file: the SHA-256 of its bytes with 64 zeros in place of the checksum."""

from __future__ import annotations

import hashlib
import re

NO_CHECKSUM = "0" * 64
"""What a file has in place of its checksum before `with_checksum`."""
_CHECKSUM = re.compile(rb'"checksum": "([0-9a-f]{64})"')


def with_checksum(blank: bytes) -> bytes:
    """The bytes of a file with its checksum, given those with `NO_CHECKSUM`."""
    return blank.replace(NO_CHECKSUM.encode(), hashlib.sha256(blank).hexdigest().encode(), 1)


def is_intact(content: bytes) -> bool | None:
    """Whether the bytes of a file match its checksum; None if it has none."""
    match = _CHECKSUM.search(content)
    if match is None:
        return None
    blank = content[: match.start(1)] + NO_CHECKSUM.encode() + content[match.end(1) :]
    return hashlib.sha256(blank).hexdigest().encode() == match[1]
