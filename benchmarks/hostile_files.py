"""Data files that are made to do harm: each is small, and its reader is to refuse it or to read it, in bounded work."""

from __future__ import annotations

import gzip
import io
import json
import lzma
import os
import struct
import tarfile
import wave
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from hostile_case import Case

Commands = tuple[tuple[str, ...], ...]


def _train(recipe: str, *settings: str) -> Commands:
    options = ("--data", "{file}", "--run", "{file}.run", "--set", "train.steps=1", *settings)
    return (("train", recipe, *options),)


TEXTS: Commands = (
    ("tokenizer", "train", "--kind", "char", "--size", "300", "--data", "{file}", "--out", "{file}.json"),
)
TABLES, TAGGED, SERIES = _train("classification"), _train("tagging"), _train("forecast")
PAIRS, CHATS, CHESS = _train("translation"), _train("instruct"), _train("chess")
IMAGES, SOUNDS = _train("vision"), _train("audio")
EPISODES, ROBOTS = _train("trajectories"), _train("robotics")

# Where a line stands in a file of each kind: what comes before it, what it begins with, and who reads it.
LINES: dict[str, tuple[bytes, bytes, Commands]] = {
    "a.txt": (b"", b"", TEXTS),
    "a.jsonl": (b"", b'{"text": "', TEXTS),
    "b.csv": (b"text,label\n", b"", TABLES),
    "b.tsv": (b"text\tlabel\n", b"", TABLES),
    "b.jsonl": (b"", b'{"label": "a", "text": "', TABLES),
    "c.conll": (b"", b"", TAGGED),
    "d.tsv": (b"", b"", PAIRS),
    "d.dict": (b"", b"", PAIRS),
    "e.jsonl": (b"", b'{"messages": "', CHATS),
    "f.csv": (b"time,value\n", b"", SERIES),
    "g.pgn": (b'[Event "x"]\n\n', b"1. e4 {", CHESS),
    "g.epd": (b"", b"rnbqkbnr/pppppppp/8/8/8/8/PPPPPPPP/RNBQKBNR w KQkq - bm ", CHESS),
    "g.csv": (b"position,bestmove\n", b"", CHESS),
}
_LONG = 1 << 27  # bytes of a line that should not be held


def _zst(pieces: Iterator[bytes], path: Path) -> None:
    import zstandard

    with path.open("wb") as file, zstandard.ZstdCompressor().stream_writer(file) as out:
        for piece in pieces:
            out.write(piece)


def _gz(pieces: Iterator[bytes], path: Path) -> None:
    with gzip.open(path, "wb", 6) as out:
        out.writelines(pieces)


def _xz(pieces: Iterator[bytes], path: Path) -> None:
    with lzma.open(path, "wb", preset=0) as out:
        out.writelines(pieces)


_WRITERS = {".gz": _gz, ".xz": _xz, ".zst": _zst}


def _repeated(head: bytes, piece: bytes, size: int) -> Iterator[bytes]:
    yield head
    block = piece * ((1 << 20) // len(piece))
    for _ in range(size // len(block)):
        yield block


def _packed_line(name: str, suffix: str, piece: bytes, size: int, folder: Path) -> Path:
    head, start, _ = LINES[name]
    path = folder / f"{name}{suffix}"
    _WRITERS[suffix](_repeated(head + start, piece, size), path)
    return path


def _plain(name: str, data: bytes | Callable[[], bytes], folder: Path) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data())
    return path


def _lines() -> Iterator[Case]:
    for name, (head, start, commands) in LINES.items():
        for suffix in (".gz", ".zst"):
            yield Case(f"endless line: {name}{suffix}", partial(_packed_line, name, suffix, b"a", _LONG), commands)
        yield Case(f"blank lines: {name}.gz", partial(_packed_line, name, ".gz", b"\n", 1 << 27), commands)
        yield Case(f"NUL: {name}.gz", partial(_packed_line, name, ".gz", b"\0", 1 << 27), commands)
        yield Case(f"cut: {name}.gz", partial(_plain, f"{name}.gz", gzip.compress(head + start)[:-4]), commands)
        long = head + start + b"x y " * (1 << 18)
        yield Case(f"a million characters: {name}", partial(_plain, name, long), commands)
    yield Case("endless line: a.jsonl.xz", partial(_packed_line, "a.jsonl", ".xz", b"a", _LONG), TEXTS)


def _pipe(name: str, folder: Path) -> Path:
    os.mkfifo(folder / name)
    return folder / name


def _device(name: str, folder: Path) -> Path:
    (folder / name).symlink_to("/dev/zero")
    return folder / name


_KINDS = [(name, LINES[name][2]) for name in ("a.txt", "b.csv", "d.tsv", "f.csv", "g.pgn", "g.epd")]
_KINDS += [("a.parquet", TEXTS), ("a.zip", TEXTS), ("a.tar.gz", TEXTS), ("a.npz", EPISODES), ("a.hdf5", EPISODES)]
_KINDS += [("train-images-idx3-ubyte", IMAGES)]


def _places() -> Iterator[Case]:
    for name, commands in _KINDS:
        yield Case(f"named pipe: {name}", partial(_pipe, name), commands)
    for name, commands in _KINDS[::3]:
        yield Case(f"device: {name}", partial(_device, name), commands)
    for name, commands in (*_KINDS[:6:2], _KINDS[-2]):
        yield Case(f"no such user: {name}", lambda folder, name=name: Path(f"~nobody-here/{name}"), commands)
        long = "x" * 5000 + Path(name).suffix
        yield Case(f"long path: {name}", lambda folder, long=long: folder / long, commands)


def _zip(folder: Path, method: int = zipfile.ZIP_DEFLATED, data: bytes = b"a text\n", count: int = 1) -> Path:
    with zipfile.ZipFile(folder / "a.zip", "w", method) as archive:
        for number in range(count):
            archive.writestr(f"{number}.txt", data)
    return folder / "a.zip"


def _changed_zip(changes: Callable[[bytearray, int], None], folder: Path) -> Path:
    """A .zip of one member whose entry in the directory is changed."""
    path = _zip(folder)
    data = bytearray(path.read_bytes())
    changes(data, data.index(b"PK\1\2"))
    path.write_bytes(data)
    return path


def _put(offset: int, form: str, value: int, data: bytearray, at: int) -> None:
    struct.pack_into(form, data, at + offset, value)


def _zip_bomb(method: int, folder: Path) -> Path:
    with zipfile.ZipFile(folder / "a.zip", "w", method) as archive, archive.open("a.txt", "w", force_zip64=True) as out:
        for block in _repeated(b"", b"a", 1 << 28 if method else 1 << 24):  # what is not packed is as long as it is
            out.write(block)
    return folder / "a.zip"


def _tar(folder: Path, *entries: tuple[tarfile.TarInfo, bytes], kind: int = tarfile.GNU_FORMAT) -> Path:
    with tarfile.open(folder / "a.tar.gz", "w:gz", format=kind) as archive:
        for entry, data in entries:
            entry.size = entry.size or len(data)
            archive.addfile(entry, io.BytesIO(data) if data else None)
    return folder / "a.tar.gz"


def _entry(name: str, size: int = 0, **headers: str) -> tarfile.TarInfo:
    found = tarfile.TarInfo(name)
    found.size, found.pax_headers = size, headers
    return found


def _many_in_tar(folder: Path) -> Path:
    header = _entry("a.txt").tobuf(tarfile.USTAR_FORMAT)
    with gzip.open(folder / "a.tar.gz", "wb", 1) as out:
        for _ in range(300):
            out.write(header * 1000)
    return folder / "a.tar.gz"


def _sparse(folder: Path) -> Path:
    """GNU's old sparse header: one byte of a terabyte."""
    header = bytearray(_entry("a.txt", 512).tobuf(tarfile.GNU_FORMAT))
    header[156:157] = b"S"
    header[386:398], header[398:410] = b"%011o\0" % 0, b"%011o\0" % 512
    header[483:495] = b"\x80" + (1 << 40).to_bytes(11, "big")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return _plain("a.tar", bytes(header) + bytes(512 * 3), folder)


def _chain(folder: Path) -> Path:
    """Long names of long names."""
    longs = _entry("././@LongLink", 5)
    longs.type = tarfile.GNUTYPE_LONGNAME
    block = longs.tobuf(tarfile.GNU_FORMAT) + b"a.txt".ljust(512, b"\0")
    return _plain("a.tar", block * 5000 + bytes(1024), folder)


def _archives() -> Iterator[Case]:
    methods = {"stored": 0, "deflated": 8, "bzip2": 12, "lzma": 14}
    for name, method in methods.items():
        yield Case(f"zip: {name} bomb", partial(_zip_bomb, method), TEXTS)
    yield Case("zip: very many members", partial(_zip, count=300_000, method=0, data=b""), TEXTS)
    changes = {
        "encrypted": partial(_put, 8, "<H", 1),
        "unknown method": partial(_put, 10, "<H", 99),
        "deflate64": partial(_put, 10, "<H", 9),
        "a size that lies": partial(_put, 24, "<I", 3),
        "a huge size": partial(_put, 24, "<I", 0xFFFFFFF0),
        "a huge packed size": partial(_put, 20, "<I", 0xFFFFFFF0),
        "an offset that lies": partial(_put, 42, "<I", 0x7FFFFFFF),
        "a name that lies": partial(_put, 28, "<H", 0xFFFF),
        "of a later version": partial(_put, 6, "<H", 999),
    }
    for name, change in changes.items():
        yield Case(f"zip: {name}", partial(_changed_zip, change), TEXTS)
    for name in ("sparse", "chain"):
        yield Case(f"tar: {name}", {"sparse": _sparse, "chain": _chain}[name], TEXTS)
    yield Case("tar: very many members", _many_in_tar, TEXTS)
    entries: dict[str, tuple[tarfile.TarInfo, bytes]] = {
        "a member of a terabyte": (_entry("a.txt", 1 << 40), b""),
        "a map that is no map": (_entry("a.txt", 0, **{"GNU.sparse.map": "x,y", "GNU.sparse.size": "9"}), b"a"),
        "a map of many holes": (
            _entry("a.txt", 0, **{"GNU.sparse.map": "0,1," * 99_999 + "1,0", "GNU.sparse.size": "9999999999"}),
            b"a",
        ),
        "a header of 64 MB": (_entry("a.txt", comment="a" * (1 << 26)), b"a"),
        "a time that is none": (_entry("a.txt", mtime="x"), b"a"),
        "a size of 5,000 digits": (_entry("a.txt", size_="1" * 5000), b"a"),
    }
    for name, entry in entries.items():
        yield Case(f"tar: {name}", lambda f, e=entry: _tar(f, e, kind=tarfile.PAX_FORMAT), TEXTS)


def _idx(folder: Path, count: int, size: int, suffix: str) -> Path:
    labels = struct.pack(">HBBI", 0, 8, 1, count)
    images = struct.pack(">HBBIII", 0, 8, 3, count, size, size)
    _WRITERS[suffix](_repeated(labels, b"\0", min(count, 1 << 27)), folder / f"train-labels-idx1-ubyte{suffix}")
    _WRITERS[suffix](_repeated(images, b"\0", 1 << 29), folder / f"train-images-idx3-ubyte{suffix}")
    return folder


def _npz_bomb(folder: Path) -> Path:
    sizes = {"descr": "<f8", "fortran_order": False, "shape": (1 << 26,)}
    with (
        zipfile.ZipFile(folder / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("rewards.npy", "w", force_zip64=True) as out,
    ):
        np.lib.format.write_array_header_1_0(out, sizes)
        for block in _repeated(b"", b"\0", 1 << 29):
            out.write(block)
    return folder / "a.npz"


def _npz_header(header: str, folder: Path, method: int = zipfile.ZIP_DEFLATED, data: bytes = bytes(80)) -> Path:
    text = header.encode() + b"\n"
    with zipfile.ZipFile(folder / "a.npz", "w", method) as archive:
        for name in ("states", "actions", "rewards", "ends"):
            archive.writestr(f"{name}.npy", b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text + data)
    return folder / "a.npz"


_HEADERS = {
    "a terabyte": "{'descr': '<f8', 'fortran_order': False, 'shape': (1 << 37,)}".replace("1 << 37", str(1 << 37)),
    "a shape below 0": "{'descr': '<f8', 'fortran_order': False, 'shape': (-1,)}",
    "a shape beyond 64 bits": f"{{'descr': '<f8', 'fortran_order': False, 'shape': ({1 << 62}, {1 << 62})}}",
    "objects": "{'descr': '|O', 'fortran_order': False, 'shape': (10,)}",
    "texts of a gigabyte": "{'descr': '<U268435456', 'fortran_order': False, 'shape': (1,)}",
    "deep nesting": "(" * 4000,
    "a number of 5,000 digits": "{'descr': '<f8', 'fortran_order': False, 'shape': (" + "9" * 5000 + ",)}",
    "records": "{'descr': [('a', '<f8'), ('b', '<f8')], 'fortran_order': False, 'shape': (5,)}",
    "a type of no bytes": "{'descr': '|V0', 'fortran_order': False, 'shape': (1000000000000,)}",
}


def _hdf5(fill: Callable[[Any], Any], folder: Path) -> Path:
    import h5py

    with h5py.File(folder / "a.hdf5", "w") as file:
        file["actions"], file["rewards"], file["terminals"] = np.zeros(4), np.zeros(4), np.ones(4, bool)
        fill(file)
    with h5py.File(folder / "other.hdf5", "w") as file:
        file["observations"] = np.zeros((4, 2))
    return folder / "a.hdf5"


def _bomb_chunk(file: Any) -> None:
    found = file.create_dataset("observations", (4, 2), "f8", chunks=(4, 2), compression="gzip")
    packer = zlib.compressobj(9)
    data = b"".join(packer.compress(block) for block in _repeated(b"", b"\0", 1 << 29)) + packer.flush()
    found.id.write_direct_chunk((0, 0), data)


def _linked(file: Any) -> None:
    import h5py

    file["far"] = h5py.ExternalLink("other.hdf5", "/")
    file["observations"] = h5py.SoftLink("/far/observations")


def _external(file: Any) -> None:
    import h5py

    file["observations"] = h5py.ExternalLink("other.hdf5", "/observations")


def _virtual(file: Any) -> None:
    import h5py

    layout = h5py.VirtualLayout((4, 2), "f8")
    layout[:] = h5py.VirtualSource("other.hdf5", "observations", (4, 2))
    file.create_virtual_dataset("observations", layout)


def _loop(file: Any) -> None:
    import h5py

    file["observations"] = h5py.SoftLink("/other")
    file["other"] = h5py.SoftLink("/observations")


def _zeros(file: Any) -> None:
    found = file.create_dataset("observations", (1 << 18, 64), "f8", chunks=(1 << 14, 64), compression="gzip")
    chunk = zlib.compress(bytes(1 << 23), 9)
    for row in range(0, 1 << 18, 1 << 14):
        found.id.write_direct_chunk((row, 0), chunk)


_HDF5: dict[str, Callable[[Any], Any]] = {
    "8 TB that are nowhere": lambda file: file.create_dataset("observations", (1 << 40,), "f8"),
    "8 TB of chunks that are nowhere": lambda file: file.create_dataset("observations", (1 << 40,), "f8", chunks=True),
    "a chunk of 3 GB": lambda file: file.create_dataset(
        "observations", (4, 2), "f8", chunks=(1 << 14, 1 << 14), maxshape=(None, None), compression="gzip"
    ),
    "zeros, compressed": _zeros,
    "a chunk that expands": _bomb_chunk,
    "a link to a link": _linked,
    "a link to another file": _external,
    "a part of another file": _virtual,
    "a loop of links": _loop,
    "texts": lambda file: file.create_dataset("observations", data=["a", "b", "c", "d"]),
    "a group": lambda file: file.create_group("observations/a"),
    "data outside": lambda file: file.create_dataset("observations", (4, 2), "f8", external=[("/dev/zero", 0, 64)]),
}


def _repeated_text(folder: Path) -> Path:
    import pyarrow
    import pyarrow.parquet

    column = pyarrow.DictionaryArray.from_arrays(np.zeros(20_000, np.int32), ["a" * 10_000_000])
    pyarrow.parquet.write_table(
        pyarrow.table({"text": column}), folder / "a.parquet", compression="zstd", store_schema=False
    )
    return folder / "a.parquet"


def _parquet(make: Callable[[Any], Any], folder: Path) -> Path:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(make(pyarrow), folder / "a.parquet", compression="zstd")
    return folder / "a.parquet"


def _lerobot(change: Callable[[Path], Any], folder: Path) -> Path:
    import pyarrow
    import pyarrow.parquet

    numbers = {"dtype": "float32", "shape": [2]}
    said = {"codebase_version": "v3.0", "fps": 10, "data_path": "data/a.parquet", "video_path": "videos/a.mp4"}
    said["features"] = {"action": numbers, "observation.state": numbers}
    for name in ("meta/episodes/chunk-000", "data"):
        (folder / "set" / name).mkdir(parents=True)
    place = folder / "set"
    (place / "meta/info.json").write_text(json.dumps(said))
    pyarrow.parquet.write_table(pyarrow.table({"task_index": [0], "task": ["x"]}), place / "meta/tasks.parquet")
    episodes = {"episode_index": [0], "length": [4], "data/chunk_index": [0], "data/file_index": [0]}
    pyarrow.parquet.write_table(pyarrow.table(episodes), place / "meta/episodes/chunk-000/file-000.parquet")
    change(place)
    return place


def _many_episodes(place: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    names = ("episode_index", "length", "data/chunk_index", "data/file_index")
    columns = {name: np.ones(9_000_000, np.int64) for name in names}
    pyarrow.parquet.write_table(pyarrow.table(columns), place / "meta/episodes/chunk-000/file-000.parquet")


def _many_rows(place: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    rows = 20_000_000
    flat = pyarrow.array(np.zeros(2 * rows, np.float32))
    pair = pyarrow.FixedSizeListArray.from_arrays(flat, 2)
    whole = np.zeros(rows, np.int64)
    columns = {"episode_index": whole, "task_index": whole, "action": pair, "observation.state": pair}
    pyarrow.parquet.write_table(pyarrow.table(columns), place / "data/a.parquet", compression="zstd")
    episodes = {"episode_index": [0], "length": [rows], "data/chunk_index": [0], "data/file_index": [0]}
    pyarrow.parquet.write_table(pyarrow.table(episodes), place / "meta/episodes/chunk-000/file-000.parquet")


def _info(change: Callable[[dict[str, Any]], Any], place: Path) -> None:
    said = json.loads((place / "meta/info.json").read_text())
    change(said)
    (place / "meta/info.json").write_text(json.dumps(said))


def _columns() -> Iterator[Case]:
    for suffix in (".gz", ".xz", ".zst"):
        yield Case(f"IDX{suffix}: zeros", lambda f, s=suffix: _idx(f, 500_000, 32, s), IMAGES)
        yield Case(f"IDX{suffix}: a header of terabytes", lambda f, s=suffix: _idx(f, 0xFFFFFFFF, 65535, s), IMAGES)
    yield Case("npz: zeros", _npz_bomb, EPISODES)
    for name, header in _HEADERS.items():
        yield Case(f"npz: {name}", partial(_npz_header, header), EPISODES)
    sound = "{'descr': '<f8', 'fortran_order': False, 'shape': (10,)}"
    yield Case("npz: bzip2", lambda f: _npz_header(sound, f, zipfile.ZIP_BZIP2), EPISODES)
    yield Case("npz: more than the header says", lambda f: _npz_header(sound, f, data=bytes(160)), EPISODES)
    for name, fill in _HDF5.items():
        yield Case(f"HDF5: {name}", partial(_hdf5, fill), EPISODES)
    yield Case("Parquet: one long text, repeated", _repeated_text, TEXTS)
    tables: dict[str, Callable[[Any], Any]] = {
        "10 million empty texts": lambda pa: pa.table({"text": pa.array([""]).take(np.zeros(10_000_000, np.int64))}),
        "no text": lambda pa: pa.table({"text": pa.nulls(10, pa.string())}),
        "numbers": lambda pa: pa.table({"text": [1, 2]}),
        "no rows": lambda pa: pa.table({"text": pa.array([], pa.string())}),
        "5,000 columns": lambda pa: pa.table({f"c{i}": [1] for i in range(5000)}),
    }
    for name, make in tables.items():
        yield Case(f"Parquet: {name}", partial(_parquet, make), TEXTS)
    folders: dict[str, Callable[[Path], Any]] = {
        "9 million episodes": _many_episodes,
        "20 million rows": _many_rows,
        "info.json of 300 MB": lambda p: (p / "meta/info.json").write_bytes(b" " * 300_000_000),
        "info.json nested": lambda p: (p / "meta/info.json").write_bytes(b"[" * 1_000_000),
        "info.json is a pipe": lambda p: ((p / "meta/info.json").unlink(), os.mkfifo(p / "meta/info.json")),
        "rows are a pipe": lambda p: os.mkfifo(p / "data/a.parquet"),
        "rows outside": partial(_info, lambda said: said.update(data_path="../../etc/passwd")),
        "a huge shape": partial(_info, lambda said: said["features"]["action"].update(shape=[1 << 40, 1 << 40])),
        "a rate of 400 digits": partial(_info, lambda said: said.update(fps=10**400)),
    }
    for name, change in folders.items():
        yield Case(f"LeRobot: {name}", partial(_lerobot, change), ROBOTS)


def _wav(folder: Path, rate: int, channels: int = 1, count: int = 20_000) -> Path:
    for label in ("a", "b"):
        (folder / "set" / label).mkdir(parents=True)
        for number in range(4):
            with wave.open(str(folder / f"set/{label}/{number}.wav"), "wb") as out:
                out.setparams((channels, 2, rate, 0, "NONE", ""))
                out.writeframes(bytes(2 * channels * count))
    return folder / "set"


def _flac(folder: Path) -> Path:
    """Twenty hours of silence."""
    import soundfile

    (folder / "set/a").mkdir(parents=True)
    with soundfile.SoundFile(folder / "set/a/0.flac", "w", 8000, 1) as out:
        for _ in range(20):
            out.write(np.zeros(8000 * 3600, np.int16))
    return folder / "set"


def _sound_bytes(data: bytes, folder: Path, name: str = "0.wav") -> Path:
    _plain(f"set/a/{name}", data, folder)
    return folder / "set"


def _riff(size: int, rate: int = 16000, channels: int = 1, bits: int = 16) -> bytes:
    form = struct.pack("<HHIIHH", 1, channels, rate, rate * 2, channels * bits // 8, bits)
    return (
        b"RIFF\xff\xff\xff\xffWAVEfmt " + struct.pack("<I", 16) + form + b"data" + struct.pack("<I", size) + bytes(64)
    )


def _png(width: int, height: int, kind: int, bits: int = 8, more: bytes = b"") -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    samples = {0: 1, 2: 3, 3: 1, 6: 4}[kind]
    line = bytes(1 + (width * samples * bits + 7) // 8)
    packer = zlib.compressobj(9)
    data = (
        b"".join(packer.compress(line) for _ in range(height if width < 20_000 and height < 20_000 else 10))
        + packer.flush()
    )
    head = struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + more + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def _pictures(data: bytes | Callable[[], bytes], name: str, folder: Path) -> Path:
    for label in ("a", "b"):
        _plain(f"set/{label}/{name}", data, folder)
    return folder / "set"


def _text_chunk() -> bytes:
    data = b"note\0\0" + zlib.compress(bytes(1 << 28), 9)
    return struct.pack(">I", len(data)) + b"zTXt" + data + struct.pack(">I", zlib.crc32(b"zTXt" + data))


def _media() -> Iterator[Case]:
    for rate in (767_957, 191_999, 44_101, 1, 999, 768_001):
        yield Case(f"sound: {rate} samples a second", partial(_wav, rate=rate), SOUNDS)
    yield Case("sound: 1,024 channels", lambda f: _wav(f, 16000, 1024), SOUNDS)
    yield Case("sound: hours of silence in FLAC", _flac, SOUNDS)
    headers = {
        "4 GB in 64 bytes": _riff(0xFFFFFFF0),
        "a rate of 0": _riff(64, 0),
        "no channels": _riff(64, channels=0),
        "0 bits": _riff(64, bits=0),
        "no header": b"RIFF",
    }
    for name, data in headers.items():
        yield Case(f"sound: {name}", partial(_sound_bytes, data), SOUNDS)
    yield Case("sound: a playlist", lambda f: _sound_bytes(b"#EXTM3U\nhttp://127.0.0.1:9/a.wav\n", f, "0.m4a"), SOUNDS)
    images: dict[str, tuple[str, Callable[[], bytes]]] = {
        "88 megapixels in RGB": ("a.png", lambda: _png(9400, 9400, 2)),
        "88 megapixels with transparency": ("a.png", lambda: _png(9400, 9400, 6)),
        "88 megapixels in grey of 16 bits": ("a.png", lambda: _png(9400, 9400, 0, 16)),
        "10 billion pixels": ("a.png", lambda: _png(100_000, 100_000, 0, 1)),
        "2^62 pixels": ("a.png", lambda: _png(1 << 10, (1 << 31) - 1, 0, 1)),
        "a comment of 256 MB": ("a.png", lambda: _png(8, 8, 2, 8, _text_chunk())),
        "PPM of 4 billion": ("a.ppm", lambda: b"P6 65535 65535 255\n"),
        "PPM with numbers of 5,000 digits": ("a.ppm", lambda: b"P6 " + b"9" * 5000 + b" 2 255\n"),
        "BMP of 2^31": (
            "a.bmp",
            lambda: b"BM" + bytes(12) + struct.pack("<IiiII", 40, 1 << 30, 1 << 30, 24 << 16 | 1, 0),
        ),
        "GIF of nothing": ("a.gif", lambda: b"GIF89a\xff\xff\xff\xff\0\0\0;"),
        "EPS, which would start a program": ("a.png", lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"),
    }
    for name, (file, make) in images.items():
        yield Case(f"image: {name}", partial(_pictures, make, file), IMAGES)


def _values() -> Iterator[Case]:
    start = b"rnbqkbnr/pppppppp/8/8/8/8/PPPPPPPP/RNBQKBNR"
    fen = start + b" w KQkq - "
    files: dict[str, tuple[str, bytes, Commands]] = {
        "EPD: quotes that do not close": ("a.epd", fen + b"bm " + b'" ' * 2_000_000 + b'x"y', CHESS),
        "EPD: a million operations": ("a.epd", fen + b"a;" * 1_000_000, CHESS),
        "EPD: counters of 5,000 digits": ("a.epd", fen + b"1" * 5000 + b" " + b"1" * 5000, CHESS),
        "EPD: a mate in 400 digits": ("a.epd", fen + b"bm e4; ce #" + b"9" * 400 + b";", CHESS),
        "EPD: a rank of a million": ("a.epd", b"p" * 1_000_000 + b"/8/8/8/8/8/8/8 w - - bm e4;", CHESS),
        "chess CSV: a number of 5,000 digits": (
            "a.csv",
            b"position,bestmove,scores\n" + fen + b"0 1,e2e4,e2e4:#" + b"9" * 5000 + b"\n",
            CHESS,
        ),
        "chess CSV: a mate in 400 digits": (
            "a.csv",
            b"position,bestmove,scores\n" + fen + b"0 1,e2e4,e2e4:#" + b"9" * 400 + b"\n",
            CHESS,
        ),
        "PGN: variations in variations": ("a.pgn", b'[Event "x"]\n\n1. e4 ' + b"(1. d4 " * 200_000 + b"\n", CHESS),
        "PGN: an evaluation of 400 digits": (
            "a.pgn",
            b'[Event "x"]\n\n1. e4 { [%eval #' + b"9" * 400 + b"] } e5 1-0\n",
            CHESS,
        ),
        "PGN: a position that is none": ("a.pgn", b'[FEN "' + b"k" * 100_000 + b'"]\n\n1. e4 1-0\n', CHESS),
        "JSON: deep": ("a.jsonl", b'{"text":' * 200_000, TEXTS),
        "JSON: many lists": ("a.jsonl", b'{"text": [' + b"[]," * 8_000_000 + b"[]]}", TEXTS),
        "JSON: a number of 5,000 digits": ("a.jsonl", b'{"text": ' + b"1" * 5000 + b"}", TEXTS),
        "JSON: a number of 400 digits": ("a.jsonl", b'{"time": 1, "value": ' + b"1" * 400 + b"}\n", SERIES),
        "JSON: half a character": ("a.jsonl", b'{"text": "\\ud800"}', TEXTS),
        "CSV: a million columns": ("a.csv", b",".join(b"c%d" % i for i in range(1_000_000)) + b"\n", TABLES),
        "CSV: a quote that does not close": ("a.csv", b'text,label\n"' + b"a\n" * 5_000_000, TABLES),
        "CSV: quotes": ("a.csv", b"text,label\n" + b'"' * 1_000_001, TABLES),
        "text: UTF-16 that is none": ("a.txt", b"\xff\xfe" + b"\x00\xd8" * 100_000, TEXTS),
        "text: UTF-32": ("a.txt", b"\xff\xfe\0\0" + b"a\0\0\0" * 10, TEXTS),
        "CoNLL: a million columns": ("a.conll", b"a " * 1_000_000, TAGGED),
    }
    for name, (file, data, commands) in files.items():
        yield Case(name, partial(_plain, file, data), commands)


CASES: list[Case] = [*_lines(), *_places(), *_archives(), *_columns(), *_media(), *_values()]
