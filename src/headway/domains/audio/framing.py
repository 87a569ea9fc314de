"""Windows of log-mel frames from a sound of any length, in constant memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from headway.domains.audio.mel import HOP, SHORTEST, WINDOW, decades, log_mel, scaled
from headway.domains.audio.sound import Sound
from headway.errors import UserError, nearest
from headway.formats.usage import Usage

_EDGE = WINDOW // 2  # samples before and after a frame's middle
_AT_ONCE = 6000  # frames per block
_PADDING = "sound_padding"  # setting stored with a model
Padding = Literal["zeros", "silence"]  # content of a window past the end of a sound


def padding_of(usage: Usage) -> Padding:
    """A model's padding past the end of a sound: frames of 0, as in the program of Radford et al., or silence, which is
    below -0.4. The default is zeros for a published model and silence for a run. UserError for an unknown setting.
    """
    said: Any = usage.settings.get(_PADDING, "zeros" if usage.family else "silence")
    if said not in get_args(Padding):
        raise UserError(f"the model's {_PADDING} is {said!r}; {nearest(str(said), get_args(Padding))}")
    return said


def said_padding(padding: Padding) -> dict[str, Any]:
    """The setting that stores the padding; a published config.json keeps it."""
    return {_PADDING: padding}


def framed(windows: Float[Tensor, "B N"], bands: int) -> Float[Tensor, "B T bands"]:
    """The frames of windows of N = 160 T samples, each with its own sound, as from `FramedWindows`."""
    return log_mel(F.pad(windows, (0, WINDOW)), bands)[:, : windows.shape[1] // HOP]


class FramedWindows:
    """The frames of a sound, scaled by its loudest frame, as if computed in one pass.

    The sound is read twice: first for its length, its loudest frame and its integrity, then window by window. UserError
    for a truncated sound, or one shorter than a frame.
    """

    def __init__(self, sound: Sound, bands: int, length: int, padding: Padding) -> None:
        """`length` is that of a window, in frames."""
        self.sound, self.bands, self.length, self.padding = sound, bands, length, padding
        self.samples, self._loudest = 0, -torch.inf
        framed = Framed(sound)
        while framed.more:
            found = F.pad(framed.take(_AT_ONCE), (0, WINDOW))
            self._loudest = max(self._loudest, float(decades(found, bands).max()))
        self.samples = framed.samples
        self.frames = self.samples // HOP
        self._framed, self._at = Framed(sound), 0

    def window(self, start: int, heard: int | None = None) -> Float[Tensor, "1 T bands"]:
        """`num_frames` frames from `start` on, or as many as there are, then padding. Starts must not decrease."""
        heard = min(self.length, self.frames - start) if heard is None else heard
        self._framed.skip(start - self._at)
        self._at = start
        count = self.length if self.padding == "silence" else heard
        around = self._framed.look(heard if start + heard < self.frames else count)
        around = F.pad(around, (0, (count - 1) * HOP + WINDOW - len(around)))
        found = scaled(decades(around, self.bands), self._loudest)
        return F.pad(found, (0, 0, 0, self.length - count))[None]


class Framed:
    """The samples under frames: those of frame n begin at n HOP, half a frame before its middle. The sound is reflected
    before its start and followed by silence.
    """

    def __init__(self, sound: Sound) -> None:
        self._blocks: Iterator[Tensor] | None = sound.blocks()
        self._held = torch.zeros(0)
        self.samples = 0
        self._source = sound.source
        self._fill(SHORTEST)
        if len(self._held) < SHORTEST:
            raise UserError(
                f"{sound.source} has {len(self._held)} samples, fewer than a frame ({SHORTEST}); leave it out"
            )
        self._held = torch.cat([self._held[1 : _EDGE + 1].flip(0), self._held])

    @property
    def more(self) -> bool:
        """Whether frames are left."""
        return self._blocks is not None or len(self._held) > 0

    def look(self, frames: int) -> Tensor:
        """The samples of this many frames, or the remaining ones."""
        self._fill((frames - 1) * HOP + WINDOW)
        return self._held[: (frames - 1) * HOP + WINDOW]

    def take(self, frames: int) -> Tensor:
        """`peek`, and advance past them."""
        found = self.look(frames)
        self.skip(frames)
        return found

    def skip(self, frames: int) -> None:
        while frames > 0:
            some = min(frames, _AT_ONCE)
            self._fill(some * HOP)
            self._held = self._held[some * HOP :]
            frames -= some

    def _fill(self, count: int) -> None:
        parts, held = [self._held], len(self._held)
        while held < count and self._blocks is not None:
            block = next(self._blocks, None)
            if block is None:
                self._blocks = None
                break
            parts.append(block)
            self.samples += len(block)
            held += len(block)
        if len(parts) > 1:
            self._held = torch.cat(parts)
