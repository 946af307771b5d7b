"""The protocols of the published evaluations: how each builds its prompts, reads replies and averages."""
