"""Items and keys that must be unique: grammars cannot express that, so it is checked here, byte by byte."""

from __future__ import annotations

import json
from collections.abc import Sequence
from decimal import Decimal
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from headway.serve.schemas.grammar import Shape
from headway.serve.token_bytes import SPECIAL_PREFIX

_LITERALS = {b"t"[0]: "true", b"f"[0]: "false", b"n"[0]: "null"}
_OPENING = frozenset(b"[{")


class _Level(NamedTuple):
    """An unfinished array or object."""

    is_array: bool
    shapes: tuple[Shape, ...]  # its possible shapes
    seen: frozenset[Any] | None  # items or keys so far; None if they may repeat
    index: int = 0  # of the item
    start: int = 0  # of the item or key, in bytes
    key: str = ""


class UniquenessChecker:
    """Enforces unique items and keys in one answer. The grammar ensures that the text so far is valid JSON."""

    def __init__(
        self,
        shapes: Sequence[Sequence[Sequence[Any]]],
        tokens: Sequence[bytes],
        end_tokens: Sequence[Int[np.ndarray, "N"]],
    ) -> None:
        """`shapes` are those of `schemas.grammar`, `tokens` the bytes of all tokens, `end_tokens` the ids of those that
        may end a string, and of those that may end another value.
        """
        self._shapes = [[Shape(*shape) for shape in group] for group in shapes]
        self._tokens = tokens
        self._end_tokens = end_tokens
        self._text = bytearray()
        self._levels: tuple[_Level, ...] = ()
        self._mode = "value"

    def narrow(self, mask: Int[np.ndarray, "W"]) -> None:
        """Remove from a mask the tokens that would repeat an item or a key."""
        bits = mask.view(np.uint32)
        level = self._levels[-1] if self._levels else None
        has_values = level is not None and level.seen is not None and any(shape.values for shape in level.shapes)
        if level is not None and not any(level.seen is not None for level in self._levels):
            indices = [
                index for shape in level.shapes for index in (*shape.first, *shape.named.values(), *shape.others)
            ]
            if max(indices, default=-1) < 0:  # neither this value nor anything within it must have unique items or keys
                return
        if not has_values:
            end_tokens = self._end_tokens[self._mode not in ("string", "key", "string escape", "key escape")]
            ids = end_tokens[bits[end_tokens // 32] >> (end_tokens % 32).astype(np.uint32) & 1 != 0]
        else:
            ids = np.unpackbits(mask.view(np.uint8), bitorder="little").nonzero()[0]
        for i in ids.tolist():
            token = self._tokens[i]
            if token.startswith(SPECIAL_PREFIX):
                continue
            levels, mode, length = self._levels, self._mode, len(self._text)
            if not (all(self._feed(byte) for byte in token) and self._can_be_new()):
                bits[i // 32] &= ~np.uint32(1 << i % 32)
            self._levels, self._mode = levels, mode
            del self._text[length:]

    def take(self, token: int) -> bool:
        """Accept a token. False if it repeats an item or a key."""
        return all(self._feed(byte) for byte in self._tokens[token])

    def _can_be_new(self) -> bool:
        """Whether the current item can still become a new one if all possible items are listed."""
        if not self._levels or self._mode not in ("string", "scalar"):
            return True
        level = self._levels[-1]
        lists = [shape.values for shape in level.shapes if shape.distinct]
        if level.seen is None or not lists or any(values is None for values in lists):
            return True
        prefix = self._text[level.start :].decode(errors="ignore")
        return any(
            value.startswith(prefix) and _canonical(json.loads(value)) not in level.seen
            for values in lists
            for value in values or ()
        )

    def _feed(self, byte: int) -> bool:
        """Accept a byte. False if an item or a key repeats."""
        self._text.append(byte)
        mode = self._mode
        if mode in ("string", "key"):
            if byte == 0x5C:
                self._mode = f"{mode} escape"
            elif byte == 0x22:
                if mode == "string":
                    return self._end_value(len(self._text))
                level, self._mode = self._levels[-1], "colon"
                key = json.loads(self._text[level.start :])
                if level.seen is not None and key in level.seen:
                    return False
                seen = None if level.seen is None else level.seen | {key}
                self._levels = (*self._levels[:-1], level._replace(seen=seen, key=key))
            return True
        if mode in ("string escape", "key escape"):
            self._mode = mode.split()[0]
            return True
        if byte in b" \t\r\n" and mode != "scalar":
            return True
        if mode == "value":
            return self._start_value(byte) if byte != 0x5D else self._close()
        if mode == "member":
            if byte == 0x22:
                self._mode = "key"
                self._levels = (*self._levels[:-1], self._levels[-1]._replace(start=len(self._text) - 1))
                return True
            return self._close()
        if mode == "colon":
            self._mode = "value"
            return True
        if mode == "scalar":
            if byte not in b" \t\r\n,]}":
                return True
            if not self._end_value(len(self._text) - 1):
                return False
            if byte in b" \t\r\n":
                return True
        level = self._levels[-1]
        if byte != 0x2C:
            return self._close()
        self._mode = "value" if level.is_array else "member"
        return True

    def _start_value(self, byte: int) -> bool:
        """The first byte of a value."""
        if not self._levels:
            indices = [0]
        else:
            level = self._levels[-1]
            if level.is_array:
                self._levels = (*self._levels[:-1], level._replace(start=len(self._text) - 1))
                if (
                    byte in _LITERALS
                    and level.seen is not None
                    and _canonical(json.loads(_LITERALS[byte])) in level.seen
                ):
                    return False
            indices = []
            for shape in level.shapes:
                if level.is_array and level.index < len(shape.first):
                    indices.append(shape.first[level.index])
                elif not level.is_array and level.key in shape.named:
                    indices.append(shape.named[level.key])
                else:
                    indices += shape.others
        if byte not in _OPENING:
            self._mode = "string" if byte == 0x22 else "scalar"
            return True
        kind = "array" if byte == 0x5B else "object"
        shapes = tuple(shape for index in indices if index >= 0 for shape in self._shapes[index] if shape.kind == kind)
        seen = frozenset() if any(shape.distinct for shape in shapes) else None
        self._levels = (*self._levels, _Level(kind == "array", shapes, seen))
        self._mode = "value" if kind == "array" else "member"
        return True

    def _end_value(self, end: int) -> bool:
        """A value is complete."""
        self._mode = "after"
        if not self._levels or not (level := self._levels[-1]).is_array:
            return True
        seen = level.seen
        if seen is not None:
            item = _canonical(json.loads(self._text[level.start : end], parse_float=Decimal))
            if item in seen:
                return False
            seen |= {item}
        self._levels = (*self._levels[:-1], level._replace(seen=seen, index=level.index + 1))
        return True

    def _close(self) -> bool:
        """An array or object ends."""
        self._levels = self._levels[:-1]
        return self._end_value(len(self._text))


def _canonical(value: Any) -> Any:
    """A hashable value by JSON equality: 1 equals 1.0, but not true."""
    if isinstance(value, bool) or value is None:
        return ("literal", value)
    if isinstance(value, (int, Decimal)):
        return ("number", Decimal(value).normalize())
    if isinstance(value, list):
        return ("array", tuple(map(_canonical, value)))
    if isinstance(value, dict):
        return ("object", frozenset((name, _canonical(member)) for name, member in value.items()))
    return ("string", value)
