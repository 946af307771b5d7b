"""In-context learning against instruction fine-tuning with the same few demonstrations (Zhao et al. 2024)."""
