"""All readers of foreign files."""

from __future__ import annotations

from codec_readers import CODECS
from composed_readers import COMPOSED
from episode_readers import EPISODES
from model_readers import MODELS

READERS = {**MODELS, **CODECS, **EPISODES, **COMPOSED}
