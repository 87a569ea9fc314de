"""Embedding, stack and heads: GPT, BERT and every model with one stream."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from headway.config_kinds import family, register
from headway.errors import ConfigError, UserError
from headway.layout import Layout
from headway.nn.mixers.base import Memory, State, select, tree_map
from headway.nn.models.embeds import Embed, EmbedConfig, TokenEmbedConfig
from headway.nn.models.heads import HeadConfig, VocabularyHeadConfig, apply_head
from headway.nn.models.stack import Stack, StackConfig
from headway.nn.parts.feedforward import Terms
from headway.nn.parts.init import InitConfig, initialise
from headway.nn.parts.projection import Projection

_MIN_CHECKED_POSITIONS = 1 << 16  # positions in all rows from which free memory is checked before allocating states


class ModelFeatures(NamedTuple):
    """Features before the heads, their layout, auxiliary losses by name, and the new states if the model was given
    states.
    """

    x: Float[Tensor, "B T D"]
    layout: Layout
    auxiliary: Terms
    states: tuple[State, ...] | None = None


class Prompt(NamedTuple):
    """The start of a generation: token ids and, for a model with an encoder, the source: the encoder's inputs (ids,
    Int[M, S], or frames, Float[M, S, bands]) or its output (`EncoderDecoder.encode`).
    """

    ids: Int[Tensor, "B T"]
    layout: Layout
    source: Any = None
    source_layout: Layout | None = None


class Decoding(NamedTuple):
    """The state of a running generation: states of B rows, memories of M sources, and each row's next position."""

    states: tuple[State, ...]
    memories: tuple[Memory | None, ...] | None
    positions: Int[Tensor, "B"]

    def select(self, rows: Int[Tensor, "R"], memory_rows: Int[Tensor, "N"] | None = None) -> Decoding:
        """Return a copy of the chosen rows; None for `memory_rows` leaves the memories unchanged."""
        memories = self.memories if memory_rows is None else select(self.memories, memory_rows)
        return Decoding(select(self.states, rows), memories, self.positions[rows])

    def assign(self, target: Int[Tensor, "N"], source: Int[Tensor, "N"]) -> None:
        """Overwrite the states of rows `target` with those of rows `source`, in place."""
        tree_map(lambda state: state.index_copy_(0, target, state.index_select(0, source)), self.states)

    def at(self, positions: Int[Tensor, "B"]) -> Decoding:
        """Return the same state with other next positions; a row at -1 is padding and is not written."""
        return self._replace(positions=positions)


@family
@dataclass(frozen=True)
class ModelConfig:
    """Configuration of a whole model."""

    @property
    def width(self) -> int | None:
        """Width of the model, or of its decoder if it has several parts; None if it has no single width."""
        return None

    @property
    def vocab_size(self) -> int:
        """Size of the vocabulary; 0 without one."""
        return 0

    @property
    def context(self) -> int | None:
        """Maximum positions per row; None for no limit."""
        return None

    def build(self, seed: int | None = 0) -> nn.Module:
        """Build the model with weights sampled from `seed`; None leaves them uninitialised for a checkpoint to fill."""
        raise NotImplementedError


@register("transformer")
@dataclass(frozen=True)
class TransformerConfig(ModelConfig):
    """A model with one stack: an embedding, layers and heads. In addition to its fields, `--set` takes depth, heads,
    mixer, dropout, drop_path and layer_scale, and the image size for a model of images.
    """

    width: int = 512  # width of the model
    vocab_size: int = 0  # size of the vocabulary; set from the data
    context: int | None = None  # maximum positions per row; none: no limit
    stack: StackConfig = StackConfig()  # layers
    embed: EmbedConfig = TokenEmbedConfig()  # embedding of the inputs
    heads: dict[str, HeadConfig] = field(default_factory=lambda: {"vocabulary": VocabularyHeadConfig()})  # outputs
    tie: Literal["none", "head"] = "head"  # "head" shares the embedding with the vocabulary head
    init: InitConfig = InitConfig()  # initialisation of the weights

    def build(self, seed: int | None = 0) -> Transformer:
        return Transformer(self, seed)


class Transformer(nn.Module):
    """embed -> stack -> heads."""

    def __init__(self, config: TransformerConfig, seed: int | None = 0, table: nn.Parameter | None = None) -> None:
        """`table` is an embedding to share with another model; without a `seed` weights stay uninitialised."""
        super().__init__()
        self.config = config
        self.embed = config.embed.build(config.width, config.vocab_size, config.context)
        if table is not None:
            self.embed.table = table
        self.stack = Stack(config.stack, config.embed.width_out(config.width, config.vocab_size))
        shared = shared_table(self.embed) if config.tie == "head" else None
        self.heads = nn.ModuleDict(
            {name: head.build(self.stack.width, config.vocab_size, shared) for name, head in config.heads.items()}
        )
        if seed is not None:
            initialise(self, config.init, len(config.stack.blocks), seed)
            start_heads(self.heads, config.init)

    def forward(
        self, inputs: Any, layout: Layout | None = None, states: tuple[State, ...] | None = None
    ) -> ModelFeatures:
        """Features of whole documents, or of the tokens that continue `states`. `inputs` go to the embedding (token
        ids, Int[B, T], or TokenInputs); without a layout each row is one document.
        """
        x, token_layout = self.embed(inputs, self.embed.default_layout(inputs) if layout is None else layout)
        x, new_states, terms = self.stack(x, token_layout, states)
        return ModelFeatures(x, token_layout, terms, new_states)

    def encode(
        self, inputs: Any, layout: Layout, final_blocks: Collection[int]
    ) -> tuple[ModelFeatures, tuple[tuple[tuple[Tensor, ...], ...] | None, ...]]:
        """Features of whole documents, one per row, and the final vectors of some blocks; see Stack.encode."""
        x, token_layout = self.embed(inputs, layout)
        x, final_states, terms = self.stack.encode(x, token_layout, final_blocks)
        return ModelFeatures(x, token_layout, terms), cast(Any, final_states)

    def output(self, head: str, inputs: Any, layout: Layout | None = None) -> Tensor:
        """The output of one head for whole documents."""
        encoded = self(inputs, layout)
        return apply_head(self.heads[head], encoded.x, encoded.layout, inputs)

    def logits(self, ids: Int[Tensor, "B T"], layout: Layout | None = None) -> Float[Tensor, "B T C"]:
        return self.heads["vocabulary"](self(ids, layout).x)

    def start(
        self,
        prompt: Prompt,
        capacity: int,
        memories: tuple[Memory | None, ...] | None = None,
        starts: tuple[tuple[Tensor, ...], ...] | None = None,
    ) -> tuple[Float[Tensor, "B C"], Decoding]:
        """Process the prompts; the logits follow each row's last token. `capacity` is the maximum positions per row;
        `memories` and the vectors from which blocks start (`starts`) come from an encoder.
        """
        check_prompt(prompt.layout, capacity, self.config.context)
        x, layout = self.embed(prompt.ids, prompt.layout)
        return self.prefill(x, layout, capacity, memories, starts)

    def prefill(
        self,
        x: Float[Tensor, "B T D"],
        layout: Layout,
        capacity: int,
        memories: tuple[Memory | None, ...] | None = None,
        starts: tuple[tuple[Tensor, ...], ...] | None = None,
    ) -> tuple[Float[Tensor, "B C"], Decoding]:
        """Prefill from input vectors; the logits follow each row's last one."""
        if layout.batch * capacity > _MIN_CHECKED_POSITIONS:
            from headway.io.machine_memory import check_free_memory  # not needed by a forward pass

            sizes: list[int] = []
            tree_map(
                lambda state: sizes.append(state.nbytes),
                self.stack.initial_states(layout.batch, capacity, like=x.to("meta")),
            )
            purpose = f"generating up to {capacity} positions in {layout.batch} rows"
            remedy = "request fewer new tokens, or fewer rows at once"
            check_free_memory(purpose, {"states": sum(sizes)}, x.device, remedy)
        if starts is None:
            states = self.stack.initial_states(layout.batch, capacity, like=x)
        else:
            states = self.stack.states_from(starts, capacity, like=x)
        x, states, _ = self.stack(x, layout, states, memories)
        rows = torch.arange(layout.batch, device=x.device)
        last = x[rows, layout.lengths - 1]
        return self.heads["vocabulary"](last), Decoding(states or (), memories, layout.lengths)

    def step(self, ids: Int[Tensor, "B"], decoding: Decoding) -> tuple[Float[Tensor, "B C"], Decoding]:
        """Process one more token per row; return the logits that follow it."""
        x, layout = self.embed(ids[:, None], Layout(decoding.positions[:, None]))
        x, states, _ = self.stack(x, layout, decoding.states, decoding.memories)
        after = Decoding(states or (), decoding.memories, decoding.positions + 1)
        return self.heads["vocabulary"](x[:, 0]), after


def check_prompt(layout: Layout, capacity: int, context: int | None) -> None:
    lengths = layout.host.lengths
    max_length = int(lengths.max())
    if int(lengths.min()) < 1:
        raise UserError("an empty prompt cannot be continued; start it with the codec's BOS token")
    limit = capacity if context is None else min(capacity, context)
    if max_length > limit:
        raise UserError(
            f"a prompt of {max_length} tokens exceeds the limit of {limit}; shorten it, or raise the context"
        )


def shared_table(embed: Embed) -> nn.Parameter:
    """The embedding that a head or another model may share."""
    table = embed.table
    if table is None:
        raise ConfigError(f"{type(embed).__name__} has no token table to share; set tie to none")
    return table


def start_heads(heads: nn.ModuleDict, config: InitConfig) -> None:
    """Zero-initialise untied heads if configured, so that all tokens start equally probable."""
    for head in heads.values():
        for project in (getattr(head, "project", None), getattr(head, "distilled", None)):
            if isinstance(project, Projection) and config.head == "zero":
                nn.init.zeros_(project.weight)
