"""What models of chess read and say, as tensors."""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from headway.codecs.fen import TOKENS, tokens
from headway.codecs.moves import MIRROR
from headway.models import Transformer

POLICY, VALUE = "policy", "value"  # heads


def outputs(model: nn.Module, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Logits of moves [B, M] and of the outcome [B, 3]."""
    encoded = model(inputs)
    heads = cast(Transformer, model).heads
    return heads[POLICY](encoded.x, encoded.layout), heads[VALUE](encoded.x, encoded.layout)


def token_inputs(positions: np.ndarray, moves: np.ndarray | None = None) -> np.ndarray:
    """What the model reads, int64 [N, 78], or [N, 79] with moves, int [N], numbered from White's side: a begin symbol,
    the tokens of each FEN, and the move.
    """
    found = np.zeros((len(positions), 1 + TOKENS + (moves is not None)), np.int64)
    found[:, 1 : 1 + TOKENS] = tokens(positions)
    if moves is not None:
        found[:, -1] = moves
    return found


def absolute(positions: np.ndarray, moves: np.ndarray) -> np.ndarray:
    """Moves, int [N], from the side of who makes them as moves from White's side, as the tokens of a FEN are."""
    return np.where(positions["flags"] & 1, MIRROR[moves], moves)


def said(model: nn.Module, inputs: Tensor) -> Tensor:
    """Logits [B, C]."""
    return cast(Transformer, model).output(VALUE, inputs)


def scores_of(logits: Tensor) -> Tensor:
    """Expected scores [B] of logits of bins [B, C]: the mean of the bins' middles."""
    middles = (torch.arange(logits.shape[-1], device=logits.device) + 0.5) / logits.shape[-1]
    return logits.softmax(-1) @ middles
