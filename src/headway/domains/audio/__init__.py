"""Sounds: read from files, brought to one rate, seen as log-mel frames, classified, and transcribed."""

from headway.domains.audio.listener import Transcribing
from headway.domains.audio.marks import Marks, Task
from headway.domains.audio.recipes import RECIPES
from headway.domains.audio.sound import KINDS, FileSound, Given, open_sound, read_sound
from headway.domains.audio.subtitles import Format, SubtitleLines, as_dict, written
from headway.domains.audio.transcribe import Segment, Telling, Transcriber, Transcription
from headway.domains.audio.use import Sound, classify
from headway.domains.audio.windows import hears
from headway.domains.audio.words import Word

__all__ = [
    "KINDS",
    "RECIPES",
    "FileSound",
    "Format",
    "Given",
    "Marks",
    "Segment",
    "Sound",
    "SubtitleLines",
    "Task",
    "Telling",
    "Transcriber",
    "Transcribing",
    "Transcription",
    "Word",
    "as_dict",
    "classify",
    "hears",
    "open_sound",
    "read_sound",
    "written",
]
