"""Untrained models of images, sounds and time series, each of a few weights, in a folder to be served."""

from __future__ import annotations

import csv
import math
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import torch
import whisper_models

import headway as hw
from headway.codecs import train_codec
from headway.domains.image_text.recipes import captioner
from headway.formats.native import save_model
from headway.formats.published import save_published
from headway.formats.usage import Usage
from headway.nn.models import ModelConfig, build
from headway.nn.models.presets import clip, vit, whisper_classifier

PROCESSOR = {"image_processor_type": "ViTImageProcessor", "size": {"height": 16, "width": 16}, "resample": 2}


def daily(path: Path, days: int = 120, **series: Any) -> Path:
    """Daily values with a season of a week, or those of functions."""
    series = series or {"sales": lambda n: 10 + 3 * math.sin(2 * math.pi * n / 7) + n % 5}
    with path.open("w", newline="") as file:
        rows = [[date(2024, 1, 1) + timedelta(n), *(f(n) for f in series.values())] for n in range(days)]
        csv.writer(file).writerows([["date", *series], *rows])
    return path


def folder(place: Path) -> Path:
    """Models by what they do: sort, match, caption, hear (two languages), classify sounds (blips), forecast."""
    codec = train_codec("byte", iter(["a text"]))

    def drawn(config: ModelConfig) -> Any:
        """A model whose head is not zero, so that its classes differ."""
        model, rng = build(config, seed=1), torch.Generator().manual_seed(1)
        with torch.no_grad():
            for weights in model.parameters():
                weights += 0.3 * torch.randn(weights.shape, generator=rng)
        return model

    def save(name: str, config: ModelConfig, usage: Usage, is_text: bool = False) -> None:
        (place / name).mkdir()
        save_model(drawn(config), config, place / name)
        usage.save(place / name)
        if is_text:
            codec.save(place / name)

    sort = vit(16, 2, 2, 4, classes=3, size=16)
    save_published(drawn(sort), sort, place / "sort", Usage(labels=("7", "cat", "dog"), processor=PROCESSOR))
    save("match", clip((16, 1, 2), (16, 1, 2), 16, 8, 16, codec.vocab_size), Usage(processor=PROCESSOR), True)
    save("caption", captioner(16, (1, 1), 2, 16, 8, codec.vocab_size), Usage(processor=PROCESSOR), True)
    save("blips", whisper_classifier(16, 1, 2, classes=2), Usage(labels=("low", "high")))
    languages = {**whisper_models.USAGE.generation, "lang_to_id": {"<|en|>": 258, "<|de|>": 259}}
    hear = whisper_models.model()
    save_published(hear, hear.config, place / "hear", replace(whisper_models.USAGE, generation=languages))
    whisper_models.codec().save(place / "hear")
    settings = {"train.steps": 2, "train.batch_size": 8, "train.precision": "fp32"}
    data = daily(place.parent / "daily.csv")
    hw.train("forecast", data, settings, run=place / "forecast", progress=False, samples=0)
    return place
