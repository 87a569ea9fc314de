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
from headway.data import Splits, split_by_text
from headway.domains.audio.alignment_picture import alignment_picture
from headway.domains.audio.augment import add_noise, change_speed_and_gain, delay
from headway.domains.audio.augment import augmentation_rng as sample_rng
from headway.domains.audio.mel import HOP, RATE
from headway.domains.audio.sound_cache import Transcripts, open_sounds, read_transcripts
from headway.domains.audio.sound_window import check_lengths, choose_window, frames_of
from headway.domains.audio.speech_task import (
    END,
    NO_TIMESTAMPS,
    START,
    SpeechConfig,
    SpeechDataset,
    SpeechRecognition,
    SpeechSpecialTokens,
    Utterance,
    check_speech_model,
    check_targets,
    normalize_words,
)
from headway.domains.audio.window_transcriber import languages_of
from headway.errors import ConfigError, UserError, logger, nearest
from headway.learn import Recipe, Task
from headway.learn.examples import Batch, Contents, IndexedExamples, RngKey, RowSubset
from headway.learn.objectives.sequences import Sources
from headway.learn.report import Picture
from headway.metrics.error_rates import english_normalizer, english_words
from headway.nn.models import EncoderDecoder, EncoderDecoderConfig

_LOG = logger(__name__)


@register("transcription")
@dataclass(frozen=True)
class TranscriptionConfig(SpeechConfig):
    """Transcribe speech, without timestamps.

    `path` and `text` name the columns. `codec` and `size` set the tokenizer and its maximum vocabulary size (none: no
    limit); a start model keeps its own. A multilingual model is prompted with the `language`, English by default.
    English transcripts, as stated by a published model or `language`, are scored with Whisper's normaliser.
    """

    path: str = "path"  # column with the paths of audio files
    text: str = "text"  # column with the transcripts
    codec: Literal["char", "byte", "bpe", "unigram"] = "char"  # kind of the tokenizer to train
    size: int | None = None  # maximum vocabulary size; none: no limit
    language: str | None = None  # language spoken; none: English

    def open(self, recipe: Recipe, data: Sequence[Path] | None, workspace: Path) -> Task:
        """Raises UserError for data that cannot be read, are too small, or do not fit the model."""
        transcripts = read_transcripts(recipe.files(data), self.path, self.text, self.skip_bad)
        examples = TranscribedSpeech(self, recipe, transcripts, workspace)
        return Task(examples, TranscriptRecognition(self, examples.language))


class TranscribedSpeech(SpeechDataset, IndexedExamples):
    """Recordings with transcripts. Equal transcripts are always in the same split."""

    def __init__(self, config: TranscriptionConfig, recipe: Recipe, transcripts: Transcripts, workspace: Path) -> None:
        model = check_speech_model(recipe.model)
        self.config = config
        self.sounds = open_sounds(transcripts.files, config.skip_bad)
        frames, self.sound_rows = self._usable_sounds(recipe, model, transcripts, workspace)
        self.rows = transcripts.select(self.sound_rows)
        splits = split_by_text(
            [normalize_words(text) for text in self.rows.texts], self.rows.named_splits, config.split
        )
        self.splits = Splits(splits, np.arange(len(self.rows)), "recordings", "a table")
        codec = self._codec(workspace)
        self.language, special_tokens = _language_and_tokens(codec, model, config.language)
        super().__init__(recipe, codec, special_tokens, frames, config, workspace)
        # A leading space, so that the first word is the same token as elsewhere, as in Whisper.
        self.ids = codec.encode_batch([f" {text}" for text in self.rows.texts])
        lengths = np.array([len(special_tokens.prompt) + len(ids) for ids in self.ids])
        check_targets(lengths, model.context, self.rows.locations[int(lengths.argmax())])

    @property
    def remarks(self) -> tuple[str, ...]:
        return (*super().remarks, *(f"{remark[0].upper()}{remark[1:]}" for remark in self.sounds.remarks))

    def _usable_sounds(
        self, recipe: Recipe, model: EncoderDecoderConfig, transcripts: Transcripts, workspace: Path
    ) -> tuple[int, np.ndarray]:
        """The frames in the window, and the readable recordings that fit into it."""
        lengths = self.sounds.lengths
        readable = np.setdiff1d(np.arange(len(transcripts)), self.sounds.unreadable)
        frames = choose_window(recipe, model.encoder, lengths, self.config.seconds, workspace)
        usable = readable[lengths[readable] <= frames * HOP]
        if len(usable) < len(readable):
            remedy = "split recording and transcript into shorter ones, or skip such recordings with task.skip_bad=true"
            if not self.config.skip_bad:
                check_lengths(lengths, frames, str(transcripts.files[int(lengths.argmax())]), remedy)
            count, window = len(readable) - len(usable), frames * HOP / RATE
            _LOG.warning(
                "skipped %d of %d recordings that are longer than the window of %g s", count, len(readable), window
            )
        if not len(usable):
            raise UserError(
                f"none of {len(transcripts)} recordings is readable and fits the window; raise task.seconds"
            )
        return frames, usable

    def _codec(self, workspace: Path) -> TokenizerCodec:
        if (workspace / FILE).exists():
            return cast(TokenizerCodec, load_codec(workspace))
        train_texts = (f" {self.rows.texts[row]}" for row in self.splits.rows("train").tolist())
        return train_codec(
            self.config.codec, train_texts, self.config.size, special=(END, START, NO_TIMESTAMPS), fewer=True
        )

    def contents(self) -> Contents:
        return {
            "sounds": ([self.sounds.keys[row] for row in map(int, self.sound_rows)],),
            "transcripts": (self.rows.texts,),
        }

    def take(self, rows: np.ndarray, rng_key: RngKey | None = None) -> Batch:
        positions = [None] * len(rows) if rng_key is None else rng_key.positions.tolist()
        return self.batch([self.utterance(row, position) for row, position in zip(rows.tolist(), positions)], rng_key)

    def utterance(self, row: int, position: int | None) -> Utterance:
        """A recording at the start of its window, as in Whisper; augmented if it has a training position."""
        sound, length = self.sounds[self.sound_rows[row]], self.frames * HOP
        if position is None:
            return Utterance(F.pad(sound, (0, length - len(sound))), len(sound), self.ids[row])
        rng, augment = sample_rng(self.seed, position), self.augment
        augmented = change_speed_and_gain(sound, augment, rng)
        # If a lower speed would make it too long, it stays unchanged, so that nothing is cut.
        sound = delay(augmented if len(augmented) <= length else sound, length, augment, rng)
        window = add_noise(F.pad(sound, (0, length - len(sound))), augment, rng)
        return Utterance(window, len(sound), self.ids[row])

    def with_transcripts(self, samples: RowSubset) -> Sources:
        rows = samples.rows.tolist()
        return Sources(samples, [[self.rows.texts[row]] for row in rows], [self.rows.files[row].name for row in rows])


class TranscriptRecognition(SpeechRecognition[TranscribedSpeech]):
    """Transcripts of recordings."""

    def __init__(self, config: TranscriptionConfig, language: str | None) -> None:
        if language != "en":
            super().__init__(config)
            return
        english_normalizer()  # fails early if it is missing
        super().__init__(config, english_words, "normalizer:whisper-english")

    def pictures(self, model: nn.Module, examples: TranscribedSpeech) -> list[Picture]:
        """Each token's attention over the spectrogram."""
        max_tokens = 19 - len(examples.special_tokens.prompt)
        row = min(examples.spread_rows(12).tolist(), key=lambda row: abs(len(examples.ids[row]) - max_tokens))
        aligned = self.alignment(cast(EncoderDecoder, model), examples, RowSubset(examples, np.array([row])))
        num_frames = frames_of(int(examples.sounds.lengths[examples.sound_rows[row]]))
        frames, weights = aligned.frames[:num_frames], aligned.weights[:, : -(-num_frames // 2)]
        name = f"{examples.rows.files[row].name}: {aligned.text}"
        return [alignment_picture(name, frames, {}, weights, aligned.tokens)]


def _language_and_tokens(
    codec: TokenizerCodec, model: EncoderDecoderConfig, language: str | None
) -> tuple[str | None, SpeechSpecialTokens]:
    """The language (None: unknown) and the special tokens: the prompt for a transcript without timestamps, its eos, and
    all other tokens that are not text.
    """
    start, no_timestamps, eos = (codec.token_id(name) for name in (START, NO_TIMESTAMPS, END))
    if start is None or no_timestamps is None or eos is None:
        raise UserError(f"the tokenizer has no {START}, {NO_TIMESTAMPS} or {END}; start from a speech model")
    special = [token_id for token_id, token in codec.tokenizer.get_added_tokens_decoder().items() if token.special]
    suppressed = tuple(token_id for token_id in sorted(special) if token_id != eos)
    task, languages = codec.token_id("<|transcribe|>"), languages_of(codec, model.vocab_size)
    if task is None:
        return language, SpeechSpecialTokens((start, no_timestamps), eos, suppressed)
    language = language or "en"
    if not languages:
        if language != "en":
            raise ConfigError(f"this model supports English only, not {language!r}; start from a multilingual model")
        return language, SpeechSpecialTokens((start, no_timestamps), eos, suppressed)
    if language not in languages:
        raise ConfigError(f"this model does not support task.language {language!r}; {nearest(language, languages)}")
    return language, SpeechSpecialTokens((start, languages[language], task, no_timestamps), eos, suppressed)
