"""Normalised pixels: the image processor of a model's size, and means and deviations per channel."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from headway.codecs.image_processor import ImageProcessor
from headway.nn.models import PatchEmbedConfig

_MAX_MEASURED = 10_000  # images for estimating mean and standard deviation


class Normalizer:
    """Normalises pixel values from 0 to 255 as `processor`, a preprocessor_config.json, describes. `measured` are
    images whose mean and standard deviation per channel replace those of the processor.
    """

    def __init__(self, processor: dict[str, Any], measured: UInt8[np.ndarray, "N H W C"] | None) -> None:
        self.processor = processor
        if measured is not None:  # for values from 0 to 1
            levels = np.arange(256) / 255
            counts = [np.bincount(measured[..., i].reshape(-1), minlength=256) for i in range(measured.shape[-1])]
            means = np.array([np.average(levels, weights=count) for count in counts])
            mean_squares = np.array([np.average(levels**2, weights=count) for count in counts])
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
    return rows[:: max(1, len(rows) // _MAX_MEASURED)]


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
