"""Sounds: read from files, brought to one rate, seen as log-mel frames, and heard as text."""
