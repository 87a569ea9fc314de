"""Tests what terminals match, with llguidance itself."""

from __future__ import annotations

from functools import lru_cache

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from headway.serve.ecma_regex import LarkTerminal, escape_json, parse_pattern
from headway.serve.schemas.formats import FORMATS
from headway.serve.schemas.values import StringPattern

LIMITS = LLParserLimits(precompute_large_lexemes=False, verbose_errors=False)


class _Bytes:
    """A tokenizer whose tokens are bytes, after special tokens that a grammar may name."""

    is_tokenizer_wrapper = True
    bos_token_id = None
    special_token_ids: tuple[int, ...] = ()

    def __init__(self, specials: int) -> None:
        self.eos_token_id = specials
        self._first = specials + 1
        self.tokens = [*(b"\xff<%d>" % i for i in range(specials + 1)), *(bytes([i]) for i in range(255))]

    def __call__(self, text: str) -> list[int]:
        return [self._first + byte for byte in text.encode()]


@lru_cache(maxsize=8)
def byte_tokenizer(specials: int = 0) -> LLTokenizer:
    return LLTokenizer(_Bytes(specials))  # type: ignore[arg-type]


@lru_cache(maxsize=1024)
def pattern_terminal(pattern: StringPattern, source: str) -> LarkTerminal:
    """Strings that contain a match of a pattern, escaped as in JSON."""
    text = FORMATS[pattern.text] if pattern.is_format else pattern.text
    return parse_pattern(text, source).terminal(searched=True, quoted=True)


@lru_cache(maxsize=4096)
def is_void(terminal: LarkTerminal) -> bool:
    """Whether a terminal is known to match nothing."""
    matcher = LLMatcher(byte_tokenizer(), f"start: T\nT: {terminal.lark()}", log_level=0, limits=LIMITS)
    if matcher.is_error() or matcher.is_accepting():
        return False
    matcher.compute_bitmask()
    return matcher.is_stopped() and "NoExtension" in (matcher.get_error() or str(matcher.stop_reason()))


@lru_cache(maxsize=1024)
def _matcher(lark: str) -> LLMatcher:
    return LLMatcher(byte_tokenizer(), f"start: T\nT: {lark}", log_level=0, limits=LIMITS)


@lru_cache(maxsize=1 << 16)
def matches(terminal: LarkTerminal, text: str) -> bool:
    """Whether a terminal of quoted strings matches a string."""
    matcher = _matcher(terminal.lark())
    consumed = matcher.try_consume_tokens([1 + byte for byte in escape_json(text).encode()])
    is_match = consumed == len(escape_json(text).encode()) and matcher.is_accepting()
    matcher.reset()
    return is_match
