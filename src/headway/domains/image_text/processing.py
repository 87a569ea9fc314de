"""How images become what a model reads, where nobody has said so yet."""

from __future__ import annotations

from typing import Any, cast

from headway.checkpoints.usage import Usage
from headway.codecs.processor import ImageProcessor
from headway.models import PatchEmbedConfig, TwoTowerConfig

_KEPT = ("image_processor_type", "feature_extractor_type", "image_mean", "image_std", "resample", "rescale_factor")


def processor_of(usage: Usage, model: TwoTowerConfig) -> dict[str, Any]:
    """A preprocessor_config.json whose images are of the model's size: what `usage` says, or CLIP's."""
    size = cast(PatchEmbedConfig, model.left.embed).size
    said = usage.processor or {"image_processor_type": "CLIPImageProcessor"}
    if usage.processor:
        known = ImageProcessor.read(usage.processor, "preprocessor_config.json")
        if size == known.shape:
            return usage.processor
    kept = {name: said[name] for name in _KEPT if name in said}
    edges = {"height": size[0], "width": size[1]}
    if size[0] == size[1]:
        return {**kept, "size": {"shortest_edge": size[0]}, "do_center_crop": True, "crop_size": edges}
    return {**kept, "size": edges, "do_center_crop": False}
