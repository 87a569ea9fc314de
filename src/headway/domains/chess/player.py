"""A model that plays: by its policy only, by the value of the position after each move, or by a tree search (PUCT) that
both guide, which evaluates leaves in batches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from headway.domains.chess.boards import (
    Record,
    chess,
    decode_move,
    encode_move,
    expected_of,
    legal_move_ids,
    record,
    repetition_key,
)
from headway.domains.chess.evaluator import (
    Evaluation,
    EvaluationCache,
    PositionEvaluator,
    PositionInput,
    position_input,
    repetitions,
)
from headway.domains.chess.limits import SEARCHES, SearchLimits
from headway.errors import UserError

DRAW, LOST = np.array([0.0, 1.0, 0.0]), np.array([0.0, 0.0, 1.0])


@dataclass(frozen=True)
class PuctConfig:
    """`explore` weights the policy against the values and grows with the logarithm of visits beyond `base`. An untried
    move is assumed to be worse than its position by `unknown` times the square root of the policy already tried. At
    most `batch` leaves are evaluated at once, and only as many as take `patience` seconds, so that the search can be
    stopped. A search ends after `max_nodes` nodes of about 2 kB each.
    """

    explore: float = 0.8
    base: float = 10_000.0
    unknown: float = 0.2
    batch: int = 32
    patience: float = 0.05
    max_nodes: int = 400_000


class Node:
    """A position with evaluated moves. Scores are sums of expected scores for the side to move."""

    __slots__ = ("children", "end", "moves", "outcome", "outcomes", "policy", "position", "scores", "virtual", "visits")

    def __init__(self, position: Record, moves: list[int]) -> None:
        self.position, self.moves = position, moves
        self.policy = np.zeros(len(moves), np.float32)
        self.visits, self.virtual = np.zeros(len(moves), np.int64), np.zeros(len(moves), np.int64)
        self.scores, self.outcomes = np.zeros(len(moves)), np.zeros((len(moves), 3))
        self.children: list[Node | None] = [None] * len(moves)
        self.outcome = DRAW  # as evaluated
        self.end = False  # whether the game is over here

    def choose(self, config: PuctConfig) -> int:
        """Return the index of the next move to explore (Silver et al. 2018; Rosin 2011)."""
        tried = self.visits + self.virtual
        total = int(tried.sum())
        here = expected_of(self.outcome)
        unknown = here - config.unknown * math.sqrt(float(self.policy[tried > 0].sum()))
        mean_score = np.where(tried > 0, self.scores / np.maximum(tried, 1), unknown)
        rate = config.explore + math.log((total + config.base + 1) / config.base)
        return int((mean_score + rate * self.policy * math.sqrt(total + 1) / (1 + tried)).argmax())

    def best_first(self) -> np.ndarray:
        """Return indices of the moves, most visited first, then by policy."""
        return np.lexsort((-self.policy, -self.visits))


def backpropagate(path: list[tuple[Node, int]], outcome: np.ndarray) -> None:
    """Back up an outcome from the end of a path to all its nodes; it flips at each move."""
    for node, index in reversed(path):
        outcome = outcome[::-1]
        node.visits[index] += 1
        node.scores[index] += expected_of(outcome)
        node.outcomes[index] += outcome


def undo_virtual_loss(path: list[tuple[Node, int]]) -> None:
    for node, index in path:
        node.virtual[index] -= 1


@dataclass
class SearchLine:
    """A root move: its visits, (win, draw, loss) for the mover, and the principal variation, which starts with the
    move. `mates` is whether it mates at once.
    """

    moves: list[chess.Move]
    visits: int
    outcome: np.ndarray
    mates: bool = False


class Tree:
    """The search from a position in a game; it keeps the subtree of the moves that are then played."""

    def __init__(self, evaluator: PositionEvaluator, config: PuctConfig) -> None:
        self.evaluator, self.config = EvaluationCache(evaluator), config
        self.root: Node | None = None
        self.board = chess.Board()
        self.earlier_visits = 0  # visits of the root from an earlier search

    def clear(self) -> None:
        self.root = None

    def search(
        self,
        board: chess.Board,
        limits: SearchLimits,
        report: Callable[[list[SearchLine], int], None] | None = None,
        only: Sequence[chess.Move] = (),
    ) -> tuple[list[SearchLine], int]:
        """The root's lines, best first, and the evaluated nodes. `only` restricts the root to some moves."""
        try:
            root = self._set_root(board)
            if only:
                move_ids = [encode_move(move, board.turn) for move in only]
                indices = [index for index, move_id in enumerate(root.moves) if move_id in move_ids]
                restricted = Node(root.position, [root.moves[index] for index in indices])
                restricted.outcome, restricted.policy = root.outcome, root.policy[indices]
                restricted.policy = restricted.policy / max(float(restricted.policy.sum()), 1e-9)
                root = self.root = restricted
            after = board.copy(stack=False)
            for index, move_id in enumerate(root.moves):  # try the moves that mate at once, independent of the policy
                if root.children[index] is None:
                    after.push(decode_move(move_id, board.turn))
                    if after.is_checkmate():
                        root.children[index] = mated = Node(record(after), [])
                        mated.end, mated.outcome = True, LOST
                        backpropagate([(root, index)], LOST)
                    after.pop()
            nodes, self.earlier_visits = 0, int(root.visits.sum())
            while not self._is_done(root, limits, nodes):
                # As many leaves as fit into the time, but few while the tree is small. A search with only a node limit
                # ignores the time, so that it is reproducible.
                size = min(self.config.batch, 1 + nodes // 4)
                if limits.nodes is None or limits.seconds is not None:
                    time_left = min(self.config.patience, max(0.0, limits.seconds_left) / 2)
                    size = min(size, max(1, int(self.evaluator.rate * time_left)))
                max_nodes = min(limits.nodes or self.config.max_nodes, self.config.max_nodes - self.earlier_visits)
                done = self._simulate(root, min(size, max(1, max_nodes - nodes)))
                nodes += done
                if report is not None and done:
                    report(self.lines(), nodes)
            return self.lines(), nodes
        except BaseException:
            self.clear()  # an interrupted simulation leaves inconsistent counts
            raise

    def lines(self) -> list[SearchLine]:
        """Return the root moves, best first."""
        root, lines = self.root, []
        if root is None:
            return []
        for index in root.best_first().tolist():
            child = root.children[index]
            visits = int(root.visits[index])
            outcome = root.outcomes[index] / visits if visits else root.outcome
            mates = child is not None and child.end and child.outcome is LOST
            lines.append(SearchLine(self._principal(root, index), visits, outcome, mates))
        return sorted(lines, key=lambda line: not line.mates)

    def _principal(self, node: Node, index: int) -> list[chess.Move]:
        turn, moves, here = self.board.turn, [], node
        while True:
            moves.append(decode_move(here.moves[index], turn))
            child = here.children[index]
            if child is None or child.end or not child.visits.any() or len(moves) >= 32:
                return moves
            here, index, turn = child, int(child.best_first()[0]), not turn

    def _set_root(self, board: chess.Board) -> Node:
        """Make the board the root: the node that explored moves lead to from the last root, or a new one."""
        before = len(self.board.move_stack)
        continues = self.board.root() == board.root() and board.move_stack[:before] == self.board.move_stack
        root, turn = self.root if continues else None, self.board.turn
        for move in board.move_stack[before:]:
            if root is None:
                break
            number = encode_move(move, turn)
            root = root.children[root.moves.index(number)] if number in root.moves else None
            turn = not turn
        self.board = board.copy()
        self.past: dict[Record, int] = {}  # occurrences since the last irreversible move
        back = board.copy()
        for _ in range(min(len(back.move_stack), board.halfmove_clock)):
            back.pop()
            key = repetition_key(record(back))
            self.past[key] = self.past.get(key, 0) + 1
        if root is None or root.end or len(root.moves) != board.legal_moves.count():
            root = Node(record(board), legal_move_ids(board))
            self._expand(root, self.evaluator.evaluate([self._position_input(board, [], root)])[0])
        self.root = root
        return root

    def _is_done(self, root: Node, limits: SearchLimits, nodes: int) -> bool:
        if nodes == 0 and not root.visits.any():
            return limits.stop.is_set()  # at least one simulation, even without time
        if (
            limits.over
            or nodes >= (limits.nodes or self.config.max_nodes)
            or self.earlier_visits + nodes >= self.config.max_nodes
        ):
            return True
        if limits.depth is not None:
            deep = len(self._principal(root, int(root.best_first()[0]))) >= limits.depth
            return deep or nodes >= 400 * limits.depth
        is_forced = len(root.moves) == 1 and limits.seconds is not None
        return is_forced or any(child is not None and child.end and child.outcome is LOST for child in root.children)

    def _simulate(self, root: Node, size: int) -> int:
        """Evaluate up to `size` leaves and return how many were found."""
        waiting: list[tuple[list[tuple[Node, int]], Node, PositionInput]] = []
        pending: set[int] = set()
        done = 0
        for _ in range(size):
            path, leaf, entry, outcome = self._descend(root)
            if outcome is not None:
                backpropagate(path, outcome)
                done += 1
            elif leaf is None or entry is None:
                undo_virtual_loss(path)  # it ends at a leaf that is already in this batch
                break
            else:
                pending.add(id(leaf))
                waiting.append((path, leaf, entry))
        if waiting:
            for (path, leaf, _), evaluation in zip(
                waiting, self.evaluator.evaluate([entry for _, _, entry in waiting])
            ):
                self._expand(leaf, evaluation)
                node, index = path[-1]
                node.children[index] = leaf
                backpropagate(path, leaf.outcome)
            done += len(waiting)
        for path, _, _ in waiting:
            undo_virtual_loss(path)
        return done

    def _descend(
        self, root: Node
    ) -> tuple[list[tuple[Node, int]], Node | None, PositionInput | None, np.ndarray | None]:
        """Descend to a position without an evaluation: return the path, its node and the evaluator's input; or, if the
        game ends, the outcome for the side to move.
        """
        board, node = self.board.copy(stack=self.evaluator.history), root
        path: list[tuple[Node, int]] = []
        visited: set[Record] = {repetition_key(root.position)}
        trail = [root.position]
        while True:
            index = node.choose(self.config)
            busy = node.children[index] is None and node.virtual[index] > 0
            node.virtual[index] += 1
            path.append((node, index))
            if busy:
                return path, None, None, None
            board.push(decode_move(node.moves[index], board.turn))
            child = node.children[index]
            position = child.position if child is not None else record(board)
            key = repetition_key(position)
            if key in visited or key in self.past:  # a repetition gains nothing
                undo_virtual_loss(path)
                return path, None, None, DRAW
            visited.add(key)
            trail.append(position)
            if child is None:
                child = Node(position, legal_move_ids(board))
                over = None  # the outcome for the side to move, by the rules that do not depend on history
                if not child.moves:
                    over = LOST if board.is_check() else DRAW
                elif board.halfmove_clock >= 100 or board.is_insufficient_material():
                    over = DRAW
                if over is None:
                    return path, child, self._position_input(board, trail, child), None
                child.end, child.outcome = True, over
                node.children[index] = child
            if child.end:
                undo_virtual_loss(path)
                return path, None, None, child.outcome
            node = child

    def _position_input(self, board: chess.Board, trail: list[Record], node: Node) -> PositionInput:
        """Return the evaluator's input: the position and those before it, first from the tree, then from the game."""
        count = self.evaluator.history
        records = list(reversed(trail[-(count + 1) :])) or [node.position]
        if len(records) <= count:
            back = self.board.copy(stack=count + 1)
            while len(records) <= count and back.move_stack:
                back.pop()
                records.append(record(back))
        repeated = self.past.get(repetition_key(node.position), 0)
        newest = records[0]
        return PositionInput(((*newest[:11], repeated, newest[12]), *records[1:]), node.moves)

    def _expand(self, node: Node, evaluation: Evaluation) -> None:
        uniform = np.full(len(node.moves), 1 / max(1, len(node.moves)), np.float32)
        node.policy = uniform if evaluation.policy is None else evaluation.policy
        node.outcome = DRAW if evaluation.outcome is None else evaluation.outcome


@dataclass(frozen=True)
class SearchResult:
    """The result of a search: lines, best first, and the number of evaluated positions."""

    lines: list[SearchLine]
    nodes: int

    @property
    def move(self) -> chess.Move:
        return self.lines[0].moves[0]


Report = Callable[[list[SearchLine], int], None]


class ChessPlayer:
    """Chooses moves with an evaluator and its cache. If `search` is None, uses the strongest search that the evaluator
    supports.

    Raises UserError for a search that needs an output that the model lacks.
    """

    def __init__(
        self, evaluator: PositionEvaluator, search: str | None = None, config: PuctConfig | None = None
    ) -> None:
        self.tree = Tree(evaluator, config or PuctConfig())
        self.evaluator = self.tree.evaluator
        self.set_search(search)

    def set_search(self, search: str | None) -> None:
        """Choose moves by this search from now on, and keep the tree. Raises UserError as the constructor does."""
        evaluator = self.evaluator
        chosen = search or ("puct" if evaluator.has_value else "policy")
        if chosen not in SEARCHES:
            raise UserError(f"there is no search {chosen!r}; use {', '.join(SEARCHES)}")
        if chosen != "policy" and not evaluator.has_value:
            raise UserError(
                f"this model does not predict values, which the search {chosen} needs; use the search policy"
            )
        if chosen == "policy" and not evaluator.has_policy:
            raise UserError("this model predicts only values; use the search value or puct")
        self.search = chosen

    def warm_up(self) -> None:
        """Run a model's slow first evaluation before any clock starts, and time a second one."""
        for _ in range(2):
            self.evaluator.evaluate_uncached([position_input(chess.Board(), self.evaluator.history)])

    def use_threads(self, threads: int) -> None:
        """Set the number of CPU threads."""
        torch.set_num_threads(threads)

    def new_game(self) -> None:
        """Forget the tree of the last game."""
        self.tree.clear()

    def think(
        self, board: chess.Board, limits: SearchLimits, report: Report | None = None, only: Sequence[chess.Move] = ()
    ) -> SearchResult:
        """Return the best moves of a board. UserError if it has no legal move."""
        if not any(board.generate_legal_moves()):
            raise UserError(f"there is no legal move in {board.fen()!r}; the game is over")
        if self.search == "puct":
            return SearchResult(*self.tree.search(board, limits, report, only))
        candidates = list(only) or list(board.legal_moves)
        if self.search == "policy":
            return SearchResult([line for line in self.by_policy(board) if line.moves[0] in candidates], 1)
        lines: list[SearchLine] = []
        waiting: list[tuple[SearchLine, PositionInput]] = []
        after = board.copy()
        for move in candidates:  # scored by the evaluation of the position after each, finished games by the rules
            after.push(move)
            line = SearchLine([move], 1, DRAW)
            if after.is_checkmate():
                line.outcome, line.mates = LOST[::-1], True
            elif not _is_drawn(after):
                waiting.append((line, position_input(after, self.evaluator.history)))
            lines.append(line)
            after.pop()
        evaluations = self.evaluator.evaluate([entry for _, entry in waiting]) if waiting else []
        for (line, _), evaluation in zip(waiting, evaluations):
            assert evaluation.outcome is not None  # checked at the start
            line.outcome = evaluation.outcome[::-1]
        return SearchResult(sorted(lines, key=lambda line: -expected_of(line.outcome)), len(candidates))

    def by_policy(self, board: chess.Board) -> list[SearchLine]:
        """Return all moves, most probable first; `visits` are their probabilities in millionths. Moves that draw at
        once by the rules come last unless a draw is the best hope, because a policy is unaware of repetitions.
        """
        inputs = position_input(board, self.evaluator.history)
        policy, outcome = self.evaluator.evaluate([inputs])[0]
        assert policy is not None  # checked at the start
        lines = []
        for index in np.argsort(-policy, kind="stable").tolist():
            move = decode_move(inputs.moves[index], board.turn)
            visits = round(1e6 * float(policy[index]))
            lines.append(SearchLine([move], visits, DRAW if outcome is None else outcome))

        def is_drawing(line: SearchLine) -> bool:
            after = board.copy()
            after.push(line.moves[0])
            return not after.is_checkmate() and _is_drawn(after)

        hopes_for_more = outcome is None or expected_of(outcome) >= 0.5
        return sorted(lines, key=is_drawing) if hopes_for_more else lines


def _is_drawn(board: chess.Board) -> bool:
    """Whether the game is drawn by any rule."""
    over = board.is_stalemate() or board.is_insufficient_material() or board.halfmove_clock >= 100
    return over or repetitions(board) >= 2
