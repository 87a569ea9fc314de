"""Speech transcription: train on sounds with transcripts, or fine-tune a Whisper on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import numpy as np
import torch.nn.functional as F
from torch import nn

from headway.codecs import TokenizerCodec, load_codec, train_codec
from headway.codecs.tokenizer import FILE
from headway.config import register
from headway.data import Splits, sides_of
from headway.domains.audio.augment import chance as drawn
from headway.domains.audio.augment import delayed, noisy, varied
from headway.domains.audio.listener import languages_of
from headway.domains.audio.mel import HOP, RATE
from headway.domains.audio.pictures import alignment_picture
from headway.domains.audio.speech import (
    END,
    PLAIN,
    START,
    SpeechConfig,
    SpeechText,
    SpokenMarks,
    SpokenSounds,
    Utterance,
    check_targets,
    listening,
    words,
)
from headway.domains.audio.store import Transcripts, open_sounds, read_transcripts
from headway.domains.audio.windows import check_lengths, frames_of, settled
from headway.errors import ConfigError, UserError, logger, nearest
from headway.learn import Recipe, Task
from headway.learn.examples import Batch, Chance, Contents, Numbered, Selected
from headway.learn.objectives.written import Sources
from headway.learn.report import Picture
from headway.metrics.errors import english_normalizer, english_words
from headway.nn.models import EncoderDecoder, EncoderDecoderConfig

_LOG = logger(__name__)


@register("transcription")
@dataclass(frozen=True)
class TranscriptionConfig(SpeechConfig):
    """Transcribe speech, without timestamps.

    `path` and `text` name the columns. `codec` and `size` set the tokenizer and its maximum vocabulary (none: no
    limit); a start model keeps its own. A multilingual model is prompted with the `language`, English by default.
    English, according to a published model or `language`, is scored with Whisper's normaliser.
    """

    path: str = "path"  # column with the sounds
    text: str = "text"  # column with the transcripts
    codec: Literal["char", "byte", "bpe", "unigram"] = "char"  # kind of the tokenizer to train
    size: int | None = None  # maximum vocabulary size; none: no limit
    language: str | None = None  # of the speech; none: English

    def open(self, recipe: Recipe, data: Sequence[Path] | None, workspace: Path) -> Task:
        """Raises UserError for data that cannot be read, are too small, or do not fit the model."""
        found = read_transcripts(recipe.files(data), self.path, self.text, self.skip_bad)
        examples = SpokenTexts(self, recipe, found, workspace)
        return Task(examples, TranscriptText(self, examples.language))


class SpokenTexts(SpokenSounds, Numbered):
    """Sounds with transcripts. Equal texts are always in one split."""

    def __init__(self, config: TranscriptionConfig, recipe: Recipe, found: Transcripts, workspace: Path) -> None:
        model = listening(recipe.model)
        self.config = config
        self.sounds = open_sounds(found.files, config.skip_bad)
        frames, self.kept = self._fitting(recipe, model, found, workspace)
        self.rows = found.select(self.kept)
        sides = sides_of([words(text) for text in self.rows.texts], self.rows.named, config.split)
        self.splits = Splits(sides, np.arange(len(self.rows)), "sounds", "a table")
        codec = self._codec(workspace)
        self.language, marks = _spoken(codec, model, config.language)
        super().__init__(recipe, codec, marks, frames, config, workspace)
        # A leading space, so that the first word is the same token as elsewhere, as in Whisper.
        self.ids = codec.encode_batch([f" {text}" for text in self.rows.texts])
        sizes = np.array([len(marks.prompt) + len(ids) for ids in self.ids])
        check_targets(sizes, model.context, self.rows.places[int(sizes.argmax())])

    @property
    def remarks(self) -> tuple[str, ...]:
        return (*super().remarks, *(f"{each[0].upper()}{each[1:]}" for each in self.sounds.remarks))

    def _fitting(
        self, recipe: Recipe, model: EncoderDecoderConfig, found: Transcripts, workspace: Path
    ) -> tuple[int, np.ndarray]:
        """The frames of the window, and the readable sounds that fit into it."""
        lengths = self.sounds.lengths
        good = np.setdiff1d(np.arange(len(found)), self.sounds.bad)
        frames = settled(recipe, model.encoder, lengths, self.config.seconds, workspace)
        kept = good[lengths[good] <= frames * HOP]
        if len(kept) < len(good):
            remedy = "split sound and text into shorter ones, or skip such sounds with task.skip_bad=true"
            if not self.config.skip_bad:
                check_lengths(lengths, frames, str(found.files[int(lengths.argmax())]), remedy)
            count, window = len(good) - len(kept), frames * HOP / RATE
            _LOG.warning("left out %d of %d sounds, which are longer than the window of %g s", count, len(good), window)
        if not len(kept):
            raise UserError(f"none of {len(found)} sounds is readable and fits the window; raise task.seconds")
        return frames, kept

    def _codec(self, workspace: Path) -> TokenizerCodec:
        if (workspace / FILE).exists():
            return cast(TokenizerCodec, load_codec(workspace))
        texts = (f" {self.rows.texts[row]}" for row in self.splits.rows("train").tolist())
        return train_codec(self.config.codec, texts, self.config.size, special=(END, START, PLAIN), fewer=True)

    def contents(self) -> Contents:
        return {"sounds": ([self.sounds.keys[row] for row in map(int, self.kept)],), "transcripts": (self.rows.texts,)}

    def take(self, rows: np.ndarray, chance: Chance | None = None) -> Batch:
        places = [None] * len(rows) if chance is None else chance.places.tolist()
        return self.batch([self.utterance(row, place) for row, place in zip(rows.tolist(), places)], chance)

    def utterance(self, row: int, place: int | None) -> Utterance:
        """A sound at the start of its window, as in Whisper; augmented if it has a training position."""
        sound, length = self.sounds[self.kept[row]], self.frames * HOP
        if place is None:
            return Utterance(F.pad(sound, (0, length - len(sound))), len(sound), self.ids[row])
        draw, augment = drawn(self.seed, place), self.augment
        changed = varied(sound, augment, draw)
        # A sound that a lower speed makes too long stays unchanged, so that nothing is cut.
        sound = delayed(changed if len(changed) <= length else sound, length, augment, draw)
        window = noisy(F.pad(sound, (0, length - len(sound))), augment, draw)
        return Utterance(window, len(sound), self.ids[row])

    def told(self, samples: Selected) -> Sources:
        rows = samples.rows.tolist()
        return Sources(samples, [[self.rows.texts[row]] for row in rows], [self.rows.files[row].name for row in rows])


class TranscriptText(SpeechText[SpokenTexts]):
    """Transcripts of sounds."""

    def __init__(self, config: TranscriptionConfig, language: str | None) -> None:
        if language != "en":
            super().__init__(config)
            return
        english_normalizer()  # fails early if it is missing
        super().__init__(config, english_words, "normalizer:whisper-english")

    def pictures(self, model: nn.Module, examples: SpokenTexts) -> list[Picture]:
        """The attention of each token of a text, over the spectrogram of its sound."""
        wanted = 19 - len(examples.marks.prompt)
        row = min(examples.spread(12).tolist(), key=lambda row: abs(len(examples.ids[row]) - wanted))
        found = self.alignment(cast(EncoderDecoder, model), examples, Selected(examples, np.array([row])))
        used = frames_of(int(examples.sounds.lengths[examples.kept[row]]))
        frames, weights = found.frames[:used], found.weights[:, : -(-used // 2)]
        name = f"{examples.rows.files[row].name}: {found.text}"
        return [alignment_picture(name, frames, {}, weights, found.symbols)]


def _spoken(codec: TokenizerCodec, model: EncoderDecoderConfig, language: str | None) -> tuple[str | None, SpokenMarks]:
    """The language, None if unknown; and the special tokens: the prompt of a text without timestamps, its eos, and all
    other tokens that are not text.
    """
    start, plain, end = (codec.token(name) for name in (START, PLAIN, END))
    if start is None or plain is None or end is None:
        raise UserError(f"the tokenizer has no {START}, {PLAIN} or {END}; start from a speech model")
    special = [place for place, token in codec.tokenizer.get_added_tokens_decoder().items() if token.special]
    never = tuple(place for place in sorted(special) if place != end)
    task, known = codec.token("<|transcribe|>"), languages_of(codec, model.symbols)
    if task is None:
        return language, SpokenMarks((start, plain), end, never)
    language = language or "en"
    if not known:
        if language != "en":
            raise ConfigError(f"this model supports English only, not {language!r}; start from a multilingual one")
        return language, SpokenMarks((start, plain), end, never)
    if language not in known:
        raise ConfigError(f"task.language {language!r} is not one of this model's; {nearest(language, known)}")
    return language, SpokenMarks((start, known[language], task, plain), end, never)
