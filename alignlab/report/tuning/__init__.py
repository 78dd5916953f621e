"""Tuning: what fewer trials would have found, and what every method was given."""
