"""alignlab: the comparison lab for alignment pipelines."""

__version__ = "0.1.0"
