"""What a model is: told by its configuration, once for all who ask; and what generation needs of one.

Each question takes a model or its configuration. What they ask is disjoint where it must be: of `classify`, say, there
is one for texts, one for images and one for sounds.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, Protocol, TypeGuard

from jaxtyping import Float, Int
from torch import Tensor, nn

from headway.nn.models.act import Act, ActConfig
from headway.nn.models.agents import StatesEmbedConfig
from headway.nn.models.board import BoardEmbedConfig
from headway.nn.models.captioner import CaptionerConfig
from headway.nn.models.embeds import EmbedConfig, OneHotEmbedConfig, TokenEmbedConfig
from headway.nn.models.encoder_decoder import EncoderDecoderConfig
from headway.nn.models.frames import FramesEmbedConfig, SpectrogramEmbedConfig
from headway.nn.models.patches import PatchEmbedConfig
from headway.nn.models.pooled import PooledHeadConfig
from headway.nn.models.trajectories import TrajectoryEmbedConfig
from headway.nn.models.transformer import ModelConfig, Prompt, Transformer, TransformerConfig
from headway.nn.models.two_tower import TwoTower, TwoTowerConfig
from headway.nn.models.unet_policy import UNetPolicy, UNetPolicyConfig

Cache = Literal["fp32", "fp16", "int8"]  # the numbers that keys and values are kept in


class GenerationProgress(Protocol):
    """A generation under way: what B rows have of the past, and the next position of each."""

    @property
    def positions(self) -> Int[Tensor, "B"]: ...

    def select(self, rows: Int[Tensor, "R"], memory_rows: Int[Tensor, "N"] | None = None) -> Any:
        """Chosen rows, as a copy; the memories stay as they are where `memory_rows` is None."""
        ...

    def assign(self, target: Int[Tensor, "N"], source: Int[Tensor, "N"]) -> None:
        """Make rows `target` what rows `source` are, in place."""
        ...

    def at(self, positions: Int[Tensor, "B"]) -> Any:
        """With other next positions; a row at -1 is padding, which is not written."""
        ...


class Generative(Protocol):
    """A Transformer, an EncoderDecoder, or the engine's form of one."""

    config: Any

    def start(self, prompt: Prompt, capacity: int) -> tuple[Float[Tensor, "B C"], Any]:
        """Read the prompts; the logits after them, and a Progress with room for `capacity` positions a row."""
        ...

    def step(self, ids: Int[Tensor, "B"], decoding: Any) -> tuple[Float[Tensor, "B C"], Any]:
        """One more symbol of each row: the logits after it, and the Progress then."""
        ...

    @property
    def training(self) -> bool: ...

    def train(self, mode: bool = True) -> Any: ...

    def eval(self) -> Any: ...

    def parameters(self) -> Iterator[nn.Parameter]: ...


RobotPolicy = Act | UNetPolicy  # all policies of robots there are: they say chunks of actions
RobotPolicyConfig = ActConfig | UNetPolicyConfig
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


def predicting_head(model: Asked) -> Literal["classes", "number"] | None:
    """The head that predicts something of an input as a whole: classes or labels, or a number."""
    return "classes" if _says(model, "classes") else "number" if _says(model, "number") else None


def is_text_classifier(model: Asked) -> bool:
    """A stack that predicts a class, a number or labels for a text, or for two."""
    return is_text(model) and predicting_head(model) is not None


def is_cross_encoder(model: Asked) -> bool:
    """A stack that gives a text, or a pair of texts, one number: how relevant one is to the other, say."""
    head = getattr(_config(model), "heads", {}).get(predicting_head(model))
    return is_text(model) and isinstance(head, PooledHeadConfig) and head.outputs == 1


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
    frames = _reads(config, FramesEmbedConfig) and config.context is not None
    return frames or _reads(config, SpectrogramEmbedConfig)


def is_audio_classifier(model: Asked) -> bool:
    """A stack that predicts a class, a number or labels for a sound."""
    return is_audio(model) and predicting_head(model) is not None


def is_vision(model: Asked) -> TypeGuard[Transformer | TransformerConfig]:
    """A stack that reads images."""
    return _reads(model, PatchEmbedConfig)


def is_vision_classifier(model: Asked) -> bool:
    """A stack that predicts a class, a number or labels for an image."""
    return is_vision(model) and predicting_head(model) is not None


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


def reads(model: Asked) -> list[Literal["texts", "images", "sounds"]]:
    """Of what the inputs are of which it says something; nothing of these where they are states, or a board."""
    found: list[Literal["texts", "images", "sounds"]] = []
    if is_text(model) or is_translator(model) or is_two_tower(model):
        found.append("texts")
    if is_vision(model) or is_two_tower(model) or is_captioner(model):
        found.append("images")
    return [*found, "sounds"] if is_audio(model) or is_transcriber(model) else found


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
