"""The folder that holds a pool's keys and values: what they were computed with, and one file for each piece.

    manifest.json     everything that changes a value: model, prefix, template, tokenizer, precision
    pieces/ab/ab...   safetensors, named after the piece's token ids

Pieces are only ever added or removed as whole files, so that many readers and a writer get along.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from ragalign._locks import LockedError, locked
from ragalign._parsing import parse_json
from ragalign.errors import ConfigError, DataError
from ragalign.reuse.eight_bit import BLOCK, PRECISIONS, Precision
from ragalign.reuse.pieces import Piece, is_usable, piece_name, read_piece, write_piece
from ragalign.runs import TEMPORARY, write_json

FORMAT = 2
_SUFFIX = ".safetensors"
_DAMAGED = ".damaged"
# Seconds after which nobody writes to a temporary file any more.
_ABANDONED_S = 600


@dataclass(frozen=True, slots=True)
class StoreManifest:
    """Everything that the keys and values of a store depend on.

    Attributes:
        prefix_ids: the token ids in front of every piece: special ones, preamble and constant demonstrations.
        template, tokenizer: their fingerprints.
        precision: how numbers are kept.
        model: the model, as reported by the engine; None until an engine has opened the store.
        about: what changes no value but helps to understand the folder: versions, names, files' sizes and times.
    """

    prefix_ids: tuple[int, ...]
    template: str
    tokenizer: str
    precision: Precision = "model"
    model: Mapping[str, Any] | None = None
    about: Mapping[str, Any] | None = None

    @property
    def key(self) -> str:
        """A digest of everything that changes a value."""
        return hashlib.sha256(json.dumps(self.record(about=False), sort_keys=True).encode()).hexdigest()[:40]

    @property
    def bytes_per_token(self) -> float | None:
        """The size of one token's keys and values in the store; None before an engine has opened it."""
        if self.model is None:
            return None
        n_heads = 2 * int(self.model["layers"]) * int(self.model["heads"])
        n_features = int(self.model["features"])
        if self.precision != "model":
            return n_heads * (n_features + 4 / BLOCK)
        return float(n_heads * n_features * (4 if self.model["dtype"] == "float32" else 2))

    def record(self, *, about: bool = True) -> dict[str, Any]:
        """JSON values."""
        record: dict[str, Any] = {
            "format": FORMAT,
            "prefix_ids": list(self.prefix_ids),
            "template": self.template,
            "tokenizer": self.tokenizer,
            "precision": self.precision,
            "model": None if self.model is None else dict(self.model),
        }
        return record | {"about": dict(self.about or {})} if about else record


class KeptPieces(Protocol):
    """A store as packers need it."""

    @property
    def manifest(self) -> StoreManifest:
        """The settings that the pieces were computed with."""

    @property
    def key(self) -> str:
        """A digest of everything that changes a value."""

    @property
    def prefix_name(self) -> str:
        """The name of the piece that holds the prefix itself."""

    def has(self, name: str) -> bool:
        """Whether the piece exists."""


@dataclass(frozen=True, slots=True)
class AssumedStore:
    """Claims to hold every piece; for simulations."""

    manifest: StoreManifest

    @property
    def key(self) -> str:
        """The manifest's."""
        return self.manifest.key

    @property
    def prefix_name(self) -> str:
        """The name of the piece that holds the prefix itself."""
        return piece_name(self.manifest.prefix_ids)

    def has(self, name: str) -> bool:
        """True."""
        return True


class Store:
    """Kept keys and values in a folder.

    Args:
        folder: made by `create`.

    Raises:
        DataError: there is no store, or it is damaged or of another version.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.manifest = _read_manifest(self.folder)

    @classmethod
    def create(cls, folder: str | Path, manifest: StoreManifest) -> Store:
        """Create an empty store, or open an existing one that was created with the same settings.

        Raises:
            ConfigError: the folder holds a store with other settings, or something else.
        """
        folder = Path(folder)
        if (folder / "manifest.json").is_file():
            with suppress(_NoStoreError):
                store = cls(folder)
                store.check(manifest)
                return store
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ConfigError(f"{folder}: neither empty nor a store of keys and values; choose another folder")
        folder.mkdir(parents=True, exist_ok=True)
        _write_manifest(folder, manifest)
        return cls(folder)

    @property
    def key(self) -> str:
        """A digest of everything that changes a value."""
        return self.manifest.key

    def check(self, wanted: StoreManifest) -> None:
        """Compare with the wanted manifest; `wanted.model` can be None, for any model.

        Raises:
            ConfigError: something differs.
        """
        here, there = self.manifest.record(about=False), wanted.record(about=False)
        names = [name for name in here if here[name] != there[name] and not (name == "model" and wanted.model is None)]
        if names:
            raise ConfigError(
                f"{self.folder}: these keys and values were computed with another {_differences(names, here, there)}; "
                "build a separate store for this configuration (`ragalign kv build --store FOLDER`)"
            )

    def bind(self, model: Mapping[str, Any], about: Mapping[str, Any] | None = None) -> None:
        """Set the store's model; the first engine that opens the store decides.

        Raises:
            ConfigError: it is for another model.
        """
        if self.manifest.model is None:
            merged = {**(self.manifest.about or {}), **(about or {})}
            self.manifest = replace(self.manifest, model=dict(model), about=merged)
            _write_manifest(self.folder, self.manifest)
            return
        self.check(replace(self.manifest, model=dict(model)))
        if about is not None and about.get("files") != (self.manifest.about or {}).get("files"):
            # A copy of the model: remembered, so that its files are not read again at every start.
            self.manifest = replace(self.manifest, about={**(self.manifest.about or {}), **about})
            with suppress(OSError):  # a store that only others may write to
                _write_manifest(self.folder, self.manifest)

    def path(self, name: str) -> Path:
        """The path of the piece with this name, whether it exists or not."""
        return self.folder / "pieces" / name[:2] / f"{name}{_SUFFIX}"

    def has(self, name: str) -> bool:
        """Whether the piece exists; its content is not checked."""
        return self.path(name).is_file()

    def names(self) -> Iterator[str]:
        """The names of all pieces."""
        for path in sorted((self.folder / "pieces").glob(f"??/*{_SUFFIX}")):
            yield path.name.removesuffix(_SUFFIX)

    def read(self, name: str) -> Piece:
        """Map a piece into memory; see `read_piece`.

        Raises:
            DamagedPieceError, ForeignPieceError, DataError: as `read_piece`.
        """
        return read_piece(self.path(name), self.key)

    def write(self, name: str, piece: Piece) -> None:
        """Write a piece atomically.

        Raises:
            DataError: the folder is gone, or has been built again with other settings.
        """
        if _read_manifest(self.folder).key != self.key:
            raise DataError(f"{self.folder}: built again with other settings meanwhile; restart the engine")
        write_piece(self.path(name), piece, self.key)

    def mark(self, name: str) -> None:
        """Create an empty file for a piece that is kept elsewhere; reading it reports damage."""
        path = self.path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()

    def remove(self, name: str) -> None:
        """Remove a piece, if it exists."""
        self.path(name).unlink(missing_ok=True)

    def set_aside(self, name: str) -> None:
        """Rename a damaged piece, so that it is not read again and the next build computes it."""
        path = self.path(name)
        with suppress(OSError):  # gone already, or a folder that cannot be written to
            path.replace(path.with_suffix(_DAMAGED))

    def clean(self) -> None:
        """Remove torn pieces, those of other settings or set aside, and what interrupted writers have left."""
        for path in (self.folder / "pieces").glob("??/*"):
            is_left = path.name.endswith(TEMPORARY) and time.time() - path.stat().st_mtime > _ABANDONED_S
            is_useless = path.suffix == _SUFFIX and not is_usable(path, self.key)
            if is_left or is_useless or path.suffix == _DAMAGED:
                path.unlink(missing_ok=True)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Be the only process that fills the store; readers are not affected.

        Raises:
            DataError: another one is.
        """
        try:
            with locked(self.folder / ".lock"):
                yield
        except LockedError:
            raise DataError(
                f"{self.folder}: another `ragalign kv build` is at work there; wait until it ends"
            ) from None

    @property
    def prefix_name(self) -> str:
        """The name of the piece that holds the prefix itself."""
        return piece_name(self.manifest.prefix_ids)


class _NoStoreError(DataError):
    """A folder is missing, or is something else."""


def _differences(names: Sequence[str], here: Mapping[str, Any], there: Mapping[str, Any]) -> str:
    if "model" in names and here["model"] is not None and there["model"] is not None:
        fields = [field for field in here["model"] if here["model"][field] != there["model"].get(field)]
        names = [name for name in names if name != "model"] + [
            f"model ({', '.join(fields)}: {', '.join(str(here['model'][field]) for field in fields)} there, "
            f"{', '.join(str(there['model'].get(field)) for field in fields)} here)"
        ]
    return " and another ".join(name.replace("prefix_ids", "prefix") for name in names)


def _read_manifest(folder: Path) -> StoreManifest:
    path = folder / "manifest.json"
    nothing = f"{folder}: no store of keys and values; make one with `ragalign kv build INDEX --recipe R --model M`"
    try:
        record = parse_json(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise _NoStoreError(nothing) from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None
    except ValueError:
        raise DataError(f"{path}: damaged; remove {folder} and build it again") from None
    if not isinstance(record, dict) or "prefix_ids" not in record:
        raise _NoStoreError(nothing)  # such as an index
    if record.get("format") != FORMAT:
        raise DataError(f"{path}: not of format {FORMAT}; remove {folder} and build it again")
    try:
        manifest = StoreManifest(
            prefix_ids=tuple(int(id_) for id_ in record["prefix_ids"]),
            template=str(record["template"]),
            tokenizer=str(record["tokenizer"]),
            precision=record["precision"],
            model=record["model"],
            about=record.get("about"),
        )
    except (KeyError, TypeError, ValueError):
        raise DataError(f"{path}: damaged; remove {folder} and build it again") from None
    if manifest.precision not in PRECISIONS:
        raise DataError(f"{path}: unknown precision {manifest.precision!r}")
    return manifest


def _write_manifest(folder: Path, manifest: StoreManifest) -> None:
    write_json(folder / "manifest.json", manifest.record())
