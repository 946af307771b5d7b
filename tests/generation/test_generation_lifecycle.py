"""What only a process of its own can show: starting, failing, closing and being interrupted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

pytest.importorskip("vllm", reason="needs the `cpu` or `gpu` extra")

PRELUDE = """
import numpy as np
from ragalign.errors import RagalignError
from ragalign.generation import VllmGenerator
from ragalign.types import Decoding, Prompt

MODEL = {model!r}
PROMPT = Prompt(pieces=("",), ids=np.arange(260, 300, dtype=np.int32))

def start(**options):
    return VllmGenerator(**({{"model": MODEL, "dtype": "float32", "kv_cache_memory_bytes": 2**28}} | options))

def answer(generator, n_prompts=1, **decoding):
    return generator.generate([PROMPT] * n_prompts, Decoding(**decoding))[0].text

def failure(call):
    try:
        call()
    except RagalignError as error:
        print(type(error).__name__, error, flush=True)
"""


def script(tmp_path: Path, model: Path, body: str) -> subprocess.Popen[str]:
    """Start a script without a `__main__` guard, as a user's may be."""
    file = tmp_path / "script.py"
    file.write_text(PRELUDE.format(model=str(model)) + textwrap.dedent(body))
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("VLLM_", "RAGALIGN_"))}
    return subprocess.Popen(
        [sys.executable, str(file)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment | {"HF_HUB_OFFLINE": "1"},
        start_new_session=True,
    )


def processes_of_session(session: int) -> list[int]:
    """The processes of a session, from /proc."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:  # gone meanwhile
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


@pytest.mark.slow
def test_engines_start_fail_and_stop_in_one_process(tmp_path: Path, tiny_model: Path) -> None:
    (tmp_path / "empty").mkdir()
    body = f"""
        import gc, os, random, sys
        failure(lambda: start(model="nobody/nothing"))
        failure(lambda: start(model={str(tmp_path / "empty")!r}))
        failure(lambda: start(dtype="int7"))
        failure(lambda: start(max_model_len=100_000))
        failure(lambda: start(block_size=16))
        failure(lambda: start(kv_cache_memory_bytes=2**45))
        random.seed(5)
        expected = random.random()
        random.seed(5)
        with start() as first:
            print("same random state:", random.random() == expected)
            text = answer(first, max_tokens=5)
        failure(lambda: answer(first))
        second = start()
        print("same answer:", answer(second, max_tokens=5) == text)
        del second
        gc.collect()
        third = start()
        print("same answer:", answer(third, max_tokens=5) == text)
        ours = "VLLM_ENABLE_V1_MULTIPROCESSING", "VLLM_CONFIGURE_LOGGING", "VLLM_CPU_KVCACHE_SPACE"
        print("left in the environment:", [name for name in ours if name in os.environ])
        print("same excepthook:", sys.excepthook is sys.__excepthook__)
    """
    process = script(tmp_path, tiny_model, body)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    lines = out.splitlines()
    beginnings = [
        "GenerationError vLLM could not start nobody/nothing: ",
        f"ConfigError vLLM rejected these options for {tmp_path / 'empty'}: ",
        f"ConfigError vLLM rejected these options for {tiny_model}: dtype: ",
        f"ConfigError vLLM rejected these options for {tiny_model}: User-specified max_model_len (100000)",
        f"GenerationError vLLM could not start {tiny_model}: No common block size for 16",
        f"GenerationError vLLM could not start {tiny_model}: Available memory ",
        "same random state: True",
        f"GenerationError the generator of {tiny_model} is closed",
        "same answer: True",
        "same answer: True",
        "left in the environment: []",
        "same excepthook: True",
    ]
    assert len(lines) == len(beginnings), out
    assert [line[: len(beginning)] for line, beginning in zip(lines, beginnings, strict=True)] == beginnings
    # Stdout belongs to results (above, to the character), and stderr stays quiet as well.
    assert err == ""
    assert processes_of_session(process.pid) == []


@pytest.mark.parametrize(
    "kind", [signal.SIGINT, pytest.param(signal.SIGKILL, marks=pytest.mark.slow)], ids=lambda kind: kind.name
)
def test_interrupting_leaves_no_process_behind(tmp_path: Path, tiny_model: Path, kind: signal.Signals) -> None:
    body = """
        import signal
        signal.signal(signal.SIGINT, signal.default_int_handler)
        generator = start()
        print("ready", flush=True)
        try:
            answer(generator, n_prompts=300, max_tokens=1500)
        except KeyboardInterrupt:
            print("interrupted", flush=True)
            failure(lambda: answer(generator))
    """
    process = script(tmp_path, tiny_model, body)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    time.sleep(2)
    os.killpg(process.pid, kind)
    out, err = process.communicate(timeout=60)
    if kind == signal.SIGINT:
        interrupted, failed = out.splitlines()
        assert interrupted == "interrupted"
        assert "cannot continue: a step was interrupted" in failed
        assert (process.returncode, err) == (0, "")
    else:
        assert process.returncode == -kind
    assert processes_of_session(process.pid) == []
