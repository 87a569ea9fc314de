"""Normalised pixels: the image processor of a model's size, and means and deviations per channel."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from headway.codecs.image_processor import ImageProcessor
from headway.data.prepared.prepared_samples import PreparedSamples, SampleArrays
from headway.nn.models import PatchEmbedConfig

MAX_MEASURED = 10_000  # images for estimating mean and standard deviation


class ChannelMoments(NamedTuple):
    """The mean of each channel, and of its square, for values from 0 to 1."""

    means: Float[np.ndarray, "C"]
    mean_squares: Float[np.ndarray, "C"]


def channel_moments(
    images: UInt8[np.ndarray, "N H W C"] | SampleArrays, rows: np.ndarray, prepared: PreparedSamples | None
) -> ChannelMoments:
    """Over evenly spaced images of these rows or, for `prepared` ones in many shards, over all from the sums in their
    table.
    """
    if prepared is not None and prepared.is_windowed:
        sums = prepared.sums[rows].sum(0).reshape(2, -1) / (len(rows) * math.prod(images.shape[1:3]))
        return ChannelMoments(sums[0] / 255, sums[1] / 255**2)
    measured, levels = images[measured_rows(rows)], np.arange(256) / 255
    counts = [np.bincount(measured[..., i].reshape(-1), minlength=256) for i in range(measured.shape[-1])]
    means = np.array([np.average(levels, weights=count) for count in counts])
    return ChannelMoments(means, np.array([np.average(levels**2, weights=count) for count in counts]))


class Normalizer:
    """Normalises pixel values from 0 to 255 as `processor`, a preprocessor_config.json, describes. `moments` replace
    the mean and standard deviation of the processor.
    """

    def __init__(self, processor: dict[str, Any], moments: ChannelMoments | None) -> None:
        self.processor = processor
        if moments is not None:
            means, mean_squares = moments
            deviations = np.sqrt(np.maximum(mean_squares - means**2, 1e-4))
            statistics = {"image_mean": means.round(4).tolist(), "image_std": deviations.round(4).tolist()}
            self.processor = {**processor, **statistics}
        preprocessor = ImageProcessor.read(self.processor, "preprocessor_config.json")
        mean, std, self.factor = preprocessor.mean or (0.0,), preprocessor.std or (1.0,), preprocessor.factor or 1.0
        self.mean, self.std = (torch.tensor(values).float().view(1, -1, 1, 1) for values in (mean, std))

    def __call__(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        return ((x * self.factor - self.mean) / self.std).contiguous()

    def undo(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """Pixel values from 0 to 255."""
        return (x * self.std + self.mean) / self.factor


def measured_rows(rows: np.ndarray) -> np.ndarray:
    """The evenly spaced rows that statistics are measured on."""
    return rows[:: max(1, len(rows) // MAX_MEASURED)]


def image_processor(config: dict[str, Any], embed: PatchEmbedConfig) -> tuple[dict[str, Any], bool]:
    """The image processor for the model's size, from `config` if that fits, and whether its means are known.

    Otherwise complete images are resized to the model's size, as in ViT's own processor.
    """
    start_processor = ImageProcessor.read(config, "preprocessor_config.json") if config else None
    if (
        start_processor is not None
        and start_processor.shape == embed.size
        and start_processor.channels == embed.channels
    ):
        return config, True
    mean = std = (0.5,) * embed.channels
    has_means = start_processor is not None and start_processor.channels == embed.channels
    if start_processor is not None and has_means:
        mean, std = start_processor.mean or mean, start_processor.std or std
    return {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": embed.size[0], "width": embed.size[1]},
        "resample": 2 if start_processor is None else start_processor.resample,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(mean),
        "image_std": list(std),
    }, has_means
