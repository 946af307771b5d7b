"""Models by name: folders, hub ids, GGUF files, and the models that come as packages."""

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
