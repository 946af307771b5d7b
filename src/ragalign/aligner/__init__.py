"""The aligner: retrieve, pack, generate."""

from ragalign.aligner.aligner import Aligner
from ragalign.aligner.batches import Failure

__all__ = ["Aligner", "Failure"]
