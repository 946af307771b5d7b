"""Loading what `ragalign serve` serves: at the start, and again at each reload."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ragalign.aligner import Aligner
from ragalign.errors import IndexMismatchError
from ragalign.indexes import DiskIndex, Index, open_index
from ragalign.recipes import Recipe
from ragalign.tokenization import Tokenizer


class Loader:
    """Creates the aligners of all recipes, which share index, tokenizer and encoder; called again at each reload.

    Args:
        folder: the index's folder, if any.
        opened: the index in it, opened before.
        recipes: by name, the default first.
        store: folder of kept keys and values, if any.
    """

    def __init__(
        self,
        folder: Path | None,
        opened: Index | DiskIndex | None,
        recipes: Mapping[str, Recipe],
        store: Path | None,
    ) -> None:
        self._folder = folder
        self._store = store
        self._recipes = recipes
        self._index = opened
        self._last: Any = None
        self._tokenizer: Tokenizer | None = None
        self.context_length: int | None = None

    def load_tokenizer(self, tokenizer: str) -> None:
        """Load the model's tokenizer."""
        self._tokenizer = Tokenizer.load(tokenizer)

    def check(self, context_length: int | None) -> None:
        """Create the aligners once, so that the faults of their recipes and of the store show before an engine starts.

        Raises:
            ConfigError, DataError: a recipe, a file that it names, or the store is invalid.
        """
        self.context_length = context_length
        self._aligners(self._index)

    def __call__(self) -> dict[str, Aligner]:
        """The aligners by recipe, the default first.

        Raises:
            RagalignError: what is on disk cannot be served.
        """
        if self._folder is not None and self._index is None:
            self._index = self._reopen(self._folder)
        index, self._last, self._index = self._index, self._index, None
        return self._aligners(index)

    def _aligners(self, index: Index | DiskIndex | None) -> dict[str, Aligner]:
        return {
            name: Aligner.from_recipe(
                recipe,
                index=index,
                tokenizer=self._tokenizer,
                context_length=self.context_length,
                store=self._store,
            )
            for name, recipe in self._recipes.items()
        }

    def _reopen(self, folder: Path) -> Index | DiskIndex:
        """Open the index again, keeping the encoder in memory unless the index needs another."""
        try:
            return open_index(folder, encoder=self._last.encoder)
        except IndexMismatchError:
            return open_index(folder)
