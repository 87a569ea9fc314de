"""Models between formats: into headway's own folder, and out to those that others read."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, get_args

from headway.checkpoints import native
from headway.checkpoints.durable import read_json, write_json
from headway.checkpoints.gguf import save_gguf
from headway.checkpoints.open import Opened
from headway.checkpoints.published import CONFIG, save_published
from headway.checkpoints.usage import Usage
from headway.codecs import Codec
from headway.errors import UserError, nearest
from headway.models import ModelConfig

Format = Literal["hf", "gguf"]
_TOKENIZER_CONFIG = "tokenizer_config.json"


def import_model(opened: Opened, directory: Path) -> None:
    """Write headway's own folder: weights with their configuration, tokenizer, and how the model is used."""
    check_free(directory)
    native.save_model(opened.model, opened.model.config, directory)  # type: ignore[arg-type]
    opened.usage.save(directory)
    if opened.codec is not None:
        opened.codec.save(directory)


def export_model(opened: Opened, directory: Path, form: str = "hf", dtype: str = "f32") -> str:
    """Write a published format and give the family's name.

    "hf": config.json, safetensors and tokenizer.json, which transformers reads. "gguf": one file, `dtype` f32, f16 or
    q8_0. UserError for a model that the format cannot say.
    """
    if form not in get_args(Format):
        raise UserError(f"there is no format {form!r}; {nearest(form, get_args(Format))}")
    check_free(directory)
    model, usage, codec = opened
    config: ModelConfig = model.config  # type: ignore[assignment]
    if form == "gguf":
        precision: Any = dtype.upper()
        return save_gguf(model, config, directory, codec, usage, precision)
    family = save_published(model, config, directory, usage)
    if codec is not None:
        codec.save(directory)
        _describe_tokenizer(usage, codec, directory)
    return family


def check_free(directory: Path) -> None:
    """UserError for a place that holds something already."""
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise UserError(f"{directory} is there already and not empty; choose another place")


def _describe_tokenizer(usage: Usage, codec: Codec, directory: Path) -> None:
    """The ids of the special symbols, where config.json does not say them, and the chat template."""
    ids = {"bos_token_id": codec.begin, "eos_token_id": codec.end, "pad_token_id": getattr(codec, "pad", None)}
    said = {name: symbol for name, symbol in ids.items() if symbol is not None}
    write_json(directory / CONFIG, said | read_json(directory / CONFIG))
    if usage.template is not None:
        path = directory / _TOKENIZER_CONFIG
        write_json(path, read_json(path) | {"chat_template": usage.template})
