"""Action chunking with transformers: predict a robot's next actions at once from its observations.

Observations become tokens as in LeRobot's ACT: one per position of a residual network's output.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from headway.config_kinds import register
from headway.errors import ConfigError, UserError
from headway.layout import Layout
from headway.nn.mixers import AttentionConfig, CrossAttentionConfig
from headway.nn.models.block import BlockConfig
from headway.nn.models.chunks import (
    ChunkHeadConfig,
    ChunkNoise,
    Chunks,
    NoisyChunks,
    PosteriorEmbedConfig,
    PosteriorInputs,
    QueriesConfig,
    RegressionConfig,
)
from headway.nn.models.embeds import Embed, EmbedConfig
from headway.nn.models.encoder_decoder import EncodedSource, EncoderDecoder, EncoderDecoderConfig
from headway.nn.models.heads import Loss
from headway.nn.models.pooled import PooledHeadConfig
from headway.nn.models.resnet import STRIDE, ResNet, ResNetDepth
from headway.nn.models.robot import Observations, RobotEmbed, RobotEmbedConfig
from headway.nn.models.stack import StackConfig, cycle
from headway.nn.models.trajectories import StepHeadConfig
from headway.nn.models.transformer import ModelConfig, Transformer, TransformerConfig
from headway.nn.parts.feedforward import MLPConfig, Terms
from headway.nn.parts.init import InitConfig
from headway.nn.parts.norm import LayerNormConfig
from headway.nn.parts.positions import PositionsConfig, angle_dtype
from headway.nn.parts.projection import Projection
from headway.visibility import Full

_MAX_SIDE = 1 << 14  # maximum height or width in pixels


@register("grids")
@dataclass(frozen=True)
class GridsConfig(PositionsConfig):
    """A learned vector for each of the first `front` positions, then sinusoids of row and column for each position of
    each grid, row by row. There are no other positions.
    """

    front: int = 0  # learned vectors before the grids
    grids: tuple[tuple[int, int], ...] = ()  # rows and columns of each grid
    theta: float = 10000.0  # base of the wavelengths

    @property
    def length(self) -> int:
        return self.front + sum(rows * columns for rows, columns in self.grids)

    def build(self, width: int, context: int | None) -> nn.Module:
        if self.grids and width % 4:
            raise ConfigError(f"width is {width}; set a multiple of 4 for sinusoids of rows and columns")
        return Grids(self, width)


class Grids(nn.Module):
    """Carion et al. 2020 (DETR), section A.4: half of a vector encodes the row, half the column, both counted from 1
    and scaled so that the last is at 2 pi.
    """

    def __init__(self, config: GridsConfig, width: int) -> None:
        super().__init__()
        self.config, self.width = config, width
        self.table = nn.Parameter(torch.empty(config.front, width))

    def forward(self, layout: Layout, like: Tensor) -> Float[Tensor, "#B T D"]:
        vectors: list[Tensor] = [self.table]
        half, device = self.width // 2, self.table.device
        rates = torch.exp(
            torch.arange(0, half, 2, device=device, dtype=angle_dtype(device)) * (-math.log(self.config.theta) / half)
        )
        for rows, columns in self.config.grids:
            lines = []
            for count in (rows, columns):
                angles = torch.arange(1, count + 1, device=device, dtype=angle_dtype(device)) / count * (2 * math.pi)
                phases = angles[:, None] * rates
                lines.append(torch.stack((phases.sin(), phases.cos()), -1).flatten(1))
            down, across = lines
            both = torch.cat([down[:, None].expand(-1, columns, -1), across[None].expand(rows, -1, -1)], -1)
            vectors.append(both.flatten(0, 1).to(self.table.dtype))
        positions = layout.positions[:1] if layout.dense else layout.positions
        return nn.functional.embedding(positions.clamp(min=0), torch.cat(vectors))


@register("scene")
@dataclass(frozen=True)
class SceneEmbedConfig(EmbedConfig):
    """The tokens are the latent, the robot's state (the first `robot` numbers of the state), the `surroundings` numbers
    after them, and one per output position of a residual network shared by all cameras. A size of 0 omits the token.

    The tokens have no positions; the stack's attention adds `grid_positions`.
    """

    robot: int = 0  # size of the robot's own state
    surroundings: int = 0  # size of the environment's state
    cameras: tuple[tuple[int, int], ...] = ()  # height and width of each camera's images
    latent: int = 0  # size of the latent
    depth: ResNetDepth = 18  # layers of the residual network
    dropout: float = 0.0  # dropout rate of the posterior's tokens

    def __post_init__(self) -> None:
        if min(self.robot, self.surroundings, self.latent) < 0:
            raise ConfigError(
                f"robot={self.robot}, surroundings={self.surroundings} and latent={self.latent}: all must be at least 0"
            )
        for size in self.cameras:
            if not 1 <= min(size) <= max(size) <= _MAX_SIDE:
                raise ConfigError(
                    f"images of {size[0]} x {size[1]} pixels are not supported; set both sides from 1 to {_MAX_SIDE}"
                )

    @property
    def states(self) -> int:
        """Size of a state."""
        return self.robot + self.surroundings

    @property
    def front(self) -> int:
        """Number of tokens before the image tokens."""
        return sum(map(bool, (self.latent, self.robot, self.surroundings)))

    @property
    def grid_positions(self) -> GridsConfig:
        """Learned positions of the first tokens, and sinusoids of rows and columns for images."""
        grids = tuple((-(-height // STRIDE), -(-width // STRIDE)) for height, width in self.cameras)
        return GridsConfig(self.front, grids)

    @property
    def length(self) -> int:
        return self.grid_positions.length

    def with_inputs(self, states: int, cameras: tuple[tuple[int, int], ...]) -> SceneEmbedConfig:
        """Return this config. Raises ConfigError for states and cameras with other sizes."""
        sizes = tuple(map(tuple, self.cameras))
        if (states, tuple(map(tuple, cameras))) != (self.states, sizes):
            raise ConfigError(
                f"this model takes states of size {self.states} and images of {sizes}, but the demonstrations have "
                f"{states} and {cameras}; use demonstrations from its robot"
            )
        return self

    def describe_inputs(self, vocab_size: int, context: int | None) -> str:
        sizes = ", ".join(f"{height} x {width}" for height, width in self.cameras)
        cameras = f", {len(self.cameras)} cameras of {sizes}" if self.cameras else ""
        return f"states of size {self.states}{cameras}, {self.length} tokens"

    def summary(self) -> str:
        return f"scene, images by ResNet-{self.depth}" if self.cameras else "scene"

    def build(self, width: int, vocab_size: int, context: int | None) -> SceneEmbed:
        if not self.front and not self.cameras:
            raise ConfigError("the observation has no state and no cameras; set robot, surroundings or cameras")
        return SceneEmbed(self, width)


class SceneEmbed(Embed):
    """Zhao et al. 2023, figure 4, with the convolutional features of its appendix C."""

    def __init__(self, config: SceneEmbedConfig, width: int) -> None:
        super().__init__()
        self.config = config
        sizes = {"latent": config.latent, "robot": config.robot, "surroundings": config.surroundings}
        self.numbers = nn.ModuleDict({name: Projection(size, width) for name, size in sizes.items() if size})
        self.eye = ResNet(config.depth) if config.cameras else None
        self.project = Projection(self.eye.width, width) if self.eye is not None else None

    def default_layout(self, observations: Observations) -> Layout:
        """One document per row. Raises UserError for missing or unsupported inputs."""
        size = 0 if observations.states is None else observations.states.shape[-1]
        if size != self.config.states:
            raise UserError(f"states have size {size}, not this model's {self.config.states}; pass the robot's states")
        sizes = tuple(tuple(image.shape[2:]) for image in observations.images)
        if sizes != tuple(map(tuple, self.config.cameras)):
            raise UserError(
                f"images are {sizes}, but the model takes {self.config.cameras}; pass images from all its cameras"
            )
        return Layout.full(observations.rows, self.config.length, device=observations.device)

    def forward(self, observations: Observations, layout: Layout) -> tuple[Float[Tensor, "B T D"], Layout]:
        latent = observations.latent
        if latent is None:
            latent = torch.zeros(
                observations.rows, self.config.latent, device=observations.device, dtype=observations.dtype
            )
        inputs = {"latent": latent}
        if observations.states is not None:
            parts = observations.states.split((self.config.robot, self.config.surroundings), -1)
            inputs["robot"], inputs["surroundings"] = parts
        tokens = [project(inputs[name])[:, None] for name, project in self.numbers.items()]
        if self.eye is not None and self.project is not None:
            tokens += [self.project(self.eye(image).flatten(1, 2)) for image in observations.images]
        return torch.cat(tokens, 1), layout


_HEAD, _LATENT, _UNSEEN = "actions", "latent", "unseen"
_STACKS = ("encoder", "decoder", "posterior")


@register("act")
@dataclass(frozen=True)
class ActConfig(ModelConfig):
    """An encoder for observations and a decoder with one query per action in a chunk. If the head has a latent, a
    posterior infers it from demonstrated chunks. If the decoder and posterior stacks add positions to queries and keys,
    their inputs have no positions.

    `state_loss` is the weight of a second loss (Levine et al. 2016, section 5.2): the mean absolute error of the state
    values that the policy does not take, predicted from the encoder's mean output.

    In addition to its fields, `--set` takes depth (a number, [encoder, decoder] or [encoder, decoder, posterior]),
    heads, mixer and dropout for all stacks.
    """

    width: int = 256  # width of the model
    chunk: int = 50  # actions predicted at once
    actions: int = 1  # size of an action; set from the data
    words: int = 0  # vocabulary of task names, 0 for none; set from the data
    unseen: int = 0  # state values to predict in training, 0 for none; set from the data
    state_loss: float = 0.0  # weight of the loss of predicted state values; 0: not predicted
    observation: RobotEmbedConfig | SceneEmbedConfig = RobotEmbedConfig()  # embedding of observations
    encoder: StackConfig = StackConfig()  # stack over an observation
    decoder: StackConfig = StackConfig()  # stack that predicts the actions
    posterior: StackConfig = StackConfig()  # stack that infers the latent of a demonstrated chunk
    head: ChunkHeadConfig = RegressionConfig()  # method for learning chunks
    init: InitConfig = InitConfig(matrices="fan_in", embedding=1.0)  # initialisation; embeddings match what is added

    @property
    def history(self) -> int:
        """Number of observed steps: only the current one."""
        return 1

    @property
    def horizon(self) -> int:
        """Number of predicted actions, all from the current step on."""
        return self.chunk

    @property
    def context(self) -> None:
        """No limit: observations have a fixed length."""
        return

    @property
    def encoder_decoder(self) -> EncoderDecoderConfig:
        """Encoder and decoder."""
        embed = replace(self.observation, latent=self.head.size or self.observation.latent)
        states = {_UNSEEN: PooledHeadConfig(self.unseen, pool="mean")} if self.unseen else {}
        encoder = TransformerConfig(
            self.width, self.words, None, self.encoder, embed, cast(Any, states), "none", self.init
        )
        noised = self.actions if self.head.noised else 0
        queries = QueriesConfig(self.chunk, noised, self.observation.dropout, self.decoder.positions is None)
        heads = {_HEAD: StepHeadConfig(self.actions, 0, 1)}
        decoder = TransformerConfig(self.width, 0, None, self.decoder, queries, cast(Any, heads), "none", self.init)
        return EncoderDecoderConfig(encoder, decoder, "none", self.init)

    @property
    def inference(self) -> TransformerConfig | None:
        """The posterior; None without a latent."""
        if not self.head.size:
            return None
        has_positions = self.posterior.positions is not None
        embed = PosteriorEmbedConfig(
            self.posterior_state_size, self.actions, self.observation.dropout, not has_positions
        )
        head = {_LATENT: PooledHeadConfig(2 * self.head.size)}
        return TransformerConfig(self.width, 0, None, self.posterior, embed, cast(Any, head), "none", self.init)

    @property
    def posterior_state_size(self) -> int:
        """How many leading numbers of a state the posterior reads."""
        observation = self.observation
        return observation.robot if isinstance(observation, SceneEmbedConfig) else observation.states

    def build(self, seed: int | None = 0) -> Act:
        return Act(self, seed)


class Act(nn.Module):
    """Zhao et al. 2023: an encoder-decoder over one observation, trained as the decoder of a conditional variational
    autoencoder. Its encoder, the posterior, is for training only; at inference the latent is 0.
    """

    def __init__(self, config: ActConfig, seed: int | None = 0) -> None:
        super().__init__()
        self.config = config
        if min(config.actions, config.chunk) < 1:
            raise ConfigError(f"model.chunk={config.chunk} and model.actions={config.actions}: both must be at least 1")
        for name in _STACKS:
            stack: StackConfig = getattr(config, name)
            if any(block.mixer.causal for block in stack.blocks):
                raise ConfigError(
                    f"model.{name} is causal, but observations and chunks are processed as a whole; use bidirectional "
                    "mixers, such as attention with pattern full"
                )
        self.trunk = EncoderDecoder(config.encoder_decoder, seed)
        inference = config.inference
        self.posterior = None if inference is None else Transformer(inference, None if seed is None else seed + 1)

    def forward(self, observations: Observations, sample: ChunkNoise) -> Float[Tensor, "B C A"]:
        """Predict the chunks that follow observations, in normalised units. The latent is `observations.latent`, or 0
        if that is None; `sample` is the initial noise of diffusion, unused by regression.
        """
        return self.config.head.predict(self, observations, sample)

    def losses(self, observations: Observations, chunks: Chunks, sample: ChunkNoise) -> dict[str, Loss]:
        """The head's losses on demonstrated chunks; see ChunkHeadConfig."""
        return self.config.head.losses(self, observations, chunks, sample)

    def sample_noise(self, random: np.random.Generator, rows: int) -> ChunkNoise:
        """Sample the noise for `rows` chunks."""
        return self.config.head.sample_noise(random, rows, self.config.chunk, self.config.actions)

    def encode(self, observations: Observations) -> tuple[EncodedSource, Terms]:
        """Encoded observations for the decoder, and auxiliary losses."""
        layout = cast(RobotEmbed | SceneEmbed, self.trunk.encoder.embed).default_layout(observations)
        features = self.trunk.encoder(observations, layout)
        encoded = self.trunk.remember(features)
        if observations.unseen is None:
            return encoded, encoded.auxiliary
        predicted = self.trunk.encoder.heads[_UNSEEN](features.x, features.layout)
        error = (predicted - observations.unseen).abs().mean()
        return encoded, {**encoded.auxiliary, _UNSEEN: self.config.state_loss * error}

    def decode_chunk(self, encoded: EncodedSource, noisy: NoisyChunks | None) -> Float[Tensor, "B C A"]:
        """The decoder's output for each action of a chunk."""
        memory = cast(Any, encoded.memories)
        layout = next(layer_memory.layout for layer_memory in memory if layer_memory is not None)
        query_layout = Layout.full(layout.batch, self.config.chunk, device=layout.positions.device)
        x = self.trunk(encoded, layout, noisy, query_layout).x
        return self.trunk.heads[_HEAD](x, query_layout)

    def infer(self, observations: Observations, chunks: Chunks) -> tuple[Float[Tensor, "B Z"], Float[Tensor, "B Z"]]:
        """Mean and log variance of the latent of demonstrated chunks, for training."""
        assert self.posterior is not None  # a head with a latent has one
        states = (
            observations.states[:, : self.config.posterior_state_size]
            if observations.states is not None and self.config.posterior_state_size
            else None
        )
        front = 1 + (states is not None)
        layout = Layout.padded(front + chunks.mask.sum(1), front + self.config.chunk)
        statistics = self.posterior.output(_LATENT, PosteriorInputs(states, chunks.actions), layout)
        return statistics.chunk(2, -1)  # type: ignore[return-value]


def act(
    *,
    width: int = 256,
    depth: int = 4,
    decoder: int = 1,
    posterior: int = 4,
    heads: int = 8,
    chunk: int = 50,
    dropout: float = 0.1,
    head: ChunkHeadConfig | None = None,
) -> ActConfig:
    """ACT with pre-norm blocks; `depth` is the encoder's. The paper's model has width 512, 4 encoder layers, 1 decoder
    layer (in its code), 8 heads, a feed-forward of 3200 and chunks of 100.
    """
    mixer = AttentionConfig(heads, pattern=Full())
    block = BlockConfig(mixer, None, MLPConfig(activation="relu"), LayerNormConfig(), dropout=dropout)
    decoder_block = replace(block, cross=CrossAttentionConfig(heads))
    return ActConfig(
        width,
        chunk,
        observation=RobotEmbedConfig(dropout=dropout),
        encoder=StackConfig(cycle((block,), depth)),
        decoder=StackConfig(cycle((decoder_block,), decoder)),
        posterior=StackConfig(cycle((block,), posterior)),
        head=head or RegressionConfig(),
    )
