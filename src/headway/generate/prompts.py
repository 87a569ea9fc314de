"""Inputs for generation: token ids, checked, padded into a Prompt, and batched by similar length."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Protocol, cast

import torch
from jaxtyping import Int
from torch import Tensor, nn

from headway.errors import UserError
from headway.layout import Layout, to_device
from headway.nn.models import EncoderDecoderConfig, Generative, Prompt

Ids = Sequence[int]
Source = Ids | Tensor  # token ids for an encoder, or an image, Float[C, H, W], for a captioner


class HasConfig(Protocol):
    """A model, or its stepper."""

    config: Any


def context_of(model: HasConfig) -> int | None:
    """The maximum number of positions in a decoder row; None if there is no limit."""
    return model.config.context


def device_of(model: Generative | nn.Module) -> torch.device:
    return next(model.parameters()).device


def check_prompts(model: HasConfig, prompts: Sequence[Ids]) -> None:
    """Raise UserError for a prompt that is empty, contains unknown ids, or leaves no position for a new token."""
    context = context_of(model)
    check_ids("prompt", prompts, model.config.vocab_size)
    for prompt in prompts:
        if not len(prompt):
            raise UserError("cannot continue an empty prompt; start it with the tokenizer's bos token")
        if context is not None and len(prompt) > context:
            raise UserError(f"a prompt of {len(prompt)} tokens exceeds the context of {context}; shorten it")
        if context is not None and len(prompt) == context:
            raise UserError(
                f"a prompt of {len(prompt)} tokens fills the context of {context} and leaves none for a new token; "
                "shorten it"
            )


def check_images(model: Generative, images: Sequence[Source]) -> None:
    """Raise UserError for a source that is not an image this captioner can read, or whose size differs from the
    others.
    """
    channels = model.config.images.channels
    for image in images:
        shape = tuple(image.shape) if isinstance(image, Tensor) and image.is_floating_point() else None
        if shape is None or len(shape) != 3 or shape[0] != channels:
            content = "token ids" if shape is None else f"an array of shape {shape}"
            raise UserError(
                f"a source is {content}, but this model reads images; pass Float[{channels}, height, width]"
            )
    sizes = {tuple(image.shape) for image in images if isinstance(image, Tensor)}
    if len(sizes) > 1:
        raise UserError(
            f"images have different sizes ({', '.join(map(str, sorted(sizes)))}); pass images of one size per call"
        )


def check_sources(model: Generative, sources: Sequence[Ids]) -> None:
    """Raise UserError for a source with unknown ids or longer than the encoder's context."""
    if not isinstance(model.config, EncoderDecoderConfig):
        raise UserError("this model takes no sources; remove sources")
    encoder, max_length = model.config.encoder, max(map(len, sources), default=0)
    if not encoder.vocab_size:
        raise UserError("this model's encoder takes audio, not token ids; use transcribe")
    check_ids("source", sources, encoder.vocab_size)
    if encoder.context is not None and max_length > encoder.context:
        raise UserError(
            f"a source of {max_length} tokens exceeds the context of {encoder.context}; split it into shorter ones"
        )


def check_ids(kind: str, rows: Sequence[Ids], vocab_size: int) -> None:
    """Raise UserError for an id outside the vocabulary."""
    for row in rows:
        wrong = next((i for i in (min(row, default=0), max(row, default=0)) if not 0 <= i < vocab_size), None)
        if wrong is not None:
            raise UserError(
                f"a {kind} contains id {wrong}, but this model has ids 0 to {vocab_size - 1}; use its own tokenizer"
            )


def check_not_nan(log_probability: float) -> None:
    """Raise UserError if a model outputs NaN, which must not be turned into text."""
    if math.isnan(log_probability):
        raise UserError("the model outputs NaN instead of probabilities; use a checkpoint with valid weights")


def pad(rows: Sequence[Ids], device: torch.device) -> tuple[Int[Tensor, "B T"], Layout]:
    """Rows as one tensor, and the layout of their tokens."""
    layout = Layout.padded([len(row) for row in rows])
    ids = torch.tensor([[*row, *[0] * (layout.length - len(row))] for row in rows])
    return to_device((ids, layout), device)


def make_prompt(prompts: Sequence[Ids], sources: Sequence[Source] | None, device: torch.device) -> Prompt:
    ids, layout = pad(prompts, device)
    if sources is None:
        return Prompt(ids, layout)
    images = [source for source in sources if isinstance(source, Tensor)]
    if images:
        return Prompt(ids, layout, torch.stack(images).to(device))
    return Prompt(ids, layout, *pad(cast(Sequence[Ids], sources), device))


def batches(sizes: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Indices of items by decreasing size, in batches as large as `budget` allows if all items were as large as the
    largest.
    """
    order = sorted(range(len(sizes)), key=lambda i: -sizes[i])
    start = 0
    while start < len(order):
        count = max(1, budget // max(1, sizes[order[start]]))
        yield order[start : start + count]
        start += count
