"""Protocols of the published evaluations: how each builds prompts, parses replies and averages scores."""
