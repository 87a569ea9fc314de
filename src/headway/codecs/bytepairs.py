"""Byte pair encoding from vocab.json and merges.txt: on bytes (Radford et al. 2019), or with end-of-word suffixes.

GPT-1 (Radford et al. 2018) and CLIP (Radford et al. 2021) mark the last token of a word with </w>.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from headway.codecs.base import BYTES
from headway.codecs.tokenizer_files import library_errors, read_object, read_text
from headway.errors import UserError

VOCABULARY, MERGES = "vocab.json", "merges.txt"
END_OF_WORD = "</w>"
_MAX_ID = 1 << 31
Merges = list[tuple[str, str]]

# Patterns that split text into words; merges never cross word boundaries.
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
DIGITS = GPT2.replace(r" ?\p{N}+", r"\p{N}").replace(r"|\s+(?!\S)", r"|\s+(?=\p{N})|\s+(?!\S)")  # each digit alone
CL100K = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = CL100K.replace(r"\p{N}{1,3}", r"\p{N}")
CLIP = r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"


def read_vocabulary(path: Path) -> dict[str, int]:
    """Tokens and their ids, each id once."""
    vocabulary = read_object(path)
    by_id: dict[int, str] = {}
    for token, token_id in vocabulary.items():
        if not isinstance(token_id, int) or isinstance(token_id, bool) or not 0 <= token_id < _MAX_ID:
            raise UserError(f"{path} contains {token!r} with invalid id {token_id!r:.40}; download it again")
        if token_id in by_id:
            raise UserError(
                f"{path} contains {by_id[token_id]!r} and {token!r} with the same id {token_id}; download it again"
            )
        by_id[token_id] = token
    if not vocabulary:
        raise UserError(f"{path} contains no tokens; download it again")
    return vocabulary


def read_merges(path: Path, vocabulary: Mapping[str, int]) -> Merges:
    """Merges in order of priority. Raises UserError for a merge whose parts or result are not in the vocabulary."""
    merges = []
    for number, line in enumerate(read_text(path).split("\n"), 1):
        line = line.rstrip("\r")
        if not line or (number == 1 and line.startswith("#version")):
            continue
        pair = tuple(line.split(" "))
        if len(pair) != 2:
            raise UserError(f"line {number} of {path} is not a pair of tokens: {line!r:.80}; download it again")
        unknown = next((piece for piece in (*pair, "".join(pair)) if piece not in vocabulary), None)
        if unknown is not None:
            raise UserError(
                f"line {number} of {path} merges {unknown!r:.80}, which is not in the vocabulary; download both files"
            )
        merges.append(pair)
    return merges


def read_byte_pairs(path: Path, style: str, settings: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer in a vocab.json and the merges.txt next to it, built like the tokenizer class `style`."""
    vocabulary = read_vocabulary(path)
    merges = read_merges(path.with_name(MERGES), vocabulary)
    with library_errors(path):
        if not any(token.endswith(END_OF_WORD) for token in vocabulary):
            pattern = QWEN2 if style == "qwen2" else GPT2
            return byte_pairs(vocabulary, merges, pattern, bool(settings.get("add_prefix_space")), style == "qwen2")
        unknown = settings.get("unk_token")
        return _clip(vocabulary, merges) if vocabulary.keys() >= BYTES.keys() else _gpt1(vocabulary, merges, unknown)


def byte_pairs(
    vocabulary: dict[str, int],
    merges: Merges,
    pattern: str = GPT2,
    prefix_space: bool = False,
    compose: bool = False,
    whole_words: bool = False,
) -> Tokenizer:
    """BPE on the bytes of the words that `pattern` matches.

    `prefix_space` adds a space before a text without one, `compose` normalises to NFC, and `whole_words` keeps words
    that are in the vocabulary regardless of the merges.
    """
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=whole_words))
    if compose:
        tokenizer.normalizer = normalizers.NFC()
    if pattern == GPT2:  # built into the library, which is faster
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    else:
        split = pre_tokenizers.Split(Regex(pattern), "isolated")
        bytewise = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, bytewise])  # type: ignore[assignment]
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _clip(vocabulary: dict[str, int], merges: Merges) -> Tokenizer:
    """Lower-cased words as bytes. Spaces are not stored; they follow from end-of-word suffixes."""
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, end_of_word_suffix=END_OF_WORD))
    spaces = normalizers.Replace(Regex(r"\s+"), " ")
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), spaces, normalizers.Lowercase()])
    words = pre_tokenizers.Split(Regex(CLIP), "removed", invert=True)
    bytewise = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, bytewise])  # type: ignore[assignment]
    space = decoders.Replace(END_OF_WORD, _SPACE)
    tokenizer.decoder = decoders.Sequence([space, decoders.ByteLevel(), decoders.Strip(" ", 0, 1)])
    return tokenizer


_SPACE = next(letter for letter, byte in BYTES.items() if byte == ord(" "))


def _gpt1(vocabulary: dict[str, int], merges: Merges, unknown: Any) -> Tokenizer:
    """Words and punctuation, split as in BERT and lower-cased."""
    name = unknown if isinstance(unknown, str) and unknown in vocabulary else "<unk>"
    unk_token = name if name in vocabulary else None
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token=unk_token, end_of_word_suffix=END_OF_WORD))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.BPEDecoder(suffix=END_OF_WORD)
    return tokenizer
