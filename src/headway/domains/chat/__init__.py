"""Models that answer: taught by conversations, and by choices between two answers."""

from headway.domains.chat.config import ChatConfig, InstructConfig, PreferenceConfig
from headway.domains.chat.recipes import RECIPES

__all__ = ["RECIPES", "ChatConfig", "InstructConfig", "PreferenceConfig"]
