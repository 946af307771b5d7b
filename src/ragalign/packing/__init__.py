"""Packing: building a prompt from candidates and a conversation, within a token budget."""

from ragalign.packing.choosing import Choice, More
from ragalign.packing.collector import without_collector
from ragalign.packing.packer import Packer
from ragalign.packing.settings import Packing

__all__ = ["Choice", "More", "Packer", "Packing", "without_collector"]
