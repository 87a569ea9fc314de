"""Images, audio and tables from clients, in data: URLs and files of forms. Images and audio are decoded by helper
processes. Nothing is fetched.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from queue import LifoQueue
from tempfile import NamedTemporaryFile, TemporaryDirectory
from typing import Any

import numpy as np
import torch

from headway.data.table_files import TABLE_TYPES
from headway.domains.audio.sound_files import FileSound
from headway.errors import UserError
from headway.io.helper import Helper, HelperError

_DECODER = "headway.serve.media_decoder"
_MEMORY = 4 << 30  # bytes of address space per helper process
_CPU_SECONDS = 60.0  # per image, and per block of audio
_MAX_SHOWN = 40  # characters of an invalid URL in messages
_MAX_TYPE = 100  # characters of a media type
_PROBLEMS = {
    "death": "crashes its decoder; encode it again",
    "time": f"takes more than {_CPU_SECONDS:g} s to decode; send a smaller one",
    "memory": "needs too much memory to decode; send a smaller one",
}

# Several for images, so that others need not wait for a large one; only those in use are started.
_idle_helpers: LifoQueue[Helper] = LifoQueue()
for _ in range(min(4, os.cpu_count() or 1)):
    _idle_helpers.put(Helper(_DECODER, _MEMORY))
_sound_helper = Helper(_DECODER, _MEMORY)  # audio is read in short blocks


def image_of(url: object, name: str) -> np.ndarray:
    """The pixels of an image in a data: URL, uint8 [H, W, 3]; `name` is for messages. UserError for anything else, and
    for an image that is damaged, too large, or crashes the decoder.
    """
    encoded = _decode_data_url(url, name, "image/")
    helper = _idle_helpers.get()
    try:
        value, pixels = _ask(helper, {"image": name}, name, encoded)
    finally:
        _idle_helpers.put(helper)
    return np.frombuffer(pixels, np.uint8).reshape(value["shape"])


def sound_of(url: object, name: str) -> np.ndarray:
    """The samples of the audio in a data: URL at 16 kHz, float32 [N]. UserError for anything else, and for audio that
    is damaged, exceeds the limits for input files, or crashes the decoder.
    """
    audio_bytes = _decode_data_url(url, name, "audio/")
    with NamedTemporaryFile(prefix="headway-") as file:  # private to this user; decoders need a file
        file.write(audio_bytes)
        file.flush()
        with with_client_name(Path(file.name), name):
            return torch.cat(list(client_sound(Path(file.name)).blocks())).numpy()


def client_sound(path: Path) -> FileSound:
    """The audio or video in a client's file. Raises the same errors as `sound_of`, also while its blocks are read."""
    return FileSound(path, open_reader=_HelperReader)


class _HelperReader:
    """An audio file, read block by block in the helper process."""

    def __init__(self, path: Path) -> None:
        self._path = str(path)
        value, _ = _ask(_sound_helper, {"sound": self._path}, self._path)
        self.rate, self.seconds = value["rate"], value["seconds"]

    def read(self) -> Iterator[np.ndarray]:
        number, samples = 0, b" "
        while samples:
            value, samples = _ask(_sound_helper, {"sound": self._path, "block": number}, self._path)
            if samples:
                yield np.frombuffer(samples, np.float32).reshape(-1, value["channels"])
            number += 1


def _ask(helper: Helper, request: dict[str, Any], name: str, data: bytes = b"") -> tuple[dict[str, Any], bytes]:
    try:
        value, reply = helper.ask(request, _CPU_SECONDS, data)
    except HelperError as error:
        raise UserError(f"{name} {_PROBLEMS[error.reason]}") from None
    if "error" in value:
        raise UserError(value["error"])
    return value, reply


@contextmanager
def with_client_name(path: Path, name: str) -> Iterator[None]:
    """Within the context, UserErrors show the client's name of a file instead of its path."""
    try:
        yield
    except UserError as error:
        raise UserError(str(error).replace(str(path), name)) from None


@contextmanager
def table_files(tables: Sequence[str]) -> Iterator[list[Path]]:
    """Tables as files that exist within the context: each is a text (CSV, or JSON lines that start with a brace), or a
    data: URL of one of the media types of tables. UserErrors name them "the table", or "table 2" of several.
    """
    names = ["the table"] if len(tables) == 1 else [f"table {number}" for number in range(1, len(tables) + 1)]
    with TemporaryDirectory(prefix="headway-") as folder, ExitStack() as stack:
        paths: list[Path] = []
        for name, table in zip(names, tables):
            kind, content = ".jsonl" if table.lstrip()[:1] == "{" else ".csv", table.encode("utf-8", "replace")
            if table.startswith("data:"):
                media_type = re.split("[;,]", table[len("data:") : _MAX_TYPE])[0]
                kind = next((kind for kind, known in TABLE_TYPES.items() if known == media_type), "")
                if not kind:
                    problem = f"{name} has the media type {media_type[:_MAX_SHOWN]!r}, which is not that of a table"
                    raise UserError(f"{problem}; send {', '.join(TABLE_TYPES.values())}")
                content = _decode_data_url(table, name, TABLE_TYPES[kind])
            paths.append(Path(folder) / f"{len(paths)}{kind}")
            paths[-1].write_bytes(content)
            stack.enter_context(with_client_name(paths[-1], name))
        yield paths


def _decode_data_url(url: object, name: str, kind: str) -> bytes:
    head, comma, payload = url.partition(",") if isinstance(url, str) else ("", "", "")
    if not comma or not head.startswith(f"data:{kind}") or not head.endswith(";base64"):
        received = repr(url[:_MAX_SHOWN]) if isinstance(url, str) else f"a {type(url).__name__}"
        example = f"data:{kind}{'...' if kind.endswith('/') else ''};base64,..."
        raise UserError(f"{name} is {received}, but no files or URLs are opened; send {example}")
    try:
        return base64.b64decode(payload, validate=True)
    except binascii.Error as error:
        raise UserError(f"{name} is not base64 ({error}); encode it again") from None
