"""Studies: token distribution shift, in-context learning against fine-tuning, and selection of demonstrations."""
