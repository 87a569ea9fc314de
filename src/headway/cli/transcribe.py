"""`headway transcribe`: sounds to text, with times."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headway.cli.options import add_cache, load, number, torch_options, whole
from headway.cli.terminal import Terminal
from headway.errors import UserError

if TYPE_CHECKING:
    from headway.domains.audio import FileSound, Transcriber, Transcribing, Transcription

EXAMPLE = """
headway transcribe path/to/whisper-tiny.en talk.mp3                        # a line for each segment
headway transcribe openai/whisper-small talk.wav --format srt --out subtitles/
headway transcribe openai/whisper-small rede.ogg --language de --task translate
headway transcribe path/to/whisper-tiny.en a.flac --word-timestamps --json --weights int8
"""
FORMATS = ("txt", "json", "srt", "vtt")
Progress = Any  # of rich, or None where stderr is no terminal


def arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("model", metavar="RUN|MODEL", help="a run directory or a published model")
    add("files", nargs="+", type=Path, metavar="FILE", help="sounds: .wav, .flac, .ogg, .mp3, at any rate")
    add("--format", choices=FORMATS, default="txt", help="plain lines, JSON, SubRip or WebVTT (default: txt)")
    add("--out", type=Path, metavar="DIR", help="write DIR/NAME.FORMAT for each file (default: to stdout)")
    add("--language", metavar="L", help="what is spoken, as in en or de (default: what is heard in the first 30 s)")
    add("--task", choices=("transcribe", "translate"), default="transcribe", help="translate is into English")
    add("--beam", type=whole(1), default=5, metavar="N", help="hypotheses at temperature 0 (default: 5)")
    add(
        "--temperature",
        type=temperatures,
        default=(0.0, 0.2, 0.4, 0.6, 0.8, 1.0),
        metavar="T,...",
        help="tried in turn while a text repeats itself or is in doubt (default: 0,0.2,0.4,0.6,0.8,1)",
    )
    add("--word-timestamps", action="store_true", help="when each word was spoken (in --json and --format json)")
    add("--prompt", default="", metavar="TEXT", help="taken to come before the sound: names, spelling, style")
    add("--no-previous-text", action="store_true", help="do not give each window the text before it")
    add("--no-vad", action="store_true", help="hear silence and noise too, where no voice is detected")
    add_cache(parser)


def temperatures(text: str) -> tuple[float, ...]:
    """A type for --temperature."""
    return tuple(number(0)(part) for part in text.split(","))


def run(args: argparse.Namespace, terminal: Terminal) -> None:
    from headway.domains.audio import FileSound

    sounds = [FileSound(path) for path in args.files]  # what is no sound is known before anything is computed
    places = outputs(args)
    results: list[dict[str, Any]] = []
    failures: list[tuple[Path, UserError]] = []
    with torch_options(args):
        transcriber = load(args).transcriber(settings(args))
        for sound, place in zip(sounds, places):
            try:
                results.append(one(transcriber, sound, place, args.format, terminal))
            except UserError as error:  # damage that shows only as a file is read; the others are worth having
                failures.append((sound.path, error))
    errors = {} if not failures else {"errors": [{"file": path, "error": str(error)} for path, error in failures]}
    terminal.result({"results": results, **errors})
    if failures:
        more = f" ({len(failures) - 1} more failed, see above)" if len(failures) > 1 else ""
        for _, error in failures[1:]:
            terminal.note(f"headway: {error}")
        raise UserError(f"{failures[0][1]}{more}")


def settings(args: argparse.Namespace) -> Transcribing:
    from headway.domains.audio import Transcribing

    return Transcribing(
        language=args.language,
        task=args.task,
        beam=args.beam,
        temperatures=args.temperature,
        initial=args.prompt,
        previous=not args.no_previous_text,
        words=args.word_timestamps,
        seed=args.seed or 0,
        vad=not args.no_vad,
    )


def outputs(args: argparse.Namespace) -> Sequence[Path | None]:
    """Where the transcript of each file goes. UserError for two of one name, and for what cannot be told apart."""
    if args.out is None:
        if len(args.files) > 1 and args.format in ("srt", "vtt"):
            raise UserError(f"{len(args.files)} files as {args.format} on stdout run into one; give --out DIR")
        return [None] * len(args.files)
    places = [args.out / f"{path.stem}.{args.format}" for path in args.files]
    twice = next((place for place in places if places.count(place) > 1), None)
    if twice is not None:
        raise UserError(f"{twice} would be written for two files; transcribe them apart, or rename one")
    args.out.mkdir(parents=True, exist_ok=True)
    return places


def one(
    transcriber: Transcriber, sound: FileSound, place: Path | None, form: str, terminal: Terminal
) -> dict[str, Any]:
    """Transcribe a file, and show or write it."""
    from headway.domains.audio import Telling, Transcription, as_dict

    started = time.monotonic()
    live = place is None and form == "txt"
    with bar(sound.path.name) as progress:
        telling, segments = Telling(transcriber, sound, progress), []
        for segment in telling:
            segments.append(segment)
            if live:
                terminal.say(segment.text.strip())
    text = "".join(segment.text for segment in segments).strip()
    found = Transcription(text, telling.language, telling.duration, segments)
    seconds = time.monotonic() - started
    nothing = "" if segments else ", in which nobody is heard to speak"
    terminal.note(f"{sound.path}: {found.duration:.1f} s of sound in {seconds:.1f} s{nothing}")
    if not live:
        _write(found, place, form, terminal)
    where = {} if place is None else {"output": place}
    return {"file": sound.path, **where, **as_dict(found), "seconds": seconds}


def _write(found: Transcription, place: Path | None, form: Any, terminal: Terminal) -> None:
    from headway.domains.audio import written

    if place is None:
        terminal.say(written(found, form), end="")
    else:
        place.write_text(written(found, form), encoding="utf-8")


@contextmanager
def bar(name: str) -> Iterator[Progress]:
    """A bar of seconds on stderr, where that is a terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task(name, total=None)
        yield lambda done, whole: shown.update(task, completed=done, total=whole)
