"""Speech recognition: trained on token likelihood, evaluated by word error rate; from scratch, or from a Whisper."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, NamedTuple, TypeVar, cast

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from headway.codecs import TokenizerCodec, load_codec, train_codec
from headway.codecs.tokenizer import FILE
from headway.config_kinds import register
from headway.data import Splits, split_by_text
from headway.data.prepared.prepared_samples import PreparedSamples
from headway.data.prepared.shard_reader import is_prepared
from headway.data.shuffling import epoch_seed
from headway.domains.audio.augmentation import add_noise, augment_spectrogram, change_speed_and_gain, delay
from headway.domains.audio.augmentation import augmentation_rng as sample_rng
from headway.domains.audio.classification import SoundTaskConfig
from headway.domains.audio.framing import (
    PADDING_SETTING,
    Padding,
    bands_of,
    check_lengths,
    choose_window,
    frames_of,
    padding_of,
    with_window,
)
from headway.domains.audio.mel import HOP, MIN_SAMPLES, RATE, WINDOW, log_mel
from headway.domains.audio.sound_files import ArraySound, Sounds, Transcripts, open_sounds, read_transcripts
from headway.domains.audio.sound_shards import PreparedSounds
from headway.domains.audio.voice_activity import detect_speech
from headway.domains.audio.window_transcriber import STEP, languages_of
from headway.errors import ConfigError, UserError, logger, nearest
from headway.formats.usage import read_usage
from headway.generate import SearchConfig, beam_search
from headway.generate.prompts import device_of
from headway.generate.search import check_beam
from headway.layout import Layout
from headway.learn import Recipe, Task
from headway.learn.examples import Batch, Contents, RngKey, RowSubset, Samples
from headway.learn.objective import evaluation_batches
from headway.learn.objectives.sequences import Ids, SequenceGeneration, Sources, SourceTargetExamples, teacher_forcing
from headway.learn.objectives.targets import GroupedConfig
from headway.learn.recipe import batch_size_of
from headway.learn.report import Picture
from headway.learn.report.pictures import Span, spectrogram
from headway.learn.shard_batches import PreparedExamples
from headway.metrics import language_scores, word_error_rate
from headway.metrics.error_rates import english_normalizer, english_words
from headway.nn.mixers import CrossAttention
from headway.nn.models import EncoderDecoder, EncoderDecoderConfig, ModelConfig, Prompt, attention_maps, evaluation_mode


def alignment_picture(
    name: str,
    frames: Float[Tensor, "T M"],
    tracks: dict[str, list[Span]],
    attention: Float[np.ndarray, "N S"] | None,
    tokens: Sequence[str],
) -> Picture:
    """A spectrogram with the spoken and the recognised words, and the decoder's attention for each predicted token."""
    caption = f"{name}; below, each token's attention (rows), averaged over layers and heads"
    figure = spectrogram(frames.numpy(), len(frames) * HOP / RATE, tracks, attention, tokens)
    return Picture("Alignment", caption, figure, wide=True)


START, END, NO_TIMESTAMPS = "<|startoftranscript|>", "<|endoftext|>", "<|notimestamps|>"
_MASK_STREAM = 1 << 32  # separates the random numbers of masks from all others at a position
_TIMES_STREAM = 2 << 32  # those that select the samples with timestamps
_TIMESTAMP = re.compile(r"<\|(\d{1,3}\.\d\d)\|>")
_PUNCTUATION = re.compile(r"[^\w\s']|_")
_EOS_LABEL = "·"  # label of the eos token, which has no text


@dataclass(frozen=True)
class SpeechConfig(SoundTaskConfig):
    """Transcribe speech, with beam search of width `beam` (1 is greedy)."""

    beam: int = 1  # beam size; 1 is greedy

    def __post_init__(self) -> None:
        super().__post_init__()
        check_beam("task.beam", self.beam)


class Utterance(NamedTuple):
    """The samples in a window, how many of them are from the recording (silence follows), and the transcript's
    tokens, with timestamps if it is `timed`.
    """

    window: Float[Tensor, "N"]
    used: int
    ids: Ids
    timed: bool = False


class SpeechSpecialTokens(NamedTuple):
    """`prompt` precedes every transcript, without its last token one with timestamps; `eos` follows it, and
    `suppressed` tokens are never generated.
    """

    prompt: tuple[int, ...]
    eos: int
    suppressed: tuple[int, ...]


class SpeechDataset(SourceTargetExamples):
    """Recordings with their transcripts. A batch is train.batch_size recordings.

    Subclasses define the samples (`of`) and their transcripts (`with_transcripts`).
    """

    codec: TokenizerCodec
    eval_batch_size = 16  # recordings per evaluation batch

    def __init__(
        self,
        recipe: Recipe,
        codec: TokenizerCodec,
        special_tokens: SpeechSpecialTokens,
        frames: int,
        config: SpeechConfig,
        folder: Path,
    ) -> None:
        """Pads past the end of a recording as the model in `folder` does. Raises ConfigError for a recipe that counts
        batches in tokens.
        """
        self.codec, self.special_tokens = codec, special_tokens
        self.padding: Padding = padding_of(read_usage(folder))
        self.frames, self.bands = frames, bands_of(check_speech_model(recipe.model).encoder)
        self.seed, self.batch_size = recipe.train.seed, batch_size_of(recipe)
        self.augment = config.augment

    def with_transcripts(self, samples: Any) -> Sources:
        """Samples with their transcripts."""
        raise NotImplementedError

    def sources(self, split: str, limit: int | None = None) -> Sources:
        return self.with_transcripts(self.of(split).limited_to(limit))

    def adapt(self, model: ModelConfig) -> ModelConfig:
        """`model` with the window and the codec's vocabulary size. Raises UserError for empty splits."""
        for split in ("train", "validation"):
            self.of(split)
        speech_model = check_speech_model(model)
        decoder = replace(speech_model.decoder, vocab_size=self.codec.vocab_size)
        return replace(speech_model, encoder=with_window(speech_model.encoder, self.frames), decoder=decoder)

    def batch(self, sounds: Sequence[Utterance], rng_key: RngKey | None = None) -> Batch:
        """Inputs are frames, Float[B, T, M], with full attention, and decoder tokens, [B, L]; labels are the tokens
        after the prompt, [B, L]. In training, parts of the spectra are masked.
        """
        windows = torch.stack([sound.window for sound in sounds])
        frames_of_windows = log_mel(F.pad(windows, (0, WINDOW)), self.bands)[:, : windows.shape[1] // HOP]
        spectrograms = [
            x if self.padding == "silence" else x[: sound.used // HOP] for x, sound in zip(frames_of_windows, sounds)
        ]
        if rng_key is not None:
            rngs = [
                sample_rng(epoch_seed(self.seed, _MASK_STREAM), position) for position in rng_key.positions.tolist()
            ]
            spectrograms = [augment_spectrogram(x, self.augment, rng) for x, rng in zip(spectrograms, rngs)]
        frames = torch.stack([F.pad(x, (0, 0, 0, self.frames - len(x))) for x in spectrograms])
        prompts = [self.special_tokens.prompt[: -1 if sound.timed else None] for sound in sounds]
        decoder_ids, layout, labels = teacher_forcing([sound.ids for sound in sounds], prompts, self.special_tokens.eos)
        tokens = sum(len(sound.ids) + 1 for sound in sounds)
        computed = len(frames) * self.frames // 2 + decoder_ids.numel()
        return Batch((frames, Layout.full(len(frames), self.frames), decoder_ids, layout), labels, tokens, computed)

    def save(self, directory: Path) -> None:
        self.codec.save(directory)
        usage = read_usage(directory)
        settings = {**usage.settings, PADDING_SETTING: self.padding}
        replace(usage, settings=settings, ends=(self.special_tokens.eos,)).save(directory)


def normalize_words(text: str) -> str:
    """Text normalised for comparing words: lower case, no punctuation except apostrophes."""
    return " ".join(_PUNCTUATION.sub(" ", text.lower()).split())


H = TypeVar("H", bound=SpeechDataset)


class SpeechRecognition(SequenceGeneration[H], Generic[H]):
    """Speech recognition, scored by the word error rate after `normalize`; `signature` describes the normalisation."""

    shares_evaluation = False  # each recording is encoded once, for its loss and its transcript

    def __init__(
        self,
        config: SpeechConfig,
        normalize: Callable[[str], str] = normalize_words,
        signature: str = "case:lower|punctuation:no",
    ) -> None:
        super().__init__("wer", SearchConfig(config.beam), config.smoothing)
        self.normalize, self.signature = normalize, signature

    def search_for(self, split: str) -> SearchConfig:
        return self.search

    def adapt(self, model: ModelConfig, examples: H) -> ModelConfig:
        """Raises UserError for an evaluation split without words."""
        for split in ("validation", examples.final_split):
            texts = [text for (text,) in examples.sources(split).references]
            if not any(map(self.normalize, texts)):
                raise UserError(
                    f"no transcript in the {split} split has a word to compare ({len(texts):,} transcripts such as "
                    f"{texts[0]!r}); add transcripts with words"
                )
        return model

    def evaluate(self, model: nn.Module, examples: H, split: str, limit: int | None = None) -> dict[str, Any]:
        """As in `SequenceGeneration`, but each recording is encoded only once, for both loss and transcript."""
        sources, search = examples.sources(split, limit), self.search_for(split)
        nats, count, generated = 0.0, 0, list[Ids]()
        for batch in _encoded_batches(cast(EncoderDecoder, model), sources.inputs):
            loss = self.losses(model, self.encode(model, batch), batch, 0.0)["loss"]
            nats, count = nats + float(loss.total), count + loss.count
            generated += self._transcribe(cast(EncoderDecoder, model), examples, batch, search)
        return {**language_scores(nats, count), **self.scores(examples, sources, generated), "beam": search.beam}

    def generate(self, model: nn.Module, examples: H, sources: Sources, search: SearchConfig) -> list[Ids]:
        encoder_decoder = cast(EncoderDecoder, model)
        return [
            ids
            for batch in _encoded_batches(encoder_decoder, sources.inputs)
            for ids in self._transcribe(encoder_decoder, examples, batch, search)
        ]

    def _transcribe(self, model: EncoderDecoder, examples: H, batch: Batch, search: SearchConfig) -> list[Ids]:
        (audio, layout, *_), special_tokens = batch.inputs, examples.special_tokens
        capacity = cast(int, model.config.context) - len(special_tokens.prompt)
        unused_ids = range(
            examples.codec.vocab_size, model.config.vocab_size
        )  # published vocabularies may exceed the tokenizer's
        ids = torch.tensor([special_tokens.prompt] * layout.batch, device=batch.targets.device)
        prompt = Prompt(ids, Layout.full(*ids.shape, device=ids.device), audio, layout)
        hypotheses = beam_search(
            model,
            prompt,
            [capacity] * layout.batch,
            special_tokens.eos,
            search,
            (*special_tokens.suppressed, *unused_ids),
        )
        return [best.ids for best, *_ in hypotheses]

    def scores(self, examples: H, sources: Sources, generated: Sequence[Ids]) -> dict[str, Any]:
        references = [[self.normalize(text) for text in texts] for texts in sources.references]
        scores = word_error_rate([self.normalize(text) for text in examples.decode_all(generated)], references)
        return {**scores, "wer_signature": self.signature}

    def sample(self, examples: H, source: str, ids: Ids, references: Sequence[str]) -> dict[str, str]:
        """Marked as correct if all words are."""
        columns = super().sample(examples, source, ids, references)
        output = columns["output"].strip()
        check_mark = "✓" if self.normalize(output) == self.normalize(columns["reference"]) else "✗"
        return {"": check_mark, **columns, "output": output}

    @torch.no_grad()
    def alignment(self, model: EncoderDecoder, examples: H, sample: Samples) -> SpeechAlignment:
        """The cross-attention of one sample's generated transcript, averaged over layers and heads."""
        prompt, codec = list(examples.special_tokens.prompt), examples.codec
        [ids] = self.generate(model, examples, examples.with_transcripts(sample), self.search)
        with evaluation_mode(model):
            frames, layout_of_frames, *_ = sample.take(np.array([0])).to(device_of(model)).inputs
            target = torch.tensor([[*prompt, *ids]], device=frames.device)
            layout = Layout.full(*target.shape, device=frames.device)
            maps = attention_maps(model, lambda: model(frames, layout_of_frames, target, layout))
        cross_attention = [
            weights_of_layer[0].mean(0)
            for name, weights_of_layer in maps.items()
            if isinstance(model.get_submodule(name), CrossAttention)
        ]
        weights = torch.stack(cross_attention).mean(0)[len(prompt) - 1 :].cpu().numpy()
        token_names = [codec.decode([i]).strip() or (codec.tokenizer.id_to_token(i) or "").strip("<|>") for i in ids]
        return SpeechAlignment(codec.decode(ids).strip(), ids, [*token_names, _EOS_LABEL], weights, frames[0].cpu())


def _encoded_batches(model: EncoderDecoder, samples: Samples) -> Iterator[Batch]:
    """Each sample once, in batches with encoder outputs as inputs."""
    for _, batch in evaluation_batches(model, samples):
        frames, layout, *other_inputs = batch.inputs
        yield batch._replace(inputs=(model.encode(frames, layout), layout, *other_inputs))


class SpeechAlignment(NamedTuple):
    """A transcript's tokens with eos, and their attention: `weights`, whose rows sum to 1 over the encoder's 20 ms
    steps. `frames` are the model inputs.
    """

    text: str
    ids: Ids
    tokens: list[str]
    weights: Float[np.ndarray, "N S"]
    frames: Float[Tensor, "T M"]


def check_speech_model(model: ModelConfig) -> EncoderDecoderConfig:
    """The model if it is a speech encoder-decoder; ConfigError for another."""
    if not isinstance(model, EncoderDecoderConfig) or model.tie in ("all", "embeddings"):
        raise ConfigError(
            "transcription needs an encoder_decoder whose encoder takes audio, but the model is a "
            f"{type(model).__name__}; choose another, such as whisper-tiny"
        )
    bands_of(model.encoder)
    return model


def check_targets(lengths: np.ndarray, context: int | None, location: str) -> None:
    """UserError if the longest transcript, located at `named`, exceeds the decoder's context."""
    max_length = int(lengths.max(initial=0))
    if context is not None and max_length > context:
        raise UserError(
            f"{location} has a transcript of {max_length} tokens, but the model's context is {context}; split the "
            "recording and its transcript, or raise model.decoder.context"
        )


_LOG = logger(__name__)


@register("transcription")
@dataclass(frozen=True)
class TranscriptionConfig(SpeechConfig, GroupedConfig):
    """Transcribe speech. If the start model generates timestamps, a share of the training samples has them, so that it
    continues to do so (Radford et al. 2022, section 2.3).

    A transcript may have the times of its segments, as in <|0.00|> Hello.<|1.20|>; otherwise it is one segment, from
    the start to the end of the detected speech. `path` and `text` name the columns. `codec` and `size` set the
    tokenizer and its maximum vocabulary size (none: no limit); a start model keeps its own. A multilingual model is
    prompted with the `language`, English by default. English transcripts, as stated by a published model or
    `language`, are scored with Whisper's normaliser.
    """

    path: str = "path"  # column with the paths of audio files
    text: str = "text"  # column with the transcripts
    codec: Literal["char", "byte", "bpe", "unigram"] = "char"  # kind of the tokenizer to train
    size: int | None = None  # maximum vocabulary size; none: no limit
    language: str | None = None  # language spoken; none: English
    timestamps: float = 0.5  # share of training samples with timestamps, if the start model generates them

    prepared_kinds: ClassVar[tuple[str, ...]] = ("transcripts",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.timestamps <= 1:
            raise ConfigError(f"task.timestamps is {self.timestamps}; choose a share from 0 to 1")

    def open(self, recipe: Recipe, data: Sequence[Path] | None, workspace: Path) -> Task:
        """Raises UserError for data that cannot be read, are too small, or do not fit the model."""
        transcripts, prepared = self.read(recipe.files(data))
        model = check_speech_model(recipe.model)
        sounds = (
            open_sounds(transcripts.files, self.skip_bad)
            if prepared is None
            else PreparedSounds(transcripts.files, prepared)
        )
        examples = TranscribedSpeech(self, recipe, model, transcripts, sounds, workspace, prepared)
        return Task(examples, TranscriptRecognition(self, examples.language))

    def read(self, paths: Sequence[Path]) -> tuple[Transcripts, PreparedSamples | None]:
        """The transcripts, and their recordings if they are prepared. UserErrors as in `read_transcripts`."""
        if not paths or not is_prepared(paths[0]):
            return read_transcripts(paths, self.path, self.text, self.skip_bad, self.group), None
        samples = PreparedSamples.open(paths, "transcripts")
        for name, setting in (("path", self.path), ("text", self.text)):
            if setting != name:
                raise ConfigError(f"task.{name} was decided when {samples.data.name} was prepared; remove the setting")
        files, names = [Path(name) for name in samples.names], list(samples.names)
        groups = samples.groups(self.group)
        return Transcripts(files, samples.labels, samples.named_splits, names, groups), samples


class TranscribedSpeech(SpeechDataset, PreparedExamples):
    """Recordings with transcripts. Equal transcripts are always in the same split."""

    def __init__(
        self,
        config: TranscriptionConfig,
        recipe: Recipe,
        model: EncoderDecoderConfig,
        transcripts: Transcripts,
        sounds: Sounds,
        workspace: Path,
        prepared: PreparedSamples | None = None,
    ) -> None:
        self.sounds, self.prepared, self.places = sounds, prepared, recipe.train.accumulate
        lengths = sounds.lengths
        readable = np.setdiff1d(np.arange(len(transcripts)), sounds.unreadable)
        frames = choose_window(recipe, model.encoder, lengths, config.seconds, workspace)
        short = readable[lengths[readable] < MIN_SAMPLES]
        if len(short) and not config.skip_bad:
            raise UserError(
                f"{transcripts.files[int(short[0])]} has {int(lengths[short[0]])} samples, less than one frame "
                f"({MIN_SAMPLES}); remove it, or skip such recordings with task.skip_bad=true"
            )
        readable = np.setdiff1d(readable, short)
        self.sound_rows = self.prepared_rows = readable[lengths[readable] <= frames * HOP]
        if len(self.sound_rows) < len(readable):
            remedy = "split recording and transcript into shorter ones, or skip such recordings with task.skip_bad=true"
            if not config.skip_bad:
                check_lengths(lengths, frames, str(transcripts.files[int(lengths.argmax())]), remedy)
            count = len(readable) - len(self.sound_rows)
            window = frames * HOP / RATE
            _LOG.warning(
                "skipped %d of %d recordings that are longer than the window of %g s", count, len(readable), window
            )
        if not len(self.sound_rows):
            raise UserError(
                f"none of {len(transcripts)} recordings is readable and fits the window; raise task.seconds"
            )
        self.config, self.rows = config, transcripts.select(self.sound_rows)
        timed = [read_segments(text, where) for text, where in zip(self.rows.texts, self.rows.locations)]
        self.transcripts = self.rows.texts  # with timestamps, if they have any
        self.rows = replace(self.rows, texts=[" ".join(part.text for part in parts) for parts in timed])
        keys = [normalize_words(text) for text in self.rows.texts]
        splits = split_by_text(keys, self.rows.named_splits, config.split, groups=self.rows.groups)
        self.splits = Splits(splits, np.arange(len(self.rows)), "recordings", "a table")
        if (workspace / FILE).exists():
            codec = cast(TokenizerCodec, load_codec(workspace))
        else:
            train_texts = (f" {self.rows.texts[row]}" for row in self.splits.rows("train").tolist())
            special = (END, START, NO_TIMESTAMPS)
            codec = train_codec(config.codec, train_texts, config.size, special=special, fewer=True)
        self.language, special_tokens = _language_and_tokens(codec, model, config.language)
        super().__init__(recipe, codec, special_tokens, frames, config, workspace)
        # A leading space, so that the first word is the same token as elsewhere, as in Whisper.
        self.ids = codec.encode_batch([f" {text}" for text in self.rows.texts])
        num_tokens = np.array([len(special_tokens.prompt) + len(ids) for ids in self.ids])
        check_targets(num_tokens, model.context, self.rows.locations[int(num_tokens.argmax())])
        self.segments, self.context = timed, model.context
        self.first_time = special_tokens.prompt[-1] + 1  # timestamps follow <|notimestamps|>
        self.times = model.vocab_size - self.first_time if recipe.start is not None else 0

    @property
    def remarks(self) -> tuple[str, ...]:
        return (*super().remarks, *self.sounds.remarks)

    def contents(self) -> Contents:
        return {
            "sounds": ([self.sounds.keys[row] for row in map(int, self.sound_rows)],),
            "transcripts": (self.transcripts,),
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
        spoken = augmented if len(augmented) <= length else sound
        delayed = delay(spoken, length, augment, rng)
        window = add_noise(F.pad(delayed, (0, length - len(delayed))), len(spoken), augment, rng)
        ids, timed = self.ids[row], False
        if (
            self.times > 0
            and sample_rng(epoch_seed(self.seed, _TIMES_STREAM), position).random() < self.config.timestamps
        ):
            stretch, silence = len(spoken) / len(sound), (len(delayed) - len(spoken)) / RATE
            with_times = self.timed_ids(row, lambda seconds: silence + stretch * seconds)
            timed = self.context is None or len(self.special_tokens.prompt) + len(with_times) <= self.context
            ids = with_times if timed else ids
        return Utterance(window, len(delayed), ids, timed)

    def timed_ids(self, row: int, time: Callable[[float], float]) -> Ids:
        """A transcript's segments between their timestamps; `time` maps seconds of the recording to the window's. A
        segment without times is between the ends of the detected speech, or of the recording if there is none.
        """
        ids, sound = [], self.sounds[self.sound_rows[row]]
        for text, *times in self.segments[row]:
            if not times[1]:
                spans = detect_speech(ArraySound(sound)).spans.tolist() if len(sound) >= WINDOW else []
                times = [spans[0][0], spans[-1][1]] if spans else [0.0, len(sound) / RATE]
            start, end = (self.first_time + min(round(time(seconds) / STEP), self.times - 1) for seconds in times)
            ids += [start, *self.codec.encode(f" {text}"), end]
        return ids

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


def read_segments(text: str, location: str) -> list[Span]:
    """The segments of a transcript with their times in seconds: one from 0 to 0 if it has no timestamps. UserError for
    timestamps that do not enclose each segment, in order.
    """
    parts = _TIMESTAMP.split(text)
    if len(parts) == 1:
        return [Span(text, 0.0, 0.0)]
    spans = [Span(words.strip(), float(a), float(b)) for a, words, b in zip(parts[1::4], parts[2::4], parts[3::4])]
    times = [time for span in spans for time in span[1:]]
    outside = "".join(parts[0::4]).strip()
    if len(parts) % 4 != 1 or outside or times != sorted(times) or not all(span.text and span.end for span in spans):
        raise UserError(
            f"{location}: the timestamps of {text!r:.80} do not enclose each segment in order; "
            "write them as in <|0.00|> Hello.<|1.20|>"
        )
    return spans


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
