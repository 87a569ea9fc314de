"""Audio: sounds from files, resampled, as log-mel frames, classified and transcribed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headway.lazy_imports import lazy_exports

if TYPE_CHECKING:
    from headway.domains.audio.predictors import Sound
    from headway.domains.audio.sound_files import AUDIO_EXTENSIONS, FileSound, SoundInput, read_sound
    from headway.domains.audio.transcriber import (
        Segment,
        SubtitleLines,
        Transcriber,
        Transcription,
        TranscriptionStream,
        advance_together,
        as_dict,
        format_transcript,
    )
    from headway.domains.audio.window_transcriber import Task, TranscriptionOptions
    from headway.domains.audio.word_times import Word

__all__ = [
    "AUDIO_EXTENSIONS",
    "RECIPES",
    "TASKS",
    "VERBS",
    "FileSound",
    "Segment",
    "Sound",
    "SoundInput",
    "SubtitleLines",
    "Task",
    "Transcriber",
    "Transcription",
    "TranscriptionOptions",
    "TranscriptionStream",
    "Word",
    "advance_together",
    "as_dict",
    "format_transcript",
    "read_sound",
]
RECIPES = ("audio", "spoken-digits", "spoken-sequences", "transcription", "masked-sounds")
TASKS = {
    "sounds": "classification",
    "spoken_digits": "sequences",
    "spoken_sequences": "sequences",
    "transcription": "transcription",
    "masked_sounds": "masked_sounds",
}
VERBS = {"classify": "is_audio_classifier", "transcribe": "is_transcriber", "transcriber": "is_transcriber"}
lazy_exports(
    __name__,
    {
        ".predictors": ("Sound",),
        ".sound_files": ("AUDIO_EXTENSIONS", "FileSound", "SoundInput", "read_sound"),
        ".transcriber": (
            "Segment",
            "SubtitleLines",
            "Transcriber",
            "Transcription",
            "TranscriptionStream",
            "advance_together",
            "as_dict",
            "format_transcript",
        ),
        ".window_transcriber": ("Task", "TranscriptionOptions"),
        ".word_times": ("Word",),
    },
)
