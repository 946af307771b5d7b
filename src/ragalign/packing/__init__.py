"""Packing: templates and a token budget turn candidates and a conversation into a prompt."""

from ragalign.packing.knobs import Packing
from ragalign.packing.packer import Choice, Packer, without_collector

__all__ = ["Choice", "Packer", "Packing", "without_collector"]
