"""Kinds of streams, one a file: pure functions from labels to the samples of each experience."""
