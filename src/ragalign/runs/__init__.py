"""Runs: output folders that can be resumed."""
