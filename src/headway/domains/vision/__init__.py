"""Images: their classes and their vectors."""

from headway.domains.vision.recipes import RECIPES
from headway.domains.vision.use import Image, classify, embed

__all__ = ["RECIPES", "Image", "classify", "embed"]
