"""The meaning of a trained encoder's similarities: the file ``utility.json`` in its folder."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

from ragalign.errors import ConfigError
from ragalign.runs import write_json

FILE = "utility.json"
TextForm = Literal["instruction", "both"]


@dataclass(frozen=True, slots=True)
class Calibration:
    """A line through measured gains: gain = intercept + slope x cosine, in nats per token of the answer.

    Attributes:
        slope, intercept: of the line.
        text: what the encoder reads of a demonstration: the instruction, or instruction and response.
    """

    slope: float
    intercept: float
    text: TextForm

    @classmethod
    def read(cls, folder: Path) -> Calibration:
        """Read it from an encoder's folder.

        Raises:
            ConfigError: the folder has none, or it is damaged.
        """
        path = folder / FILE
        try:
            row = json.loads(path.read_text(encoding="utf-8"))
            found = cls(float(row["slope"]), float(row["intercept"]), row["text"])
        except FileNotFoundError:
            raise ConfigError(
                f"{folder} has no {FILE}: it was not trained on gains; `ragalign utility train` makes such an encoder"
            ) from None
        except (OSError, ValueError, KeyError, TypeError):
            raise ConfigError(f"{path} is damaged; train the encoder again") from None
        if found.text not in get_args(TextForm):
            raise ConfigError(f"{path} is damaged: text is {found.text!r}; train the encoder again")
        return found

    def write(self, folder: Path) -> None:
        """Write it into an encoder's folder."""
        write_json(folder / FILE, asdict(self))
