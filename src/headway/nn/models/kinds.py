"""Kinds of models, decided from their configuration, the protocols that generation needs, and the mode without dropout.

Each predicate takes a model or its configuration. Predicates that select between domains are disjoint: `classify`, for
example, has one for text, one for images and one for audio.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, Protocol, TypeGuard, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor, nn

from headway.nn.mixers.attention import AttentionConfig
from headway.nn.models.act import Act, ActConfig
from headway.nn.models.agents import StatesEmbedConfig
from headway.nn.models.board import BoardEmbedConfig
from headway.nn.models.captioner import CaptionerConfig
from headway.nn.models.embeds import EmbedConfig, TokenEmbedConfig
from headway.nn.models.encoder_decoder import EncoderDecoderConfig, OneHotEmbedConfig
from headway.nn.models.frames import FramesEmbedConfig, SpectrogramEmbedConfig
from headway.nn.models.patches import PatchEmbedConfig
from headway.nn.models.pooled import PooledHeadConfig
from headway.nn.models.trajectories import TrajectoryEmbedConfig
from headway.nn.models.transformer import ModelConfig, Prompt, Transformer, TransformerConfig
from headway.nn.models.two_tower import TwoTower, TwoTowerConfig
from headway.nn.models.unet_policy import UNetPolicy, UNetPolicyConfig

CacheDtype = Literal["fp32", "fp16", "int8"]  # number format of the KV cache


class GenerationProgress(Protocol):
    """The state of a running generation of B rows, and the next position of each row."""

    @property
    def positions(self) -> Int[Tensor, "B"]: ...

    def select(self, rows: Int[Tensor, "R"], memory_rows: Int[Tensor, "N"] | None = None) -> Any:
        """Return a copy of the chosen rows; None for `memory_rows` leaves the memories unchanged."""
        ...

    def assign(self, target: Int[Tensor, "N"], source: Int[Tensor, "N"]) -> None:
        """Overwrite rows `target` with rows `source`, in place."""
        ...

    def at(self, positions: Int[Tensor, "B"]) -> Any:
        """Return the same state with other next positions; a row at -1 is padding and is not written."""
        ...


@runtime_checkable
class Generative(Protocol):
    """A Transformer, an EncoderDecoder, or the engine's compiled version of one."""

    config: Any

    def start(self, prompt: Prompt, capacity: int) -> tuple[Float[Tensor, "B C"], Any]:
        """Process the prompts; return the logits after them and a state for `capacity` positions per row."""
        ...

    def step(self, ids: Int[Tensor, "B"], decoding: Any) -> tuple[Float[Tensor, "B C"], Any]:
        """Process one more token per row; return the logits after it and the new state."""
        ...

    @property
    def training(self) -> bool: ...

    def train(self, mode: bool = True) -> Any: ...

    def eval(self) -> Any: ...

    def parameters(self) -> Iterator[nn.Parameter]: ...


@contextmanager
def evaluation_mode(model: Generative | nn.Module) -> Iterator[None]:
    """Disable dropout, and restore the mode afterwards. A model already in evaluation mode is left alone, because
    setting the mode of every submodule takes a tenth of a small model's step.
    """
    if not model.training:
        yield
        return
    model.eval()
    try:
        yield
    finally:
        model.train()


RobotPolicy = Act | UNetPolicy  # all robot policies: they predict chunks of actions
RobotPolicyConfig = ActConfig | UNetPolicyConfig
ModelOrConfig = nn.Module | ModelConfig


def is_text(model: ModelOrConfig) -> bool:
    """A stack over the tokens of text, with any heads."""
    return _has_embedding(model, TokenEmbedConfig, OneHotEmbedConfig) and not is_chess(model)


def attends(model: ModelOrConfig) -> bool:
    """A text model with an attention layer."""
    config = _config(model)
    stack = config.stack.blocks if isinstance(config, TransformerConfig) else ()
    return is_text(model) and any(isinstance(block.mixer, AttentionConfig) for block in stack)


def has_vocabulary(model: ModelOrConfig) -> bool:
    """A stack over tokens with a vocabulary head."""
    return is_text(model) and _has_head(model, "vocabulary")


def is_causal(model: ModelOrConfig) -> bool:
    """A language model: it predicts each token from the tokens before it."""
    return has_vocabulary(model) and _has_causal_stack(model)


def is_masked(model: ModelOrConfig) -> bool:
    """A masked language model: it predicts tokens from both directions."""
    return has_vocabulary(model) and not _has_causal_stack(model)


def predicting_head(model: ModelOrConfig) -> Literal["classes", "number"] | None:
    """The head that predicts classes, labels or a number for a whole input."""
    return "classes" if _has_head(model, "classes") else "number" if _has_head(model, "number") else None


def is_text_classifier(model: ModelOrConfig) -> bool:
    """A stack, or an encoder-decoder, that predicts a class, a number or labels for text or a pair of texts."""
    return (is_text(model) or _encodes_tokens(model)) and predicting_head(model) is not None


def is_cross_encoder(model: ModelOrConfig) -> bool:
    """A stack that predicts one number for text or a pair of texts, such as how relevant one is to the other."""
    head = getattr(_config(model), "heads", {}).get(predicting_head(model))
    return is_text(model) and isinstance(head, PooledHeadConfig) and head.outputs == 1


def is_tagger(model: ModelOrConfig) -> bool:
    """A stack that predicts the class of each word."""
    return is_text(model) and _has_head(model, "tags")


def is_answerer(model: ModelOrConfig) -> bool:
    """A stack that predicts where an answer starts and ends in a text."""
    return is_text(model) and _has_head(model, "span")


def is_encoder_decoder(model: ModelOrConfig) -> bool:
    """An encoder of any input, and a decoder that generates."""
    return isinstance(_config(model), EncoderDecoderConfig) and _has_head(model, "vocabulary")


def is_translator(model: ModelOrConfig) -> bool:
    """An encoder-decoder from tokens to tokens."""
    return _encodes_tokens(model) and is_encoder_decoder(model)


def is_transcriber(model: ModelOrConfig) -> bool:
    """An encoder-decoder from audio to tokens."""
    config = _config(model)
    return isinstance(config, EncoderDecoderConfig) and _has_embedding(config.encoder, FramesEmbedConfig)


def is_audio(model: ModelOrConfig) -> bool:
    """A stack over windows of audio."""
    config = _config(model)
    frames = _has_embedding(config, FramesEmbedConfig) and config.context is not None
    return frames or _has_embedding(config, SpectrogramEmbedConfig)


def is_audio_classifier(model: ModelOrConfig) -> bool:
    """A stack that predicts a class, a number or labels for audio."""
    return is_audio(model) and predicting_head(model) is not None


def is_vision(model: ModelOrConfig) -> TypeGuard[Transformer | TransformerConfig]:
    """A stack over images."""
    return _has_embedding(model, PatchEmbedConfig)


def is_vision_classifier(model: ModelOrConfig) -> bool:
    """A stack that predicts a class, a number or labels for an image."""
    return is_vision(model) and predicting_head(model) is not None


def is_two_tower(model: ModelOrConfig) -> TypeGuard[TwoTower | TwoTowerConfig]:
    """Two stacks that embed their inputs in one shared space."""
    return isinstance(_config(model), TwoTowerConfig)


def is_captioner(model: ModelOrConfig) -> bool:
    """An image encoder, and a decoder that generates text after its output."""
    return isinstance(_config(model), CaptionerConfig)


def is_agent(model: ModelOrConfig) -> bool:
    """A policy over states."""
    return _has_embedding(model, StatesEmbedConfig) and _has_head(model, "policy")


def is_forecaster(model: ModelOrConfig) -> bool:
    """A stack over a time series that predicts quantiles of its future values."""
    return _has_embedding(model, StatesEmbedConfig) and _has_head(model, "quantiles")


def is_trajectories(model: ModelOrConfig) -> bool:
    """A model of returns, states and actions."""
    return _has_embedding(model, TrajectoryEmbedConfig)


def is_robot(model: ModelOrConfig) -> bool:
    """A robot policy, which predicts chunks of actions."""
    return isinstance(_config(model), RobotPolicyConfig)


def is_board(model: ModelOrConfig) -> bool:
    """A chess model over squares."""
    return _has_embedding(model, BoardEmbedConfig)


def is_chess(model: ModelOrConfig) -> bool:
    """A chess model over squares or the tokens of a position, which predicts the position's value or best move."""
    return is_board(model) or (_has_embedding(model, TokenEmbedConfig) and _has_head(model, "value"))


def reads_prompts(model: ModelOrConfig) -> bool:
    """Whether the model takes text through a tokenizer."""
    text = is_text(model) or _encodes_tokens(model)
    return text or is_transcriber(model) or is_two_tower(model) or is_captioner(model)


def input_kinds(model: ModelOrConfig) -> list[Literal["texts", "images", "sounds"]]:
    """The kinds of input that the model takes; empty for states or a board."""
    inputs: list[Literal["texts", "images", "sounds"]] = []
    if is_text(model) or _encodes_tokens(model) or is_two_tower(model):
        inputs.append("texts")
    if is_vision(model) or is_two_tower(model) or is_captioner(model):
        inputs.append("images")
    return [*inputs, "sounds"] if is_audio(model) or is_transcriber(model) else inputs


def generates(model: ModelOrConfig) -> bool:
    """Whether the model generates tokens one after the other."""
    return is_causal(model) or is_encoder_decoder(model) or is_captioner(model)


def kind_of(model: ModelOrConfig) -> str:
    """A description of the model's kind."""
    for predicate, template in _KIND_TEXTS:
        if predicate(model):
            heads = getattr(_config(model), "heads", None)
            return template.format(heads=", ".join(heads or ()) or "none")
    return f"a {type(_config(model)).__name__.removesuffix('Config')}"


_KIND_TEXTS = (
    (is_causal, "a language model"),
    (is_masked, "a masked language model"),
    (is_text, "a text model (heads: {heads})"),
    (is_text_classifier, "an encoder-decoder that classifies text"),
    (is_translator, "an encoder-decoder"),
    (is_transcriber, "a speech recognition model"),
    (is_encoder_decoder, "an encoder-decoder"),
    (is_vision, "an image model (heads: {heads})"),
    (is_audio, "an audio model (heads: {heads})"),
    (is_two_tower, "an image-text embedding model"),
    (is_captioner, "an image captioning model"),
    (is_agent, "an agent"),
    (is_forecaster, "a forecasting model"),
    (is_trajectories, "a trajectory model"),
    (is_robot, "a robot policy"),
    (is_chess, "a chess model"),
)


def _config(model: ModelOrConfig) -> ModelConfig:
    return model if isinstance(model, ModelConfig) else model.config  # type: ignore[return-value]


def _has_embedding(model: ModelOrConfig, *embeds: type[EmbedConfig]) -> bool:
    config = _config(model)
    return isinstance(config, TransformerConfig) and isinstance(config.embed, embeds)


def _encodes_tokens(model: ModelOrConfig) -> bool:
    config = _config(model)
    tokens = TokenEmbedConfig, OneHotEmbedConfig
    return isinstance(config, EncoderDecoderConfig) and _has_embedding(config.encoder, *tokens)


def _has_head(model: ModelOrConfig, head: str) -> bool:
    config = _config(model)
    return head in getattr(config.decoder if isinstance(config, EncoderDecoderConfig) else config, "heads", ())


def _has_causal_stack(model: ModelOrConfig) -> bool:
    config = _config(model)
    return isinstance(config, TransformerConfig) and config.stack.causal
