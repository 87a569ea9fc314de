"""Open a model in any format: a run, headway's own folder, or a published one; readers are imported on demand."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import nn

from headway.codecs import Codec, TokenizerCodec, check_vocab_size, load_codec, published_codec
from headway.codecs.tokenizer import FILE as TOKENIZER
from headway.errors import UserError
from headway.formats import native
from headway.formats.usage import Usage, read_usage
from headway.nn.models import ModelConfig

ModelFormat = Literal["published", "native", "gguf", "llama2c", "ctranslate2"]
_CONFIG, _GGUF, _BINARY = "config.json", ".gguf", "model.bin"  # identify the format


class OpenedModel(NamedTuple):
    """A model in evaluation mode, its usage, and its tokenizer (None if the folder has none)."""

    model: nn.Module
    usage: Usage
    codec: Codec | None


def open_model(path: Path | str, dtype: torch.dtype | None = torch.float32) -> OpenedModel:
    """Load the model of a run, an imported folder, or a published folder or file, with its weights in `dtype`.

    With `dtype` None, published weights keep their stored dtype. Raises UserError if the path is not a model, or if the
    tokenizer has ids that the model lacks.
    """
    location = Path(path)
    opened_model = _OPENERS[_detect_format(location)](location, dtype)
    if isinstance(opened_model.codec, TokenizerCodec):
        check_vocab_size(opened_model.codec, opened_model.model.config.vocab_size, location)  # type: ignore[union-attr,arg-type]
    return opened_model


def open_config(path: Path | str, needs_weights: bool = True) -> ModelConfig:
    """Return the configuration of what `open_model` loads, without reading weights. UserError if it is not a model.

    With `needs_weights` false, the config.json of a published model is enough.
    """
    location = Path(path)
    model_format = _detect_format(location)
    if model_format == "published" and not needs_weights:
        from headway.formats.published import described_config

        return described_config(location)
    module, function = _CONFIGS[model_format]
    return getattr(import_module(f"headway.formats.{module}"), function)(location)


def open_usage(path: Path | str) -> Usage:
    """Return how a model is used (its chat template and generation_config.json), without reading weights."""
    location = Path(path)
    model_format = _detect_format(location)
    if model_format == "published":
        from headway.codecs.chat_template import read_template
        from headway.formats.published import read_generation

        return Usage(template=read_template(location), generation=read_generation(location))
    if model_format == "gguf":
        from headway.formats.gguf.model import gguf_usage

        return gguf_usage(location)
    return read_usage(location) if model_format == "native" else Usage()


def _detect_format(path: Path) -> ModelFormat:
    """Detect the format of a path. UserError if it is not a model."""
    if not path.exists():
        from headway.nn.models.presets import PRESETS

        if str(path) in PRESETS:
            raise UserError(
                f"{path} is a preset without weights, not a folder; train it (`headway train RECIPE "
                f"--set model={path}`), or pass the folder of a published model"
            )
        raise UserError(f"{path} does not exist; pass a run or a published model, a folder or a .gguf file")
    if path.is_dir():
        if (path / _BINARY).is_file():
            from headway.formats.ctranslate2 import is_ctranslate2

            if is_ctranslate2(path):
                return "ctranslate2"
        if (path / _CONFIG).is_file():
            return "published"
        if native.exists(path):
            return "native"
        if (path / native.QUANTISED).is_file():
            raise UserError(f"{path} is already quantized; pass the model that it was made from")
        raise UserError(f"{path} has no model (neither {_CONFIG} nor {native.FILE}); pass the folder of a run or model")
    if path.suffix == _GGUF:
        return "gguf"
    if path.suffix == ".bin":
        from headway.formats.llama2c import is_llama2c

        if is_llama2c(path):
            return "llama2c"
    raise UserError(f"{path} is not in a known model format; pass a folder, a {_GGUF} file or a .bin of llama2.c")


def _open_published(folder: Path, dtype: torch.dtype | None) -> OpenedModel:
    from headway.formats.published import load_published

    return OpenedModel(*load_published(folder, dtype), published_codec(folder))


def _open_native(folder: Path, dtype: torch.dtype | None) -> OpenedModel:
    return OpenedModel(native.load_model(folder), *usage_and_codec(folder))


def usage_and_codec(folder: Path) -> tuple[Usage, Codec | None]:
    """Return the usage and the tokenizer stored next to the weights in a native folder."""
    return read_usage(folder), load_codec(folder) if (folder / TOKENIZER).is_file() else None


def _open_gguf(path: Path, dtype: torch.dtype | None) -> OpenedModel:
    from headway.formats.gguf import load_gguf, load_gguf_codec

    return OpenedModel(*load_gguf(path, dtype), load_gguf_codec(path))


def _open_llama2c(path: Path, dtype: torch.dtype | None) -> OpenedModel:
    from headway.formats.llama2c import load_llama2c, load_tokenizer

    model, usage = load_llama2c(path, dtype)
    names = (f"tok{model.config.vocab_size}.bin", "tokenizer.bin")  # type: ignore[union-attr]
    tokenizer_path = next((candidate for name in names if (candidate := path.with_name(name)).is_file()), None)
    return OpenedModel(model, usage, None if tokenizer_path is None else load_tokenizer(tokenizer_path))


def _open_ctranslate2(folder: Path, dtype: torch.dtype | None) -> OpenedModel:
    from headway.formats.ctranslate2 import load_whisper

    codec = published_codec(folder)
    return OpenedModel(*load_whisper(folder, dtype, codec), codec)


_OPENERS: dict[ModelFormat, Callable[[Path, torch.dtype | None], OpenedModel]] = {
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
