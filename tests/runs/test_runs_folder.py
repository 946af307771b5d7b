"""Run folders and output files: settings claimed, one writer at a time, foreign files left alone."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from ragalign._locks import FileLock, LockedError, locked
from ragalign.errors import ConfigError, DataError
from ragalign.runs import OutputFile, RunFolder
from ragalign.runs.settings import differences, fingerprint

KEYS = ("id", "response")
SETTINGS = {"model": "a", "decoding": {"temperature": 0.0, "stop": ("x",)}}

HOLDER = """
import sys, time
from pathlib import Path
from ragalign.runs import OutputFile, RunFolder
path = Path(sys.argv[1])
if sys.argv[2] == "folder":
    folder = RunFolder(path)
    folder.claim({})
    held = folder.writing()
    held.__enter__()
else:
    held = OutputFile(path, {}, ("id", "response"))
print("held", flush=True)
time.sleep(600)
"""


def hold(path: Path, kind: str) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(path), kind], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_a_second_process_is_refused_and_changes_nothing(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "out"
    process = hold(path, kind)
    try:
        before = {each: each.read_bytes() for each in tmp_path.rglob("*") if each.is_file()}
        with pytest.raises(DataError, match=r"another process is (using|writing) .*out; wait for it to finish"):
            RunFolder(path).claim({}) if kind == "folder" else OutputFile(path, {}, KEYS)
        assert {each: each.read_bytes() for each in tmp_path.rglob("*") if each.is_file()} == before
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    # The lock of a dead process is free.
    if kind == "folder":
        RunFolder(path).claim({})
    else:
        OutputFile(path, {}, KEYS).close()


def test_a_forked_child_does_not_keep_the_lock_of_its_parent(tmp_path: Path) -> None:
    with OutputFile(tmp_path / "a.jsonl", {}, KEYS) as file:
        context = multiprocessing.get_context("fork")
        is_running = context.Event()
        child = context.Process(target=lambda: (is_running.set(), time.sleep(60)))
        child.start()
        assert is_running.wait(60)
    assert file
    try:
        OutputFile(tmp_path / "a.jsonl", {}, KEYS).close()
    finally:
        child.kill()
        child.join()


def test_threads_exclude_each_other_and_a_lock_file_goes_away(tmp_path: Path) -> None:
    path, counts, inside = tmp_path / ".lock", [0, 0], threading.Lock()

    def work() -> None:
        for _ in range(300):
            try:
                with locked(path):
                    assert inside.acquire(blocking=False), "two at once"
                    counts[0] += 1
                    inside.release()
            except LockedError:
                counts[1] += 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counts[0] + counts[1] == 1200
    assert counts[0] > 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("there", [True, False])
def test_a_symbolic_link_at_the_lock_is_not_followed(tmp_path: Path, there: bool) -> None:
    folder, target = tmp_path / "run", tmp_path / "target"
    folder.mkdir()
    if there:
        target.write_text("mine")
    (folder / ".lock").symlink_to(target)
    with pytest.raises(DataError, match="cannot write to the folder"):
        RunFolder(folder).claim({})
    assert target.exists() == there
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="not a regular file"):
        FileLock(tmp_path / "pipe")


def test_settings_are_compared_in_depth(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.claim(SETTINGS)
    folder.lines("rows.jsonl", KEYS).append({"id": "1", "response": ""})
    RunFolder(tmp_path / "run").claim(SETTINGS)
    RunFolder(tmp_path / "run").claim({**SETTINGS, "decoding": {"temperature": 0, "stop": ["x"]}})
    with pytest.raises(ConfigError, match=r"decoding\.temperature was 0\.0 and is 0\.5; seed was not set and is 1\."):
        folder.claim({"model": "a", "decoding": {"temperature": 0.5, "stop": ["x"]}, "seed": 1})
    folder.record.write_text("[1]")
    with pytest.raises(DataError, match="is damaged"):
        folder.claim({})


def test_settings_can_change_while_there_is_no_work(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.claim({"model": "typo"}, work="conditions/*")
    folder.claim({"model": "a"}, work="conditions/*")
    assert json.loads(folder.record.read_text()) == {"model": "a"}
    with OutputFile(tmp_path / "a.jsonl", {"model": "typo"}, KEYS):
        pass
    with OutputFile(tmp_path / "a.jsonl", {"model": "a"}, KEYS) as file:
        file.append({"id": "1", "response": "x"})
    with pytest.raises(ConfigError, match=r"a\.jsonl was made with other settings: model was \"a\" and is \"typo\""):
        OutputFile(tmp_path / "a.jsonl", {"model": "typo"}, KEYS)


def test_other_folders_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "letters.txt").write_text("dear")
    with pytest.raises(DataError, match=r"but no run\.json"):
        RunFolder(tmp_path).claim({})
    with pytest.raises(DataError, match="is a file"):
        RunFolder(tmp_path / "letters.txt").claim({})
    assert [each.name for each in tmp_path.iterdir()] == ["letters.txt"]
    RunFolder(tmp_path).claim({}, work="conditions/*")


def test_blocks_may_be_nested_and_let_go_at_the_end(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    with folder.writing():
        with folder.writing(), pytest.raises(DataError, match="another process"):
            RunFolder(tmp_path).claim({})
        with pytest.raises(DataError, match="another process"):
            RunFolder(tmp_path).claim({})
    RunFolder(tmp_path).claim({})


def write(path: Path, *rows: dict[str, Any], settings: dict[str, Any] | None = None) -> None:
    with OutputFile(path, settings or SETTINGS, KEYS) as file:
        for row in rows:
            file.append(row)


class TestOutputFiles:
    """One file and its record."""

    def test_a_torn_line_of_ours_is_cut(self, tmp_path: Path) -> None:
        path = tmp_path / "a.jsonl"
        write(path, {"id": "1", "response": "x"})
        whole = path.read_bytes()
        for tail in (b'{"id": "2", "res', whole.rstrip(b"\n")):
            path.write_bytes(whole + tail)
            with OutputFile(path, SETTINGS, KEYS) as file:
                assert [row["id"] for row in file.rows] == ["1"]
            assert path.read_bytes() == whole
        path.write_bytes(b'{"id": "1", "resp')  # killed in its first line
        write(path)
        assert path.read_bytes() == b""

    @pytest.mark.parametrize("content", [b'{"my":"notes"}', b'{"id": "1", "resp', b"x", b'{"my":"notes"}\n', b"\n"])
    def test_a_foreign_file_is_left_alone(self, tmp_path: Path, content: bytes) -> None:
        path = tmp_path / "p.json"
        path.write_bytes(content)
        with pytest.raises(DataError, match="not written by this command"):
            write(path)
        assert path.read_bytes() == content
        assert [each.name for each in tmp_path.iterdir()] == ["p.json"]

    def test_a_foreign_file_in_place_of_ours_is_left_alone(self, tmp_path: Path) -> None:
        path = tmp_path / "a.jsonl"
        write(path, {"id": "1", "response": "x"})
        path.write_bytes(b'{"my":"notes"}')
        with pytest.raises(DataError, match="not written by this command"):
            write(path)
        assert path.read_bytes() == b'{"my":"notes"}'

    def test_a_lost_record_does_not_let_other_settings_in(self, tmp_path: Path) -> None:
        path, record = tmp_path / "a.jsonl", tmp_path / "a.jsonl.run.json"
        write(path, {"id": "1", "response": "x"})
        record.unlink()
        with pytest.raises(DataError, match="line 1: made with other settings"):
            write(path, settings={"model": "b"})
        assert not record.exists()
        write(path, {"id": "2", "response": "y"})
        assert record.exists()

    def test_joined_files_are_noticed(self, tmp_path: Path) -> None:
        write(tmp_path / "a.jsonl", {"id": "1", "response": "x"})
        write(tmp_path / "b.jsonl", {"id": "2", "response": "x"}, settings={"model": "b"})
        path = tmp_path / "a.jsonl"
        path.write_bytes(path.read_bytes() + (tmp_path / "b.jsonl").read_bytes())
        with pytest.raises(DataError, match="line 2: made with other settings"):
            write(path)

    def test_what_is_not_a_file_is_refused(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe")
        for path in (tmp_path, tmp_path / "pipe", Path("/dev/null")):
            with pytest.raises(DataError, match="cannot write"):
                write(path)

    def test_a_link_and_its_target_are_one_output(self, tmp_path: Path) -> None:
        (tmp_path / "link").symlink_to(tmp_path / "a.jsonl")
        with OutputFile(tmp_path / "a.jsonl", {}, KEYS), pytest.raises(DataError, match="another process"):
            OutputFile(tmp_path / "link", {}, KEYS)


def test_fingerprints_follow_values() -> None:
    assert fingerprint({"a": 1, "b": [1.0]}) == fingerprint({"b": (1,), "a": 1.0})
    assert fingerprint(True) != fingerprint(1)
    assert fingerprint({"a": None}) != fingerprint({})
    assert differences({"a": {"b": 1}, "c": 2}, {"a": {"b": 1.0}}) == ["c was 2 and is not set now"]


def test_settings_with_names_that_are_not_utf_8_are_kept(tmp_path: Path) -> None:
    settings = {"model": "m\udcff", "recipe": "é"}
    RunFolder(tmp_path / "run").claim(settings)
    assert json.loads((tmp_path / "run" / "run.json").read_text()) == settings
