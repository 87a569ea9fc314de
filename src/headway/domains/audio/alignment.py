"""What each symbol of a text was read from: the attention to the frames of one sound."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from headway.domains.audio.speech import Example, SpeechTask
from headway.generate.prompts import device_of, evaluating
from headway.layout import Layout
from headway.mixers import CrossAttention
from headway.models import EncoderDecoder, attention_maps

_END = "·"  # stands for the end symbol, which has no text


class Alignment(NamedTuple):
    """What was written of a sound: symbols, the end included, and where each was read from, weights whose rows add up
    to 1 over the encoder's steps of 20 ms. `frames` are what was heard.
    """

    text: str
    ids: list[int]
    symbols: list[str]
    weights: Float[np.ndarray, "N S"]
    frames: Float[Tensor, "T M"]


@torch.no_grad()
def alignment(model: EncoderDecoder, task: SpeechTask, example: Example) -> Alignment:
    """The cross-attention of what the model writes of a sound, averaged over layers and heads."""
    prompt = list(task.marks.prompt)
    with evaluating(model):
        frames = task.batch([example]).frames.to(device_of(model))
        [ids] = task.write(model, frames)
        target = torch.tensor([[*prompt, *ids]], device=frames.device)
        whole = [Layout.full(*some.shape[:2], device=frames.device) for some in (frames, target)]
        maps = attention_maps(model, lambda: model(frames, whole[0], target, whole[1]))
    read = [
        weights[0].mean(0) for name, weights in maps.items() if isinstance(model.get_submodule(name), CrossAttention)
    ]
    weights = torch.stack(read).mean(0)[len(prompt) - 1 :].cpu().numpy()
    tokenizer = task.codec.tokenizer
    names = [task.codec.decode([i]).strip() or (tokenizer.id_to_token(i) or "").strip("<|>") for i in ids]
    return Alignment(task.codec.decode(ids).strip(), ids, [*names, _END], weights, frames[0].cpu())
