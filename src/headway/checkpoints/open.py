"""A model from wherever it lies: a run, headway's own folder, or a published format."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from headway.checkpoints import native
from headway.checkpoints.published import CONFIG, load_published
from headway.checkpoints.usage import Usage, read_usage
from headway.codecs import Codec, load_codec
from headway.codecs.tokenizer import FILE as TOKENIZER
from headway.errors import UserError


class Opened(NamedTuple):
    """A model in evaluation mode, how it wants to be used, and its tokenizer, None where none lies beside it."""

    model: nn.Module
    usage: Usage
    codec: Codec | None


def open_model(path: Path | str, dtype: torch.dtype | None = torch.float32) -> Opened:
    """The model of a run, of an imported folder, or of a folder in a published format, its weights in `dtype`.

    `dtype` None leaves published weights as they are stored. Raises UserError for what is no model.
    """
    place = Path(path)
    if not place.exists():
        raise UserError(f"{place} does not exist; give the folder of a run or of a published model")
    if (place / CONFIG).is_file():
        model, usage = load_published(place, dtype)
        return Opened(model, usage, _codec(place))
    if (place / native.FILE).is_file():
        return Opened(native.load_model(place), read_usage(place), _codec(place))
    raise UserError(f"{place} holds no model (neither {CONFIG} nor {native.FILE}); give the folder of a run or model")


def _codec(directory: Path) -> Codec | None:
    return load_codec(directory) if (directory / TOKENIZER).is_file() else None
