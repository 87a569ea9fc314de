"""Subtitles of two minutes with pauses: how much of the time that they are shown nobody speaks.

    python benchmarks/subtitles.py [--model FOLDER]      # a minute of one core; espeak-ng for the second sound

FOLDER is the real Whisper tiny.en, as in transcription.py. `recorded` joins utterances of pocketsphinx's tests in
HEADWAY_DATA, and `synthesised` sentences of espeak-ng (Debian), with digital silence of 0.6 to 15 s between them; where
the speech is comes from how they were joined. `music` is a melody without a voice. Subtitles are .srt files of default
settings; faster-whisper (with its own detection of voices, and without) is measured on the same sounds.
"""

from __future__ import annotations

import argparse
import io
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from measure import write
from transcription import RATE, model_folder, utterances

PAUSES = (4.0, 0.7, 6.0, 1.0, 9.0, 3.0, 12.0, 1.5, 5.0, 0.6, 15.0, 2.0)
SECONDS = 120
SENTENCES = (
    "The meeting begins at nine o'clock in the large room.",
    "Please bring your reports, and a copy for everybody.",
    "We will talk about the new bridge over the river.",
    "The weather was cold and wet last week.",
    "She opened the door slowly, and looked into the garden.",
    "The train to London leaves in ten minutes.",
    "Thank you very much for coming today.",
)
Span = tuple[float, float]


def joined(voices: Sequence[np.ndarray]) -> tuple[np.ndarray, list[Span]]:
    """Voices in turn between pauses, until two minutes are over, and where each is."""
    parts: list[np.ndarray] = []
    spans: list[Span] = []
    at, number = 0, 0
    while at < SECONDS * RATE:
        pause = np.zeros(round(PAUSES[number % len(PAUSES)] * RATE), np.float32)
        voice = voices[number % len(voices)]
        begins = at + len(pause)
        at = begins + len(voice)
        parts += [pause, voice]
        spans.append((begins / RATE, at / RATE))
        number += 1
    return np.concatenate(parts), spans


def synthesised() -> list[np.ndarray]:
    """The sentences by voices of espeak-ng, without silence at their edges."""
    import soundfile

    found = []
    for number, sentence in enumerate(SENTENCES):
        voice = ("en-us", "en-gb", "en-us+f3")[number % 3]
        made = subprocess.run(["espeak-ng", "--stdout", "-v", voice, sentence], capture_output=True, check=True)
        sound, rate = soundfile.read(io.BytesIO(made.stdout), dtype="float32")
        times = np.arange(int(len(sound) * RATE / rate)) * rate / RATE
        sound = np.interp(times, np.arange(len(sound)), sound).astype(np.float32)
        loud = np.flatnonzero(np.abs(sound) > 0.003)
        found.append(sound[loud[0] : loud[-1] + 1])
    return found


def music(seconds: int) -> np.ndarray:
    """Plucked notes of a scale over a bass, four a second."""
    draw, times, sound = np.random.default_rng(0), np.arange(RATE) / RATE, np.zeros((seconds + 1) * RATE)
    for note in range(4 * seconds):
        pitch = 220 * 2 ** ((0, 2, 4, 5, 7, 9, 11, 12)[draw.integers(8)] / 12)
        tones = sum(np.sin(2 * np.pi * pitch * k * times) / k for k in range(1, 9)) * np.exp(-6 * times)
        sound[note * RATE // 4 :][:RATE] += 0.1 * tones + 0.1 * np.sin(220 * np.pi * times) * np.exp(-3 * times)
    return sound[: seconds * RATE].astype(np.float32)


def shown_over_silence(cues: Sequence[Span], spans: Sequence[Span]) -> dict[str, float]:
    """Seconds that subtitles are shown, the share of them without speech, and that of speech without subtitles."""
    spoken = sum(max(0.0, min(end, last) - max(start, first)) for start, end in cues for first, last in spans)
    shown, speech = (sum(end - start for start, end in some) for some in (cues, spans))
    return {
        "subtitles": len(cues),
        "seconds": round(shown, 2),
        "over_silence": round(1 - spoken / shown, 4) if shown else 0.0,
        "speech_without": round(1 - spoken / speech, 4) if speech else 0.0,
    }


def cues_of(srt: str) -> list[Span]:
    """When each subtitle of a file is shown."""

    def seconds(clock: str) -> float:
        hours, minutes, rest = clock.replace(",", ".").split(":")
        return 3600 * int(hours) + 60 * int(minutes) + float(rest)

    return [(seconds(a), seconds(b)) for a, b in re.findall(r"([\d:,]+) --> ([\d:,]+)", srt)]


def programs(folder: str) -> dict[str, Callable[[np.ndarray], list[Span]]]:
    from faster_whisper import WhisperModel

    import headway as hw
    from headway.domains.audio import format_transcript

    ours = hw.load(folder, "cpu", "int8")
    theirs = WhisperModel(folder, device="cpu", compute_type="int8", cpu_threads=1)

    def peer(voices: bool) -> Callable[[np.ndarray], list[Span]]:
        return lambda sound: [(each.start, each.end) for each in theirs.transcribe(sound, vad_filter=voices)[0]]

    return {
        "headway": lambda sound: cues_of(format_transcript(ours.transcribe(sound), "srt")),
        "faster-whisper": peer(False),
        "faster-whisper with vad_filter": peer(True),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="the folder of Whisper tiny.en")
    args = parser.parse_args()
    sounds = {"recorded": joined([sound for sound, _ in utterances().values()]), "music": (music(60), [])}
    if shutil.which("espeak-ng"):
        sounds["synthesised"] = joined(synthesised())
    result: dict[str, Any] = {}
    for program, cues in programs(args.model or model_folder()).items():
        result[program] = {name: shown_over_silence(cues(sound), spans) for name, (sound, spans) in sounds.items()}
        print(program, result[program], flush=True)
    write("subtitles", {"model": "tiny.en int8", "threads": 1, "programs": result})


if __name__ == "__main__":
    main()
