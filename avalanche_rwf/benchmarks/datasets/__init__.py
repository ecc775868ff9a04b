"""Image sources, one a file; importing a file registers it."""
