"""Adapters for other libraries, which are imported on use."""
