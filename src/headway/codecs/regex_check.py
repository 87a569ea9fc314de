"""Regular expressions from published tokenizers: reject those that take too long.

A backtracking search can take time that is cubic or exponential in the length of the text, and nothing stops it once it
runs. So a pattern must be known, be too simple to backtrack, or pass a test in a helper process on repetitions of its
own characters.
"""

from __future__ import annotations

import re
from functools import lru_cache

from headway.codecs.bytepairs import CL100K, CLIP, GPT2, QWEN2
from headway.codecs.helper import Helper, HelperError
from headway.codecs.sentencepiece import WORDS as PIECE_WORDS
from headway.codecs.tiktoken import O200K
from headway.codecs.tokenizer_training import LINES, WORD
from headway.errors import UserError

_GPT4 = (  # cl100k in tiktoken since 2023
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)
_SPACED = r"\A +| +\z"  # sentencepiece: only at the ends of a text
KNOWN_PATTERNS = frozenset({GPT2, CL100K, QWEN2, CLIP, O200K, _GPT4, WORD, LINES, PIECE_WORDS, _SPACED})
MAX_LENGTH = 1 << 17  # maximum characters in a pattern
_CPU_SECONDS = 2.0  # CPU time for all tests
_MEMORY = 1 << 30  # bytes
_helper = Helper("headway.codecs.regex_timing", _MEMORY)

_PARTS = re.compile(
    r"""(?P<around>\(\?<?[=!]) | (?P<open>\() | (?P<close>\)) | (?P<or>\|)
      | (?P<repeat>[*+] | \{\d*,\d*\}) | (?P<optional>\?) | (?P<count>\{\d+\})
      | (?P<strange>\\[gkKGXRMCybB0-9] | \[[^\]]*(?:\[|&&))
      | (?P<atom>\\[pP]\{[^}]*\} | \\x\{[^}]*\} | \\. | \[\^?\]?(?:[^\]\\]|\\.)*\] | .)""",
    re.VERBOSE | re.DOTALL,
)


def check_pattern(pattern: str, source: str) -> None:
    """Raise UserError for a regular expression that is invalid, backtracks or is too long."""
    if pattern in KNOWN_PATTERNS:
        return
    description = f"{source} splits words with {pattern!r:.80}"
    if len(pattern) > MAX_LENGTH:
        raise UserError(
            f"{description}, which has {len(pattern):,} characters, more than {MAX_LENGTH:,}; use another tokenizer"
        )
    fault = None if is_simple(pattern) else _measured_fault(pattern)
    if fault is not None:
        raise UserError(
            f"{description}, which {fault}; use another tokenizer, or write the pattern without nested repeats"
        )


def is_simple(pattern: str) -> bool:
    """Whether a search takes one step per character: no repeat is followed by anything or inside a group.

    Groups may only be lookarounds of fixed length.
    """
    in_group = repeated = False
    optional = 0
    for match in _PARTS.finditer(pattern):
        kind = match.lastgroup
        if repeated and kind != "or":
            return False
        if kind in ("open", "strange") or (kind in ("around", "repeat", "optional", "count") and in_group):
            return False
        if kind == "close" and not in_group:
            return False
        in_group = kind == "around" or (in_group and kind != "close")
        repeated = kind == "repeat" or (repeated and kind != "or")
        optional += kind in ("optional", "count")
    return not in_group and optional <= 16 and not re.search(r"\)[*+?{]|\{\d{4}|\{\d*,\d{4}", pattern)


@lru_cache(maxsize=256)
def _measured_fault(pattern: str) -> str | None:
    try:
        return _helper.ask(pattern, _CPU_SECONDS)
    except HelperError as error:
        return {
            "time": "backtracks endlessly",
            "memory": f"needs more than {_MEMORY >> 20} MB",
            "death": "crashes its process",
        }[error.reason]
