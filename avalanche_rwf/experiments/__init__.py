"""One run: its frozen configuration, its directory, and lists of runs."""
