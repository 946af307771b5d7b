from __future__ import annotations

import os
import random
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from ragalign._quiet import environment, kept_process_state, quiet

NOISY = """
import os, sys, warnings
from ragalign._quiet import quiet
print("before"); print("before", file=sys.stderr)
try:
    with quiet():
        os.write(1, b"native noise\\n"); os.write(2, b"native noise\\n")
        warnings.warn("python noise")
        print("progress", file=sys.stderr)
        {inside}
except ValueError:
    pass
print("after"); print("after", file=sys.stderr)
os.write(1, b"native again\\n"); os.write(2, b"native again\\n")
"""


def run(inside: str = "", verbose: bool = False) -> subprocess.CompletedProcess[str]:
    values = {name: value for name, value in os.environ.items() if not name.startswith(("VLLM_", "RAGALIGN_"))}
    values |= {"PYTHONUNBUFFERED": "1"} | ({"RAGALIGN_VERBOSE": "1"} if verbose else {})
    return subprocess.run(
        [sys.executable, "-c", NOISY.format(inside=inside)], capture_output=True, text=True, check=True, env=values
    )


@pytest.mark.parametrize("inside", ["", "raise ValueError"])
def test_native_noise_is_gone_and_python_output_stays(inside: str) -> None:
    done = run(inside)
    assert done.stdout.splitlines() == ["before", "after", "native again"]
    assert done.stderr.splitlines() == ["before", "progress", "after", "native again"]


def test_everything_shows_when_asked_for() -> None:
    done = run(verbose=True)
    assert "native noise" in done.stdout
    assert "native noise" in done.stderr
    assert "python noise" in done.stderr


def test_no_descriptor_leaks() -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(20):
        with quiet():
            pass
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_quiet_restores_warnings() -> None:
    with quiet():
        warnings.warn("gone", stacklevel=1)
    with pytest.raises(UserWarning, match="back"):
        warnings.warn("back", stacklevel=1)


def test_environment_sets_only_what_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAGALIGN_TEST_SET", "theirs")
    monkeypatch.delenv("RAGALIGN_TEST_UNSET", raising=False)
    with environment(RAGALIGN_TEST_SET="ours", RAGALIGN_TEST_UNSET="ours"):
        assert (os.environ["RAGALIGN_TEST_SET"], os.environ["RAGALIGN_TEST_UNSET"]) == ("theirs", "ours")
    assert os.environ["RAGALIGN_TEST_SET"] == "theirs"
    assert "RAGALIGN_TEST_UNSET" not in os.environ


def test_random_states_and_excepthook_are_kept() -> None:
    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(1))

    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = draw()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    hook = sys.excepthook
    with kept_process_state():
        sys.excepthook = lambda *_: None
        random.seed(9), np.random.seed(9), torch.manual_seed(9)
    assert draw() == expected
    assert sys.excepthook is hook


def test_what_c_code_printed_and_kept_back_is_silenced_too() -> None:
    code = (
        "import ctypes\nfrom ragalign._quiet import quiet\nc = ctypes.CDLL(None)\nc.puts(b'before')\n"
        "with quiet():\n    c.puts(b'inside')\nc.puts(b'after')\nc.fflush(None)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["before", "after"]
