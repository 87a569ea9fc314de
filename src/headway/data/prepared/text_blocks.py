"""Texts in blocks that processes share: small files together, and ranges of large ones. The cuts depend on the files
alone.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from headway.data.corpus import TEXT_KINDS, TextSource, text_sources
from headway.data.input_files import (
    File,
    HubSplit,
    expand_archives,
    file_kind,
    is_run_folder,
    split_from_filename,
    supported_formats,
    warn_of_skipped,
)
from headway.data.splits import split_from_name
from headway.errors import UserError
from headway.io.archives import open_archive
from headway.io.files import open_file
from headway.io.remote import RemoteFolder, remote_url

BLOCK_BYTES = 1 << 25
_LINE_KINDS = (".txt", ".raw", ".jsonl")
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_SCAN = 1 << 16


class RemoteFile(NamedTuple):
    """A file of texts behind a URL, with the split in its name."""

    folder: RemoteFolder
    name: str
    size: int
    named_split: str | None

    def __str__(self) -> str:
        return self.folder.address(self.name)

    def download(self, folder: Path, stop: int | None = None) -> list[TextSource]:
        """The texts of the file, or of its first `stop` bytes, in a local folder; an archive has several."""
        path = folder / PurePosixPath(self.name or self.folder.url).name
        if stop is None or stop >= self.size or path.suffix.lower() not in _LINE_KINDS:
            self.folder.fetch(self.name, self.size, path)
        else:
            content = self.folder.read(self.name, stop)
            path.write_bytes(content[: content.rfind(b"\n") + 1] or content)
        files = expand_archives([File(path, named_split=self.named_split)], TEXT_KINDS)
        return [replace(file, named_split=self.named_split) for file in files]


Source = TextSource | RemoteFile
Block = tuple[Source, ...]


def text_files(paths: Sequence[Path]) -> list[Source]:
    """The sources of texts at paths and URLs; other files are counted in the log. UserError if there are none, or for a
    mixture of paths and URLs.
    """
    urls = [remote_url(path) for path in paths]
    if not any(urls):
        sources: list[Source] = [*text_sources(paths)]
        for path in filter(Path.is_dir, paths):
            inner = (file for file in sorted(path.rglob("*")) if file.is_file() and not is_run_folder(file.parent))
            _warn_of_others(path, [file.relative_to(path).as_posix() for file in inner])
        return sources
    files: list[RemoteFile] = []
    for path, url in zip(paths, urls):
        if url is None:
            raise UserError(f"{path} is a local path next to a URL; prepare them one after the other")
        folder = RemoteFolder(url)
        entries = folder.entries()
        _warn_of_others(url, [name for name in entries if name])
        for name, (size, _) in entries.items():
            parts = PurePosixPath(name or url).parts
            if file_kind(parts[-1]) in TEXT_KINDS and size and not any(part.startswith(".") for part in parts):
                named = [split_from_filename(parts[-1]), *map(split_from_name, reversed(parts[:-1]))]
                files.append(RemoteFile(folder, name, size, next(filter(None, named), None)))
    if not files:
        raise UserError(f"{urls[0]} contains no texts; {supported_formats(TEXT_KINDS)}")
    if any(file.named_split in ("train", None) for file in files):
        return list(files)
    return [file._replace(named_split=None) for file in files]


def _warn_of_others(source: object, names: Sequence[str]) -> None:
    visible = [name for name in names if not any(part.startswith(".") for part in PurePosixPath(name).parts)]
    warn_of_skipped(source, [name for name in visible if file_kind(name) not in TEXT_KINDS], "texts")


def source_size(source: Source) -> int:
    """The bytes of a source, compressed if it is; 0 for a data set on the hub."""
    if isinstance(source, RemoteFile):
        return source.size
    if isinstance(source, HubSplit):
        return 0
    return source.path.stat().st_size if source.member is None else open_archive(source.path).sizes[source.member]


def cut_blocks(sources: Sequence[Source]) -> list[Block]:
    """Blocks of about BLOCK_BYTES. A file whose lines can be read from the middle is cut into ranges, a .txt into as
    many documents; other files stay whole. The sources of a data set on the hub are blocks of their own.
    """
    blocks: list[Block] = []
    group: list[Source] = []
    filled, size = 0, BLOCK_BYTES
    for source in sources:
        length = source_size(source)
        if group and (filled + length > size or isinstance(source, HubSplit)):
            blocks.append(tuple(group))
            group, filled = [], 0
        if isinstance(source, File) and length > size and _has_lines(source):
            edges = [*range(0, length - size // 2, size), length]
            blocks += [(replace(source, span=(start, stop)),) for start, stop in pairwise(edges)]
        else:
            group.append(source)
            filled += length
    return [*blocks, tuple(group)] if group else blocks


def _has_lines(file: File) -> bool:
    """Whether lines can be read from the middle of a file: it is neither compressed, in an archive, nor UTF-16."""
    if file.member is not None or file.path.suffix.lower() not in _LINE_KINDS:
        return False
    with open_file(file.path) as stream:
        return stream.read(2) not in _UTF16


def exact_sources(block: Block, folder: Path) -> list[TextSource]:
    """The sources of a block with ranges that start and end with lines; ranges without a line start are left out.
    Remote files are downloaded into a folder, and their documents cut like those of local files.
    """
    sources: list[TextSource] = []
    for number, source in enumerate(block):
        if isinstance(source, RemoteFile):
            (inner := folder / str(number)).mkdir(parents=True)
            sources += [s for part in cut_blocks(source.download(inner)) for s in exact_sources(part, folder)]
            continue
        if isinstance(source, File) and source.span is not None:
            start, stop = (line_start(source.path, offset) for offset in source.span)
            if start == stop:
                continue
            source = replace(source, span=(start, stop))
        sources.append(source)
    return sources


def line_start(path: Path, offset: int) -> int:
    """The first position from `offset` on where a line starts, or the end of the file."""
    if offset == 0:
        return 0
    with open_file(path) as file:
        file.seek(offset - 1)
        while block := file.read(_SCAN):
            newline = block.find(b"\n")
            if newline >= 0:
                return file.tell() - len(block) + newline + 1
        return file.tell()
