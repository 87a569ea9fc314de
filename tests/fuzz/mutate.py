"""Damaged files: input `i` of a seed is a pure function of both, so that a failure can be made again."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from typing import Any

NUMBERS = (0, 1, 2, 7, 8, 127, 128, 255, 256, 1 << 15, (1 << 16) - 1, 1 << 31, (1 << 31) - 1, (1 << 32) - 1)
NUMBERS += (1 << 40, 1 << 60, (1 << 62) + 1, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)
VALUES: tuple[Any, ...] = (None, True, False, -1, 0, 1, 3, 1 << 20, 1 << 31, 1 << 63, 1 << 70, 0.5, -1e-9, 1e30)
VALUES += (float("nan"), float("inf"), "", "x", "relu", "\ud800", [], [0], [[]], [1, 2, 3], {}, {"a": 1})
NEAR = 4096  # bytes: where headers are


def draw_of(seed: int, index: int | str) -> random.Random:
    return random.Random(f"{seed}:{index}")


class Mild(random.Random):
    """Draws that mostly choose from the first quarter of what there is, where grammars have what good files hold: so
    that one strange value gets past all that is looked at before it.
    """

    def choice(self, options: Any) -> Any:
        return super().choice(options if self.random() < _STRANGE else options[: -(-len(options) // 4)])


_STRANGE = 0.03  # of the choices of a mild draw are from all


def half_mild(draw: random.Random) -> random.Random:
    """The draw, or as often a mild one."""
    return Mild(draw.getrandbits(64)) if draw.random() < 0.5 else draw


def damaged(data: bytes, draw: random.Random) -> bytes:
    """`data` with one to four changes of bytes."""
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        data = draw.choice(BYTE_CHANGES)(data, draw)
    return data


def _place(data: bytes, draw: random.Random) -> int:
    """Mostly in the header, where a byte means most, and there mostly near the start."""
    size = len(data)
    reach = draw.choice((64, NEAR, NEAR, size))
    return draw.randrange(max(1, min(size, reach)))


def _flip(data: bytes, draw: random.Random) -> bytes:
    at = _place(data, draw)
    return data[:at] + bytes([data[at] ^ 1 << draw.randrange(8)]) + data[at + 1 :] if data else data


def _number(data: bytes, draw: random.Random) -> bytes:
    """A length, or what looks like one, becomes another."""
    at, size = _place(data, draw), draw.choice((1, 2, 4, 8))
    value = draw.choice((*NUMBERS, len(data), len(data) - at, draw.randrange(1 << 16)))
    return data[:at] + (value % (1 << 8 * size)).to_bytes(size, "little") + data[at + size :]


def _cut(data: bytes, draw: random.Random) -> bytes:
    return data[: draw.choice((_place(data, draw), max(0, len(data) - draw.randrange(1, 64))))]


def _remove(data: bytes, draw: random.Random) -> bytes:
    at = _place(data, draw)
    return data[:at] + data[at + draw.choice((1, 4, 8, 64)) :]


def _insert(data: bytes, draw: random.Random) -> bytes:
    at = _place(data, draw)
    return data[:at] + draw.randbytes(draw.choice((1, 4, 8, 64))) + data[at:]


def _repeat(data: bytes, draw: random.Random) -> bytes:
    at, size = _place(data, draw), draw.choice((1, 8, 64, 512))
    return data[: at + size] * draw.choice((1, 1, 2)) + data[at:]


BYTE_CHANGES: Sequence[Callable[[bytes, random.Random], bytes]] = (
    _flip,
    _flip,
    _number,
    _number,
    _cut,
    _remove,
    _insert,
    _repeat,
)


def damaged_json(text: bytes, draw: random.Random) -> bytes:
    """A JSON text with one to three values, names or entries changed; at times bytes, or depth without end."""
    kind = draw.randrange(20)
    if kind == 0:
        return damaged(text, draw)
    if kind == 1:
        depth = draw.choice((50, 500, 100_000))
        return draw.choice((b"[", b'{"a":')) * depth
    tree = json.loads(text)
    for _ in range(draw.choice((1, 1, 2, 3))):
        tree = _changed(tree, draw)
    return json.dumps(tree).encode()


def _changed(tree: Any, draw: random.Random) -> Any:
    """One place of a tree, found by walking down, changed."""
    if isinstance(tree, dict) and tree and draw.random() < 0.9:
        key = draw.choice(sorted(tree))
        rest = {name: value for name, value in tree.items() if name != key}
        kind = draw.randrange(12)
        if kind == 0:
            return rest
        if kind == 1:
            return {**rest, draw.choice(("", "x", key * 2, draw.choice(sorted(tree)))): tree[key]}
        return {**tree, key: _changed(tree[key], draw)}
    if isinstance(tree, list) and tree and draw.random() < 0.8:
        at = draw.randrange(len(tree))
        kind = draw.randrange(12)
        if kind == 0:
            return tree[:at] + tree[at + 1 :]
        if kind == 1:
            return [*tree[:at], tree[at], *tree[at:]]
        return [*tree[:at], _changed(tree[at], draw), *tree[at + 1 :]]
    if isinstance(tree, int) and not isinstance(tree, bool) and draw.random() < 0.5:
        return draw.choice((tree + 1, tree - 1, -tree, tree * 2, tree // 2, tree * 1000))
    return draw.choice(VALUES)
