"""Sound classification, and the statistics of sounds for detecting out-of-distribution ones."""

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
from headway.data import ClassSplitConfig
from headway.data.labelled import Labelled, read_labelled
from headway.domains.audio.augment import SoundAugmentConfig, masked, noisy, placed, varied
from headway.domains.audio.augment import chance as drawn
from headway.domains.audio.mel import HOP, SHORTEST, log_mel
from headway.domains.audio.pictures import seconds
from headway.domains.audio.sound import KINDS
from headway.domains.audio.store import open_sounds
from headway.domains.audio.windows import bands_of, check_lengths, settled, with_window
from headway.errors import ConfigError
from headway.formats.familiar import Alike, Familiar
from headway.learn import Recipe, Task, TaskConfig
from headway.learn.examples import Batch, Chance, Contents
from headway.learn.objectives.classes import HEAD, ClassSamples, check_classes
from headway.learn.objectives.predictions import Prediction
from headway.learn.objectives.targets import ChosenTarget, TargetConfig, TargetSamples, choose_target, target_task
from headway.learn.recipe import batch_size_of
from headway.learn.report import Picture
from headway.learn.report.confusion import spectrogram
from headway.nn.models import DistilledHeadConfig, ModelConfig, PooledHeadConfig, TransformerConfig

_MEASURED = 1_000  # sounds for the in-distribution statistics, about 2 ms each


@dataclass(frozen=True)
class SoundTaskConfig(TaskConfig):
    """Shared settings of audio tasks.

    `seconds` is the model's window, none for the longest sound. `skip_bad` leaves out and counts unusable samples
    (damaged sounds; with transcripts also those without a sound, sounds without one, and sounds longer than the
    window); otherwise each is an error. `smoothing` is label smoothing (Szegedy et al. 2016).
    """

    seconds: float | None = None  # the model's window; none: the longest sound
    skip_bad: bool = False  # whether to leave out unusable samples, and count them
    smoothing: float = 0.0  # share of each label that is spread over all classes
    augment: SoundAugmentConfig = SoundAugmentConfig()  # augmentation of training sounds
    split: ClassSplitConfig = ClassSplitConfig(validation=0.1, test=0.1)  # held-out shares

    def __post_init__(self) -> None:
        if self.seconds is not None and not 0.02 <= self.seconds <= 3600:
            raise ConfigError(f"task.seconds is {self.seconds:g}; choose a window from 0.02 to 3600 s, or none")
        if not 0 <= self.smoothing < 1:
            raise ConfigError(f"task.smoothing is {self.smoothing}; choose a share of at least 0 and below 1")


@register("sounds")
@dataclass(frozen=True)
class SoundsConfig(SoundTaskConfig, TargetConfig):
    """Predict the class of each sound or, from a table, its number or any of several labels. Data are folders of
    sounds, one folder per class, or tables of path and label.

    A sound longer than the window is an error, or is cut with `crop`: at random in training, otherwise to its middle.
    """

    crop: bool = False  # whether to cut sounds longer than the window

    def open(self, recipe: Recipe, data: Sequence[Path] | None, workspace: Path) -> Task:
        """Raises UserError for data that cannot be read, are too small, or do not fit the model."""
        return self.over(recipe, read_labelled(recipe.files(data), KINDS, "sound", self.label), workspace)

    def over(self, recipe: Recipe, found: Labelled, workspace: Path) -> Task:
        """The task over these sounds."""
        chosen = choose_target(found.labels, found.places.__getitem__, self, "sound", self.skip_bad, found.folders)
        sounds = LabelledSounds(self, recipe, found.select(chosen.rows), chosen, workspace)
        return target_task(sounds, self, "sound", self.smoothing, workspace)


class LabelledSounds(TargetSamples):
    """Windows of sounds with their targets, augmented in training."""

    def __init__(
        self, config: SoundsConfig, recipe: Recipe, found: Labelled, chosen: ChosenTarget, workspace: Path
    ) -> None:
        if not isinstance(recipe.model, TransformerConfig):
            raise ConfigError(f"sound classes need a transformer, not a {type(recipe.model).__name__}; choose another")
        self.config = config
        self.bands = bands_of(recipe.model)
        sounds = open_sounds(found.files, config.skip_bad)
        self.kept = np.setdiff1d(np.arange(len(found)), sounds.bad)
        self.sounds = sounds
        self.files = [found.files[row] for row in self.kept]
        labels, places = ([column[row] for row in self.kept] for column in (found.labels, found.places))
        if chosen.target.kind == "class":
            check_classes(found.labels, labels, "sound")
        lengths = sounds.lengths[self.kept]
        self.frames = settled(recipe, recipe.model, lengths, config.seconds, workspace)
        heard = with_window(recipe.model, self.frames)
        self.tokens = heard.context or heard.embed.length or 1  # per sound
        if not config.crop:
            where = places[int(lengths.argmax())] if len(places) else ""
            check_lengths(lengths, self.frames, where, "cut it, set task.crop=true, or raise task.seconds")
        samples = ClassSamples(
            labels, found.named[self.kept], [sounds.keys[row] for row in map(int, self.kept)], places.__getitem__
        )
        self.seed, self.size = recipe.train.seed, batch_size_of(recipe)
        self.settle(samples, chosen, config.split, "sounds", "a folder", workspace)

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
        """Log-mel frames of the windows, Float[B, T, M], and targets."""
        draws = [None] * len(rows) if chance is None else [drawn(self.seed, int(place)) for place in chance.places]
        windows = [self._window(row, draw) for row, draw in zip(rows.tolist(), draws)]
        frames = spectra(torch.stack(windows), self.frames, self.bands)
        augment = self.config.augment
        seen = torch.stack([x if draw is None else masked(x, augment, draw) for x, draw in zip(frames, draws)])
        return Batch((seen,), torch.from_numpy(self.targets[rows]), len(rows), len(rows) * self.tokens)

    def _window(self, row: int, draw: np.random.Generator | None) -> Float[Tensor, "N"]:
        sound, augment = self.sounds[self.kept[row]], self.config.augment
        if draw is None:
            return placed(sound, self.frames * HOP)
        return noisy(placed(varied(sound, augment, draw), self.frames * HOP, augment.shift, draw), augment, draw)

    def met(self) -> Familiar:
        """In-distribution statistics of the training sounds."""
        rows = self.kept[self.splits.rows("train")]
        some = rows[:: -(-len(rows) // _MEASURED)]
        return Familiar(alike=Alike.of(np.stack([glance(middle_of(self.sounds[row], self.frames)) for row in some])))

    def shown(self, row: int) -> str:
        return self.files[row].name

    def with_head(self, model: ModelConfig, name: str, outputs: int) -> TransformerConfig:
        """`model` with its own head, or one over the mean of its tokens."""
        assert isinstance(model, TransformerConfig)
        head = model.heads.get(name) or model.heads.get(HEAD, PooledHeadConfig(pool="mean"))
        if not isinstance(head, (PooledHeadConfig, DistilledHeadConfig)):
            raise ConfigError(f"the head {name!r} is a {type(head).__name__}; choose one of kind pooled or distilled")
        if isinstance(head, DistilledHeadConfig):
            head = replace(head, outputs=outputs) if name == HEAD else PooledHeadConfig(outputs, "mean")
        else:
            head = replace(head, outputs=outputs, scale=1.0, shift=0.0)
        return replace(model, heads={name: head})

    def gallery(self, model: nn.Module, shown: Sequence[Prediction]) -> list[Picture]:
        """Two sounds as model inputs."""
        found = []
        for row in self.spread(2):
            frames = self.take(np.array([row])).inputs[0][0]
            figure = spectrogram(frames.numpy(), seconds(len(frames)))
            found.append(Picture("A sound as model input", self.shown(row), figure))
        return found


def windowed(sound: Float[Tensor, "N"], frames: int, bands: int) -> Float[Tensor, "T M"]:
    """The model input for a sound outside training: the middle of its window."""
    return spectra(placed(sound, frames * HOP), frames, bands)


def spectra(windows: Float[Tensor, "*B N"], frames: int, bands: int) -> Float[Tensor, "*B T M"]:
    """The frames of windows, padded with silence if shorter than one transform."""
    short = max(0, SHORTEST - windows.shape[-1])
    return log_mel(torch.nn.functional.pad(windows, (0, short)), bands)[..., :frames, :]


_BANDS, _PARTS = 40, 8  # mel bands, and the groups of neighbouring bands that are averaged
_LEVELS = 6  # loudness levels of a histogram
_DEEP = 2.0  # maximum depth below the loudest frame: 8 decades of power, in frame units


def glance(sound: Float[Tensor, "N"]) -> Float[np.ndarray, "F"]:
    """Statistics of a sound, independent of its loudness, as numbers from 0 to 1: for each of 8 groups of bands the
    mean, the deviation and the mean change over time; a histogram of levels; the mean difference between bands; and the
    contrast, which is 0 for a silent or constant sound.
    """
    frames = log_mel(F.pad(sound, (0, max(0, SHORTEST - len(sound)))), _BANDS)
    heard = ((frames - frames.max() + _DEEP) / _DEEP).numpy().astype(np.float64)
    parts = heard.reshape(len(heard), _PARTS, -1).mean(2)
    moves = np.abs(np.diff(parts, axis=0, append=parts[-1:])).mean(0)
    levels = np.histogram(heard, _LEVELS, (0, 1))[0] / heard.size
    across = np.abs(np.diff(heard, axis=1)).mean()
    return np.array([*parts.mean(0), *parts.std(0), *moves, *levels, across, heard.std()])


def middle_of(sound: Float[Tensor, "N"], frames: int) -> Float[Tensor, "M"]:
    """The middle of a sound, as much as fits into a window of `frames`."""
    spare = max(0, len(sound) - frames * HOP)
    return sound[spare // 2 : len(sound) - (spare - spare // 2)]
