"""Writers that are killed, run out of disk or meet one another never leave an index that opens wrongly."""

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
from pathlib import Path

import pytest
from fixtures.vectors import HashEncoder

from ragalign.errors import IndexFormatError, RagalignError
from ragalign.indexes import Index
from ragalign.pool import Pool
from ragalign.types import Demonstration

N_KILLS = 32

# Builds and saves indexes of growing size for ever; says "ready" once the imports are done.
WRITER = """
import sys
sys.path.insert(0, sys.argv[2])
from fixtures.vectors import HashEncoder
from ragalign.indexes import Index, faiss_backend
from ragalign.pool import Pool
from ragalign.types import Demonstration

faiss_backend.version()
print("ready", flush=True)
n = int(sys.argv[3])
while True:
    pool = Pool.from_demonstrations(Demonstration(f"topic{i % 20} question {i}", f"{n}") for i in range(n))
    Index.build(pool, HashEncoder(64)).save(sys.argv[1])
    print(n, flush=True)
    n += 1
"""


def start_writer(folder: Path, n: int) -> subprocess.Popen[str]:
    tests = str(Path(__file__).parents[1])
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(folder), tests, str(n)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def consistent(index: Index) -> None:
    """The writer gives every response the size of its pool: old and new parts would not agree."""
    assert set(index.pool.responses) == {str(len(index))}
    assert index.vectors.shape == (len(index), 64)


@pytest.mark.parametrize("existing", [False, True], ids=["fresh folder", "over an index"])
def test_a_killed_writer_leaves_the_old_index_or_the_new_one(existing: bool, tmp_path: Path) -> None:
    folder = tmp_path / "index"
    draw = random.Random(17)
    n_absent = n_present = 0
    n = 200
    started = start_writer(folder, n)
    begun = time.monotonic()
    assert started.stdout is not None
    started.stdout.readline()
    duration = time.monotonic() - begun
    started.kill()
    started.communicate()
    for _ in range(N_KILLS // 2):
        if not existing:
            shutil.rmtree(folder, ignore_errors=True)
        process = start_writer(folder, n)
        time.sleep(draw.uniform(0, 2 * duration))
        process.send_signal(signal.SIGKILL)
        saved = [int(line) for line in process.communicate()[0].splitlines()]
        try:
            manifest = Index.verify(folder)
        except IndexFormatError:
            # Nothing has been put in place yet; an index that is there must be whole.
            assert not saved
            assert not (folder / "manifest.json").exists()
            n_absent += 1
        else:
            consistent(Index.open(folder))
            assert manifest.n_demonstrations >= max(saved, default=0)
            n_present += 1
            n = manifest.n_demonstrations + 1
    assert n_present > 0
    assert not (existing and n_absent)
    # The next writer clears away what the killed ones left.
    Index.build(Pool.from_demonstrations([Demonstration("q", "1")]), HashEncoder(64)).save(folder)
    assert sorted(path.name.partition("-")[0].partition(".")[0] for path in folder.iterdir()) == [
        "faiss", "manifest", "pool", "vectors"
    ]  # fmt: skip


def test_a_full_disk_keeps_the_old_index(tmp_path: Path) -> None:
    folder = tmp_path / "index"
    old = Pool.from_demonstrations([Demonstration("q", "1")])
    Index.build(old, HashEncoder(64)).save(folder)
    large = Index.build(Pool.from_demonstrations(Demonstration(f"q {i}", "a") for i in range(2000)), HashEncoder(64))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(IndexFormatError, match="the existing index is unchanged"):
            large.save(folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)
    Index.verify(folder)
    assert len(Index.open(folder)) == 1
    large.save(folder)
    assert len(Index.open(folder)) == 2000


def test_a_second_writer_is_refused(small: Index, tmp_path: Path) -> None:
    import fcntl

    folder = tmp_path / "index"
    small.save(folder)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(IndexFormatError, match="another process is writing"):
            small.save(folder)
    Index.verify(folder)


def test_readers_never_see_half_of_a_replacement(tmp_path: Path) -> None:
    folder = tmp_path / "index"
    process = start_writer(folder, 50)
    assert process.stdout is not None
    assert int(process.stdout.readline()) == 50
    drain = threading.Thread(target=process.stdout.read)
    drain.start()
    failures: list[BaseException] = []
    sizes: set[int] = set()

    def read() -> None:
        end = time.monotonic() + 4
        while time.monotonic() < end:
            try:
                index = Index.open(folder)
                consistent(index)
                sizes.add(len(index))
            except (RagalignError, AssertionError, OSError) as error:
                failures.append(error)

    readers = [threading.Thread(target=read) for _ in range(4)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    drain.join()
    process.stdout.close()
    assert not failures, failures[:3]
    assert len(sizes) > 3
