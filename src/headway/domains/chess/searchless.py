"""Learning chess from the tokens of a FEN, by one head: Ruoss et al. 2024."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from headway.codecs.moves import MOVES
from headway.domains.chess.config import SearchlessConfig
from headway.domains.chess.data import PositionRows
from headway.domains.chess.judge import TokenJudge
from headway.domains.chess.outputs import VALUE as HEAD
from headway.domains.chess.outputs import absolute, said, scores_of, token_inputs
from headway.domains.chess.pictures import board_pictures
from headway.domains.chess.positions import Positions
from headway.domains.chess.show import shown_positions
from headway.domains.chess.values import expected
from headway.errors import UserError
from headway.generate.prompts import device_of, evaluating
from headway.metrics import wilson
from headway.models import Loss, ModelConfig, PooledHeadConfig, Transformer, TransformerConfig
from headway.report import Picture
from headway.train import WHOLE, Recipe, Shard
from headway.train.examples import Batch

_SPREAD, _ROUND = 2_654_435_761, 1_000_003  # neighbours begin with different moves


def bins_of(scores: np.ndarray, bins: int) -> np.ndarray:
    """The bin, int64, of expected scores between 0 and 1, or of worths, whose mates are in the outermost."""
    return np.clip((scores * bins).astype(np.int64), 0, bins - 1)


class SearchlessTask(PositionRows):
    """Cross-entropy of a move or of the bin of an expected score."""

    def __init__(self, config: SearchlessConfig, recipe: Recipe, source: Positions) -> None:
        """Raises UserError where the data lack what is to be learnt."""
        super().__init__(recipe, source, config.split)
        self.config = config
        valued = ~np.isnan(source.values[:, 0])
        known = {
            "behaviour": source.counts > 0,
            "state_value": valued,
            "action_value": _known_moves(source) > 0,
        }[config.target]
        self.sides = {side: rows[known[rows]] for side, rows in self.sides.items()}
        self.all = np.flatnonzero(known)

    def numbers(self, split: str) -> np.ndarray:
        if split == "all" and len(self.all):
            return self.all
        if split == "all" or len(self.sides[split]) == 0:
            raise UserError(
                f"the {split} split has no positions with what {self.config.target} is learnt from; give games with "
                "results or positions with evaluations"
            )
        return self.sides[split]

    def adapt(self, model: ModelConfig) -> ModelConfig:
        """`model` with the outputs of this target; UserError for one that does not read symbols both ways."""
        for split in ("train", "validation"):
            self.numbers(split)
        fits = isinstance(model, TransformerConfig) and isinstance(model.heads.get(HEAD), PooledHeadConfig)
        if not fits or not isinstance(model, TransformerConfig):
            raise UserError("this model reads no tokens of a FEN; use chess-9m, chess-136m or chess-270m")
        head = replace(cast(PooledHeadConfig, model.heads[HEAD]), outputs=self.outputs)
        return replace(model, symbols=len(MOVES), heads={**model.heads, HEAD: head})

    @property
    def outputs(self) -> int:
        return len(MOVES) if self.config.target == "behaviour" else self.config.bins

    def batches(self, split: str, shard: Shard = WHOLE, start: int = 0) -> Iterator[Batch]:
        if split != "train":
            yield from (self._batch(rows) for rows in self.once(split, shard))
            return
        for places, rows in self.endless(split, shard, start):
            yield self._batch(rows, places)

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Loss]:
        total = F.cross_entropy(said(model, *batch.inputs), batch.targets, reduction="sum")
        return {"loss": Loss(total, batch.tokens)}

    def evaluate(self, model: nn.Module, split: str = "validation", limit: int | None = None) -> dict[str, Any]:
        """Nats a position, how often the right move or bin is the most probable, and the mean error of an expected
        score.
        """
        device, nats, hits, error, count = device_of(cast(Transformer, model)), 0.0, 0, 0.0, 0
        with evaluating(model), torch.no_grad():
            for rows in self.once(split, WHOLE, limit):
                batch = self._batch(rows).to(device)
                logits = said(model, *batch.inputs)
                nats += float(F.cross_entropy(logits, batch.targets, reduction="sum"))
                hits += int((logits.argmax(-1) == batch.targets).sum())
                error += float((scores_of(logits) - (batch.targets + 0.5) / self.outputs).abs().sum())
                count += batch.tokens
        scores = {"loss": nats / count, "accuracy": hits / count, "accuracy_interval": wilson(hits, count)}
        if self.config.target != "behaviour":
            scores["score_error"] = error / count
        return {**scores, "positions": count}

    def samples(self, model: nn.Module, count: int) -> list[dict[str, str]]:
        """Held-out positions with the move that is said and the one that is right."""
        return shown_positions(
            TokenJudge(cast(Transformer, model), self.config.target), self.source, self.spread(count)
        )

    def pictures(self, model: nn.Module) -> list[Picture]:
        """Boards with the moves that the model likes best."""
        judge = TokenJudge(cast(Transformer, model), self.config.target)
        return board_pictures(judge, self.source, self.spread(4))

    def save(self, directory: Path) -> None:
        """There is no codec to keep: positions are what they are."""

    def _batch(self, rows: np.ndarray, places: np.ndarray | None = None) -> Batch:
        """Of several moves with values one is taken: which one depends on the position's number and, by its place in
        the stream of samples, on the epoch.
        """
        positions, targets = np.asarray(self.source.positions[rows]), self.source.targets(rows)
        if self.config.target == "state_value":
            labels, inputs = bins_of(expected(targets.values), self.config.bins), token_inputs(positions)
            return _to_learn(inputs, labels)
        if self.config.target == "behaviour":
            labels = absolute(positions, targets.moves[:, 0])
            return _to_learn(token_inputs(positions), labels)
        known = ~np.isnan(targets.worths)
        draw = np.zeros(len(rows), np.int64) if places is None else places // max(1, len(self.sides["train"]))
        nth = (draw + rows * _SPREAD % _ROUND) % known.sum(1)
        column = (known.cumsum(1) == nth[:, None] + 1).argmax(1)
        every = np.arange(len(rows))
        inputs = token_inputs(positions, absolute(positions, targets.moves[every, column]))
        labels = bins_of(targets.worths[every, column], self.config.bins)
        return _to_learn(inputs, labels)


def _to_learn(inputs: np.ndarray, labels: np.ndarray) -> Batch:
    return Batch((torch.from_numpy(inputs),), torch.from_numpy(labels), len(inputs), inputs.size)


def _known_moves(source: Positions) -> np.ndarray:
    """How many moves of each position have an expected score, int64 [N]."""
    known = np.concatenate([[0], np.cumsum(~np.isnan(source.worths), dtype=np.int64)])
    return known[source.starts[1:]] - known[source.starts[:-1]]
