"""What a model has met in training, so that its use can say what lies beyond it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from headway.checkpoints.alike import Alike
from headway.checkpoints.durable import read_json, write_json
from headway.config import from_dict, to_dict

FILE = "familiar.json"
_LOOKED_AT = 1 << 26  # ids of training texts that are counted
_AT_ONCE = 1 << 20
_STRANGE = 0.2  # of a text's symbols: words that are new to a model have fewer that it has never met
_SHOWN = 40  # characters of a text that is named


@dataclass(frozen=True)
class Familiar:
    """`longest` is the most tokens that a text had in training (None: texts were read in rows, and have no length), and
    `unseen` are the ids that none of them had; `alike` is what images or sounds had in
    common.
    """

    longest: int | None = None
    unseen: tuple[int, ...] = ()
    alike: Alike | None = None

    @staticmethod
    def of(ids: np.ndarray, symbols: int, longest: int | None = None, marks: Collection[int | None] = ()) -> Familiar:
        """From the ids [N] of training texts, how many symbols there are, and those that are put around texts."""
        counts = np.zeros(symbols, dtype=np.int64)
        for start in range(0, min(len(ids), _LOOKED_AT), _AT_ONCE):
            counts += np.bincount(ids[start : start + _AT_ONCE], minlength=symbols)
        return Familiar(longest, tuple(i for i in np.flatnonzero(counts == 0).tolist() if i not in marks))

    @cached_property
    def _strangers(self) -> frozenset[int]:
        return frozenset(self.unseen)

    def save(self, directory: Path) -> None:
        write_json(directory / FILE, to_dict(self))

    def beyond(self, texts: Sequence[str], rows: Iterable[Sequence[int]]) -> list[str]:
        """What of some texts, given with their ids, is beyond what was met, in words; most often nothing."""
        if self.longest is None and not self.unseen:
            return []
        long, strange, most = 0, [], 0
        for text, row in zip(texts, rows):
            if self.longest is not None and len(row) > self.longest:
                long, most = long + 1, max(most, len(row))
            if row and sum(symbol in self._strangers for symbol in row) >= _STRANGE * len(row):
                strange.append(text.strip())
        found = []
        if long:
            found.append(
                f"longer than any text in training: {long:,} of {len(texts):,}, of {most:,} tokens at most, where the "
                f"longest then had {self.longest:,}; give them sentence by sentence, or do not trust what comes"
            )
        if strange:
            first = _short(strange[0])
            found.append(
                f"in symbols that no text in training had: {len(strange):,} of {len(texts):,}, such as {first!r}; do "
                "not trust what comes"
            )
        return found

    def strange(self, names: Sequence[str], looks: np.ndarray, kind: str = "image") -> list[str]:
        """What of some samples of a kind, given with how they look [N, F], is unlike all that was met, in words."""
        if self.alike is None or not len(looks):
            return []
        places = np.flatnonzero(self.alike.beyond(looks))
        if not len(places):
            return []
        first = names[int(places[0])]
        return [
            f"unlike the {kind}s in training: {len(places):,} of {len(looks):,}, such as {first}; do not trust the "
            "labels"
        ]


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."


def read_familiar(directory: Path) -> Familiar:
    """What was saved beside a model; nothing is beyond one without such a file."""
    path = directory / FILE
    return from_dict(Familiar, read_json(path), str(path)) if path.is_file() else Familiar()
