"""Tiny models that a lens looks into, with weights in which nothing is zero."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from headway.codecs import train_codec
from headway.codecs.tokenizer import TokenizerCodec
from headway.config import override
from headway.domains.masked.recipes import modern_encoder
from headway.domains.text.recipes import modern_decoder
from headway.formats.native import save_model
from headway.nn.models import PooledHeadConfig, build

TEXT = "the cat sat on the mat"


def save_models(place: Path) -> None:
    """A decoder, an LSTM, a masked model, and a classifier without a vocabulary, in folders of these names."""
    words = train_codec("word", iter([TEXT]), special=("[MASK]",))
    decoder = modern_decoder(16, 2, 2, 256, 10)
    save(place / "decoder", decoder, words)
    save(place / "lstm", override(decoder, {"mixer": "lstm"}), words)
    masked = modern_encoder(16, 2, 2, 10, 64)
    save(place / "masked", masked, words)
    save(place / "classes", replace(masked, heads={"classes": PooledHeadConfig(2)}), words)


def save(folder: Path, config: Any, codec: TokenizerCodec) -> None:
    config = override(config, {"vocab_size": codec.vocab_size})
    model, random = build(config, seed=1), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():  # some are zero at the start of a training
            parameter.add_(torch.randn(parameter.shape, generator=random) * 0.3)
    folder.mkdir()
    save_model(model, config, folder)
    codec.save(folder)
