"""Who reads the files of benchmarks/hostile_files.py, in Python, by the commands that a case names."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import hostile_files as files
from headway.codecs.image_processor import read_image
from headway.data.corpus import iter_documents, iter_pairs
from headway.data.dialogues import find_chat_files, read_chats
from headway.data.episode_files import read_demonstrations, read_episodes
from headway.data.labelled_files import idx_files, read_idx_pairs
from headway.data.series import SeriesColumns, read_series
from headway.data.table_files import read_conll, read_table
from headway.domains.audio.sound_files import FileSound


def _chess(path: Path) -> Iterator[Any]:
    from headway.domains.chess.position_files import ReadTally, chess_files, samples

    return (found for file in chess_files([path]) for found in samples(file, 0.5, False, ReadTally()))


def _images(path: Path) -> Iterator[Any]:
    if path.is_dir() and not idx_files(path):
        return (read_image(file) for file in sorted(path.rglob("*.*")))
    return iter(read_idx_pairs(idx_files(path) if path.is_dir() else [path]))


def _sounds(path: Path) -> Iterator[Any]:
    return (block for file in sorted(path.rglob("*.*")) for block in FileSound(file).blocks())


READERS: dict[files.Commands, Callable[[Path], Any]] = {
    files.TEXTS: lambda path: iter_documents([path]),
    files.TABLES: lambda path: iter(read_table([path], {"text": "text", "label": "label"}).columns),
    files.TAGGED: lambda path: iter(read_conll([path])),
    files.SERIES: lambda path: iter(read_series([path], SeriesColumns(None, None, None), True)[0]),
    files.PAIRS: lambda path: iter_pairs([path]),
    files.CHATS: lambda path: (chat for file in find_chat_files([path]) for chat in read_chats(file)),
    files.CHESS: _chess,
    files.IMAGES: _images,
    files.SOUNDS: _sounds,
    files.EPISODES: lambda path: iter(read_episodes([path]).states),
    files.ROBOTS: lambda path: iter(read_demonstrations([path], path.parent / "cache").actions[:0]),
}


def read(commands: files.Commands, path: Path) -> None:
    """All that the file gives, piece by piece."""
    deque(READERS[commands](path), maxlen=0)
