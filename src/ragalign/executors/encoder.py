"""An encoder whose models are actors of Ray Data."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
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
from ragalign.executors.cluster import (
    connect,
    import_ray,
    n_free_cpus,
    node_resources,
    plan_workers,
    quiet_warnings,
    wait_for_room,
)
from ragalign.executors.worker import EncoderWorker
from ragalign.generation._quiet import is_verbose
from ragalign.generation.base import one_line

# Reading tasks of Ray Data need a CPU beside the actors: without one, a run waits for ever.
_RESERVED_CPUS = 1
BATCH_SIZE = 256


class RayEncoder(CachedEncoder):
    """Encodes texts in actors of Ray Data on a cluster; everything else is that of the same encoder here.

    Texts are encoded once each, and those of the embedding cache of this machine are not sent. Vectors are those of a
    single process to rounding: batches, and so their padding, differ.

    Args:
        id_or_folder: as in `Encoder.load`; a folder must be the same on all nodes.
        address: ``local``, ``auto`` or an address; see `ragalign.executors.connect`.
        workers: number of encoders; by default as many as the cluster has GPUs for, or one without GPUs.
        batch_size: texts per batch.
        cache: as in `Encoder.load`.
        options: further arguments of `Encoder.load`.

    Raises:
        ConfigError: no such model, no cluster can be reached, or it is too small.
        GenerationError: other jobs use the cluster.
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
        self._stack = ExitStack()
        import_ray()
        try:
            self._ray = self._stack.enter_context(connect(address))
            nodes = node_resources(self._ray)
            free = n_free_cpus(self._ray)
            self._need = plan_workers(nodes, workers, gpus=1, reserved_cpus=_RESERVED_CPUS, free_cpus=free)
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
        """Leave the cluster, and end it if it was started here."""
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
        wait_for_room(self._ray, self._need, _RESERVED_CPUS)
        with quiet_warnings():
            import pyarrow as pa
            import ray.data

            if not is_verbose():
                logging.getLogger("ray.data").setLevel(logging.ERROR)
            ray.data.DataContext.get_current().enable_progress_bars = False
            table = pa.table({"row": np.arange(len(texts)), "text": pa.array(texts, pa.large_string())})
            n_blocks = max(min(-(-len(texts) // self._batch_size), 16 * self._need.workers), 1)
            size = -(-len(texts) // n_blocks)
            shards = [table.slice(start, size) for start in range(0, len(texts), size)]
            encoded = ray.data.from_arrow(shards).map_batches(
                EncoderWorker,
                fn_constructor_args=(self._options, kind),
                batch_size=self._batch_size,
                compute=ray.data.ActorPoolStrategy(size=self._need.workers),
                **self._need.options(),
            )
            try:
                for batch in encoded.iter_batches(batch_size=None, prefetch_batches=1):
                    yield batch["row"].tolist(), np.ascontiguousarray(list(batch["vector"]), dtype=np.float32)
            except Exception as error:  # Ray Data's errors share no class
                raise GenerationError(f"encoding on the Ray cluster failed: {one_line(error)}") from error
