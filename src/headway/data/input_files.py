"""Users' files: find, decompress, decode and stream them in constant memory; and datasets of the Hugging Face hub."""

from __future__ import annotations

import codecs
import importlib
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Any, NamedTuple

from headway.data.splits import SPLITS, split_from_name
from headway.errors import UserError, logger, nearest
from headway.io.archives import open_archive
from headway.io.files import DAMAGE, expand, file_size, limit_error, open_file, read_limits
from headway.io.hub import HUB_PREFIX, hub_confirmed, hub_name_error

COMPRESSIONS = (".gz", ".xz", ".zst")
ARCHIVES = (".zip", ".tar")
_LOG = logger(__name__)
_MAX_LISTED = 3  # file kinds listed in a message
_BLOCK = 1 << 20  # bytes read at once
_SPREADSHEET_KINDS = (".xlsx", ".xls", ".xlsm", ".ods")


@dataclass(frozen=True)
class File:
    """A file on disk, a `member` of an archive, or the bytes of an uncompressed file in a `span` (start, stop);
    `named_split` is the split in its name.
    """

    path: Path
    member: str | None = None
    named_split: str | None = None
    span: tuple[int, int] | None = None

    def __str__(self) -> str:
        if self.span is not None:
            return f"{self.path} (bytes {self.span[0]:,} to {self.span[1]:,})"
        return str(self.path) if self.member is None else f"{self.path}: {self.member}"

    @property
    def name(self) -> str:
        return self.path.name if self.member is None else PurePath(self.member).name

    @property
    def kind(self) -> str:
        """The extension in lower case, without a compression extension: .txt for book.TXT.gz."""
        return file_kind(self.name)


def file_kind(name: str) -> str:
    path = PurePath(name.lower())
    return PurePath(path.stem).suffix if path.suffix in COMPRESSIONS else path.suffix


def find_files(path: Path, kinds: Collection[str], excluded: Collection[Path] = ()) -> list[File]:
    """The files of `kinds` at a path: the file itself, or those in a folder (recursive, sorted).

    Files in the `excluded` folders, which are read separately, are skipped; a folder that contains any may be empty.
    """
    if path in excluded:
        return []
    if path.is_dir():
        matches: list[File] = []
        paths = sorted(path.rglob("*"))
        # Only folders with a run's file names are checked: there may be a million others.
        runs = {inner.parent for inner in paths if inner.name in (".lock", "run.json") and is_run_folder(inner.parent)}
        skipped = {*excluded, *(runs - {path})}
        for inner in paths:
            parts = inner.relative_to(path).parts
            hidden = any(part.startswith(".") for part in parts)
            # An empty file in a folder is skipped; passed by itself it is an error.
            if hidden or file_kind(inner.name) not in kinds or not inner.is_file() or inner.stat().st_size == 0:
                continue
            if any(parent in skipped for parent in inner.parents):
                continue
            folder_split = next(filter(None, map(split_from_name, [*reversed(parts[:-1]), path.name])), None)
            files = find_files(inner, kinds)
            matches.extend(replace(file, named_split=file.named_split or folder_split) for file in files)
        if not matches and not excluded:
            raise UserError(f"folder {path} contains no supported files; {supported_formats(kinds)}")
        return matches
    check_file(path)
    if file_kind(path.name) not in kinds:
        if file_kind(path.name) in _SPREADSHEET_KINDS:
            raise UserError(f"{path} is a spreadsheet; save it as .csv (UTF-8), or {supported_formats(kinds)}")
        raise UserError(f"{path} has the unknown extension {file_kind(path.name)!r}; {supported_formats(kinds)}")
    return [File(path, named_split=split_from_filename(path.name))]


def warn_of_skipped(source: object, names: Sequence[str], noun: str) -> None:
    """Count files in the log that are not read, by extension."""
    counts = Counter(PurePath(name).suffix.lower() or name for name in names)
    listing = ", ".join(f"{count} {kind}" for kind, count in counts.most_common(_MAX_LISTED))
    if names:
        _LOG.warning("%s: skipped %d files that are not %s (%s)", source, len(names), noun, listing)


def check_file(path: Path) -> None:
    """UserError unless the file exists and is not empty."""
    try:
        if not path.exists():
            raise UserError(f"there is no file or folder {path}; check the name")
        if not path.is_file():
            raise UserError(f"{path} is not a regular file; pass one")
        size = path.stat().st_size
    except PermissionError as error:
        raise UserError(f"{path} is not accessible ({error.strerror}); check its permissions") from error
    if size == 0:
        raise UserError(f"{path} is empty (0 bytes); pass a file with content")


def supported_formats(kinds: Iterable[str]) -> str:
    """The supported formats, as the end of an error message."""
    return f"use {', '.join(kinds)}, or one of them compressed ({', '.join(COMPRESSIONS)})"


def resolve_named_splits(files: list[File]) -> list[File]:
    """Split names count only if something is left to train on: a single test.txt is ordinary data."""
    if any(file.named_split in ("train", None) for file in files):
        return files
    return [replace(file, named_split=None) for file in files]


def is_run_folder(folder: Path) -> bool:
    """Whether a folder is a run directory: `train --data .` must not read its own growing files."""
    return (folder / ".lock").is_file() or ((folder / "run.json").is_file() and (folder / "recipe.json").is_file())


def expand_archives(files: Iterable[File], kinds: Collection[str]) -> list[File]:
    """Replace each archive by its members of `kinds`."""
    expanded: list[File] = []
    file_kinds = [kind for kind in kinds if kind not in ARCHIVES]
    for file in files:
        if file.kind not in ARCHIVES:
            expanded.append(file)
            continue
        inner_files = [inner for inner in archive_members(file.path) if inner.kind in file_kinds]
        if not inner_files:
            raise UserError(f"archive {file} contains no supported files; {supported_formats(file_kinds)}")
        expanded.extend(replace(inner, named_split=inner.named_split or file.named_split) for inner in inner_files)
    return expanded


def archive_members(path: Path) -> list[File]:
    """The files in an archive, in its order, without hidden files and metadata (names that start with . or _)."""
    try:
        names = list(open_archive(path).sizes)
    except DAMAGE as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise UserError(f"{path} is damaged ({reason}); download it or create it again") from error
    visible = (name for name in names if not any(part[0] in "._" for part in PurePath(name).parts))
    return [File(path, name, named_split=split_from_filename(name)) for name in visible]


def split_from_filename(name: str) -> str | None:
    """The split in a file's name, compressed or not."""
    path = PurePath(name)
    return split_from_name(path.stem if path.suffix.lower() in COMPRESSIONS else path.name)


def read_blocks(file: File) -> Iterator[bytes]:
    """A file's bytes, decompressed, in blocks of about 1 MiB. UserError if it is damaged or expands beyond the
    read limits.
    """
    suffix = PurePath(file.name.lower()).suffix
    try:
        if file.member is not None:
            packed = open_archive(file.path)
            with packed.open(file.member) as raw:
                yield from expand(raw, suffix, packed.sizes[file.member], str(file))
        elif file.span is not None:
            with open_file(file.path) as raw:
                raw.seek(file.span[0])
                while block := raw.read(min(_BLOCK, file.span[1] - raw.tell())):
                    yield block
        else:
            with open_file(file.path) as raw:
                yield from expand(raw, suffix, file_size(raw), str(file))
    except DAMAGE as error:
        raise UserError(
            f"{file} is damaged ({error or type(error).__name__}); download or compress it again"
        ) from error
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror or error}); check it and its permissions") from error


def read_text_blocks(file: File) -> Iterator[str]:
    """A file's text in non-empty blocks: UTF-8, or UTF-16 if it starts with a UTF-16 byte order mark, which is dropped.
    Line ends are unchanged.

    UserError if it is binary, wrongly encoded (with the byte offset), empty or damaged.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    offset, started, is_utf16 = 0, False, False
    for block in read_blocks(file):
        if offset == 0 and block[:4] in (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE):
            raise UserError(f"{file} is UTF-32; convert it: iconv -f UTF-32 -t UTF-8 FILE > NEW")
        if offset == 0 and block[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            decoder, is_utf16 = codecs.getincrementaldecoder("utf-16")(), True
        nul_index = -1 if is_utf16 else block.find(b"\0")
        if nul_index >= 0:
            raise UserError(f"{file} is binary (a NUL byte at byte {offset + nul_index}); pass a UTF-8 text file")
        text = _decode(file, decoder, block, offset)
        offset += len(block)
        if text and not started:
            text = text.removeprefix("\ufeff")
        if text:
            started = True
            yield text
    _decode(file, decoder, b"", offset, final=True)
    if not started:
        raise UserError(f"{file} is empty; pass a file with text")


def _decode(file: File, decoder: codecs.IncrementalDecoder, block: bytes, offset: int, final: bool = False) -> str:
    pending = len(decoder.getstate()[0])
    try:
        return decoder.decode(block, final)
    except UnicodeDecodeError as error:
        position, byte = offset - pending + error.start, error.object[error.start]
        if error.encoding.startswith("utf-16"):
            raise UserError(
                f"{file} starts as UTF-16 but is not valid UTF-16 at byte {position}; download the file again"
            ) from error
        raise UserError(
            f"{file} is not UTF-8 at byte {position} (0x{byte:02x}), but perhaps Windows' cp1252; "
            "convert it: iconv -f CP1252 -t UTF-8 FILE > NEW"
        ) from error


def read_lines(file: File) -> Iterator[str]:
    """A file's lines, without their ends (only \\n or \\r\\n end a line). UserError for lines that are too long, or for
    millions of blank lines in a row, which would be slow.
    """
    parts: list[str] = []
    pending, blank_count, max_line = 0, 0, read_limits().line
    for block in read_text_blocks(file):
        blank_count = 0 if block.strip("\r\n") else blank_count + len(block)
        if blank_count > _MAX_BLANK_LINES:
            raise UserError(f"{file} has over {_MAX_BLANK_LINES:,} consecutive blank lines; remove them")
        first, *rest = block.split("\n")
        parts.append(first)
        if rest:
            yield "".join(parts).removesuffix("\r")
            for line in rest[:-1]:
                yield line.removesuffix("\r")
            parts, pending = [rest[-1]], 0
        pending += len(parts[-1])
        if pending > max_line:
            raise limit_error(str(file), f"has a line of over {pending:,} characters", "line")
    last = "".join(parts)
    if last:
        yield last.removesuffix("\r")


_MAX_BLANK_LINES = 4_000_000
_TEXT_COLUMN = "text"
_HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*(:[\w.-]+)?")


class HubSplit(NamedTuple):
    """One split of a dataset; `content` is a hash of its data."""

    name: str
    config: str | None
    split: str
    named_split: str | None
    content: str

    def __str__(self) -> str:
        return f"{self.name}{f':{self.config}' if self.config else ''} ({self.split})"


def find_hub_splits(name: str) -> list[HubSplit]:
    """The splits of `hf:owner/name` or `hf:owner/name:config` that are named train, validation or test. UserError for a
    name without the prefix, unless HEADWAY_HUB=1 is set.
    """
    hub_name = name.removeprefix(HUB_PREFIX)
    if not _HUB_NAME.fullmatch(hub_name):
        raise UserError(f"there is no file or folder {name}; check the name")
    if hub_name == name and not hub_confirmed():
        raise hub_name_error(name, "dataset")
    dataset, _, config = hub_name.partition(":")
    builder = _call_datasets(name, "load_dataset_builder", dataset, config or None)
    splits = list(_call_datasets(name, "get_dataset_split_names", dataset, config or None))
    split_names = [split for split in splits if split_from_name(split) in SPLITS]
    if not split_names:
        raise UserError(f"dataset {name} has the splits {', '.join(splits)}; use one with a split named train")
    # As with files, split names count only if something is left to train on.
    named_splits = {split: split_from_name(split) for split in split_names}
    resolved = named_splits if "train" in named_splits.values() else dict.fromkeys(split_names)
    return [HubSplit(dataset, config or None, split, resolved[split], str(builder.hash)) for split in split_names]


def read_hub_texts(source: HubSplit) -> Iterator[str]:
    """The column "text" of a split, streamed."""
    rows = _call_datasets(str(source), "load_dataset", source.name, source.config, split=source.split, streaming=True)
    for number, row in enumerate(rows):
        text = row.get(_TEXT_COLUMN)
        if not isinstance(text, str):
            raise UserError(f"{source}, row {number} has no string in {_TEXT_COLUMN!r}; {nearest(_TEXT_COLUMN, row)}")
        yield text


def _call_datasets(name: str, function: str, *arguments: Any, **options: Any) -> Any:
    try:
        datasets = importlib.import_module("datasets")
    except ImportError as error:
        raise UserError(
            f"there is no file or folder {name}; a Hugging Face dataset needs: pip install 'headway[data]'"
        ) from error
    try:
        return getattr(datasets, function)(*arguments, **options)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{name} is neither a local file nor a readable dataset ({first}); check the name") from error
