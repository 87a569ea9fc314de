"""The positions of a tree search: what was found of their moves, and how it is told to those before."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from headway.domains.chess.rules import Record, chess, move_of, record

DRAW, LOST = np.array([0.0, 1.0, 0.0]), np.array([0.0, 0.0, 1.0])


@dataclass(frozen=True)
class PuctConfig:
    """`explore` weighs the policy against the values found, growing with the logarithm of visits beyond `base`; a move
    that was never tried is taken to be worse than its position by `unknown`, times the root of the policy tried. At
    most `batch` leaves are judged at once, and no more than take `patience` seconds, so that a stop is heard. A search
    ends after `most` nodes, some 2 kB each.
    """

    explore: float = 0.8
    base: float = 10_000.0
    unknown: float = 0.2
    batch: int = 32
    patience: float = 0.05
    most: int = 400_000


class Node:
    """A position whose moves have been judged. Scores are sums of expected scores of who is to move here."""

    __slots__ = ("children", "end", "moves", "outcome", "outcomes", "policy", "position", "scores", "virtual", "visits")

    def __init__(self, position: Record, moves: list[int]) -> None:
        self.position, self.moves = position, moves
        self.policy = np.zeros(len(moves), np.float32)
        self.visits, self.virtual = np.zeros(len(moves), np.int64), np.zeros(len(moves), np.int64)
        self.scores, self.outcomes = np.zeros(len(moves)), np.zeros((len(moves), 3))
        self.children: list[Node | None] = [None] * len(moves)
        self.outcome = DRAW  # of the position as it was judged
        self.end = False  # whether the game is over here

    def choose(self, config: PuctConfig) -> int:
        """The place of the move to look at next (Silver et al. 2018; Rosin 2011)."""
        tried = self.visits + self.virtual
        total = int(tried.sum())
        here = expected_of(self.outcome)
        unknown = here - config.unknown * math.sqrt(float(self.policy[tried > 0].sum()))
        worth = np.where(tried > 0, self.scores / np.maximum(tried, 1), unknown)
        rate = config.explore + math.log((total + config.base + 1) / config.base)
        return int((worth + rate * self.policy * math.sqrt(total + 1) / (1 + tried)).argmax())

    def best_first(self) -> np.ndarray:
        """Places of the moves, the most visited first, then by policy."""
        return np.lexsort((-self.policy, -self.visits))


def expected_of(outcome: np.ndarray) -> float:
    return float(outcome[0] + outcome[1] / 2)


def outcome_here(board: chess.Board, moves: list[int]) -> np.ndarray | None:
    """The outcome for who is to move where the game is over, by the rules that need no history."""
    if not moves:
        return LOST if board.is_check() else DRAW
    return DRAW if board.halfmove_clock >= 100 or board.is_insufficient_material() else None


def tell(path: list[tuple[Node, int]], outcome: np.ndarray) -> None:
    """Tell all nodes of a way what was found at its end; each turn of the board turns the outcome."""
    for node, at in reversed(path):
        outcome = outcome[::-1]
        node.visits[at] += 1
        node.scores[at] += expected_of(outcome)
        node.outcomes[at] += outcome


def undo(path: list[tuple[Node, int]]) -> None:
    for node, at in path:
        node.virtual[at] -= 1


def find_mates(root: Node, board: chess.Board) -> None:
    """Look at the moves that mate at once, whatever the policy thinks of them."""
    after = board.copy(stack=False)
    for place, number in enumerate(root.moves):
        if root.children[place] is None:
            after.push(move_of(number, board.turn))
            if after.is_checkmate():
                root.children[place] = mated = Node(record(after), [])
                mated.end, mated.outcome = True, LOST
                tell([(root, place)], LOST)
            after.pop()


def restricted(root: Node, numbers: list[int]) -> Node:
    """The root with some of its moves only."""
    kept = [place for place, number in enumerate(root.moves) if number in numbers]
    found = Node(root.position, [root.moves[place] for place in kept])
    found.outcome, found.policy = root.outcome, root.policy[kept]
    found.policy = found.policy / max(float(found.policy.sum()), 1e-9)
    return found
