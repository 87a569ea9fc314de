"""What a model does with images and sounds."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeGuard, cast, overload

from torch import nn

from headway import given
from headway.domains import audio, image_text, vision
from headway.errors import UserError
from headway.generate import SearchConfig
from headway.given import typed
from headway.loaded import Loaded, Texts
from headway.models import Captioner, EncoderDecoder, FramesEmbed, PatchEmbedConfig, Transformer, TwoTower


class Senses(Loaded):
    """Captions, transcriptions, matches of images with texts, and where a model of images looks."""

    @overload
    def caption(
        self, images: image_text.Image, beam: int = ..., length_penalty: float = ..., n_best: None = ...
    ) -> str: ...

    @overload
    def caption(
        self, images: image_text.Image, beam: int = ..., length_penalty: float = ..., *, n_best: int
    ) -> list[str]: ...

    @overload
    def caption(
        self, images: Iterable[image_text.Image], beam: int = ..., length_penalty: float = ..., n_best: None = ...
    ) -> list[str]: ...

    @overload
    def caption(
        self, images: Iterable[image_text.Image], beam: int = ..., length_penalty: float = ..., *, n_best: int
    ) -> list[list[str]]: ...

    @typed
    def caption(
        self,
        images: image_text.Image | Iterable[image_text.Image],
        beam: int = 4,
        length_penalty: float = 0.6,
        n_best: int | None = None,
    ) -> str | list[str] | list[list[str]]:
        """The best caption of an image, or of each of many; with `n_best`, a list of the best ones for each.

        Images are files or pixels, uint8 [height, width, 3].

        beam: the width of the search; 1 is greedy.

        Raises UserError for a model that writes no captions.
        """
        if not isinstance(self.module, Captioner):
            raise UserError(f"{self.directory} cannot write captions; use a run of `caption`, or another with a tower")
        task = None if self.recipe is None else self.recipe.task
        longest = task.longest if isinstance(task, image_text.CaptionsConfig) else image_text.LONGEST
        asked, search = given.images(images), SearchConfig(beam, length_penalty, 1 if n_best is None else n_best)
        writer = cast(Captioner, self.generator)
        source, failed = str(self.directory), given.Failed()
        found = image_text.caption(writer, self.codec, self.usage, asked.items, source, search, longest, failed)
        return asked.answer([best[0] for best in found] if n_best is None else found, failed, "image")

    @overload
    def transcribe(
        self,
        sound: audio.Given,
        language: str | None = ...,
        task: audio.Task = ...,
        beam: int = ...,
        prompt: str = ...,
        words: bool = ...,
        seed: int = ...,
    ) -> audio.Transcription: ...

    @overload
    def transcribe(
        self,
        sound: Iterable[audio.Given],
        language: str | None = ...,
        task: audio.Task = ...,
        beam: int = ...,
        prompt: str = ...,
        words: bool = ...,
        seed: int = ...,
    ) -> list[audio.Transcription]: ...

    @typed
    def transcribe(
        self,
        sound: audio.Given | Iterable[audio.Given],
        language: str | None = None,
        task: audio.Task = "transcribe",
        beam: int = 5,
        prompt: str = "",
        words: bool = False,
        seed: int = 0,
        vad: bool = True,
    ) -> audio.Transcription | list[audio.Transcription]:
        """The transcript of a sound, or of each of many, with times. Sounds are files or samples at 16 kHz, [N] or [N,
        channels].

        language: None detects it in the first 30 s.
        task: "translate" translates into English.
        prompt: text that is taken to come before the sound.
        words: also return the time of each word.
        vad: leave out stretches without a voice.

        `transcriber` takes all settings.

        Raises UserError for a model that hears no sounds, and for damaged files.
        """
        config = audio.Transcribing(language, task, beam, initial=prompt, words=words, seed=seed, vad=vad)
        asked, transcriber = given.sounds(sound), self.transcriber(config)
        failed = given.Failed()
        found = list(given.each(asked.items, lambda _, each: transcriber.transcribe(audio.open_sound(each)), failed))
        return asked.answer(found, failed, "sound")

    def transcriber(self, config: audio.Transcribing) -> audio.Transcriber:
        """A transcriber with all settings, for many sounds or for a stream. Errors as for `transcribe`."""
        if not isinstance(self.module, EncoderDecoder) or not isinstance(self.module.encoder.embed, FramesEmbed):
            raise UserError(f"{self.directory} cannot read sounds; use a model that can, such as a Whisper")
        return audio.Transcriber(self.module, cast(Any, self.generator), self.codec, self.usage, config)

    @overload
    def look(self, images: vision.Image) -> vision.Look: ...

    @overload
    def look(self, images: Iterable[vision.Image]) -> list[vision.Look]: ...

    def look(self, images: vision.Image | Iterable[vision.Image]) -> vision.Look | list[vision.Look]:
        """Where a model of images looks in an image, or in each of many: its attention rolled out over the layers.
        `picture()` of the result draws it. Raises UserError for a model that reads no images.
        """
        if not sees(self.module):
            raise UserError(f"{self.directory} does not read images; use attention")
        asked = given.images(images)
        return asked.answer(vision.look(self.module, self.usage, asked.items, str(self.directory)))

    @typed
    def match(
        self,
        images: image_text.Image | Iterable[image_text.Image],
        texts: str | Texts,
        templates: str | Texts = (),
        truncate: bool = False,
    ) -> image_text.Matches:
        """How well images (files or pixels) and texts go together: cosine similarities [N, M], and probabilities of the
        texts for each image. An axis is left out if a single image or a single text is given.

        For zero-shot classification, give the names of the classes as texts and `templates` such as "a photo of a {}":
        each class is then the mean vector of its filled templates. Raises UserError for a model without a joint space.
        """
        if not matches(self.module):
            kind = type(self.module).__name__
            raise UserError(f"{self.directory} is a {kind}, which cannot match images and texts; use a CLIP or SigLIP")
        source = str(self.directory)
        seen, read, forms = given.images(images), given.texts(texts), given.texts(templates, "template").items
        failed = given.Failed()
        found = image_text.match(
            self.module, self.codec, self.usage, seen.items, read.items, forms, truncate, source=source, failed=failed
        )
        if failed:
            seen.answer(image_text.Matches(*(each[:, 0] if read.one else each for each in found)), failed, "image")
        kept = (0 if seen.one else slice(None), 0 if read.one else slice(None))
        return image_text.Matches(*(each[kept] for each in found))


def matches(module: nn.Module) -> TypeGuard[TwoTower]:
    """Whether a model has a space that images and texts share."""
    return isinstance(module, TwoTower)


def sees(module: nn.Module) -> TypeGuard[Transformer]:
    """Whether a model reads images."""
    return isinstance(module, Transformer) and isinstance(module.config.embed, PatchEmbedConfig)
