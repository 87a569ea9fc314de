"""Position evaluations by a model, with a cache."""

from __future__ import annotations

import struct
import time
from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple, Protocol, cast

import numpy as np
import torch
from torch import Tensor, nn

from headway.codecs.chess_boards import FEN_TOKENS, MIRRORED_MOVES, board_planes, fen_tokens
from headway.domains.chess.boards import Record, chess, legal_move_ids, record, repetition_key, to_position_array
from headway.generate.prompts import device_of
from headway.nn.models import BoardEmbedConfig, Transformer

MEGABYTES = 64  # default size of the cache
_ENTRY = 420  # bytes per entry in addition to key and policy: two arrays, a tuple, a dictionary slot
_PACK_NEWEST = struct.Struct("<8Q5H").pack
_PACK_EARLIER = struct.Struct("<8QH").pack


class EvaluationCache:
    """Caches another evaluator's evaluations in at most `megabytes`, and evicts the least recently used.

    The key is the evaluator's complete input: the newest position in full, and the pieces in those before it. So only
    the same position with the same history, clock and repetitions shares an evaluation, and hashes cannot collide.
    """

    def __init__(self, evaluator: PositionEvaluator) -> None:
        self.inner = evaluator
        self.has_policy, self.has_value, self.history = evaluator.has_policy, evaluator.has_value, evaluator.history
        self.rate = 50.0  # positions per second in the last evaluation
        self._capacity, self._used = MEGABYTES << 20, 0
        self._cache: OrderedDict[bytes, Evaluation] = OrderedDict()

    def evaluate(self, inputs: Sequence[PositionInput]) -> list[Evaluation]:
        """Evaluate positions that have a legal move. Those not in the cache are evaluated together, each once."""
        keys = [
            _PACK_NEWEST(*entry.records[0]) + b"".join(_PACK_EARLIER(*earlier[:9]) for earlier in entry.records[1:])
            for entry in inputs
        ]
        evaluations = {key: self._cache[key] for key in keys if key in self._cache}
        unknown = {key: entry for key, entry in zip(keys, inputs) if key not in evaluations}
        if unknown:
            evaluations |= zip(unknown, self.evaluate_uncached(list(unknown.values())))
        for key in keys:
            if key not in self._cache:
                self._used += _size(key, evaluations[key])
                self._cache[key] = evaluations[key]
            self._cache.move_to_end(key)
        self._evict()
        return [evaluations[key] for key in keys]

    def evaluate_uncached(self, inputs: Sequence[PositionInput]) -> list[Evaluation]:
        """Evaluate positions without the cache."""
        started = time.monotonic()
        evaluations = self.inner.evaluate(inputs)
        self.rate = len(inputs) / max(1e-6, time.monotonic() - started)
        return evaluations

    def resize(self, megabytes: int) -> None:
        self._capacity = megabytes << 20
        self._evict()

    def _evict(self) -> None:
        while self._used > self._capacity:
            self._used -= _size(*self._cache.popitem(last=False))


def _size(key: bytes, evaluation: Evaluation) -> int:
    return _ENTRY + len(key) + (0 if evaluation.policy is None else evaluation.policy.nbytes)


POLICY, VALUE = "policy", "value"  # heads
EXPECTED_TEMPERATURE = 0.03  # softmax temperature of the moves' expected scores
_MAX_ROWS = 512  # rows per batch


class PositionInput(NamedTuple):
    """A position with its history, newest first, and the ids of its legal moves."""

    records: tuple[Record, ...]
    moves: list[int]


class Evaluation(NamedTuple):
    """One position's evaluation from the mover's point of view: the probability of each move, float32 [K], and (win,
    draw, loss), float64 [3]; None for outputs that the model lacks.
    """

    policy: np.ndarray | None
    outcome: np.ndarray | None


class PositionEvaluator(Protocol):
    """A model that evaluates positions: `has_policy` and `has_value` name its outputs."""

    has_policy: bool
    has_value: bool
    history: int

    def evaluate(self, inputs: Sequence[PositionInput]) -> list[Evaluation]:
        """Evaluate positions that have a legal move."""
        ...


def position_input(board: chess.Board, history: int) -> PositionInput:
    """Return a board with as much history as its moves and the evaluator allow."""
    back = board.copy(stack=history + 1)
    records = []
    for _ in range(history + 1):
        records.append(record(back))
        if not back.move_stack:
            break
        back.pop()
    newest = records[0]
    records[0] = (*newest[:11], repetitions(board), newest[12])
    return PositionInput(tuple(records), legal_move_ids(board))


def repetitions(board: chess.Board) -> int:
    """Count how often this position occurred before, as far as the board's moves are known."""
    now, back, count = repetition_key(record(board)), board.copy(), 0
    for _ in range(min(len(back.move_stack), board.halfmove_clock)):
        back.pop()
        count += repetition_key(record(back)) == now
    return count


class BoardEvaluator:
    """A model that reads 64 squares, with the heads policy and value."""

    has_policy = has_value = True

    def __init__(self, model: Transformer) -> None:
        self.model = model.eval()
        embed = model.config.embed
        assert isinstance(embed, BoardEmbedConfig)  # the only kind that the task trains
        self.history = embed.history

    @torch.inference_mode()
    def evaluate(self, inputs: Sequence[PositionInput]) -> list[Evaluation]:
        logits, outcomes = outputs(self.model, self.inputs(inputs))
        rows, values = logits.float().cpu().numpy(), outcomes.double().softmax(-1).cpu().numpy()
        return [Evaluation(_softmax(row[entry.moves]), value) for row, value, entry in zip(rows, values, inputs)]

    def inputs(self, inputs: Sequence[PositionInput]) -> Tensor:
        """Return the input planes, uint8 [B, 64, P]."""
        columns, present = [], np.zeros((len(inputs), self.history), bool)
        for back in range(self.history + 1):
            columns.append([entry.records[min(back, len(entry.records) - 1)] for entry in inputs])
            if back:
                present[:, back - 1] = [len(entry.records) > back for entry in inputs]
        plane_array = board_planes([to_position_array(records) for records in columns], present)
        return torch.from_numpy(plane_array).to(device_of(self.model))


class TokenEvaluator:
    """A model that reads the tokens of a FEN, with one of the targets of `SearchlessConfig` (Ruoss et al. 2024, section
    2.3). If it predicts values of moves, the position's value is that of the best move, and moves are more probable the
    closer they are to it.
    """

    history = 0

    def __init__(self, model: Transformer, target: str) -> None:
        self.model, self.target = model.eval(), target
        self.has_policy, self.has_value = target != "state_value", target != "behaviour"

    @torch.inference_mode()
    def evaluate(self, inputs: Sequence[PositionInput]) -> list[Evaluation]:
        positions = to_position_array([entry.records[0] for entry in inputs])
        if self.target == "action_value":
            counts = [len(entry.moves) for entry in inputs]
            repeated = np.repeat(positions, counts)
            moves = to_white(repeated, np.concatenate([entry.moves for entry in inputs]).astype(np.int64))
            scores = expected_scores(self._logits(token_inputs(repeated, moves))).numpy()
            parts = np.split(scores, np.cumsum(counts)[:-1])
            return [Evaluation(_softmax(part / EXPECTED_TEMPERATURE), _outcome(float(part.max()))) for part in parts]
        logits = self._logits(token_inputs(positions))
        if self.target == "state_value":
            return [Evaluation(None, _outcome(score)) for score in expected_scores(logits).tolist()]
        evaluations = []
        for row, entry, position in zip(logits.float().numpy(), inputs, positions):
            moves = to_white(np.repeat(position[None], len(entry.moves)), np.array(entry.moves))
            evaluations.append(Evaluation(_softmax(row[moves]), None))
        return evaluations

    def _logits(self, inputs: np.ndarray) -> Tensor:
        rows = torch.from_numpy(inputs).split(_MAX_ROWS)
        return torch.cat([value_logits(self.model, chunk.to(device_of(self.model))).float().cpu() for chunk in rows])


def outputs(model: nn.Module, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Return the logits for moves [B, M] and for the outcome [B, 3]."""
    encoded = model(inputs)
    heads = cast(Transformer, model).heads
    return heads[POLICY](encoded.x, encoded.layout), heads[VALUE](encoded.x, encoded.layout)


def token_inputs(positions: np.ndarray, moves: np.ndarray | None = None) -> np.ndarray:
    """Return the model's input, int64 [N, 78], or [N, 79] with moves, int [N], numbered from White's side: a BOS token,
    the tokens of each FEN, and the move.
    """
    rows = np.zeros((len(positions), 1 + FEN_TOKENS + (moves is not None)), np.int64)
    rows[:, 1 : 1 + FEN_TOKENS] = fen_tokens(positions)
    if moves is not None:
        rows[:, -1] = moves
    return rows


def to_white(positions: np.ndarray, moves: np.ndarray) -> np.ndarray:
    """Convert moves, int [N], from the mover's point of view to White's, as in the tokens of a FEN."""
    return np.where(positions["flags"] & 1, MIRRORED_MOVES[moves], moves)


def value_logits(model: nn.Module, inputs: Tensor) -> Tensor:
    """Logits [B, C]."""
    return cast(Transformer, model).output(VALUE, inputs)


def expected_scores(logits: Tensor) -> Tensor:
    """Return the expected scores [B] for bin logits [B, C]: the mean of the bin centres."""
    middles = (torch.arange(logits.shape[-1], device=logits.device) + 0.5) / logits.shape[-1]
    return logits.softmax(-1) @ middles


def _outcome(score: float) -> np.ndarray:
    """An expected score as probabilities. There is no draw probability, because bins do not encode draws."""
    return np.array([score, 0.0, 1 - score])


def _softmax(logits: np.ndarray) -> np.ndarray:
    """[K] of [K], in float32."""
    weights = np.exp(logits - logits.max())
    return (weights / weights.sum()).astype(np.float32)
