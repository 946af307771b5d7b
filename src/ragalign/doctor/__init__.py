"""Whether a model, an index and a recipe are fit for each other, and what to mend."""

from ragalign.doctor.checks import Check, Status
from ragalign.doctor.examining import Examination, examine

__all__ = ["Check", "Examination", "Status", "examine"]
