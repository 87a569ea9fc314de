"""Transcripts as files: plain text, JSON, SubRip and WebVTT."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict
from typing import Any, Literal

from headway.domains.audio.transcribe import Segment, Transcription

Format = Literal["txt", "json", "srt", "vtt"]


def written(found: Transcription, form: Format) -> str:
    """A transcript as the content of a file."""
    return _FORMS[form](found)


def as_dict(found: Transcription) -> dict[str, Any]:
    """A transcript as JSON can say it; segments have words only where these were asked for."""
    segments = [{k: v for k, v in asdict(segment).items() if k != "words" or v} for segment in found.segments]
    return {"text": found.text, "language": found.language, "duration": found.duration, "segments": segments}


def _txt(found: Transcription) -> str:
    return _lines(segment.text.strip() for segment in found.segments)


def _json(found: Transcription) -> str:
    return json.dumps(as_dict(found), ensure_ascii=False, indent=2) + "\n"


def _srt(found: Transcription) -> str:
    cues = (f"{number}\n{_cue(segment, ',')}" for number, segment in enumerate(found.segments, 1))
    return _lines(cues)


def _vtt(found: Transcription) -> str:
    return _lines(["WEBVTT\n", *(_cue(segment, ".") for segment in found.segments)])


def _cue(segment: Segment, mark: str) -> str:
    """Its time and text. An arrow within the text would end a cue's time."""
    text = segment.text.strip().replace("-->", "->")
    return f"{clock(segment.start, mark)} --> {clock(segment.end, mark)}\n{text}\n"


def clock(seconds: float, mark: str = ".") -> str:
    """hh:mm:ss.mmm"""
    whole = round(1000 * seconds)
    minutes, rest = divmod(whole, 60_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{rest // 1000:02}{mark}{rest % 1000:03}"


def _lines(lines: Iterable[str]) -> str:
    return "".join(f"{line}\n" for line in lines)


_FORMS: dict[Format, Callable[[Transcription], str]] = {"txt": _txt, "json": _json, "srt": _srt, "vtt": _vtt}
