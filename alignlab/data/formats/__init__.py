"""From a row to a prompt group: one small function per format."""
