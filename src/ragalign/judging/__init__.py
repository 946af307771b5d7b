"""Judging: protocols of the published evaluations, their files, and the asking of judges."""
