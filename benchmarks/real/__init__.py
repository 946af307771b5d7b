"""The parts of `results_real.py`."""
