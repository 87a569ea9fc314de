"""Transcripts as files: plain text, JSON, SubRip and WebVTT."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

from headway.domains.audio.transcriber import Segment, Transcription
from headway.domains.audio.voice_activity import PAUSE
from headway.domains.audio.word_times import Word
from headway.errors import ConfigError, UserError

Format = Literal["txt", "json", "srt", "vtt"]


@dataclass(frozen=True)
class SubtitleLines:
    """Subtitle layout across segments: maximum characters and words per line, and lines per subtitle (None: no limit).
    A longer word gets its own line.
    """

    max_line_width: int | None = None
    max_line_count: int | None = None
    max_words_per_line: int | None = None

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value}; use an integer of at least 1")
        if self.max_line_width is None and self.max_words_per_line is None:
            raise ConfigError("subtitle lines have no limit; set max_line_width or max_words_per_line")


def format_transcript(transcript: Transcription, format: Format, lines: SubtitleLines | None = None) -> str:
    """A transcript as file content. `lines` lays out subtitles by word times (`words`); UserError without them, or for
    other formats.
    """
    if lines is not None and format not in ("srt", "vtt"):
        raise UserError(f"line options need srt or vtt, not {format}; choose one of these, or omit the options")
    if format == "txt":
        return _join_lines(segment.text.strip() for segment in transcript.segments)
    if format == "json":
        return json.dumps(as_dict(transcript), ensure_ascii=False, indent=2) + "\n"
    cues = list(_cues(transcript.segments, lines))
    if format == "srt":
        return _join_lines(f"{number}\n{_format_cue(cue, ',')}" for number, cue in enumerate(cues, 1))
    return _join_lines(["WEBVTT\n", *(_format_cue(cue, ".") for cue in cues)])


def as_dict(transcript: Transcription) -> dict[str, Any]:
    """A transcript as a JSON object; segments have words only if requested."""
    segments = [{k: v for k, v in asdict(segment).items() if k != "words" or v} for segment in transcript.segments]
    return {
        "text": transcript.text,
        "language": transcript.language,
        "duration": transcript.duration,
        "segments": segments,
    }


class Cue(NamedTuple):
    """A subtitle: its text from `start` to `end` seconds."""

    start: float
    end: float
    text: str


def _cues(segments: Sequence[Segment], lines: SubtitleLines | None) -> Iterator[Cue]:
    """One subtitle per segment, or as many as `lines` requires. Subtitles never span a pause."""
    if lines is None:
        yield from (Cue(segment.start, segment.end, segment.text.strip()) for segment in segments)
        return
    if not all(segment.words for segment in segments):
        raise UserError("line options need word times, which this transcript does not have; request words")
    cue_lines: list[list[Word]] = []
    for line in _split_lines([word for segment in segments for word in segment.words], lines):
        is_pause = bool(cue_lines) and line[0].start - cue_lines[-1][-1].end >= PAUSE
        if is_pause or len(cue_lines) == lines.max_line_count:
            yield _lines_to_cue(cue_lines)
            cue_lines = []
        cue_lines.append(line)
    if cue_lines:
        yield _lines_to_cue(cue_lines)


def _split_lines(words: Sequence[Word], lines: SubtitleLines) -> Iterator[list[Word]]:
    """The words of each line; a pause also ends a line."""
    line: list[Word] = []
    for word in words:
        is_too_wide = lines.max_line_width is not None and len(_join_words([*line, word])) > lines.max_line_width
        is_pause = bool(line) and word.start - line[-1].end >= PAUSE
        if line and (is_too_wide or is_pause or len(line) == lines.max_words_per_line):
            yield line
            line = []
        line.append(word)
    if line:
        yield line


def _lines_to_cue(lines: Sequence[Sequence[Word]]) -> Cue:
    return Cue(lines[0][0].start, lines[-1][-1].end, "\n".join(map(_join_words, lines)))


def _join_words(words: Sequence[Word]) -> str:
    return "".join(word.word for word in words).strip()


def _format_cue(cue: Cue, separator: str) -> str:
    """The times and text. An arrow in the text would look like another time."""
    text = cue.text.replace("-->", "->")
    return f"{format_time(cue.start, separator)} --> {format_time(cue.end, separator)}\n{text}\n"


def format_time(seconds: float, separator: str = ".") -> str:
    """hh:mm:ss.mmm"""
    milliseconds = round(1000 * seconds)
    minutes, remainder = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{remainder // 1000:02}{separator}{remainder % 1000:03}"


def _join_lines(lines: Iterable[str]) -> str:
    return "".join(f"{line}\n" for line in lines)
