"""Sounds in one folder per class for the tutorial: notes of four synthetic instruments.

python examples/instruments.py sounds [EACH]      # EACH notes per instrument (default: 60)
"""

from __future__ import annotations

import sys
import wave
from pathlib import Path

import numpy as np

RATE = 16_000  # samples per second


def note(instrument: str, rng: np.random.Generator) -> np.ndarray:
    """One second of a note between 110 and 880 Hz, with some noise: float [RATE]."""
    time, pitch = np.arange(RATE) / RATE, 110 * 2 ** rng.uniform(0, 3)
    phase = 2 * np.pi * pitch * time
    if instrument == "flute":
        sound = np.sin(phase) + 0.1 * np.sin(2 * phase)
    elif instrument == "clarinet":
        sound = sum(np.sin(n * phase) / n for n in (1, 3, 5, 7))
    elif instrument == "violin":
        sound = sum(np.sin(n * (phase + 0.3 * np.sin(2 * np.pi * 5.5 * time))) / n for n in range(1, 9))
    else:  # guitar: a decaying string
        sound = sum(np.sin(n * phase) * np.exp(-3 * n * time) / n for n in range(1, 9))
    envelope = np.minimum(1, time / 0.05) * np.minimum(1, (1 - time) / 0.05)
    return sound * envelope * rng.uniform(0.2, 0.5) + rng.normal(0, 0.02, RATE)


def main() -> None:
    folder, each = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 60
    rng = np.random.default_rng(0)
    for instrument in ("clarinet", "flute", "guitar", "violin"):
        (folder / instrument).mkdir(parents=True, exist_ok=True)
        for number in range(each):
            samples = (np.clip(note(instrument, rng), -1, 1) * 32767).astype("<i2")
            with wave.open(str(folder / instrument / f"{number:03}.wav"), "wb") as file:
                file.setnchannels(1)
                file.setsampwidth(2)
                file.setframerate(RATE)
                file.writeframes(samples.tobytes())
    print(f"wrote {4 * each} sounds to {folder}")


if __name__ == "__main__":
    main()
