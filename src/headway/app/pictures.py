"""Pictures of what a language model attends to, for the page of its run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from headway.app.model import Model
from headway.learn.report import Picture, heatmap

_MOST = 24  # symbols, so that a picture can be read
_HEADS = 4


def attention_pictures(model: Model, samples: Sequence[Mapping[str, str]]) -> list[Picture]:
    """Where heads of the last layer look, on the prompt of a sample; none without attention or samples."""
    prompts = [sample["prompt"] for sample in samples if sample.get("prompt")]
    found = model.attention(prompts[0]) if prompts else None
    if found is None or not found.maps:
        return []
    name, weights = list(found.maps.items())[-1]
    part, symbols = weights[:_HEADS, :_MOST, :_MOST].tolist(), found.symbols[:_MOST]
    return [
        Picture(
            f"Attention, head {number}",
            f"of {name}: where each symbol (downwards) looks",
            heatmap(head, symbols, symbols, "self-attention"),
        )
        for number, head in enumerate(part, 1)
    ]
