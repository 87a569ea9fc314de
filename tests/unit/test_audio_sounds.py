"""Sounds: log-mel frames equal to Whisper's, sample rates, and files of every kind and every damage."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from headway.domains.audio.mel import MIN_SAMPLES, RATE, log_mel, mel_filters, pad, resample
from headway.domains.audio.sound_files import read_sound
from headway.errors import UserError


def noise(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(seed)) * 0.1


def tone(hertz: float, rate: int, count: int) -> Tensor:
    return torch.sin(2 * math.pi * hertz / rate * torch.arange(count, dtype=torch.float64)).float()


@pytest.mark.parametrize("bands", [80, 128])
def test_filters_are_whispers(bands: int, data_dir: Path) -> None:
    with np.load(data_dir / "speech/mel_filters.npz", allow_pickle=False) as held:
        wanted = torch.from_numpy(held[f"mel_{bands}"])
    assert mel_filters(bands).shape == wanted.shape
    assert torch.equal(mel_filters(bands), wanted)


@pytest.mark.parametrize("bands", [80, 128])
@pytest.mark.parametrize("count", [MIN_SAMPLES, 16000, 16160, 37123])
def test_frames_are_those_of_transformers(bands: int, count: int) -> None:
    peer = pytest.importorskip("transformers").WhisperFeatureExtractor(feature_size=bands)
    sound = noise(count)
    theirs = peer(sound.numpy(), sampling_rate=RATE, padding="longest", return_tensors="pt").input_features[0].T
    ours = log_mel(sound, bands)
    assert ours.shape == (count // 160, bands)
    torch.testing.assert_close(ours, theirs[: count // 160], rtol=0, atol=1e-5)
    whole = peer(sound.numpy(), sampling_rate=RATE, return_tensors="pt").input_features[0].T
    torch.testing.assert_close(log_mel(pad(sound), bands), whole, rtol=0, atol=1e-5)


def test_each_sound_of_a_batch_is_scaled_by_its_own_loudest() -> None:
    sounds = torch.stack([noise(8000), noise(8000, 1) * 1e-3])
    torch.testing.assert_close(log_mel(sounds), torch.stack([log_mel(sound) for sound in sounds]))
    assert log_mel(torch.zeros(8000)).unique().tolist() == [-1.5]  # silence: (-10 + 4) / 4


def test_what_has_no_frames_is_refused() -> None:
    for sound, message in (
        (torch.zeros(0), "has 0 samples, less than one frame"),
        (torch.zeros(MIN_SAMPLES - 1), "200 samples"),
        (torch.full((8000,), torch.nan), "NaN or infinite"),
    ):
        with pytest.raises(UserError, match=message):
            log_mel(sound)
    with pytest.raises(UserError, match=r"samples are torch\.int16"):
        log_mel(torch.zeros(8000, dtype=torch.int16))
    with pytest.raises(UserError, match="has 0 samples"):
        pad(torch.zeros(0))
    with pytest.raises(UserError, match="bands is 0"):
        mel_filters(0)
    with pytest.raises(UserError, match=r"31.00 s long, more than 30 s"):
        pad(torch.zeros(31 * RATE))


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 48000, 96000, 16001])
def test_a_tone_stays_the_tone_at_another_rate(rate: int) -> None:
    found = resample(tone(1000, rate, rate), rate)
    assert len(found) == RATE
    inner = slice(RATE // 8, -RATE // 8)  # away from the ends, where the tone starts and stops
    torch.testing.assert_close(found[inner], tone(1000, RATE, RATE)[inner], rtol=0, atol=2e-4)


def test_what_the_lower_rate_cannot_hold_is_gone() -> None:
    inner = slice(2000, -2000)
    assert resample(tone(9000, 44100, 44100), 44100)[inner].abs().max() < 2e-4
    assert resample(tone(7000, 44100, 44100), 44100)[inner].abs().max() > 0.99


def test_lengths_and_the_same_rate() -> None:
    assert [len(resample(noise(count), 44100)) for count in (1, 2, 441, 442)] == [1, 1, 160, 161]
    sound = noise(100)
    assert resample(sound, RATE) is sound
    for rate in (0, -8000, 10**9):
        with pytest.raises(UserError, match="is not between"):
            resample(sound, rate)


FORMS = [("wav", "PCM_16", 1e-4), ("wav", "PCM_U8", 1e-2), ("wav", "PCM_24", 1e-6), ("wav", "FLOAT", 1e-7)]
FORMS += [("flac", "PCM_16", 1e-4), ("ogg", "VORBIS", 0.1), ("mp3", "MPEG_LAYER_III", 0.1)]


@pytest.mark.parametrize(("suffix", "subtype", "tolerance"), FORMS)
@pytest.mark.parametrize("channels", [1, 2])
def test_files_of_every_kind(suffix: str, subtype: str, tolerance: float, channels: int, tmp_path: Path) -> None:
    soundfile = pytest.importorskip("soundfile")
    sound = tone(440, RATE, RATE) / 2
    sides = torch.stack([sound * (1.5 - i) if channels == 2 else sound for i in range(channels)], dim=1)
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, sides.numpy(), RATE, subtype=subtype)
    found = read_sound(path)
    if suffix != "mp3":  # which adds silence
        assert len(found) == RATE
    middle = slice(4000, 12000)
    if suffix == "mp3":
        assert abs(float(found[middle].square().mean()) - 0.125) < 0.01
    else:
        torch.testing.assert_close(found[middle], sound[middle], rtol=0, atol=tolerance)


def test_a_file_of_96_khz(tmp_path: Path) -> None:
    soundfile = pytest.importorskip("soundfile")
    soundfile.write(tmp_path / "a.wav", (tone(440, 96000, 96000) / 2).numpy(), 96000, subtype="PCM_24")
    found = read_sound(tmp_path / "a.wav")
    torch.testing.assert_close(found[2000:-2000], tone(440, RATE, RATE)[2000:-2000] / 2, rtol=0, atol=2e-4)


def test_files_that_are_no_sounds(tmp_path: Path) -> None:
    soundfile = pytest.importorskip("soundfile")
    soundfile.write(tmp_path / "whole.flac", noise(RATE * 4).numpy(), RATE)
    whole = (tmp_path / "whole.flac").read_bytes()
    (tmp_path / "cut.flac").write_bytes(whole[: len(whole) // 2])
    soundfile.write(tmp_path / "empty.wav", np.zeros(0, np.float32), RATE)
    soundfile.write(tmp_path / "nan.wav", np.full(1000, np.nan, np.float32), RATE, subtype="FLOAT")
    soundfile.write(tmp_path / "slow.wav", np.zeros(1000, np.float32), 500)
    (tmp_path / "text.wav").write_text("no sound")
    (tmp_path / "nothing.mp3").write_bytes(b"")
    (tmp_path / "a.raw").write_bytes(bytes(1000))
    for name, message in {
        "cut.flac": "cut.flac (ends after|is not a readable audio file)",
        "empty.wav": "0 samples",
        "nan.wav": "NaN or infinite",
        "text.wav": "not a readable audio file",
        "slow.wav": "slow.wav: a sample rate of 500 Hz is not between",
        "nothing.mp3": "not a readable audio file",
        "a.raw": "not a readable audio file",
        "absent.wav": "does not exist",
        ".": "is a folder",
    }.items():
        with pytest.raises(UserError, match=message):
            read_sound(tmp_path / name)
