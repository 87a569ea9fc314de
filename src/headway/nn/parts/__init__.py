"""Layers of a block that do not mix along time."""
