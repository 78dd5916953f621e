"""The reward–KL plane: gold and proxy reward of whole sweeps against what they cost in KL."""
