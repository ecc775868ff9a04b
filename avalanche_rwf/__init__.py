"""Routing without Forgetting for Avalanche."""
