"""Sounds in windows: parts of the whole, what is past the end, how much is held, rates, and what is no sound."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from whisper_models import BANDS, USAGE, noise, time, transcriber

from headway.domains.audio.framing import FramedWindows, Padding, padding_of
from headway.domains.audio.mel import RATE, Resampler, log_mel, resample
from headway.domains.audio.sound_files import ArraySound
from headway.errors import UserError
from headway.formats.usage import Usage


@pytest.mark.parametrize("padding", ["zeros", "silence"])
@pytest.mark.parametrize("seconds", [0.3, 1.0, 2.345])
def test_windows_are_parts_of_the_whole(seconds: float, padding: Padding) -> None:
    sound = noise(round(seconds * RATE))
    windows = FramedWindows(ArraySound(sound), BANDS, 100, padding)
    whole = log_mel(torch.cat([sound, torch.zeros(RATE)]), BANDS)
    whole = whole[: windows.frames] if padding == "zeros" else whole
    assert windows.frames == len(sound) // 160
    for start in (0, 1, 17, 90, 150, windows.frames - 1):
        if start >= windows.frames:
            break
        found = windows.window(start)[0]
        wanted = whole[start : start + 100]
        torch.testing.assert_close(found[: len(wanted)], wanted, rtol=0, atol=2e-5)
        assert (found[len(wanted) :] == 0).all()
        assert padding == "zeros" or len(wanted) == 100


def test_files_say_what_is_heard_past_the_end() -> None:
    assert [padding_of(usage) for usage in (USAGE, Usage())] == ["zeros", "silence"]
    assert padding_of(replace(USAGE, settings={"sound_padding": "silence"})) == "silence"
    with pytest.raises(UserError, match="the model's sound_padding is 'noise'"):
        padding_of(Usage(settings={"sound_padding": "noise"}))


class Endless:
    """Some minutes of sound, made as they are read."""

    source = "a long sound"

    def blocks(self) -> Iterator[Tensor]:
        for number in range(120):
            yield noise(10 * RATE, number)


def test_long_sounds_are_held_in_part_only() -> None:
    windows: Any = FramedWindows(Endless(), BANDS, 3000, "zeros")  # type: ignore[arg-type]
    assert windows.samples == 1200 * RATE
    held = []
    for start in range(0, windows.frames, 2900):
        windows.window(start)
        held.append(len(windows._framed._buffer))
    assert max(held) < 100 * RATE
    assert len(windows._framed._buffer) < 40 * RATE


@pytest.mark.parametrize("rate", [8000, 22050, 44100, 48000, 16000])
def test_rates_by_blocks_are_the_rate_of_the_whole(rate: int) -> None:
    sound, draw = noise(rate), np.random.default_rng(rate)
    resampler, found, start = Resampler(rate), [], 0
    while start < len(sound):
        size = int(draw.integers(1, rate // 3))
        found.append(resampler.push(sound[start : start + size]))
        start += size
    whole = torch.cat([*found, resampler.finish()])
    assert len(whole) == RATE
    torch.testing.assert_close(whole, resample(sound, rate), rtol=0, atol=1e-6)


def test_samples_that_are_no_sound() -> None:
    for samples, message in (
        (torch.zeros(0), "0 samples"),
        (torch.zeros(100), "100 samples, less than one frame"),
        (torch.zeros(16000, dtype=torch.int16), r"torch\.int16"),
        (torch.full((16000,), torch.nan), "NaN or infinite"),
    ):
        made, _ = transcriber([[time(0)]])
        with pytest.raises(UserError, match=message):
            made.transcribe(samples)
