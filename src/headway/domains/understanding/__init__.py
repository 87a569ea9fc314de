"""What encoders are fine-tuned for: classes and numbers of texts and pairs, tags of words, vectors of sentences."""

from headway.domains.understanding.classification import ClassificationConfig, PairsConfig
from headway.domains.understanding.embedding import EmbeddingConfig
from headway.domains.understanding.recipes import RECIPES
from headway.domains.understanding.tagging import TaggingConfig
from headway.domains.understanding.use import TaggedWords, Text, classify, embed, tag

__all__ = [
    "RECIPES",
    "ClassificationConfig",
    "EmbeddingConfig",
    "PairsConfig",
    "TaggedWords",
    "TaggingConfig",
    "Text",
    "classify",
    "embed",
    "tag",
]
