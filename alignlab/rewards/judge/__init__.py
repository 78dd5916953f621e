"""Judges: which of two completions of one prompt is the better one."""
