"""The methods, one paper a file: model, equations and registration together."""
