"""Published results with their sources, which reports show next to measured ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ragalign._settings import from_table, read_toml
from ragalign.errors import ConfigError
from ragalign.recipes import data_folder


@dataclass(frozen=True, slots=True)
class Published:
    """A published figure.

    Attributes:
        protocol: the protocol that it was measured with; it is shown beside runs of the same protocol.
        name: the system.
        figure: what was measured.
        value: the figure.
        unit: its unit.
        prompts: on which prompts.
        source: who says so.
    """

    protocol: str
    name: str
    figure: str
    value: float
    unit: str
    prompts: str
    source: str

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "protocol": self.protocol,
            "name": self.name,
            "figure": self.figure,
            "value": self.value,
            "unit": self.unit,
            "prompts": self.prompts,
            "source": self.source,
        }


def load_published(protocol: str, path: str | Path | None = None) -> tuple[Published, ...]:
    """The packaged published figures of a protocol, and those of a user's file in the same form.

    Raises:
        ConfigError: the file cannot be read, or an entry is wrong.
    """
    files = [data_folder() / "published.toml", *([Path(path)] if path is not None else [])]
    return tuple(result for file in files for result in _read(file) if result.protocol == protocol)


def _read(path: Path) -> list[Published]:
    table: Mapping[str, Any] = read_toml(path)
    entries = table.get("result")
    if set(table) != {"result"} or not isinstance(entries, list):
        raise ConfigError(f"{path} must consist of tables [[result]]")
    return [from_table(Published, entry, f"{path}: result {number}") for number, entry in enumerate(entries, 1)]
