"""When each symbol of a known text was spoken, by the cross-attention that follows the sound."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from headway.domains.audio.marks import Marks
from headway.domains.audio.timestamps import FRAMES, STEP
from headway.layout import Layout
from headway.models import EncoderDecoder, Heard, attention_maps

_SMOOTH = 7  # positions of the median filter
_BLANK = 1e-9


class Spoken(NamedTuple):
    """When each of N symbols begins, and the last ends; and how likely each was."""

    seconds: Float[np.ndarray, "N+1"]
    probabilities: Float[np.ndarray, "N"]


@torch.inference_mode()
def align(
    model: EncoderDecoder, heard: Heard, marks: Marks, opening: list[int], text: list[int], frames: int
) -> Spoken:
    """Of the symbols `text` in the first `frames` log-mel frames of a window.

    The model reads the text, without times. Weights of the heads that follow the sound are normalised over the symbols,
    smoothed along time and averaged; dynamic time warping (Sakoe and Chiba 1978) finds the path of most weight.
    """
    ids = torch.tensor([[*opening, marks.plain, *text, marks.end]], device=next(model.parameters()).device)
    layout, logits = Layout.full(*ids.shape, device=ids.device), []

    def read() -> None:
        encoded = model(heard, layout, ids, layout)
        logits.append(model.heads["vocabulary"](encoded.x[0, len(opening) : -2]))

    maps = attention_maps(model.decoder, read)
    symbols = torch.tensor(text, device=ids.device)
    likely = logits[0][:, : marks.end].float().softmax(-1).gather(1, symbols[:, None])[:, 0]
    positions = -(-frames // FRAMES)
    weights = _weights(maps, marks, len(model.decoder.stack.blocks))[:, :, :positions]
    cost = -_smoothed(_normalised(weights)).mean(0)[len(opening) : -1]
    rows, columns = warp(cost.double().cpu().numpy())
    first = np.searchsorted(rows, np.arange(len(text) + 1))  # where the path comes to each symbol
    return Spoken(columns[first] * STEP, likely.cpu().double().numpy())


def _weights(maps: dict[str, Tensor], marks: Marks, depth: int) -> Float[Tensor, "H T S"]:
    """Of the heads that the model names, or of all in the upper half of its layers."""
    layers = [maps[f"stack.blocks.{layer}.cross"][0] for layer in range(depth)]
    named = [(layer, head) for layer, head in marks.heads if layer < depth and head < len(layers[layer])]
    if named:
        return torch.stack([layers[layer][head] for layer, head in named])
    return torch.cat(layers[depth // 2 :])


def _normalised(weights: Float[Tensor, "H T S"]) -> Float[Tensor, "H T S"]:
    weights = weights / weights.sum(-1, keepdim=True).clamp_min(_BLANK)
    deviation, mean = torch.std_mean(weights, dim=-2, keepdim=True, unbiased=False)
    return (weights - mean) / deviation.clamp_min(_BLANK)


def _smoothed(weights: Float[Tensor, "H T S"]) -> Float[Tensor, "H T S"]:
    """The median of each position and its neighbours in time."""
    beside = _SMOOTH // 2
    if weights.shape[-1] <= beside:
        return weights
    return F.pad(weights, (beside, beside), mode="reflect").unfold(-1, _SMOOTH, 1).sort(-1).values[..., beside]


def warp(cost: Float[np.ndarray, "N M"]) -> tuple[Int[np.ndarray, "L"], Int[np.ndarray, "L"]]:
    """The path of least cost from the first corner to the last, by steps of one to a side or both: rows and columns.

    The table is filled along its diagonals, whose cells do not depend on each other.
    """
    rows, columns = cost.shape
    total = np.full((rows + 1, columns + 1), np.inf)
    total[0, 0] = 0.0
    step = np.zeros((rows + 1, columns + 1), np.int8)  # 0 to both sides, 1 down, 2 across
    for diagonal in range(2, rows + columns + 1):
        i = np.arange(max(1, diagonal - columns), min(rows, diagonal - 1) + 1)
        j = diagonal - i
        choices = np.stack([total[i - 1, j - 1], total[i - 1, j], total[i, j - 1]])
        # A step to both sides only where it is better than the others, and across where none is.
        best = np.where(
            (choices[0] < choices[1]) & (choices[0] < choices[2]), 0, np.where(choices[1] < choices[2], 1, 2)
        )
        step[i, j] = best
        total[i, j] = cost[i - 1, j - 1] + np.take_along_axis(choices, best[None], 0)[0]
    return _traced(step)


def _traced(step: Int[np.ndarray, "N M"]) -> tuple[np.ndarray, np.ndarray]:
    step[0, :], step[:, 0] = 2, 1
    i, j = step.shape[0] - 1, step.shape[1] - 1
    path = []
    while i > 0 or j > 0:
        path.append((i - 1, j - 1))
        way = step[i, j]
        i, j = i - (way != 2), j - (way != 1)
    found = np.array(path[::-1])
    return found[:, 0], found[:, 1]
