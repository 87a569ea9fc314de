"""Speech recognition as a task: token likelihood in training, word error rate in evaluation."""

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
from headway.data.order import epoch_seed
from headway.domains.audio.augment import chance as drawn
from headway.domains.audio.augment import masked
from headway.domains.audio.classification import SoundTaskConfig
from headway.domains.audio.framing import Padding, framed, padding_of, said_padding
from headway.domains.audio.mel import HOP
from headway.domains.audio.windows import bands_of, with_window
from headway.errors import ConfigError, UserError
from headway.formats.usage import read_usage
from headway.generate import SearchConfig, beam_search
from headway.generate.prompts import device_of, evaluating
from headway.generate.search import check_beam
from headway.layout import Layout
from headway.learn import Recipe
from headway.learn.examples import Batch, Chance, Samples
from headway.learn.objective import judged
from headway.learn.objectives.written import Ids, Sourced, Sources, Written, shifted
from headway.learn.recipe import batch_size_of
from headway.metrics import language_scores, word_error_rate
from headway.nn.mixers import CrossAttention
from headway.nn.models import EncoderDecoder, EncoderDecoderConfig, ModelConfig, Prompt, attention_maps

START, END, PLAIN = "<|startoftranscript|>", "<|endoftext|>", "<|notimestamps|>"
_MASKS = 1 << 32  # separates the random numbers of masks from all others of a position
_NO_WORD = re.compile(r"[^\w\s']|_")
_END_SHOWN = "·"  # label of the eos token, which has no text


@dataclass(frozen=True)
class SpeechConfig(SoundTaskConfig):
    """Transcribe speech, with beam search of width `beam` (1 is greedy)."""

    beam: int = 1  # beam size; 1 is greedy

    def __post_init__(self) -> None:
        super().__post_init__()
        check_beam("task.beam", self.beam)


class Utterance(NamedTuple):
    """The samples of a window, how many of them belong to the sound (silence follows), and the tokens of its
    transcript.
    """

    window: Float[Tensor, "N"]
    used: int
    ids: Ids


class SpokenMarks(NamedTuple):
    """`prompt` starts every text, `eos` follows it, `suppressed` tokens are never generated."""

    prompt: tuple[int, ...]
    end: int
    never: tuple[int, ...]


class SpokenSounds(Sourced):
    """Sounds with their transcripts. A batch is train.batch_size sounds.

    Subclasses define the samples (`of`) and their transcripts (`with_transcripts`).
    """

    codec: TokenizerCodec
    at_once = 16  # sounds per evaluation batch

    def __init__(
        self, recipe: Recipe, codec: TokenizerCodec, marks: SpokenMarks, frames: int, config: SpeechConfig, place: Path
    ) -> None:
        """The padding past the end of a sound is that of the model in `folder`. Raises ConfigError for a recipe that
        counts tokens.
        """
        self.codec, self.marks = codec, marks
        self.padding: Padding = padding_of(read_usage(place))
        self.frames, self.bands = frames, bands_of(listening(recipe.model).encoder)
        self.seed, self.size = recipe.train.seed, batch_size_of(recipe)
        self.augment = config.augment

    def told(self, samples: Any) -> Sources:
        """Samples with their transcripts."""
        raise NotImplementedError

    def sources(self, split: str, limit: int | None = None) -> Sources:
        return self.told(self.of(split).some(limit))

    def adapt(self, model: ModelConfig) -> ModelConfig:
        """`model` with the window and the codec's vocabulary size. Raises UserError for empty splits."""
        for split in ("train", "validation"):
            self.of(split)
        both = listening(model)
        decoder = replace(both.decoder, symbols=self.codec.size)
        return replace(both, encoder=with_window(both.encoder, self.frames), decoder=decoder)

    def batch(self, sounds: Sequence[Utterance], chance: Chance | None = None) -> Batch:
        """Inputs are frames, Float[B, T, M], with full attention, and decoder tokens, [B, L]; labels are the tokens
        after the prompt, [B, L]. In training, parts of the spectra are masked.
        """
        whole = framed(torch.stack([sound.window for sound in sounds]), self.bands)
        heard = [x if self.padding == "silence" else x[: sound.used // HOP] for x, sound in zip(whole, sounds)]
        if chance is not None:
            draws = [drawn(epoch_seed(self.seed, _MASKS), place) for place in chance.places.tolist()]
            heard = [masked(x, self.augment, draw) for x, draw in zip(heard, draws)]
        frames = torch.stack([F.pad(x, (0, 0, 0, self.frames - len(x))) for x in heard])
        read, layout, labels = shifted([sound.ids for sound in sounds], self.marks.prompt, self.marks.end)
        tokens, computed = sum(len(sound.ids) + 1 for sound in sounds), len(frames) * self.frames // 2 + read.numel()
        return Batch((frames, Layout.full(len(frames), self.frames), read, layout), labels, tokens, computed)

    def save(self, directory: Path) -> None:
        self.codec.save(directory)
        usage = read_usage(directory)
        settings = {**usage.settings, **said_padding(self.padding)}
        replace(usage, settings=settings, ends=(self.marks.end,)).save(directory)


def words(text: str) -> str:
    """A text normalised for comparing words: lower case, no punctuation except apostrophes."""
    return " ".join(_NO_WORD.sub(" ", text.lower()).split())


H = TypeVar("H", bound=SpokenSounds)


class SpeechText(Written[H], Generic[H]):
    """Speech recognition, scored by the word error rate of texts after `normalize`; `signature` describes the
    normalisation.
    """

    def __init__(
        self,
        config: SpeechConfig,
        compared: Callable[[str], str] = words,
        signature: str = "case:lower|punctuation:no",
    ) -> None:
        super().__init__("wer", SearchConfig(config.beam), config.smoothing)
        self.compared, self.signature = compared, signature

    def searched(self, split: str) -> SearchConfig:
        return self.search

    def adapt(self, model: ModelConfig, examples: H) -> ModelConfig:
        """Raises UserError for evaluation splits without a word."""
        for split in ("validation", examples.final_split):
            texts = [text for (text,) in examples.sources(split).references]
            if not any(map(self.compared, texts)):
                raise UserError(
                    f"no text of the {split} split has a word to compare ({len(texts):,} texts such as {texts[0]!r}); "
                    "add texts with words"
                )
        return model

    def judge(self, model: nn.Module, examples: H, split: str, limit: int | None = None) -> dict[str, Any]:
        """As in `SequenceGeneration`, but each sound is encoded once, for the loss and for the transcript."""
        sources, search = examples.sources(split, limit), self.searched(split)
        nats, count, written = 0.0, 0, list[Ids]()
        for batch in _heard(cast(EncoderDecoder, model), sources.given):
            loss = self.losses(model, self.encode(model, batch), batch, 0.0)["loss"]
            nats, count = nats + float(loss.total), count + loss.count
            written += self._written(cast(EncoderDecoder, model), examples, batch, search)
        return {**language_scores(nats, count), **self.scores(examples, sources, written), "beam": search.beam}

    def write(self, model: nn.Module, examples: H, sources: Sources, search: SearchConfig) -> list[Ids]:
        both = cast(EncoderDecoder, model)
        return [ids for batch in _heard(both, sources.given) for ids in self._written(both, examples, batch, search)]

    def _written(self, model: EncoderDecoder, examples: H, batch: Batch, search: SearchConfig) -> list[Ids]:
        (heard, layout, *_), marks = batch.inputs, examples.marks
        room = cast(int, model.config.context) - len(marks.prompt)
        unspelt = range(examples.codec.size, model.config.symbols)  # published vocabularies may exceed the tokenizer's
        ids = torch.tensor([marks.prompt] * layout.batch, device=batch.targets.device)
        prompt = Prompt(ids, Layout.full(*ids.shape, device=ids.device), heard, layout)
        found = beam_search(model, prompt, [room] * layout.batch, marks.end, search, (*marks.never, *unspelt))
        return [best.ids for best, *_ in found]

    def scores(self, examples: H, sources: Sources, written: Sequence[Ids]) -> dict[str, Any]:
        right = [[self.compared(text) for text in texts] for texts in sources.references]
        found = word_error_rate([self.compared(text) for text in examples.texts(written)], right)
        return {**found, "wer_signature": self.signature}

    def sample(self, examples: H, source: str, ids: Ids, right: Sequence[str]) -> dict[str, str]:
        """With a check mark if all words are correct."""
        found = super().sample(examples, source, ids, right)
        output = found["output"].strip()
        mark = "✓" if self.compared(output) == self.compared(found["reference"]) else "✗"
        return {"": mark, **found, "output": output}

    @torch.no_grad()
    def alignment(self, model: EncoderDecoder, examples: H, sample: Samples) -> SpeechAlignment:
        """The cross-attention of the generated transcript of one sample, averaged over layers and heads."""
        prompt, codec = list(examples.marks.prompt), examples.codec
        [ids] = self.write(model, examples, examples.told(sample), self.search)
        with evaluating(model):
            frames, heard, *_ = sample.take(np.array([0])).to(device_of(model)).inputs
            target = torch.tensor([[*prompt, *ids]], device=frames.device)
            layout = Layout.full(*target.shape, device=frames.device)
            maps = attention_maps(model, lambda: model(frames, heard, target, layout))
        read = [each[0].mean(0) for name, each in maps.items() if isinstance(model.get_submodule(name), CrossAttention)]
        weights = torch.stack(read).mean(0)[len(prompt) - 1 :].cpu().numpy()
        names = [codec.decode([i]).strip() or (codec.tokenizer.id_to_token(i) or "").strip("<|>") for i in ids]
        return SpeechAlignment(codec.decode(ids).strip(), ids, [*names, _END_SHOWN], weights, frames[0].cpu())


def _heard(model: EncoderDecoder, samples: Samples) -> Iterator[Batch]:
    """The samples once, in batches with encoder outputs as inputs."""
    for _, batch in judged(model, samples):
        frames, layout, *rest = batch.inputs
        yield batch._replace(inputs=(model.hear(frames, layout), layout, *rest))


class SpeechAlignment(NamedTuple):
    """A transcript: its tokens with eos, and their attention, weights whose rows sum to 1 over the encoder's steps of
    20 ms. `frames` are the model inputs.
    """

    text: str
    ids: Ids
    symbols: list[str]
    weights: Float[np.ndarray, "N S"]
    frames: Float[Tensor, "T M"]


def listening(model: ModelConfig) -> EncoderDecoderConfig:
    """The model if it is a speech encoder-decoder; ConfigError for another."""
    if not isinstance(model, EncoderDecoderConfig) or model.tie in ("all", "embeddings"):
        raise ConfigError(
            f"transcription needs an encoder_decoder whose encoder takes sounds, but the model is a "
            f"{type(model).__name__}; choose another, such as whisper-tiny"
        )
    bands_of(model.encoder)
    return model


def check_targets(lengths: np.ndarray, context: int | None, named: str) -> None:
    """UserError if the longest text, located at `named`, exceeds the decoder's context."""
    longest = int(lengths.max(initial=0))
    if context is not None and longest > context:
        raise UserError(
            f"{named} has a text of {longest} tokens, more than the model's context of {context}; cut sound and "
            "text, or raise model.decoder.context"
        )
