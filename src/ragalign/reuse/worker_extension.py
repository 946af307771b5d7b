"""Methods that vLLM adds to its workers, so that the process in front can ask them."""

from __future__ import annotations


class ReuseWorkerExtension:
    """For vLLM's option `worker_extension_cls`."""

    def ragalign_reuse_counts(self) -> dict[str, int]:
        """The counts of this worker's connector since the engine started."""
        from vllm.distributed.kv_transfer import get_kv_transfer_group

        counts: dict[str, int] = get_kv_transfer_group().counts()
        return counts
