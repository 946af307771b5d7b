"""Studies: token distribution shift, in-context learning against fine-tuning, selection of demonstrations."""
