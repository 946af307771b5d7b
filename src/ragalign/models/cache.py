"""The cache of converted models, so that each GGUF file is converted only once."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from ragalign._parsing import parse_json
from ragalign.errors import ConfigError

CACHE_VARIABLE = "RAGALIGN_CACHE"

# Part of the names of cached folders. Increase it when the conversion changes, so that older results are not used.
_FORMAT = 1
CONVERSION_MANIFEST = "converted.json"

logger = logging.getLogger(__name__)


class WeightsSource(Protocol):
    """A source of a GGUF file."""

    @property
    def label(self) -> str:
        """The name of the file in messages."""

    def digest(self) -> str:
        """The SHA-256 of the file."""

    def opened(self, scratch: Path) -> AbstractContextManager[Path]:
        """The file's path inside a block; `scratch` is a folder for joined parts."""


def model_cache() -> Path:
    """The folder of converted models: in RAGALIGN_CACHE, or else in the user's cache folder."""
    if folder := os.environ.get(CACHE_VARIABLE):
        return Path(folder).expanduser() / "models"
    import platformdirs

    return platformdirs.user_cache_path("ragalign") / "models"


class ModelCache:
    """Converted models by the SHA-256 of their files.

    A folder is written under a temporary name and renamed when complete, under a lock, so that two processes that need
    the same model convert it once. Sizes and hashes of its files are checked at each use; a damaged folder is
    rewritten.

    Args:
        folder: the folder of the cache; `model_cache` by default.
        weights: whether the weights are needed; if not, only the tokenizer is converted, unless the model is cached.
    """

    def __init__(self, folder: Path | None = None, *, weights: bool = True) -> None:
        self._folder = folder if folder is not None else model_cache()
        self._weights = weights

    def folder_of(self, source: WeightsSource) -> Path:
        """Return the folder of the converted model, converting it if it is missing or damaged.

        Raises:
            ConfigError: the cache cannot be written.
            GenerationError: the file is damaged, or transformers does not support it.
            MissingDependencyError: the package `gguf` is not installed.
        """
        digest = source.digest()
        whole = self._folder / f"{digest[:24]}-{_FORMAT}"
        if _is_intact(whole, digest):
            return whole
        folder = whole if self._weights else whole.with_name(f"{whole.name}-tokenizer")
        if not self._weights and _is_intact(folder, digest):
            return folder
        from filelock import FileLock

        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{folder}.lock"):
                # Another process can have written it while this one waited.
                if not _is_intact(folder, digest):
                    self._write(source, digest, folder)
        except OSError as error:
            reason = error.strerror or str(error)
            raise ConfigError(
                f"cannot write the converted model to {self._folder}: {reason}; set {CACHE_VARIABLE} to another folder"
            ) from None
        return folder

    def _write(self, source: WeightsSource, digest: str, folder: Path) -> None:
        from ragalign.models.conversion import convert
        from ragalign.models.gguf import read_header

        if folder.exists():
            logger.info("the converted copy of %s in %s is damaged; converting it again", source.label, folder)
        part = folder.with_name(f"{folder.name}.part")
        shutil.rmtree(part, ignore_errors=True)  # left by a killed process
        part.mkdir()
        try:
            with source.opened(part) as path:
                header = read_header(path, source.label)
                size = f"{2 * header.n_weights / 1e9:.2f} GB in bfloat16" if self._weights else "the tokenizer only"
                logger.info("reading %s once, into %s (%s) ...", source.label, folder, size)
                convert(path, header, part, label=source.label, weights=self._weights)
            mode = (part / "tokenizer.json").stat().st_mode
            for path in part.iterdir():
                path.chmod(mode)  # safetensors writes files for the owner only, but caches are shared
            files = {path.name: _facts(path) for path in sorted(part.iterdir())}
            manifest = {"source": {"name": source.label, "sha256": digest}, "files": files}
            (part / CONVERSION_MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
            shutil.rmtree(folder, ignore_errors=True)
            part.rename(folder)
        finally:
            shutil.rmtree(part, ignore_errors=True)


def _is_intact(folder: Path, digest: str) -> bool:
    """Whether the folder's files are unchanged."""
    try:
        manifest: Any = parse_json((folder / CONVERSION_MANIFEST).read_text(encoding="utf-8"))
        files: Mapping[str, Any] = manifest["files"]
        if manifest["source"]["sha256"] != digest or not files:
            return False
        if any((folder / name).stat().st_size != facts["n_bytes"] for name, facts in files.items()):
            return False
        return all(_facts(folder / name) == facts for name, facts in files.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _facts(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"n_bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
