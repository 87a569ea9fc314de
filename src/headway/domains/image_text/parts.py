"""Towers and decoders that a captioner begins with: those of runs and of published models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from headway.codecs import Codec
from headway.errors import UserError
from headway.formats.hub import named_folder
from headway.formats.open import open_config, open_model, use_of
from headway.formats.usage import Usage
from headway.nn.models import PatchEmbedConfig, TokenEmbedConfig, TransformerConfig


@dataclass(frozen=True)
class ModelPart:
    """A model at `path`, or the part of it that is named `inner`."""

    path: str
    inner: str = ""

    def open(self) -> nn.Module:
        """The part with its weights."""
        return open_model(named_folder(self.path)).model.get_submodule(self.inner)

    @property
    def config(self) -> TransformerConfig:
        found: Any = open_config(named_folder(self.path))
        return getattr(found, self.inner) if self.inner else found

    @property
    def usage(self) -> Usage:
        """What lies beside the model: how images become its inputs, which symbols end a text."""
        folder = named_folder(self.path)
        return use_of(folder)[0] if (folder / "usage.json").is_file() else open_model(folder).usage

    def codec(self) -> Codec:
        """The model's tokenizer. UserError where there is none."""
        codec = open_model(named_folder(self.path)).codec
        if codec is None:
            raise UserError(f"{self.path} has no tokenizer beside its weights; put its tokenizer.json there")
        return codec

    def __str__(self) -> str:
        return self.path


def tower_of(path: str) -> ModelPart:
    """The part of a model that reads images: a vision transformer, or the tower of a CLIP or captioner. UserError for
    none.
    """
    return _part(
        path, ("tower", "left"), _sees, "reads no images", "give a run or model of images, such as a ViT or CLIP"
    )


def decoder_of(path: str) -> ModelPart:
    """The part of a model that writes: a GPT, or the decoder of a captioner. UserError for none."""
    return _part(path, ("decoder",), _writes, "writes no text from left to right", "give a run of `text`, or a GPT")


def _part(path: str, names: tuple[str, ...], fits: Any, fact: str, remedy: str) -> ModelPart:
    config = open_config(named_folder(path))
    if fits(config):
        return ModelPart(path)
    for name in names:
        if fits(getattr(config, name, None)):
            return ModelPart(path, name)
    raise UserError(f"{path} {fact}; {remedy}")


def _sees(config: Any) -> bool:
    return isinstance(config, TransformerConfig) and isinstance(config.embed, PatchEmbedConfig)


def _writes(config: Any) -> bool:
    return isinstance(config, TransformerConfig) and isinstance(config.embed, TokenEmbedConfig) and config.stack.causal
