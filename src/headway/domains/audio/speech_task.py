"""The speech recognition task: trained on token likelihood, evaluated by word error rate."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar, cast

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from headway.codecs import TokenizerCodec
from headway.data.shuffling import epoch_seed
from headway.domains.audio.augment import augmentation_rng as sample_rng
from headway.domains.audio.augment import mask_spectrogram
from headway.domains.audio.classification import SoundTaskConfig
from headway.domains.audio.framing import Padding, frame_windows, padding_of, padding_setting
from headway.domains.audio.mel import HOP
from headway.domains.audio.sound_window import bands_of, with_window
from headway.errors import ConfigError, UserError
from headway.formats.usage import read_usage
from headway.generate import SearchConfig, beam_search
from headway.generate.prompts import device_of, evaluation_mode
from headway.generate.search import check_beam
from headway.layout import Layout
from headway.learn import Recipe
from headway.learn.examples import Batch, RngKey, Samples
from headway.learn.objective import evaluation_batches
from headway.learn.objectives.sequences import Ids, SequenceGeneration, Sources, SourceTargetExamples, teacher_forcing
from headway.learn.recipe import batch_size_of
from headway.metrics import language_scores, word_error_rate
from headway.nn.mixers import CrossAttention
from headway.nn.models import EncoderDecoder, EncoderDecoderConfig, ModelConfig, Prompt, attention_maps

START, END, NO_TIMESTAMPS = "<|startoftranscript|>", "<|endoftext|>", "<|notimestamps|>"
_MASK_STREAM = 1 << 32  # separates the random numbers of masks from all others at a position
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
    tokens.
    """

    window: Float[Tensor, "N"]
    used: int
    ids: Ids


class SpeechSpecialTokens(NamedTuple):
    """`prompt` precedes every transcript, `eos` follows it, and `suppressed` tokens are never generated."""

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
        frames_of_windows = frame_windows(torch.stack([sound.window for sound in sounds]), self.bands)
        spectrograms = [
            x if self.padding == "silence" else x[: sound.used // HOP] for x, sound in zip(frames_of_windows, sounds)
        ]
        if rng_key is not None:
            rngs = [
                sample_rng(epoch_seed(self.seed, _MASK_STREAM), position) for position in rng_key.positions.tolist()
            ]
            spectrograms = [mask_spectrogram(x, self.augment, rng) for x, rng in zip(spectrograms, rngs)]
        frames = torch.stack([F.pad(x, (0, 0, 0, self.frames - len(x))) for x in spectrograms])
        decoder_ids, layout, labels = teacher_forcing(
            [sound.ids for sound in sounds], self.special_tokens.prompt, self.special_tokens.eos
        )
        tokens, computed = (
            sum(len(sound.ids) + 1 for sound in sounds),
            len(frames) * self.frames // 2 + decoder_ids.numel(),
        )
        return Batch((frames, Layout.full(len(frames), self.frames), decoder_ids, layout), labels, tokens, computed)

    def save(self, directory: Path) -> None:
        self.codec.save(directory)
        usage = read_usage(directory)
        settings = {**usage.settings, **padding_setting(self.padding)}
        replace(usage, settings=settings, ends=(self.special_tokens.eos,)).save(directory)


def normalize_words(text: str) -> str:
    """Text normalised for comparing words: lower case, no punctuation except apostrophes."""
    return " ".join(_PUNCTUATION.sub(" ", text.lower()).split())


H = TypeVar("H", bound=SpeechDataset)


class SpeechRecognition(SequenceGeneration[H], Generic[H]):
    """Speech recognition, scored by the word error rate after `normalize`; `signature` describes the normalisation."""

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
