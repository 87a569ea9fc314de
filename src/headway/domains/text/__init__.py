"""Language models of text: characters, bytes, words or subwords."""

from headway.domains.text.batches import Rows, TextBatch
from headway.domains.text.config import LanguageConfig
from headway.domains.text.recipes import RECIPES
from headway.domains.text.task import Language, StreamedLanguage

__all__ = ["RECIPES", "Language", "LanguageConfig", "Rows", "StreamedLanguage", "TextBatch"]
