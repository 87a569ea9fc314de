"""Sizes, costs and a summary of a model, computed from its outline without weights; and its attention weights."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import groupby
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from headway.errors import ConfigError
from headway.nn.kernels import recording
from headway.nn.mixers import (
    AttentionConfig,
    BidirectionalConfig,
    ConditionalGRU,
    CrossAttention,
    CrossAttentionConfig,
    Mixer,
    SelfAttention,
    tree_map,
)
from headway.nn.models.act import ActConfig
from headway.nn.models.captioner import CaptionerConfig
from headway.nn.models.encoder_decoder import EncoderDecoderConfig
from headway.nn.models.heads import VocabularyHead
from headway.nn.models.patches import ConvolutionalStem
from headway.nn.models.transformer import ModelConfig, Transformer, TransformerConfig
from headway.nn.models.two_tower import TOWERS, TwoTower, TwoTowerConfig
from headway.nn.models.unet_policy import UNetPolicyConfig
from headway.nn.parts.experts import Experts, ExpertsConfig
from headway.nn.parts.projection import Projection
from headway.visibility import Causal


def outline(config: ModelConfig) -> nn.Module:
    """Build the model of `config` on the meta device, where weights are shapes only. Tensors that no file stores, such
    as position tables, are still computed on the CPU, so an outline can be filled from a file.
    Raises ConfigError for sizes that are too large, or that do not fit together.
    """
    with _size_errors(), torch.device("meta"):
        return config.build(seed=None)


@contextmanager
def _size_errors() -> Iterator[None]:
    """Turn errors from building a model on the meta device into ConfigError: its configuration is at fault."""
    try:
        yield
    except ConfigError:
        raise
    except (ArithmeticError, LookupError, TypeError, ValueError, RuntimeError) as error:
        fault = "are too large" if isinstance(error, (RuntimeError, OverflowError)) else "do not fit together"
        reason = str(error).partition("\n")[0][:200]
        raise ConfigError(f"the model's sizes {fault} ({reason}); correct them") from error


def describe(model: nn.Module | ModelConfig) -> dict[str, Any]:
    """Sizes and costs of a model, computed from its configuration or its outline.

    parameters: trainable parameters, tied ones counted once. weights_without_biases: parameters with two or more
    dimensions. weights_bytes: in fp32. flop_per_token: of the forward pass, a multiply-add counted as 2, with attention
    over a full context or image (half of it if causal) and the scans of recurrent and linear mixers. An encoder-decoder
    counts one source and one target token, two towers one token each, a captioner one in the tower and one in the
    decoder. state_bytes: fp32 decoding state per row, independent of its length. state_bytes_per_token: bytes that each
    further token adds. tree: one line per part.
    """
    if isinstance(model, ModelConfig):
        model = outline(model)
    config = cast(ModelConfig, model.config)
    parameters = {id(p): p for p in model.parameters() if p.requires_grad}.values()
    count = sum(p.numel() for p in parameters)
    with _size_errors():
        flop, decoder = flop_per_token(model, _length(config)), getattr(model, "decoder", model)
        if isinstance(model, TwoTower) and isinstance(config, TwoTowerConfig):
            flop = sum(flop_per_token(getattr(model, tower), _length(getattr(config, tower))) for tower in TOWERS)
        constant, growing = 0, 0  # bytes of a row's states: independent of its length, and per token
        if isinstance(decoder, Transformer) and decoder.config.stack.causal:
            sizes = []
            for length in (1, 2):
                parts: list[int] = []
                states = decoder.stack.initial_states(1, length, like=torch.empty(0, device="meta"))
                tree_map(lambda tensor, parts=parts: parts.append(tensor.nbytes), states)
                sizes.append(sum(parts))
            constant, growing = 2 * sizes[0] - sizes[1], sizes[1] - sizes[0]
        return {
            "parameters": count,
            "weights_without_biases": sum(p.numel() for p in parameters if p.dim() > 1),
            "weights_bytes": 4 * count,
            "flop_per_token": flop,
            "state_bytes": constant,
            "state_bytes_per_token": growing,
            "context": config.context,
            "tree": _tree(config),
        }


def flop_per_token(model: nn.Module, context: int | None) -> int:
    """Floating-point operations of one token's forward pass; training costs three times as much.

    That is 2 per weight of a projection, 4 H K S for the scores and sums of attention over S tokens, and `scan_flop` of
    each mixer: 4 H M N for linear attention, whose state has M N numbers per head, 6 H M N for the delta rule, 4 N for
    the N cells of an LSTM. Scans are counted token by token; chunkwise they compute more, but faster. Elementwise
    functions and norms are not counted.
    """
    modules = [module for _, module in model.named_modules(remove_duplicate=False)]  # shared layers run several times
    weights = sum(m.weight.numel() for m in modules if isinstance(m, Projection))
    weights += sum(m.weight.numel() for m in modules if isinstance(m, VocabularyHead) and m.project is None)
    for experts in (m for m in modules if isinstance(m, Experts)):
        expert_weights = sum(m.weight.numel() for m in experts.experts.modules() if isinstance(m, Projection))
        weights -= expert_weights * (experts.config.count - experts.config.active) // experts.config.count
    scans = sum(m.scan_flop for m in modules if isinstance(m, Mixer))
    scans += sum(m.flop for m in modules if isinstance(m, ConvolutionalStem))
    length = context or 0
    for module in modules:  # scores and sums of attention
        if isinstance(module, ConditionalGRU) and module.config.context == "additive":
            units, width = module.keys.weight.shape
            scans += 2 * (units + width) * length
        elif isinstance(module, CrossAttention):
            scans += 4 * module.heads * module.size * length
        elif isinstance(module, SelfAttention):
            pattern = module.config.pattern
            keys = length // 2 if pattern.causal else length
            if isinstance(pattern, Causal) and pattern.window is not None:
                keys = min(keys, pattern.window)
            scans += 4 * module.heads * module.size * keys
    return 2 * weights + scans


def _tree(config: ModelConfig) -> list[str]:
    if isinstance(config, EncoderDecoderConfig):
        first = f"encoder-decoder, bridge {config.bridge.kind}, tie {config.tie}"  # type: ignore[attr-defined]
        return [first, *_parts(encoder=config.encoder, decoder=config.decoder)]
    if isinstance(config, TwoTowerConfig):
        loss = "softmax" if config.bias is None else "sigmoid"
        first = f"two towers into a shared space of {config.shared} dimensions, a learned scale ({loss})"
        return [first, *_parts(left=config.left, right=config.right)]
    if isinstance(config, CaptionerConfig):
        both = [isinstance(block.mixer, AttentionConfig) for block in config.decoder.stack.blocks]
        order = "bidirectional for attention and in order for other mixers" if any(both) else "in order"
        order = "bidirectional" if all(both) else order
        first = f"captioner, {config.prefix} image tokens before the text, {order}"
        parts = _parts(tower=config.tower, decoder=config.decoder)
        return [first, *parts, f"  projector with {config.projector.layers} layers"]
    if isinstance(config, ActConfig):
        first = f"chunks of {config.chunk} actions with {config.actions} dimensions, by {config.head.kind}"  # type: ignore[attr-defined]
        parts = _parts(encoder=config.encoder_decoder.encoder, decoder=config.encoder_decoder.decoder)
        return [first, *parts, *([] if config.inference is None else _parts(posterior=config.inference))]
    if isinstance(config, UNetPolicyConfig):
        net, head = config.net, config.head
        return [
            f"{config.horizon} actions with {config.actions} dimensions by diffusion, {config.chunk} from now on",
            f"  inputs of the last {config.history} steps: {config.observation.describe_inputs()}",
            f"  U-Net over time, widths {', '.join(map(str, net.widths))}, {net.taps} taps, {net.groups} groups",
            f"  {head.sampled} of {head.steps} steps by {head.sampler.upper()}, predicts the {head.predicts}",
        ]
    if not isinstance(config, TransformerConfig):
        return [str(config)]
    inputs = config.embed.describe_inputs(config.vocab_size, config.context)
    lines = [f"width {config.width}, {inputs}, embed {config.embed.summary()}"]
    for block, run in groupby(config.stack.blocks):
        parts = [_mixer(block.mixer)]
        if block.cross is not None:
            parts.append(f"cross-attention, {block.cross.heads} heads")
        if block.feed_forward is not None:
            parts.append(_feed_forward(block.feed_forward))
        norm = "" if block.placement == "none" else f"{block.norm.kind} norm {block.placement}: "  # type: ignore[attr-defined]
        lines.append(f"{len(list(run))} x {norm}{' + '.join(parts)}")
    norm = "none" if config.stack.norm is None else config.stack.norm.kind  # type: ignore[attr-defined]
    return [*lines, f"final norm {norm}; heads: {', '.join(config.heads) or 'none'}; tie {config.tie}"]


def _parts(**parts: TransformerConfig) -> list[str]:
    """The lines of several parts, each under its name."""
    return [line for name, part in parts.items() for line in (f"  {name}", *(f"    {inner}" for inner in _tree(part)))]


def _length(config: ModelConfig) -> int | None:
    """Tokens of a full context, or of an image of the configured size."""
    if isinstance(config, TransformerConfig) and config.context is None:
        return config.embed.length
    if isinstance(config, CaptionerConfig):
        return config.prefix + (config.context or 0)
    if isinstance(config, ActConfig):
        return config.observation.length
    return config.context


def _mixer(mixer: Any) -> str:
    if isinstance(mixer, BidirectionalConfig):
        return f"{_mixer(mixer.mixer)}, bidirectional"
    if not isinstance(mixer, (AttentionConfig, CrossAttentionConfig)):
        cells = getattr(mixer, "cells", None)
        return mixer.kind if cells is None else f"{mixer.kind}, {cells} cells"
    text = f"attention, {mixer.heads} heads"
    if mixer.kv_heads:
        text += f" on {mixer.kv_heads}"
    if isinstance(mixer, AttentionConfig):
        window = getattr(mixer.pattern, "window", None)
        text += f", {mixer.pattern.kind}" + (f" window {window}" if window else "")  # type: ignore[attr-defined]
        text += ", rotary" if mixer.rotary else ""
    return text


def _feed_forward(part: Any) -> str:
    if isinstance(part, ExpertsConfig):
        return f"{part.count} experts, {part.active} active, each {_feed_forward(part.expert)}"
    size = f"{part.hidden}" if part.hidden is not None else f"{part.ratio:.3g} x width"
    return f"{part.kind} {part.activation} {size}"


def rollout(maps: Mapping[str, Float[Tensor, "B H T T"]]) -> Float[Tensor, "B T T"]:
    """Attention rollout (Abnar and Zuidema 2020, equation 1): the share of each input token (columns) in each output
    token (rows). It is the product over layers of attention averaged over heads, plus the identity, halved.

    `maps` come from `attention_maps`, in layer order.
    """
    product: Tensor | None = None
    for weights in maps.values():
        mean = weights.mean(1)
        layer = (mean + torch.eye(mean.shape[-1], dtype=mean.dtype, device=mean.device)) / 2
        product = layer if product is None else layer @ product
    if product is None:
        raise ValueError("no attention maps to roll out; pass at least one")
    return product


def attention_maps(model: nn.Module, run: Callable[[], Any]) -> dict[str, Float[Tensor, "B H T S"]]:
    """Weights of every attention module that `run()` calls, by module name and in call order."""
    maps: dict[str, Tensor] = {}
    current: list[str] = []
    hooks, thread = [], threading.get_ident()  # another thread may generate with the same modules
    for name, module in model.named_modules():
        if isinstance(module, (SelfAttention, ConditionalGRU, CrossAttention)):
            hooks.append(
                module.register_forward_pre_hook(
                    lambda *_, name=name: current.append(name) if threading.get_ident() == thread else None
                )
            )
    try:
        with recording(lambda weights: maps.__setitem__(current[-1], weights)), torch.no_grad():
            run()
    finally:
        for hook in hooks:
            hook.remove()
    return maps
