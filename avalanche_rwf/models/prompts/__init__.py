"""Published prompt methods, one paper a file, each on the one frozen forward."""
