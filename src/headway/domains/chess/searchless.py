"""Chess from the tokens of a FEN, with one head (Ruoss et al. 2024)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from headway.codecs.chess_boards import MOVES
from headway.data import Splits
from headway.data.splits import SplitIndices
from headway.domains.chess.config import SearchlessConfig, Target
from headway.domains.chess.data import PositionObjective, PositionRows
from headway.domains.chess.evaluator import VALUE as HEAD
from headway.domains.chess.evaluator import TokenEvaluator, expected_scores, to_white, token_inputs, value_logits
from headway.domains.chess.positions import Positions
from headway.domains.chess.win_probability import expected
from headway.errors import UserError
from headway.learn import Recipe
from headway.learn.examples import Batch, RngKey
from headway.learn.objective import evaluation_batches
from headway.metrics import wilson_interval
from headway.nn.models import Loss, ModelConfig, PooledHeadConfig, Transformer, TransformerConfig

_SPREAD, _ROUND = 2_654_435_761, 1_000_003  # hash constants, so that neighbouring positions start with different moves


class Fens(PositionRows):
    """Tokens of the positions whose target is known, plus a move if its value is the target; the labels are the move or
    the bin of the score.
    """

    def __init__(self, config: SearchlessConfig, recipe: Recipe, source: Positions) -> None:
        worths = np.concatenate([[0], np.cumsum(~np.isnan(source.worths), dtype=np.int64)])
        known = {
            "behaviour": source.counts > 0,
            "state_value": ~np.isnan(source.values[:, 0]),
            "action_value": worths[source.starts[1:]] > worths[source.starts[:-1]],
        }[config.target]
        split_rows = source.split(config.split)
        splits = SplitIndices({split: rows[known[rows]] for split, rows in split_rows.items()}, split_rows.removed)
        noun, hint = f"positions with the target {config.target}", "games with results, or evaluations, in files"
        super().__init__(recipe, source, Splits(splits, np.flatnonzero(known), noun, hint))
        self.target, self.bins = config.target, config.bins

    def adapt(self, model: ModelConfig) -> ModelConfig:
        """Return `model` with the move vocabulary. UserError for a model that is not bidirectional over tokens, or
        without training data.
        """
        for split in ("train", "validation"):
            self.splits.rows(split)
        if not isinstance(model, TransformerConfig) or not isinstance(model.heads.get(HEAD), PooledHeadConfig):
            raise UserError("this model does not read the tokens of a FEN; use chess-9m, chess-136m or chess-270m")
        return replace(model, vocab_size=len(MOVES))

    def take(self, rows: np.ndarray, rng_key: RngKey | None = None) -> Batch:
        """If several moves have values, selects one depending on the position's index and on the epoch (from the index
        in the sample stream).
        """
        positions, targets = np.asarray(self.source.positions[rows]), self.source.targets(rows)
        if self.target == "state_value":
            inputs, labels = token_inputs(positions), bins_of(expected(targets.values), self.bins)
        elif self.target == "behaviour":
            inputs, labels = token_inputs(positions), to_white(positions, targets.moves[:, 0])
        else:
            known, all_rows = ~np.isnan(targets.worths), np.arange(len(rows))
            epoch = 0 if rng_key is None else rng_key.positions // len(self.splits.rows("train"))
            nth = (epoch + rows * _SPREAD % _ROUND) % known.sum(1)
            column = (known.cumsum(1) == nth[:, None] + 1).argmax(1)
            inputs = token_inputs(positions, to_white(positions, targets.moves[all_rows, column]))
            labels = bins_of(targets.worths[all_rows, column], self.bins)
        return Batch((torch.from_numpy(inputs),), torch.from_numpy(labels), len(rows), inputs.size)


class MoveOrBin(PositionObjective[Fens]):
    """Cross-entropy of a move or of the bin of an expected score."""

    def __init__(self, target: Target, outputs: int) -> None:
        """`outputs` is the number of moves or bins."""
        self.target: Target = target
        self.outputs = outputs

    def evaluator(self, model: nn.Module) -> TokenEvaluator:
        return TokenEvaluator(cast(Transformer, model), self.target)

    def adapt(self, model: ModelConfig, examples: Fens) -> ModelConfig:
        """Return `model` with the outputs of this target."""
        assert isinstance(model, TransformerConfig)  # checked by the examples
        head = replace(cast(PooledHeadConfig, model.heads[HEAD]), outputs=self.outputs)
        return replace(model, heads={**model.heads, HEAD: head})

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Loss]:
        total = F.cross_entropy(value_logits(model, *batch.inputs), batch.targets, reduction="sum")
        return {"loss": Loss(total, batch.tokens)}

    def evaluate(self, model: nn.Module, examples: Fens, split: str, limit: int | None = None) -> dict[str, Any]:
        """Return nats per position, the accuracy on moves or bins, and the mean error of the expected score."""
        nats, hits, error, samples = 0.0, 0, 0.0, examples.of(split).limited_to(limit)
        for _, batch in evaluation_batches(model, samples):
            logits = value_logits(model, *batch.inputs)
            nats += float(F.cross_entropy(logits, batch.targets, reduction="sum"))
            hits += int((logits.argmax(-1) == batch.targets).sum())
            error += float((expected_scores(logits) - (batch.targets + 0.5) / self.outputs).abs().sum())
        count = len(samples)
        scores = {"loss": nats / count, "accuracy": hits / count, "accuracy_interval": wilson_interval(hits, count)}
        if self.target != "behaviour":
            scores["score_error"] = error / count
        return {**scores, "positions": count}


def bins_of(scores: np.ndarray, bins: int) -> np.ndarray:
    """Return the int64 bin of expected scores from 0 to 1, or of worths, whose mates are in the outermost bins."""
    return np.clip((scores * bins).astype(np.int64), 0, bins - 1)
