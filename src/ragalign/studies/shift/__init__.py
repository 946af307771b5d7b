"""Token distribution shift (Lin et al. 2023): the tokens of an aligned model that its base model would not choose."""
