"""From bytes to rows: files of any kind, read as a stream of (place, row)."""
