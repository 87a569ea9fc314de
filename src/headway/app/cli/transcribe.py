"""`headway transcribe`: transcribe audio or video, with timestamps."""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from headway.app.cli.answers import Failures, conclude
from headway.app.cli.options import add_cache, add_server, load, number, torch_options, whole
from headway.app.cli.terminal import Terminal
from headway.errors import UserError

if TYPE_CHECKING:
    from headway.domains.audio import FileSound, Segment, SubtitleLines, Transcribing, Transcription

EXAMPLE = """
headway transcribe path/to/whisper-tiny.en talk.mp3                        # one line per segment
headway transcribe hf:openai/whisper-small talk.wav --format srt --out subtitles/
headway transcribe hf:openai/whisper-small film.mp4 --format vtt --max-line-width 42 --max-line-count 2
headway transcribe hf:openai/whisper-small rede.ogg --language de --task translate
headway transcribe hf:openai/whisper-small recordings/ --out transcripts/     # all sounds below the folder
headway transcribe path/to/whisper-tiny.en a.flac --word-timestamps --json --weights int8
"""
FORMATS = ("txt", "json", "srt", "vtt")
Show = Callable[["Segment"], None]
Progress = Any  # of rich, or None if stderr is not a terminal
Hear = Callable[["FileSound", Show, Progress], "Transcription"]


def arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("model", metavar="RUN|MODEL", help="run directory or published model")
    add(
        "files",
        nargs="+",
        type=Path,
        metavar="FILE|FOLDER",
        help="audio or video at any sample rate (.wav, .flac, .ogg, .mp3, .m4a, .mp4, .webm, ...), or a folder of them",
    )
    add(
        "--format",
        choices=FORMATS,
        default="txt",
        help="output format: plain text, JSON, SubRip or WebVTT (default: txt)",
    )
    add("--out", type=Path, metavar="DIR", help="write DIR/NAME.FORMAT for each file (default: print to stdout)")
    add("--language", metavar="L", help="spoken language, such as en or de (default: detected in the first 30 s)")
    add(
        "--task",
        choices=("transcribe", "translate"),
        default="transcribe",
        help="transcribe, or translate into English (default: transcribe)",
    )
    add("--beam", type=whole(1), default=5, metavar="N", help="beams at temperature 0 (default: 5)")
    add(
        "--temperature",
        type=temperatures,
        default=(0.0, 0.2, 0.4, 0.6, 0.8, 1.0),
        metavar="T,...",
        help="temperatures to try in turn while the text is repetitive or improbable (default: 0,0.2,0.4,0.6,0.8,1)",
    )
    add("--word-timestamps", action="store_true", help="add the time of each word to --json and --format json")
    add("--max-line-width", type=whole(1), metavar="N", help="maximum characters per subtitle line (srt, vtt)")
    add("--max-words-per-line", type=whole(1), metavar="N", help="maximum words per subtitle line (srt, vtt)")
    add(
        "--max-line-count",
        type=whole(1),
        metavar="N",
        help="maximum lines per subtitle (default: 2 with --max-line-width, otherwise 1)",
    )
    add(
        "--prompt", default="", metavar="TEXT", help="text assumed to precede the audio; sets names, spelling and style"
    )
    add("--no-previous-text", action="store_true", help="do not condition each window on the text before it")
    add("--no-vad", action="store_true", help="also transcribe parts without detected speech")
    add_cache(parser)
    add_server(parser)


def temperatures(text: str) -> tuple[float, ...]:
    """The argparse type of --temperature."""
    return tuple(number(0)(part) for part in text.split(","))


def run(args: argparse.Namespace, terminal: Terminal) -> None:
    from headway.domains.audio import FileSound

    lines = line_settings(args)
    named = listed(args.files)
    places = outputs(args, [name for _, name in named])
    sounds: list[tuple[FileSound, Path | None]] = []
    results: list[dict[str, Any]] = []
    failures: Failures = []
    for (path, _), place in zip(named, places):  # reject files that are not audio before any computation
        try:
            sounds.append((FileSound(path), place))
        except UserError as error:
            if path in args.files or len(failures) + 1 == len(named):
                raise
            failures.append((path, error))
    with torch_options(args):
        hear = here(args, lines) if args.server is None else at_server(args, lines)
        for sound, place in sounds:
            try:
                results.append(one(hear, sound, place, args.format, terminal, lines))
            except UserError as error:  # damage found while decoding; continue with the other files
                failures.append((sound.path, error))
    conclude({"results": results}, failures, terminal)


def here(args: argparse.Namespace, lines: SubtitleLines | None) -> Hear:
    """A function that transcribes with the local model and shows segments as they are decoded."""
    from headway.domains.audio import Telling

    transcriber = load(args).transcriber(settings(args, lines))

    def hear(sound: FileSound, show: Show, progress: Progress) -> Transcription:
        telling = Telling(transcriber, sound, progress)
        for segment in telling:
            show(segment)
        return telling.transcription()

    return hear


def at_server(args: argparse.Namespace, lines: SubtitleLines | None) -> Hear:
    """A function that transcribes on a server. Raises UserError for settings that requests cannot have."""
    asked = settings(args, lines)
    plain = replace(type(asked)(), language=asked.language, task=asked.task, initial=asked.initial, words=asked.words)
    if asked != plain:
        raise UserError(
            "--server does not support --beam, --temperature, --seed, --no-vad and --no-previous-text; remove them"
        )
    model = load(args)

    def hear(sound: FileSound, show: Show, progress: Progress) -> Transcription:
        found: Any = model.transcribe(sound.path, asked.language, asked.task, prompt=asked.initial, words=asked.words)
        for segment in found.segments:
            show(segment)
        return found

    return hear


def settings(args: argparse.Namespace, lines: SubtitleLines | None) -> Transcribing:
    from headway.domains.audio import Transcribing

    return Transcribing(
        language=args.language,
        task=args.task,
        beam=args.beam,
        temperatures=args.temperature,
        initial=args.prompt,
        previous=not args.no_previous_text,
        words=args.word_timestamps or lines is not None,
        seed=args.seed or 0,
        vad=not args.no_vad,
    )


def line_settings(args: argparse.Namespace) -> SubtitleLines | None:
    """The requested subtitle layout, if any. Raises UserError for invalid combinations."""
    from headway.domains.audio import SubtitleLines

    width, count, words = args.max_line_width, args.max_line_count, args.max_words_per_line
    if width is None and count is None and words is None:
        return None
    if args.format not in ("srt", "vtt"):
        raise UserError(f"subtitle layout needs the format srt or vtt, not {args.format}; add --format srt")
    if width is None and words is None:
        raise UserError("--max-line-count needs a line width; add --max-line-width, for example 42")
    return SubtitleLines(width, count or (1 if width is None else 2), words)


def listed(paths: Sequence[Path]) -> list[tuple[Path, str]]:
    """The given files and the sounds below the given folders, in order, each with its path relative to the folder,
    without suffix. Raises UserError for a folder without sounds.
    """
    from headway.domains.audio import KINDS

    found: list[tuple[Path, str]] = []
    for path in paths:
        if not path.is_dir():
            found.append((path, path.stem))
            continue
        files = [file for file in sorted(path.rglob("*")) if file.suffix.lower() in KINDS and file.name[0] != "."]
        if not files:
            raise UserError(f"folder {path} contains no sounds ({', '.join(KINDS)}); pass another folder, or files")
        found += [(file, str(file.relative_to(path).with_suffix(""))) for file in files]
    return found


def outputs(args: argparse.Namespace, names: Sequence[str]) -> Sequence[Path | None]:
    """The output path of each file. Raises UserError if two are equal, or if subtitles would mix on stdout."""
    from headway.data.store import check_out
    from headway.outputs import check_new

    if args.out is None:
        if len(names) > 1 and args.format in ("srt", "vtt"):
            raise UserError(f"{len(names)} {args.format} files cannot share stdout; add --out DIR")
        return [None] * len(names)
    places = [args.out / f"{name}.{args.format}" for name in names]
    twice = next((place for place, count in Counter(places).items() if count > 1), None)
    if twice is not None:
        raise UserError(f"{twice} is the output of two files; transcribe them separately, or rename one")
    check_new(*places)
    for place in {place.parent: place for place in places}.values():
        check_out(place)
    return places


def one(
    hear: Hear,
    sound: FileSound,
    place: Path | None,
    form: str,
    terminal: Terminal,
    lines: SubtitleLines | None = None,
) -> dict[str, Any]:
    """Transcribe a file, and print or write the transcript."""
    from headway.data.store import taking
    from headway.domains.audio import as_dict, written

    started = time.monotonic()
    live = place is None and form == "txt"
    show = lambda segment: terminal.say(segment.text.strip()) if live else None  # noqa: E731
    with bar(sound.path.name) as progress:
        found = hear(sound, show, progress)
    seconds = time.monotonic() - started
    nothing = "" if found.segments else ", no speech found"
    terminal.note(f"{sound.path}: {found.duration:.1f} s of audio in {seconds:.1f} s{nothing}")
    if not live:
        text = written(found, cast(Any, form), lines)
        if place is None:
            terminal.say(text, end="")
        else:
            with taking(place):
                place.write_text(text, encoding="utf-8")
    where = {} if place is None else {"output": place}
    return {"file": sound.path, **where, **as_dict(found), "seconds": seconds}


@contextmanager
def bar(name: str) -> Iterator[Progress]:
    """A progress bar in seconds on stderr if it is a terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task(name, total=None)
        yield lambda done, whole: shown.update(task, completed=done, total=whole)
