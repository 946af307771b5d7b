"""Writers that end at each single step, readers beside a writer that goes back and forth, disks that are full.

The writers are children of one process that has done its imports, since hundreds of them would take minutes to start.
"""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from indexes_made import TableEncoder, clustered, make_pool

from ragalign.errors import IndexFormatError, RagalignError
from ragalign.indexes import Index

TABLE = clustered(120, 16)
OLD, NEW = range(60), range(20, 120)

# Reads "FOLDER N" from stdin, forks a child that builds and saves there, and tells its end. The child kills itself
# before its Nth step on the file system; with N = 0 it says "ready", and is killed from outside. Python reports these
# steps to audit hooks.
PARENT = """
import os, signal, sys, tempfile
sys.path.insert(0, sys.argv[1])
from test_indexes_steps import NEW, build

STEPS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.chmod", "os.scandir", "fcntl.flock"}

def write(folder, last_step):
    count = 0
    def hook(event, arguments):
        nonlocal count
        if event in STEPS:
            count += 1
            if count == last_step:
                os.kill(os.getpid(), signal.SIGKILL)
    if last_step:
        index = build(NEW)
        sys.addaudithook(hook)
        index.save(folder)
    else:
        print(os.getpid(), "ready", flush=True)
        build(NEW).save(folder)

# The first save imports more: these are not steps of a writer.
with tempfile.TemporaryDirectory() as folder:
    build(NEW).save(folder)
print("ready", flush=True)
for line in sys.stdin:
    last_step, folder = line.rstrip("\\n").split(" ", 1)
    child = os.fork()
    if child == 0:
        write(folder, int(last_step))
        os._exit(0)
    # A child that has ended keeps its number until we are told to look.
    sys.stdin.readline()
    print("ended", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def build(numbers: range) -> Index:
    return Index.build(make_pool(numbers), TableEncoder(TABLE))


class Writers:
    """The parent of all writers."""

    def __init__(self) -> None:
        command = [sys.executable, "-c", PARENT, str(Path(__file__).parent)]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        assert self.line() == "ready"

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def start(self, folder: Path, last_step: int) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{last_step} {folder}\n")
        self.process.stdin.flush()

    def end(self) -> int:
        """The exit status of the writer that was started."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return int(self.line().removeprefix("ended "))

    def write_until(self, folder: Path, last_step: int) -> int:
        """The exit status of a writer that ends at this step."""
        self.start(folder, last_step)
        return self.end()

    def write_for(self, folder: Path, seconds: float) -> int:
        """The exit status of a writer that is killed after this time."""
        self.start(folder, 0)
        pid = int(self.line().removesuffix(" ready"))
        time.sleep(seconds)
        os.kill(pid, signal.SIGKILL)
        return self.end()


@pytest.fixture(scope="module")
def writers() -> Iterator[Writers]:
    writers = Writers()
    yield writers
    writers.process.communicate()


def state(folder: Path) -> str:
    """``old``, ``new`` or ``absent``; anything else fails."""
    try:
        Index.verify(folder)
    except IndexFormatError:
        assert not (folder / "manifest.json").exists()
        return "absent"
    index = Index.open(folder)
    name = "old" if index.pool.ids == make_pool(OLD).ids else "new"
    expected = build(OLD if name == "old" else NEW)
    assert index.pool == expected.pool
    assert (index.vectors == expected.vectors).all()
    assert (index.search(TABLE, 5)[1] == expected.search(TABLE, 5)[1]).all()
    return name


def is_clean(folder: Path) -> bool:
    return sorted(path.name[:5] for path in folder.iterdir()) == ["faiss", "manif", "pool-", "vecto"]


@pytest.mark.parametrize("existing", [False, True], ids=["fresh folder", "over an index"])
def test_a_writer_may_end_at_any_step(existing: bool, writers: Writers, tmp_path: Path) -> None:
    template = tmp_path / "template"
    if existing:
        build(OLD).save(template)
    before = "old" if existing else "absent"
    states: list[str] = []
    for step in range(1, 200):
        folder = tmp_path / f"index{step}"
        if existing:
            shutil.copytree(template, folder)
        status = writers.write_until(folder, step)
        states.append(state(folder))
        # Whatever was left behind: the next writer puts things right.
        build(OLD).save(folder)
        assert state(folder) == "old"
        assert is_clean(folder)
        shutil.rmtree(folder)
        if status == 0:
            break
        assert status == -signal.SIGKILL
    else:
        pytest.fail("the writer takes more steps than this test expects")
    assert len(states) > 20
    # One step counts: before it the old state, after it the new one.
    assert states == sorted(states, key=[before, "new"].index)
    assert states[0] == before
    assert states[-1] == "new"


@pytest.mark.parametrize("existing", [False, True], ids=["fresh folder", "over an index"])
def test_a_writer_may_be_killed_at_any_moment(existing: bool, writers: Writers, tmp_path: Path) -> None:
    draw, folder = random.Random(7), tmp_path / "index"
    begun = time.monotonic()
    assert writers.write_until(folder, 10**9) == 0
    longest = time.monotonic() - begun
    seen: dict[str, int] = {}
    n_killed = n_ended = 0
    while n_killed < 30:
        shutil.rmtree(folder, ignore_errors=True)
        if existing:
            build(OLD).save(folder)
        if writers.write_for(folder, draw.uniform(0, longest)) == 0:
            n_ended += 1
            assert n_ended < 200
            longest *= 0.95
        else:
            n_killed += 1
        name = state(folder)
        seen[name] = seen.get(name, 0) + 1
        build(NEW).save(folder)
        assert state(folder) == "new"
        assert is_clean(folder)
    assert seen.keys() <= {"old" if existing else "absent", "new"}


def test_readers_beside_a_writer_that_goes_back_and_forth(tmp_path: Path) -> None:
    # The same manifest comes again: a reader must not take a file that is gone in between for a lost one.
    folder = tmp_path / "index"
    build(OLD).save(folder)
    failures: list[Exception] = []
    seen: set[int] = set()
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            try:
                seen.add(len(Index.open(folder)))
            except RagalignError as error:
                failures.append(error)

    readers = [threading.Thread(target=read) for _ in range(4)]
    for reader in readers:
        reader.start()
    end = time.monotonic() + 3
    while time.monotonic() < end:
        for numbers in (NEW, OLD):
            build(numbers).save(folder)
    done.set()
    for reader in readers:
        reader.join()
    assert not failures, failures[:3]
    assert seen == {len(OLD), len(NEW)}


def test_a_manifest_that_comes_again_is_another_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The race of the test above, made to happen: A is replaced by B and then by A while it is being opened."""
    from ragalign.indexes import store

    folder = tmp_path / "index"
    build(OLD).save(folder)
    check, calls = store._check_file, 0

    def check_while_others_write(*arguments: object) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            build(NEW).save(folder)
            try:
                check(*arguments)  # type: ignore[arg-type]
            finally:
                build(OLD).save(folder)
        check(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(store, "_check_file", check_while_others_write)
    assert len(Index.open(folder)) == len(OLD)


@pytest.mark.parametrize("existing", [False, True], ids=["fresh folder", "over an index"])
def test_files_that_may_not_grow(existing: bool, tmp_path: Path) -> None:
    """As on a full disk, at every size: each file in turn is the one that does not fit any more."""
    index, folder = build(NEW), tmp_path / "index"
    index.save(tmp_path / "whole")
    sizes = sorted({path.stat().st_size for path in (tmp_path / "whole").iterdir()})
    limits = sorted({1, *(size - less for size in sizes for less in (1, 40, 1000))})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    if existing:
        build(OLD).save(folder)
    for limit in limits:
        error = None
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            index.save(folder)
        except RagalignError as raised:
            error = raised
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert isinstance(error, IndexFormatError)
        assert str(folder) in str(error)
        assert "File too large" in str(error) or "written" in str(error)
        assert "\n" not in str(error)
        assert state(folder) == ("old" if existing else "absent")
    index.save(folder)
    assert state(folder) == "new"
    assert is_clean(folder)


READ_ONLY = """
import os, sys, tempfile
sys.path.insert(0, sys.argv[1])
from test_indexes_steps import NEW, build
from ragalign.errors import RagalignError
from ragalign.indexes import Index
index = build(NEW)
# Saving and opening import more, which another user may not be allowed to read.
with tempfile.TemporaryDirectory() as folder:
    index.save(folder)
    Index.open(folder)
os.chdir(sys.argv[2])
if os.getuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
for folder in ("index", "closed", "index/below"):
    try:
        index.save(folder)
    except RagalignError as error:
        print(type(error).__name__, error)
print(len(Index.open("index")))
"""


def test_folders_that_may_not_be_written(tmp_path: Path) -> None:
    build(OLD).save(tmp_path / "index")
    (tmp_path / "closed").mkdir()
    tmp_path.chmod(0o755)
    (tmp_path / "index").chmod(0o555)
    (tmp_path / "closed").chmod(0o000)
    command = [sys.executable, "-c", READ_ONLY, str(Path(__file__).parent), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    (tmp_path / "closed").chmod(0o755)
    assert done.stderr == ""
    *errors, n = done.stdout.splitlines()
    assert len(errors) == 3
    assert all("IndexFormatError cannot write the index" in line and "Permission denied" in line for line in errors)
    assert int(n) == len(OLD)
    assert state(tmp_path / "index") == "old"
