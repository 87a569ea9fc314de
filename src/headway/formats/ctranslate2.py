"""CTranslate2 model folders, including Whisper's: a model.bin that contains plain variables and is not a pickle.

version | name and revision of the specification | variables: name, shape, dtype, bytes | aliases: name, variable
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from headway.codecs import TokenizerCodec
from headway.config import from_dict
from headway.errors import UserError
from headway.formats.families import whisper
from headway.formats.native import read_config, uninitialized_model
from headway.formats.published import PublishedModel
from headway.formats.settings import Settings
from headway.formats.tensor_rules import TensorRule, block_rules, linear, linears, rule, tied_copy
from headway.formats.tensorfile import Cursor, MappedFile, tensor_bytes
from headway.formats.usage import Usage
from headway.formats.weights import RenamedWeights, fill
from headway.io.durable import read_json
from headway.io.files import open_file
from headway.nn.models import BlockConfig, EncoderDecoderConfig, ModelConfig

FILE = "model.bin"
VERSION = 6
WHISPER = "WhisperSpec"
_DTYPES = (torch.float32, torch.int8, torch.int16, torch.int32, torch.float16, torch.bfloat16)
_SCALE, _ZERO = "_scale", "_zero"  # suffixes of quantisation parameters
_MIN_VARIABLE_BYTES = 2 + 1 + 1 + 4  # minimum bytes per variable
# Specifications that headway recognises but cannot load, with the remedy.
_UNSUPPORTED_SPECS = {
    "TransformerSpec": "a translation model; load the model that it was converted from",
    "TransformerDecoderModelSpec": "a language model; load the model that it was converted from",
    "TransformerEncoderModelSpec": "an encoder; load the model that it was converted from",
}


class Variable(NamedTuple):
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    size: int


class ModelBin:
    """The variables of a model.bin by name (Weights), fully checked.

    `aliases` are second names of variables (a head that is tied to the embedding). Raises UserError for a file that is
    incomplete or of another version.
    """

    def __init__(self, path: Path) -> None:
        self.source = str(path)
        self._file = MappedFile(Path(path))
        cursor = Cursor(self._file)
        version = cursor.number("I", "the version")
        if version != VERSION:
            raise UserError(
                f"{path} is version {version} of CTranslate2's format (or another kind of file); headway reads version "
                f"{VERSION}: convert the model again with a newer ctranslate2"
            )
        self.specification = _name(cursor)
        self.revision = cursor.number("I", "the revision")
        self._variables = _variables(cursor)
        self.aliases: dict[str, str] = {}
        for _ in range(cursor.count("I", 4, "aliases")):
            alias, name = _name(cursor), _name(cursor)
            if name not in self._variables or alias in self._variables or alias in self.aliases:
                cursor.fail(f"alias {alias!r} of variable {name!r} matches no variable, or occurs twice")
            self.aliases[alias] = name
        if cursor.remaining:
            cursor.fail(f"{cursor.remaining} bytes are left after the last alias")
        self._scales = {name + _SCALE for name in self._variables} & self._variables.keys()

    @property
    def size(self) -> int:
        return self._file.size

    def names(self) -> Collection[str]:
        """Names of all variables except the scales, which belong to their weights. Aliases are not included."""
        return self._variables.keys() - self._scales

    def get(self, name: str) -> Tensor:
        """Return a variable by its name or an alias, as stored; a quantised one is dequantised to 32-bit floats."""
        name = self.aliases.get(name, name)
        if name + _ZERO in self._variables:
            raise UserError(f"{self.source}: {name} has 4 bits, which is not supported; convert to int8 or float16")
        stored = self._stored(name)
        if name + _SCALE not in self._scales:
            return stored
        scale = self._stored(name + _SCALE).float()
        if scale.dim() and (scale.dim() > 1 or scale.shape[0] != stored.shape[0]):
            shapes = f"{tuple(scale.shape)} for {tuple(stored.shape)}"
            raise UserError(f"{self.source}: {name} has scales of shape {shapes}; convert the model again")
        rows = (-1, *(1 for _ in stored.shape[1:]))
        return stored.float() / (scale.view(rows) if scale.dim() else scale)

    def _stored(self, name: str) -> Tensor:
        variable = self._variables[name]
        return self._file.tensor(variable.start, variable.dtype, variable.shape)

    def done(self, name: str) -> None:
        variable = self._variables[self.aliases.get(name, name)]
        self._file.drop(variable.start, variable.size)

    def parameters(self) -> int:
        """Count the parameters; variables that describe the layout (heads, activation) do not count."""
        variables = (self._variables[name] for name in self.names())
        return sum(torch.Size(variable.shape).numel() for variable in variables if variable.shape)


def _name(cursor: Cursor) -> str:
    return cursor.text("H", "a name").removesuffix("\0")


def _variables(cursor: Cursor) -> dict[str, Variable]:
    variables: dict[str, Variable] = {}
    for _ in range(cursor.count("I", _MIN_VARIABLE_BYTES, "variables")):
        name = _name(cursor)
        if name in variables:
            cursor.fail(f"variable {name!r} occurs twice")
        rank = cursor.number("B", "a rank")
        shape = cursor.unpack(f"{rank}I", "a shape")
        kind = cursor.number("B", "a dtype")
        if kind >= len(_DTYPES):
            cursor.fail(f"variable {name!r} has unknown dtype {kind}")
        size = cursor.number("I", "a size")
        if tensor_bytes(shape, _DTYPES[kind].itemsize) != size:
            cursor.fail(f"variable {name!r} of shape {shape} has {size} bytes, which do not match")
        variables[name] = Variable(_DTYPES[kind], shape, cursor.skip(size, f"variable {name!r}"), size)
    return variables


def is_ctranslate2(directory: Path) -> bool:
    """Whether a folder has a model.bin that starts like CTranslate2's rather than like a pickle."""
    path = directory / FILE
    if not path.is_file():
        return False
    with open_file(path) as file:
        return 0 < int.from_bytes(file.read(4).ljust(4, b"\0"), "little") < 256


# Settings in which decoders of this format may differ from Whisper, and Whisper's values.
_WHISPER_VALUES = {
    "decoder/activation": 3,  # GELU
    "decoder/pre_norm": 1,
    "decoder/scale_embeddings": 0,
    "decoder/alibi": 0,
    "decoder/start_from_zero_embedding": 0,
}
_HEADS = "alignment_heads"  # cross-attention heads that follow the audio
_SUPPRESSED = {"suppress_ids": "suppress_tokens", "suppress_ids_begin": "begin_suppress_tokens"}


def load_whisper(directory: Path, dtype: torch.dtype | None, codec: TokenizerCodec | None) -> PublishedModel:
    """Load the model in a CTranslate2 folder, in evaluation mode, with its weights in `dtype` (None: as stored).

    `codec` is the tokenizer next to it, which defines the special tokens. UserError if it is not a Whisper model.
    """
    file, config = _read(directory)
    model = uninitialized_model(config, file.size, file.source, dtype)
    fill(model, _rules(config), RenamedWeights(file, _FAMILY), dtype)
    return PublishedModel(model.eval(), _usage(directory, codec))


def whisper_config(directory: Path) -> ModelConfig:
    """Return a folder's model configuration, without reading weights."""
    return _read(directory)[1]


def _read(directory: Path) -> tuple[ModelBin, EncoderDecoderConfig]:
    file = ModelBin(directory / FILE)
    if file.specification != WHISPER:
        known = _UNSUPPORTED_SPECS.get(
            file.specification, "of an unknown kind; load the model that it was converted from"
        )
        raise UserError(f"{directory} is a model in CTranslate2's format ({file.specification}): {known}")
    names = file.names()
    for name, expected in _WHISPER_VALUES.items():
        tensor = file.get(name) if name in names else None
        if tensor is not None and (tensor.numel() != 1 or tensor.item() != expected):
            raise UserError(f"{file.source}: {name} is {tensor.tolist()}, unlike in Whisper; convert the model again")
    config = read_config(whisper.FAMILY, _settings(file), names)
    assert isinstance(config, EncoderDecoderConfig)
    return file, config


def _settings(file: ModelBin) -> Settings:
    """Derive the settings of a config.json from the weight shapes."""
    embeddings, kernel = (_shape(file, name, rank) for name, rank in (("decoder/embeddings/weight", 2), (_KERNEL, 3)))
    settings: dict[str, Any] = {"vocab_size": embeddings[0], "d_model": embeddings[1], "num_mel_bins": kernel[1]}
    for component, limit_name in (("encoder", "max_source_positions"), ("decoder", "max_target_positions")):
        layer_names = {name.split("/")[1] for name in file.names() if name.startswith(f"{component}/layer_")}
        settings[limit_name] = _shape(file, f"{component}/position_encodings/encodings", 2)[0]
        settings[f"{component}_layers"] = len(layer_names - {"layer_norm"})
        heads = f"{component}/num_heads"
        if heads not in file.names() or file.get(heads).numel() != 1:
            raise UserError(f"{file.source} lacks the scalar {heads!r}; convert the model again")
        settings[f"{component}_attention_heads"] = int(file.get(heads))
        settings[f"{component}_ffn_dim"] = _shape(file, f"{component}/layer_0/ffn/linear_0/weight", 2)[0]
    return Settings({**whisper.FAMILY.defaults, **settings}, file.source)


_KERNEL = "encoder/conv1/weight"


def _shape(file: ModelBin, name: str, rank: int) -> tuple[int, ...]:
    if name not in file.names():
        raise UserError(f"{file.source} lacks variable {name!r}; convert the model again")
    shape = tuple(file.get(name).shape)
    if len(shape) != rank:
        raise UserError(f"{file.source}: {name} has shape {shape}, not of {rank} dimensions; convert the model again")
    return shape


def _usage(directory: Path, codec: TokenizerCodec | None) -> Usage:
    path = directory / "config.json"
    config = read_json(path) if path.is_file() else {}
    if not isinstance(config, dict):
        raise UserError(f"{path} is not a mapping of settings; get the file again")
    generation: dict[str, Any] = {
        name: from_dict(list[int], config[key], f"{path}: {key}")
        for key, name in _SUPPRESSED.items()
        if config.get(key)
    }
    if config.get(_HEADS):
        generation[_HEADS] = from_dict(list[list[int]], config[_HEADS], f"{path}: {_HEADS}")
    if codec is None:
        return Usage("whisper", generation=generation)
    eos, start = codec.token_id("<|endoftext|>"), codec.token_id("<|startoftranscript|>")
    eos_ids = () if eos is None else (eos,)
    return Usage("whisper", {}, begin=eos, ends=eos_ids, pad=eos, decoder_start=start, generation=generation)


@dataclass(frozen=True)
class WithoutKeyBias:
    """A bias of `count` fused maps whose last but one belongs to the keys: zero in the file and absent here."""

    count: int

    def slices(self, parts: Sequence[Tensor]) -> list[Tensor]:
        chunks = list(parts[0].chunk(self.count))
        if len(chunks) != self.count or chunks.pop(-2).any():
            raise UserError("the attention keys have a bias, unlike in Whisper; convert the model again")
        return chunks

    def split(self, tensor: Tensor, sizes: Sequence[int]) -> list[Tensor]:
        chunks = list(tensor.chunk(self.count - 1))
        return [torch.cat([*chunks[:-1], torch.zeros_like(chunks[-1]), chunks[-1]])]


def _rules(config: EncoderDecoderConfig) -> list[TensorRule]:
    components = (("encoder", config.encoder), ("decoder", config.decoder))
    table = "decoder.embed.table"

    def layer(block: BlockConfig) -> list[TensorRule]:
        cross = [
            *linear("cross.q", "attention/linear_0"),
            rule("cross.kv.weight", "attention/linear_1.weight"),
            rule("cross.kv.bias", "attention/linear_1.bias", transform=WithoutKeyBias(2)),
            *linears({"cross.out": "attention/linear_2", "read.before": "attention/layer_norm"}),
        ]
        return [
            rule("mixer.qkv.weight", "self_attention/linear_0.weight"),
            rule("mixer.qkv.bias", "self_attention/linear_0.bias", transform=WithoutKeyBias(3)),
            *linears({"mixer.out": "self_attention/linear_1", "mix.before": "self_attention/layer_norm"}),
            *(cross if block.cross is not None else []),
            *linears({"feed_forward.up": "ffn/linear_0", "feed_forward.down": "ffn/linear_1"}),
            *linear("feed.before", "ffn/layer_norm"),
        ]

    tensor_rules = [
        *whisper.convolution("encoder.embed.first", "encoder/conv1"),
        *whisper.convolution("encoder.embed.second", "encoder/conv2"),
        rule(table, "decoder/embeddings.weight"),
        tied_copy(table, "decoder/projection.weight"),
    ]
    for name, part in components:
        tensor_rules.append(rule(f"{name}.embed.positions.table", f"{name}/position_encodings/encodings"))
        tensor_rules += block_rules(part.stack, f"{name}/layer_{{}}/", layer, f"{name}.stack")
        tensor_rules += linear(f"{name}.stack.norm", f"{name}/layer_norm")
    return tensor_rules


_FAMILY = replace(
    whisper.FAMILY,
    renames=((r"/gamma$", ".weight"), (r"/beta$", ".bias"), (r"/(weight|bias)$", r".\1")),
    skipped=(r"/(num_heads|activation|pre_norm|scale_embeddings|alibi|start_from_zero_embedding|alignment_\w+)$",),
)
