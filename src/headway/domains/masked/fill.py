"""Tables over the tokens of masked text, and a model's predictions for masks."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Int
from tokenizers import Tokenizer
from torch import Tensor, nn

from headway.codecs import Codec, TokenizerCodec
from headway.codecs.base import BYTES, decoder_steps, special_ids
from headway.codecs.marks import MASK
from headway.codecs.tokenizer import frame_of
from headway.errors import UserError
from headway.generate.prompts import device_of, evaluating
from headway.layout import Layout
from headway.nn.models import Transformer

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
"""The special tokens of codecs trained for masking, as in BERT."""

_BYTE_LEVEL, _SPACE_MARK = "ByteLevel", "\u2581"  # the character that sentencepiece writes for a space
_LETTER, _DIGIT, _PUNCTUATION, _SPACE, _NONE = range(5)


@dataclass(frozen=True)
class Symbols:
    """Tables over a codec's vocabulary.

    `mask` is the id of the mask token; `text`, bool [C], marks the tokens that are text; `opens`, bool [C], those that
    start a word whatever precedes them; `head` and `tail`, int [C], are the kinds of a token's first and last
    character: a word also starts where these differ between two tokens.
    """

    mask: int
    text: np.ndarray
    opens: np.ndarray
    head: np.ndarray
    tail: np.ndarray

    def word_starts(self, ids: np.ndarray) -> np.ndarray:
        """The starts of words, bool [B, T], in ids [B, T]. The first position of a row is a start."""
        starts = self.opens[ids]
        starts[:, 1:] |= self.head[ids[:, 1:]] != self.tail[ids[:, :-1]]
        starts[:, 0] = True
        return starts


def symbols_of(codec: Codec) -> Symbols:
    """The tables of a codec. Raises UserError if it has no mask token, or no tokens besides special ones."""
    tokenizer = _known(codec).tokenizer
    special = special_ids(tokenizer)
    known = {i: token for token, i in tokenizer.get_vocab(with_added_tokens=True).items()}
    text = np.zeros(codec.size, bool)
    text[[i for i in known if i not in special and i != codec.unknown]] = True
    if not text.any():
        raise UserError("the tokenizer has only special tokens; use one trained on text")
    opens, head, tail = np.ones(codec.size, bool), *np.full((2, codec.size), _NONE)
    prefix, level = _continuing_prefix(codec), _marks(codec)
    for i in np.flatnonzero(text).tolist():
        if prefix:
            opens[i], head[i], tail[i] = not known[i].startswith(prefix), _LETTER, _LETTER
        else:
            spelt = _spelt(known[i], level)
            opens[i], head[i], tail[i] = spelt[:1].isspace(), _kind(spelt[:1]), _kind(spelt[-1:])
    return Symbols(mask_of(codec), text, opens, head, tail)


def mask_of(codec: Codec) -> int:
    """The id of a codec's mask token. Raises UserError if it has none."""
    mask = _known(codec).mask
    if mask is None:
        raise UserError(
            f"the tokenizer has no mask token ({' or '.join(MASK)}); use that of a masked language model, or leave it "
            "out to train one"
        )
    return mask


def spaces_join(codec: Codec) -> bool:
    """Whether tokens include the space before a word, as in GPT-2, RoBERTa and sentencepiece."""
    marks = _marks(codec)
    spelt = (_spelt(token, marks) for token in _known(codec).tokenizer.get_vocab(with_added_tokens=False))
    return any(text.startswith(" ") and text.strip() for text in spelt)


def going_on(codec: Codec) -> Codec:
    """The codec for continuations of a text, without the space that it may insert before the start of one."""
    state = json.loads(_known(codec).tokenizer.to_str())
    kept = [step for step in _steps(state["normalizer"]) if step["type"] != "Prepend"]
    state["normalizer"] = {"type": "Sequence", "normalizers": kept} if kept else None
    for step in _steps(state["pre_tokenizer"]):
        step |= {"prepend_scheme": "never"} if "prepend_scheme" in step else {}
        step |= {"add_prefix_space": False} if "add_prefix_space" in step else {}
    return TokenizerCodec(Tokenizer.from_str(json.dumps(state)))


def _steps(part: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The steps of a part of a tokenizer's JSON: a sequence, a single step, or nothing."""
    if part is None:
        return []
    return part.get("normalizers") or part.get("pretokenizers") or [part]


def spelling(codec: Codec, symbol: int) -> str:
    """The name of a token in the tokenizer."""
    return _known(codec).tokenizer.id_to_token(symbol) or ""


def read(codec: Codec, ids: list[int]) -> str:
    """The text of ids with visible masks, without bos and eos."""
    kept = [i for i in ids if i not in (codec.begin, codec.end)]
    return _known(codec).tokenizer.decode(kept, skip_special_tokens=False).strip()


def _known(codec: Codec) -> TokenizerCodec:
    if not isinstance(codec, TokenizerCodec):
        raise UserError(f"masking needs a tokenizer.json, not a {type(codec).__name__}; use another tokenizer")
    return codec


def _continuing_prefix(codec: Codec) -> str:
    """The prefix of WordPiece tokens inside a word ("##"); empty for other kinds."""
    return getattr(_known(codec).tokenizer.model, "continuing_subword_prefix", None) or ""


def _marks(codec: Codec) -> str:
    """How a tokenizer represents spaces: as bytes, with sentencepiece's character, or plainly (empty)."""
    steps = json.dumps(decoder_steps(_known(codec).tokenizer))
    return _BYTE_LEVEL if _BYTE_LEVEL in steps else _SPACE_MARK if "Metaspace" in steps or "\\u2581" in steps else ""


def _spelt(token: str, marks: str) -> str:
    if marks == _BYTE_LEVEL and all(character in BYTES for character in token):
        return bytes(BYTES[character] for character in token).decode("utf-8", "replace")
    return token.replace(_SPACE_MARK, " ") if marks == _SPACE_MARK else token


def _kind(character: str) -> int:
    if character.isspace():
        return _SPACE
    if character.isdigit():
        return _DIGIT
    # A partial character counts as a letter: most scripts beyond ASCII form words.
    return _LETTER if character.isalpha() or character == "\ufffd" else _PUNCTUATION


class Candidate(NamedTuple):
    """A candidate token for a mask: its text, its id and its probability."""

    text: str
    id: int
    probability: float


def fill(model: Transformer, codec: Codec, text: str, top: int = 5) -> list[list[Candidate]]:
    """For each mask of `text`, in order, the `top` most probable tokens, best first.

    A mask is written [MASK], <mask> or as in the tokenizer. Each prediction sees all masks. Raises UserError for a text
    without a mask, or one that exceeds the context.
    """
    if top < 1:
        raise UserError(f"top is {top}; use 1 or more")
    mask, ids = mask_of(codec), masked_ids(codec, text)
    if mask not in ids:
        raise UserError(f"the text {text[:40]!r} has no mask; write [MASK] for the word to predict")
    context = model.config.context
    if context is not None and len(ids) > context:
        raise UserError(f"the text has {len(ids)} tokens, but the model takes at most {context}; shorten it")
    row = torch.tensor([ids], device=device_of(model))
    with evaluating(model), torch.inference_mode():
        x = model(row, None).x[row == mask]
        found = model.heads["vocabulary"](x).softmax(-1)[:, : codec.size].topk(min(top, codec.size))
    return [
        [Candidate(_shown(codec, i), i, p) for i, p in zip(symbols, shares)]
        for symbols, shares in zip(found.indices.tolist(), found.values.tolist())
    ]


def masked_ids(codec: Codec, text: str) -> list[int]:
    """The ids of a text with masks, with the codec's special tokens around them.

    If the tokenizer joins a space to the word after it, the mask replaces that space too.
    """
    mask = mask_of(codec)
    spellings = sorted({*MASK, spelling(codec, mask)}, key=len, reverse=True)
    parts = re.split("|".join(map(re.escape, spellings)), text)
    if spaces_join(codec):
        parts = [*(part.rstrip(" ") for part in parts[:-1]), parts[-1]]
    later = going_on(codec) if len(parts) > 1 else codec
    encoded = [codec.encode(parts[0]), *(later.encode(part) for part in parts[1:])]
    inner = [*encoded[0], *(i for _, part in pairwise(encoded) for i in (mask, *part))]
    return frame_of(codec).around(inner)


def best_symbols(model: nn.Module, inputs: Any, layout: Layout, hidden: Bool[Tensor, "B T"]) -> Int[Tensor, "B T"]:
    """The most probable token at each masked position, 0 elsewhere."""
    best = torch.zeros_like(hidden, dtype=torch.long)
    best[hidden] = model.get_submodule("heads.vocabulary")(model(inputs, layout).x[hidden]).argmax(-1)
    return best


def _shown(codec: Codec, symbol: int) -> str:
    return codec.decode([symbol]).strip() or spelling(codec, symbol)
