"""What the asynchronous engine does to its own process; the rest is tested through the service."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

# In a process of its own: once an engine has run inside a process, vLLM lets nobody set its number of threads.
_CODE = """
import torch
from ragalign.generation.vllm_async import _leave_processor
torch.set_num_threads(2)
print(_leave_processor(), torch.get_num_threads())
"""


@pytest.mark.parametrize(("chosen", "n_threads"), [(None, 1), ("2", 2)])
def test_the_processor_is_left_to_an_engine_on_it(chosen: str | None, n_threads: int) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    if chosen:
        environment["OMP_NUM_THREADS"] = chosen
    done = subprocess.run([sys.executable, "-c", _CODE], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["2", str(n_threads)]
