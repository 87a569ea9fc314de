"""Keys and values of what was read before, kept for whoever begins alike."""

from __future__ import annotations

from collections.abc import Sequence

from headway.engine import Row
from headway.engine.cache import Blocks
from headway.engine.operations import BLOCK

_Run = tuple[int, ...]  # the symbols of a block


class _Node:
    """A block, and those that followed it."""

    def __init__(self, block: int, siblings: dict[_Run, _Node], run: _Run) -> None:
        self.block, self.siblings, self.run = block, siblings, run
        self.children: dict[_Run, _Node] = {}


class Prefixes:
    """A tree for each owner, whose nodes are whole blocks. What a block holds hangs on the symbols up to its end alone,
    bit for bit, so a row may begin with the blocks of any other.

    It is one user of each of its blocks. One thread at a time may use it: the one that uses `store`.
    """

    def __init__(self, store: Blocks) -> None:
        self.store = store
        self._trees: dict[str, dict[_Run, _Node]] = {}
        self._nodes: dict[_Node, None] = {}  # least recently used first, and what follows a node before the node

    def find(self, owner: str, ids: Sequence[int]) -> list[int]:
        """The blocks of the longest known beginning that leaves at least one symbol to be read."""
        found, nodes = [], self._trees.get(owner, {})
        for end in range(BLOCK, len(ids), BLOCK):
            node = nodes.get(tuple(ids[end - BLOCK : end]))
            if node is None:
                break
            found.append(node)
            nodes = node.children
        self._use(found)
        return [node.block for node in found]

    def keep(self, owner: str, ids: Sequence[int], row: Row) -> None:
        """Remember `row`, which has read `ids`. Of blocks that say the same, the row goes on with the known ones."""
        path, nodes = [], self._trees.setdefault(owner, {})
        for number in range(len(ids) // BLOCK):
            run = tuple(ids[number * BLOCK : (number + 1) * BLOCK])
            node = nodes.get(run)
            if node is None:
                node = nodes[run] = _Node(row.blocks[number], nodes, run)
                self.store.share([node.block])
            path.append(node)
            nodes = node.children
        if not self._trees[owner]:
            del self._trees[owner]
        self._use(path)
        row.begin_with([node.block for node in path])

    def loose(self) -> int:
        """How many blocks nobody else uses."""
        return sum(self.store.alone(node.block) for node in self._nodes)

    def drop(self, count: float) -> bool:
        """Give back so many of those blocks, the least recently used first; whether there was one."""
        dropped: list[_Node] = []
        for node in self._nodes:
            if len(dropped) >= count:
                break
            if self.store.alone(node.block) and not node.children:
                del node.siblings[node.run]
                dropped.append(node)
        for node in dropped:
            del self._nodes[node]
            self.store.give_back([node.block])
        if dropped:
            self._trees = {owner: nodes for owner, nodes in self._trees.items() if nodes}
        return bool(dropped)

    def _use(self, path: list[_Node]) -> None:
        for node in reversed(path):
            self._nodes.pop(node, None)
            self._nodes[node] = None
