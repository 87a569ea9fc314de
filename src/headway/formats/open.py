"""Open a model of any format: a run, headway's own folder, or a published one; readers are imported on demand."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import nn

from headway.codecs import Codec, TokenizerCodec, check_fits, load_codec, published_codec
from headway.codecs.tokenizer import FILE as TOKENIZER
from headway.errors import UserError
from headway.formats import native
from headway.formats.usage import Usage, read_usage
from headway.nn.models import ModelConfig

Form = Literal["published", "native", "gguf", "llama2c", "ctranslate2"]
_CONFIG, _GGUF, _BINARY = "config.json", ".gguf", "model.bin"  # identify the format


class Opened(NamedTuple):
    """A model in evaluation mode, its usage, and its tokenizer (None if the folder has none)."""

    model: nn.Module
    usage: Usage
    codec: Codec | None


def open_model(path: Path | str, dtype: torch.dtype | None = torch.float32) -> Opened:
    """Load the model of a run, an imported folder, or a published folder or file, with its weights in `dtype`.

    With `dtype` None, published weights keep their stored dtype. Raises UserError if the path is not a model, or if the
    tokenizer has ids that the model lacks.
    """
    place = Path(path)
    opened = _OPENERS[_form(place)](place, dtype)
    if isinstance(opened.codec, TokenizerCodec):
        check_fits(opened.codec, opened.model.config.symbols, place)  # type: ignore[union-attr,arg-type]
    return opened


def open_config(path: Path | str) -> ModelConfig:
    """Return the configuration of what `open_model` loads, without reading weights. UserError if it is not a model."""
    place = Path(path)
    module, function = _CONFIGS[_form(place)]
    return getattr(import_module(f"headway.formats.{module}"), function)(place)


def open_usage(path: Path | str) -> Usage:
    """Return how a text model is used (its chat template), without reading weights."""
    place = Path(path)
    form = _form(place)
    if form == "published":
        from headway.codecs.chat import read_template

        return Usage(template=read_template(place))
    if form == "gguf":
        from headway.formats.gguf.model import gguf_usage

        return gguf_usage(place)
    return read_usage(place) if form == "native" else Usage()


def _form(place: Path) -> Form:
    """Detect the format of a path. UserError if it is not a model."""
    if not place.exists():
        from headway.nn.models.presets import PRESETS

        if str(place) in PRESETS:
            raise UserError(
                f"{place} is a preset without weights, not a folder; train it (`headway train RECIPE "
                f"--set model={place}`), or pass the folder of a published model"
            )
        raise UserError(f"{place} does not exist; pass a run or a published model, a folder or a .gguf file")
    if place.is_dir():
        return _form_of_folder(place)
    if place.suffix == _GGUF:
        return "gguf"
    if place.suffix == ".bin":
        from headway.formats.llama2c import is_llama2c

        if is_llama2c(place):
            return "llama2c"
    raise UserError(f"{place} is not in a known model format; pass a folder, a {_GGUF} file or a .bin of llama2.c")


def _form_of_folder(place: Path) -> Form:
    if (place / _BINARY).is_file():
        from headway.formats.ctranslate2 import is_ctranslate2

        if is_ctranslate2(place):
            return "ctranslate2"
    if (place / _CONFIG).is_file():
        return "published"
    if (place / native.FILE).is_file():
        return "native"
    if (place / native.QUANTISED).is_file():
        raise UserError(f"{place} is already quantized; pass the model that it was made from")
    raise UserError(f"{place} has no model (neither {_CONFIG} nor {native.FILE}); pass the folder of a run or model")


def _open_published(place: Path, dtype: torch.dtype | None) -> Opened:
    from headway.formats.published import load_published

    return Opened(*load_published(place, dtype), published_codec(place))


def _open_native(place: Path, dtype: torch.dtype | None) -> Opened:
    return Opened(native.load_model(place), *use_of(place))


def use_of(place: Path) -> tuple[Usage, Codec | None]:
    """Return the usage and the tokenizer stored next to the weights in a native folder."""
    return read_usage(place), load_codec(place) if (place / TOKENIZER).is_file() else None


def _open_gguf(place: Path, dtype: torch.dtype | None) -> Opened:
    from headway.formats.gguf import load_gguf, load_gguf_codec

    return Opened(*load_gguf(place, dtype), load_gguf_codec(place))


def _open_llama2c(place: Path, dtype: torch.dtype | None) -> Opened:
    from headway.formats.llama2c import load_llama2c, load_pieces

    model, usage = load_llama2c(place, dtype)
    names = (f"tok{model.config.symbols}.bin", "tokenizer.bin")  # type: ignore[union-attr]
    pieces = next((beside for name in names if (beside := place.with_name(name)).is_file()), None)
    return Opened(model, usage, None if pieces is None else load_pieces(pieces))


def _open_ctranslate2(place: Path, dtype: torch.dtype | None) -> Opened:
    from headway.formats.ctranslate2 import load_whisper

    codec = published_codec(place)
    return Opened(*load_whisper(place, dtype, codec), codec)


_OPENERS: dict[Form, Callable[[Path, torch.dtype | None], Opened]] = {
    "published": _open_published,
    "native": _open_native,
    "gguf": _open_gguf,
    "llama2c": _open_llama2c,
    "ctranslate2": _open_ctranslate2,
}
_CONFIGS = {  # the module and its function that reads only the configuration
    "published": ("published", "published_config"),
    "native": ("native", "native_config"),
    "gguf": ("gguf", "gguf_config"),
    "llama2c": ("llama2c", "llama2c_config"),
    "ctranslate2": ("ctranslate2", "whisper_config"),
}
