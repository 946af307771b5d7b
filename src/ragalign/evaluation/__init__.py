"""Evaluation: judgements become figures with intervals, comparisons and reports."""
