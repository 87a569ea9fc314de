"""Recordings as shards: decoded to 16 kHz, in 16 bits where that has the same values."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from headway.data.labelled_files import LabelledFiles
from headway.data.prepared.prepared_samples import PreparedSamples
from headway.data.prepared.sample_shards import EncodedSample
from headway.domains.audio.sound_files import FileSound, Sounds, content_key
from headway.errors import UserError

_SCALE = 32768  # of 16-bit samples


class SoundEncoder:
    """Recordings, with one channel."""

    name = "sounds"
    key_bytes, num_sums = 16, 0

    def plan(self) -> dict[str, Any]:
        return {}

    def choose(self, labelled: LabelledFiles, local: Callable[[Path], Path]) -> dict[str, Any]:
        return {}

    def start(self, settings: Mapping[str, Any]) -> None:
        """There are no settings."""

    def encode(self, path: Path, index: int | None = None) -> EncodedSample:
        sound = FileSound(path, warn=False)
        samples = torch.cat(list(sound.blocks())).numpy()
        whole = (samples * _SCALE).clip(-_SCALE, _SCALE - 1).astype(np.int16)
        same = np.array_equal((whole / np.float32(_SCALE)).view(np.int32), samples.view(np.int32))
        content = (whole if same else samples).tobytes()
        return EncodedSample(content, bytes.fromhex(content_key(path)), len(samples), int(sound.out_of_phase))


class TranscriptEncoder(SoundEncoder):
    """Recordings whose labels are their transcripts."""

    name = "transcripts"


class PreparedSounds(Sounds):
    """Recordings in shards, read when they are used."""

    def __init__(self, files: Sequence[Path], samples: PreparedSamples) -> None:
        self.files, self.keys, self.unreadable = files, samples.hex_keys(), []
        self.out_of_phase = np.flatnonzero(samples.flags).tolist()
        self._prepared = samples

    @property
    def lengths(self) -> np.ndarray:
        return self._prepared.lengths

    def __getitem__(self, index: int) -> Float[Tensor, "N"]:
        (content,) = self._prepared.contents(np.array([index]))
        length = int(self._prepared.lengths[index])
        if len(content) == length * np.dtype(np.int16).itemsize:
            return torch.from_numpy(np.frombuffer(content, np.int16) / np.float32(_SCALE))
        if len(content) != length * np.dtype(np.float32).itemsize:
            raise UserError(f"a recording of {self._prepared.data.name} has another length; prepare the data again")
        return torch.from_numpy(np.frombuffer(content, np.float32).copy())


class JoinedSounds(Sounds):
    """Recordings of several sources: those of `sources[n]` are the `rows[n]` of all."""

    def __init__(self, sources: Sequence[Sounds], rows: Sequence[Int[np.ndarray, "N"]]) -> None:
        owners = {row: (sounds, n) for sounds, part in zip(sources, rows) for n, row in enumerate(part.tolist())}
        self._owners = [owners[row] for row in range(len(owners))]
        self.files, self.keys = ([getattr(s, name)[n] for s, n in self._owners] for name in ("files", "keys"))
        self.unreadable, self.out_of_phase = (
            sorted(int(part[n]) for sounds, part in zip(sources, rows) for n in getattr(sounds, name))
            for name in ("unreadable", "out_of_phase")
        )
        self._lengths = np.zeros(len(owners), np.int64)
        for sounds, part in zip(sources, rows):
            self._lengths[part] = sounds.lengths

    @property
    def lengths(self) -> np.ndarray:
        return self._lengths

    def __getitem__(self, index: int) -> Float[Tensor, "N"]:
        sounds, number = self._owners[index]
        return sounds[number]
