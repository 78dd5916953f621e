"""Models: one backbone, its views, and the padding-free forward pass."""
