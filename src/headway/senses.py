"""What a model does with images and sounds."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeGuard, cast, overload

from torch import nn

from headway import given
from headway.domains import audio, image_text, vision
from headway.domains.image_text.caption import LONGEST
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
        """The best caption of an image, a file or its pixels, uint8 [height, width, 3], or of each of many; a list of
        the `n_best` best ones of each where that is given. A beam of 1 is greedy. UserError for a model that writes of
        no images.
        """
        if not isinstance(self.module, Captioner):
            raise UserError(f"{self.directory} writes of no images; use a run of `caption`, or another with a tower")
        task = None if self.recipe is None else self.recipe.task
        longest = task.longest if isinstance(task, image_text.CaptionsConfig) else LONGEST
        asked, search = given.images(images), SearchConfig(beam, length_penalty, 1 if n_best is None else n_best)
        writer = cast(Captioner, self.generator)
        found = image_text.caption(writer, self.codec, self.usage, asked.items, str(self.directory), search, longest)
        return asked.answer([best[0] for best in found] if n_best is None else found)

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
        """What is said in a sound, or in each of many, with times: a file, or samples at 16,000 a second, [N] or
        [N, channels].

        The task "translate" is into English. `language` None is what is heard in the first 30 s; `prompt` is text that
        is taken to come before the sound; `words` gives each word its time; without `vad` silence and noise are heard
        too, where no voice is detected. `transcriber` takes all settings. UserError for a model that hears no sounds,
        and for what is no sound, or a damaged one.
        """
        config = audio.Transcribing(language, task, beam, initial=prompt, words=words, seed=seed, vad=vad)
        asked, transcriber = given.sounds(sound), self.transcriber(config)
        opened = [audio.open_sound(each) for each in asked.items]  # what is no sound is known before the first is heard
        return asked.answer([transcriber.transcribe(each) for each in opened])

    def transcriber(self, config: audio.Transcribing) -> audio.Transcriber:
        """What transcribes many sounds in the same way, or one piece by piece. Errors as of `transcribe`."""
        if not isinstance(self.module, EncoderDecoder) or not isinstance(self.module.encoder.embed, FramesEmbed):
            raise UserError(f"{self.directory} hears no sounds; give a model that does, such as a Whisper")
        return audio.Transcriber(self.module, cast(Any, self.generator), self.codec, self.usage, config)

    @overload
    def look(self, images: vision.Image) -> vision.Look: ...

    @overload
    def look(self, images: Iterable[vision.Image]) -> list[vision.Look]: ...

    def look(self, images: vision.Image | Iterable[vision.Image]) -> vision.Look | list[vision.Look]:
        """Where a model of images looks in one, or in each of many: attention rolled out over its layers. `picture()`
        draws it.
        """
        if not sees(self.module):
            raise UserError(f"{self.directory} reads no images, so it looks at none; use attention")
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
        """How images (files or their pixels) and texts go together: cosines [N, M], and the probabilities of the texts
        for each image. An axis is left out where one image or one text is given by itself.

        A zero-shot classifier gives the names of classes as texts, and `templates` such as "a photo of a {}": a class
        is then the mean of what they make of its name.
        """
        if not matches(self.module):
            kind = type(self.module).__name__
            raise UserError(f"{self.directory} is a {kind}, which matches nothing; use a CLIP or SigLIP")
        source = str(self.directory)
        seen, read, forms = given.images(images), given.texts(texts), given.texts(templates, "template").items
        found = image_text.match(
            self.module, self.codec, self.usage, seen.items, read.items, forms, truncate, source=source
        )
        kept = (0 if seen.one else slice(None), 0 if read.one else slice(None))
        return image_text.Matches(*(each[kept] for each in found))


def matches(module: nn.Module) -> TypeGuard[TwoTower]:
    """Whether a model has a space that images and texts share."""
    return isinstance(module, TwoTower)


def sees(module: nn.Module) -> TypeGuard[Transformer]:
    """Whether a model reads images."""
    return isinstance(module, Transformer) and isinstance(module.config.embed, PatchEmbedConfig)
