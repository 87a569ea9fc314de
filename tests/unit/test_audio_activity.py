"""Voice activity: what is no speech, where speech begins and ends, and what is heard without long pauses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sound_files import tone
from whisper_models import time, transcriber

from headway.domains.audio import read_sound
from headway.domains.audio.mel import RATE
from headway.domains.audio.sound_files import ArraySound
from headway.domains.audio.voice_activity import DetectedSpeech, Timeline, detect_speech
from headway.errors import UserError
from headway.io.sounds import BLOCK

RANDOM = np.random.default_rng


def seconds(count: float) -> np.ndarray:
    """The time of each sample."""
    return np.arange(round(count * RATE)) / RATE


def white(count: float, loud: float = 0.05, seed: int = 0) -> np.ndarray:
    return loud * RANDOM(seed).standard_normal(len(seconds(count)))


def pink(count: float) -> np.ndarray:
    spectrum = np.fft.rfft(white(count))
    return np.fft.irfft(spectrum / np.sqrt(np.arange(len(spectrum)) + 1), len(seconds(count)))


def hum(count: float) -> np.ndarray:
    return 0.2 * np.sin(2 * np.pi * 50 * seconds(count)) + 0.1 * np.sin(2 * np.pi * 150 * seconds(count))


def silence(count: float) -> np.ndarray:
    return np.zeros(len(seconds(count)))


def syllables(count: float, seed: int = 0) -> np.ndarray:
    """Noise whose spectrum is another each 80 ms, as that of speech."""
    draw, pieces = RANDOM(seed), []
    for _ in range(round(count / 0.08)):
        spectrum = np.fft.rfft(draw.standard_normal(round(0.08 * RATE)))
        bands = np.repeat(10 ** draw.uniform(-1.5, 0.5, 16), 41)[: len(spectrum)]
        pieces.append(np.fft.irfft(spectrum * bands))
    return 0.05 * np.concatenate(pieces)


def found(*pieces: np.ndarray) -> DetectedSpeech:
    return detect_speech(ArraySound(np.concatenate(pieces).astype(np.float32)))


NOTES = (220, 330, 262, 392, 294, 440)
NO_SPEECH = {
    "digital silence": [silence(20)],
    "white noise": [white(20)],
    "faint noise": [white(6, 1e-4)],
    "the last bit": [np.round(RANDOM(1).standard_normal(6 * RATE)) / 32768],
    "pink noise": [pink(20)],
    "hum": [hum(6)],
    "a tone": [tone(440, 6.0, rate=RATE)],
    "notes": [tone(pitch, 0.5, seed, RATE) for seed, pitch in enumerate(NOTES * 2)],
    "notes that fade": [tone(pitch, 0.5, 0, RATE) * np.exp(-4 * seconds(0.5)) for pitch in NOTES],
    "bursts of noise": [piece for seed in range(4) for piece in (white(0.5, 0.1, seed), silence(1.5))],
    "noise after noise": [silence(3), white(3), silence(2), white(1, 0.01), pink(4), hum(4), silence(5)],
    "noise that swells": [white(9) * (1 + 0.6 * np.sin(4 * seconds(9)))],
    "a short noise": [white(0.05)],
}


@pytest.mark.parametrize("name", NO_SPEECH)
def test_what_is_no_speech(name: str) -> None:
    speech = found(*NO_SPEECH[name])
    assert speech.spans.tolist() == []
    assert speech.samples == sum(map(len, NO_SPEECH[name]))


@pytest.mark.parametrize("loud", [0.0, 1e-4, 1e-3, 1e-2])
def test_speech_is_found_where_it_is(data_dir: Path, loud: float) -> None:
    """Words of real speech, cut out as they are spoken, between silence, and noise over all."""
    folder = data_dir / "speech" / "pocketsphinx"
    words = [("cards-001", 0.22, 0.7), ("cards-003", 0.2, 1.0), ("cards-005", 0.21, 0.9), ("cards-005", 1.4, 1.95)]
    pieces, edges, at = [], [], 0.0
    for number, (name, first, last) in enumerate(words * 4):
        pause = 0.6 + number % 5
        pieces += [silence(pause), read_sound(folder / f"{name}.wav").numpy()[round(first * RATE) : round(last * RATE)]]
        edges.append((at + pause, at + pause + last - first))
        at = edges[-1][1]
    sound = np.concatenate([*pieces, silence(6)])
    speech = found(sound + white(len(sound) / RATE, loud))
    assert len(speech.spans) == len(edges)
    off = np.abs(speech.spans - edges)
    assert np.median(off) < 0.04
    assert off.max() < 0.2
    faint = found(0.01 * sound)
    assert len(faint.spans) == len(edges)


def test_speech_in_sounds_of_all_lengths() -> None:
    once, twice = found(syllables(1.04), silence(9)), found(syllables(1.04), silence(9), syllables(1.04, 1))
    assert once.spans.flatten() == pytest.approx([0, 1.04], abs=0.1)
    assert twice.spans.flatten() == pytest.approx([0, 1.04, 10.04, 11.08], abs=0.1)
    far = found(silence(59.5), syllables(1.04), silence(60))  # across what is measured together
    assert far.spans.flatten() == pytest.approx([59.5, 60.54], abs=0.1)
    assert len(found(silence(201 / RATE)).spans) == 0
    with pytest.raises(UserError, match="less than one frame"):
        found(silence(100 / RATE))


def test_a_sound_without_its_long_pauses() -> None:
    sound = ArraySound(torch.arange(40 * RATE) / (40.0 * RATE))
    timeline = Timeline(DetectedSpeech(40 * RATE, np.array([[10.0, 11.0], [11.9, 13.0], [33.0, 34.0]])))
    heard = torch.cat(list(timeline.audible(sound).blocks()))
    whole = torch.cat(list(sound.blocks()))
    kept = [(9.6, 13.4), (32.6, 34.4)]
    assert torch.equal(heard, torch.cat([whole[round(a * RATE) : round(b * RATE)] for a, b in kept]))
    assert 40 * RATE > 2 * BLOCK  # parts lie within and across the pieces of a sound
    assert timeline.original_times(0.4, 1.4) == pytest.approx((10.0, 11.0))
    assert timeline.original_times(0.0, 3.7) == pytest.approx((10.0, 13.0))  # from pause to pause
    assert timeline.original_times(3.8, 4.6) == pytest.approx((33.0, 33.4))  # from the joint on
    assert timeline.original_times(5.0, 9.9) == pytest.approx((33.8, 34.0))
    assert timeline.original_times(3.75, 3.85) == pytest.approx(
        (13.35, 13.4)
    )  # nothing is spoken, so there is no way across
    assert timeline.within_speech(10.8, 12.9) == pytest.approx((11.9, 12.9))
    assert timeline.within_speech(11.2, 11.5) == (11.2, 11.5)
    for spans in ([[0.5, 39.5]], [[0.0, 20.0], [21.1, 40.0]]):
        assert Timeline(DetectedSpeech(40 * RATE, np.array(spans))).audible(sound) is sound


def test_words_after_silence_begin_where_they_are_spoken() -> None:
    first, second = [time(0.2), *b" One.", time(0.6)], [time(0.4), *b" Two.", time(0.9)]
    made, said = transcriber([first, second, 5.0], vad=True)
    told = made.transcribe(np.concatenate([silence(40), syllables(0.48), silence(30), syllables(0.48, 1), silence(20)]))
    assert said.window == 2  # less than three seconds are heard, of ninety
    times = [second for segment in told.segments for second in (segment.start, segment.end)]
    assert times == pytest.approx([40.0, 40.2, 70.48, 70.65], abs=0.1)
    assert told.duration == pytest.approx(90.96)


def test_no_model_is_asked_about_silence() -> None:
    made, said = transcriber([], vad=True, language=None)
    moments: list[float] = []
    told = made.transcribe(white(6).astype(np.float32), lambda done, whole: moments.append(done / whole))
    assert (told.text, told.segments, told.duration, said.window, moments) == ("", [], 6.0, -1, [1.0])
