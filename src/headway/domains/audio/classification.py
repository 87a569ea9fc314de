"""A class for each sound: what a folder of sounds teaches; and how a sound is at a first hearing, so that one unlike
all others can be told.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from headway.config import register
from headway.data import SplitConfig
from headway.data.labelled import Labelled, read_labelled
from headway.domains.audio.augment import SoundAugmentConfig, masked, noisy, placed, varied
from headway.domains.audio.augment import chance as drawn
from headway.domains.audio.mel import HOP, SHORTEST, log_mel
from headway.domains.audio.pictures import class_pictures
from headway.domains.audio.sound import KINDS
from headway.domains.audio.store import open_sounds
from headway.domains.audio.windows import bands_of, check_lengths, settled, with_window
from headway.errors import ConfigError
from headway.formats.familiar import Alike, Familiar
from headway.learn import Recipe, Task, TaskConfig
from headway.learn.examples import Batch, Chance, Contents
from headway.learn.objectives.classes import HEAD, Classes, Classified, ClassSamples, check_classes
from headway.learn.recipe import batch_size_of
from headway.learn.report import Picture
from headway.nn.models import DistilledHeadConfig, ModelConfig, PooledHeadConfig, TransformerConfig

_MEASURED = 1_000  # sounds of which it is taken how they are at a first hearing, some 2 ms each


@dataclass(frozen=True)
class SoundTaskConfig(TaskConfig):
    """What tasks over sounds share.

    `seconds` is the window that the model hears, none for the longest sound. `skip_bad` leaves out what cannot be used
    (sounds that are damaged; where there are transcripts, those without a sound, sounds without one, and what is longer
    than the window), and counts it; else each is an error. `smoothing` spreads that share of each label over all
    (Szegedy et al. 2016).
    """

    seconds: float | None = None  # the window that the model hears; none: the longest sound
    skip_bad: bool = False  # leave out what cannot be used, and count it
    smoothing: float = 0.0  # share of each label that is spread over all
    augment: SoundAugmentConfig = SoundAugmentConfig()  # what training changes of sounds
    split: SplitConfig = SplitConfig(validation=0.1, test=0.1)  # what is held out

    def __post_init__(self) -> None:
        if self.seconds is not None and not 0.02 <= self.seconds <= 3600:
            raise ConfigError(f"task.seconds is {self.seconds:g}; give a window from 0.02 to 3600 s, or none")
        if not 0 <= self.smoothing < 1:
            raise ConfigError(f"task.smoothing is {self.smoothing}; give a share from 0 to below 1")


@register("sounds")
@dataclass(frozen=True)
class SoundsConfig(SoundTaskConfig):
    """Give each sound its class. Data are folders of sounds, a folder for each class, or tables of path and label.

    A sound that is longer than the window is an error, or with `crop` cut: to any part in training, to its middle else.
    """

    crop: bool = False  # cut sounds that are longer than the window

    def open(self, recipe: Recipe, data: Sequence[Path] | None, workspace: Path) -> Task:
        """Raises UserError for data that cannot be read, hold too little, or do not fit the model."""
        return self.over(recipe, read_labelled(recipe.files(data), KINDS, "sound"), workspace)

    def over(self, recipe: Recipe, found: Labelled, workspace: Path) -> Task:
        """The task over these sounds."""
        return Task(LabelledSounds(self, recipe, found, workspace), SoundClasses("sound", self.smoothing))


class LabelledSounds(Classified):
    """Windows of sounds with a label each, changed at random in training."""

    def __init__(self, config: SoundsConfig, recipe: Recipe, found: Labelled, workspace: Path) -> None:
        if not isinstance(recipe.model, TransformerConfig):
            raise ConfigError(f"classes need a transformer, and the model is a {type(recipe.model).__name__}")
        self.config = config
        self.bands = bands_of(recipe.model)
        sounds = open_sounds(found.files, config.skip_bad)
        self.kept = np.setdiff1d(np.arange(len(found)), sounds.bad)
        self.sounds = sounds
        self.files = [found.files[row] for row in self.kept]
        labels, places = ([column[row] for row in self.kept] for column in (found.labels, found.places))
        check_classes(found.labels, labels, "sound")
        lengths = sounds.lengths[self.kept]
        self.frames = settled(recipe, recipe.model, lengths, config.seconds, workspace)
        heard = with_window(recipe.model, self.frames)
        self.tokens = heard.context or heard.embed.length or 1  # that a sound becomes in the model
        if not config.crop:
            where = places[int(lengths.argmax())] if len(places) else ""
            check_lengths(lengths, self.frames, where, "cut it, have it cut by task.crop=true, or raise task.seconds")
        samples = ClassSamples(
            labels, found.named[self.kept], [sounds.keys[row] for row in map(int, self.kept)], places.__getitem__
        )
        self.seed, self.size = recipe.train.seed, batch_size_of(recipe)
        self.label(samples, config.split, "sounds", "a folder", workspace)

    def contents(self) -> Contents:
        return {**super().contents(), "sounds": ([self.sounds.keys[row] for row in map(int, self.kept)],)}

    @property
    def remarks(self) -> tuple[str, ...]:
        return (*super().remarks, *(f"{each[0].upper()}{each[1:]}" for each in self.sounds.remarks))

    def adapt(self, model: ModelConfig) -> ModelConfig:
        """`model` with the window. Raises UserError for empty splits."""
        for split in ("train", "validation"):
            self.splits.rows(split)
        assert isinstance(model, TransformerConfig)
        return with_window(model, self.frames)

    def take(self, rows: np.ndarray, chance: Chance | None = None) -> Batch:
        """Log-mel frames of the windows, Float[B, T, M], and classes."""
        draws = [None] * len(rows) if chance is None else [drawn(self.seed, int(place)) for place in chance.places]
        windows = [self._window(row, draw) for row, draw in zip(rows.tolist(), draws)]
        frames = spectra(torch.stack(windows), self.frames, self.bands)
        augment = self.config.augment
        seen = torch.stack([x if draw is None else masked(x, augment, draw) for x, draw in zip(frames, draws)])
        return Batch((seen,), torch.from_numpy(self.classes[rows]), len(rows), len(rows) * self.tokens)

    def _window(self, row: int, draw: np.random.Generator | None) -> Float[Tensor, "N"]:
        sound, augment = self.sounds[self.kept[row]], self.config.augment
        if draw is None:
            return placed(sound, self.frames * HOP)
        return noisy(placed(varied(sound, augment, draw), self.frames * HOP, augment.shift, draw), augment, draw)

    def met(self) -> Familiar:
        """What the training sounds have in common."""
        rows = self.kept[self.splits.rows("train")]
        some = rows[:: -(-len(rows) // _MEASURED)]
        return Familiar(alike=Alike.of(np.stack([glance(middle_of(self.sounds[row], self.frames)) for row in some])))

    def shown(self, row: int) -> str:
        return self.files[row].name


class SoundClasses(Classes[LabelledSounds]):
    """The class of a sound."""

    def adapt(self, model: ModelConfig, examples: LabelledSounds) -> ModelConfig:
        """`model` with a head of as many classes as there are."""
        assert isinstance(model, TransformerConfig)
        head = model.heads.get(HEAD, PooledHeadConfig(pool="mean"))
        if not isinstance(head, (PooledHeadConfig, DistilledHeadConfig)):
            raise ConfigError(f"the head {HEAD!r} is a {type(head).__name__}; choose one of kind pooled or distilled")
        return replace(model, heads={HEAD: replace(head, outputs=len(examples.labels))})

    def pictures(self, model: nn.Module, examples: LabelledSounds) -> list[Picture]:
        """What is taken for what on the split that is judged last, and two sounds as they are heard."""
        found = self.predicted(model, examples)
        shown = [(examples.shown(row), examples.take(np.array([row])).inputs[0][0]) for row in examples.spread(2)]
        return class_pictures(examples.labels, found.right, found.said, shown)


def windowed(sound: Float[Tensor, "N"], frames: int, bands: int) -> Float[Tensor, "T M"]:
    """What a model hears of a sound outside training: the middle of its window."""
    return spectra(placed(sound, frames * HOP), frames, bands)


def spectra(windows: Float[Tensor, "*B N"], frames: int, bands: int) -> Float[Tensor, "*B T M"]:
    """The frames of windows; those that are shorter than the shortest transform are followed by silence."""
    short = max(0, SHORTEST - windows.shape[-1])
    return log_mel(torch.nn.functional.pad(windows, (0, short)), bands)[..., :frames, :]


_BANDS, _PARTS = 40, 8  # mel bands, and the parts of neighbouring ones whose means are taken
_LEVELS = 6  # of loudness, whose shares are counted
_DEEP = 2.0  # how far below its loudest a frame can be: 8 decades of power, in the units of the frames


def glance(sound: Float[Tensor, "N"]) -> Float[np.ndarray, "F"]:
    """A sound of at least a frame, whatever its loudness, in numbers from 0 to 1: for each of 8 parts of its spectrum
    the mean, the deviation and the mean difference over time; shares of levels; the mean difference from band to band,
    and the contrast, which is 0 where nothing sounds or all sounds alike.
    """
    frames = log_mel(F.pad(sound, (0, max(0, SHORTEST - len(sound)))), _BANDS)
    heard = ((frames - frames.max() + _DEEP) / _DEEP).numpy().astype(np.float64)
    parts = heard.reshape(len(heard), _PARTS, -1).mean(2)
    moves = np.abs(np.diff(parts, axis=0, append=parts[-1:])).mean(0)
    levels = np.histogram(heard, _LEVELS, (0, 1))[0] / heard.size
    across = np.abs(np.diff(heard, axis=1)).mean()
    return np.array([*parts.mean(0), *parts.std(0), *moves, *levels, across, heard.std()])


def middle_of(sound: Float[Tensor, "N"], frames: int) -> Float[Tensor, "M"]:
    """What of a sound stands in a window of so many frames; all of one that fits."""
    spare = max(0, len(sound) - frames * HOP)
    return sound[spare // 2 : len(sound) - (spare - spare // 2)]
