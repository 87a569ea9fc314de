"""Check an export: the written model is read back, and its outputs are compared with those of its source."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from headway.errors import UserError
from headway.formats.deferred import computed
from headway.formats.native import named_tensors, replace_tensor
from headway.layout import Layout
from headway.nn.models import (
    Captioner,
    EncoderDecoder,
    PatchEmbedConfig,
    TokenEmbedConfig,
    Transformer,
    TransformerConfig,
    TwoTower,
    evaluation_mode,
    outline,
)
from headway.nn.models.frames import FramesEmbedConfig, SpectrogramEmbedConfig

_ROWS, _TOKENS, _FRAMES, _SEED = 2, 16, 64, 2017  # of the sample
_CHUNK = 1 << 22  # numbers that are compared at once
_ROUNDING = 1e-5  # largest difference that another order of sums explains, relative to the largest output


class ExportCheck(NamedTuple):
    """The compared outputs of an export, the largest magnitude in its source, and the largest absolute difference."""

    compared: str
    largest: float
    difference: float

    @property
    def summary(self) -> str:
        """One line."""
        return (
            f"read back and compared {self.compared}: largest difference {self.difference:.3g} "
            f"(largest magnitude {self.largest:.3g})"
        )


class ExportResult(NamedTuple):
    """The name of the written model's family or kind in its format, and its check."""

    family: str
    check: ExportCheck


def check_export(source: nn.Module, written: nn.Module, step: float = 0.0) -> ExportCheck:
    """Compare the outputs for a fixed sample, or the weights of a model whose inputs are neither tokens nor images nor
    sounds. Deferred weights are read layer by layer.

    `step` is the largest rounding error of a weight relative to the largest weight of its tensor; 0 for formats that
    keep all bits. Raises UserError for a difference that it does not explain. If weights are rounded, or the source
    computes in another dtype, weights must differ by at most a step, and the source with the written weights must have
    the outputs of the written model.
    """
    limit = min(getattr(model.config, "context", None) or _TOKENS for model in (source, written))
    expected, outputs = sample_outputs(source, limit), sample_outputs(written, limit)
    if not any(bool(tensor.any()) for tensor in expected.values()):  # of a head that starts at zero
        expected = {}
    is_rounded = step > 0 or any(tensor.dtype != torch.float32 for tensor in source.parameters())
    if not expected or is_rounded:
        tensors = dict(named_tensors(written))
        checks = [
            compare({name: computed(tensor)}, {name: computed(tensors.get(name))}, step, "weights")
            for name, tensor in named_tensors(source)
        ]
        if not expected:
            return joined(f"{len(checks)} tensors", checks)
        twin: Any = outline(source.config).eval()  # type: ignore[arg-type]
        for name, target in dict(named_tensors(twin)).items():
            replace_tensor(target, tensors[name].detach())
        compare(sample_outputs(twin, limit), outputs, _ROUNDING, "outputs")
    count = sum(tensor[..., 0].numel() for tensor in expected.values())
    compared = f"{'logits' if 'vocabulary' in expected else 'outputs'} of {count} positions"
    return compare(expected, outputs, float("inf") if is_rounded else _ROUNDING, compared)


def joined(compared: str, checks: Sequence[ExportCheck]) -> ExportCheck:
    """One check of all that `checks` compared."""
    largest = max((check.largest for check in checks), default=0.0)
    return ExportCheck(compared, largest, max((check.difference for check in checks), default=0.0))


def compare(expected: dict[str, Tensor], written: dict[str, Any], tolerance: float, compared: str) -> ExportCheck:
    """Raise UserError if a difference exceeds `tolerance` times the largest expected value."""
    largest, difference = 0.0, 0.0
    for name, values in expected.items():
        other = written.get(name)
        if other is None or other.shape != values.shape:
            raise UserError(f"the written model has no {name!r} of shape {tuple(values.shape)}; choose another format")
        size, gap = 0.0, 0.0
        for a, b in zip(*(tensor.detach().reshape(-1).split(_CHUNK) for tensor in (values, other))):
            a, b = a.float().nan_to_num(), b.float().nan_to_num()
            if len(a):
                size = max(size, a.abs().max().item())
                gap = max(gap, (a - b).abs().max().item())
        if not gap <= tolerance * max(size, 1e-3):
            raise UserError(
                f"the written model differs from its source: {compared}, {name!r}, by {gap:.3g} (largest {size:.3g}), "
                "which the number format does not explain, so nothing was written; choose another format"
            )
        largest, difference = max(largest, size), max(difference, gap)
    return ExportCheck(compared, largest, difference)


@torch.no_grad()
def sample_outputs(model: nn.Module, limit: int) -> dict[str, Tensor]:
    """The outputs of all heads for a small fixed sample of at most `limit` tokens per row by name, or the features of a
    model without heads; empty for a model whose inputs are neither tokens nor images nor sounds.
    """
    config: Any = model.config
    random = torch.Generator().manual_seed(_SEED)
    with evaluation_mode(model):
        if isinstance(model, TwoTower):
            return {
                "images": model.vectors("left", sample_inputs(config.left, random)),
                "texts": model.vectors("right", sample_inputs(config.right, random, limit)),
            }
        if isinstance(model, Captioner):
            images, ids = sample_inputs(config.tower, random), sample_inputs(config.decoder, random, limit)
            features = model(images, ids, Layout.full(*ids.shape))
        elif isinstance(model, EncoderDecoder):
            source, ids = sample_inputs(config.encoder, random), sample_inputs(config.decoder, random, limit)
            if source is None:
                return {}
            features = model(source, model.encoder.embed.default_layout(source), ids, Layout.full(*ids.shape))
        else:
            inputs = sample_inputs(config, random, limit) if isinstance(model, Transformer) else None
            if inputs is None:
                return {}
            features = model(inputs)
        heads: Any = model.heads
        return {name: head(features.x, features.layout) for name, head in heads.items()} or {"features": features.x}


def sample_inputs(config: TransformerConfig, random: torch.Generator, limit: int = _TOKENS) -> Any:
    """A batch of random inputs of a stack, at most `limit` tokens per row; None if it takes other inputs."""
    length = min(_TOKENS, limit, config.context or _TOKENS)
    match config.embed:
        case TokenEmbedConfig():
            return torch.randint(config.vocab_size, (_ROWS, length), generator=random)
        case PatchEmbedConfig(channels=channels, size=size):
            return torch.randn(_ROWS, channels, *size, generator=random)
        case FramesEmbedConfig(bands=bands):
            return torch.randn(_ROWS, min(_FRAMES, 2 * (config.context or _FRAMES)), bands, generator=random)
        case SpectrogramEmbedConfig(bands=bands, frames=frames):
            return torch.randn(_ROWS, frames, bands, generator=random)
    return None
