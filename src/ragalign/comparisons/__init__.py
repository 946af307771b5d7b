"""Comparisons: judged answers become figures with intervals, and paired differences between models."""
