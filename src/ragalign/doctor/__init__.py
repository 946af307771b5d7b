"""Checking that a model, an index and a recipe work together, with advice on what to fix."""

from ragalign.doctor.checks import Check, Status
from ragalign.doctor.examining import Examination, examine

__all__ = ["Check", "Examination", "Status", "examine"]
