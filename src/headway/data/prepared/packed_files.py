"""Files as shards: any data of a folder in a few large objects, and the way back to a folder in the cache.

Recipes other than `text` read them as they read the folder, with the same splits and bits.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from headway.data.array_store import ColumnWriter, open_or_build, read_column, read_info, write_info
from headway.data.input_files import is_run_folder
from headway.data.packing import Spans
from headway.data.prepared.preparation import PartSamples
from headway.data.prepared.remote_sources import SourceFiles
from headway.data.prepared.shard_files import write_shard
from headway.data.prepared.shard_index import kind_title
from headway.data.prepared.shard_reader import PreparedData, is_index, is_prepared
from headway.data.splits import split_code
from headway.errors import UserError
from headway.io.cache import cache_root
from headway.io.files import user_path

_BLOCK_BYTES = 1 << 25
_MAX_NAME = 4096  # bytes


class PackedFiles:
    """Files and folders as they are; a unit is a byte, and large files continue in the next shard."""

    name = "files"
    unit_bytes = 1
    is_divisible = has_splits = False

    def __init__(self, sources: SourceFiles) -> None:
        self._sources = sources
        self._files: list[tuple[str, Path, int]] = []  # name in the data, path, bytes
        self._roots: list[str] = []
        for path in map(user_path, sources.paths):
            if not path.exists():
                raise UserError(f"there is no file or folder {path}; check the name")
            root = path.resolve().name
            if root in self._roots:
                raise UserError(f"two of the paths are named {root}; rename one of them")
            self._roots.append(root)
            inner = [path]
            if path.is_dir():  # neither hidden files nor those of a run are data
                names = [(file.relative_to(path).parts, file) for file in sorted(path.rglob("*")) if file.is_file()]
                visible = [file for parts, file in names if not any(part.startswith(".") for part in parts)]
                inner = [file for file in visible if not is_run_folder(file.parent)]
            if index := next(filter(is_index, inner), None):
                raise UserError(
                    f"{index.parent} contains prepared data; use them as they are, or pass the original files"
                )
            self._files += [
                (str(PurePosixPath(root, f.relative_to(path).as_posix())), f, f.stat().st_size) for f in inner
            ]
        if not self._files:
            raise UserError(f"{sources.paths[0]} contains no files; pass another folder")
        self._pieces = [
            (file, start, min(start + _BLOCK_BYTES, size))
            for file, (_, _, size) in enumerate(self._files)
            for start in range(0, max(1, size), _BLOCK_BYTES)
        ]
        ends = np.cumsum([stop - start for _, start, stop in self._pieces])
        self._blocks = np.split(np.arange(len(self._pieces)), np.flatnonzero(np.diff(ends // _BLOCK_BYTES)) + 1)

    @property
    def blocks(self) -> int:
        return len(self._blocks)

    def plan(self) -> dict[str, Any]:
        return {"sources": [[name, size] for name, _, size in self._files]}

    def times(self) -> list[int]:
        return [path.stat().st_mtime_ns for _, path, _ in self._files]

    def begin(self, work: Path) -> None:
        """Nothing is needed for all parts."""

    def write_part(self, folder: Path, block: int) -> None:
        dtypes = {"data": np.uint8, "offsets": np.int64, "names": np.uint8, "name_offsets": np.int64, "keys": np.uint64}
        count = size = name_size = 0
        with ColumnWriter(folder, dtypes) as columns:
            columns.append("offsets", [0])
            columns.append("name_offsets", [0])
            for file, start, stop in (self._pieces[piece] for piece in self._blocks[block].tolist()):
                name, path, _ = self._files[file]
                digest = hashlib.blake2b(digest_size=8)
                for content in self._sources.read(path, start, stop):
                    digest.update(content)
                    columns.append("data", np.frombuffer(content, np.uint8))
                    size += len(content)
                encoded = name.encode("utf-8", "surrogateescape")
                columns.append("names", np.frombuffer(encoded, np.uint8))
                name_size += len(encoded)
                columns.append("offsets", [size])
                columns.append("name_offsets", [name_size])
                # A piece of a larger file is never equal to another sample.
                whole = (start, stop) == (0, self._files[file][2])
                key = digest.digest() if whole else hashlib.blake2b(f"{name}:{start}".encode(), digest_size=8).digest()
                columns.append("keys", np.array([int.from_bytes(key, "little")], np.uint64))
                count += 1
        write_info(folder, {"samples": count, "bytes": size, "name_bytes": name_size})

    def samples(self, folder: Path) -> PartSamples:
        count = read_info(folder)["samples"]
        offsets = read_column(folder, "offsets", np.int64, count + 1)
        spans = Spans(np.arange(count), np.diff(offsets))
        keys = read_column(folder, "keys", np.uint64, count)
        return PartSamples(np.asarray(keys), np.full(count, split_code("train"), np.uint8), spans)

    def text_bytes(self, folder: Path) -> int:
        return read_info(folder)["bytes"]

    def cut_ends(self, folder: Path, training: np.ndarray, validation: float, test: float) -> dict[str, Spans]:
        raise NotImplementedError

    def write_shard(self, path: Path, pieces: Sequence[tuple[Path, Spans]]) -> str:
        data, names = [np.zeros(0, np.uint8)], [np.zeros(0, np.uint8)]
        for folder, spans in pieces:
            info = read_info(folder)
            columns = {
                name: (
                    read_column(folder, name, np.uint8, info[size]),
                    read_column(folder, offsets, np.int64, info["samples"] + 1),
                )
                for name, offsets, size in (("data", "offsets", "bytes"), ("names", "name_offsets", "name_bytes"))
            }
            for sample in spans.starts.tolist():
                for target, (values, offsets) in ((data, columns["data"]), (names, columns["names"])):
                    target.append(values[offsets[sample] : offsets[sample + 1]])
        return write_shard(
            path,
            {
                "data": np.concatenate(data),
                "offsets": np.cumsum([*map(len, data)], dtype=np.int64),
                "names": np.concatenate(names),
                "name_offsets": np.cumsum([*map(len, names)], dtype=np.int64),
            },
        )

    def finish(
        self, work: Path, out: Path, spans: Callable[[int], Mapping[str, Spans]]
    ) -> tuple[Mapping[str, tuple[int, str]], Mapping[str, Any]]:
        return {}, {"paths": self._roots}


def unpacked_paths(path: Path, kinds: Collection[str] = ()) -> list[Path]:
    """The files and folders that were prepared at a path or URL, in a folder of the cache, to which they are written
    once per machine; other paths, and prepared data of these `kinds`, unchanged. UserError for data of another kind.
    """
    if not is_prepared(path):
        return [path]
    data = PreparedData(path)
    if data.index.kind in kinds:
        return [path]
    if data.index.kind != PackedFiles.name:
        raise UserError(
            f"{data.name} contains prepared {kind_title(data.index.kind)}, but this recipe reads prepared "
            f"{' or '.join(map(kind_title, (*kinds, PackedFiles.name)))}; pass such data, or choose a recipe for "
            f"{kind_title(data.index.kind)}"
        )
    folder = open_or_build(cache_root() / f"unpacked-{data.index.digest[:32]}", partial(_write_files, data))
    return [folder / _safe_name(name, data.name) for name in data.index.details["paths"]]


def _write_files(data: PreparedData, folder: Path) -> None:
    for name, content in _pieces(data):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "ab") as file:
            file.write(content)


def _pieces(data: PreparedData) -> Iterator[tuple[PurePosixPath, memoryview]]:
    for shard in data.index.splits["train"]:
        arrays = data.map(shard)
        columns = [arrays.get(name, np.zeros(0, np.int64)) for name in ("data", "offsets", "names", "name_offsets")]
        offsets, name_offsets = columns[1].tolist(), columns[3].tolist()
        if len(offsets) != len(name_offsets) or offsets[-1:] != [len(columns[0])]:
            raise UserError(f"{shard.name} in {data.name} is inconsistent; prepare the data again")
        for number in range(len(offsets) - 1):
            name = arrays["names"][name_offsets[number] : name_offsets[number + 1]].tobytes()
            content = arrays["data"][offsets[number] : offsets[number + 1]]
            yield _safe_name(name[: _MAX_NAME + 1].decode("utf-8", "surrogateescape"), data.name), content.data


def _safe_name(name: Any, source: str) -> PurePosixPath:
    """The name as a relative path. UserError if it leaves its folder."""
    path = PurePosixPath(name) if isinstance(name, str) else PurePosixPath("/")
    parts = path.parts
    unsafe = path.is_absolute() or not parts or "\0" in str(name) or "\\" in str(name) or len(str(name)) > _MAX_NAME
    if unsafe or any(part == ".." or part.startswith(".") for part in parts):
        raise UserError(f"{source} names the file {json.dumps(str(name))[:80]}, which is not allowed; prepare it again")
    return path
