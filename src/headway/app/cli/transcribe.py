"""`headway transcribe`: transcribe audio or video, with timestamps."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, cast

from headway.app.cli.inputs import Failures, report_outcome
from headway.app.cli.options import add_cache, add_server, add_shares, add_verb, integer, load, number, torch_options
from headway.app.cli.terminal import Terminal
from headway.errors import UserError
from headway.io.durable import decode_json

if TYPE_CHECKING:
    from headway.app.shares import JoinedParts
    from headway.domains.audio import FileSound, Segment, SubtitleLines, Transcription

EXAMPLE = """
headway transcribe path/to/whisper-tiny.en talk.mp3                        # one line per segment
headway transcribe hf:openai/whisper-small talk.wav --format srt --out subtitles/
headway transcribe hf:openai/whisper-small film.mp4 --format vtt --max-line-width 42 --max-line-count 2
headway transcribe hf:openai/whisper-small rede.ogg --language de --task translate
headway transcribe hf:openai/whisper-small recordings/ --out transcripts/     # all audio files in the folder and below
headway transcribe path/to/whisper-tiny.en a.flac --word-timestamps --json --weights int8
headway transcribe path/to/whisper-tiny.en recordings/ --part 1/3 --out shares/      # on each machine, its own
headway transcribe --join shares/ --out transcripts/
"""
FILES_PER_BLOCK = 8  # in shares: recordings may be long
FORMATS = ("txt", "json", "srt", "vtt")
Show = Callable[["Segment"], None]
Progress = Any  # of rich, or None if stderr is not a terminal
Transcribe = Callable[["FileSound", Show, Progress], "Transcription"]


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
    out = "write DIR/NAME.FORMAT for each file (default: print to stdout); with --part, the folder that all parts share"
    add_shares(parser, out)
    add(
        "--task",
        choices=("transcribe", "translate"),
        default="transcribe",
        help="transcribe, or translate into English (default: transcribe)",
    )
    add_verb(parser, "transcribe", omit=["task", "words", "vad"])
    add(
        "--temperature",
        type=temperatures,
        default=(0.0, 0.2, 0.4, 0.6, 0.8, 1.0),
        metavar="T,...",
        help="temperatures to try in turn while the text is repetitive or improbable (default: 0,0.2,0.4,0.6,0.8,1)",
    )
    add("--word-timestamps", action="store_true", help="add the time of each word to --json and --format json")
    add("--max-line-width", type=integer(1), metavar="N", help="maximum characters per subtitle line (srt, vtt)")
    add("--max-words-per-line", type=integer(1), metavar="N", help="maximum words per subtitle line (srt, vtt)")
    add(
        "--max-line-count",
        type=integer(1),
        metavar="N",
        help="maximum lines per subtitle (default: 2 with --max-line-width, otherwise 1)",
    )
    add("--no-previous-text", action="store_true", help="do not condition each window on the text before it")
    add("--no-vad", action="store_true", help="also transcribe parts without detected speech")
    add_cache(parser)
    add_server(parser)


def temperatures(text: str) -> tuple[float, ...]:
    """The argparse type of --temperature."""
    return tuple(number(0)(part) for part in text.split(","))


def run(args: argparse.Namespace, terminal: Terminal) -> None:
    from headway.domains.audio import FileSound, SubtitleLines

    lines = None
    width, count, words = args.max_line_width, args.max_line_count, args.max_words_per_line
    if (width, count, words) != (None, None, None):
        if args.format not in ("srt", "vtt"):
            raise UserError(f"subtitle layout needs the format srt or vtt, not {args.format}; add --format srt")
        if width is None and words is None:
            raise UserError("--max-line-count needs a line width; add --max-line-width, for example 42")
        lines = SubtitleLines(width, count or (1 if width is None else 2), words)
    for path in (path for path in args.files if not path.exists()):
        FileSound(path)  # raises the error before a part computes its other files
    sources = expand_paths(args.files)
    targets: Sequence[Path | None] = [None] * len(sources)
    if args.out is not None and args.part is None:
        targets = output_paths(args.out, [name for _, name in sources], args.format)
    elif len(sources) > 1 and args.format in ("srt", "vtt") and args.part is None:
        raise UserError(f"{len(sources)} {args.format} files cannot share stdout; add --out DIR")
    results: list[dict[str, Any]] = []
    failures: Failures = []
    transcribe = None
    with torch_options(args):
        for first, chunk in terminal.chunks([name for _, name in sources], failures, FILES_PER_BLOCK):
            sounds: list[tuple[FileSound, str, Path | None]] = []
            for index in range(first - 1, first - 1 + len(chunk)):  # reject other files before any computation
                path, name = sources[index]
                try:
                    sounds.append((FileSound(path), name, targets[index]))
                except UserError as error:
                    if (path in args.files and args.part is None) or len(failures) + 1 == len(sources):
                        raise
                    failures.append((path, error))
            transcribe = transcribe or open_transcriber(args, lines)
            for sound, name, target in sounds:
                record = None if args.part is None else name
                try:
                    result = transcribe_file(transcribe, sound, target, args.format, terminal, lines, record)
                except UserError as error:  # the file turned out to be damaged; continue with the others
                    failures.append((sound.path, error))
                    continue
                if args.json:
                    results.append(result)
    report_outcome({"results": results}, failures, terminal)


def output_paths(folder: Path, names: Sequence[str], file_format: str) -> list[Path]:
    """The output file of each name, in a folder that is created. Raises UserError for files that exist, and for two of
    the same name.
    """
    from headway.data.array_store import check_output_path
    from headway.io.outputs import check_new

    paths = [folder / f"{name}.{file_format}" for name in names]
    duplicate = next((path for path, count in Counter(paths).items() if count > 1), None)
    if duplicate is not None:
        raise UserError(f"{duplicate} is the output of two files; transcribe them separately, or rename one")
    check_new(*paths)
    for path in {path.parent: path for path in paths}.values():
        check_output_path(path)
    return paths


@dataclass(frozen=True)
class TranscriptRecord:
    """A line of a block, in shares: a file's name relative to its folder, without suffix, and its transcript."""

    name: str
    text: str


def join(parts: JoinedParts, args: argparse.Namespace, terminal: Terminal) -> None:
    """Print the transcripts of all parts, or write them to files with --out, like one process."""
    from headway.config import from_dict
    from headway.data.array_store import output_errors

    def records() -> Iterator[TranscriptRecord]:
        for output in parts.outputs():
            for line in output.split("\n")[:-1]:
                yield from_dict(TranscriptRecord, decode_json(line.encode(), f"a block in {args.join}"))

    file_format = str(parts.manifest.options.get("format"))
    if args.out is None and file_format in ("srt", "vtt") and parts.num_inputs > 1:
        raise UserError(f"{parts.num_inputs} {file_format} files cannot share stdout; add --out DIR")
    paths: list[Path] = []
    if args.out is not None:
        names = [record.name for record in records()]
        outside = next((n for n in names if PurePosixPath(n).is_absolute() or ".." in PurePosixPath(n).parts), None)
        if outside is not None or file_format not in FORMATS:
            raise UserError(f"{args.join} names the file {outside or file_format!r}; run its parts again")
        paths = output_paths(args.out, names, file_format)
    for index, record in enumerate(records()):
        if args.out is None:
            terminal.print(record.text, end="")
            continue
        with output_errors(paths[index]):
            paths[index].write_text(record.text, encoding="utf-8")
    failures: Failures = [(item, UserError(error)) for item, error in parts.failures()]
    report_outcome({"inputs": parts.num_inputs, "parts": parts.manifest.parts}, failures, terminal)


def open_transcriber(args: argparse.Namespace, lines: SubtitleLines | None) -> Transcribe:
    """A function that transcribes a sound, here or on a server, and shows its segments. Raises UserError for settings
    that requests do not support.
    """
    from headway.domains.audio import TranscriptionOptions, TranscriptionStream

    options = TranscriptionOptions(
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
    if args.server is None:
        transcriber = load(args).transcriber(options)

        def transcribe(sound: FileSound, show: Show, progress: Progress) -> Transcription:
            stream = TranscriptionStream(transcriber, sound, progress)
            for segment in stream:  # as they are decoded
                show(segment)
            return stream.transcription()

        return transcribe
    sent = {name: getattr(options, name) for name in ("language", "task", "initial", "words")}
    if options != TranscriptionOptions(**sent):
        raise UserError(
            "--server does not support --beam, --temperature, --seed, --no-vad or --no-previous-text; remove them"
        )
    model: Any = load(args)

    def transcribe_remotely(sound: FileSound, show: Show, progress: Progress) -> Transcription:
        transcription = model.transcribe(
            sound.path, options.language, options.task, prompt=options.initial, words=options.words
        )
        for segment in transcription.segments:
            show(segment)
        return transcription

    return transcribe_remotely


def expand_paths(paths: Sequence[Path]) -> list[tuple[Path, str]]:
    """The given files and the audio files below the given folders, in order, each with its path relative to the folder,
    without suffix. Raises UserError for a folder without audio.
    """
    from headway.domains.audio import AUDIO_EXTENSIONS

    sources: list[tuple[Path, str]] = []
    for path in paths:
        if not path.is_dir():
            sources.append((path, path.stem))
            continue
        files = [
            file for file in sorted(path.rglob("*")) if file.suffix.lower() in AUDIO_EXTENSIONS and file.name[0] != "."
        ]
        if not files:
            raise UserError(
                f"folder {path} contains no audio files ({', '.join(AUDIO_EXTENSIONS)}); pass another folder, or files"
            )
        sources += [(file, str(file.relative_to(path).with_suffix(""))) for file in files]
    return sources


def transcribe_file(
    transcribe: Transcribe,
    sound: FileSound,
    target: Path | None,
    file_format: str,
    terminal: Terminal,
    lines: SubtitleLines | None = None,
    record: str | None = None,
) -> dict[str, Any]:
    """Transcribe a file, and print or write the transcript; in shares, as a `TranscriptRecord` of this name."""
    from headway.data.array_store import output_errors
    from headway.domains.audio import as_dict, format_transcript

    started = time.monotonic()
    live = target is None and file_format == "txt" and record is None
    show = lambda segment: terminal.print(segment.text.strip()) if live else None  # noqa: E731
    with progress_bar(sound.path.name) as progress:
        transcription = transcribe(sound, show, progress)
    seconds = time.monotonic() - started
    no_speech = "" if transcription.segments else ", no speech found"
    terminal.note(f"{sound.path}: {transcription.duration:.1f} s of audio in {seconds:.1f} s{no_speech}")
    if not live:
        text = format_transcript(transcription, cast(Any, file_format), lines)
        if record is not None:
            terminal.print(json.dumps({"name": record, "text": text}))  # in ASCII: a line of its own
        elif target is None:
            terminal.print(text, end="")
        else:
            with output_errors(target):
                target.write_text(text, encoding="utf-8")
    where = {} if target is None else {"output": target}
    return {"file": sound.path, **where, **as_dict(transcription), "seconds": seconds}


@contextmanager
def progress_bar(name: str) -> Iterator[Progress]:
    """A progress bar in seconds on stderr if it is a terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(name, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
