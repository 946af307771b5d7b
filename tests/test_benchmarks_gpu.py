"""The GPU benchmark says what it needs where there is no GPU."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parent.parent / "benchmarks" / "gpu" / "price.py"


@pytest.mark.parametrize("shape", ["llama-3.1-8b", "llama-2-13b"])
def test_without_a_gpu_one_line_says_what_is_needed(shape: str, tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    command = [sys.executable, str(SCRIPT), "--data", str(tmp_path), "--shape", shape]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"error: {shape} needs an NVIDIA GPU")
