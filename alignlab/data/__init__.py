"""Data: sources, formats, prompt groups, tokenisation, the gate and packing."""
