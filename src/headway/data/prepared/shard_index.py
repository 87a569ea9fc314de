"""The index of prepared data: what the shards contain, and the digest of each. It is all that a training reads before
its first batch, about 150 bytes per shard.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from headway.data.splits import SPLITS
from headway.errors import UserError

INDEX_FILE = "index.json"
FORMAT = "headway-shards"
VERSION = 1
MAX_INDEX_BYTES = 1 << 28  # about 1.5 million shards
_MAX_KIND = 20  # characters in messages
_MAX_COUNT = 1 << 53
_NAME = re.compile(r"(?:train|validation|test)-\d{5,7}\.safetensors")
_CODEC_FILE = re.compile(r"[A-Za-z0-9][\w-]{0,60}\.(?:json|txt|model|safetensors)", re.ASCII)
_DIGEST = re.compile(r"[0-9a-f]{64}")
_DTYPES = ("uint16", "uint32")


def kind_title(kind: str) -> str:
    """What data of a kind are, for messages."""
    return f"images with captions ({kind})" if kind in ("image-text", "caption") else kind[:_MAX_KIND]


class ShardFile(NamedTuple):
    """One file of a split: its bytes, SHA-256, and number of samples and of units (tokens, or bytes of samples)."""

    name: str
    bytes: int
    digest: str
    samples: int
    units: int


@dataclass(frozen=True)
class ShardIndex:
    """What `headway data prepare` wrote.

    kind: texts, images, ...; splits: the shards of each split; counts: totals (samples, units, text_bytes, duplicates,
    removed); shares: held-out shares and their seed; codec: the digest of each other file (tokenizer, table);
    details: further facts of this kind. `digest` is that of the index file.
    """

    kind: str
    splits: Mapping[str, tuple[ShardFile, ...]]
    counts: Mapping[str, int]
    shares: Mapping[str, float]
    codec: Mapping[str, tuple[int, str]] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)
    digest: str = ""

    def to_json(self) -> dict[str, Any]:
        """The content of the index file."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "kind": self.kind,
            "counts": dict(self.counts),
            "shares": dict(self.shares),
            "codec": {name: {"bytes": size, "sha256": digest} for name, (size, digest) in self.codec.items()},
            "details": dict(self.details),
            "splits": {split: [list(shard) for shard in shards] for split, shards in self.splits.items()},
        }


def parse_index(content: Any, source: str, digest: str) -> ShardIndex:
    """The index from its JSON, of which everything is checked. UserError, naming the source, for anything else."""
    version = content.get("version") if isinstance(content, dict) else None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UserError(f"{source} is not an index of prepared data; pass a folder that headway data prepare wrote")
    if version != VERSION:
        raise UserError(f"{source} has version {version}, but headway reads {VERSION}; install a newer version")
    try:
        kind, details = content["kind"], content["details"]
        if not isinstance(kind, str) or not isinstance(details, dict):
            raise ValueError("its kind or details are invalid")
        splits = {split: tuple(map(_shard, content["splits"].get(split, ()))) for split in SPLITS}
        names = [shard.name for shards in splits.values() for shard in shards]
        if len(set(names)) < len(names):
            raise ValueError("it names a shard twice")
        codec = {
            _matching(_CODEC_FILE, name): (_count(entry["bytes"]), _matching(_DIGEST, entry["sha256"]))
            for name, entry in content["codec"].items()
        }
        counts = {str(name): _count(value) for name, value in content["counts"].items()}
        shares = {str(name): float(value) for name, value in content["shares"].items()}
        if kind == "texts" or "fingerprint" in details:
            if details["dtype"] not in _DTYPES:
                raise ValueError(f"its token ids have the type {str(details['dtype'])[:20]!r}")
            if not isinstance(details["fingerprint"], str):
                raise ValueError("the fingerprint of its tokenizer is not a string")
            _count(details["vocab_size"])
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        reason = str(error)[:100] or type(error).__name__
        raise UserError(f"{source} is damaged ({reason}); restore it from a copy, or prepare the data again") from None
    return ShardIndex(kind, splits, counts, shares, codec, details, digest)


def _shard(entry: Any) -> ShardFile:
    name, size, digest, samples, units = entry
    return ShardFile(_matching(_NAME, name), _count(size), _matching(_DIGEST, digest), _count(samples), _count(units))


def _matching(pattern: re.Pattern[str], text: Any) -> str:
    if not isinstance(text, str) or not pattern.fullmatch(text):
        raise ValueError(f"{str(text)[:60]!r} is not a valid name or digest")
    return text


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= _MAX_COUNT:
        raise ValueError(f"{str(value)[:30]!r} is not a count")
    return value
