"""tiktoken's ranks: one token's bytes and id per line, and the special tokens that the file omits."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from tokenizers import AddedToken, Tokenizer

from headway.codecs.added_tokens import add_tokens
from headway.codecs.base import BYTES
from headway.codecs.bytepairs import CL100K, GPT2, QWEN2, byte_pairs
from headway.codecs.special_tokens import END_OF_TEXT, SpecialTokens
from headway.codecs.tokenizer_files import library_errors, read_bytes
from headway.errors import UserError

Ranks = Mapping[bytes, int]
_LETTERS = {byte: letter for letter, byte in BYTES.items()}
_MAX_ID = 1 << 20  # maximum token id
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

    @property
    def special_tokens(self) -> SpecialTokens:
        return SpecialTokens(bos=self.bos, eos=self.eos)


def read_ranks(path: Path) -> dict[bytes, int]:
    """Tokens and their ids, each id once."""
    return parse_ranks(read_bytes(path), path)


def parse_ranks(data: bytes, path: Path) -> dict[bytes, int]:
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
        if not 0 <= ranks[token] < _MAX_ID or len(token) > _MAX_TOKEN_BYTES:
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
        return Encoding(GPT2, _whisper_tokens(first, languages), bos=END_OF_TEXT)
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
        special = {token: size + i for i, token in enumerate(_llama3_tokens())}
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


def _whisper_tokens(first: int, languages: int) -> dict[str, int]:
    tasks = ("translate", "transcribe", "startoflm", "startofprev", "nospeech", "notimestamps")
    names = [END_OF_TEXT[2:-2], "startoftranscript", *LANGUAGES[:languages], *tasks]
    names += [f"{step * 0.02:.2f}" for step in range(_TIMESTAMPS)]
    return {f"<|{name}|>": first + i for i, name in enumerate(names)}


def _llama3_tokens() -> list[str]:
    reserved = iter(f"<|reserved_special_token_{i}|>" for i in range(256))
    named = ["<|begin_of_text|>", "<|end_of_text|>", *(next(reserved) for _ in range(4))]
    named += ["<|start_header_id|>", "<|end_header_id|>", next(reserved), "<|eot_id|>"]
    return [*named, *(next(reserved) for _ in range(256 - len(named)))]


def build(ranks: Ranks, encoding: Encoding, source: Path) -> Tokenizer:
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
