"""Models between formats: into headway's own folder, and out to those that others read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, get_args

from headway.checkpoints import native
from headway.checkpoints.durable import write_json
from headway.checkpoints.open import Opened
from headway.checkpoints.published import CONFIG, save_published
from headway.codecs import Codec
from headway.codecs.tokenizer import TokenizerCodec
from headway.errors import UserError, nearest

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
    if form == "gguf":
        from headway.checkpoints.gguf import save_gguf

        return save_gguf(opened, directory, dtype)
    check_free(directory)
    family = save_published(opened.model, opened.model.config, directory, opened.usage)  # type: ignore[arg-type]
    if opened.codec is not None:
        opened.codec.save(directory)
        _describe_tokenizer(opened, opened.codec, directory)
    return family


def check_free(directory: Path) -> None:
    """UserError for a place that holds something already."""
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise UserError(f"{directory} is there already and not empty; choose another place")


def _describe_tokenizer(opened: Opened, codec: Codec, directory: Path) -> None:
    """The names of the special symbols, for transformers; and their ids in config.json where it does not say them."""
    names: dict[str, int | None] = {"bos": codec.begin, "eos": codec.end, "unk": codec.unknown}
    names |= {"pad": getattr(codec, "pad", None), "mask": getattr(codec, "mask", None)}
    said: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    if isinstance(codec, TokenizerCodec):
        there = {name: symbol for name, symbol in names.items() if symbol is not None}
        said |= {f"{name}_token": codec.tokenizer.id_to_token(symbol) for name, symbol in there.items()}
    if opened.usage.template is not None:
        said["chat_template"] = opened.usage.template
    write_json(directory / _TOKENIZER_CONFIG, said)
    settings = json.loads((directory / CONFIG).read_text(encoding="utf-8"))
    ids = {f"{name}_token_id": names[name] for name in ("bos", "eos", "pad") if names[name] is not None}
    write_json(directory / CONFIG, ids | settings)
