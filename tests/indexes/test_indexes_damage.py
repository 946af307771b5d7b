"""Damage on disk: whatever byte is wrong, `verify` finds it, and nothing is unpickled."""

from __future__ import annotations

import json
import pickle
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from fixtures.vectors import HashEncoder

from ragalign.errors import ConfigError, IndexFormatError, IndexMismatchError
from ragalign.indexes import Index


@pytest.fixture
def folder(small: Index, tmp_path: Path) -> Path:
    small.save(tmp_path / "index")
    return tmp_path / "index"


def flip(path: Path, position: int, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1 << bit
    path.write_bytes(content)


def test_one_flipped_byte_anywhere_is_found(folder: Path) -> None:
    draw = random.Random(0)
    files = sorted(path for path in folder.iterdir() if path.is_file())
    assert len(files) == 4
    for path in files:
        original = path.read_bytes()
        whole = path.name == "manifest.json"
        positions = range(len(original)) if whole else draw.sample(range(len(original)), min(120, len(original)))
        for position in positions:
            flip(path, position, draw.randrange(8))
            with pytest.raises(IndexFormatError):
                Index.verify(folder)
            path.write_bytes(original)
    Index.verify(folder)


@pytest.mark.parametrize("role", ["pool", "vectors", "faiss", "manifest"])
def test_cut_and_missing_files_are_named(folder: Path, role: str) -> None:
    [path] = folder.glob(f"{role}*")
    original = path.read_bytes()
    path.write_bytes(original[:-7])
    with pytest.raises(IndexFormatError, match=role):
        Index.open(folder)
    path.unlink()
    with pytest.raises(IndexFormatError, match=role):
        Index.open(folder)
    path.write_bytes(original)
    Index.open(folder)


def test_no_pickle_is_ever_read(folder: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (Path(folder / "pwned"),)  # type: ignore[return-value]

    [vectors] = folder.glob("vectors*")
    np.save(vectors, np.array([Evil()], dtype=object), allow_pickle=True)
    with pytest.raises(IndexFormatError):
        Index.open(folder)
    # Even a manifest that vouches for the file does not make it load.
    import hashlib

    content = (folder / "manifest.json").read_text()
    values = json.loads(content)
    digest = hashlib.sha256(vectors.read_bytes()).hexdigest()
    values["files"]["vectors"] |= {"sha256": digest, "size": vectors.stat().st_size}
    values["checksum"] = "0" * 64
    blank = json.dumps(values, indent=2) + "\n"
    (folder / "manifest.json").write_text(blank.replace("0" * 64, hashlib.sha256(blank.encode()).hexdigest(), 1))
    with pytest.raises(IndexFormatError, match="damaged"):
        Index.open(folder)
    assert not (folder / "pwned").exists()
    assert not any(pickle.dumps(None)[:2] == path.read_bytes()[:2] for path in folder.iterdir())


def test_another_format_version_is_refused(folder: Path) -> None:
    import hashlib

    values = json.loads((folder / "manifest.json").read_text()) | {"format_version": 99, "checksum": "0" * 64}
    blank = json.dumps(values, indent=2) + "\n"
    (folder / "manifest.json").write_text(blank.replace("0" * 64, hashlib.sha256(blank.encode()).hexdigest(), 1))
    with pytest.raises(IndexFormatError, match="format version 99"):
        Index.open(folder)


def test_another_encoder_is_refused_by_name(folder: Path) -> None:
    class Other(HashEncoder):
        id = "other"
        revision = "2"

    assert len(Index.open(folder, encoder=HashEncoder())) == 40
    with pytest.raises(IndexMismatchError, match=r"'hash'.*not with 'other'"):
        Index.open(folder, encoder=Other())


def test_folders_that_are_no_index_are_left_alone(small: Index, tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "todo.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"todo\.txt"):
        small.save(tmp_path / "notes")
    assert [path.name for path in (tmp_path / "notes").iterdir()] == ["todo.txt"]
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ConfigError, match="is a file"):
        small.save(tmp_path / "file")
    with pytest.raises(IndexFormatError, match="no index folder"):
        Index.open(tmp_path / "nowhere")
    with pytest.raises(IndexFormatError, match="manifest"):
        Index.open(tmp_path / "notes")


def test_a_copied_folder_is_an_index(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    Index.verify(tmp_path / "copy")


def test_the_format_can_be_read_without_ragalign(folder: Path) -> None:
    """As indexes/README.md specifies it, with the standard library, NumPy and pyarrow only."""
    import hashlib

    import pyarrow.parquet as pq

    content = (folder / "manifest.json").read_bytes()
    manifest = json.loads(content)
    blank = content.replace(manifest["checksum"].encode(), b"0" * 64, 1)
    assert hashlib.sha256(blank).hexdigest() == manifest["checksum"]
    assert (manifest["format"], manifest["format_version"]) == ("ragalign-index", 1)
    for record in manifest["files"].values():
        data = (folder / record["name"]).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (record["size"], record["sha256"])
    vectors = np.load(folder / manifest["files"]["vectors"]["name"], allow_pickle=False)
    pool = pq.read_table(folder / manifest["files"]["pool"]["name"])
    assert vectors.shape == (manifest["n_demonstrations"], manifest["encoder"]["dimension"])
    assert pool.num_rows == manifest["n_demonstrations"]
    ids = pool["id"].to_pylist()
    assert hashlib.sha256("".join(f"{id_}\n" for id_ in ids).encode()).hexdigest() == manifest["pool_fingerprint"]


@pytest.mark.parametrize("name", ["../outside.npy", "/etc/hostname", "vectors.npy", None])
def test_a_manifest_cannot_name_other_files(folder: Path, name: str | None) -> None:
    import hashlib

    values = json.loads((folder / "manifest.json").read_text()) | {"checksum": "0" * 64}
    if name is None:
        del values["files"]["vectors"]
    else:
        values["files"]["vectors"]["name"] = name
    blank = json.dumps(values, indent=2) + "\n"
    (folder / "manifest.json").write_text(blank.replace("0" * 64, hashlib.sha256(blank.encode()).hexdigest(), 1))
    with pytest.raises(IndexFormatError, match="names no vectors file"):
        Index.open(folder)
