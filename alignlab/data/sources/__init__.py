"""Where prompt groups come from, and which split each of them is in."""
