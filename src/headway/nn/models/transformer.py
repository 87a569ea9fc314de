"""Embed, stack, heads: GPT, BERT and all that has one stream."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from headway.config import family, register
from headway.errors import ConfigError, UserError
from headway.layout import Layout
from headway.memory import check_room
from headway.nn.mixers.base import Memory, State, select, tree_map
from headway.nn.models.embeds import EmbedConfig, TokenEmbedConfig
from headway.nn.models.heads import HeadConfig, VocabularyHeadConfig
from headway.nn.models.stack import Stack, StackConfig
from headway.nn.parts.feedforward import Terms
from headway.nn.parts.init import InitConfig, initialise
from headway.nn.parts.projection import Projection

_MANY = 1 << 16  # positions of all rows from which on the memory for their states is looked at beforehand


class Encoded(NamedTuple):
    """Features before the heads, where they sit, auxiliary losses by name, and the states after them where the model
    went on from states.
    """

    x: Float[Tensor, "B T D"]
    layout: Layout
    auxiliary: Terms
    states: tuple[State, ...] | None = None


class Prompt(NamedTuple):
    """What a generation starts from: symbols of the stream and, where the model has an encoder, what its embed reads
    (symbols, Int[M, S], or frames, Float[M, S, bands]) or what it has heard of that (`EncoderDecoder.hear`).
    """

    ids: Int[Tensor, "B T"]
    layout: Layout
    source: Any = None
    source_layout: Layout | None = None


class Decoding(NamedTuple):
    """A generation under way: states of B rows, memories of M sources, and the next position of each row."""

    states: tuple[State, ...]
    memories: tuple[Memory | None, ...] | None
    positions: Int[Tensor, "B"]

    def select(self, rows: Int[Tensor, "R"], memory_rows: Int[Tensor, "N"] | None = None) -> Decoding:
        """Chosen rows, as a copy; the memories stay as they are where `memory_rows` is None."""
        memories = self.memories if memory_rows is None else select(self.memories, memory_rows)
        return Decoding(select(self.states, rows), memories, self.positions[rows])

    def assign(self, target: Int[Tensor, "N"], source: Int[Tensor, "N"]) -> None:
        """Make the states of rows `target` those of rows `source`, in place."""
        tree_map(lambda state: state.index_copy_(0, target, state.index_select(0, source)), self.states)

    def at(self, positions: Int[Tensor, "B"]) -> Decoding:
        """With other next positions; a row at -1 is padding, which is not written."""
        return self._replace(positions=positions)


@family
@dataclass(frozen=True)
class ModelConfig:
    """A whole model."""

    def build(self, seed: int | None = 0) -> nn.Module:
        """The model with weights drawn from `seed`; with None they are left undrawn, for a checkpoint to fill."""
        raise NotImplementedError


@register("transformer")
@dataclass(frozen=True)
class TransformerConfig(ModelConfig):
    """`symbols` is the vocabulary; `context` the most positions a row may have, None for no limit; `tie` shares the
    embedding with the vocabulary head. Beside its fields, `--set` takes depth, heads, mixer, dropout, drop_path and
    layer_scale, and the size of the images where it reads such.
    """

    width: int = 512  # width of the model
    symbols: int = 0  # size of the vocabulary; the data decide
    context: int | None = None  # the most positions of a row; none: no limit
    stack: StackConfig = StackConfig()  # its layers
    embed: EmbedConfig = TokenEmbedConfig()  # how inputs become vectors
    heads: dict[str, HeadConfig] = field(default_factory=lambda: {"vocabulary": VocabularyHeadConfig()})  # its outputs
    tie: Literal["none", "head"] = "head"  # "head" shares the embedding with the vocabulary head
    init: InitConfig = InitConfig()  # how weights start

    def build(self, seed: int | None = 0) -> Transformer:
        return Transformer(self, seed)


class Transformer(nn.Module):
    """embed -> stack -> heads."""

    def __init__(self, config: TransformerConfig, seed: int | None = 0, table: nn.Parameter | None = None) -> None:
        """`table` is an embedding to share with another model; without a `seed` weights are left undrawn."""
        super().__init__()
        self.config = config
        _check(config)
        self.embed = config.embed.build(config.width, config.symbols, config.context)
        if table is not None:
            self.embed.table = table
        self.stack = Stack(config.stack, config.embed.width_out(config.width, config.symbols))
        shared = shared_table(self.embed) if config.tie == "head" else None
        self.heads = nn.ModuleDict(
            {name: head.build(self.stack.width, config.symbols, shared) for name, head in config.heads.items()}
        )
        if seed is not None:
            initialise(self, config.init, len(config.stack.blocks), seed)
            start_heads(self.heads, config.init)

    def forward(self, inputs: Any, layout: Layout | None = None, states: tuple[State, ...] | None = None) -> Encoded:
        """Features of whole documents, or of what follows `states`: `inputs` are what the embed reads (symbols,
        Int[B, T], or TokenInputs); without a layout each row is one document.
        """
        x, where = self.embed(inputs, self._whole(inputs) if layout is None else layout)
        x, after, terms = self.stack(x, where, states)
        return Encoded(x, where, terms, after)

    def read(
        self, inputs: Any, layout: Layout, ends: Collection[int]
    ) -> tuple[Encoded, tuple[tuple[tuple[Tensor, ...], ...] | None, ...]]:
        """Features of whole documents, one a row, and what the mixers of some blocks have come to; see Stack.read."""
        x, where = self.embed(inputs, layout)
        x, found, terms = self.stack.read(x, where, ends)
        return Encoded(x, where, terms), cast(Any, found)

    def _whole(self, inputs: Any) -> Layout:
        return cast(Any, self.embed).whole(inputs)

    def output(self, head: str, inputs: Any, layout: Layout | None = None) -> Tensor:
        """What one of the heads says of whole documents."""
        encoded = self(inputs, layout)
        return self.heads[head](encoded.x, encoded.layout)

    def logits(self, ids: Int[Tensor, "B T"], layout: Layout | None = None) -> Float[Tensor, "B T C"]:
        return self.heads["vocabulary"](self(ids, layout).x)

    def start(self, prompt: Prompt, capacity: int) -> tuple[Float[Tensor, "B C"], Decoding]:
        """Read the prompts; the logits follow each row's last symbol. `capacity` is the most positions a row will
        have.
        """
        return self.resume(prompt, capacity, None)

    def resume(
        self,
        prompt: Prompt,
        capacity: int,
        memories: tuple[Memory | None, ...] | None,
        starts: tuple[tuple[Tensor, ...], ...] | None = None,
    ) -> tuple[Float[Tensor, "B C"], Decoding]:
        """`start` with an encoder's memories, and with the vectors that it hands over to start the blocks from."""
        check_prompt(prompt.layout, capacity, self.config.context)
        x, layout = self.embed(prompt.ids, prompt.layout)
        return self.read_first(x, layout, capacity, memories, starts)

    def read_first(
        self,
        x: Float[Tensor, "B T D"],
        layout: Layout,
        capacity: int,
        memories: tuple[Memory | None, ...] | None = None,
        starts: tuple[tuple[Tensor, ...], ...] | None = None,
    ) -> tuple[Float[Tensor, "B C"], Decoding]:
        """Read the vectors that a generation begins with; the logits follow each row's last one."""
        if layout.batch * capacity > _MANY:
            self._check_states(layout.batch, capacity, x)
        if starts is None:
            states = self.stack.initial_states(layout.batch, capacity, like=x)
        else:
            states = self.stack.begin(starts, capacity, like=x)
        x, states, _ = self.stack(x, layout, states, memories)
        rows = torch.arange(layout.batch, device=x.device)
        last = x[rows, layout.lengths - 1]
        return self.heads["vocabulary"](last), Decoding(states or (), memories, layout.lengths)

    def _check_states(self, batch: int, capacity: int, like: Tensor) -> None:
        """UserError where the states of so many positions need more memory than is free."""
        sizes: list[int] = []
        states = self.stack.initial_states(batch, capacity, like=like.to("meta"))
        tree_map(lambda state: sizes.append(state.nbytes), states)
        what = f"generation of up to {capacity} positions in {batch} rows"
        check_room(what, {"states": sum(sizes)}, like.device, "ask for fewer new tokens, or for fewer rows at once")

    def step(self, ids: Int[Tensor, "B"], decoding: Decoding) -> tuple[Float[Tensor, "B C"], Decoding]:
        """One more symbol of each row, and the logits that follow it."""
        x, layout = self.embed(ids[:, None], Layout(decoding.positions[:, None]))
        x, states, _ = self.stack(x, layout, decoding.states, decoding.memories)
        after = Decoding(states or (), decoding.memories, decoding.positions + 1)
        return self.heads["vocabulary"](x[:, 0]), after


def check_prompt(layout: Layout, capacity: int, context: int | None) -> None:
    longest = int(layout.lengths.max())
    if int(layout.lengths.min()) < 1:
        raise UserError("a prompt of 0 tokens has nothing to continue; begin with the codec's begin symbol")
    limit = capacity if context is None else min(capacity, context)
    if longest > limit:
        raise UserError(f"a prompt of {longest} tokens exceeds the {limit} that fit; shorten it, or raise the context")


def shared_table(embed: nn.Module) -> nn.Parameter:
    """The embedding that a head or another model may share."""
    table = embed.table
    if not isinstance(table, nn.Parameter):
        raise ConfigError(f"{type(embed).__name__} has no table of symbols to share; set tie to none")
    return table


def start_heads(heads: nn.ModuleDict, config: InitConfig) -> None:
    """Untied heads that start at zero give equal probabilities to all symbols."""
    for head in heads.values():
        for project in (getattr(head, "project", None), getattr(head, "distilled", None)):
            if isinstance(project, Projection) and config.head == "zero":
                nn.init.zeros_(project.weight)


def _check(config: TransformerConfig) -> None:
    inner = config.embed.width if isinstance(config.embed, TokenEmbedConfig) else None
    if config.tie == "head" and inner is not None and inner != config.width:
        raise ConfigError(
            f"tie head shares an embedding of width {inner} with a model of width {config.width}; set tie to none"
        )
