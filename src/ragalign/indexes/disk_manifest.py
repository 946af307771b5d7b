"""The description of an index on disk, ``index.json``: what its files are, and how its vectors were made."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

from ragalign.indexes.checksum import NO_CHECKSUM, is_intact, with_checksum
from ragalign.indexes.manifest import EncoderRecord, FileRecord, Metric, TextForm

FORMAT = "ragalign-disk-index-4"


@dataclass(frozen=True, slots=True)
class DiskManifest:
    """The description of an index on disk.

    Attributes:
        n_demonstrations: number of demonstrations.
        pool_fingerprint: `ragalign.Pool.fingerprint` of all of them.
        dimension: of the vectors.
        metric: ``cosine``, ``ip`` or ``l2``.
        factory: the FAISS factory string.
        text: the encoded texts: the ``instruction``, or ``both`` instruction and response.
        encoder: the encoder that made the vectors; None if they came from elsewhere.
        n_truncated: number of texts longer than the encoder's limit; None if there is no encoder.
        files: the other files, with their sizes and hashes.
        checksum: of the file, as in `ragalign.indexes.Manifest`; empty if it is only in memory.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "strict": True}

    n_demonstrations: int
    pool_fingerprint: str
    dimension: int
    metric: Metric
    factory: str
    text: TextForm = "instruction"
    encoder: EncoderRecord | None = None
    n_truncated: int | None = None
    files: list[FileRecord] = field(default_factory=list)
    format: str = FORMAT
    checksum: str = ""

    def to_bytes(self) -> bytes:
        """The bytes of the file, with their checksum."""
        values = {"format": self.format, "checksum": NO_CHECKSUM}
        return with_checksum(json.dumps(values | asdict(self) | values, indent=2).encode())

    @classmethod
    def from_bytes(cls, content: bytes) -> DiskManifest:
        """Read the bytes of a file.

        Raises:
            ValueError, TypeError, AttributeError: they are damaged, of another format, or no description.
        """
        from pydantic import TypeAdapter

        if (found := json.loads(content).get("format")) != FORMAT:
            raise ValueError(f"format {found!r}, not {FORMAT!r}")
        if not is_intact(content):
            raise ValueError("its description does not match its checksum")
        return TypeAdapter(cls).validate_json(content)
