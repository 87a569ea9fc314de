"""Vocabularies as text files: byte pair encoding from vocab.json and merges.txt, on bytes (Radford et al. 2019) or with
end-of-word suffixes; WordPiece from vocab.txt; and tiktoken's ranks, one token's bytes and id per line.

GPT-1 (Radford et al. 2018) and CLIP (Radford et al. 2021) mark the last token of a word with </w>.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from headway.codecs.special_tokens import END_OF_TEXT, add_tokens
from headway.codecs.tokenizer import BYTES
from headway.codecs.tokenizer_files import library_errors, read_object, read_text
from headway.errors import UserError

VOCABULARY, MERGES = "vocab.json", "merges.txt"
END_OF_WORD = "</w>"
_MAX_VOCABULARY_ID = 1 << 31
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
        if not isinstance(token_id, int) or isinstance(token_id, bool) or not 0 <= token_id < _MAX_VOCABULARY_ID:
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
    pattern: str | tuple[str, ...] = GPT2,
    prefix_space: bool = False,
    compose: bool = False,
    whole_words: bool = False,
) -> Tokenizer:
    """BPE on the bytes of the words that `pattern` matches; several patterns split one after the other.

    `prefix_space` adds a space before a text without one, `compose` normalises to NFC, and `whole_words` keeps words
    that are in the vocabulary regardless of the merges.
    """
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=whole_words))
    if compose:
        tokenizer.normalizer = normalizers.NFC()
    patterns = (pattern,) if isinstance(pattern, str) else pattern
    if patterns == (GPT2,):  # built into the library, which is faster
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    else:
        splits = [pre_tokenizers.Split(Regex(each), "isolated") for each in patterns]
        bytewise = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*splits, bytewise])  # type: ignore[assignment]
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def read_bytes_only(sentinels: Sequence[str]) -> Tokenizer:
    """ByT5's tokenizer (Xue et al. 2021): three special tokens, the 256 bytes, and sentinels, by default 125."""
    special = ["<pad>", "</s>", "<unk>"]
    letters = sorted(BYTES, key=BYTES.__getitem__)
    tokenizer = byte_pairs({token: i for i, token in enumerate([*special, *letters])}, [])
    names = [*special, *(sentinels or [f"<extra_id_{i}>" for i in range(125)])]
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    return tokenizer


def _clip(vocabulary: dict[str, int], merges: Merges) -> Tokenizer:
    """Lower-cased words as bytes. Spaces are not stored; they follow from end-of-word suffixes."""
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, end_of_word_suffix=END_OF_WORD))
    spaces = normalizers.Replace(Regex(r"\s+"), " ")
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), spaces, normalizers.Lowercase()])
    words = pre_tokenizers.Split(Regex(CLIP), "removed", invert=True)
    bytewise = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, bytewise])  # type: ignore[assignment]
    tokenizer.decoder = decoders.ByteLevel()
    return with_word_ends(tokenizer)


_SPACE = next(letter for letter, byte in BYTES.items() if byte == ord(" "))


def with_word_ends(tokenizer: Tokenizer) -> Tokenizer:
    """Decode end-of-word suffixes of byte-level tokens as spaces. Files of CLIP leave this to transformers' class."""
    suffix = getattr(tokenizer.model, "end_of_word_suffix", None)
    if suffix == END_OF_WORD and isinstance(tokenizer.decoder, decoders.ByteLevel):
        space = decoders.Replace(END_OF_WORD, _SPACE)
        tokenizer.decoder = decoders.Sequence([space, decoders.ByteLevel(), decoders.Strip(" ", 0, 1)])  # type: ignore[assignment]
    return tokenizer


def _gpt1(vocabulary: dict[str, int], merges: Merges, unknown: Any) -> Tokenizer:
    """Words and punctuation, split as in BERT and lower-cased."""
    name = unknown if isinstance(unknown, str) and unknown in vocabulary else "<unk>"
    unk_token = name if name in vocabulary else None
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token=unk_token, end_of_word_suffix=END_OF_WORD))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.BPEDecoder(suffix=END_OF_WORD)
    return tokenizer


WORDPIECE_FILE = "vocab.txt"
MAX_WORD_LENGTH = 100  # characters; longer words are unknown


def read_wordpiece(path: Path, style: str, settings: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer for a vocab.txt, which is the same in every style.

    tokenizer_config.json sets whether text is lower-cased (`do_lower_case`, default true), accents are removed
    (`strip_accents`, default with lower-casing), and Chinese characters are separate words (`tokenize_chinese_chars`).
    Control characters are always removed.
    """
    lines = read_text(path).split("\n")
    tokens = [line.rstrip("\r") for line in (lines if lines[-1] else lines[:-1])]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    unknown = settings.get("unk_token") or "[UNK]"
    name = unknown.get("content") if isinstance(unknown, dict) else unknown
    if name not in vocabulary:
        raise UserError(f"{path} does not contain the unknown token {name!r:.80}; set it in tokenizer_config.json")
    with library_errors(path):
        return word_pieces(vocabulary, name, settings)


def word_pieces(vocabulary: dict[str, int], unknown: str, settings: Mapping[str, Any]) -> Tokenizer:
    """BERT's tokenizer with a vocabulary and the settings of `read_wordpiece`."""
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=unknown, max_input_chars_per_word=MAX_WORD_LENGTH))
    if settings.get("do_basic_tokenize") is False:
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    else:
        accents = settings.get("strip_accents")
        tokenizer.normalizer = normalizers.BertNormalizer(
            clean_text=True,
            handle_chinese_chars=bool(settings.get("tokenize_chinese_chars", True)),
            strip_accents=None if accents is None else bool(accents),
            lowercase=bool(settings.get("do_lower_case", True)),
        )
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


_MAX_RESIDUES = 1 << 10  # tokens of a protein model, which has 33


def read_residues(path: Path) -> Tokenizer:
    """The tokenizer for the vocab.txt of a protein model (ESM): a token per amino acid, and names in angle brackets."""
    tokens = [line.strip() for line in read_text(path).splitlines()]
    if "<unk>" not in tokens or not 1 < len(tokens) <= _MAX_RESIDUES:
        raise UserError(
            f"{path} has {len(tokens)} tokens; a protein model has <unk> and at most {_MAX_RESIDUES}; download it again"
        )
    names = [token for token in tokens if token.startswith("<")]
    residues = "|".join(re.escape(token) for token in tokens if token and token not in names)
    with library_errors(path):
        vocabulary = {token: i for i, token in enumerate(tokens)}
        tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
        split = pre_tokenizers.Split(
            Regex(residues or "<unk>"), "isolated"
        )  # unknown characters in a row are one token
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), split])
        tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    return tokenizer


Ranks = Mapping[bytes, int]
_LETTERS = {byte: letter for letter, byte in BYTES.items()}
_MAX_RANK = 1 << 20  # maximum token id
_MAX_TOKEN_BYTES = 1 << 10  # maximum bytes in a token
_MAX_SQUARED_BYTES = 1 << 25  # maximum sum of squared lengths in bytes; cl100k has 6 million
_MAX_GAPS = 1 << 8  # maximum ids without a token

_LANGUAGE_CODES = (
    "en zh de es ru ko fr ja pt tr pl ca nl ar sv it id hi fi vi he uk el ms cs ro da hu ta no th ur hr bg lt la mi ml"
    " cy sk te fa lv bn sr az sl kn et mk br eu is hy ne mn bs kk sq sw gl mr pa si km sn yo so af oc ka be tg sd gu am"
    " yi lo uz fo ht ps tk nn mt sa lb my bo tl mg as tt haw ln ha ba jw su yue"
)
LANGUAGES = tuple(_LANGUAGE_CODES.split())
"""Whisper's languages, in the order of their tokens; the last was added in large-v3."""
_TIMESTAMPS = 1501  # Whisper's timestamps, from 0 to 30 s in steps of 0.02 s


@dataclass(frozen=True)
class Encoding:
    """The parts of a tiktoken encoding that are not in its rank file."""

    pattern: str
    special: Mapping[str, int]
    eos: str = END_OF_TEXT
    bos: str | None = None


def parse_ranks(data: bytes, path: Path) -> dict[bytes, int]:
    """Tokens and their ids, each id once."""
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(data.splitlines(), 1):
        parts = line.split()
        if not parts:
            continue
        try:
            spelling, rank = parts
            token = base64.b64decode(spelling, validate=spelling != b"=")  # Whisper's empty token
            ranks[token] = int(rank)
        except (ValueError, binascii.Error):
            token, ranks[b""] = b"", -1
        if not 0 <= ranks[token] < _MAX_RANK or len(token) > _MAX_TOKEN_BYTES:
            raise UserError(f"line {number} of {path} is not a token with its rank: {line!r:.60}; download it again")
    if not ranks or len(set(ranks.values())) < len(ranks):
        raise UserError(f"{path} contains no tokens, or the same rank twice; download it again")
    _check_gaps(max(ranks.values()) + 1, len(ranks), path)
    squares = sum(len(token) ** 2 for token in ranks)  # about as many steps as finding their merges takes
    if squares > _MAX_SQUARED_BYTES:
        max_length = max(map(len, ranks))
        raise UserError(
            f"{path} has tokens of up to {max_length} bytes, too long for {len(ranks):,} tokens; download it again"
        )
    return ranks


def _check_gaps(id_count: int, token_count: int, path: Path) -> None:
    if id_count > token_count + _MAX_GAPS:
        raise UserError(f"{path} has {token_count} ranks, but its encoding has {id_count}; download it again")


def holds_ranks(data: bytes) -> bool:
    """Whether a file starts like a rank file: Llama 3 names it like a sentencepiece model."""
    first = data[: _MAX_TOKEN_BYTES * 2].split(b"\n")[0].split()
    return len(first) == 2 and first[1].isdigit() and first[0].isascii()


def encoding_of(name: str, ranks: Ranks, languages: int = 99) -> Encoding:
    """A file's encoding, determined from its name and size. `languages` is the number of languages in Whisper: 99 or
    100.
    """
    size = max(ranks.values()) + 1
    whisper = "multilingual" in name or "whisper" in name
    if whisper or name == "gpt2":
        first = 50257 if whisper else 50256
        tasks = ("translate", "transcribe", "startoflm", "startofprev", "nospeech", "notimestamps")
        names = [END_OF_TEXT[2:-2], "startoftranscript", *LANGUAGES[:languages], *tasks]
        names += [f"{step * 0.02:.2f}" for step in range(_TIMESTAMPS)]
        return Encoding(GPT2, {f"<|{name}|>": first + i for i, name in enumerate(names)}, bos=END_OF_TEXT)
    if name.startswith(("r50k", "p50k")):
        return Encoding(GPT2, {END_OF_TEXT: 50256}, bos=END_OF_TEXT)
    if name.startswith("cl100k"):
        fill = {f"<|fim_{part}|>": 100258 + i for i, part in enumerate(("prefix", "middle", "suffix"))}
        return Encoding(CL100K, {END_OF_TEXT: 100257, **fill, "<|endofprompt|>": 100276})
    if name.startswith("o200k"):
        return Encoding(O200K, {END_OF_TEXT: 199999, "<|endofprompt|>": 200018})
    if name.startswith("qwen"):
        names = [END_OF_TEXT, "<|im_start|>", "<|im_end|>", *(f"<|extra_{i}|>" for i in range(205))]
        return Encoding(QWEN2, {token: size + i for i, token in enumerate(names)})
    if name == "tokenizer" and size == 128_000:
        reserved = iter(f"<|reserved_special_token_{i}|>" for i in range(256))
        names = ["<|begin_of_text|>", "<|end_of_text|>", *(next(reserved) for _ in range(4))]
        names += ["<|start_header_id|>", "<|end_header_id|>", next(reserved), "<|eot_id|>"]
        names += [next(reserved) for _ in range(256 - len(names))]
        special = {token: size + i for i, token in enumerate(names)}
        return Encoding(CL100K, special, eos="<|end_of_text|>", bos="<|begin_of_text|>")
    raise UserError(
        f"the {size} ranks in {name!r} do not match a known encoding; use the published file name: "
        "r50k_base, p50k_base, cl100k_base, o200k_base, gpt2, multilingual, qwen or (Llama 3) tokenizer.model"
    )


_UPPER, _LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
O200K = (
    rf"[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]*[{_LOWER}]+{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]+[{_LOWER}]*{_CONTRACTIONS}"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def build_tiktoken(ranks: Ranks, encoding: Encoding, source: Path) -> Tokenizer:
    """The tokenizer for an encoding, with the same ids as tiktoken's `encode_ordinary`, and its special tokens.

    Raises UserError if ranks are missing before the special tokens.
    """
    _check_gaps(min(encoding.special.values()), max(ranks.values()) + 1, source)
    vocabulary = {_to_letters(token): rank for token, rank in ranks.items() if token}
    with library_errors(source):
        tokenizer = byte_pairs(vocabulary, merges_of(ranks), encoding.pattern, whole_words=True)
    special = {
        token_id: AddedToken(name, special=True, normalized=False) for name, token_id in encoding.special.items()
    }
    add_tokens(tokenizer, special, str(source))
    return tokenizer


def merges_of(ranks: Ranks) -> list[tuple[str, str]]:
    """The merge that creates each token: the two parts that rank-based BPE has formed before the token's own rank."""
    merges = []
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        parts = [token[i : i + 1] for i in range(len(token))]
        while len(parts) > 2:
            joined = [ranks.get(left + right, rank) for left, right in pairwise(parts)]
            best = min(joined)
            if best >= rank:
                break  # no merge creates this token; it matches only as a whole word
            position = joined.index(best)
            parts[position : position + 2] = [parts[position] + parts[position + 1]]
        if len(parts) == 2 and all(part in ranks for part in parts):
            merges.append((_to_letters(parts[0]), _to_letters(parts[1])))
    return merges


def _to_letters(token: bytes) -> str:
    return "".join(_LETTERS[byte] for byte in token)
