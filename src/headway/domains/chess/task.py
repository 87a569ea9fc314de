"""Learning chess from 64 squares: the move and the outcome."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from headway.codecs.chess_boards import FLIPPED_MOVES, UPWARD_MOVES, board_planes, to_fens
from headway.data import Splits
from headway.domains.chess.boards import chess, legal_move_ids
from headway.domains.chess.config import ChessConfig
from headway.domains.chess.data import PositionObjective, PositionRows
from headway.domains.chess.evaluator import POLICY, VALUE, BoardEvaluator, outputs
from headway.domains.chess.positions import Positions, Targets
from headway.errors import UserError
from headway.learn import Recipe
from headway.learn.examples import Batch, RngKey
from headway.learn.objective import evaluation_batches
from headway.metrics import wilson_interval
from headway.nn.models import BoardEmbedConfig, Loss, ModelConfig, Transformer, TransformerConfig

_FORGET, _TURN = 23, 24  # random streams


class BoardTargets(NamedTuple):
    """The moves to learn with their probabilities, padded with -1 and 0, and the outcome, NaN if unknown."""

    moves: Int[Tensor, "B K"]
    shares: Float[Tensor, "B K"]
    values: Float[Tensor, "B 3"]


class Boards(PositionRows):
    """Input planes of positions with their history."""

    def __init__(self, config: ChessConfig, recipe: Recipe, source: Positions) -> None:
        every = np.arange(len(source))
        super().__init__(recipe, source, Splits(source.split(config.split), every, "positions", "games in files"))
        self.config, self.history = config, _history(recipe.model)

    def adapt(self, model: ModelConfig) -> ModelConfig:
        """Return `model` unchanged. UserError for a model that does not read 64 squares, or without training data."""
        for split in ("train", "validation"):
            self.splits.rows(split)
        _history(model)
        return model

    def take(self, rows: np.ndarray, rng_key: RngKey | None = None) -> Batch:
        """In training, some positions have their history removed, and some without castling rights are mirrored left to
        right, a symmetry of the rules.
        """
        records, known = self.source.records(rows, self.history)
        if rng_key is not None:
            known = known & (_uniform(rng_key, self.seed, _FORGET) >= self.config.forget)[:, None]
        targets, inputs = self.source.targets(rows), board_planes(records, known)
        moves = targets.moves
        if rng_key is not None:
            mirrored = (_uniform(rng_key, self.seed, _TURN) < self.config.turn) & (records[0]["flags"] < 2)
            inputs[mirrored] = inputs[mirrored][:, np.arange(64) ^ 7]
            moves = np.where(mirrored[:, None] & (moves >= 0), FLIPPED_MOVES[moves], moves)
        shares = policy_targets(targets, self.config.temperature)
        board_targets = BoardTargets(*map(torch.from_numpy, (moves, shares, targets.values)))
        return Batch((torch.from_numpy(inputs),), board_targets, len(rows), inputs.shape[0] * inputs.shape[1])

    def legal(self, rows: np.ndarray) -> np.ndarray:
        """Return the legal moves of positions, bool [N, M], from the mover's point of view."""
        legal = np.zeros((len(rows), UPWARD_MOVES), bool)
        for row, fen in enumerate(to_fens(np.asarray(self.source.positions[rows]))):
            legal[row, legal_move_ids(chess.Board(fen))] = True
        return legal


class BoardSums(NamedTuple):
    """Sums over positions: nats of moves, hits among legal moves, and how often the argmax over all moves is legal;
    nats of outcomes and errors of expected scores; and the counts.
    """

    policy: float
    hits: int
    legal: int
    moves: int
    value: float
    error: float
    values: int


class MovesAndOutcomes(PositionObjective[Boards]):
    """Cross-entropy of the target moves and, scaled by `weight`, of the outcome (win, draw, loss)."""

    def __init__(self, weight: float) -> None:
        self.weight = weight

    def evaluator(self, model: nn.Module) -> BoardEvaluator:
        return BoardEvaluator(cast(Transformer, model))

    def counts(self, batch: Batch) -> dict[str, int]:
        """The numbers of positions with moves and with outcomes: the two denominators."""
        targets: BoardTargets = batch.targets
        return {POLICY: int((targets.moves[:, 0] >= 0).sum()), VALUE: int((~targets.values[:, 0].isnan()).sum())}

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Loss]:
        policy, value = outputs(model, *batch.inputs)
        counts = self.counts(batch)
        return {
            POLICY: Loss(_policy_nats(policy, batch.targets).sum(), counts[POLICY]),
            VALUE: Loss(self.weight * _value_nats(value, batch.targets).sum(), counts[VALUE]),
        }

    def evaluate(self, model: nn.Module, examples: Boards, split: str, limit: int | None = None) -> dict[str, Any]:
        """Return nats per position for moves (policy) and outcomes (value) and their weighted sum (loss); the accuracy
        among legal moves, which is the puzzle accuracy if no outcome is known; how often the argmax over all moves is
        legal; and the mean error of the expected score.
        """
        samples = examples.of(split).limited_to(limit)
        batch_sums = [
            _evaluate_batch(model, batch, examples.legal(samples.rows[indices]))
            for indices, batch in evaluation_batches(model, samples)
        ]
        sums = BoardSums(*map(sum, zip(*batch_sums)))
        scores: dict[str, Any] = {"loss": 0.0, "positions": 0}
        if sums.moves:
            scores["policy"] = sums.policy / sums.moves
            scores["accuracy"] = sums.hits / sums.moves
            scores["accuracy_interval"] = wilson_interval(sums.hits, sums.moves)
            scores["legal_rate"] = sums.legal / sums.moves
        if sums.moves and not sums.values:
            scores["puzzle_accuracy"] = scores["accuracy"]
            scores["puzzle_accuracy_interval"] = scores["accuracy_interval"]
        if sums.values:
            scores["value"], scores["score_error"] = sums.value / sums.values, sums.error / sums.values
        scores["loss"] = scores.get("policy", 0.0) + self.weight * scores.get("value", 0.0)
        scores["positions"] = max(sums.moves, sums.values)
        return scores


def policy_targets(targets: Targets, temperature: float) -> np.ndarray:
    """Return each move's target probability, float32 [B, K]: a softmax of the worths over the temperature if several
    are known, otherwise 1 for the first.
    """
    several = (targets.moves >= 0).sum(1) > 1
    has_worths = several & ~np.isnan(np.where(targets.moves >= 0, targets.worths, 0)).any(1)
    logits = np.where(targets.moves >= 0, np.nan_to_num(targets.worths), -np.inf) / temperature
    best = np.maximum(logits.max(1, keepdims=True), -1e9)
    soft = np.exp(logits - best)
    soft /= np.maximum(soft.sum(1, keepdims=True), 1e-9)
    first = np.zeros_like(soft)
    first[:, 0] = targets.moves[:, 0] >= 0
    return np.where(has_worths[:, None], soft, first).astype(np.float32)


def _uniform(rng_key: RngKey, seed: int, stream: int) -> np.ndarray:
    """Random numbers from 0 to 1, [B], that depend only on the seed and the batch's index in the sample stream."""
    first = int(rng_key.positions[0])
    random = np.random.Generator(np.random.Philox(key=[seed, stream], counter=[0, 0, 0, first]))
    return random.random(len(rng_key.positions))


def _policy_nats(logits: Tensor, targets: BoardTargets) -> Tensor:
    return -(targets.shares * logits.log_softmax(-1).gather(1, targets.moves.clamp(min=0))).sum(1)


def _value_nats(logits: Tensor, targets: BoardTargets) -> Tensor:
    return -(targets.values.nan_to_num(0.0) * logits.log_softmax(-1)).sum(1)


def _evaluate_batch(model: nn.Module, batch: Batch, legal: np.ndarray) -> BoardSums:
    """`legal`, bool [B, M], marks the legal moves."""
    (policy, value), targets = outputs(model, *batch.inputs), batch.targets
    allowed = torch.from_numpy(legal).to(policy.device)
    best = policy.masked_fill(~allowed, float("-inf")).argmax(-1)
    moved, valued = targets.moves[:, 0] >= 0, ~targets.values[:, 0].isnan()
    scores = torch.tensor([1.0, 0.5, 0.0], device=value.device)
    error = ((value.softmax(-1) - targets.values.nan_to_num(0.0)) @ scores).abs()
    return BoardSums(
        float(_policy_nats(policy, targets).sum()),
        int((best == targets.moves[:, 0])[moved].sum()),
        int((best == policy.argmax(-1))[moved].sum()),
        int(moved.sum()),
        float(_value_nats(value, targets).sum()),
        float(error[valued].sum()),
        int(valued.sum()),
    )


def _history(model: ModelConfig) -> int:
    """Return how many earlier positions the model takes."""
    if (
        isinstance(model, TransformerConfig)
        and isinstance(model.embed, BoardEmbedConfig)
        and {POLICY, VALUE} <= set(model.heads)
    ):
        return model.embed.history
    raise UserError(
        "this model does not read 64 squares or lacks the heads policy and value; do not set model, or use the recipe "
        "chess-searchless to train on the tokens of a FEN"
    )
