"""What a model does with images and sounds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeGuard, cast, overload

from torch import nn

from headway.domains import audio, image_text, vision
from headway.domains.image_text.caption import LONGEST
from headway.errors import UserError
from headway.generate import SearchConfig
from headway.loaded import Loaded, Texts
from headway.models import Captioner, EncoderDecoder, FramesEmbed, PatchEmbedConfig, Transformer, TwoTower


class Senses(Loaded):
    """Captions, transcriptions, matches of images with texts, and where a model of images looks."""

    @overload
    def caption(
        self, images: Sequence[image_text.Image], beam: int = ..., length_penalty: float = ..., n_best: None = ...
    ) -> list[str]: ...

    @overload
    def caption(
        self, images: Sequence[image_text.Image], beam: int = ..., length_penalty: float = ..., *, n_best: int
    ) -> list[list[str]]: ...

    def caption(
        self, images: Sequence[image_text.Image], beam: int = 4, length_penalty: float = 0.6, n_best: int | None = None
    ) -> list[str] | list[list[str]]:
        """The best caption of each image, a file or its pixels, uint8 [height, width, 3]; a list of the `n_best` best
        ones of each where that is given. A beam of 1 is greedy. UserError for a model that writes of no images.
        """
        if not isinstance(self.module, Captioner):
            raise UserError(f"{self.directory} writes of no images; use a run of `caption`, or another with a tower")
        task = None if self.recipe is None else self.recipe.task
        longest = task.longest if isinstance(task, image_text.CaptionsConfig) else LONGEST
        search = SearchConfig(beam, length_penalty, n_best or 1)
        writer = cast(Captioner, self.generator)
        found = image_text.caption(writer, self.codec, self.usage, images, str(self.directory), search, longest)
        return [best[0] for best in found] if n_best is None else found

    def transcribe(
        self,
        sound: audio.Given,
        language: str | None = None,
        task: audio.Task = "transcribe",
        beam: int = 5,
        prompt: str = "",
        words: bool = False,
        seed: int = 0,
        vad: bool = True,
    ) -> audio.Transcription:
        """What is said in a sound, with times: a file, or samples at 16,000 a second, [N] or [N, channels].

        The task "translate" is into English. `language` None is what is heard in the first 30 s; `prompt` is text that
        is taken to come before the sound; `words` gives each word its time; without `vad` silence and noise are heard
        too, where no voice is detected. `transcriber` takes all settings. UserError for a model that hears no sounds,
        and for what is no sound, or a damaged one.
        """
        config = audio.Transcribing(language, task, beam, initial=prompt, words=words, seed=seed, vad=vad)
        return self.transcriber(config).transcribe(sound)

    def transcriber(self, config: audio.Transcribing) -> audio.Transcriber:
        """What transcribes many sounds in the same way, or one piece by piece. Errors as of `transcribe`."""
        if not isinstance(self.module, EncoderDecoder) or not isinstance(self.module.encoder.embed, FramesEmbed):
            raise UserError(f"{self.directory} hears no sounds; give a model that does, such as a Whisper")
        return audio.Transcriber(self.module, cast(Any, self.generator), self.codec, self.usage, config)

    def look(self, images: Sequence[vision.Image]) -> list[vision.Look]:
        """Where a model of images looks in each: attention rolled out over its layers. `picture()` draws it."""
        if not sees(self.module):
            raise UserError(f"{self.directory} reads no images, so it looks at none; use attention")
        return vision.look(self.module, self.usage, images, str(self.directory))

    def match(
        self,
        images: Sequence[image_text.Image],
        texts: Texts,
        templates: Texts = (),
        truncate: bool = False,
    ) -> image_text.Matches:
        """How images (files or their pixels) and texts go together: cosines [N, M], and the probabilities of the texts
        for each image.

        A zero-shot classifier gives the names of classes as texts, and `templates` such as "a photo of a {}": a class
        is then the mean of what they make of its name.
        """
        if not matches(self.module):
            kind = type(self.module).__name__
            raise UserError(f"{self.directory} is a {kind}, which matches nothing; use a CLIP or SigLIP")
        source = str(self.directory)
        return image_text.match(self.module, self.codec, self.usage, images, texts, templates, truncate, source=source)


def matches(module: nn.Module) -> TypeGuard[TwoTower]:
    """Whether a model has a space that images and texts share."""
    return isinstance(module, TwoTower)


def sees(module: nn.Module) -> TypeGuard[Transformer]:
    """Whether a model reads images."""
    return isinstance(module, Transformer) and isinstance(module.config.embed, PatchEmbedConfig)
