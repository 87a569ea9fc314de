"""A model from wherever it lies: a run, headway's own folder, or a published format."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from headway.checkpoints import native
from headway.checkpoints.ctranslate2 import is_ctranslate2, refuse_ctranslate2
from headway.checkpoints.gguf import SUFFIX, load_gguf, load_gguf_codec
from headway.checkpoints.llama2c import is_llama2c, load_llama2c, load_pieces
from headway.checkpoints.published import CONFIG, load_published
from headway.checkpoints.usage import Usage, read_usage
from headway.codecs import Codec, TokenizerCodec, load_codec
from headway.codecs.published import check_fits, published_codec
from headway.codecs.tokenizer import FILE as TOKENIZER
from headway.errors import UserError


class Opened(NamedTuple):
    """A model in evaluation mode, how it wants to be used, and its tokenizer, None where none lies beside it."""

    model: nn.Module
    usage: Usage
    codec: Codec | None


def open_model(path: Path | str, dtype: torch.dtype | None = torch.float32) -> Opened:
    """The model of a run, of an imported folder, or of a published folder or file, its weights in `dtype`.

    `dtype` None leaves published weights as they are stored. Raises UserError for what is no model, and for a tokenizer
    that has ids which the model does not.
    """
    place = Path(path)
    if not place.exists():
        raise UserError(f"{place} does not exist; give a run or a published model, a folder or a .gguf file")
    opened = _open_folder(place, dtype) if place.is_dir() else _open_file(place, dtype)
    if isinstance(opened.codec, TokenizerCodec):
        check_fits(opened.codec, opened.model.config.symbols, place)  # type: ignore[union-attr,arg-type]
    return opened


def _open_folder(place: Path, dtype: torch.dtype | None) -> Opened:
    if is_ctranslate2(place):
        refuse_ctranslate2(place)
    if (place / CONFIG).is_file():
        return Opened(*load_published(place, dtype), published_codec(place))
    if (place / native.FILE).is_file():
        codec = load_codec(place) if (place / TOKENIZER).is_file() else None
        return Opened(native.load_model(place), read_usage(place), codec)
    raise UserError(f"{place} holds no model (neither {CONFIG} nor {native.FILE}); give the folder of a run or model")


def _open_file(place: Path, dtype: torch.dtype | None) -> Opened:
    if place.suffix == SUFFIX:
        return Opened(*load_gguf(place, dtype), load_gguf_codec(place))
    if place.suffix == ".bin" and is_llama2c(place):
        model, usage = load_llama2c(place, dtype)
        names = (f"tok{model.config.symbols}.bin", "tokenizer.bin")  # type: ignore[union-attr]
        pieces = next((beside for name in names if (beside := place.with_name(name)).is_file()), None)
        return Opened(model, usage, None if pieces is None else load_pieces(pieces))
    raise UserError(f"{place} is no model that is known: give a folder, a {SUFFIX} file or a .bin of llama2.c")
