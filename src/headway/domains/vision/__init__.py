"""Images: their classes."""

from headway.domains.vision.recipes import RECIPES
from headway.domains.vision.use import Image, classify

__all__ = ["RECIPES", "Image", "classify"]
