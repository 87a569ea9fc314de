"""Prepare data of any size: blocks of the sources become parts, and parts become shards with an index.

Any number of processes share the work through the folder `.work` of the output: each part and each shard is claimed by
a lock that ends with its process, and written under a temporary name. What a block or a shard contains depends on the
sources and the settings alone, so the bytes are the same for any number of processes and after any kill.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from headway.data.array_store import cache_key, output_errors, read_column
from headway.data.packing import Spans
from headway.data.prepared.shard_index import INDEX_FILE, ShardFile, ShardIndex
from headway.data.splits import (
    SPLITS,
    SplitConfig,
    hash_fractions,
    held_out_shares,
    sampled_splits,
    split_code,
)
from headway.data.token_store import FEW_DOCUMENTS
from headway.errors import UserError
from headway.io.cache import cache_root, file_lock
from headway.io.durable import atomic_write, decode_json, digest_entry, read_json, remove, write_json, write_text
from headway.io.remote import WRITABLE, RemoteFolder, remote_url

WORK_FOLDER, PLAN_FILE = ".work", "plan.json"
_POLL_SECONDS = 0.2
_MAX_SHARD_BYTES, _MIN_SHARD_BYTES, _MIN_SHARDS = 1 << 26, 1 << 20, 64
_MAX_HELD_OUT = 16_000_000  # bytes of text per held-out split, unless its share is set
_DEFAULT_SHARE = 0.05
_KEYS_AT_ONCE = 1 << 24  # keys compared at once to find duplicates

Notify = Callable[[str], None]


@dataclass(frozen=True)
class PrepareConfig:
    """What determines the bytes, in addition to the sources. A share of None holds out 5 %, at most 16 MB of text."""

    unique: bool = False
    validation: float | None = None
    test: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        SplitConfig(self.validation or 0.0, self.test or 0.0)  # refuses shares that are too large


class PartSamples(NamedTuple):
    """The samples of a part: uint64 [N] `keys`, of which equal ones are in the same split; the split in the name of
    their file, uint8 [N]; and each as a span of units. Equal samples have equal `hashes`, uint64 [N], or, without
    them, equal keys.
    """

    keys: np.ndarray
    named_splits: np.ndarray
    spans: Spans
    hashes: np.ndarray | None = None


class Kind(Protocol):
    """A kind of data. A unit is what shards are measured in: a token of texts, a byte of files."""

    name: str
    is_divisible: bool  # whether a sample may be cut between two shards
    has_splits: bool  # whether shares are held out here, and not by the recipe

    @property
    def unit_bytes(self) -> int: ...
    @property
    def blocks(self) -> int: ...
    def plan(self) -> dict[str, Any]:
        """Everything that the parts depend on, as JSON."""
        ...

    def times(self) -> list[int]:
        """When each local file was last changed, in ns, to find changes while the work is interrupted."""
        ...

    def begin(self, work: Path) -> None:
        """Make what all parts need, once; other processes wait."""
        ...

    def write_part(self, folder: Path, block: int) -> None: ...
    def samples(self, folder: Path) -> PartSamples: ...
    def text_bytes(self, folder: Path) -> int: ...
    def cut_ends(self, folder: Path, training: np.ndarray, validation: float, test: float) -> dict[str, Spans]:
        """The spans of each split if the ends of the training samples are held out."""
        ...

    def write_shard(self, path: Path, pieces: Sequence[tuple[Path, Spans]]) -> str:
        """Write the units of these spans of parts, and return the digest."""
        ...

    def finish(
        self, work: Path, out: Path, spans: Callable[[int], Mapping[str, Spans]]
    ) -> tuple[Mapping[str, tuple[int, str]], Mapping[str, Any]]:
        """Copy what a training needs in addition to the shards: the digests of these files, and details. `spans` are
        the samples of a part in each split, in the order of the shards.
        """
        ...


def plan_digest(plan: Mapping[str, Any]) -> str:
    """A hash of a plan."""
    return hashlib.blake2b(json.dumps(plan, sort_keys=True).encode(), digest_size=16).hexdigest()


class Preparation:
    """One process's share of preparing data in a folder, or behind a URL. Shards for a URL are written to a folder of
    the cache, in which the parts stay until the end, and uploaded one by one.
    """

    def __init__(
        self, kind: Kind, config: PrepareConfig, out: Path | str, notify: Notify, joined: Path | None = None
    ) -> None:
        """`joined` is a folder with the parts of all hosts, which `write_part` wrote."""
        self.kind, self.config, self.notify, self.joined = kind, config, notify, joined
        url = remote_url(out)
        self.remote = None if url is None else RemoteFolder(url)
        if self.remote is not None and self.remote.protocol not in WRITABLE:
            raise UserError(f"{url} cannot be written; pass a folder, or an address with s3:// or gs://, as --out")
        self.name = str(out) if url is None else url
        self.out = Path(out) if url is None else cache_root() / cache_key("prepare", url)
        self.work = self.out / WORK_FOLDER
        self._spans: dict[int, dict[str, Spans]] = {}

    def run(self) -> bool:
        """Work until everything is written; False if it was written before. UserError for another plan in `out`."""
        plan = self._plan()
        digest = plan_digest(plan)
        finished = self._is_finished(digest)
        if not finished:
            try:
                self._work(plan, digest)
            except (OSError, UserError):
                if not self._is_finished(digest):  # otherwise another process has finished and removed the folder
                    raise
        with suppress(OSError):  # a process that was killed may have left it
            remove(self.work if self.remote is None else self.out)
        return not finished

    def write_part(self, number: int, count: int) -> Path:
        """Write every `count`-th block, from block `number` - 1 on, to a folder of its own in the output, for a host
        that shares no folder with the others. Return that folder. UserError if the output has parts of another number.
        """
        if others := {path.name.rpartition("-")[2] for path in self.out.glob("part-*-of-*")} - {str(count)}:
            raise UserError(f"{self.out} has parts of {min(others)}; remove them, or choose another --out")
        self.work = self.out / f"part-{number}-of-{count}"
        self._begin(self._plan())
        blocks = range(number - 1, self.kind.blocks, count)
        self._share(self.work / "parts", blocks, "blocks", self._write_block)
        return self.work

    def _plan(self) -> dict[str, Any]:
        return {"kind": self.kind.name, "config": vars(self.config), **self.kind.plan()}

    def _begin(self, plan: Mapping[str, Any]) -> None:
        joined = {} if self.joined is None else self._joined_entries(plan, self.joined)
        with output_errors(self.out):
            self.work.mkdir(parents=True, exist_ok=True)
            self._check_plan(plan)
            with file_lock(self.work / "begin.lock"):
                self._check_plan(plan)  # a process that failed may have left the folder to other options
                for name, source in joined.items():
                    if not (self.work / name).exists():
                        with atomic_write(self.work / name) as draft:
                            (shutil.copytree if source.is_dir() else shutil.copyfile)(source, draft)
                try:
                    self.kind.begin(self.work)
                except UserError:
                    if not (self.work / "parts").exists():  # so the corrected command may have other options
                        for entry in [e for e in self.work.iterdir() if e.suffix != ".lock"]:
                            remove(entry)
                    raise

    def _joined_entries(self, plan: Mapping[str, Any], folder: Path) -> dict[str, Path]:
        """The blocks of all parts in a folder, and what the parts have in common: a tokenizer, or settings. UserError
        for a part of another plan, and for a missing block.
        """
        parts = sorted(path.parent for path in folder.glob(f"part-*-of-*/{PLAN_FILE}"))
        if not parts:
            raise UserError(f"{folder} has no parts; pass the folder that contains those written with --part")
        counts = {int(path.name.rpartition("-")[2]) for path in parts}
        if len(counts) > 1:
            raise UserError(f"{folder} has parts of {min(counts)} and parts of {max(counts)}; remove those of one")
        for part in parts:
            if plan_digest(read_json(part / PLAN_FILE)["plan"]) != plan_digest(plan):
                raise UserError(f"{part} was prepared from other files or with other settings; use those of this part")
        own = ("parts", PLAN_FILE)
        entries = {e.name: e for e in parts[0].iterdir() if e.name not in own and e.suffix != ".lock"}
        for block in range(self.kind.blocks):
            name = f"parts/{block:07d}"
            source = next((part / name for part in parts if (part / name).is_dir()), None)
            if source is None:
                owner = f"{block % min(counts) + 1}/{min(counts)}"
                raise UserError(f"part {owner} in {folder} is not complete; run it again with --part {owner}")
            entries[name] = source
        return entries

    def _write_block(self, number: int, draft: Path) -> None:
        draft.mkdir()
        self.kind.write_part(draft, number)

    def _work(self, plan: Mapping[str, Any], digest: str) -> None:
        self._begin(plan)
        self._share(self.work / "parts", range(self.kind.blocks), "blocks", self._write_block)
        with file_lock(self.work / "deal.lock"):
            if not (self.work / "deal.json").exists():
                write_json(self.work / "deal.json", Deal(self).write())
        deal = read_json(self.work / "deal.json")
        shards = [(split, n) for split in SPLITS for n in range(deal["shards"][split])]
        self._share(
            self.work / "shards", range(len(shards)), "shards", lambda n, draft: self._write(*shards[n], deal, draft)
        )
        with file_lock(self.work / "index.lock"):
            if not self._is_finished(digest):
                self._write_index(deal, shards, digest)

    def _is_finished(self, digest: str) -> bool:
        path, remote = self.out / INDEX_FILE, self.remote
        if not (path.exists() if remote is None else remote.exists(INDEX_FILE)):
            return False
        about = f"{self.name}/{INDEX_FILE}", f"choose another --out, or remove the files in {self.name}"
        index = read_json(path, *about) if remote is None else decode_json(remote.read(INDEX_FILE), *about)
        if not isinstance(index, dict) or index.get("details", {}).get("plan") != digest:
            raise UserError(
                f"{self.name} already has data prepared from other files or with other settings; choose another --out"
            )
        return True

    def _publish(self, name: str) -> None:
        """Upload a file of the output folder if the output is a URL."""
        if self.remote is not None:
            self.remote.write(name, self.out / name)
            remove(self.out / name)

    def _check_plan(self, plan: Mapping[str, Any]) -> None:
        path = self.work / PLAN_FILE
        in_work = self.work.name == WORK_FOLDER
        with file_lock(self.work / "plan.lock"):
            others = [entry for entry in self.out.iterdir() if in_work and not entry.name.startswith(".")]
            if not path.exists():
                if others:
                    raise UserError(f"{self.name} is not empty; choose another --out, or remove its files")
                write_text(path, json.dumps({"plan": plan, "times": self.kind.times()}))
                return
            recorded = read_json(path)
        if plan_digest(recorded["plan"]) != plan_digest(plan) or recorded["times"] != self.kind.times():
            raise UserError(
                f"{self.name} contains an unfinished preparation of other or older files, or settings; use the same "
                f"files and options, or remove {self.out} to start again"
            )

    def _share(self, folder: Path, items: range, noun: str, build: Callable[[int, Path], Any]) -> None:
        """Build the missing items of a folder together with other processes, until all are there."""
        folder.mkdir(parents=True, exist_ok=True)
        count, pending, started, reported = len(items), list(items), time.monotonic(), time.monotonic()
        while pending:
            before = len(pending)
            for number in list(pending):
                target = folder / f"{number:07d}"
                if not target.exists():
                    try:
                        with file_lock(folder / f"{number:07d}.lock", wait=False):
                            if not target.exists():
                                with atomic_write(target) as draft:
                                    build(number, draft)
                    except BlockingIOError:  # another process has claimed it
                        continue
                pending.remove(number)
                if time.monotonic() - reported > 10:
                    reported = time.monotonic()
                    left = (reported - started) / max(1, before - len(pending)) * len(pending)
                    self.notify(f"{count - len(pending):,} of {count:,} {noun}, {left / 60:.1f} minutes left")
            if len(pending) == before:
                time.sleep(_POLL_SECONDS)

    def part(self, number: int) -> Path:
        return self.work / "parts" / f"{number:07d}"

    def spans(self, number: int, deal: Mapping[str, Any]) -> dict[str, Spans]:
        """The spans of a part in each split."""
        samples = self.kind.samples(self.part(number))
        usable = np.ones(len(samples.keys), bool)
        if deal["dropped"]:
            dropped = read_column(self.work, "dropped", np.int64, deal["dropped"])
            first = deal["samples"][number]
            low, high = np.searchsorted(dropped, [first, first + len(usable)])
            usable[dropped[low:high] - first] = False
        shares = deal["shares"]["validation"], deal["shares"]["test"]
        training = (samples.named_splits <= split_code("train")) & usable
        if deal["is_cut"]:
            spans = self.kind.cut_ends(self.part(number), np.flatnonzero(training), *shares)
        else:
            codes = sampled_splits(hash_fractions(samples.keys, deal["seed"]), *shares)
            if deal["held_out_key"] is not None:
                codes[samples.keys == np.uint64(deal["held_out_key"])] = split_code("validation")
            codes = np.where(training, codes, samples.named_splits)
            spans = {s: samples.spans.select(np.flatnonzero((codes == split_code(s)) & usable)) for s in SPLITS}
        minimum = 2 if self.kind.is_divisible else 0  # the first token of a text is only an input
        return {split: part.select(np.flatnonzero(part.lengths >= minimum)) for split, part in spans.items()}

    def _write(self, split: str, number: int, deal: Mapping[str, Any], draft: Path) -> None:
        """Write one shard and its entry of the index."""
        starts, count = deal["starts"][split], deal["shards"][split]
        first, last = (starts[-1] * n // count for n in (number, number + 1))
        last += number + 1 == count  # an empty file may end the last shard
        pieces = []
        for part, (start, stop) in enumerate(pairwise(starts)):
            if start < last and stop >= first:
                if part not in self._spans:
                    self._spans = {part: self.spans(part, deal)}
                pieces.append((self.part(part), self._inside(self._spans[part][split], first - start, last - start)))
        name = f"{split}-{number:05d}.safetensors"
        with atomic_write(self.out / name) as file:
            digest = self.kind.write_shard(file, pieces)
            size = file.stat().st_size
        self._publish(name)
        amounts = (sum(len(spans.starts) for _, spans in pieces), sum(spans.tokens for _, spans in pieces))
        draft.write_text(json.dumps([name, size, digest, *amounts]))

    def _inside(self, spans: Spans, first: int, last: int) -> Spans:
        """The spans, or parts of spans, between two positions in their concatenation."""
        ends = np.cumsum(spans.lengths)
        starts = ends - spans.lengths
        if not self.kind.is_divisible:
            return spans.select(np.flatnonzero((starts >= first) & (starts < last)))
        low, high = np.maximum(starts, first), np.minimum(ends, last)
        chosen = np.flatnonzero(low < high)
        return Spans((spans.starts + low - starts)[chosen], (high - low)[chosen])

    def _write_index(self, deal: Mapping[str, Any], shards: Sequence[tuple[str, int]], digest: str) -> None:
        codec, details = self.kind.finish(self.work, self.out, lambda number: self.spans(number, deal))
        splits: dict[str, list[ShardFile]] = {split: [] for split in SPLITS}
        for number, (split, _) in enumerate(shards):
            splits[split].append(ShardFile(*read_json(self.work / "shards" / f"{number:07d}")))
        index = ShardIndex(
            self.kind.name,
            {split: tuple(entries) for split, entries in splits.items()},
            deal["counts"],
            {**deal["shares"], "seed": deal["seed"]},
            codec,
            {**details, "unique": self.config.unique, "plan": digest},
        )
        for name in codec:
            self._publish(name)
        write_text(self.out / INDEX_FILE, json.dumps(index.to_json(), ensure_ascii=False) + "\n")
        self._publish(INDEX_FILE)


class Deal:
    """What the processes must agree on before they write shards: splits, duplicates, and where each shard starts."""

    def __init__(self, preparation: Preparation) -> None:
        self.owner, self.kind, self.config = preparation, preparation.kind, preparation.config

    def write(self) -> dict[str, Any]:
        """The deal as JSON. UserError if there are no samples."""
        kind, config, owner = self.kind, self.config, self.owner
        starts, present, training, text_bytes = [0], set(), 0, 0
        for samples, folder in self._parts():
            starts.append(starts[-1] + len(samples.keys))
            present |= set(np.unique(samples.named_splits).tolist())
            training += int((samples.named_splits <= split_code("train")).sum())
            text_bytes += kind.text_bytes(folder)
        if not starts[-1]:
            raise UserError(f"the data for {owner.name} have no samples; add files that are not empty and can be read")
        duplicates = self._duplicates(starts)
        shares = 0.0, 0.0
        if kind.has_splits:
            default = min(_DEFAULT_SHARE, _MAX_HELD_OUT / max(1, text_bytes)) if kind.is_divisible else 0.0
            validation, test = (default if share is None else share for share in (config.validation, config.test))
            shares = held_out_shares(present, SplitConfig(validation, test))
        deal: dict[str, Any] = {
            "samples": starts,
            "dropped": duplicates if config.unique else 0,
            "shares": dict(zip(("validation", "test"), shares)),
            "seed": config.seed,
            "is_cut": kind.is_divisible and training < FEW_DOCUMENTS and any(shares),
            "held_out_key": None,
        }
        if not deal["is_cut"] and shares[0]:
            deal["held_out_key"] = self._held_out_key(*shares)
        units = np.zeros((len(starts) - 1, len(SPLITS)), np.int64)
        for number in range(len(starts) - 1):
            spans = owner.spans(number, deal)
            units[number] = [spans[split].tokens for split in SPLITS]
        totals = units.sum(0)
        size = int(np.clip(int(totals[0]) * kind.unit_bytes // _MIN_SHARDS, _MIN_SHARD_BYTES, _MAX_SHARD_BYTES))
        return {
            **deal,
            "starts": {s: [0, *np.cumsum(units[:, n]).tolist()] for n, s in enumerate(SPLITS)},
            "shards": {s: -(-int(totals[n]) * kind.unit_bytes // size) for n, s in enumerate(SPLITS)},
            "counts": {
                "samples": starts[-1] - deal["dropped"],
                "units": int(totals.sum()),
                "text_bytes": text_bytes,
                "duplicates": duplicates,
                "removed": deal["dropped"],
            },
        }

    def _parts(self) -> Iterator[tuple[PartSamples, Path]]:
        for number in range(self.kind.blocks):
            folder = self.owner.part(number)
            yield self.kind.samples(folder), folder

    def _held_out_key(self, validation: float, test: float) -> int | None:
        """The key to hold out for validation if the shares are too small for any sample."""
        lowest: tuple[float, int] | None = None
        for samples, _ in self._parts():
            keys = samples.keys[samples.named_splits <= split_code("train")]
            fractions = hash_fractions(keys, self.config.seed)
            codes = sampled_splits(fractions, validation, test)
            if (codes == split_code("validation")).any():
                return None
            training = np.flatnonzero(codes == split_code("train"))
            if len(training):
                best = training[fractions[training].argmin()]
                lowest = min(lowest or (2.0, 0), (float(fractions[best]), int(keys[best])))
        return None if lowest is None else lowest[1]

    def _duplicates(self, starts: Sequence[int]) -> int:
        """Count the samples that equal another one; their indices are written to `dropped`, except for the first of
        each, where samples of held-out files come first. Keys are compared in ranges, so memory is bounded.
        """
        ranges, dropped = -(-starts[-1] // _KEYS_AT_ONCE), []
        width = -(-(1 << 64) // ranges)
        for number in range(ranges):
            low, last = np.uint64(number * width), np.uint64(min((number + 1) * width, 1 << 64) - 1)
            keys, places, order = [], [], []
            for first, (samples, _) in zip(starts, self._parts()):
                hashes = samples.keys if samples.hashes is None else samples.hashes
                inside = np.flatnonzero((hashes >= low) & (hashes <= last))
                keys.append(hashes[inside])
                places.append(inside + first)
                order.append(samples.named_splits[inside] <= split_code("train"))
            all_keys, all_places = np.concatenate(keys), np.concatenate(places)
            ranked = np.lexsort((all_places, np.concatenate(order), all_keys))
            repeated = np.append(False, all_keys[ranked][1:] == all_keys[ranked][:-1])[: len(ranked)]
            dropped.append(all_places[ranked[repeated]])
        indices = np.sort(np.concatenate(dropped))
        with atomic_write(self.owner.work / "dropped.bin") as draft:
            draft.write_bytes(indices.astype(np.int64).tobytes())
        return len(indices)


def file_digest_of(path: Path) -> tuple[int, str]:
    """The size and SHA-256 of a file."""
    entry = digest_entry(path)
    return entry["bytes"], entry["sha256"]
