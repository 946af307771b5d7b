"""Locating models: from the name that a user gives to the folder or Hub id to load."""

from __future__ import annotations

import re
from pathlib import Path

from ragalign.errors import ConfigError
from ragalign.models.cache import ModelCache
from ragalign.models.packaged import PREFIX, packaged_model

_SPLIT_NAME = re.compile(r"-\d{5}-of-\d{5}\.gguf$", re.IGNORECASE)


def locate_model(model: str | Path, *, cache: Path | None = None) -> str:
    """Locate the folder or Hub id that engines and tokenizers load for `model`.

    A GGUF file is converted once to bfloat16 safetensors in the model cache, whose folder is returned. Folders and Hub
    ids are returned unchanged.

    Args:
        model: a folder, a Hub id, a GGUF file, a folder with one, or ``packaged:NAME``.
        cache: the folder of converted models; `ragalign.models.model_cache` by default.

    Raises:
        ConfigError: no such folder, file or packaged model, or several files match.
        GenerationError: the GGUF file is damaged, or transformers does not support it.
        MissingDependencyError: the packaged model, or the package `gguf`, is not installed.
    """
    return _locate(model, ModelCache(cache))


def locate_tokenizer(tokenizer: str | Path, *, cache: Path | None = None) -> str:
    """Like `locate_model`, for the tokenizer only: the weights of a GGUF file are not converted.

    Raises:
        ConfigError, GenerationError, MissingDependencyError: as `locate_model`.
    """
    return _locate(tokenizer, ModelCache(cache, weights=False))


def _locate(model: str | Path, cache: ModelCache) -> str:
    name = str(model)
    if name.startswith(PREFIX):
        return str(cache.folder_of(packaged_model(name)))
    path = Path(name).expanduser()
    if path.is_file():
        if path.suffix.lower() != ".gguf" and not _has_gguf_magic(path):
            raise ConfigError(f"{name} is neither a model folder nor a GGUF file")
        return _from_file(path, cache)
    if path.is_dir():
        return _from_folder(path, cache)
    if path.suffix.lower() == ".gguf":
        raise ConfigError(f"no model file {name}")
    if isinstance(model, Path) or name.startswith(("/", "./", "../", "~")) or name.count("/") > 1:
        raise ConfigError(f"no model folder {name}")
    return name


def display_name(model: str | Path) -> str:
    """The name of a model in reports and servers: its file or folder name without ``.gguf``, or its Hub id."""
    name = str(model)
    if name.startswith(PREFIX):
        return name.removeprefix(PREFIX)
    path = Path(name).expanduser()
    if path.suffix.lower() == ".gguf":
        return path.stem
    return path.resolve().name if path.is_dir() else name


def _from_folder(folder: Path, cache: ModelCache) -> str:
    """A model folder unchanged, or the converted GGUF file of a folder without a configuration."""
    if (folder / "config.json").exists():
        return str(folder)
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() == ".gguf" and path.is_file())
    if not files:
        return str(folder)
    if len(files) > 1 and not all(_SPLIT_NAME.search(path.name) for path in files):
        names = ", ".join(path.name for path in files[:5]) + (", ..." if len(files) > 5 else "")
        raise ConfigError(f"the folder {folder} has {len(files)} GGUF files; name one of them: {names}")
    return _from_file(files[0], cache)


def _from_file(path: Path, cache: ModelCache) -> str:
    if _SPLIT_NAME.search(path.name):
        raise ConfigError(
            f"{path.name} is one part of a split GGUF file; join the parts with llama.cpp's "
            f"`llama-gguf-split --merge FIRST-PART OUT.gguf` and use the whole file"
        )
    from ragalign.models.gguf import GgufFile

    return str(cache.folder_of(GgufFile(path)))


def _has_gguf_magic(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"GGUF"
