"""The manifest of an index: its files, and how its vectors were made."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import lru_cache
from typing import Any, ClassVar, Literal

from ragalign.encoders import Encoder, Precision
from ragalign.errors import IndexFormatError
from ragalign.indexes.checksum import NO_CHECKSUM, is_intact, with_checksum

Metric = Literal["cosine", "ip", "l2"]
TextForm = Literal["instruction", "both"]

FORMAT = "ragalign-index"
FORMAT_VERSION = 1
FILE_ROLES = ("pool", "vectors", "faiss")

# Pydantic's settings for the classes below: no conversions, no unknown keys.
_STRICT = {"strict": True, "extra": "forbid"}

# Upper limit of numbers, since they become parameters of C++ code.
_MOST = {"size": 2**62, "n_demonstrations": 2**40}
_MOST_OF_OTHERS = 2**31 - 1


@dataclass(frozen=True, slots=True)
class EncoderRecord:
    """The encoder that made the vectors; fields as in `ragalign.encoders.Encoder`. Older indexes lack `max_tokens`."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

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
        """The record of ``encoder``."""
        return cls(**{each.name: getattr(encoder, each.name) for each in fields(cls)})


@dataclass(frozen=True, slots=True)
class FileRecord:
    """One data file: its name in the folder, its size in bytes, and its SHA-256 (hex)."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

    name: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """The description of an index.

    Attributes:
        n_demonstrations: demonstrations in the pool, which is also the number of vectors.
        pool_fingerprint: `Pool.fingerprint`.
        text: the encoded texts: the ``instruction``, or ``both`` instruction and response.
        metric: ``cosine``, ``ip`` or ``l2``.
        kind: the requested kind: ``auto``, ``flat``, ``hnsw``, ``ivf`` or a FAISS factory string.
        factory: the FAISS factory string in use.
        search: FAISS search parameters, such as ``nprobe`` or ``efSearch``.
        encoder: the encoder that made the vectors.
        made_with: versions of the packages that wrote the folder.
        n_truncated: number of texts longer than the encoder's `max_tokens`, whose vectors ignore the end; None if not
            counted, as in older indexes.
        files: ``pool``, ``vectors`` and ``faiss``; empty if the index is only in memory.
        checksum: checksum of the manifest file; empty if the index is only in memory.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

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

        The checksum is the SHA-256 of these bytes with 64 zeros in place of the checksum.
        """
        values = {**self.to_dict(), "checksum": NO_CHECKSUM}
        return with_checksum((json.dumps(values, indent=2) + "\n").encode())

    @classmethod
    def from_bytes(cls, content: bytes, where: str) -> Manifest:
        """Read a manifest file; ``where`` names it in messages.

        Raises:
            IndexFormatError: it is damaged, has another version, or is not a manifest.
        """
        intact = is_intact(content)
        if intact is None:
            raise IndexFormatError(f"{where} is damaged, or is not the manifest of an index")
        if not intact:
            raise IndexFormatError(f"{where} is damaged: its checksum does not match; build the index again")
        try:
            values = json.loads(content)
            found, version = values.pop("format"), values.pop("format_version")
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
            raise IndexFormatError(f"{where} is damaged, or is not the manifest of an index") from None
        if found != FORMAT:
            raise IndexFormatError(f"{where} is not the manifest of an index")
        if version != FORMAT_VERSION or isinstance(version, bool | float):
            raise IndexFormatError(
                f"{where} has format version {_brief(version)}, this ragalign reads {FORMAT_VERSION}; "
                "build the index again"
            )
        return cls._validated(values, where)

    @classmethod
    def _validated(cls, values: dict[str, Any], where: str) -> Manifest:
        from pydantic import ValidationError

        try:
            manifest: Manifest = _validator().validate_json(json.dumps(values))
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False)[0]
            place = ".".join(map(str, first["loc"])) or "it"
            raise IndexFormatError(
                f"{where} is damaged: {place}: {first['msg'].lower()}, not {_brief(first['input'])}; "
                "build the index again"
            ) from None
        except (ValueError, RecursionError) as error:  # a lone surrogate, or nesting that is too deep
            raise IndexFormatError(f"{where} is damaged: {_brief(str(error))}; build the index again") from None
        if problem := _problem(asdict(manifest)):
            raise IndexFormatError(f"{where} is damaged: {problem}; build the index again")
        for role in FILE_ROLES:
            # File names become paths, which must not leave the folder.
            record = manifest.files.get(role)
            digest = re.fullmatch(rf"{role}-([0-9a-f]{{64}})\.[a-z]+", record.name) if record else None
            if record is None or digest is None or digest[1] != record.sha256:
                raise IndexFormatError(f"{where} is damaged: it names no {role} file; build the index again")
        return manifest


@lru_cache(maxsize=1)
def _validator() -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(Manifest)


def _problem(values: Mapping[str, Any], where: str = "") -> str:
    """Describe the first value that is out of range for an index, or return ""."""
    for key, value in values.items():
        name = f"{where}{key}"
        if isinstance(value, Mapping):
            if problem := _problem(value, f"{name}."):
                return problem
        elif isinstance(value, str):
            if "\0" in value or "\0" in key:
                return f"{name} contains a NUL character"
            if not value and key in ("id", "fingerprint", "kind", "factory"):
                return f"{name} is empty"
        elif isinstance(value, int) and not 0 <= value <= _MOST.get(key, _MOST_OF_OTHERS):
            return f"{name} is {_brief(value)}, which is out of range"
    return ""


def _brief(value: object) -> str:
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
