"""Encoding a pool for an index, and checking that an encoder is the index's own."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ragalign.encoders import Encoder
from ragalign.errors import ConfigError, DataError, IndexMismatchError, RagalignError
from ragalign.indexes.manifest import EncoderRecord, TextForm
from ragalign.indexes.vectors import measurable
from ragalign.pool import Pool

_log = logging.getLogger(__name__)


def texts_of(pool: Pool, text: TextForm) -> list[str]:
    """The text to encode of each demonstration."""
    if text == "instruction":
        return pool.instructions
    return [f"{first}\n\n{second}" for first, second in zip(pool.instructions, pool.responses, strict=True)]


def encode_pool(pool: Pool, encoder: Encoder, text: TextForm, show_progress: bool) -> tuple[NDArray[np.float32], int]:
    """The vectors ``[n, d]`` and the number of truncated texts."""
    texts = texts_of(pool, text)
    vectors = encoder.encode(texts, kind="document", show_progress=show_progress)
    if vectors.shape != (len(pool), encoder.dimension):
        raise IndexMismatchError(
            f"the encoder {encoder.id!r} made vectors of shape {list(vectors.shape)} "
            f"instead of {[len(pool), encoder.dimension]}"
        )
    is_measurable = measurable(vectors)
    if not is_measurable.all():
        bad = pool.ids[int(np.argmin(is_measurable))]
        raise DataError(
            f"the encoder {encoder.id!r} returns NaN, infinity or huge values for the demonstration {bad}; remove it"
        )
    n_truncated = int(encoder.truncated(texts).sum())
    if n_truncated:
        _log.warning(
            "%d of %d texts are longer than the %s tokens of the encoder %s: their ends are not searched",
            n_truncated,
            len(texts),
            encoder.max_tokens,
            encoder.id,
        )
    return np.ascontiguousarray(vectors, dtype=np.float32), n_truncated


def load_recorded(record: EncoderRecord, folder: Path | None) -> Encoder:
    """Load the encoder that made an index's vectors.

    Raises:
        ConfigError: it cannot be loaded.
        IndexMismatchError: the loaded encoder differs from the one that made the vectors.
    """
    try:
        encoder = Encoder.load(
            record.id,
            revision=record.revision,
            normalize=record.normalize,
            query_prompt=record.query_prompt,
            document_prompt=record.document_prompt,
            precision=record.precision,
        )
    except RagalignError as error:
        raise ConfigError(f"the index's encoder cannot be loaded; open the index with encoder=...: {error}") from error
    require_same_encoder(folder, record, encoder)
    return encoder


def require_same_encoder(folder: Path | None, record: EncoderRecord, encoder: Encoder) -> None:
    """Reject an encoder that differs from the one that made the vectors.

    Raises:
        IndexMismatchError: they differ; the message describes both.
    """
    if record.fingerprint == encoder.fingerprint:
        return
    where = "the index" if folder is None else f"the index {folder}"
    given = EncoderRecord.of(encoder)
    raise IndexMismatchError(
        f"{where} was built with the encoder {_describe(record)}, not with {_describe(given)}; "
        "use the former, or build the index again"
    )


def _describe(record: EncoderRecord) -> str:
    details = [f"revision {record.revision[:12]}", "normalised" if record.normalize else "not normalised"]
    if record.query_prompt or record.document_prompt:
        details.append(f"prompts {record.query_prompt!r} and {record.document_prompt!r}")
    if record.precision != "float32":
        details.append(record.precision)
    return f"{record.id!r} ({', '.join(details)})"
