"""Files whose contents take long, name other files or contradict themselves: videos, images, frames, tables, sizes."""

from __future__ import annotations

import gzip
import io
import json
import lzma
import os
import struct
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import hostile_files as files
from hostile_case import Case

_LISTS = {
    "an ffconcat list": b"ffconcat version 1.0\nfile /etc/passwd\n",
    "an HLS list": b"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n",
    "an SDP description": b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 9 RTP/AVP 96\n",
    "no video": b"no video",
}


def _film(content: bytes | None, place: Path) -> None:
    """A camera whose video holds `content`; None is a named pipe."""
    import pyarrow
    import pyarrow.parquet

    camera = {"dtype": "video", "shape": [16, 24, 3], "info": {"video.fps": 10}}
    files._info(lambda said: said["features"].update({"observation.images.front": camera}), place)
    pair = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(np.zeros(8, np.float32)), 2)
    zeros = np.zeros(4, np.int64)
    rows = {"episode_index": zeros, "task_index": zeros, "action": pair, "observation.state": pair}
    pyarrow.parquet.write_table(pyarrow.table(rows), place / "data/a.parquet")
    video = {f"videos/observation.images.front/{name}": [0] for name in ("chunk_index", "file_index")}
    episodes: dict[str, Any] = {"episode_index": [0], "length": [4], "data/chunk_index": [0], "data/file_index": [0]}
    episodes |= video | {"videos/observation.images.front/from_timestamp": [0.0]}
    pyarrow.parquet.write_table(pyarrow.table(episodes), place / "meta/episodes/chunk-000/file-000.parquet")
    (place / "videos").mkdir()
    if content is None:
        os.mkfifo(place / "videos/a.mp4")
    else:
        (place / "videos/a.mp4").write_bytes(content)


def _videos() -> Iterator[Case]:
    for name, content in _LISTS.items():
        yield Case(f"video: {name}", partial(files._lerobot, partial(_film, content)), files.ROBOTS)
        yield Case(f"sound: {name}", partial(files._sound_bytes, content, name="0.mp4"), files.SOUNDS)
    yield Case("video: a named pipe", partial(files._lerobot, partial(_film, None)), files.ROBOTS)


def _jpeg(side: int, scans: int = 0, before: bytes = b"") -> bytes:
    """A progressive JPEG whose last scan comes so many times more; `before` comes before all else."""
    from PIL import Image

    out = io.BytesIO()
    Image.new("RGB", (side, side), (120, 60, 30)).save(out, "JPEG", progressive=True)
    whole = out.getvalue()
    return whole[:2] + before + whole[2:-2] + whole[whole.rindex(b"\xff\xda") : -2] * scans + whole[-2:]


def _runs() -> bytes:
    """A BMP of 89 million pixels, of which each row names one."""
    wide, high = 8900, 10_000
    rows = b"\x01\x01\0\0" * high + b"\0\x01"
    head = struct.pack("<IiiHHIIiiII", 40, wide, high, 1, 8, 1, len(rows), 0, 0, 256, 0) + bytes(1024)
    return b"BM" + struct.pack("<IHHI", 14 + len(head) + len(rows), 0, 0, 14 + len(head)) + head + rows


def _ifd() -> bytes:
    """A TIFF of 60,000 entries that all name the same three megabytes."""
    count, size = 60_000, 3_000_000
    start = 8 + 2 + 12 * count + 4
    entries = b"".join(struct.pack("<HHII", 1000 + number, 7, size, start) for number in range(count))
    return b"II*\0" + struct.pack("<IH", 8, count) + entries + bytes(4) + bytes(size)


def _images() -> Iterator[Case]:
    exif = b"\xff\xe1" + struct.pack(">H", 9) + b"Exif\0\0A"
    images: dict[str, tuple[str, Callable[[], bytes]]] = {
        "JPEG of 5,000 scans": ("a.jpg", lambda: _jpeg(9400, 5000)),
        "JPEG of 60 scans": ("a.jpg", lambda: _jpeg(9400, 50)),
        "JPEG of 20 scans": ("a.jpg", lambda: _jpeg(9400, 10)),
        "JPEG of a million parts of Exif": ("a.jpg", lambda: _jpeg(8, before=exif * 1_000_000)),
        "JPEG of a million comments": ("a.jpg", lambda: _jpeg(8, before=b"\xff\xfe\0\2" * 1_000_000)),
        "BMP of runs": ("a.bmp", _runs),
        "TIFF whose entries overlap": ("a.tif", _ifd),
        "GIF of a million comments": ("a.gif", lambda: b"GIF89a\x08\0\x08\0\0\0\0" + b"\x21\xfe\x01A\0" * 1_000_000),
    }
    for name, (file, make) in images.items():
        yield Case(f"image: {name}", partial(files._pictures, make, file), files.IMAGES)


def _frames() -> Iterator[Case]:
    empty = {
        ".gz": gzip.compress(b"", mtime=0),
        ".xz": lzma.compress(b""),
        ".zst": b"\x28\xb5\x2f\xfd\x20\x00\x01\x00\x00",
    }
    for suffix, frame in empty.items():
        data = frame * (10_000_000 // len(frame))
        yield Case(f"frames: empty, a.txt{suffix}", partial(files._plain, f"a.txt{suffix}", data), files.TEXTS)
        yield Case(f"frames: empty, a.tar{suffix}", partial(files._plain, f"a.tar{suffix}", data), files.TEXTS)


def _contradictions() -> Iterator[Case]:
    quotes = b"text\tlabel\n" + b'"x\ty\n' * 300_000
    tables = {
        "a column twice": ("a.csv", b"text,label,label\nx,a,b\n", files.TABLES),
        "a key twice": ("a.jsonl", b'{"text": "x", "label": "a", "label": "b"}\n', files.TABLES),
        "300,000 quotes that stay open": ("a.tsv", quotes, files.TABLES),
        "quotes around 30 MB": ("a.tsv", b'text\tlabel\n"' + b'""\n' * 10_000_000 + b'"\ta\n', files.TABLES),
        "a field of 60 million characters": ("a.csv", b'text,label\n"' + b"a " * 30_000_000 + b'",b\n', files.TABLES),
        "a million keys, one twice": (
            "a.jsonl",
            json.dumps(dict.fromkeys(map(str, range(1_000_000)), 0)).encode()[:-1] + b', "7": 1}\n',
            files.TEXTS,
        ),
    }
    for name, (file, data, commands) in tables.items():
        yield Case(f"table: {name}", partial(files._plain, file, data), commands)


def _sizes() -> Iterator[Case]:
    good = "text,label\n" + "".join(f"good {n},a\nbad {n},b\n" for n in range(500))
    names = ("task.size", "train.batch_tokens", "train.accumulate", "model.width", "model.depth", "model.heads")
    for name in names:
        for value in (10**12, 2**31 - 1, 2**62):
            commands = files._train("classification", "--set", f"{name}={value}")
            yield Case(f"size: {name}={value}", partial(files._plain, "a.csv", good.encode()), commands)
    words = ("tokenizer", "train", "--kind", "bpe", "--size", str(10**12), "--data", "{file}", "--out", "{file}.json")
    yield Case("size: of a tokenizer", partial(files._plain, "a.txt", good.encode()), (words,))


CASES: list[Case] = [*_videos(), *_images(), *_frames(), *_contradictions(), *_sizes()]
