"""Learning chess on 64 squares: which move, and who wins."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn

from headway.domains.chess.batches import FORGET, TURN, BoardBatch, board_batch, drawn
from headway.domains.chess.config import ChessConfig
from headway.domains.chess.data import PositionRows
from headway.domains.chess.judge import BoardJudge
from headway.domains.chess.outputs import POLICY, VALUE, outputs
from headway.domains.chess.pictures import board_pictures
from headway.domains.chess.positions import Positions
from headway.domains.chess.show import legal_moves, shown_positions
from headway.errors import UserError
from headway.generate.prompts import device_of, evaluating
from headway.metrics import wilson
from headway.models import BoardEmbedConfig, Loss, ModelConfig, Transformer, TransformerConfig
from headway.report import Picture
from headway.train import WHOLE, Recipe, Shard


class Judged(NamedTuple):
    """Sums over positions: nats of moves, hits among legal ones, and how often the most probable of all is legal; nats
    of outcomes and errors of expected scores; and the counts.
    """

    policy: float
    hits: int
    legal: int
    moves: int
    value: float
    error: float
    values: int


class ChessTask(PositionRows):
    """Cross-entropy of the moves that are to be made and of the outcome (win, draw, loss)."""

    def __init__(self, config: ChessConfig, recipe: Recipe, source: Positions) -> None:
        super().__init__(recipe, source, config.split)
        self.config = config
        self.history = _history(recipe.model)

    def adapt(self, model: ModelConfig) -> ModelConfig:
        """`model` as it is; UserError for one that does not see 64 squares, and where there is nothing to train on."""
        for split in ("train", "validation"):
            self.numbers(split)
        _history(model)
        return model

    def batches(self, split: str, shard: Shard = WHOLE, start: int = 0) -> Iterator[BoardBatch]:
        if split != "train":
            yield from (self._batch(rows) for rows in self.once(split, shard))
            return
        for places, rows in self.endless(split, shard, start):
            kept = drawn(places, self.seed, FORGET) >= self.config.forget
            turned = drawn(places, self.seed, TURN) < self.config.turn
            yield board_batch(self.source, rows, self.history, self.config.temperature, kept, turned)

    def counts(self, batch: BoardBatch) -> dict[str, int]:
        """Positions with moves and with outcomes, which are divided by separately."""
        return {POLICY: int((batch.moves[:, 0] >= 0).sum()), VALUE: int((~batch.values[:, 0].isnan()).sum())}

    def loss(self, model: nn.Module, batch: BoardBatch) -> dict[str, Loss]:
        policy, value = outputs(model, batch.inputs)
        counts = self.counts(batch)
        return {
            POLICY: Loss(_policy_nats(policy, batch).sum(), counts[POLICY]),
            VALUE: Loss(self.config.value_weight * _value_nats(value, batch).sum(), counts[VALUE]),
        }

    def evaluate(self, model: nn.Module, split: str = "validation", limit: int | None = None) -> dict[str, Any]:
        """Nats a position of moves (policy), of outcomes (value) and of both with their weights (loss); how often the
        right move is the most probable of the legal ones (accuracy), which is the accuracy on puzzles where no outcome
        is known; how often the most probable of all is legal; the mean error of the expected score.
        """
        device = device_of(cast(Transformer, model))
        with evaluating(model), torch.no_grad():
            rows = self.once(split, WHOLE, limit)
            found = (_judge(model, self._batch(some).to(device), legal_moves(self.source, some)) for some in rows)
            sums = Judged(*map(sum, zip(*found)))
        scores: dict[str, Any] = {"loss": 0.0, "positions": 0}
        if sums.moves:
            scores["policy"] = sums.policy / sums.moves
            scores["accuracy"] = sums.hits / sums.moves
            scores["accuracy_interval"] = wilson(sums.hits, sums.moves)
            scores["legal_rate"] = sums.legal / sums.moves
        if sums.moves and not sums.values:
            scores["puzzle_accuracy"] = scores["accuracy"]
            scores["puzzle_accuracy_interval"] = scores["accuracy_interval"]
        if sums.values:
            scores["value"], scores["score_error"] = sums.value / sums.values, sums.error / sums.values
        scores["loss"] = scores.get("policy", 0.0) + self.config.value_weight * scores.get("value", 0.0)
        scores["positions"] = max(sums.moves, sums.values)
        return scores

    def samples(self, model: nn.Module, count: int) -> list[dict[str, str]]:
        """Held-out positions with the move that is said and the one that is right."""
        return shown_positions(BoardJudge(cast(Transformer, model)), self.source, self.spread(count))

    def pictures(self, model: nn.Module) -> list[Picture]:
        """Boards with the moves that the model thinks of, and where its squares look."""
        return board_pictures(BoardJudge(cast(Transformer, model)), self.source, self.spread(4))

    def save(self, directory: Path) -> None:
        """There is no codec to keep: positions are what they are."""

    def _batch(self, rows: np.ndarray) -> BoardBatch:
        return board_batch(self.source, rows, self.history, self.config.temperature)


def _policy_nats(logits: Tensor, batch: BoardBatch) -> Tensor:
    said = logits.log_softmax(-1).gather(1, batch.moves.clamp(min=0))
    return -(batch.shares * said).sum(1)


def _value_nats(logits: Tensor, batch: BoardBatch) -> Tensor:
    return -(batch.values.nan_to_num(0.0) * logits.log_softmax(-1)).sum(1)


def _judge(model: nn.Module, batch: BoardBatch, legal: np.ndarray) -> Judged:
    """`legal`, bool [B, M], are the moves that there are."""
    policy, value = outputs(model, batch.inputs)
    allowed = torch.from_numpy(legal).to(policy.device)
    best = policy.masked_fill(~allowed, float("-inf")).argmax(-1)
    moved, valued = batch.moves[:, 0] >= 0, ~batch.values[:, 0].isnan()
    scores = torch.tensor([1.0, 0.5, 0.0], device=value.device)
    error = ((value.softmax(-1) - batch.values.nan_to_num(0.0)) @ scores).abs()
    return Judged(
        float(_policy_nats(policy, batch).sum()),
        int((best == batch.moves[:, 0])[moved].sum()),
        int((best == policy.argmax(-1))[moved].sum()),
        int(moved.sum()),
        float(_value_nats(value, batch).sum()),
        float(error[valued].sum()),
        int(valued.sum()),
    )


def _history(model: ModelConfig) -> int:
    """How many earlier positions the model reads."""
    if (
        isinstance(model, TransformerConfig)
        and isinstance(model.embed, BoardEmbedConfig)
        and {POLICY, VALUE} <= set(model.heads)
    ):
        return model.embed.history
    raise UserError(
        "this model has no 64 squares with the heads policy and value; leave model out, or train tokens of a FEN by "
        "the recipe chess-searchless"
    )
