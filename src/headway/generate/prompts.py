"""What generation starts from: checked ids, padded into a Prompt, in batches of nearly equal lengths."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import cast

import torch
from jaxtyping import Int
from torch import Tensor, nn

from headway.errors import UserError
from headway.layout import Layout
from headway.nn.models import EncoderDecoderConfig, Generative, Prompt

Ids = Sequence[int]
Source = Ids | Tensor  # symbols of an encoder's, or an image, Float[C, H, W], of a captioner's


def context_of(model: Generative) -> int | None:
    """The most positions that a row of the decoder may have; None where there is no limit."""
    return model.config.context


def device_of(model: Generative | nn.Module) -> torch.device:
    return next(model.parameters()).device


def check_prompts(model: Generative, prompts: Sequence[Ids]) -> None:
    """UserError for a prompt that is empty, holds unknown ids, or leaves no room for a new symbol."""
    context = context_of(model)
    check_ids("prompt", prompts, model.config.symbols)
    for prompt in prompts:
        if not len(prompt):
            raise UserError("a prompt of 0 tokens has nothing to continue; begin with the codec's begin symbol")
        if context is not None and len(prompt) > context:
            raise UserError(f"a prompt of {len(prompt)} tokens exceeds the context of {context}; shorten it")
        if context is not None and len(prompt) == context:
            raise UserError(
                f"a prompt of {len(prompt)} tokens fills the context of {context} and leaves no room for a new one; "
                "shorten it"
            )


def check_images(model: Generative, images: Sequence[Source]) -> None:
    """UserError for what is no image that a captioner sees, or not of the size of the others."""
    channels = model.config.images.channels
    for image in images:
        shape = tuple(image.shape) if isinstance(image, Tensor) and image.is_floating_point() else None
        if shape is None or len(shape) != 3 or shape[0] != channels:
            found = "symbols" if shape is None else f"numbers of shape {shape}"
            raise UserError(f"a source is {found}, and this model reads images; give Float[{channels}, height, width]")
    sizes = {tuple(image.shape) for image in images if isinstance(image, Tensor)}
    if len(sizes) > 1:
        raise UserError(f"images have several sizes ({', '.join(map(str, sorted(sizes)))}); give those of one at once")


def check_sources(model: Generative, sources: Sequence[Ids]) -> None:
    """UserError for a source that holds unknown ids or that the encoder cannot read whole."""
    if not isinstance(model.config, EncoderDecoderConfig):
        raise UserError("this model reads no source; leave sources out")
    encoder, longest = model.config.encoder, max(map(len, sources), default=0)
    if not encoder.symbols:
        raise UserError("this model's encoder hears sounds, it reads no symbols; use transcribe")
    check_ids("source", sources, encoder.symbols)
    if encoder.context is not None and longest > encoder.context:
        raise UserError(
            f"a source of {longest} tokens exceeds the context of {encoder.context}; split it into shorter ones"
        )


def check_ids(what: str, rows: Sequence[Ids], symbols: int) -> None:
    """UserError for an id that the model has no symbol for."""
    for row in rows:
        wrong = next((i for i in (min(row, default=0), max(row, default=0)) if not 0 <= i < symbols), None)
        if wrong is not None:
            raise UserError(
                f"a {what} holds the id {wrong}; this model's are 0 to {symbols - 1}, give those of its codec"
            )


def check_number(log_probability: float) -> None:
    """UserError where a model computes nonsense, which must not pass for text."""
    if math.isnan(log_probability):
        raise UserError("the model gives NaN where it should give probabilities; use a checkpoint with sound weights")


def pad(rows: Sequence[Ids], device: torch.device) -> tuple[Int[Tensor, "B T"], Layout]:
    """Rows as one tensor, and where their symbols sit."""
    layout = Layout.padded([len(row) for row in rows])
    ids = torch.tensor([[*row, *[0] * (layout.length - len(row))] for row in rows], device=device)
    return ids, layout.to(device)


def make_prompt(prompts: Sequence[Ids], sources: Sequence[Source] | None, device: torch.device) -> Prompt:
    ids, layout = pad(prompts, device)
    if sources is None:
        return Prompt(ids, layout)
    images = [source for source in sources if isinstance(source, Tensor)]
    if images:
        return Prompt(ids, layout, torch.stack(images).to(device))
    return Prompt(ids, layout, *pad(cast(Sequence[Ids], sources), device))


def batches(sizes: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Indices of items by falling size, so many at once as `budget` holds at the size of the largest."""
    order = sorted(range(len(sizes)), key=lambda i: -sizes[i])
    start = 0
    while start < len(order):
        count = max(1, budget // max(1, sizes[order[start]]))
        yield order[start : start + count]
        start += count


@contextmanager
def evaluating(model: Generative | nn.Module) -> Iterator[None]:
    """Without dropout; afterwards the model is as it was. One that does not train is taken at its word: to tell each of
    its parts takes a tenth of a small model's step.
    """
    if not model.training:
        yield
        return
    model.eval()
    try:
        yield
    finally:
        model.train()
