"""The options of engines that reuse, and what several workers count."""

from __future__ import annotations

from typing import Any

import pytest

from ragalign.errors import ConfigError
from ragalign.generation._vllm_start import _leave_gpu_memory
from ragalign.reuse.engine_side import check_parallel
from ragalign.reuse_plan import merged_counts


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"tensor_parallel_size": 3}, "8 key-value heads cannot be split evenly across 3 devices"),
        ({"pipeline_parallel_size": 2}, "pipeline_parallel_size 2; set it to 1"),
        ({"speculative_config": {"method": "ngram"}}, "speculative decoding"),
    ],
)
def test_engines_that_cannot_load_are_refused_before_they_start(options: dict[str, Any], why: str) -> None:
    check_parallel(8, {"tensor_parallel_size": 4, "dtype": "bfloat16"})
    with pytest.raises(ConfigError, match=why):
        check_parallel(8, options)


def test_workers_that_share_a_model_count_a_piece_once() -> None:
    counts = {"from_disk": 3, "tokens_loaded": 90, "bytes_loaded": 1000}
    assert merged_counts([counts, counts]) == counts | {"bytes_loaded": 2000}


def test_pieces_on_a_gpu_are_taken_out_of_the_engines_share() -> None:
    class Platform:
        @staticmethod
        def get_device_total_memory() -> int:
            return 80 * 10**9

    def share(gpu_memory: int) -> Any:
        transfer = {"kv_connector_extra_config": {"gpu_memory": gpu_memory}}
        options: dict[str, Any] = {"kv_transfer_config": transfer, "gpu_memory_utilization": 0.9}
        _leave_gpu_memory(options, Platform)
        return options["gpu_memory_utilization"]

    assert share(0) == 0.9
    assert share(40 * 10**9) == pytest.approx(0.4)
    with pytest.raises(ConfigError, match="70 GB for keys and values leave the engine too little of the GPU's 80 GB"):
        share(70 * 10**9)
