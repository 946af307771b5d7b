"""Models by name: folders, Hub ids, GGUF files and packaged models."""

from ragalign.models.cache import CACHE_VARIABLE, model_cache
from ragalign.models.locate import display_name, locate_model, locate_tokenizer
from ragalign.models.packaged import PACKAGED, PackagedModel

__all__ = [
    "CACHE_VARIABLE",
    "PACKAGED",
    "PackagedModel",
    "display_name",
    "locate_model",
    "locate_tokenizer",
    "model_cache",
]
