"""In-context learning against instruction fine-tuning on the same few demonstrations (Zhao et al. 2024)."""
