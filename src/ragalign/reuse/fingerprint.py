"""A model's identity: everything that its keys and values depend on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ragalign.errors import ConfigError
from ragalign.reuse.rotation import Rotation

# Configuration entries that do not change any key or value.
_IDLE = ("transformers_version", "_name_or_path", "torch_dtype", "dtype", "use_cache", "architectures")
_WEIGHTS = ("*.safetensors", "*.bin", "*.gguf", "*.pt", "*.pth")


def weights_fingerprint(folder: Path, known: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Hash all weight files of a model, and return what makes the next call quick.

    Without files, nothing would distinguish models of the same shape.

    Args:
        folder: the model's.
        known: what was remembered: for each file its size, the times of its content and of its last change in
            nanoseconds, and its digest. A file whose size and times are as remembered is not read again. The time of
            the content alone can be set to anything, such as the same for all files of an image.

    Raises:
        ConfigError: the folder has no weight files.
    """
    import xxhash

    files = {}
    for path in sorted({path for pattern in _WEIGHTS for path in folder.glob(pattern)}):
        stat = path.stat()
        state = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
        old = known.get(path.name)
        if old is not None and old[:-1] == state:
            files[path.name] = list(old)
            continue
        digest = xxhash.xxh3_128()
        with path.open("rb") as file:
            while chunk := file.read(1 << 24):
                digest.update(chunk)
        files[path.name] = [*state, digest.hexdigest()]
    if not files:
        raise ConfigError(
            f"keys and values cannot be reused: {folder} has no weight files ({', '.join(_WEIGHTS)}); "
            "store the model's weights in a local folder"
        )
    content = json.dumps({name: entry[-1] for name, entry in files.items()}, sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:40], files


def config_fingerprint(config: Any, turned: Sequence[Rotation | None]) -> str:
    """Hash a model's configuration and how its layers rotate keys."""
    record = {name: value for name, value in config.to_dict().items() if name not in _IDLE}
    angles = [None if rotation is None else [rotation.frequencies, rotation.neighbours] for rotation in turned]
    content = json.dumps([record, angles], sort_keys=True, default=str)
    return hashlib.sha256(content.encode()).hexdigest()[:40]
