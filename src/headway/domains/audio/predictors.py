"""Models of sounds at work: classes and transcripts of one sound or of many."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from headway import given
from headway.domains.audio import use
from headway.domains.audio.listener import Transcribing
from headway.domains.audio.marks import Task
from headway.domains.audio.sound import Given, open_sound
from headway.domains.audio.transcribe import Transcriber, Transcription
from headway.given import typed
from headway.handle import Handle

Labels = dict[str, float]


@typed
def classify(model: Handle, items: Any, truncate: bool = False) -> Labels | list[Labels]:
    asked, failed = given.sounds(items), given.Failed()
    said = use.classify(model.module, model.usage, asked.items, str(model.directory), truncate, failed)
    return asked.answer(said, failed, "sound")


@typed
def transcribe(
    model: Handle,
    sound: Given | Iterable[Given],
    language: str | None = None,
    task: Task = "transcribe",
    beam: int = 5,
    prompt: str = "",
    words: bool = False,
    seed: int = 0,
    vad: bool = True,
) -> Transcription | list[Transcription]:
    config = Transcribing(language, task, beam, initial=prompt, words=words, seed=seed, vad=vad)
    asked, by, failed = given.sounds(sound), transcriber(model, config), given.Failed()
    found = list(given.each(asked.items, lambda _, each: by.transcribe(open_sound(each)), failed))
    return asked.answer(found, failed, "sound")


def transcriber(model: Handle, config: Transcribing) -> Transcriber:
    generator: Any = model.generator  # which hears, as the module does
    return Transcriber(model.module, generator, model.codec, model.usage, config)
