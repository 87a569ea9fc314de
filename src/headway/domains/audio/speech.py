"""Sounds into symbols as a task: foretell what is said, and judge what is written by word error rate."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self, cast

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from headway.checkpoints.usage import read_usage
from headway.codecs import TokenizerCodec
from headway.data.order import epoch_seed
from headway.data.packing import IGNORED
from headway.domains.audio.augment import chance, masked
from headway.domains.audio.classification import SoundTaskConfig
from headway.domains.audio.framing import Padding, framed, padding_of, said_padding
from headway.domains.audio.mel import HOP
from headway.domains.audio.windows import bands_of, with_window
from headway.errors import ConfigError, UserError
from headway.generate import SearchConfig
from headway.generate.prompts import device_of, evaluating
from headway.generate.search import beam_search
from headway.layout import Layout
from headway.metrics import language_scores
from headway.metrics.errors import word_error_rate
from headway.models import EncoderDecoder, EncoderDecoderConfig, Loss, ModelConfig, Prompt, VocabularyHead
from headway.train import Recipe, Shard, Sided, sharding
from headway.train.recipe import batch_size_of
from headway.train.task import WHOLE

START, END, PLAIN = "<|startoftranscript|>", "<|endoftext|>", "<|notimestamps|>"
_MASKS = 1 << 32  # tells what is drawn for masks from all else that is drawn for a place
_NO_WORD = re.compile(r"[^\w\s']|_")


@dataclass(frozen=True)
class SpeechConfig(SoundTaskConfig):
    """Write what is said, by a search of width `beam` (1 is greedy)."""

    beam: int = 1  # hypotheses of the search; 1 is greedy

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.beam < 1:
            raise ConfigError(f"task.beam is {self.beam}; give 1 or more")


class Example(NamedTuple):
    """The samples of a window, how many of them the sound has, the others being silence behind it, and all symbols of
    what is said in it, from the first of the prompt to the end.
    """

    window: Float[Tensor, "N"]
    used: int
    ids: list[int]


class Marks(NamedTuple):
    """`prompt` begins every text, `end` follows it, `never` is not written."""

    prompt: tuple[int, ...]
    end: int
    never: tuple[int, ...]


@dataclass(frozen=True)
class SpeechBatch:
    """`target` is what the decoder reads, `labels` what it is to foretell; `tokens` counts labels."""

    frames: Float[Tensor, "B T M"]
    target: Int[Tensor, "B L"]
    layout: Layout
    labels: Int[Tensor, "B L"]
    tokens: int

    @property
    def heard(self) -> Layout:
        """Windows are whole: what is past the end of a sound is heard too."""
        return Layout.full(*self.frames.shape[:2], device=self.frames.device)

    @property
    def computed(self) -> int:
        return self.frames.shape[0] * self.frames.shape[1] // 2 + self.target.numel()

    def to(self, device: torch.device | str) -> Self:
        if self.target.device == torch.device(device):
            return self
        frames, target, labels = (part.to(device) for part in (self.frames, self.target, self.labels))
        return type(self)(frames, target, self.layout.to(device), labels, self.tokens)


class SpeechTask(Sided):
    """Cross-entropy of the symbols after the prompt, judged by word error rate. A batch is train.batch_size sounds.

    A domain's task says which sounds there are (`numbers`) and what each is (`example`, `reference`, `shown`).
    """

    goal: str = "wer"
    goal_better: Literal["min", "max"] = "min"
    at_once = 16  # sounds that are heard together
    signature = "case:lower|punctuation:no"  # what is done to texts before their words are compared

    def __init__(
        self, recipe: Recipe, codec: TokenizerCodec, marks: Marks, frames: int, config: SpeechConfig, workspace: Path
    ) -> None:
        """What is heard past the end of a sound is what the model in the `workspace` knows. Raises ConfigError for a
        recipe that counts tokens.
        """
        self.codec, self.marks = codec, marks
        self.compared: Callable[[str], str] = words
        self.padding: Padding = padding_of(read_usage(workspace))
        self.frames, self.bands = frames, bands_of(listening(recipe.model).encoder)
        self.seed = recipe.train.seed
        self.size = batch_size_of(recipe)
        self.smoothing, self.beam, self.augment = config.smoothing, config.beam, config.augment

    def numbers(self, split: str) -> np.ndarray:
        """The sounds of a split, int64 [N]. A UserError where there are none."""
        raise NotImplementedError

    def stream(self, shard: Shard, start: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The places of training batches in an endless stream, and the sounds that stand there, int [B] both."""
        rows = self.numbers("train")
        for places, samples in sharding.endless(len(rows), self.size, self.seed, shard, start):
            yield places, rows[samples]

    def example(self, split: str, number: int, place: int | None = None) -> Example:
        """A sound. Where its `place` in the stream of training is given, what is drawn comes of it and the seed."""
        raise NotImplementedError

    def reference(self, split: str, number: int) -> str:
        """What is said."""
        raise NotImplementedError

    def shown(self, split: str, number: int) -> str:
        """A sound as a line of text."""
        raise NotImplementedError

    def adapt(self, model: ModelConfig) -> ModelConfig:
        """`model` with the window and the codec's symbols. Raises UserError for empty splits, and for those to be
        judged that hold no word.
        """
        self.numbers("train")
        for split in ("validation", self.final_split):
            numbers = self.numbers(split)
            if not any(self.compared(self.reference(split, number)) for number in numbers.tolist()):
                text = self.reference(split, int(numbers[0]))
                raise UserError(
                    f"no text of the {split} split has a word to compare ({len(numbers):,} texts such as {text!r}); "
                    "give texts that have"
                )
        both = listening(model)
        decoder = replace(both.decoder, symbols=self.codec.size)
        return replace(both, encoder=with_window(both.encoder, self.frames), decoder=decoder)

    def batches(self, split: str, shard: Shard = WHOLE, start: int = 0) -> Iterator[SpeechBatch]:
        """Batch k of training holds the places k size, ..., (k + 1) size - 1 of the stream."""
        if split != "train":
            numbers = self.numbers(split)
            for some in sharding.once(len(numbers), self.at_once, shard):
                yield self.batch([self.example(split, number) for number in numbers[some].tolist()])
            return
        for places, numbers in self.stream(shard, start):
            pairs = zip(numbers.tolist(), places.tolist())
            yield self.batch([self.example(split, number, place) for number, place in pairs], places.tolist())

    def batch(self, examples: Sequence[Example], places: Sequence[int] | None = None) -> SpeechBatch:
        """A batch; of training where its `places` in the stream are given, with parts of the spectra masked."""
        whole = framed(torch.stack([example.window for example in examples]), self.bands)
        heard = [x[: self._heard(example.used)] for x, example in zip(whole, examples)]
        if places is not None:
            draws = [chance(epoch_seed(self.seed, _MASKS), place) for place in places]
            heard = [masked(x, self.augment, draw) for x, draw in zip(heard, draws)]
        frames = torch.stack([F.pad(x, (0, 0, 0, self.frames - len(x))) for x in heard])
        lengths = torch.tensor([len(example.ids) - 1 for example in examples])
        target = torch.zeros(len(examples), int(lengths.max()), dtype=torch.long)
        labels = torch.full_like(target, IGNORED)
        for row, (*_, ids) in enumerate(examples):
            text, first = torch.tensor(ids), len(self.marks.prompt) - 1
            target[row, : len(ids) - 1] = text[:-1]
            labels[row, first : len(ids) - 1] = text[first + 1 :]
        return SpeechBatch(frames, target, Layout.padded(lengths), labels, int((labels != IGNORED).sum()))

    def _heard(self, used: int) -> int:
        """The frames of a window that are not 0."""
        return self.frames if self.padding == "silence" else min(self.frames, used // HOP)

    def loss(self, model: nn.Module, batch: SpeechBatch) -> dict[str, Loss]:
        return {"loss": self._loss(model, batch, self.smoothing)}

    def _loss(self, model: nn.Module, batch: SpeechBatch, smoothing: float) -> Loss:
        encoded = model(batch.frames, batch.heard, batch.target, batch.layout)
        return cast(VocabularyHead, model.get_submodule("heads.vocabulary")).loss(encoded.x, batch.labels, smoothing)

    @torch.no_grad()
    def evaluate(self, model: nn.Module, split: str = "validation", limit: int | None = None) -> dict[str, Any]:
        """Loss and perplexity of what is said, without smoothing, and the scores of what is written."""
        numbers = sharding.spread(self.numbers(split), limit)
        nats, count = 0.0, 0
        said: list[list[int]] = []
        with evaluating(model):
            for some in np.split(numbers, range(self.at_once, len(numbers), self.at_once)):
                batch = self.batch([self.example(split, number) for number in some.tolist()]).to(
                    device_of(cast(EncoderDecoder, model))
                )
                loss = self._loss(model, batch, smoothing=0.0)
                nats, count = nats + float(loss.total), count + loss.count
                said += self.write(model, batch.frames)
        return {**language_scores(nats, count), **self.scores(split, numbers, said)}

    def write(self, model: nn.Module, frames: Float[Tensor, "B T M"]) -> list[list[int]]:
        """The likeliest symbols of each window, without prompt and end."""
        rows, prompt = frames.shape[0], self.marks.prompt
        ids = torch.tensor([prompt] * rows, device=frames.device)
        whole = [Layout.full(rows, length, device=frames.device) for length in (len(prompt), frames.shape[1])]
        both = cast(EncoderDecoder, model)
        room = cast(int, both.config.context) - len(prompt)
        unspelt = range(self.codec.size, both.config.symbols)  # published tables may be longer than their tokenizers
        found = beam_search(
            both,
            Prompt(ids, whole[0], frames, whole[1]),
            [room] * rows,
            self.marks.end,
            SearchConfig(self.beam),
            (*self.marks.never, *unspelt),
        )
        return [best.ids for best, *_ in found]

    def scores(self, split: str, numbers: np.ndarray, said: Sequence[Sequence[int]]) -> dict[str, Any]:
        """Word error rate of texts as they are `compared`."""
        right = [[self.compared(self.reference(split, number))] for number in numbers.tolist()]
        found = word_error_rate([self.compared(self.codec.decode(list(ids))) for ids in said], right)
        return {**found, "wer_signature": self.signature, "beam": self.beam}

    def samples(self, model: nn.Module, count: int) -> list[dict[str, str]]:
        """Held-out sounds with what is written and what is said."""
        split, numbers = self.final_split, self.spread(count)
        with evaluating(model), torch.no_grad():
            batch = self.batch([self.example(split, number) for number in numbers]).to(
                device_of(cast(EncoderDecoder, model))
            )
            said = self.write(model, batch.frames)
        return [self.sample(split, number, ids) for number, ids in zip(numbers, said)]

    def sample(self, split: str, number: int, ids: Sequence[int]) -> dict[str, str]:
        """A sound with what is written of it, as symbols, and what is said; marked right where no word is wrong."""
        output, reference = self.codec.decode(list(ids)).strip(), self.reference(split, number)
        mark = "✓" if self.compared(output) == self.compared(reference) else "✗"
        return {"": mark, "source": self.shown(split, number), "output": output, "reference": reference}

    def spread(self, count: int) -> list[int]:
        """Sounds of the split that is judged last, spread evenly over it."""
        return sharding.spread(self.numbers(self.final_split), count).tolist()

    def save(self, directory: Path) -> None:
        self.codec.save(directory)
        usage = read_usage(directory)
        settings = {**usage.settings, **said_padding(self.padding)}
        replace(usage, settings=settings, ends=(self.marks.end,)).save(directory)


def words(text: str) -> str:
    """A text as words are compared: small letters, no punctuation but apostrophes."""
    return " ".join(_NO_WORD.sub(" ", text.lower()).split())


def listening(model: ModelConfig) -> EncoderDecoderConfig:
    """A model that hears and writes; ConfigError for another."""
    if not isinstance(model, EncoderDecoderConfig) or model.tie in ("all", "embeddings"):
        raise ConfigError(
            f"what is said is written by an encoder_decoder whose encoder hears sounds, and the model is a "
            f"{type(model).__name__}; choose another, such as whisper-tiny"
        )
    bands_of(model.encoder)
    return model


def check_targets(lengths: np.ndarray, context: int | None, named: str) -> None:
    """UserError for the longest text, whose place is `named`, where the decoder has no room for it."""
    longest = int(lengths.max(initial=0))
    if context is not None and longest > context:
        raise UserError(
            f"{named} has a text of {longest} symbols, more than the {context} that the model writes; cut sound and "
            "text, or raise model.decoder.context"
        )
