"""The subject of the checks: a model's configuration and tokenizer, each read once, and a recipe."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ragalign.models import locate_model
from ragalign.models.cache import CONVERSION_MANIFEST
from ragalign.packing import Packer
from ragalign.pool import Pool
from ragalign.recipes import Recipe, data_folder
from ragalign.tokenization import Tokenizer

# Plain prose that no model has memorised: two paragraphs written for this project.
PARAGRAPH = (
    "The ferry left the harbour a little after six. Most of the passengers had found a seat below, out of the wind, "
    "but a few stayed on deck to watch the lights of the town grow small. An old man shared his bread with the gulls. "
    "Nobody spoke much; the engine was loud, and the morning was cold.\n\nBy noon the island was in sight. The captain "
    "slowed down, because the water near the shore is shallow and the rocks are hard to see at low tide."
)


@dataclass(frozen=True)
class Subject:
    """A model and a recipe.

    Attributes:
        model: the model, as named by the user.
        located: the folder or Hub id that engines load.
        recipe: the recipe to use with the model.
    """

    model: str
    located: str
    recipe: Recipe

    @classmethod
    def of(cls, model: str | Path, recipe: Recipe) -> Subject:
        """Create the subject without reading anything yet."""
        return cls(str(model), locate_model(model), recipe)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that prompts are made with."""
        return Tokenizer.load(self.located)

    @cached_property
    def raw_tokenizer(self) -> Any:
        """The tokenizer as loaded by transformers."""
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.located)

    @cached_property
    def config(self) -> Any:
        """The model's configuration; for a model with several parts, that of the language model."""
        from transformers import AutoConfig

        return AutoConfig.from_pretrained(self.located).get_text_config()

    @cached_property
    def tokenizer_config(self) -> dict[str, Any]:
        """``tokenizer_config.json`` of a model folder, or empty."""
        path = Path(self.located, "tokenizer_config.json")
        found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        return found if isinstance(found, dict) else {}

    @property
    def is_converted(self) -> bool:
        """Whether the folder was converted from a GGUF file, which checks the tokenizer against the file."""
        return Path(self.located, CONVERSION_MANIFEST).is_file()

    @cached_property
    def context_length(self) -> int | None:
        """Maximum tokens of prompt and completion together; None if the configuration does not specify it."""
        found = getattr(self.config, "max_position_embeddings", None) or getattr(self.config, "n_positions", None)
        return int(found) if found else None

    @cached_property
    def starter(self) -> Pool:
        """The starter pool."""
        return Pool.load(data_folder() / "starter.jsonl")

    @cached_property
    def packer(self) -> Packer:
        """The recipe's packer over the starter pool, without a limit on the context."""
        template, constants = self.recipe.make_template()
        return Packer(template, self.tokenizer, self.starter, packing=self.recipe.packing, constants=constants)
