"""ragalign: make base language models answer like assistants, without fine-tuning.

The public names load on first use, so that ``import ragalign`` costs nothing.
"""
