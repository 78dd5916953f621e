"""Sampling completions from a policy, with the log-probabilities they were sampled at."""
