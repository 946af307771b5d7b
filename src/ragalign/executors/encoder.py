"""An encoder whose models are in actors on a Ray cluster.

The actors are our own: those of Ray Data end with each dataset, so that an index built in batches would load the model
for each batch, and they are started again without end if they die.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from ragalign.encoders import DEFAULT_ENCODER, Encoder
from ragalign.encoders.base import CachedEncoder, TextKind
from ragalign.encoders.cache import default_cache_folder
from ragalign.encoders.sentence_transformer import Precision
from ragalign.errors import ConfigError, GenerationError
from ragalign.executors.cluster import connect
from ragalign.executors.crew import Crew
from ragalign.executors.room import free_resources, node_resources, plan_workers, wait_for_room
from ragalign.executors.sharing import share
from ragalign.executors.worker import EncoderWorker, WorkerInfo

BATCH_SIZE = 256
# Stands for the tokens of a text, of which only the number matters: texts share no prefixes.
_TOKENS = np.zeros(2048, dtype=np.int32)


class RayEncoder(CachedEncoder):
    """Encodes texts in actors on a Ray cluster; everything else is that of the same encoder here.

    Texts are encoded once each, and those of the embedding cache of this machine are not sent. Vectors are those of a
    single process to rounding: batches, and so their padding, differ. The actors start with the first texts and stay
    until `close`; one that dies is replaced, and its texts are encoded again.

    Args:
        id_or_folder: as in `Encoder.load`; a folder must be the same on all nodes.
        address: ``local``, ``auto`` or an address; see `ragalign.executors.connect`.
        workers: number of encoders; by default as many as the cluster has GPUs for, or one without GPUs.
        batch_size: texts given to an encoder at a time.
        cache: as in `Encoder.load`.
        options: further arguments of `Encoder.load`.

    Raises:
        ConfigError: no such model, no cluster can be reached, or it is too small.
        MissingDependencyError: Ray is not installed.
    """

    def __init__(
        self,
        id_or_folder: str | Path = DEFAULT_ENCODER,
        *,
        address: str = "auto",
        workers: int | None = None,
        batch_size: int = BATCH_SIZE,
        cache: Path | Literal["default"] | None = "default",
        **options: Any,
    ) -> None:
        if batch_size < 1:
            raise ConfigError(f"batch_size must be at least 1, not {batch_size}")
        self._options = {"id_or_folder": str(id_or_folder), **options}
        self._here = Encoder.load(**self._options, cache=None)
        # The same weights on every node, also where the Hub or a node's cache has others by now, and whatever folder
        # the node's processes start in.
        self._options |= {
            "id_or_folder": self._here.id,
            "revision": self._here.revision,
            "precision": self._here.precision,
        }
        self.cache_folder = default_cache_folder() if cache == "default" else None if cache is None else Path(cache)
        self._batch_size = batch_size
        self._crew: Crew[WorkerInfo] | None = None
        self._is_closed = False
        self._stack = ExitStack()
        try:
            ray = self._ray = self._stack.enter_context(connect(address))
            self._need = plan_workers(node_resources(ray), workers, gpus=1, free=free_resources(ray))
        except BaseException:
            self._stack.close()
            raise

    @property
    def id(self) -> str:
        """The Hub id, or the absolute folder."""
        return self._here.id

    @property
    def revision(self) -> str:
        """The Hub commit if known, otherwise `content_digest`."""
        return self._here.revision

    @property
    def dimension(self) -> int:
        """Length of the vectors."""
        return self._here.dimension

    @property
    def normalize(self) -> bool:
        """Whether vectors are scaled to length 1."""
        return self._here.normalize

    @property
    def query_prompt(self) -> str:
        """The text prepended to queries."""
        return self._here.query_prompt

    @property
    def document_prompt(self) -> str:
        """The text prepended to indexed texts."""
        return self._here.document_prompt

    @property
    def pooling(self) -> str:
        """The pooling mode, such as ``mean``."""
        return self._here.pooling

    @property
    def precision(self) -> Precision:
        """The precision of the weights."""
        return self._here.precision

    @property
    def max_tokens(self) -> int | None:
        """Maximum tokens of a text; longer texts are truncated."""
        return self._here.max_tokens

    @property
    def packaged(self) -> bool:
        """Whether the weights are those of the ``offline`` extra."""
        return self._here.packaged

    @property
    def content_digest(self) -> str:
        """A hash of the weights, configuration and tokenizer."""
        return self._here.content_digest

    def truncated(self, texts: Sequence[str], *, kind: TextKind = "document") -> NDArray[np.bool_]:
        """Which texts are longer than `max_tokens`: bool ``[n]``."""
        return self._here.truncated(texts, kind=kind)

    def close(self) -> None:
        """End the actors, and the cluster if it was started here."""
        self._is_closed = True
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _encoded(
        self, texts: list[str], kind: TextKind, *, in_chunks: bool
    ) -> Iterator[tuple[list[int], NDArray[np.float32]]]:
        shared = share(
            self._started(),
            texts,
            "encode",
            kind,
            run_size=self._batch_size,
            ids_of=lambda text: _TOKENS[: len(text)],
            name_of=lambda _, text: f"the text {text[:60]!r} ({len(text):,} characters)",
        )
        with closing(shared) as results:
            for rows, _, vectors in results:
                yield rows, vectors

    def _started(self) -> Crew[WorkerInfo]:
        if self._is_closed:
            raise GenerationError("the encoder is closed")
        if self._crew is None:
            wait_for_room(self._ray, self._need)
            self._crew = Crew(self._ray, self._need, EncoderWorker, (self._options, self._here.fingerprint))
            self._stack.callback(self._crew.end)
        return self._crew
