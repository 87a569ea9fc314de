"""Transcripts as files: plain text, JSON, SubRip and WebVTT."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

from headway.domains.audio.activity import PAUSE
from headway.domains.audio.transcribe import Segment, Transcription
from headway.domains.audio.words import Word
from headway.errors import ConfigError, UserError

Format = Literal["txt", "json", "srt", "vtt"]


@dataclass(frozen=True)
class SubtitleLines:
    """The layout of words in subtitles, across segments: maximum characters and words per line, and lines per subtitle;
    None for no limit. A longer word gets its own line.
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


def written(found: Transcription, form: Format, lines: SubtitleLines | None = None) -> str:
    """A transcript as the content of a file. `lines` lay out subtitles with word times (`words`); UserError without
    them, and for other formats.
    """
    if lines is not None and form not in ("srt", "vtt"):
        raise UserError(f"line options need srt or vtt, not {form}; choose one of them, or leave the options out")
    if form == "txt":
        return _lines(segment.text.strip() for segment in found.segments)
    if form == "json":
        return json.dumps(as_dict(found), ensure_ascii=False, indent=2) + "\n"
    cues = list(_cues(found.segments, lines))
    if form == "srt":
        return _lines(f"{number}\n{_cue(cue, ',')}" for number, cue in enumerate(cues, 1))
    return _lines(["WEBVTT\n", *(_cue(cue, ".") for cue in cues)])


def as_dict(found: Transcription) -> dict[str, Any]:
    """A transcript as a JSON object; segments have words only if requested."""
    segments = [{k: v for k, v in asdict(segment).items() if k != "words" or v} for segment in found.segments]
    return {"text": found.text, "language": found.language, "duration": found.duration, "segments": segments}


class Cue(NamedTuple):
    """A subtitle: its text from `start` to `end` seconds."""

    start: float
    end: float
    text: str


def _cues(segments: Sequence[Segment], lines: SubtitleLines | None) -> Iterator[Cue]:
    """One subtitle per segment, or as many as `lines` requires; none spans a pause."""
    if lines is None:
        yield from (Cue(segment.start, segment.end, segment.text.strip()) for segment in segments)
        return
    if not all(segment.words for segment in segments):
        raise UserError("line options need word times, which this transcript does not have; request words")
    shown: list[list[Word]] = []
    for line in _laid_out([word for segment in segments for word in segment.words], lines):
        paused = bool(shown) and line[0].start - shown[-1][-1].end >= PAUSE
        if paused or len(shown) == lines.max_line_count:
            yield _shown(shown)
            shown = []
        shown.append(line)
    if shown:
        yield _shown(shown)


def _laid_out(words: Sequence[Word], lines: SubtitleLines) -> Iterator[list[Word]]:
    """The words of each line; a pause also ends a line."""
    line: list[Word] = []
    for word in words:
        wide = lines.max_line_width is not None and len(_text([*line, word])) > lines.max_line_width
        paused = bool(line) and word.start - line[-1].end >= PAUSE
        if line and (wide or paused or len(line) == lines.max_words_per_line):
            yield line
            line = []
        line.append(word)
    if line:
        yield line


def _shown(lines: Sequence[Sequence[Word]]) -> Cue:
    return Cue(lines[0][0].start, lines[-1][-1].end, "\n".join(map(_text, lines)))


def _text(words: Sequence[Word]) -> str:
    return "".join(word.word for word in words).strip()


def _cue(cue: Cue, mark: str) -> str:
    """The times and text. An arrow in the text would look like another time."""
    text = cue.text.replace("-->", "->")
    return f"{clock(cue.start, mark)} --> {clock(cue.end, mark)}\n{text}\n"


def clock(seconds: float, mark: str = ".") -> str:
    """hh:mm:ss.mmm"""
    whole = round(1000 * seconds)
    minutes, rest = divmod(whole, 60_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{rest // 1000:02}{mark}{rest % 1000:03}"


def _lines(lines: Iterable[str]) -> str:
    return "".join(f"{line}\n" for line in lines)
