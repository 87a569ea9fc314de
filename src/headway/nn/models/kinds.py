"""What a model is: told by its configuration, once for all who ask.

Each question takes a model or its configuration. What they ask is disjoint where it must be: of `classify`, say, there
is one for texts, one for images and one for sounds.
"""

from __future__ import annotations

from typing import TypeGuard

from torch import nn

from headway.nn.models.agents import StatesEmbedConfig
from headway.nn.models.board import BoardEmbedConfig
from headway.nn.models.captioner import CaptionerConfig
from headway.nn.models.embeds import EmbedConfig, OneHotEmbedConfig, TokenEmbedConfig
from headway.nn.models.encoder_decoder import EncoderDecoderConfig
from headway.nn.models.frames import FramesEmbedConfig, SpectrogramEmbedConfig
from headway.nn.models.patches import PatchEmbedConfig
from headway.nn.models.policies import RobotPolicyConfig
from headway.nn.models.trajectories import TrajectoryEmbedConfig
from headway.nn.models.transformer import ModelConfig, Transformer, TransformerConfig
from headway.nn.models.two_tower import TwoTower, TwoTowerConfig

Asked = nn.Module | ModelConfig


def is_text(model: Asked) -> bool:
    """A stack that reads the symbols of texts, whatever it says of them."""
    return _reads(model, TokenEmbedConfig, OneHotEmbedConfig) and not is_chess(model)


def has_vocabulary(model: Asked) -> bool:
    """A stack that reads symbols and says some."""
    return is_text(model) and _says(model, "vocabulary")


def is_causal(model: Asked) -> bool:
    """A language model: it says each symbol from those before it."""
    return has_vocabulary(model) and _sees_before(model)


def is_masked(model: Asked) -> bool:
    """A masked language model: it says symbols from those on both sides."""
    return has_vocabulary(model) and not _sees_before(model)


def is_text_classifier(model: Asked) -> bool:
    """A stack that says the class of a text, or of two."""
    return is_text(model) and _says(model, "classes")


def is_tagger(model: Asked) -> bool:
    """A stack that says the class of each word."""
    return is_text(model) and _says(model, "tags")


def is_encoder_decoder(model: Asked) -> bool:
    """A stack that reads, whatever that is, and one that writes."""
    return isinstance(_config(model), EncoderDecoderConfig)


def is_translator(model: Asked) -> bool:
    """An encoder-decoder from symbols to symbols."""
    config = _config(model)
    return isinstance(config, EncoderDecoderConfig) and _reads(config.encoder, TokenEmbedConfig, OneHotEmbedConfig)


def is_transcriber(model: Asked) -> bool:
    """An encoder-decoder from sounds to symbols."""
    config = _config(model)
    return isinstance(config, EncoderDecoderConfig) and _reads(config.encoder, FramesEmbedConfig)


def is_audio(model: Asked) -> bool:
    """A stack that reads windows of sound."""
    config = _config(model)
    frames = _reads(config, FramesEmbedConfig) and getattr(config, "context", None) is not None
    return frames or _reads(config, SpectrogramEmbedConfig)


def is_audio_classifier(model: Asked) -> bool:
    """A stack that says the class of a sound."""
    return is_audio(model) and _says(model, "classes")


def is_vision(model: Asked) -> TypeGuard[Transformer | TransformerConfig]:
    """A stack that reads images."""
    return _reads(model, PatchEmbedConfig)


def is_vision_classifier(model: Asked) -> bool:
    """A stack that says the class of an image."""
    return is_vision(model) and _says(model, "classes")


def is_two_tower(model: Asked) -> TypeGuard[TwoTower | TwoTowerConfig]:
    """Two stacks with a space that what they read shares."""
    return isinstance(_config(model), TwoTowerConfig)


def is_captioner(model: Asked) -> bool:
    """A stack that reads an image, and one that writes after what it says."""
    return isinstance(_config(model), CaptionerConfig)


def is_agent(model: Asked) -> bool:
    """A policy that reads states."""
    return _reads(model, StatesEmbedConfig) and _says(model, "policy")


def is_forecaster(model: Asked) -> bool:
    """A stack that reads numbers in steps of time and says quantiles of those to come."""
    return _reads(model, StatesEmbedConfig) and _says(model, "quantiles")


def is_trajectories(model: Asked) -> bool:
    """A model of returns, states and actions."""
    return _reads(model, TrajectoryEmbedConfig)


def is_robot(model: Asked) -> bool:
    """A policy of a robot, which acts in chunks."""
    return isinstance(_config(model), RobotPolicyConfig)


def is_board(model: Asked) -> bool:
    """A model of chess that reads squares."""
    return _reads(model, BoardEmbedConfig)


def is_chess(model: Asked) -> bool:
    """A model of chess, of squares or of the symbols of a position, whose value or best move it says."""
    return is_board(model) or (_reads(model, TokenEmbedConfig) and _says(model, "value"))


def reads_prompts(model: Asked) -> bool:
    """Whether texts go into it by a tokenizer."""
    return is_text(model) or is_translator(model) or is_transcriber(model) or is_two_tower(model) or is_captioner(model)


def generates(model: Asked) -> bool:
    """Whether it writes symbols one after the other."""
    return is_causal(model) or is_encoder_decoder(model) or is_captioner(model)


def kind_of(model: Asked) -> str:
    """What a model is, in words."""
    for is_one, words in _WORDS:
        if is_one(model):
            heads = getattr(_config(model), "heads", None)
            return words.format(heads=", ".join(heads or ()) or "none")
    return f"a {type(_config(model)).__name__.removesuffix('Config')}"


_WORDS = (
    (is_causal, "a language model"),
    (is_masked, "a masked language model"),
    (is_text, "a model of texts (its heads: {heads})"),
    (is_translator, "an encoder-decoder"),
    (is_transcriber, "a model that transcribes sounds"),
    (is_encoder_decoder, "an encoder-decoder"),
    (is_vision, "a model of images (its heads: {heads})"),
    (is_audio, "a model of sounds (its heads: {heads})"),
    (is_two_tower, "a model that compares images with texts"),
    (is_captioner, "a model that writes captions of images"),
    (is_agent, "an agent"),
    (is_forecaster, "a model of time series"),
    (is_trajectories, "a model of trajectories"),
    (is_robot, "a policy of a robot"),
    (is_chess, "a model of chess"),
)


def _config(model: Asked) -> ModelConfig:
    return model if isinstance(model, ModelConfig) else model.config  # type: ignore[return-value]


def _reads(model: Asked, *embeds: type[EmbedConfig]) -> bool:
    config = _config(model)
    return isinstance(config, TransformerConfig) and isinstance(config.embed, embeds)


def _says(model: Asked, head: str) -> bool:
    return head in getattr(_config(model), "heads", ())


def _sees_before(model: Asked) -> bool:
    config = _config(model)
    return isinstance(config, TransformerConfig) and config.stack.causal
