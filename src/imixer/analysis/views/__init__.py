"""One file per measurement: its table on the screen, its numbers for JSON, its figure."""
