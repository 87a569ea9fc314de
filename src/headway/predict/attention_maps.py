"""A model's attention weights over a text, and a plot of them."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from typing import TYPE_CHECKING, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from headway.codecs import Codec
from headway.codecs.mask_tokens import token_pieces
from headway.errors import UserError
from headway.io.summary_card import SummaryCard, summary_repr

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INSTALL_HINT = "attention plots need matplotlib; run pip install 'headway[report]' and try again"
_MAX_TOKENS = 80  # maximum tokens per axis with readable labels
_TOKEN_SIZE, _SMALL_SIDE = 0.3, 1.5  # inches per token, and per side of a small plot
_MIN_SIDE = 2.2  # minimum inches per side
_MAX_LABEL = 16  # maximum characters of a label


@summary_repr
class Attention(NamedTuple):
    """A model's attention weights over a text.

    maps: weights by layer name, Float[H, T, S]: heads, queries, keys.
    `symbols`: the text of each token.
    source: the text of each token of the encoder's input; empty without an encoder.
    across: names of the cross-attention maps.

    An encoder's maps are from `source` to `source`, cross-attention maps from `symbols` to `source`, and all others
    from `symbols` to `symbols`.
    """

    maps: dict[str, Float[Tensor, "H T S"]]
    symbols: list[str]
    source: list[str]
    across: tuple[str, ...] = ()

    def card(self) -> SummaryCard:
        """A summary: the number of tokens, and the heads and tokens of each map."""
        rows = [
            {"map": name, "heads, queries, keys": " x ".join(map(str, weights.shape))}
            for name, weights in self.maps.items()
        ]
        counts = {"tokens": len(self.symbols), "source tokens": len(self.source) or None}
        return SummaryCard("Attention", {"maps": len(rows), **counts}, rows)

    def picture(self, layer: int | None = None, head: int | None = None, each: bool = False) -> Figure:
        """Plot a heat map of attention weights, a row per query; for an encoder-decoder, its cross-attention.

        layer, head: counted from 1; None averages over all.
        each: plot all heads, one row per layer.

        Raises UserError for a model without attention, an unknown layer or head, too many tokens for a readable plot,
        and if matplotlib (extra `report`) is missing.
        """
        names = self.across if self.source else tuple(self.maps)
        if not names:
            raise UserError("the model has no attention to plot; use one with model.mixer=attention")
        layers = {number: self.maps[name].float() for number, name in enumerate(names, 1)}
        if layer is not None and layer not in layers:
            raise UserError(f"there is no attention layer {layer}; choose one from 1 to {len(layers)}")
        if layer is not None:
            layers = {layer: layers[layer]}
        if each and head is not None:
            raise UserError(f"head {head} and all heads are both requested; choose one")
        fewest = min(len(weights) for weights in layers.values())
        if head is not None and not 1 <= head <= fewest:
            raise UserError(f"there is no head {head}; choose one from 1 to {fewest}")
        columns = self.source if self.across else self.symbols
        num_tokens = max(len(self.symbols), len(columns))
        if num_tokens > _MAX_TOKENS:
            raise UserError(f"{num_tokens} tokens are too many for a readable plot; use at most {_MAX_TOKENS}")
        figure = _figure()
        if each:
            heads = max(len(weights) for weights in layers.values())
            figure.set_size_inches(_SMALL_SIDE * heads + 0.4, _SMALL_SIDE * len(layers) + 0.4)
            grid = figure.subplots(len(layers), heads, squeeze=False)
            for row, (number, weights) in zip(grid, layers.items()):
                for index, axes in enumerate(row):
                    axes.set_axis_off()
                    if index < len(weights):
                        _plot(axes, weights[index])
                        axes.set_title(f"layer {number}, head {index + 1}", fontsize=7)
            return figure
        selected = [weights.mean(0) if head is None else weights[head - 1] for weights in layers.values()]
        size = [max(_MIN_SIDE, _TOKEN_SIZE * len(names)) + 1.2 for names in (columns, self.symbols)]
        figure.set_size_inches(size[0], size[1])
        axes = figure.subplots()
        weights = torch.stack(selected).mean(0)
        _plot(axes, weights)
        axes.set_xticks(range(len(columns)), [_short(name) for name in columns], rotation=90, fontsize=8)
        axes.set_yticks(range(len(self.symbols)), [_short(name) for name in self.symbols], fontsize=8)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        layer_label = f"layer {next(iter(layers))}" if len(layers) == 1 else f"mean of {len(layers)} layers"
        head_label = "mean of heads" if head is None else f"head {head}"
        axes.set_title(f"{layer_label}, {head_label}\ndarkest: {float(weights.max()):.2f}", fontsize=9, loc="left")
        return figure


def first_row_maps(maps: dict[str, Float[Tensor, "B H T S"]]) -> dict[str, Float[Tensor, "H T S"]]:
    """The maps of the first sequence in the batch, on the CPU."""
    return {name: weights[0].cpu() for name, weights in maps.items()}


def token_texts(codec: Codec, ids: Sequence[int]) -> list[str]:
    """The text of each token, with visible spaces, line breaks and special tokens."""
    special_tokens = {codec.bos_id: "<begin>", codec.eos_id: "<end>"}
    pieces = token_pieces(codec)  # which name special tokens
    decoded = ((token, codec.decode([token]) or pieces(token)) for token in ids)
    return [special_tokens.get(token, text.strip() or ("⏎" if "\n" in text else "␣")) for token, text in decoded]


def _figure() -> Figure:
    """An empty figure that a notebook displays as an image, whether or not pyplot is set up."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError(INSTALL_HINT) from None

    class NotebookFigure(Figure):
        def _repr_png_(self) -> bytes:
            buffer = BytesIO()
            self.savefig(buffer, format="png")
            return buffer.getvalue()

    return NotebookFigure(layout="constrained")


def _plot(axes: Axes, weights: Float[Tensor, "T S"]) -> None:
    axes.imshow(weights.numpy(), cmap="Blues", vmin=0.0, aspect="auto", interpolation="nearest")


def _short(name: str) -> str:
    """A shortened label, with dollar signs escaped from math mode."""
    short = name if len(name) <= _MAX_LABEL else name[: _MAX_LABEL - 1] + "…"
    return short.replace("$", r"\$")
