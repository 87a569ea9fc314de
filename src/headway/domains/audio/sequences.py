"""Spoken digits, and sequences of digits joined with known gaps: speech with known times."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from pathlib import Path, PurePath
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from headway.codecs import TokenizerCodec, load_codec, train_codec
from headway.codecs.tokenizer import FILE
from headway.config import checked, register
from headway.data import Splits, sides_of
from headway.data.files import ARCHIVES, File, kind_of
from headway.data.fingerprint import fingerprint
from headway.data.labelled import Labelled
from headway.data.order import epoch_seed
from headway.data.packed import open_packed
from headway.data.splits import Sides, side_number
from headway.data.store import cache_key, cache_root, open_or_build
from headway.domains.audio.augment import chance as drawn
from headway.domains.audio.augment import noisy, varied
from headway.domains.audio.classification import SoundsConfig
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
)
from headway.domains.audio.store import open_sounds
from headway.domains.audio.windows import settled
from headway.errors import ConfigError, UserError, nearest
from headway.learn import Recipe, Task
from headway.learn.examples import Batch, ByCount, Chance, Contents, spread
from headway.learn.objectives.written import Ids, Sources
from headway.learn.report import Picture
from headway.learn.report.confusion import Span
from headway.nn.models import EncoderDecoder
from headway.received import DAMAGE, place_of

_NAME = re.compile(r"(\d)_([a-z]+)_(\d+)\.wav", re.IGNORECASE)
_TEST_TAKES = 5  # of each digit and speaker, from 0 on: the official split
_LARGEST = 1 << 26  # maximum bytes read of a recording


@dataclass(frozen=True)
class Takes:
    """Recordings in the order of their names: files, digits (0 to 9), speakers, and take numbers, int [N]."""

    files: list[Path]
    digits: np.ndarray
    speakers: list[str]
    takes: np.ndarray

    def named(self, hold_out: str | None) -> np.ndarray:
        """uint8 [N], the test split: takes 0 to 4, or all of one speaker's. UserError for an unknown speaker."""
        test = side_number("test")
        if hold_out is None:
            return np.where(self.takes < _TEST_TAKES, test, 0).astype(np.uint8)
        if hold_out not in self.speakers:
            raise UserError(f"there is no speaker {hold_out!r}; {nearest(hold_out, set(self.speakers))}")
        return np.array([test if speaker == hold_out else 0 for speaker in self.speakers], np.uint8)


def read_takes(paths: Sequence[Path]) -> Takes:
    """The recordings of an archive (.zip, .tar.gz, .tar.xz, ...) or below a folder. UserError if there are none."""
    files = [file for path in paths for file in _files(path)]
    found = sorted((path.name, path, match) for path in files if (match := _NAME.fullmatch(path.name)))
    if not found:
        raise UserError(
            f"{', '.join(map(str, paths))} has no recordings named like 7_jackson_3.wav; use the original data set"
        )
    matches = [match for _, _, match in found]
    numbers = np.array([[int(match[1]), int(match[3])] for match in matches])
    return Takes([path for _, path, _ in found], numbers[:, 0], [match[2].lower() for match in matches], numbers[:, 1])


def _files(path: Path) -> list[Path]:
    place = place_of(path)
    if not place.is_dir():
        if kind_of(place.name) not in ARCHIVES or not place.is_file():
            raise UserError(
                f"{place} is not a folder or an archive ({', '.join(ARCHIVES)}, .tar.xz); use one that exists"
            )
        key = cache_key("takes", fingerprint([File(place)]))
        place = open_or_build(cache_root() / key, lambda part: _unpack(place_of(path), part))
    return [file for file in place.rglob("*.wav") if file.is_file()]


def _unpack(archive: Path, folder: Path) -> None:
    """Extract in one pass, because compressed archives have no random access."""
    try:
        packed = open_packed(archive)
        for name in packed.sizes:
            if _NAME.fullmatch(PurePath(name).name):
                with packed.open(name) as inside:
                    (folder / PurePath(name).name).write_bytes(inside.read(_LARGEST))
    except (*DAMAGE, OSError) as error:
        raise UserError(f"{archive} is damaged ({error or type(error).__name__}); download it again") from error


@register("spoken_digits")
@dataclass(frozen=True)
class SpokenDigitsConfig(SoundsConfig):
    """Classify spoken digits. The test split is the official one, takes 0 to 4 of each digit and speaker, or with
    `hold_out` all recordings of one speaker. The validation split is sampled from the rest.
    """

    hold_out: str | None = None  # the speaker whose recordings are the test split

    def open(self, recipe: Recipe, data: Sequence[Path] | None, workspace: Path) -> Task:
        """Raises UserError for data other than this set."""
        takes = read_takes(recipe.files(data))
        labels = [str(digit) for digit in takes.digits]
        found = Labelled(takes.files, labels, takes.named(self.hold_out), [str(file) for file in takes.files])
        return self.over(recipe, found, workspace)


WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
STEP = 0.02  # seconds between timestamps, as in Whisper
_SPLITS = ("train", "validation", "test", "all")  # their indices seed the sequences


class JoinedDigits(NamedTuple):
    """The samples of a window, and the spoken words with their times."""

    window: Float[Tensor, "N"]
    spans: list[Span]


@register("spoken_sequences")
@checked
@dataclass(frozen=True)
class SpokenSequencesConfig(SpeechConfig):
    """Transcribe the digits in a window of `seconds`, each between its start and end timestamps.

    One speaker reads `least` to `most` digits with a random `gap` of silence between them, and at most `lead` seconds
    before the first; digits that do not fit into the window are left out. Sequences of a split are joined from its own
    recordings (the official test takes; the validation split is sampled from the others): `held_out` each for
    validation and test, and an endless number for training.
    """

    seconds: float | None = 4.0
    least: int = 2  # minimum number of digits
    most: int = 5  # maximum number of digits
    gap: tuple[float, float] = (0.1, 0.6)  # range of the seconds of silence between digits
    lead: float = 0.5  # maximum seconds of silence before the first
    held_out: int = 300  # number of validation and of test sequences

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.seconds is None:
            raise ConfigError("task.seconds is not set; choose the window of a sequence, such as 4")
        if not 1 <= self.least <= self.most:
            raise ConfigError(f"task.least is {self.least} and task.most {self.most}; choose 1 or more, least first")
        if not 0 <= self.gap[0] <= self.gap[1] or self.lead < 0:
            raise ConfigError(f"task.gap is {self.gap} and task.lead {self.lead}; choose seconds from 0, lower first")
        if self.held_out < 1:
            raise ConfigError(f"task.held_out is {self.held_out}; choose 1 or more")

    def open(self, recipe: Recipe, data: Sequence[Path] | None, workspace: Path) -> Task:
        """Raises UserError for data other than this set."""
        return Task(SpokenSequences(self, recipe, read_takes(recipe.files(data)), workspace), TimedDigits(self))


class SpokenSequences(SpokenSounds):
    """Joined digits, each sequence a pure function of its split and index."""

    def __init__(self, config: SpokenSequencesConfig, recipe: Recipe, takes: Takes, workspace: Path) -> None:
        model = listening(recipe.model)
        self.config, self.takes = config, takes
        self.sounds = open_sounds(takes.files, config.skip_bad)
        good = np.setdiff1d(np.arange(len(takes.files)), self.sounds.bad)
        found = sides_of(self.sounds.keys, takes.named(None), config.split)
        sides = Sides({side: np.setdiff1d(rows, self.sounds.bad) for side, rows in found.items()}, found.removed)
        self.splits = Splits(sides, good, "recordings", "recordings")
        names = np.array(takes.speakers)
        self.voices = {
            side: [rows[names[rows] == name] for name in sorted(set(names[rows].tolist()))]  # the rows of each speaker
            for side, rows in (*sides.items(), ("all", good))
        }
        frames = settled(recipe, model.encoder, self.sounds.lengths, config.seconds, workspace)
        saved = (workspace / FILE).exists()
        codec = cast(TokenizerCodec, load_codec(workspace)) if saved else sequence_codec(frames * HOP / RATE)
        start, plain, end = (codec.token(name) for name in (START, PLAIN, END))
        if start is None or plain is None or end is None:
            raise UserError(f"the tokenizer has no {START}, {PLAIN} or {END}; start from a run of this task")
        super().__init__(recipe, codec, SpokenMarks((start,), end, (start, plain)), frames, config, workspace)
        self.times = [cast(int, codec.token(name)) for name in time_names(frames * HOP / RATE)]
        self.places = {symbol: place for place, symbol in enumerate(self.times)}
        check_targets(np.array([3 * config.most + 1]), model.context, "a sequence with the maximum number of digits")

    def contents(self) -> Contents:
        return {
            "sounds": (self.sounds.keys,),
            "digits": (np.asarray(self.takes.digits),),
            "speakers": (self.takes.speakers,),
        }

    @property
    def final_split(self) -> str:
        return self.splits.final

    def of(self, split: str) -> SequenceSamples:
        """Training sequences are endless; `len` is nominal. UserError for a split without recordings."""
        self.splits.rows(split)
        return SequenceSamples(self, split, np.arange(self.config.held_out))

    def sequence(self, split: str, number: int, augmented: bool = False) -> JoinedDigits:
        """The sequence of a split with an index: a pure function of both (for training, also of the run's seed)."""
        seed = epoch_seed(self.seed if split == "train" else 0, _SPLITS.index(split))
        draw = drawn(seed, number)
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
        return JoinedDigits(noisy(window, config.augment, draw) if augmented else window, spans)

    def ids(self, spans: Sequence[Span]) -> list[int]:
        """Each word between the tokens of its times."""
        words = self.codec.encode_batch([span.text for span in spans])
        return [
            symbol
            for span, word in zip(spans, words)
            for symbol in (self.times[round(span.start / STEP)], *word, self.times[round(span.end / STEP)])
        ]

    def spans(self, ids: Sequence[int]) -> list[Span]:
        """The words between two timestamps, with their times."""
        found: list[Span] = []
        for before, word, after in zip(ids, ids[1:], ids[2:]):
            if before in self.places and word not in self.places and after in self.places:
                text = self.codec.decode([word]).strip()
                found.append(Span(text, self.places[before] * STEP, self.places[after] * STEP))
        return found

    def told(self, samples: SequenceSamples) -> Sources:
        spans = samples.spans()
        return Sources(samples, [[" ".join(span.text for span in some)] for some in spans], list(map(_timed, spans)))


@dataclass(frozen=True)
class SequenceSamples:
    """Sequences of a split by index."""

    examples: SpokenSequences
    split: str
    numbers: np.ndarray

    def __len__(self) -> int:
        return len(self.numbers)

    def take(self, numbers: np.ndarray, chance: Chance | None = None) -> Batch:
        """Each training position has its own sequence."""
        examples, chosen = self.examples, self.numbers[numbers] if chance is None else chance.places
        joined = [examples.sequence(self.split, number, chance is not None) for number in chosen.tolist()]
        heard = [Utterance(window, len(window), examples.ids(spans)) for window, spans in joined]
        return examples.batch(heard, chance)

    def spans(self) -> list[list[Span]]:
        """The spoken words of each sequence with their times."""
        return [self.examples.sequence(self.split, number).spans for number in self.numbers.tolist()]

    def training(self) -> ByCount:
        return ByCount(len(self), self.examples.size, self.examples.seed)

    def judging(self) -> ByCount:
        return ByCount(len(self), self.examples.at_once)

    def some(self, limit: int | None) -> SequenceSamples:
        return replace(self, numbers=spread(self.numbers, limit))


class TimedDigits(SpeechText[SpokenSequences]):
    """Digits between their start and end timestamps; scores words and times."""

    def scores(self, examples: SpokenSequences, sources: Sources, written: Sequence[Ids]) -> dict[str, Any]:
        """Adds the mean error of correct words' times, in milliseconds."""
        found = {**super().scores(examples, sources, written), "beam": self.search.beam}
        said = zip(sources.given.spans(), written)
        pairs = [pair for spans, ids in said for pair in matched(spans, examples.spans(ids))]
        if not pairs:
            return found
        off = 1000 * np.abs([(one.start - other.start, one.end - other.end) for one, other in pairs])
        starts, ends = off.mean(0).tolist()
        times = {"boundary_error_ms": float(off.mean()), "start_error_ms": starts, "end_error_ms": ends}
        return {**found, **times, "boundaries": 2 * len(pairs)}

    def sample(self, examples: SpokenSequences, source: str, ids: Ids, right: Sequence[str]) -> dict[str, str]:
        return {**super().sample(examples, source, ids, right), "times": _timed(examples.spans(ids))}

    def pictures(self, model: nn.Module, examples: SpokenSequences) -> list[Picture]:
        """A sequence of the final split: the true and the recognised times of its digits, and the decoder's
        attention.
        """
        some = examples.of(examples.final_split).some(12)
        spans, number = max(zip(some.spans(), some.numbers), key=lambda each: len(each[0]))
        sample = replace(some, numbers=np.array([number]))
        found = self.alignment(cast(EncoderDecoder, model), examples, sample)
        tracks = {"spoken": spans, "recognised": examples.spans(found.ids)}
        [[right]] = examples.told(sample).references
        name = f"{found.text} (spoken: {right})"
        return [alignment_picture(name, found.frames, tracks, found.weights, found.symbols)]


def _timed(spans: Sequence[Span]) -> str:
    return ", ".join(f"{span.text} {span.start:.2f}–{span.end:.2f}" for span in spans)


def matched(true: Sequence[Span], said: Sequence[Span]) -> list[tuple[Span, Span]]:
    """The words that are equal in both, in order."""
    blocks = SequenceMatcher(None, [span.text for span in true], [span.text for span in said], False)
    return [(true[block.a + i], said[block.b + i]) for block in blocks.get_matching_blocks() for i in range(block.size)]


def time_names(seconds: float) -> list[str]:
    """The timestamp tokens of a window."""
    return [f"<|{place * STEP:.2f}|>" for place in range(round(seconds / STEP) + 1)]


def sequence_codec(seconds: float) -> TokenizerCodec:
    """The ten words, and Whisper's special tokens in its order, the timestamps last."""
    return train_codec("word", [" ".join(WORDS)], special=(END, START, PLAIN, *time_names(seconds)))
