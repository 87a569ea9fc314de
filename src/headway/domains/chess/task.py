"""The chess tasks, on positions split by game: moves and outcomes from 64 squares, and moves or values from the tokens
of a FEN (Ruoss et al. 2024).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Generic, NamedTuple, TypeVar, cast

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from headway.codecs.chess_boards import FLIPPED_MOVES, MOVES, UPWARD_MOVES, board_planes, to_fens
from headway.data import SplitConfig, Splits
from headway.data.array_store import column_digest
from headway.domains.chess.boards import (
    board_from_fen,
    chess,
    decode_move,
    drawing,
    expected,
    expected_of,
    legal_move_ids,
)
from headway.domains.chess.evaluator import (
    POLICY,
    VALUE,
    BoardEvaluator,
    PositionEvaluator,
    TokenEvaluator,
    expected_scores,
    outputs,
    position_input,
    to_white,
    token_inputs,
    value_logits,
)
from headway.domains.chess.limits import SearchLimits
from headway.domains.chess.player import ChessPlayer
from headway.domains.chess.positions import Positions
from headway.errors import UserError
from headway.learn import Recipe
from headway.learn.examples import Batch, Contents, IndexedExamples, RngKey
from headway.learn.objective import Objective, evaluate_batches
from headway.learn.recipe import batch_size_of
from headway.learn.report import Picture
from headway.metrics import wilson_interval
from headway.nn.models import (
    BoardEmbedConfig,
    Loss,
    ModelConfig,
    PooledHeadConfig,
    Transformer,
    TransformerConfig,
    attention_maps,
)

_SIZE = 330  # maximum width of a board in pixels
_GREEN, _BLUE = "#15781b", "#1565c0"
_ARROWS = 3  # moves drawn per board
_MAPS = 2  # attention heads drawn


def boards_of(source: Positions, rows: np.ndarray) -> list[chess.Board]:
    """Return the boards of positions, int [N]."""
    return [board_from_fen(fen) for fen in to_fens(np.asarray(source.positions[rows]))]


def best_moves(evaluator: PositionEvaluator, board: chess.Board, max_moves: int) -> list[tuple[chess.Move, float]]:
    """Return a position's most probable moves with their probabilities or, without a policy, the best by the value
    after each.
    """
    if evaluator.has_policy:
        inputs = position_input(board, evaluator.history)
        policy = evaluator.evaluate([inputs])[0].policy
        assert policy is not None  # because has_policy is set
        best = np.argsort(-policy, kind="stable")[:max_moves].tolist()
        return [(decode_move(inputs.moves[index], board.turn), float(policy[index])) for index in best]
    lines = ChessPlayer(evaluator, "value").think(board, SearchLimits()).lines[:max_moves]
    return [(line.moves[0], expected_of(line.outcome)) for line in lines]


def board_svg(
    board: chess.Board, moves: Sequence[tuple[chess.Move, float]] = (), weights: Mapping[int, float] | None = None
) -> str:
    """Draw a board from White's side. Moves are arrows, bolder if more probable, and squares are shaded by weights from
    0 to 1.
    """
    arrows = [
        drawing.Arrow(move.from_square, move.to_square, color=_shade(_GREEN, share)) for move, share in reversed(moves)
    ]
    fill = {square: _shade(_BLUE, weight) for square, weight in (weights or {}).items() if weight > 0.01}
    svg = drawing.board(board, arrows=arrows, fill=fill)
    label = f"chess position {board.fen()}"
    return svg.replace("<svg ", f'<svg role="img" aria-label="{label}" style="max-width:{_SIZE}px" ', 1)


def _shade(color: str, weight: float) -> str:
    """Return a colour #rrggbb with an opacity for a weight from 0 to 1."""
    return f"{color}{round(255 * (0.15 + 0.7 * min(1.0, weight))):02x}"


class PositionRows(IndexedExamples):
    """Positions by index. They do not need a codec."""

    eval_batch_size = 256

    def __init__(self, recipe: Recipe, source: Positions, splits: Splits) -> None:
        self.batch_size, self.seed, self.source, self.splits = batch_size_of(recipe), recipe.train.seed, source, splits

    def describe_row(self, row: int) -> str:
        """A position in FEN."""
        return boards_of(self.source, np.array([row]))[0].fen()

    def contents(self) -> Contents:
        parts = {"positions": ("positions", "earlier"), "moves": ("counts", "moves"), "values": ("values", "worths")}
        return {name: ([column_digest(self.source.folder, *columns)],) for name, columns in parts.items()}


P = TypeVar("P", bound=PositionRows)


class PositionObjective(Objective[P], Generic[P]):
    """The objective for models that evaluate positions."""

    shares_evaluation = True

    unit = "position"

    def evaluator(self, model: nn.Module) -> PositionEvaluator:
        """Return the model as an evaluator of positions."""
        raise NotImplementedError

    def samples(self, model: nn.Module, examples: P, count: int) -> list[dict[str, str]]:
        """Return held-out positions with the predicted and the correct move, in standard notation."""
        evaluator = self.evaluator(model)
        rows = examples.spread_rows(count)
        samples: list[dict[str, Any]] = []
        for board, moves in zip(boards_of(examples.source, rows), examples.source.targets(rows).moves):
            if not any(board.generate_legal_moves()):
                continue
            predicted = best_moves(evaluator, board, 1)[0][0]
            correct = board.san(decode_move(int(moves[0]), board.turn)) if moves[0] >= 0 else ""
            samples.append({"source": board.fen(), "output": board.san(predicted), "reference": correct})
        return samples

    def pictures(self, model: nn.Module, examples: P) -> list[Picture]:
        """Draw boards with the model's best moves. For the first one, also the attention of the best move's square in
        heads of the last attention layer, if the model reads squares.
        """
        evaluator = self.evaluator(model)
        pictures: list[Picture] = []
        for number, board in enumerate(boards_of(examples.source, examples.spread_rows(4))):
            if not any(board.generate_legal_moves()):
                continue
            inputs = position_input(board, evaluator.history)
            moves = best_moves(evaluator, board, _ARROWS)
            move_list = ", ".join(f"{board.san(move)} {100 * share:.0f} %" for move, share in moves)
            caption = f"{'White' if board.turn else 'Black'} to move: {move_list}"
            outcome = evaluator.evaluate([inputs])[0].outcome
            if outcome is not None:
                caption += "; wins {:.0f}, draws {:.0f}, loses {:.0f} %".format(*(100 * outcome))
            pictures.append(Picture(f"Position {number + 1}", caption, board_svg(board, moves)))
            if number or not isinstance(evaluator, BoardEvaluator):
                continue
            maps = attention_maps(evaluator.model, partial(evaluator.model, evaluator.inputs([inputs])))
            square = moves[0][0].from_square
            flip = 0 if board.turn else 56
            for name, weights in list(maps.items())[-1:]:
                for head, row in enumerate(weights[0, :_MAPS, square ^ flip], 1):
                    share = (row / row.max().clamp(min=1e-9)).tolist()
                    caption = f"{name}: attention of {chess.square_name(square)}, relative to its maximum"
                    shaded = {index ^ flip: weight for index, weight in enumerate(share)}
                    pictures.append(Picture(f"Attention, head {head}", caption, board_svg(board, weights=shaded)))
        return pictures


_FORGET, _TURN = 23, 24  # random streams


class BoardTargets(NamedTuple):
    """The moves to learn with their probabilities, padded with -1 and 0, and the outcome, NaN if unknown."""

    moves: Int[Tensor, "B K"]
    shares: Float[Tensor, "B K"]
    values: Float[Tensor, "B 3"]


class Boards(PositionRows):
    """Input planes of positions with their history."""

    def __init__(
        self,
        recipe: Recipe,
        source: Positions,
        split: SplitConfig,
        temperature: float = 0.03,
        forget: float = 0.5,
        turn: float = 0.5,
    ) -> None:
        """`temperature`, `forget` and `turn` as in `ChessConfig`."""
        every = np.arange(len(source))
        super().__init__(recipe, source, Splits(source.split(split), every, "positions", "games in files"))
        self.temperature, self.forget, self.turn = temperature, forget, turn
        self.history = _history(recipe.model)

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
            known = known & (_uniform(rng_key, self.seed, _FORGET) >= self.forget)[:, None]
        targets, inputs = self.source.targets(rows), board_planes(records, known)
        moves = targets.moves
        if rng_key is not None:
            mirrored = (_uniform(rng_key, self.seed, _TURN) < self.turn) & (records[0]["flags"] < 2)
            inputs[mirrored] = inputs[mirrored][:, np.arange(64) ^ 7]
            moves = np.where(mirrored[:, None] & (moves >= 0), FLIPPED_MOVES[moves], moves)
        # Each move's probability: a softmax of the worths if several are known, otherwise 1 for the first.
        is_move = targets.moves >= 0
        has_worths = (is_move.sum(1) > 1) & ~np.isnan(np.where(is_move, targets.worths, 0)).any(1)
        logits = np.where(is_move, np.nan_to_num(targets.worths), -np.inf) / self.temperature
        soft = np.exp(logits - np.maximum(logits.max(1, keepdims=True), -1e9))
        soft /= np.maximum(soft.sum(1, keepdims=True), 1e-9)
        first = np.zeros_like(soft)
        first[:, 0] = is_move[:, 0]
        shares = np.where(has_worths[:, None], soft, first).astype(np.float32)
        board_targets = BoardTargets(*map(torch.from_numpy, (moves, shares, targets.values)))
        return Batch((torch.from_numpy(inputs),), board_targets, len(rows), inputs.shape[0] * inputs.shape[1])

    def legal(self, rows: np.ndarray) -> np.ndarray:
        """Return the legal moves of positions, bool [N, M], from the mover's point of view."""
        legal = np.zeros((len(rows), UPWARD_MOVES), bool)
        for row, fen in enumerate(to_fens(np.asarray(self.source.positions[rows]))):
            legal[row, legal_move_ids(chess.Board(fen))] = True
        return legal


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
        counts = self.counts(batch.host)
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

        def compute(indices: np.ndarray, batch: Batch) -> tuple[int, int, int, int, float, float, float]:
            (policy, value), targets = outputs(model, *batch.inputs), batch.targets
            legal = torch.from_numpy(examples.legal(samples.rows[indices])).to(policy.device)
            best = policy.masked_fill(~legal, float("-inf")).argmax(-1)
            moved = targets.moves[:, 0] >= 0
            valued = ~targets.values[:, 0].isnan()
            points = torch.tensor([1.0, 0.5, 0.0], device=value.device)
            errors = ((value.softmax(-1) - targets.values.nan_to_num(0.0)) @ points).abs()
            return (
                int(moved.sum()),
                int(valued.sum()),
                int((best == targets.moves[:, 0])[moved].sum()),
                int((best == policy.argmax(-1))[moved].sum()),
                float(_policy_nats(policy, targets).sum()),
                float(_value_nats(value, targets).sum()),
                float(errors[valued].sum()),
            )

        num_moves, num_values, hits, num_legal, policy_nats, value_nats, error = map(
            sum, zip(*evaluate_batches(model, samples, compute))
        )
        scores: dict[str, Any] = {"loss": 0.0, "positions": 0}
        if num_moves:
            scores["policy"] = policy_nats / num_moves
            scores["accuracy"] = hits / num_moves
            scores["accuracy_interval"] = wilson_interval(hits, num_moves)
            scores["legal_rate"] = num_legal / num_moves
        if num_moves and not num_values:
            scores["puzzle_accuracy"] = scores["accuracy"]
            scores["puzzle_accuracy_interval"] = scores["accuracy_interval"]
        if num_values:
            scores["value"], scores["score_error"] = value_nats / num_values, error / num_values
        scores["loss"] = scores.get("policy", 0.0) + self.weight * scores.get("value", 0.0)
        scores["positions"] = max(num_moves, num_values)
        return scores


def _uniform(rng_key: RngKey, seed: int, stream: int) -> np.ndarray:
    """Random numbers from 0 to 1, [B], that depend only on the seed and the batch's index in the sample stream."""
    first = int(rng_key.positions[0])
    random = np.random.Generator(np.random.Philox(key=[seed, stream], counter=[0, 0, 0, first]))
    return random.random(len(rng_key.positions))


def _policy_nats(logits: Tensor, targets: BoardTargets) -> Tensor:
    return -(targets.shares * logits.log_softmax(-1).gather(1, targets.moves.clamp(min=0))).sum(1)


def _value_nats(logits: Tensor, targets: BoardTargets) -> Tensor:
    return -(targets.values.nan_to_num(0.0) * logits.log_softmax(-1)).sum(1)


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


_SPREAD, _ROUND = 2_654_435_761, 1_000_003  # hash constants, so that neighbouring positions start with different moves


class Fens(PositionRows):
    """Tokens of the positions whose target is known, plus a move if its value is the target; the labels are the move or
    the bin of the score.
    """

    def __init__(self, recipe: Recipe, source: Positions, split: SplitConfig, target: str, bins: int) -> None:
        """`target` and `bins` as in `SearchlessConfig`."""
        worths = np.concatenate([[0], np.cumsum(~np.isnan(source.worths), dtype=np.int64)])
        known = {
            "behaviour": source.counts > 0,
            "state_value": ~np.isnan(source.values[:, 0]),
            "action_value": worths[source.starts[1:]] > worths[source.starts[:-1]],
        }[target]
        splits = source.split(split).without(np.flatnonzero(~known))
        noun, hint = f"positions with the target {target}", "games with results, or evaluations, in files"
        super().__init__(recipe, source, Splits(splits, np.flatnonzero(known), noun, hint))
        self.target, self.bins = target, bins

    def adapt(self, model: ModelConfig) -> ModelConfig:
        """Return `model` with the move vocabulary. UserError for a model that is not bidirectional over tokens, or
        without training data.
        """
        for split in ("train", "validation"):
            self.splits.rows(split)
        if not isinstance(model, TransformerConfig) or not isinstance(model.heads.get(VALUE), PooledHeadConfig):
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

    def __init__(self, target: str, outputs: int) -> None:
        """`outputs` is the number of moves or bins."""
        self.target, self.outputs = target, outputs

    def evaluator(self, model: nn.Module) -> TokenEvaluator:
        return TokenEvaluator(cast(Transformer, model), self.target)

    def adapt(self, model: ModelConfig, examples: Fens) -> ModelConfig:
        """Return `model` with the outputs of this target."""
        assert isinstance(model, TransformerConfig)  # checked by the examples
        head = replace(cast(PooledHeadConfig, model.heads[VALUE]), outputs=self.outputs)
        return replace(model, heads={**model.heads, VALUE: head})

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Loss]:
        total = F.cross_entropy(value_logits(model, *batch.inputs), batch.targets, reduction="sum")
        return {"loss": Loss(total, batch.tokens)}

    def evaluate(self, model: nn.Module, examples: Fens, split: str, limit: int | None = None) -> dict[str, Any]:
        """Return nats per position, the accuracy on moves or bins, and the mean error of the expected score."""
        samples = examples.of(split).limited_to(limit)

        def compute(_: np.ndarray, batch: Batch) -> tuple[float, int, float]:
            logits = value_logits(model, *batch.inputs)
            errors = expected_scores(logits) - (batch.targets + 0.5) / self.outputs
            nats = float(F.cross_entropy(logits, batch.targets, reduction="sum"))
            return nats, int((logits.argmax(-1) == batch.targets).sum()), float(errors.abs().sum())

        nats, hits, error = map(sum, zip(*evaluate_batches(model, samples, compute)))
        count = len(samples)
        scores = {"loss": nats / count, "accuracy": hits / count, "accuracy_interval": wilson_interval(hits, count)}
        if self.target != "behaviour":
            scores["score_error"] = error / count
        return {**scores, "positions": count}


def bins_of(scores: np.ndarray, bins: int) -> np.ndarray:
    """Return the int64 bin of expected scores from 0 to 1, or of worths, whose mates are in the outermost bins."""
    return np.clip((scores * bins).astype(np.int64), 0, bins - 1)
