"""From what a user calls a model to what engines and tokenizers load."""

from __future__ import annotations

import re
from pathlib import Path

from ragalign.errors import ConfigError
from ragalign.models.cache import ModelCache
from ragalign.models.packaged import PREFIX, packaged_model

_SPLIT_NAME = re.compile(r"-\d{5}-of-\d{5}\.gguf$", re.IGNORECASE)


def locate_model(model: str | Path, *, cache: Path | None = None) -> str:
    """The folder or hub id that engines and tokenizers load for `model`.

    A GGUF file is written once as bfloat16 safetensors into a folder of the model cache; that folder is what comes
    back. Folders and hub ids come back as they are.

    Args:
        model: a folder, a hub id, a GGUF file, a folder that holds one, or ``packaged:NAME``.
        cache: where converted models are kept; by default `ragalign.models.model_cache`.

    Raises:
        ConfigError: there is no such folder, file or packaged model, or it is not clear which file is meant.
        GenerationError: the GGUF file is damaged, or of a kind that transformers does not read.
        MissingDependencyError: the packaged model, or the package `gguf`, is not installed.
    """
    return _locate(model, ModelCache(cache))


def locate_tokenizer(tokenizer: str | Path, *, cache: Path | None = None) -> str:
    """As `locate_model`, where only the tokenizer is needed: of a GGUF file no weights are written.

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
        raise ConfigError(f"there is no model file {name}")
    if isinstance(model, Path) or name.startswith(("/", "./", "../", "~")) or name.count("/") > 1:
        raise ConfigError(f"there is no model folder {name}")
    return name


def display_name(model: str | Path) -> str:
    """What reports and servers call a model: its file's or folder's name without ``.gguf``, or its hub id."""
    name = str(model)
    if name.startswith(PREFIX):
        return name.removeprefix(PREFIX)
    path = Path(name).expanduser()
    if path.suffix.lower() == ".gguf":
        return path.stem
    return path.resolve().name if path.is_dir() else name


def _from_folder(folder: Path, cache: ModelCache) -> str:
    """A model folder as it is; a folder without a model's configuration may hold one GGUF file."""
    if (folder / "config.json").exists():
        return str(folder)
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() == ".gguf" and path.is_file())
    if not files:
        return str(folder)
    if len(files) > 1 and not all(_SPLIT_NAME.search(path.name) for path in files):
        names = ", ".join(path.name for path in files[:5]) + (", ..." if len(files) > 5 else "")
        raise ConfigError(f"the folder {folder} holds {len(files)} GGUF files; name one of them: {names}")
    return _from_file(files[0], cache)


def _from_file(path: Path, cache: ModelCache) -> str:
    if _SPLIT_NAME.search(path.name):
        raise ConfigError(
            f"{path.name} is one part of a split GGUF file; join the parts with llama.cpp's "
            f"`llama-gguf-split --merge FIRST-PART OUT.gguf` and give the whole file"
        )
    from ragalign.models.gguf import GgufFile

    return str(cache.folder_of(GgufFile(path)))


def _has_gguf_magic(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"GGUF"
