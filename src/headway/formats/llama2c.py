"""llama2.c's binaries (Karpathy 2023): a Llama in 32-bit floats without tensor names, and its tokenizer with scores.

The first version is seven integers followed by the weights; version 1 has a 256-byte header and another order.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from headway.codecs import TokenizerCodec
from headway.codecs.sentencepiece import BYTE, CONTROL, NORMAL, SPACE, UNKNOWN, PieceTable, build
from headway.codecs.special_tokens import SpecialTokens, set_post_processor
from headway.errors import UserError
from headway.formats.families import families
from headway.formats.native import read_config, uninitialized_model
from headway.formats.published import PublishedModel
from headway.formats.settings import Settings
from headway.formats.tensor_rules import Interleaved, TensorRule
from headway.formats.tensorfile import Cursor, MappedFile
from headway.formats.usage import Usage
from headway.formats.weights import fill
from headway.nn.models import ModelConfig

SUFFIX = ".bin"
_MAGIC, _HEADER = 0x616B3432, 256
_BOS, _EOS = 1, 2
_SPECIAL_TOKENS = ("<unk>", "<s>", "</s>")  # the first ids; the file has BOS and EOS on separate lines
_FIRST_PIECE_ID = len(_SPECIAL_TOKENS) + 256  # the first id after the special tokens and the bytes
_MAX_PIECE_CHARS = 1000  # characters per token
_MAX_LAYERS = 10_000


class Sizes(NamedTuple):
    width: int
    hidden: int
    depth: int
    heads: int
    kv_heads: int
    vocab_size: int
    context: int
    tied: bool


class Binary:
    """The tensors of a llama2.c file under the names of the published Llama (Weights), fully checked."""

    def __init__(self, path: Path) -> None:
        self.source = str(path)
        self._file = MappedFile(path)
        cursor = Cursor(self._file)
        first = cursor.number("I", "the header")
        if first == _MAGIC:
            version = cursor.number("i", "the version")
            if version != 1:
                raise UserError(
                    f"{cursor.file.source} is version {version} of llama2.c's format; headway reads version 0 and "
                    "version 1, in 32-bit floats: export it again with --version 1"
                )
            width, *fields = cursor.unpack("7i", "the header")
            tied = bool(cursor.number("B", "the header"))
            cursor.skip(_HEADER - cursor.offset, "the header")
        else:
            version, width, fields = 0, first, list(cursor.unpack("6i", "the header"))
            tied = fields[4] > 0
            fields[4] = abs(fields[4])
        sizes = Sizes._make((width, *fields, tied))
        _check(cursor, sizes)
        self.version, self.sizes = version, sizes
        self._entries: dict[str, tuple[int, tuple[int, ...]]] = {}
        for name, shape in _order(self.version, self.sizes):
            self._entries[name] = cursor.skip(4 * math.prod(shape), name or "the table of rotary angles"), shape
        self._entries.pop("", None)
        if cursor.remaining:
            cursor.fail(f"{cursor.remaining} bytes are left after the last tensor")

    def names(self) -> Collection[str]:
        return self._entries.keys()

    def get(self, name: str) -> Tensor:
        offset, shape = self._entries[name]
        return self._file.tensor(offset, torch.float32, shape)

    def done(self, name: str) -> None:
        offset, shape = self._entries[name]
        self._file.drop(offset, 4 * math.prod(shape))

    @property
    def size(self) -> int:
        return self._file.size


def _check(cursor: Cursor, sizes: Sizes) -> None:
    fields = sizes._asdict()
    invalid = next((name for name in fields if name != "tied" and fields[name] < 1), None)
    if invalid is not None:
        cursor.fail(f"{invalid} is {fields[invalid]}, so this is not a llama2.c file")
    if sizes.depth > _MAX_LAYERS or sizes.width % sizes.heads or sizes.heads % sizes.kv_heads:
        cursor.fail(
            f"width {sizes.width}, depth {sizes.depth}, {sizes.heads} heads and {sizes.kv_heads} key heads fit no model"
        )
    if sizes.width // sizes.heads % 2:
        cursor.fail(f"heads of {sizes.width // sizes.heads} features cannot be rotated in pairs")


def _order(version: int, sizes: Sizes) -> list[tuple[str, tuple[int, ...]]]:
    """Names and shapes of the tensors, in the order of the file. The table without a name contains the cosine and sine
    of all angles, which are recomputed.
    """

    def stacked(name: str, *shape: int) -> list[tuple[str, tuple[int, ...]]]:
        return [(f"model.layers.{i}.{name}.weight", shape) for i in range(sizes.depth)]

    width, hidden, head_size = sizes.width, sizes.hidden, sizes.width // sizes.heads
    rows = {"q": width, "k": sizes.kv_heads * head_size, "v": sizes.kv_heads * head_size, "o": width}
    table = ("model.embed_tokens.weight", (sizes.vocab_size, width))
    first, second = stacked("input_layernorm", width), stacked("post_attention_layernorm", width)
    attention = [entry for name in "qkvo" for entry in stacked(f"self_attn.{name}_proj", rows[name], width)]
    feed = stacked("mlp.gate_proj", hidden, width)
    feed += stacked("mlp.down_proj", width, hidden) + stacked("mlp.up_proj", hidden, width)
    norm = ("model.norm.weight", (width,))
    head = [] if sizes.tied else [("lm_head.weight", (sizes.vocab_size, width))]
    if version == 0:
        angles = ("", (sizes.context, head_size))
        return [table, *first, *attention, *second, *feed, norm, angles, *head]
    return [*first, *second, norm, table, *attention, *feed, *head]


def interleaved(rules: list[TensorRule], heads: int, kv_heads: int) -> list[TensorRule]:
    """Return a Llama's rules for a file whose rotary pairs are adjacent."""
    transform = Interleaved((heads, kv_heads, 0))
    return [replace(rule, transform=transform) if ".mixer.qkv." in rule.target else rule for rule in rules]


def load_llama2c(path: Path, dtype: torch.dtype | None = torch.float32) -> PublishedModel:
    """Load the model in a llama2.c file, in evaluation mode. Its BOS token also ends a text."""
    weights = Binary(Path(path))
    family, sizes = families()["llama"], weights.sizes
    settings, config = _read(weights)
    model = uninitialized_model(config, weights.size, str(path), dtype)
    fill(model, interleaved(family.rules(config), sizes.heads, sizes.kv_heads), weights, dtype)
    usage = Usage("llama", dict(settings.values), begin=_BOS, ends=(_EOS, _BOS))
    return PublishedModel(model.eval(), usage)


def llama2c_config(path: Path) -> ModelConfig:
    """Return the configuration of the model in a llama2.c file, without reading weights."""
    return _read(Binary(Path(path)))[1]


def _read(weights: Binary) -> tuple[Settings, ModelConfig]:
    family = families()["llama"]
    sizes = weights.sizes
    values = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": sizes.width,
        "intermediate_size": sizes.hidden,
        "num_hidden_layers": sizes.depth,
        "num_attention_heads": sizes.heads,
        "num_key_value_heads": sizes.kv_heads,
        "vocab_size": sizes.vocab_size,
        "max_position_embeddings": sizes.context,
        "tie_word_embeddings": sizes.tied,
        "rms_norm_eps": 1e-5,  # fixed in llama2.c, like everything that is not here
        "bos_token_id": _BOS,
        "eos_token_id": _EOS,
    }
    settings = Settings({**family.defaults, **values}, weights.source)
    return settings, read_config(family, settings, weights.names())


def load_tokenizer(path: Path) -> TokenizerCodec:
    """Load a llama2.c tokenizer file (tokenizer.bin, tok512.bin): tokens with scores, merged greedily.

    A text gets a leading space, and a prompt the BOS token. Text without a token becomes its bytes.
    """
    cursor = Cursor(MappedFile(Path(path)))
    max_bytes = cursor.number("i", "the header")
    tokens: list[str] = []
    scores: list[float] = []
    while cursor.remaining:
        scores.append(cursor.unpack("f", "a score")[0])
        tokens.append(cursor.text("i", f"token {len(tokens)}"))
        if not 0 < len(tokens[-1]) <= _MAX_PIECE_CHARS or (
            len(tokens) > _FIRST_PIECE_ID and len(tokens[-1].encode()) > max_bytes
        ):
            cursor.fail(
                f"token {len(tokens) - 1} has {len(tokens[-1])} characters; the header allows {max_bytes} bytes"
            )
    tokens[: len(_SPECIAL_TOKENS)] = _SPECIAL_TOKENS
    types = [UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256, *[NORMAL] * (len(tokens) - _FIRST_PIECE_ID)]
    if len(tokens) < _FIRST_PIECE_ID or len(set(tokens)) < len(tokens) or not all(map(math.isfinite, scores)):
        cursor.fail(
            f"{len(tokens)} tokens are not a llama2.c vocabulary (special tokens, 256 bytes, unique tokens with scores)"
        )
    table = PieceTable(
        [text.replace(" ", SPACE) for text in tokens], scores, types, "bpe", byte_fallback=True, squeeze=False
    )
    tokenizer = build(table, path)
    special_tokens = SpecialTokens(bos=_SPECIAL_TOKENS[_BOS], eos=_SPECIAL_TOKENS[_EOS], unk=_SPECIAL_TOKENS[0])
    set_post_processor(tokenizer, "llama", special_tokens, {})
    return TokenizerCodec(tokenizer, special_tokens)


def is_llama2c(path: Path) -> bool:
    """Whether a .bin file looks like a llama2.c file: unlike a pickle's, its header matches its size."""
    try:
        Binary(Path(path))
    except UserError:
        return False
    return True
