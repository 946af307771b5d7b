"""Adapters for other libraries; each loads its library when it is used."""
