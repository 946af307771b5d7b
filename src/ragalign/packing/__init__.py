"""Packing: templates and a token budget turn candidates and a conversation into a prompt."""

from ragalign.packing.choosing import Choice, More
from ragalign.packing.packer import Packer, without_collector
from ragalign.packing.settings import Packing

__all__ = ["Choice", "More", "Packer", "Packing", "without_collector"]
