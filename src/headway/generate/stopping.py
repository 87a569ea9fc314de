"""When a sequence ends, and its text up to there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from headway.codecs import Codec
from headway.errors import ConfigError, UserError
from headway.given import check_fields, shown

_PRIMING = 8  # symbols of the prompt that decide how the first new one is written (a space, half a character)


@dataclass(frozen=True)
class Limits:
    """When generation ends: before any text in `stop`, before an id in `stop_ids`, at the end symbol unless
    `ignore_end`, or after `max_new_tokens`.
    """

    max_new_tokens: int = 100
    stop: tuple[str, ...] = ()
    stop_ids: tuple[int, ...] = ()
    ignore_end: bool = False

    def __post_init__(self) -> None:
        check_fields(self)
        if self.max_new_tokens < 1:
            raise ConfigError(f"max_new_tokens is {self.max_new_tokens}; give a whole number from 1 on")
        if not isinstance(self.stop, (tuple, list)) or not all(isinstance(text, str) for text in self.stop):
            raise ConfigError(f"stop is {shown(self.stop)}; give a tuple of texts")
        if "" in self.stop:
            raise ConfigError("stop holds an empty text, which matches everywhere; leave it out")

    def ends(self, codec: Codec | None) -> frozenset[int]:
        """The ids that end a sequence."""
        own = codec.end if codec is not None and not self.ignore_end else None
        return frozenset(self.stop_ids) if own is None else frozenset((own, *self.stop_ids))


class TextStream:
    """The text that follows a prompt, as its symbols arrive; it never contains a stop string.

    What may be the beginning of a stop string is held back until the text goes on otherwise.
    """

    def __init__(self, codec: Codec | None, prompt: Sequence[int], stop: tuple[str, ...]) -> None:
        """Without a codec there is no text, and no stop string can be found."""
        if codec is None and stop:
            raise UserError(f"stop string {stop[0]!r} needs text, but there is no tokenizer; give stop_ids instead")
        self._decoder = None if codec is None else codec.stream()
        self._stop = stop
        self._held = ""
        self.stopped = False
        if self._decoder is not None:
            for symbol in prompt[-_PRIMING:]:
                self._decoder.push(symbol)

    def push(self, symbol: int) -> str:
        """The text that is certain now. `stopped` is True once a stop string has come."""
        if self._decoder is None:
            return ""
        piece = self._decoder.push(symbol)
        return self._release(piece) if self._stop else piece

    def finish(self) -> str:
        """What was still held back."""
        if self._decoder is None or self.stopped:
            return ""
        text = self._release(self._decoder.flush())
        rest, self._held = self._held, ""
        return text if self.stopped else text + rest

    def _release(self, piece: str) -> str:
        text = self._held + piece
        found = [at for at in (text.find(stop) for stop in self._stop) if at >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        certain = len(text) - max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[certain:]
        return text[:certain]


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` with which `stop` begins."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
