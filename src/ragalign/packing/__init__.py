"""Packing: templates and a token budget turn candidates and a conversation into a prompt."""

from ragalign.packing.packer import Choice, Packer, Packing, without_collector

__all__ = ["Choice", "Packer", "Packing", "without_collector"]
