"""Checkers of verifiable instructions: did a text do what it was told, yes or no."""
