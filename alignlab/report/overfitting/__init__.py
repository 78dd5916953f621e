"""Overfitting: held-out rows against rows trained on, and what is copied from them verbatim."""
