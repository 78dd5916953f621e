"""Sweeps whose settings are chosen by the results so far, with Optuna."""
