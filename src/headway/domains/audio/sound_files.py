"""Audio files and samples as one channel at one rate, as a whole or in blocks; audio decoded once into a memory map;
and transcript tables.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from headway.data.array_store import (
    ColumnWriter,
    cache_key,
    cache_root,
    open_or_build,
    read_column,
    read_info,
    write_info,
)
from headway.data.labelled_files import file_groups
from headway.data.table_files import TABLE_KINDS, read_table
from headway.domains.audio.mel import RATE, Resampler
from headway.errors import UserError, logger
from headway.io.files import file_of_row, open_file, user_path
from headway.io.sounds import BLOCK, SoundReader, check_length, check_plausible_length, open_sound_file

_LOG = logger(__name__)


AUDIO_EXTENSIONS = (
    ".wav",
    ".flac",
    ".mp3",
    ".ogg",
    ".opus",
    ".m4a",
    ".aac",
    ".mp4",
    ".mov",
    ".mkv",
    ".webm",
    ".wma",
    ".aiff",
)


class Sound(Protocol):
    """Samples of one channel at one rate, in blocks; `source` names them in messages."""

    source: str

    def blocks(self) -> Iterator[Float[Tensor, "N"]]: ...


class FileSound:
    """A file as numbers between -1 and 1 at `rate` samples per second, with its channels averaged; it is `seconds`
    long. If the channels would cancel out because one is inverted, only the loudest is used: `out_of_phase` is True
    after reading such a file, and with `warn` a warning is logged.

    UserError for an unreadable file or one longer than a day; later damage is found while reading. `open_reader` may
    read the file in another process.
    """

    def __init__(
        self,
        path: Path | str,
        rate: int = RATE,
        warn: bool = True,
        open_reader: Callable[[Path], SoundReader] = open_sound_file,
    ) -> None:
        self.path, self.rate, self.warn, self.out_of_phase = Path(path), rate, warn, False
        self.source = str(self.path)
        if not self.path.is_file():
            problem = (
                "is a folder" if self.path.is_dir() else "is not a file" if self.path.exists() else "does not exist"
            )
            raise UserError(f"{self.path} {problem}; use an audio file, such as .wav, .flac, .ogg, .mp3 or .m4a")
        self._reader = open_reader(self.path)
        self.seconds = self._reader.seconds
        check_length(self.path, self.seconds)
        check_plausible_length(self.path, self.seconds, max(rate, self._reader.rate))
        try:
            Resampler(self._reader.rate, rate)
        except UserError as error:
            raise UserError(f"{self.path}: {error}") from None

    def blocks(self) -> Iterator[Float[Tensor, "N"]]:
        """The audio from its start, in blocks. UserError if the file ends earlier than its header states, or has NaN or
        infinite samples.
        """
        resampler, count, mix = Resampler(self._reader.rate, self.rate), 0, ChannelMix(self.source)
        for samples in self._reader.read():
            count += len(samples)
            check_length(self.path, count / self._reader.rate)
            check_plausible_length(self.path, count / self._reader.rate, max(self.rate, self._reader.rate))
            yield resampler.push(mix.mono(torch.from_numpy(samples)))
        self.out_of_phase = mix.chosen_channel is not None
        if self.out_of_phase and self.warn:
            _LOG.warning("%s: %s", self.source, OUT_OF_PHASE)
        yield resampler.finish()


class ArraySound:
    """Audio in memory: numbers between -1 and 1 at 16 kHz, with one channel or as [N, channels]."""

    def __init__(self, samples: Any, source: str = "the audio") -> None:
        values = torch.as_tensor(samples)
        if not values.is_floating_point() or values.dim() not in (1, 2):
            raise UserError(
                f"{source} is {values.dtype} of shape {tuple(values.shape)}; use floating-point numbers between -1 "
                "and 1 with shape [samples] or [samples, channels]"
            )
        if not len(values):
            raise UserError(f"{source} has 0 samples; remove it")
        self.source = source
        mix = ChannelMix(source)
        self._samples = mix.mono(values.float().view(len(values), -1))
        if mix.chosen_channel is not None:
            _LOG.warning("%s: %s", source, OUT_OF_PHASE)

    def blocks(self) -> Iterator[Float[Tensor, "N"]]:
        """The audio from its start, in blocks."""
        yield from self._samples.split(BLOCK)


SoundInput = str | Path | np.ndarray | Tensor | Sequence[float] | Sound


def open_sound(source: SoundInput) -> Sound:
    """The sound in a file or of samples; an open sound is returned as is. UserError for anything else."""
    if isinstance(source, (FileSound, ArraySound)):
        return source
    if isinstance(source, (str, Path)):
        return FileSound(source)
    if isinstance(source, (np.ndarray, Tensor, list, tuple)):
        return ArraySound(source)
    raise UserError(f"a {type(source).__name__} is not audio; pass the path of a file, or samples at {RATE} Hz")


def read_sound(path: Path | str, rate: int = RATE) -> Float[Tensor, "N"]:
    """A complete file. Raises the same errors as FileSound."""
    return torch.cat(list(FileSound(path, rate).blocks()))


OUT_OF_PHASE = "its channels cancel each other out, so only the loudest is used"
_SILENT, _CANCELLED_SHARE = 1e-8, 1e-3  # power of silence, and the share left after averaging


class ChannelMix:
    """Mixes channels in blocks by averaging, or takes the loudest if the mean has less than a thousandth of their power
    (-30 dB). The first block that is not silent decides; `chosen` is then the only channel used.
    """

    def __init__(self, source: str) -> None:
        self.source, self._is_decided = source, False
        self.chosen_channel: int | None = None

    def mono(self, samples: Float[Tensor, "N channels"]) -> Float[Tensor, "N"]:
        """UserError for NaN or infinite samples."""
        if not self._is_decided and samples.shape[1] > 1:
            powers = samples.double().square().mean(0)
            power = float(powers.mean())
            if power > _SILENT:
                self._is_decided = True
                if float(samples.double().mean(1).square().mean()) < _CANCELLED_SHARE * power:
                    self.chosen_channel = int(powers.argmax())
        return mono(samples if self.chosen_channel is None else samples[:, self.chosen_channel, None], self.source)


def mono(samples: Float[Tensor, "N channels"], source: str = "the audio") -> Float[Tensor, "N"]:
    """The mean of the channels. UserError for NaN or infinite samples."""
    sound = samples.mean(1)
    if not bool(sound.isfinite().all()):
        raise UserError(f"{source} has NaN or infinite samples; recreate the file")
    return sound


_FORMAT = 2
_BATCH_SIZE = 256  # sounds decoded in memory at a time
_MAX_NAMES = 3


class Sounds:
    """The files' samples at 16 kHz, as from `read_sound`; `keys` identify their contents.

    `unreadable` files could not be read and are errors unless skipping was requested. For `out_of_phase` files only the
    loudest channel was used, because their channels cancel each other out.
    """

    def __init__(self, files: Sequence[Path], keys: Sequence[str], folder: Path) -> None:
        metadata = read_info(folder)
        self.files, self.keys = files, keys
        self.unreadable: list[int] = metadata["bad"]
        self.out_of_phase: list[int] = metadata["opposed"]
        self._offsets = np.asarray(read_column(folder, "offsets", np.int64, len(files) + 1))
        self._samples = read_column(folder, "samples", np.float32, metadata["samples"])

    def __len__(self) -> int:
        return len(self.files)

    @property
    def lengths(self) -> np.ndarray:
        """Samples per file, int64 [N]."""
        return np.diff(self._offsets)

    @property
    def remarks(self) -> tuple[str, ...]:
        """Notes on how the files were read, as sentences."""
        if not self.out_of_phase:
            return ()
        names = ", ".join(str(self.files[index]) for index in self.out_of_phase[:_MAX_NAMES])
        fact = f"The channels of {len(self.out_of_phase)} of {len(self)} recordings cancel each other out"
        return (f"{fact}, so only the loudest channel is used ({names}).",)

    def __getitem__(self, index: int) -> Float[Tensor, "N"]:
        return torch.from_numpy(np.array(self._samples[self._offsets[index] : self._offsets[index + 1]]))


def open_sounds(files: Sequence[Path], skip: bool = False) -> Sounds:
    """The files' audio, from the cache if the same contents were decoded before.

    An invalid or empty file is a UserError; with `skip`, such files are counted in the log and left empty.
    """
    with ThreadPoolExecutor() as workers:
        keys = list(workers.map(content_key, files))
        key = cache_key("sounds", _FORMAT, RATE, keys)
        folder = open_or_build(cache_root() / key, lambda target: _build(target, files, workers, skip))
    sounds = Sounds(files, keys, folder)
    if sounds.unreadable:
        if not skip:
            _read(files[sounds.unreadable[0]], skip=False)  # raises the error
        names = ", ".join(str(files[index]) for index in sounds.unreadable[:_MAX_NAMES])
        _LOG.warning("skipped %d of %d audio files that cannot be read (%s)", len(sounds.unreadable), len(files), names)
    for remark in sounds.remarks:
        _LOG.warning("%s", remark[0].lower() + remark[1:])
    return sounds


def content_key(path: Path) -> str:
    """A key that is equal for files with equal contents."""
    with open_file(path) as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()[:32]


def _build(folder: Path, files: Sequence[Path], workers: ThreadPoolExecutor, skip: bool) -> None:
    unreadable: list[int] = []
    out_of_phase: list[int] = []
    total = 0
    with ColumnWriter(folder, {"samples": np.float32, "offsets": np.int64}) as columns:
        columns.append("offsets", [0])
        # In the order of the files, whichever worker finishes first.
        batches = (files[start : start + _BATCH_SIZE] for start in range(0, len(files), _BATCH_SIZE))
        read = lambda path: _read(path, skip)  # noqa: E731
        for index, decoded in enumerate(sound for batch in batches for sound in workers.map(read, batch)):
            if decoded is None:
                unreadable.append(index)
            else:
                columns.append("samples", decoded[0].numpy())
                total += len(decoded[0])
                out_of_phase += [index] if decoded[1] else []
            columns.append("offsets", [total])
    write_info(folder, {"samples": total, "bad": unreadable, "opposed": out_of_phase})


def _read(path: Path, skip: bool) -> tuple[Tensor, bool] | None:
    """The samples of a file, and whether its channels are out of phase."""
    try:
        sound = FileSound(path, warn=False)
        return torch.cat(list(sound.blocks())), sound.out_of_phase
    except UserError as error:
        if not os.path.isfile(path):
            raise
        if skip:
            return None
        raise UserError(f"{error}; or skip such files with task.skip_bad=true") from None


@dataclass(frozen=True)
class Transcripts:
    """Files, their transcripts and their named splits, uint8 [N]; `locations` are for messages. Samples of equal
    `groups` are in one split.
    """

    files: list[Path]
    texts: list[str]
    named_splits: np.ndarray
    locations: list[str]
    groups: list[str] | None = None

    def __len__(self) -> int:
        return len(self.files)

    def select(self, rows: np.ndarray) -> Transcripts:
        files, texts, locations = ([column[row] for row in rows] for column in (self.files, self.texts, self.locations))
        groups = None if self.groups is None else [self.groups[row] for row in rows]
        return Transcripts(files, texts, self.named_splits[rows], locations, groups)


def read_transcripts(
    paths: Sequence[Path],
    path: str = "path",
    text: str = "text",
    skip: bool = False,
    group: str | None = None,
    skip_remedy: str = "skip such samples with task.skip_bad=true",
    column_remedy: str | None = None,
) -> Transcripts:
    """Read .tsv, .csv and .jsonl files with the columns `path`, relative to the table's folder, and `text`. A folder
    stands for all its tables, and each audio file in it must have a transcript. `group` is a column or, with
    parentheses, a regular expression for file names (`file_groups`).

    Transcripts without a file and files without a transcript are UserErrors, which end with the `skip_remedy`; with
    `skip`, they are logged instead. The `column_remedy` is that of `read_table`.
    """
    if not paths:
        raise UserError(
            "there are no transcripts; pass a .tsv with path and text, or a folder with audio files and such a table"
        )
    for source in paths:
        if not user_path(source).is_dir() and source.suffix.lower() not in TABLE_KINDS:
            fact = "is neither a folder nor a table" if source.exists() else "does not exist"
            raise UserError(
                f"{source} {fact}; pass a .tsv with path and text, or a folder with audio files and such a table"
            )
    folders = [user_path(source) for source in paths]
    for source in folders:
        if source.is_dir() and not any(file.suffix.lower() in TABLE_KINDS for file in source.rglob("*")):
            raise UserError(f"{source} has no transcripts; add a .tsv with the columns path and text")
    column = {} if group is None or "(" in group else {"group": group}
    table = read_table(folders, {"path": path, "text": text, **column}, remedy=column_remedy)
    names = table.columns["path"]
    files = [file_of_row(table.locations[row][0].path, name, table.location(row)) for row, name in enumerate(names)]
    missing = [row for row, file in enumerate(files) if not file.is_file()]
    if missing:
        row = missing[0]
        fact = (
            f"{table.location(row)}: {table.columns['path'][row]} is not a file in "
            f"{table.locations[row][0].path.parent}"
        )
        remedy = f"correct it, or remove the line, or {skip_remedy}"
        _report_unusable(skip, fact, "transcripts", len(missing), len(files), remedy)
    locations = [table.location(row) for row in range(len(table))]
    groups = table.columns.get("group") if group is None or column else file_groups(files, group, locations)
    transcripts = Transcripts(files, table.columns["text"], table.named_splits, locations, groups)
    inside = (file for source in folders if source.is_dir() for file in sorted(source.rglob("*")))
    sounds = [file for file in inside if file.suffix.lower() in AUDIO_EXTENSIONS and not file.name.startswith(".")]
    transcribed = {file.resolve() for file in files}
    untranscribed = [file for file in sounds if file.resolve() not in transcribed]
    if untranscribed:
        fact = f"{untranscribed[0]} has no transcript"
        remedy = f"add one, or remove the file from the folder, or {skip_remedy}"
        _report_unusable(skip, fact, "recordings", len(untranscribed), len(sounds), remedy)
    rows = np.setdiff1d(np.arange(len(files)), missing)
    if not len(rows):
        raise UserError(
            f"none of {len(files)} transcripts has an audio file; check the paths in {table.locations[0][0]}"
        )
    return transcripts.select(rows)


def _report_unusable(skip: bool, fact: str, noun: str, count: int, total: int, remedy: str) -> None:
    if not skip:
        more = f" (and {count - 1} more of {total} {noun})" if count > 1 else ""
        raise UserError(f"{fact}{more}; {remedy}")
    _LOG.warning("skipped %d of %d %s (%s)", count, total, noun, fact)
