"""Sounds that are made up: a tone of its own for each class or word, as files of the kinds that people have."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile

RATE = 8000


def tone(pitch: float, seconds: float = 0.3, seed: int = 0, rate: int = RATE) -> np.ndarray:
    """A tone with two overtones and a little noise, float32 [N]."""
    time = np.arange(round(seconds * rate)) / rate
    sound = sum(np.sin(2 * np.pi * pitch * k * time) / k for k in (1, 2, 3)) * 0.2
    return (sound + 0.005 * np.random.default_rng(seed).standard_normal(len(time))).astype(np.float32)


def write(path: Path, sound: np.ndarray, rate: int = RATE, subtype: str | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, sound, rate, subtype=subtype)
    return path


def classes(folder: Path, each: int = 8) -> Path:
    """Two classes of tones, a folder for each."""
    for number, name in enumerate(("low", "high")):
        for i in range(each):
            seed = 100 * number + i
            write(folder / name / f"{i}.wav", tone(200 + 700 * number + 3 * i, 0.2 + 0.02 * (i % 3), seed))
    return folder


def digits(folder: Path, takes: int = 12, speakers: tuple[str, ...] = ("anna", "bert")) -> Path:
    """Recordings named as those of the Free Spoken Digit Dataset."""
    for number, speaker in enumerate(speakers):
        for digit in range(10):
            for take in range(takes):
                sound = tone(150 + 60 * digit + 20 * number, 0.12 + 0.01 * take, 1000 * digit + 10 * take + number)
                write(folder / f"{digit}_{speaker}_{take}.wav", sound)
    return folder


def prompts(folder: Path, count: int = 10) -> Path:
    """A folder of sounds with a .tsv of transcripts."""
    lines = ["path\ttext"]
    for i in range(count):
        write(folder / "sounds" / f"{i}.wav", tone(200 + 50 * i, 0.25, i))
        lines.append(f"sounds/{i}.wav\t{'abcdefghij'[i]} {'abcdefghij'[i - 1]}")
    (folder / "prompts.tsv").write_text("\n".join(lines) + "\n")
    return folder
