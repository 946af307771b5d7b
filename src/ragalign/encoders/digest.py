"""A hash of a model folder, over the files that affect its vectors."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

# A repository can have the same weights in several formats; the loader uses the first of these.
_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
_TOKENIZERS = (
    ("tokenizer.json",),
    ("vocab.txt", "vocab.json", "merges.txt", "*.model"),
)
# Sharded weights have an index file, such as model.safetensors.index.json.
_LISTINGS = "*.index.json"
_CONFIGS = ("config.json", "sentence_bert_config.json", "tokenizer_config.json", "modules.json")


def has_model(folder: Path) -> bool:
    """Whether ``folder`` has a complete model: a configuration and all shards of its weights."""
    try:
        if not ((folder / "modules.json").is_file() or (folder / "config.json").is_file()):
            return False
        modules = _module_folders(folder)
        parts = [root / name for root in modules for listing in root.glob(_LISTINGS) for name in _listed(listing)]
        return all(part.is_file() for part in parts) and any(any(_first_of(root, _WEIGHTS)) for root in modules)
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return False


def content_digest(folder: Path) -> str:
    """SHA-256 (hex) over the names and contents of weights, configuration and tokenizer files."""
    total = hashlib.sha256()
    for path in _relevant_files(folder):
        total.update(f"{path.relative_to(folder).as_posix()} {file_sha256(path)}\n".encode())
    return total.hexdigest()


def file_sha256(path: Path) -> str:
    """SHA-256 (hex) of one file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _relevant_files(folder: Path) -> list[Path]:
    found: set[Path] = set()
    for module in _module_folders(folder):
        found.update(_first_of(module, _WEIGHTS))
        for patterns in _TOKENIZERS:
            names = [path for pattern in patterns for path in module.glob(pattern)]
            if names:
                found.update(names)
                break
        found.update(path for name in _CONFIGS if (path := module / name).is_file())
    return sorted(found)


def _first_of(folder: Path, patterns: tuple[str, ...]) -> Iterator[Path]:
    for pattern in patterns:
        paths = list(folder.glob(pattern))
        if paths:
            yield from paths
            return


def _module_folders(folder: Path) -> list[Path]:
    """The module folders of a sentence-transformers model, or the folder itself for a transformers model."""
    modules = folder / "modules.json"
    if not modules.is_file():
        return [folder]
    return [folder / module["path"] for module in json.loads(modules.read_text("utf-8"))]


def _listed(listing: Path) -> set[str]:
    return set(json.loads(listing.read_text("utf-8"))["weight_map"].values())
