"""Options and result of training an encoder."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

from ragalign.errors import ConfigError
from ragalign.retrieval.calibration import TextForm
from ragalign.utility.held_out import HeldOut


@dataclass(frozen=True, slots=True)
class TrainOptions:
    """Options of `train_encoder`.

    Attributes:
        epochs: maximum passes over the training questions.
        patience: stop after so many passes without a better fit to the held-out questions.
        batch_size: lists per step.
        list_size: candidates per list.
        lists: lists per question.
        learning_rate: of all weights, after a short warm-up falling linearly to zero.
        held_out: share of the questions that are held out.
        sharpness: of the softmax over gains, which are first scaled to a standard deviation of 1 per question.
        text: what the encoder reads of a demonstration; None for what the index of the scored candidates reads.
        seed: seed of all draws.

    Raises:
        ConfigError: a number is out of range.
    """

    epochs: int = 5
    patience: int = 2
    batch_size: int = 8
    list_size: int = 8
    lists: int = 2
    learning_rate: float = 5e-5
    held_out: float = 0.2
    sharpness: float = 1.5
    text: TextForm | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name, low in (("epochs", 1), ("patience", 1), ("batch_size", 1), ("list_size", 2), ("lists", 1)):
            if getattr(self, name) < low:
                raise ConfigError(f"{name} must be at least {low}, not {getattr(self, name)}")
        for name in ("learning_rate", "sharpness"):
            if not (0 < getattr(self, name) < math.inf):
                raise ConfigError(f"{name} must be above 0, not {getattr(self, name)}")
        if not 0 < self.held_out < 1:
            raise ConfigError(f"held_out must be between 0 and 1, not {self.held_out:g}")
        if self.text is not None and self.text not in get_args(TextForm):
            raise ConfigError(f"text must be instruction or both, not {self.text!r}")


@dataclass(frozen=True, slots=True)
class Trained:
    """A trained encoder.

    Attributes:
        folder: where it is.
        before, after: how it ranks the held-out questions' candidates before and after the training.
        n_questions, n_pairs: what it was trained on, without the held-out questions.
        epochs: passes after which it fitted the held-out questions best; 0 if it never got better.
    """

    folder: Path
    before: HeldOut
    after: HeldOut
    n_questions: int
    n_pairs: int
    epochs: float

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {**asdict(self), "folder": str(self.folder)}
