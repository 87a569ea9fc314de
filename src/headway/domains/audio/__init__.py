"""Audio: sounds from files, resampled, as log-mel frames, classified and transcribed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headway.lazily import lazily

if TYPE_CHECKING:
    from headway.domains.audio.listener import Task, Transcribing, WhisperTokens
    from headway.domains.audio.predictors import Sound
    from headway.domains.audio.sound import KINDS, FileSound, Given, read_sound
    from headway.domains.audio.subtitles import Format, SubtitleLines, as_dict, written
    from headway.domains.audio.transcribe import TOGETHER, Segment, Telling, Transcriber, Transcription, tell_on
    from headway.domains.audio.words import Word

__all__ = [
    "KINDS",
    "RECIPES",
    "TASKS",
    "TOGETHER",
    "VERBS",
    "FileSound",
    "Format",
    "Given",
    "Segment",
    "Sound",
    "SubtitleLines",
    "Task",
    "Telling",
    "Transcriber",
    "Transcribing",
    "Transcription",
    "WhisperTokens",
    "Word",
    "as_dict",
    "read_sound",
    "tell_on",
    "written",
]
RECIPES = ("audio", "spoken-digits", "spoken-sequences", "transcription")
TASKS = {
    "sounds": "classification",
    "spoken_digits": "sequences",
    "spoken_sequences": "sequences",
    "transcription": "transcription",
}
VERBS = {"classify": "is_audio_classifier", "transcribe": "is_transcriber", "transcriber": "is_transcriber"}
lazily(
    __name__,
    {
        ".listener": ("Task", "Transcribing", "WhisperTokens"),
        ".predictors": ("Sound",),
        ".sound": ("FileSound", "Given", "KINDS", "read_sound"),
        ".subtitles": ("Format", "SubtitleLines", "as_dict", "written"),
        ".transcribe": ("Segment", "TOGETHER", "Telling", "Transcriber", "Transcription", "tell_on"),
        ".words": ("Word",),
    },
)
