"""Whisper in CTranslate2's format: variables under names of their own, with query, key and value fused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from headway.checkpoints.ctranslate2 import FILE, WHISPER, ModelBin, refuse_ctranslate2
from headway.checkpoints.durable import read_json
from headway.checkpoints.families import whisper
from headway.checkpoints.published import Published
from headway.checkpoints.rules import Rule, copy, layers, linear, rule
from headway.checkpoints.settings import Settings
from headway.checkpoints.undrawn import read_config, undrawn
from headway.checkpoints.usage import Usage
from headway.checkpoints.weights import Renamed, fill
from headway.codecs import TokenizerCodec
from headway.config import from_dict
from headway.errors import UserError
from headway.models import EncoderDecoderConfig, ModelConfig, StackConfig

# What decoders of this format may do otherwise than Whisper, and the number that says that they do not.
_EXPECTED = {
    "decoder/activation": 3,  # GELU
    "decoder/pre_norm": 1,
    "decoder/scale_embeddings": 0,
    "decoder/alibi": 0,
    "decoder/start_from_zero_embedding": 0,
}
_HEADS = "alignment_heads"  # of cross-attention, which follow the sound
_SUPPRESSED = {"suppress_ids": "suppress_tokens", "suppress_ids_begin": "begin_suppress_tokens"}


def load_whisper(directory: Path, dtype: torch.dtype | None, codec: TokenizerCodec | None) -> Published:
    """The model in a folder of CTranslate2's, in evaluation mode, its weights in `dtype` (None: as stored).

    `codec` is the tokenizer beside it, which knows the marks. UserError for a model that is no Whisper.
    """
    file, config = _read(directory)
    model = undrawn(config, file.size, file.source, dtype)
    fill(model, _rules(config), Renamed(file, _FAMILY), dtype)
    return Published(model.eval(), _usage(directory, codec))


def whisper_config(directory: Path) -> ModelConfig:
    """The configuration of the model in a folder; no weight is read."""
    return _read(directory)[1]


def _read(directory: Path) -> tuple[ModelBin, EncoderDecoderConfig]:
    file = ModelBin(directory / FILE)
    if file.specification != WHISPER:
        refuse_ctranslate2(directory)
    names = file.names()
    for name, expected in _EXPECTED.items():
        found = file.get(name) if name in names else None
        if found is not None and (found.numel() != 1 or found.item() != expected):
            raise UserError(f"{file.source}: {name} is {found.tolist()}, no Whisper has that; convert the model again")
    config = read_config(whisper.FAMILY, _settings(file), names)
    assert isinstance(config, EncoderDecoderConfig)
    return file, config


def _settings(file: ModelBin) -> Settings:
    """What the shapes of the weights say, as a config.json would."""
    embeddings, kernel = (_shape(file, name, rank) for name, rank in (("decoder/embeddings/weight", 2), (_KERNEL, 3)))
    found: dict[str, Any] = {"vocab_size": embeddings[0], "d_model": embeddings[1], "num_mel_bins": kernel[1]}
    for side, most in (("encoder", "max_source_positions"), ("decoder", "max_target_positions")):
        numbers = {name.split("/")[1] for name in file.names() if name.startswith(f"{side}/layer_")}
        found[most] = _shape(file, f"{side}/position_encodings/encodings", 2)[0]
        found[f"{side}_layers"] = len(numbers - {"layer_norm"})
        found[f"{side}_attention_heads"] = _number(file, f"{side}/num_heads")
        found[f"{side}_ffn_dim"] = _shape(file, f"{side}/layer_0/ffn/linear_0/weight", 2)[0]
    return Settings({**whisper.FAMILY.defaults, **found}, file.source)


_KERNEL = "encoder/conv1/weight"


def _shape(file: ModelBin, name: str, rank: int) -> tuple[int, ...]:
    if name not in file.names():
        raise UserError(f"{file.source} lacks variable {name!r}; convert the model again")
    shape = tuple(file.get(name).shape)
    if len(shape) != rank:
        raise UserError(f"{file.source}: {name} has shape {shape}, not of {rank} dimensions; convert the model again")
    return shape


def _number(file: ModelBin, name: str) -> int:
    if name not in file.names() or file.get(name).numel() != 1:
        raise UserError(f"{file.source} lacks the number {name!r}; convert the model again")
    return int(file.get(name))


def _usage(directory: Path, codec: TokenizerCodec | None) -> Usage:
    path = directory / "config.json"
    said = read_json(path) if path.is_file() else {}
    if not isinstance(said, dict):
        raise UserError(f"{path} is not a mapping of settings; get the file again")
    generation: dict[str, Any] = {
        name: from_dict(list[int], said[key], f"{path}: {key}") for key, name in _SUPPRESSED.items() if said.get(key)
    }
    if said.get(_HEADS):
        generation[_HEADS] = from_dict(list[list[int]], said[_HEADS], f"{path}: {_HEADS}")
    if codec is None:
        return Usage("whisper", generation=generation)
    end, start = codec.token("<|endoftext|>"), codec.token("<|startoftranscript|>")
    ends = () if end is None else (end,)
    return Usage("whisper", {}, begin=end, ends=ends, pad=end, decoder_start=start, generation=generation)


@dataclass(frozen=True)
class WithoutKeys:
    """A bias of `count` maps fused, the last but one the keys', whose bias is zero there and is none here."""

    count: int

    def slices(self, parts: Sequence[Tensor]) -> list[Tensor]:
        pieces = list(parts[0].chunk(self.count))
        if len(pieces) != self.count or pieces.pop(-2).any():
            raise UserError("the keys of an attention have a bias, which no Whisper has; convert the model again")
        return pieces

    def split(self, whole: Tensor, sizes: Sequence[int]) -> list[Tensor]:
        pieces = list(whole.chunk(self.count - 1))
        return [torch.cat([*pieces[:-1], torch.zeros_like(pieces[-1]), pieces[-1]])]


def _rules(config: EncoderDecoderConfig) -> list[Rule]:
    sides = (("encoder", config.encoder), ("decoder", config.decoder))
    table = "decoder.embed.table"
    return [
        *whisper.convolution("encoder.embed.first", "encoder/conv1"),
        *whisper.convolution("encoder.embed.second", "encoder/conv2"),
        rule(table, "decoder/embeddings.weight"),
        copy(table, "decoder/projection.weight"),
        *(rule(f"{side}.embed.positions.table", f"{side}/position_encodings/encodings") for side, _ in sides),
        *(each for side, part in sides for each in _stack_rules(part.stack, side)),
    ]


def _stack_rules(stack: StackConfig, side: str) -> list[Rule]:
    def layer(i: int) -> list[Rule]:
        ours, theirs = f"{side}.stack.blocks.{i}", f"{side}/layer_{i}"
        own, feed = f"{theirs}/self_attention", f"{theirs}/ffn"
        return [
            rule(f"{ours}.mixer.qkv.weight", f"{own}/linear_0.weight"),
            rule(f"{ours}.mixer.qkv.bias", f"{own}/linear_0.bias", form=WithoutKeys(3)),
            *linear(f"{ours}.mixer.out", f"{own}/linear_1"),
            *linear(f"{ours}.mix.before", f"{own}/layer_norm"),
            *(_cross_rules(ours, f"{theirs}/attention") if stack.blocks[i].cross is not None else []),
            *linear(f"{ours}.feed_forward.up", f"{feed}/linear_0"),
            *linear(f"{ours}.feed_forward.down", f"{feed}/linear_1"),
            *linear(f"{ours}.feed.before", f"{feed}/layer_norm"),
        ]

    return [*layers(len(stack.blocks), layer), *linear(f"{side}.stack.norm", f"{side}/layer_norm")]


def _cross_rules(ours: str, theirs: str) -> list[Rule]:
    return [
        *linear(f"{ours}.cross.q", f"{theirs}/linear_0"),
        rule(f"{ours}.cross.kv.weight", f"{theirs}/linear_1.weight"),
        rule(f"{ours}.cross.kv.bias", f"{theirs}/linear_1.bias", form=WithoutKeys(2)),
        *linear(f"{ours}.cross.out", f"{theirs}/linear_2"),
        *linear(f"{ours}.read.before", f"{theirs}/layer_norm"),
    ]


_FAMILY = replace(
    whisper.FAMILY,
    renames=((r"/gamma$", ".weight"), (r"/beta$", ".bias"), (r"/(weight|bias)$", r".\1")),
    skipped=(r"/(num_heads|activation|pre_norm|scale_embeddings|alibi|start_from_zero_embedding|alignment_\w+)$",),
)
