"""The connector that vLLM loads by name: it puts kept keys and values into the engine's cache.

vLLM makes it twice: beside the scheduler, where it says how many tokens of a request need not be computed, and in each
worker, where it writes them. Written for vLLM 0.25 to 0.32.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorMetadata,
    KVConnectorRole,
    KVConnectorWorkerMetadata,
)

from ragalign.reuse.engine_side import engine_settings
from ragalign.reuse.loading import Load, Worker
from ragalign.reuse.matching import Matcher
from ragalign.reuse.recording import Capture
from ragalign.reuse.store import Store
from ragalign.reuse_plan import merged_counts


@dataclass
class StepMetadata(KVConnectorMetadata):  # type: ignore[misc]
    """The workers' tasks in one step."""

    loads: list[Load] = field(default_factory=list)
    captures: list[Capture] = field(default_factory=list)


@dataclass
class WorkerCounts(KVConnectorWorkerMetadata):  # type: ignore[misc]
    """The workers' counts since the engine started."""

    counts: dict[str, int]

    def aggregate(self, other: Any) -> Any:
        """The counts of two workers together; each moves its own heads."""
        return WorkerCounts(merged_counts([self.counts, other.counts]))


class ReuseConnector(KVConnectorBase_V1):  # type: ignore[misc]
    """Loads kept keys and values for requests that carry a plan in `kv_transfer_params`, and ignores all others.

    Of its `kv_connector_extra_config`: ``store``, the folder; ``memory``, bytes of host memory for the pieces used most
    recently, and ``gpu_memory``, the same on each GPU; ``volatile``, whether new pieces stay in memory and are never
    written, for measurements.
    """

    def __init__(self, vllm_config: Any, role: Any, kv_cache_config: Any) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        extra = vllm_config.kv_transfer_config.kv_connector_extra_config
        store = Store(extra["store"])
        settings = engine_settings(vllm_config, store.manifest.about or {})
        store.bind(settings.model, settings.about)
        self._matcher: Matcher | None = None
        self._worker: Worker | None = None
        if role == KVConnectorRole.SCHEDULER:
            self._matcher = Matcher(store, vllm_config.cache_config.block_size)
        else:
            self._worker = Worker(
                store,
                vllm_config,
                settings.rotations,
                memory=int(extra.get("memory", 0)) // vllm_config.parallel_config.tensor_parallel_size,
                gpu_memory=int(extra.get("gpu_memory", 0)),
                volatile=bool(extra.get("volatile", False)),
            )

    def resize(self, *, memory: int, gpu_memory: int) -> None:
        """Change a worker's memory budgets, in bytes."""
        assert self._worker is not None
        self._worker.resize(memory=memory, gpu_memory=gpu_memory)

    def counts(self) -> dict[str, int]:
        """A worker's counts since the engine started: pieces by the tier they came from, bytes moved, evictions."""
        assert self._worker is not None
        return self._worker.counts()

    # In the workers.

    def register_kv_caches(self, kv_caches: dict[str, Any]) -> None:
        """Register the layers of the engine's cache."""
        assert self._worker is not None
        self._worker.register(list(kv_caches))

    def bind_connector_metadata(self, connector_metadata: Any) -> None:
        """Note which tokens to keep from this step: vLLM can call `start_load_kv` after the forward pass only."""
        super().bind_connector_metadata(connector_metadata)
        assert self._worker is not None
        self._worker.expect(connector_metadata.captures)

    def start_load_kv(self, forward_context: Any, **_: Any) -> None:
        """Write what this step's requests need; later work on the device comes after it."""
        assert self._worker is not None
        if self.has_connector_metadata():
            self._worker.load(self._get_connector_metadata().loads)

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Nothing: `start_load_kv` wrote all layers."""

    def save_kv_layer(self, layer_name: str, kv_layer: Any, attn_metadata: Any, **_: Any) -> None:
        """Nothing: pieces are copied as the engine writes its cache."""

    def wait_for_save(self) -> None:
        """Write complete pieces to the store."""
        assert self._worker is not None
        if self.has_connector_metadata():
            self._worker.finish()

    def get_finished(self, finished_req_ids: set[str]) -> tuple[None, None]:
        """Forget requests that have ended, such as those that were aborted; no transfer outlives its step."""
        assert self._worker is not None
        self._worker.forget(finished_req_ids)
        return None, None

    def get_block_ids_with_load_errors(self) -> set[int]:
        """Blocks that could not be filled; vLLM computes them."""
        assert self._worker is not None
        return self._worker.take_failed_blocks()

    def build_connector_worker_meta(self) -> Any:
        """The counts of this worker."""
        assert self._worker is not None
        return WorkerCounts(self._worker.counts())

    # In the scheduler.

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int | None, bool]:
        """How many tokens after the engine's own cached ones can be loaded."""
        assert self._matcher is not None
        return self._matcher.n_loadable(request, num_computed_tokens), False

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        """Note which blocks the request was given."""
        assert self._matcher is not None
        self._matcher.allocated(request, blocks.get_block_ids()[0], num_external_tokens)

    def build_connector_meta(self, scheduler_output: Any) -> Any:
        """The workers' tasks in this step."""
        assert self._matcher is not None
        loads, captures = self._matcher.take_step(scheduler_output)
        return StepMetadata(loads, captures)

    def update_connector_output(self, connector_output: Any) -> None:
        """Take the workers' failures and counts."""
        assert self._matcher is not None
        self._matcher.failed(connector_output.invalid_block_ids or set())
        if connector_output.kv_connector_worker_meta is not None:
            self._matcher.counts = connector_output.kv_connector_worker_meta.counts

    def request_finished(self, request: Any, block_ids: Any) -> tuple[bool, dict[str, Any] | None]:
        """Forget the request, and report how much it reused."""
        assert self._matcher is not None
        return False, self._matcher.finished(request)
