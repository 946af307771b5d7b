"""Token distribution shift (Lin et al. 2023): where an aligned model writes what its base model would not have."""
