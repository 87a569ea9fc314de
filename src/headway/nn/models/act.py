"""Action chunking with transformers: what a robot sees becomes its next actions, all at once."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
from jaxtyping import Float
from torch import Tensor, nn

from headway.config import register
from headway.errors import ConfigError
from headway.layout import Layout
from headway.nn.mixers import AttentionConfig, CrossAttentionConfig
from headway.nn.models.block import BlockConfig
from headway.nn.models.chunks import (
    ChunkHeadConfig,
    Chunks,
    Drawn,
    Noised,
    PosteriorInputs,
    QueriesConfig,
    RegressionConfig,
    ShownConfig,
)
from headway.nn.models.encoder_decoder import EncoderDecoder, EncoderDecoderConfig, Heard
from headway.nn.models.heads import Loss
from headway.nn.models.pooled import PooledHeadConfig
from headway.nn.models.robot import Observations, RobotEmbed, RobotEmbedConfig
from headway.nn.models.scene import SceneEmbed, SceneEmbedConfig
from headway.nn.models.stack import StackConfig, cycle
from headway.nn.models.trajectories import StepHeadConfig
from headway.nn.models.transformer import ModelConfig, Transformer, TransformerConfig
from headway.nn.parts.feedforward import MLPConfig, Terms
from headway.nn.parts.init import InitConfig
from headway.nn.parts.norm import LayerNormConfig
from headway.visibility import Full

_HEAD, _LATENT = "actions", "latent"
_STACKS = ("encoder", "decoder", "posterior")


@register("act")
@dataclass(frozen=True)
class ActConfig(ModelConfig):
    """`encoder` reads an observation, `decoder` is asked for a `chunk` of actions of `actions` numbers and reads what
    was seen, `head` says how chunks are learnt; `posterior` infers the latent of a demonstrated chunk, where the head
    has one. `words` are so many of the names of tasks, 0 where a model does not read them. Where the stacks of decoder
    and posterior have positions for queries and keys, their inputs have none.

    Beside its fields, `--set` takes depth (a number, or [encoder, decoder], or those and the posterior's), heads, mixer
    and dropout of all stacks.
    """

    width: int = 256  # width of the model
    chunk: int = 50  # actions that are said at once
    actions: int = 1  # numbers of an action; the data decide
    words: int = 0  # symbols of the names of tasks; the data decide
    observation: RobotEmbedConfig | SceneEmbedConfig = RobotEmbedConfig()  # what is read
    encoder: StackConfig = StackConfig()  # reads an observation
    decoder: StackConfig = StackConfig()  # says the actions
    posterior: StackConfig = StackConfig()  # infers the latent of a demonstrated chunk
    head: ChunkHeadConfig = RegressionConfig()  # how chunks are learnt
    init: InitConfig = InitConfig(matrices="fan_in", embedding=1.0)  # as large as what is added to embeddings

    @property
    def history(self) -> int:
        """It reads what is seen at present, and nothing of the past."""
        return 1

    @property
    def horizon(self) -> int:
        """All actions that are said are from the present on."""
        return self.chunk

    @property
    def context(self) -> None:
        """There is no limit of what stands in a row: an observation has its own length."""
        return

    @property
    def trunk(self) -> EncoderDecoderConfig:
        """Encoder and decoder."""
        latent = replace(self.observation, latent=self.head.size or self.observation.latent)
        encoder = TransformerConfig(self.width, self.words, None, self.encoder, latent, {}, "none", self.init)
        noised = self.actions if self.head.noised else 0
        queries = QueriesConfig(self.chunk, noised, self.observation.dropout, self.decoder.positions is None)
        said = {_HEAD: StepHeadConfig(self.actions, 0, 1)}
        decoder = TransformerConfig(self.width, 0, None, self.decoder, queries, cast(Any, said), "none", self.init)
        return EncoderDecoderConfig(encoder, decoder, "none", self.init)

    @property
    def inference(self) -> TransformerConfig | None:
        """The posterior, where there is a latent."""
        if not self.head.size:
            return None
        placed = self.posterior.positions is not None
        shown = ShownConfig(self.shown, self.actions, self.observation.dropout, not placed)
        head = {_LATENT: PooledHeadConfig(2 * self.head.size)}
        return TransformerConfig(self.width, 0, None, self.posterior, shown, cast(Any, head), "none", self.init)

    @property
    def shown(self) -> int:
        """The first numbers of a state, which the posterior reads."""
        seen = self.observation
        return seen.robot if isinstance(seen, SceneEmbedConfig) else seen.states

    def build(self, seed: int | None = 0) -> Act:
        return Act(self, seed)


class Act(nn.Module):
    """Zhao et al. 2023: an encoder-decoder over one observation, trained as the decoder of a conditional variational
    autoencoder, whose encoder, the posterior, is not used afterwards: the latent is then 0.
    """

    def __init__(self, config: ActConfig, seed: int | None = 0) -> None:
        super().__init__()
        self.config = config
        _check(config)
        self.trunk = EncoderDecoder(config.trunk, seed)
        inference = config.inference
        self.posterior = None if inference is None else Transformer(inference, None if seed is None else seed + 1)

    def forward(self, seen: Observations, drawn: Drawn) -> Float[Tensor, "B C A"]:
        """The chunks that follow what is seen, in the codec's numbers. The latent is `seen.latent`, 0 if that is None;
        `drawn` is the noise that a diffusion begins with, of which a regression reads nothing.
        """
        return self.config.head.said(self, seen, drawn)

    def losses(self, seen: Observations, chunks: Chunks, drawn: Drawn) -> dict[str, Loss]:
        """What the head learns from demonstrated chunks; see ChunkHeadConfig."""
        return self.config.head.losses(self, seen, chunks, drawn)

    def draw(self, random: np.random.Generator, rows: int) -> Drawn:
        """What chance gives to so many chunks."""
        return self.config.head.draw(random, rows, self.config.chunk, self.config.actions)

    def look(self, seen: Observations) -> tuple[Heard, Terms]:
        """What the decoder reads of observations, and auxiliary losses."""
        layout = cast(RobotEmbed | SceneEmbed, self.trunk.encoder.embed).whole(seen)
        heard = self.trunk.hear(seen, layout)
        return heard, heard.auxiliary

    def say(self, heard: Heard, noised: Noised | None) -> Float[Tensor, "B C A"]:
        """What the decoder says of each action of a chunk."""
        memory = cast(Any, heard.memories)
        layout = next(each.layout for each in memory if each is not None)
        where = Layout.full(layout.batch, self.config.chunk, device=layout.positions.device)
        x = self.trunk(heard, layout, noised, where).x
        return self.trunk.heads[_HEAD](x, where)

    def infer(self, seen: Observations, chunks: Chunks) -> tuple[Float[Tensor, "B Z"], Float[Tensor, "B Z"]]:
        """Mean and log variance of the latent behind demonstrated chunks. Only training calls this."""
        assert self.posterior is not None  # a head with a latent has one
        states = seen.states[:, : self.config.shown] if seen.states is not None and self.config.shown else None
        front = 1 + (states is not None)
        layout = Layout.padded(front + chunks.keep.sum(1), front + self.config.chunk)
        said = self.posterior.output(_LATENT, PosteriorInputs(states, chunks.actions), layout)
        return said.chunk(2, -1)  # type: ignore[return-value]


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
    """Pre-norm blocks; `depth` is that of the encoder. The paper's is 512 wide, with 4 and (as its
    code has it) 1 layers, 8 heads, a feed-forward of 3200 and chunks of 100.
    """
    mixer = AttentionConfig(heads, pattern=Full())
    block = BlockConfig(mixer, None, MLPConfig(activation="relu"), LayerNormConfig(), dropout=dropout)
    reading = replace(block, cross=CrossAttentionConfig(heads))
    return ActConfig(
        width,
        chunk,
        observation=RobotEmbedConfig(dropout=dropout),
        encoder=StackConfig(cycle((block,), depth)),
        decoder=StackConfig(cycle((reading,), decoder)),
        posterior=StackConfig(cycle((block,), posterior)),
        head=head or RegressionConfig(),
    )


def _check(config: ActConfig) -> None:
    if min(config.actions, config.chunk) < 1:
        raise ConfigError(
            f"chunks of {config.chunk} actions of {config.actions} numbers; set model.chunk and model.actions to 1 or "
            "more"
        )
    for name in _STACKS:
        stack: StackConfig = getattr(config, name)
        if any(block.mixer.causal for block in stack.blocks):
            raise ConfigError(
                f"model.{name} sees only earlier tokens, and observations and chunks are read whole; give mixers that "
                "see both ways, as attention of the pattern full"
            )
