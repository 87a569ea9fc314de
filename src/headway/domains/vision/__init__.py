"""Images: their classes, their vectors, and where a model looks."""

from headway.domains.vision.looking import Look, look
from headway.domains.vision.recipes import RECIPES
from headway.domains.vision.use import Image, classify, embed

__all__ = ["RECIPES", "Image", "Look", "classify", "embed", "look"]
