"""Audio classification, and statistics that detect out-of-distribution recordings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, cast

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from headway.config_kinds import register
from headway.data import ClassSplitConfig
from headway.data.labelled_files import LabelledFiles, read_labelled_files
from headway.data.prepared.prepared_samples import PreparedSamples
from headway.data.prepared.shard_reader import is_prepared
from headway.domains.audio.augmentation import (
    SoundAugmentConfig,
    add_noise,
    augment_spectrogram,
    augmentation_rng,
    change_speed_and_gain,
    fit_to_window,
)
from headway.domains.audio.framing import bands_of, check_lengths, choose_window, window_of, with_window
from headway.domains.audio.mel import HOP, MIN_SAMPLES, RATE, log_mel
from headway.domains.audio.sound_files import AUDIO_EXTENSIONS, Sounds, open_sounds
from headway.domains.audio.sound_shards import PreparedSounds
from headway.errors import ConfigError
from headway.formats.out_of_distribution import SampleStatistics, TrainingStatistics
from headway.learn import Recipe, Task, TaskConfig
from headway.learn.examples import Batch, Contents, RngKey
from headway.learn.objectives.classes import ClassSamples, check_classes
from headway.learn.objectives.predictions import HEAD, Prediction
from headway.learn.objectives.targets import ChosenTarget, TargetConfig, TargetSamples, choose_target, target_task
from headway.learn.recipe import batch_size_of
from headway.learn.report import Picture
from headway.learn.report.pictures import spectrogram
from headway.learn.shard_batches import PreparedExamples
from headway.nn.models import DistilledHeadConfig, ModelConfig, PooledHeadConfig, TransformerConfig

_MAX_MEASURED = 1_000  # recordings for the in-distribution statistics, about 2 ms each


@dataclass(frozen=True)
class SoundTaskConfig(TaskConfig):
    """Shared settings of audio tasks.

    `seconds` is the length of the model's window (none: the longest recording). `skip_bad` skips and counts unusable
    samples: damaged recordings and, if there are transcripts, transcripts without a recording, recordings without a
    transcript, and recordings longer than the window. Otherwise each is an error. `smoothing` is label smoothing
    (Szegedy et al. 2016).
    """

    seconds: float | None = None  # length of the model's window; none: the longest recording
    skip_bad: bool = False  # whether to skip and count unusable samples
    smoothing: float = 0.0  # share of each label's probability that is spread over all classes
    augment: SoundAugmentConfig = SoundAugmentConfig()  # augmentation of training recordings
    split: ClassSplitConfig = ClassSplitConfig(validation=0.1, test=0.1)  # held-out shares

    def __post_init__(self) -> None:
        if self.seconds is not None and not 0.02 <= self.seconds <= 3600:
            raise ConfigError(f"task.seconds is {self.seconds:g}; choose a window from 0.02 to 3600 s, or none")
        if not 0 <= self.smoothing < 1:
            raise ConfigError(f"task.smoothing is {self.smoothing}; choose a fraction of at least 0 and below 1")


@register("sounds")
@dataclass(frozen=True)
class SoundsConfig(SoundTaskConfig, TargetConfig):
    """Predict the class of each recording or, from a table, its number or its labels. The data are folders with
    recordings, one folder per class, or tables with paths and labels.

    A recording longer than the window is an error unless `crop` is set: then it is cropped, at random in training and
    otherwise to its middle.
    """

    start_part: ClassVar[str | None] = "encoder"  # of a Whisper

    prepared_kinds: ClassVar[tuple[str, ...]] = ("sounds",)

    crop: bool = False  # whether to crop recordings longer than the window

    def open(self, recipe: Recipe, data: Sequence[Path] | None, workspace: Path) -> Task:
        """Raises UserError for data that cannot be read, are too small, or do not fit the model."""
        paths = recipe.files(data)
        if not paths or not is_prepared(paths[0]):
            labelled = read_labelled_files(paths, AUDIO_EXTENSIONS, "sound", self.label, self.group)
            return self.task_over(recipe, labelled, workspace)
        samples = PreparedSamples.open(paths, "sounds")
        samples.check_labels()
        if self.label != "label":
            raise ConfigError(f"task.label was decided when {samples.data.name} was prepared; remove the setting")
        return self.task_over(recipe, samples.labelled_files(self.group), workspace, samples)

    def task_over(
        self, recipe: Recipe, labelled: LabelledFiles, workspace: Path, prepared: PreparedSamples | None = None
    ) -> Task:
        """The task on these recordings, which may be prepared."""
        chosen = choose_target(
            labelled.labels, labelled.locations.__getitem__, self, "sound", self.skip_bad, labelled.from_folders
        )
        if not isinstance(recipe.model, TransformerConfig):
            raise ConfigError(
                f"audio classification needs a transformer, not a {type(recipe.model).__name__}; choose another model"
            )
        window_of(recipe.model)  # a ConfigError for a model that does not take audio, before sounds are read
        labelled = labelled.select(chosen.rows)
        if prepared is None:
            sounds = open_sounds(labelled.files, self.skip_bad)
        else:
            prepared = prepared.select(chosen.rows)
            sounds = PreparedSounds(labelled.files, prepared)
        dataset = SoundDataset(self, recipe, labelled, sounds, chosen, workspace, prepared)
        return target_task(dataset, self, "sound", self.smoothing, workspace)


class SoundDataset(PreparedExamples, TargetSamples):
    """Audio windows with their targets, augmented in training."""

    def __init__(
        self,
        config: SoundsConfig,
        recipe: Recipe,
        labelled: LabelledFiles,
        sounds: Sounds,
        chosen: ChosenTarget,
        workspace: Path,
        prepared: PreparedSamples | None = None,
    ) -> None:
        model = cast(TransformerConfig, recipe.model)  # checked by the task
        self.config = config
        self.bands = bands_of(model)
        self.sounds, self.prepared, self.places = sounds, prepared, recipe.train.accumulate
        self.rows = self.prepared_rows = np.setdiff1d(np.arange(len(labelled)), sounds.unreadable)
        self.files = [labelled.files[row] for row in self.rows]
        labels, locations = ([column[row] for row in self.rows] for column in (labelled.labels, labelled.locations))
        if chosen.target.kind == "class":
            check_classes(labelled.labels, labels, "sound")
        lengths = sounds.lengths[self.rows]
        seconds = config.seconds
        if recipe.start is not None and not model.heads and seconds is None:
            # the encoder of a published Whisper, whose window of 30 s most recordings would not fill
            seconds = min(int(lengths.max(initial=1)), window_of(model) * HOP) / RATE
        self.frames = choose_window(recipe, model, lengths, seconds, workspace)
        windowed_model = with_window(model, self.frames)
        self.tokens = windowed_model.context or windowed_model.embed.length or 1  # per recording
        if not config.crop:
            location = locations[int(lengths.argmax())] if len(locations) else ""
            check_lengths(lengths, self.frames, location, "cut it, set task.crop=true, or raise task.seconds")
        samples = ClassSamples(
            labels,
            labelled.named_splits[self.rows],
            [sounds.keys[row] for row in map(int, self.rows)],
            locations.__getitem__,
            None if labelled.groups is None else [labelled.groups[row] for row in self.rows],
        )
        self.seed, self.batch_size = recipe.train.seed, batch_size_of(recipe)
        self.set_targets(samples, chosen, config.split, "recordings", "a folder", workspace)

    def contents(self) -> Contents:
        return {**super().contents(), "sounds": ([self.sounds.keys[row] for row in map(int, self.rows)],)}

    @property
    def remarks(self) -> tuple[str, ...]:
        return (*super().remarks, *self.sounds.remarks)

    def adapt(self, model: ModelConfig) -> ModelConfig:
        """`model` with the window. Raises UserError for empty splits."""
        for split in ("train", "validation"):
            self.splits.rows(split)
        assert isinstance(model, TransformerConfig)
        return with_window(model, self.frames)

    def take(self, rows: np.ndarray, rng_key: RngKey | None = None) -> Batch:
        """Log-mel frames, Float[B, T, M], and targets."""
        augment, windows = self.config.augment, []
        rngs = (
            [None] * len(rows)
            if rng_key is None
            else [augmentation_rng(self.seed, p) for p in rng_key.positions.tolist()]
        )
        for row, rng in zip(rows.tolist(), rngs):
            sound = self.sounds[int(self.rows[row])]
            if rng is None:
                windows.append(fit_to_window(sound, self.frames * HOP))
            else:
                sound = change_speed_and_gain(sound, augment, rng)
                window = fit_to_window(sound, self.frames * HOP, augment.shift, rng)
                windows.append(add_noise(window, len(sound), augment, rng))
        frames = window_frames(torch.stack(windows), self.frames, self.bands)
        augmented = torch.stack(
            [x if rng is None else augment_spectrogram(x, augment, rng) for x, rng in zip(frames, rngs)]
        )
        return Batch((augmented,), torch.from_numpy(self.targets[rows]), len(rows), len(rows) * self.tokens)

    def input_statistics(self) -> TrainingStatistics:
        """In-distribution statistics of the training recordings."""
        rows = self.in_few_shards(self.rows[self.splits.rows("train")], _MAX_MEASURED)
        sample = rows[:: -(-len(rows) // _MAX_MEASURED)]
        return TrainingStatistics(
            alike=SampleStatistics.fit(
                np.stack([sound_statistics(crop_to_window(self.sounds[row], self.frames)) for row in sample])
            )
        )

    def describe_row(self, row: int) -> str:
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

    def gallery(self, model: nn.Module, predictions: Sequence[Prediction]) -> list[Picture]:
        """Two model inputs."""
        pictures = []
        for row in self.spread_rows(2):
            frames = self.take(np.array([row])).inputs[0][0]
            figure = spectrogram(frames.numpy(), len(frames) * HOP / RATE)
            pictures.append(Picture("Model input", self.describe_row(row), figure))
        return pictures


def window_frames(windows: Float[Tensor, "*B N"], frames: int, bands: int) -> Float[Tensor, "*B T M"]:
    """The frames of windows, padded with silence if shorter than one frame."""
    missing = max(0, MIN_SAMPLES - windows.shape[-1])
    return log_mel(F.pad(windows, (0, missing)), bands)[..., :frames, :]


_BANDS, _BAND_GROUPS = 40, 8  # mel bands, and the groups of neighbouring bands that are averaged
_LEVELS = 6  # loudness levels of a histogram
_DEPTH = 2.0  # maximum depth below the loudest frame: 8 decades of power, in frame units


def sound_statistics(sound: Float[Tensor, "N"]) -> Float[np.ndarray, "F"]:
    """Loudness-independent statistics of a recording, from 0 to 1: mean, standard deviation and mean change over time
    of each of 8 groups of bands; a histogram of levels; the mean difference between bands; and the contrast, which is 0
    for a silent or constant recording.
    """
    frames = log_mel(F.pad(sound, (0, max(0, MIN_SAMPLES - len(sound)))), _BANDS)
    levels_db = ((frames - frames.max() + _DEPTH) / _DEPTH).numpy().astype(np.float64)
    groups = levels_db.reshape(len(levels_db), _BAND_GROUPS, -1).mean(2)
    changes = np.abs(np.diff(groups, axis=0, append=groups[-1:])).mean(0)
    histogram = np.histogram(levels_db, _LEVELS, (0, 1))[0] / levels_db.size
    band_difference = np.abs(np.diff(levels_db, axis=1)).mean()
    return np.array([*groups.mean(0), *groups.std(0), *changes, *histogram, band_difference, levels_db.std()])


def crop_to_window(sound: Float[Tensor, "N"], frames: int) -> Float[Tensor, "M"]:
    """The middle of the audio, as much as fits into a window of `frames`."""
    excess = max(0, len(sound) - frames * HOP)
    return sound[excess // 2 : len(sound) - (excess - excess // 2)]
