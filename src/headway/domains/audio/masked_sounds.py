"""Masked sounds: predict hidden frames of unlabelled recordings, and recognise two views of one window."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from headway.config_kinds import register
from headway.data.splits import Splits, split_by_text
from headway.domains.audio.augmentation import (
    SoundAugmentConfig,
    add_noise,
    augment_spectrogram,
    augmentation_rng,
    change_speed_and_gain,
    fit_to_window,
)
from headway.domains.audio.classification import window_frames
from headway.domains.audio.framing import bands_of, choose_window, with_window
from headway.domains.audio.mel import HOP, RATE
from headway.domains.audio.unlabelled_sounds import UnlabelledSounds, read_files
from headway.errors import ConfigError
from headway.learn import Recipe, Task
from headway.learn.examples import Contents
from headway.learn.objectives.masked_patches import (
    MaskedPatches,
    MaskedPatchesConfig,
    MaskedPatchSamples,
    MaskedViews,
    distinct,
    patch_values_head,
)
from headway.learn.report import Picture
from headway.learn.report.pictures import spectrogram
from headway.learn.shard_batches import PreparedExamples
from headway.nn.models import ModelConfig, TransformerConfig

_MAX_UNREAD = 0.25  # of a window, for which no further window is read
_MAX_SHOWN = 2  # recordings in the pictures


@register("masked_sounds")
@dataclass(frozen=True)
class MaskedSoundsConfig(MaskedPatchesConfig):
    """Predict hidden frames of unlabelled recordings, and recognise two views of one window.

    `seconds` is the length of the model's window (none: the longest recording). A longer recording is cut into
    windows at equal distances, which stay in one split.
    """

    prepared_kinds: ClassVar[tuple[str, ...]] = ("sounds",)

    seconds: float | None = None  # length of the model's window; none: the longest recording
    augment: SoundAugmentConfig = SoundAugmentConfig()  # augmentation of views

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.seconds is not None and not 0.02 <= self.seconds <= 3600:
            raise ConfigError(f"task.seconds is {self.seconds:g}; choose a window from 0.02 to 3600 s, or none")

    def open(self, recipe: Recipe, data: Sequence[Path] | None, workspace: Path) -> Task:
        """Raises UserError for recordings that cannot be read, are too few, or do not fit the model."""
        if not isinstance(recipe.model, TransformerConfig):
            raise ConfigError(
                f"hidden frames need a transformer, not a {type(recipe.model).__name__}; choose another model"
            )
        bands_of(recipe.model)  # a ConfigError for a model that does not take audio, before sounds are read
        unlabelled = read_files(recipe.files(data))
        return Task(MaskedSounds(self, recipe, recipe.model, unlabelled, workspace), MaskedPatches("recording", self))


class MaskedSounds(PreparedExamples, MaskedPatchSamples):
    """Windows of unlabelled recordings, each once, with augmented views in training."""

    def __init__(
        self,
        config: MaskedSoundsConfig,
        recipe: Recipe,
        model: TransformerConfig,
        unlabelled: UnlabelledSounds,
        workspace: Path,
    ) -> None:
        sounds = unlabelled.open(config.skip_bad)
        self.config, self.sounds, self.bands = config, sounds, bands_of(model)
        self.hiding, self.contrast = config.hiding, config.contrast
        unreadable = set(sounds.unreadable)
        readable = np.array([row for row in distinct(sounds.keys) if row not in unreadable], np.int64)
        lengths = sounds.lengths[readable]
        self.frames = choose_window(recipe, model, lengths, config.seconds, workspace)
        head = patch_values_head(with_window(model, self.frames))
        self.grid = self.frames // head.patch[0], self.bands // head.patch[1]
        size = self.frames * HOP
        counts = np.maximum(1, np.ceil(lengths / size - _MAX_UNREAD)).astype(np.int64)
        self.recordings = np.repeat(readable, counts)  # of each window
        starts = [
            np.linspace(0, max(0, length - size) * (count > 1), count).astype(np.int64)
            for length, count in zip(lengths.tolist(), counts.tolist())
        ]
        self.starts = np.concatenate(starts or [np.zeros(0, np.int64)])  # of each window, in samples
        keys = [sounds.keys[row] for row in self.recordings.tolist()]
        self.set_prepared(unlabelled.parts(), recipe, self.recordings)
        indices = split_by_text(keys, unlabelled.decided_splits()[self.recordings], config.split)
        self.splits = Splits(indices, np.arange(len(keys)), "windows of recordings", "recordings")
        self.set_batches(recipe, "windows of recordings")

    def adapt(self, model: ModelConfig) -> ModelConfig:
        """`model` with the window. UserError for a split without recordings."""
        for split in ("train", "validation"):
            self.splits.rows(split)
        assert isinstance(model, TransformerConfig)  # checked by the task
        return with_window(model, self.frames)

    def view(self, rows: Int[np.ndarray, "B"], positions: Int[np.ndarray, "B"] | None) -> Float[Tensor, "B T M"]:
        """Log-mel frames."""
        size, augment, windows, rngs = self.frames * HOP, self.config.augment, [], []
        for index, row in enumerate(rows.tolist()):
            start = int(self.starts[row])
            sound = self.sounds[int(self.recordings[row])][start : start + size]
            if positions is None:
                windows.append(fit_to_window(sound, size))
                continue
            rngs.append(augmentation_rng(self.seed, int(positions[index])))
            sound = change_speed_and_gain(sound, augment, rngs[-1])
            window = fit_to_window(sound, size, augment.shift, rngs[-1])
            windows.append(add_noise(window, len(sound), augment, rngs[-1]))
        frames = window_frames(torch.stack(windows), self.frames, self.bands)
        return torch.stack([augment_spectrogram(x, augment, rng) for x, rng in zip(frames, rngs)]) if rngs else frames

    def contents(self) -> Contents:
        return {"sounds": (self.sounds.keys,)}

    @property
    def remarks(self) -> tuple[str, ...]:
        return (*super().remarks, *self.sounds.remarks)

    def describe_row(self, row: int) -> str:
        """The file name of a recording, and where the window starts."""
        seconds = round(int(self.starts[row]) / RATE, 2)
        return self.sounds.files[int(self.recordings[row])].name + (f", from {seconds:g} s" if seconds else "")

    def compare(self, views: MaskedViews) -> list[Picture]:
        """The frames of recordings: with hidden ones, with the predicted ones, and as they are."""
        pictures = []
        for hidden, predicted, complete in zip(
            *(part[:_MAX_SHOWN] for part in (views.hidden, views.predicted, views.inputs))
        ):
            for title, frames in (("Hidden frames", hidden), ("Predicted frames", predicted), ("Complete", complete)):
                visible = frames.nan_to_num(float(complete.min())).numpy()
                figure = spectrogram(visible, len(visible) * HOP / RATE)
                pictures.append(Picture(title, "a held-out recording", figure))
        return pictures
