"""Windows of log-mel frames: from audio of any length in constant memory, and the window of a model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from headway.domains.audio.mel import HOP, MIN_SAMPLES, RATE, WINDOW, log_power, scale_frames
from headway.domains.audio.sound_files import Sound
from headway.errors import ConfigError, UserError, nearest
from headway.formats.usage import Usage
from headway.learn import Recipe
from headway.nn.models import FramesEmbedConfig, SpectrogramEmbedConfig, TransformerConfig

_EDGE = WINDOW // 2  # samples before and after a frame's middle
_BLOCK_FRAMES = 6000  # frames per block
PADDING_SETTING = "sound_padding"  # setting stored with a model
Padding = Literal["zeros", "silence"]  # content of a window past the end of the audio


def padding_of(usage: Usage) -> Padding:
    """How a model pads past the end of the audio: with frames of 0, as Radford et al.'s code does, or with silence,
    which is below -0.4. The default is zeros for a published model and silence for a run. UserError for an unknown
    setting.
    """
    padding: Any = usage.settings.get(PADDING_SETTING, "zeros" if usage.family else "silence")
    if padding not in get_args(Padding):
        raise UserError(f"the model's {PADDING_SETTING} is {padding!r}; {nearest(str(padding), get_args(Padding))}")
    return padding


class FramedWindows:
    """The frames of a recording, scaled by its loudest frame, as if computed in one pass.

    The recording is read twice: first to check it and to find its length and its loudest frame, then window by window.
    UserError for a recording that is truncated or shorter than a frame.
    """

    def __init__(self, sound: Sound, bands: int, length: int, padding: Padding) -> None:
        """`length` is the window length in frames."""
        self.sound, self.bands, self.length, self.padding = sound, bands, length, padding
        self.samples, self._max_log = 0, -torch.inf
        framed = SampleFrames(sound)
        while framed.has_more:
            samples = F.pad(framed.take(_BLOCK_FRAMES), (0, WINDOW))
            self._max_log = max(self._max_log, float(log_power(samples, bands).max()))
        self.samples = framed.samples
        self.frames = self.samples // HOP
        self._framed, self._position = SampleFrames(sound), 0

    def window(self, start: int, num_frames: int | None = None) -> Float[Tensor, "1 T bands"]:
        """`num_frames` frames from `start` on, or as many as there are, then padding. Starts must not decrease."""
        num_frames = min(self.length, self.frames - start) if num_frames is None else num_frames
        self._framed.skip(start - self._position)
        self._position = start
        count = self.length if self.padding == "silence" else num_frames
        samples = self._framed.peek(num_frames if start + num_frames < self.frames else count)
        samples = F.pad(samples, (0, (count - 1) * HOP + WINDOW - len(samples)))
        frames = scale_frames(log_power(samples, self.bands), self._max_log)
        return F.pad(frames, (0, 0, 0, self.length - count))[None]


class SampleFrames:
    """The samples under the frames: those of frame n start at n HOP, half a frame before its middle. The audio is
    reflected before its start and followed by silence.
    """

    def __init__(self, sound: Sound) -> None:
        self._blocks: Iterator[Tensor] | None = sound.blocks()
        self._buffer = torch.zeros(0)
        self.samples = 0
        self._source = sound.source
        self._fill(MIN_SAMPLES)
        if len(self._buffer) < MIN_SAMPLES:
            raise UserError(
                f"{sound.source} has only {len(self._buffer)} samples, less than one frame ({MIN_SAMPLES}); remove it"
            )
        self._buffer = torch.cat([self._buffer[1 : _EDGE + 1].flip(0), self._buffer])

    @property
    def has_more(self) -> bool:
        """Whether frames are left."""
        return self._blocks is not None or len(self._buffer) > 0

    def peek(self, frames: int) -> Tensor:
        """The samples of this many frames, or the remaining ones."""
        self._fill((frames - 1) * HOP + WINDOW)
        return self._buffer[: (frames - 1) * HOP + WINDOW]

    def take(self, frames: int) -> Tensor:
        """`peek`, and advance past them."""
        samples = self.peek(frames)
        self.skip(frames)
        return samples

    def skip(self, frames: int) -> None:
        while frames > 0:
            step = min(frames, _BLOCK_FRAMES)
            self._fill(step * HOP)
            self._buffer = self._buffer[step * HOP :]
            frames -= step

    def _fill(self, count: int) -> None:
        parts, size = [self._buffer], len(self._buffer)
        while size < count and self._blocks is not None:
            block = next(self._blocks, None)
            if block is None:
                self._blocks = None
                break
            parts.append(block)
            self.samples += len(block)
            size += len(block)
        if len(parts) > 1:
            self._buffer = torch.cat(parts)


_RECIPE = "recipe.json"  # if in the workspace, the run has started, so its window is fixed


def window_of(model: TransformerConfig) -> int:
    """The frames in a model's window. ConfigError for a model that does not take audio."""
    if isinstance(model.embed, SpectrogramEmbedConfig):
        return model.embed.frames
    if isinstance(model.embed, FramesEmbedConfig) and model.context is not None:
        return 2 * model.context
    raise ConfigError(
        f"this task needs a model that takes audio windows, but model.embed is {type(model.embed).__name__}; choose "
        "another model, such as the one from the audio recipe"
    )


def bands_of(model: TransformerConfig) -> int:
    """The number of mel bands of its frames."""
    window_of(model)
    return model.embed.bands  # type: ignore[attr-defined]


def with_window(model: TransformerConfig, frames: int) -> TransformerConfig:
    """`model` with a window of this many frames, from `valid_frames`."""
    if isinstance(model.embed, SpectrogramEmbedConfig):
        return replace(model, embed=replace(model.embed, frames=frames))
    return replace(model, context=frames // 2)


def valid_frames(model: TransformerConfig, frames: int) -> int:
    """The smallest valid window of at least this many frames."""
    if isinstance(model.embed, SpectrogramEmbedConfig):
        return model.embed.padded_frames(frames)
    return frames + frames % 2


def choose_window(
    recipe: Recipe, model: TransformerConfig, lengths: np.ndarray, seconds: float | None, workspace: Path
) -> int:
    """The frames in the window: `seconds` if set; otherwise the model's own window if it is trained or has a start
    model; for a new model the longest recording, at most the model's window. `lengths` are in samples.
    """
    max_frames = window_of(model)
    if seconds is not None:
        return valid_frames(model, frames_of(round(seconds * RATE)))
    if recipe.start is not None or (workspace / _RECIPE).exists():
        return max_frames
    return min(max_frames, valid_frames(model, frames_of(int(lengths.max(initial=1)))))


def frames_of(samples: int) -> int:
    """The smallest number of frames that hold this many samples."""
    return -(-samples // HOP)


def check_lengths(lengths: np.ndarray, frames: int, location: str, remedy: str) -> None:
    """UserError if the longest recording, located at `named`, exceeds the window."""
    max_length = int(lengths.max(initial=0))
    if frames_of(max_length) > frames:
        raise UserError(
            f"{location} is {max_length / RATE:.2f} s long, but the model's window is {frames * HOP / RATE:g} s; "
            f"{remedy}"
        )
