"""Prefix cache: key/value blocks from earlier prompts, reused for prompts with the same beginning."""

from __future__ import annotations

from collections.abc import Sequence

from headway.engine import Row
from headway.engine.cache import Blocks
from headway.engine.operations import BLOCK

_Run = tuple[int, ...]  # the token ids in a block


class _Node:
    """A block and the blocks that followed it."""

    def __init__(self, block: int, siblings: dict[_Run, _Node], run: _Run) -> None:
        self.block, self.siblings, self.run = block, siblings, run
        self.children: dict[_Run, _Node] = {}


class PrefixCache:
    """One tree per owner, whose nodes are full blocks. A block's content depends only on the tokens up to its end, bit
    for bit, so any row may start with blocks from another.

    The cache counts as one user of each of its blocks. Only the thread that uses `store` may use the cache.
    """

    block_tokens = BLOCK

    def __init__(self, store: Blocks) -> None:
        self.store = store
        self._trees: dict[str, dict[_Run, _Node]] = {}
        self._nodes: dict[_Node, None] = {}  # least recently used first, children before parents

    def find(self, owner: str, ids: Sequence[int]) -> list[int]:
        """The blocks of the longest cached prefix that leaves at least one token to process."""
        matched, nodes = [], self._trees.get(owner, {})
        for end in range(BLOCK, len(ids), BLOCK):
            node = nodes.get(tuple(ids[end - BLOCK : end]))
            if node is None:
                break
            matched.append(node)
            nodes = node.children
        self._use(matched)
        return [node.block for node in matched]

    def insert(self, owner: str, ids: Sequence[int], row: Row) -> None:
        """Add the blocks from `row`, which has processed `ids`. If an equal block is already cached, the row switches
        to it.
        """
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
        row.adopt_prefix([node.block for node in path])

    def evictable(self) -> int:
        """The number of blocks that nothing else uses."""
        return sum(self.store.is_exclusive(node.block) for node in self._nodes)

    def evict(self, count: float) -> bool:
        """Release up to `count` blocks that nothing else uses, least recently used first; return whether there was
        one.
        """
        evicted: list[_Node] = []
        for node in self._nodes:
            if len(evicted) >= count:
                break
            if self.store.is_exclusive(node.block) and not node.children:
                del node.siblings[node.run]
                evicted.append(node)
        for node in evicted:
            del self._nodes[node]
            self.store.release([node.block])
        if evicted:
            self._trees = {owner: nodes for owner, nodes in self._trees.items() if nodes}
        return bool(evicted)

    def _use(self, path: list[_Node]) -> None:
        for node in reversed(path):
            self._nodes.pop(node, None)
            self._nodes[node] = None
