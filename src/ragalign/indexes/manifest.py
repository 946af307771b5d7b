"""The manifest of an index: what is in the folder, and how its vectors came about."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, get_args

from ragalign.encoders import Encoder, Precision
from ragalign.errors import IndexFormatError

Metric = Literal["cosine", "ip", "l2"]
TextForm = Literal["instruction", "both"]

FORMAT = "ragalign-index"
FORMAT_VERSION = 1
FILE_ROLES = ("pool", "vectors", "faiss")

_CHECKSUM = re.compile(rb'"checksum": "([0-9a-f]{64})"')
_NO_CHECKSUM = "0" * 64


@dataclass(frozen=True, slots=True)
class EncoderRecord:
    """The encoder that made the vectors; fields as in `ragalign.encoders.Encoder`. Older indexes lack `max_tokens`."""

    id: str
    revision: str
    fingerprint: str
    dimension: int
    normalize: bool
    pooling: str
    query_prompt: str
    document_prompt: str
    packaged: bool
    precision: Precision = "float32"
    max_tokens: int | None = None

    @classmethod
    def of(cls, encoder: Encoder) -> EncoderRecord:
        """What identifies ``encoder``."""
        return cls(**{each.name: getattr(encoder, each.name) for each in fields(cls)})


@dataclass(frozen=True, slots=True)
class FileRecord:
    """One data file: its name in the folder, its size in bytes, and its SHA-256 (hex)."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """What an index is.

    Attributes:
        n_demonstrations: demonstrations in the pool, which is also the number of vectors.
        pool_fingerprint: `Pool.fingerprint`.
        text: what was encoded: the ``instruction``, or ``both`` instruction and response.
        metric: ``cosine``, ``ip`` or ``l2``.
        kind: the kind that was asked for: ``auto``, ``flat``, ``hnsw``, ``ivf`` or a FAISS factory string.
        factory: the FAISS factory string that it became.
        search: FAISS search parameters, such as ``nprobe`` or ``efSearch``.
        encoder: the encoder that made the vectors.
        made_with: versions of the packages that wrote the folder.
        n_truncated: how many of the encoded texts are longer than the encoder's `max_tokens`, so that their ends have
            no part in the vectors; None where that was not counted, as in older indexes.
        files: ``pool``, ``vectors`` and ``faiss``; empty while the index is in memory only.
        checksum: over the manifest's own bytes; empty while the index is in memory only.
    """

    n_demonstrations: int
    pool_fingerprint: str
    text: TextForm
    metric: Metric
    kind: str
    factory: str
    search: Mapping[str, int]
    encoder: EncoderRecord
    made_with: Mapping[str, str]
    n_truncated: int | None = None
    files: Mapping[str, FileRecord] = field(default_factory=dict)
    checksum: str = ""

    def to_dict(self) -> dict[str, Any]:
        """The manifest as JSON values, in the order of the file."""
        rest = asdict(self)
        checksum = rest.pop("checksum")
        return {"format": FORMAT, "format_version": FORMAT_VERSION, "checksum": checksum, **rest}

    def to_bytes(self) -> bytes:
        """The manifest as the bytes of its file, with its checksum.

        The checksum is the SHA-256 of these very bytes with 64 zeros in its own place.
        """
        values = {**self.to_dict(), "checksum": _NO_CHECKSUM}
        blank = (json.dumps(values, indent=2) + "\n").encode()
        return blank.replace(_NO_CHECKSUM.encode(), hashlib.sha256(blank).hexdigest().encode(), 1)

    @classmethod
    def from_bytes(cls, content: bytes, where: str) -> Manifest:
        """Read a manifest file; ``where`` names it in messages.

        Raises:
            IndexFormatError: it is damaged, of another version, or no manifest at all.
        """
        match = _CHECKSUM.search(content)
        if match is None:
            raise IndexFormatError(f"{where} is damaged, or no manifest of an index")
        blank = content[: match.start(1)] + _NO_CHECKSUM.encode() + content[match.end(1) :]
        if hashlib.sha256(blank).hexdigest().encode() != match[1]:
            raise IndexFormatError(f"{where} is damaged: its checksum does not agree; build the index again")
        try:
            return cls._from_dict(json.loads(content), where)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise IndexFormatError(f"{where} lacks something, or holds something unknown: {error!r}") from None

    @classmethod
    def _from_dict(cls, values: dict[str, Any], where: str) -> Manifest:
        if values.pop("format") != FORMAT:
            raise IndexFormatError(f"{where} is no manifest of an index")
        version = values.pop("format_version")
        if version != FORMAT_VERSION:
            raise IndexFormatError(
                f"{where} has format version {version}, this ragalign reads {FORMAT_VERSION}; build the index again"
            )
        if values["metric"] not in get_args(Metric) or values["text"] not in get_args(TextForm):
            raise ValueError(f"metric {values['metric']!r}, text {values['text']!r}")
        values["encoder"] = EncoderRecord(**values["encoder"])
        files = {role: FileRecord(**record) for role, record in values["files"].items()}
        for role in FILE_ROLES:
            # Names come from the folder and become paths: no other place may be reached by them.
            if not re.fullmatch(rf"{role}-[0-9a-f]{{64}}\.[a-z]+", files[role].name):
                raise ValueError(f"a {role} file named {files[role].name!r}")
        values["files"] = files
        return cls(**values)
