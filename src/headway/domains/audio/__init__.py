"""Sounds: read from files, brought to one rate, seen as log-mel frames, classified, and heard as text."""

from headway.domains.audio.recipes import RECIPES
from headway.domains.audio.use import Sound, classify
from headway.domains.audio.windows import hears

__all__ = ["RECIPES", "Sound", "classify", "hears"]
