"""The data gate: known silent data bugs, looked for before a stage trains."""
