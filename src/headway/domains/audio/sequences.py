"""Digits joined with known gaps: speech whose times are known, made from recordings as often as it is wanted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from headway.codecs import TokenizerCodec, load_codec, train_codec
from headway.codecs.tokenizer import FILE
from headway.config import checked, register
from headway.data import sides_of
from headway.data.order import epoch_seed
from headway.domains.audio.alignment import alignment
from headway.domains.audio.augment import chance, noisy, varied
from headway.domains.audio.digits import Takes, read_takes
from headway.domains.audio.mel import HOP
from headway.domains.audio.pictures import alignment_picture
from headway.domains.audio.resample import RATE
from headway.domains.audio.speech import (
    END,
    PLAIN,
    START,
    Example,
    Marks,
    SpeechConfig,
    SpeechTask,
    check_targets,
    listening,
)
from headway.domains.audio.store import open_sounds
from headway.domains.audio.windows import settled
from headway.errors import ConfigError, UserError
from headway.models import EncoderDecoder
from headway.report import Picture
from headway.report.spectrogram import Span
from headway.train import Recipe, Shard

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
STEP = 0.02  # seconds between timestamps, as Whisper has them
_SPLITS = ("train", "validation", "test", "all")  # what each draws its sequences by


class Spoken(NamedTuple):
    """The samples of a window, and what is said in it when."""

    window: Float[Tensor, "N"]
    spans: list[Span]


@register("spoken_sequences")
@checked
@dataclass(frozen=True)
class SpokenSequencesConfig(SpeechConfig):
    """Write the digits that are said in a window of `seconds`, each between the times of its start and its end.

    One of the set's speakers says `least` to `most` digits, with `gap` seconds of silence between them, drawn between
    the two, and at most `lead` before the first; what does not fit into the window is not said. Sequences of a split
    are joined from its own recordings (the set's test takes; the validation split is drawn from the others):
    `held_out` of validation and of test, and as many as are wanted of training.
    """

    seconds: float | None = 4.0
    least: int = 2  # fewest digits
    most: int = 5  # most digits
    gap: tuple[float, float] = (0.1, 0.6)  # seconds of silence between digits, drawn between the two
    lead: float = 0.5  # most seconds of silence before the first
    held_out: int = 300  # sequences of validation, and of the test

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.seconds is None:
            raise ConfigError("task.seconds is none; give the window of a sequence, such as 4")
        if not 1 <= self.least <= self.most:
            raise ConfigError(f"task.least is {self.least} and task.most {self.most}; give 1 or more, and no fewer")
        if not 0 <= self.gap[0] <= self.gap[1] or self.lead < 0:
            raise ConfigError(f"task.gap is {self.gap} and task.lead {self.lead}; give seconds from 0, the lower first")
        if self.held_out < 1:
            raise ConfigError(f"task.held_out is {self.held_out}; give 1 or more")

    def open(self, recipe: Recipe, data: Sequence[Path] | None, workspace: Path) -> SpokenSequences:
        """Raises UserError for data that are not this set."""
        return SpokenSequences(self, recipe, read_takes(recipe.files(data)), workspace)


class SpokenSequences(SpeechTask):
    """The task over joined digits; besides words it judges the times."""

    def __init__(self, config: SpokenSequencesConfig, recipe: Recipe, takes: Takes, workspace: Path) -> None:
        model = listening(recipe.model)
        self.config, self.takes = config, takes
        self.sounds = open_sounds(takes.files, config.skip_bad)
        sides = {**sides_of(self.sounds.keys, takes.named(None), config.split), "all": np.arange(len(takes.files))}
        self.sides = {side: np.setdiff1d(rows, self.sounds.bad) for side, rows in sides.items()}
        self.voices = {side: _by_speaker(takes, rows) for side, rows in self.sides.items()}
        frames = settled(recipe, model.encoder, self.sounds.lengths, config.seconds, workspace)
        codec = sequence_codec(frames * HOP / RATE) if not (workspace / FILE).exists() else _saved(workspace)
        super().__init__(recipe, codec, _marks(codec), frames, config, workspace)
        self.times = [cast(int, codec.token(name)) for name in time_names(frames * HOP / RATE)]
        self.places = {symbol: place for place, symbol in enumerate(self.times)}
        check_targets(np.array([3 * config.most + 1]), model.context, "a sequence of the most digits")

    def numbers(self, split: str) -> np.ndarray:
        """Those of training have no end; a number of them stands for it."""
        if split not in self.voices or not self.voices[split]:
            raise UserError(f"there are no recordings for the split {split!r}; choose from train, validation and test")
        return np.arange(self.config.held_out)

    def stream(self, shard: Shard, start: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Each place of training has a sequence of its own."""
        self.numbers("train")
        for number in count(start + shard.rank, shard.world):
            places = np.arange(number * self.size, (number + 1) * self.size)
            yield places, places

    def example(self, split: str, number: int, place: int | None = None) -> Example:
        window, spans = self.sequence(split, number, place is not None)
        return Example(window, len(window), [*self.marks.prompt, *self.ids(spans), self.marks.end])

    def sequence(self, split: str, number: int, augmented: bool = False) -> Spoken:
        """The `number`-th sequence of a split: a pure function of both (of training, of the run's seed too)."""
        seed = epoch_seed(self.seed if split == "train" else 0, _SPLITS.index(split))
        draw = chance(seed, number)
        config, voices = self.config, self.voices[split]
        voice = voices[int(draw.integers(len(voices)))]
        window = torch.zeros(self.frames * HOP)
        spans: list[Span] = []
        start = round(draw.uniform(0, config.lead) * RATE)
        for _ in range(int(draw.integers(config.least, config.most + 1))):
            row = int(voice[int(draw.integers(len(voice)))])
            sound = varied(self.sounds[row], config.augment, draw) if augmented else self.sounds[row]
            end = start + len(sound)
            if end > len(window):
                break
            window[start:end] = sound
            spans.append(Span(WORDS[self.takes.digits[row]], start / RATE, end / RATE))
            start = end + round(draw.uniform(*config.gap) * RATE)
        return Spoken(noisy(window, config.augment, draw) if augmented else window, spans)

    def ids(self, spans: Sequence[Span]) -> list[int]:
        """Each word between the symbols of its times."""
        words = self.codec.encode_batch([span.text for span in spans])
        return [
            symbol
            for span, word in zip(spans, words)
            for symbol in (self.times[round(span.start / STEP)], *word, self.times[round(span.end / STEP)])
        ]

    def spans(self, ids: Sequence[int]) -> list[Span]:
        """The words that stand between two times, and these."""
        found: list[Span] = []
        for before, word, after in zip(ids, ids[1:], ids[2:]):
            if before in self.places and word not in self.places and after in self.places:
                text = self.codec.decode([word]).strip()
                found.append(Span(text, self.places[before] * STEP, self.places[after] * STEP))
        return found

    def reference(self, split: str, number: int) -> str:
        return " ".join(span.text for span in self.sequence(split, number).spans)

    def shown(self, split: str, number: int) -> str:
        return _timed(self.sequence(split, number).spans)

    def sample(self, split: str, number: int, ids: Sequence[int]) -> dict[str, str]:
        return {**super().sample(split, number, ids), "times": _timed(self.spans(ids))}

    def scores(self, split: str, numbers: np.ndarray, said: Sequence[Sequence[int]]) -> dict[str, Any]:
        """Word error rate; and by how many milliseconds the times of the words that are right are off, in the mean."""
        pairs = [
            pair
            for number, ids in zip(numbers.tolist(), said)
            for pair in matched(self.sequence(split, number).spans, self.spans(ids))
        ]
        found = super().scores(split, numbers, said)
        if not pairs:
            return found
        off = 1000 * np.abs([(one.start - other.start, one.end - other.end) for one, other in pairs])
        starts, ends = off.mean(0).tolist()
        times = {"boundary_error_ms": float(off.mean()), "start_error_ms": starts, "end_error_ms": ends}
        return {**found, **times, "boundaries": 2 * len(pairs)}

    def pictures(self, model: nn.Module) -> list[Picture]:
        """A sequence of the split that is judged last: when digits are said and heard, and where each was read from."""
        split = self.final_split
        number = max(self.spread(12), key=lambda number: len(self.sequence(split, number).spans))
        example, spans = self.example(split, number), self.sequence(split, number).spans
        found = alignment(cast(EncoderDecoder, model), self, example)
        tracks = {"said": spans, "heard": self.spans(found.ids)}
        name = f"{found.text} (said: {self.reference(split, number)})"
        return [alignment_picture(name, found.frames, tracks, found.weights, found.symbols)]


def _timed(spans: Sequence[Span]) -> str:
    return ", ".join(f"{span.text} {span.start:.2f}–{span.end:.2f}" for span in spans)


def matched(true: Sequence[Span], said: Sequence[Span]) -> list[tuple[Span, Span]]:
    """The words of both that are the same, in their order."""
    blocks = SequenceMatcher(None, [span.text for span in true], [span.text for span in said], False)
    return [(true[block.a + i], said[block.b + i]) for block in blocks.get_matching_blocks() for i in range(block.size)]


def time_names(seconds: float) -> list[str]:
    """The symbols of the times in a window."""
    return [f"<|{place * STEP:.2f}|>" for place in range(round(seconds / STEP) + 1)]


def sequence_codec(seconds: float) -> TokenizerCodec:
    """The ten words, and the symbols around them in Whisper's order, the times last."""
    return train_codec("word", [" ".join(WORDS)], special=(END, START, PLAIN, *time_names(seconds)))


def _saved(workspace: Path) -> TokenizerCodec:
    return cast(TokenizerCodec, load_codec(workspace))


def _marks(codec: TokenizerCodec) -> Marks:
    start, plain, end = (codec.token(name) for name in (START, PLAIN, END))
    if start is None or plain is None or end is None:
        raise UserError(f"the tokenizer has no {START}, {PLAIN} or {END}; start from a run of this task")
    return Marks((start,), end, (start, plain))


def _by_speaker(takes: Takes, rows: np.ndarray) -> list[np.ndarray]:
    """The recordings of each speaker."""
    names = np.array(takes.speakers)[rows]
    return [rows[names == name] for name in sorted(set(names.tolist()))]
