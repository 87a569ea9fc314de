"""Evaluations of positions by a model, with a cache."""

from __future__ import annotations

import struct
import time
from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple, Protocol, cast

import numpy as np
import torch
from torch import Tensor, nn

from headway.codecs.boards import MIRROR, TOKENS, planes, tokens
from headway.domains.chess.config import SearchlessConfig, Target
from headway.domains.chess.rules import Record, chess, legal_numbers, positions_of, record, same
from headway.errors import UserError
from headway.generate.prompts import device_of
from headway.learn import Recipe
from headway.nn.models import BoardEmbedConfig, Transformer
from headway.nn.models.kinds import is_board

MEGABYTES = 64  # default size of the cache
_ENTRY = 420  # bytes per entry in addition to key and policy: two arrays, a tuple, a dictionary slot
_NEWEST = struct.Struct("<8Q5H").pack
_EARLIER = struct.Struct("<8QH").pack


class OpinionCache:
    """An evaluator that caches the evaluations of another one in at most `megabytes`, and evicts the least recently
    used.

    The key is the evaluator's whole input, so that only the same position with the same history, clock and repetitions
    shares an evaluation; no hash can collide.
    """

    def __init__(self, judge: Judge) -> None:
        self.inner = judge
        self.has_policy, self.has_value, self.history = judge.has_policy, judge.has_value, judge.history
        self.rate = 50.0  # positions per second in the last evaluation
        self._room, self._taken = MEGABYTES << 20, 0
        self._kept: OrderedDict[bytes, Opinion] = OrderedDict()

    def judge(self, places: Sequence[JudgedPosition]) -> list[Opinion]:
        """Evaluate positions that have a legal move; unknown ones together, each once."""
        keys = [_key(place) for place in places]
        found = {key: self._kept[key] for key in keys if key in self._kept}
        unknown = {key: place for key, place in zip(keys, places) if key not in found}
        if unknown:
            found |= zip(unknown, self.ask(list(unknown.values())))
        for key in keys:
            self._keep(key, found[key])
        self._shrink()
        return [found[key] for key in keys]

    def ask(self, places: Sequence[JudgedPosition]) -> list[Opinion]:
        """Evaluate positions without the cache."""
        started = time.monotonic()
        found = self.inner.judge(places)
        self.rate = len(places) / max(1e-6, time.monotonic() - started)
        return found

    def resize(self, megabytes: int) -> None:
        self._room = megabytes << 20
        self._shrink()

    def _keep(self, key: bytes, opinion: Opinion) -> None:
        if key not in self._kept:
            self._taken += _size(key, opinion)
            self._kept[key] = opinion
        self._kept.move_to_end(key)

    def _shrink(self) -> None:
        while self._taken > self._room:
            self._taken -= _size(*self._kept.popitem(last=False))


def _key(place: JudgedPosition) -> bytes:
    """The newest position in full, and the piece placement of those before it."""
    newest, *earlier = place.records
    return _NEWEST(*newest) + b"".join(_EARLIER(*position[:9]) for position in earlier)


def _size(key: bytes, opinion: Opinion) -> int:
    return _ENTRY + len(key) + (0 if opinion.policy is None else opinion.policy.nbytes)


POLICY, VALUE = "policy", "value"  # heads
_SHARP = 0.03  # softmax temperature of the moves' expected scores
_MOST_ROWS = 512  # rows per batch


class JudgedPosition(NamedTuple):
    """A position with its history, newest first, and the ids of its legal moves."""

    records: tuple[Record, ...]
    moves: list[int]


class Opinion(NamedTuple):
    """The evaluation of one position from the mover's side: the probability of each of its moves, float32 [K], and
    (win, draw, loss), float64 [3]; None for outputs that the model lacks.
    """

    policy: np.ndarray | None
    outcome: np.ndarray | None


class Judge(Protocol):
    """A model that evaluates positions: `has_policy` and `has_value` name its outputs."""

    has_policy: bool
    has_value: bool
    history: int

    def judge(self, places: Sequence[JudgedPosition]) -> list[Opinion]:
        """Evaluate positions that have a legal move."""
        ...


def judge_of(model: Transformer, recipe: Recipe | None, source: str) -> Judge:
    """Return the evaluator of a model; the recipe defines the target of one that reads tokens. UserError for a model
    that was not trained on chess.
    """
    task = None if recipe is None else recipe.task
    if isinstance(task, SearchlessConfig):
        return TokenJudge(model, task.target)
    if is_board(model):
        return BoardJudge(model)
    raise UserError(f"{source} does not play chess; train one: headway train chess --data games.pgn")


def place_of(board: chess.Board, history: int) -> JudgedPosition:
    """Return a board with as much of its history as its moves and the evaluator allow."""
    back = board.copy(stack=history + 1)
    found = []
    for _ in range(history + 1):
        found.append(record(back))
        if not back.move_stack:
            break
        back.pop()
    newest = found[0]
    found[0] = (*newest[:11], repetitions(board), newest[12])
    return JudgedPosition(tuple(found), legal_numbers(board))


def repetitions(board: chess.Board) -> int:
    """Count how often this position occurred on the board before, as far as its moves are known."""
    now, back, count = same(record(board)), board.copy(), 0
    for _ in range(min(len(back.move_stack), board.halfmove_clock)):
        back.pop()
        count += same(record(back)) == now
    return count


class BoardJudge:
    """A model of 64 squares with the heads policy and value."""

    has_policy = has_value = True

    def __init__(self, model: Transformer) -> None:
        self.model = model.eval()
        embed = model.config.embed
        assert isinstance(embed, BoardEmbedConfig)  # the only kind that the task trains
        self.history = embed.history

    @torch.inference_mode()
    def judge(self, places: Sequence[JudgedPosition]) -> list[Opinion]:
        logits, outcomes = outputs(self.model, self.inputs(places))
        rows, values = logits.float().cpu().numpy(), outcomes.double().softmax(-1).cpu().numpy()
        return [Opinion(_softmax(row[place.moves]), value) for row, value, place in zip(rows, values, places)]

    def inputs(self, places: Sequence[JudgedPosition]) -> Tensor:
        """Return the input planes, uint8 [B, 64, P]."""
        columns, known = [], np.zeros((len(places), self.history), bool)
        for back in range(self.history + 1):
            columns.append([place.records[min(back, len(place.records) - 1)] for place in places])
            if back:
                known[:, back - 1] = [len(place.records) > back for place in places]
        found = planes([positions_of(some) for some in columns], known)
        return torch.from_numpy(found).to(device_of(self.model))


class TokenJudge:
    """A model of a FEN's tokens, with one of three targets (Ruoss et al. 2024, section 2.3). From values of moves, the
    position's value is that of the best move, and moves are more probable the closer they are to it.
    """

    history = 0

    def __init__(self, model: Transformer, target: Target) -> None:
        self.model, self.target = model.eval(), target
        self.has_policy, self.has_value = target != "state_value", target != "behaviour"

    @torch.inference_mode()
    def judge(self, places: Sequence[JudgedPosition]) -> list[Opinion]:
        positions = positions_of([place.records[0] for place in places])
        if self.target == "action_value":
            counts = [len(place.moves) for place in places]
            each = np.repeat(positions, counts)
            moves = absolute(each, np.concatenate([place.moves for place in places]).astype(np.int64))
            scores = scores_of(self._logits(token_inputs(each, moves))).numpy()
            parts = np.split(scores, np.cumsum(counts)[:-1])
            return [Opinion(_softmax(part / _SHARP), _outcome(float(part.max()))) for part in parts]
        logits = self._logits(token_inputs(positions))
        if self.target == "state_value":
            return [Opinion(None, _outcome(score)) for score in scores_of(logits).tolist()]
        found = []
        for row, place, position in zip(logits.float().numpy(), places, positions):
            moves = absolute(np.repeat(position[None], len(place.moves)), np.array(place.moves))
            found.append(Opinion(_softmax(row[moves]), None))
        return found

    def _logits(self, inputs: np.ndarray) -> Tensor:
        rows = torch.from_numpy(inputs).split(_MOST_ROWS)
        return torch.cat([said(self.model, some.to(device_of(self.model))).float().cpu() for some in rows])


def outputs(model: nn.Module, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Return the logits of moves [B, M] and of the outcome [B, 3]."""
    encoded = model(inputs)
    heads = cast(Transformer, model).heads
    return heads[POLICY](encoded.x, encoded.layout), heads[VALUE](encoded.x, encoded.layout)


def token_inputs(positions: np.ndarray, moves: np.ndarray | None = None) -> np.ndarray:
    """Return the model's input, int64 [N, 78], or [N, 79] with moves, int [N], numbered from White's side: a BOS token,
    the tokens of each FEN, and the move.
    """
    found = np.zeros((len(positions), 1 + TOKENS + (moves is not None)), np.int64)
    found[:, 1 : 1 + TOKENS] = tokens(positions)
    if moves is not None:
        found[:, -1] = moves
    return found


def absolute(positions: np.ndarray, moves: np.ndarray) -> np.ndarray:
    """Convert moves, int [N], from the mover's side to White's side, as in the tokens of a FEN."""
    return np.where(positions["flags"] & 1, MIRROR[moves], moves)


def said(model: nn.Module, inputs: Tensor) -> Tensor:
    """Logits [B, C]."""
    return cast(Transformer, model).output(VALUE, inputs)


def scores_of(logits: Tensor) -> Tensor:
    """Return the expected scores [B] for logits of bins [B, C]: the mean of the bins' centres."""
    middles = (torch.arange(logits.shape[-1], device=logits.device) + 0.5) / logits.shape[-1]
    return logits.softmax(-1) @ middles


def _outcome(score: float) -> np.ndarray:
    """An expected score as probabilities: bins of scores contain no draws."""
    return np.array([score, 0.0, 1 - score])


def _softmax(logits: np.ndarray) -> np.ndarray:
    """[K] of [K], in float32."""
    found = np.exp(logits - logits.max())
    return (found / found.sum()).astype(np.float32)
