"""Response formats that constrain decoding: JSON, JSON schemas, regular expressions, choices and grammars.

llguidance computes the tokens that may come next. Formats are never relaxed: one that cannot be enforced is an error
before the first token.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from threading import Lock
from typing import Any, NamedTuple
from urllib.parse import quote
from weakref import WeakKeyDictionary

import numpy as np
from llguidance import LLMatcher

from headway.codecs import Codec
from headway.errors import UserError, nearest
from headway.generate.sampling import Rule
from headway.io.helper import Helper, HelperError
from headway.serve.grammar_compiler import LIMITS, format_error
from headway.serve.schemas.documents import MAX_SCHEMA_LENGTH
from headway.serve.token_bytes import TokenBytes, token_bytes_of
from headway.serve.unique_items import UniquenessChecker

COMPILE_SECONDS = 3.0  # CPU time to compile a format
_COMPILE_MEMORY = 1 << 30  # bytes to compile a format
_MAX_NAME, _MAX_HEADER = 60, 1024  # characters per keyword, and in the header with ignored keywords
_MAX_FORMATS, _MAX_GRAMMAR_LENGTH = 64, 1 << 21  # cached formats per codec, and characters in their grammars
_FIELDS = {
    "text": (),
    "json_object": (),
    "json_schema": ("json_schema",),
    "regex": ("regex",),
    "choice": ("choice",),
    "lark": ("lark",),
}
_SCHEMA_FIELDS = ("name", "schema", "strict", "description")
_helper = Helper("headway.serve.grammar_compiler", _COMPILE_MEMORY)


class _CompiledFormat(NamedTuple):
    matcher: LLMatcher
    ignored: list[str]
    shapes: list[Any]


class RuleFactory:
    """Makes the rule for each answer in a format. `ignored` are schema keywords and formats without effect."""

    def __init__(self, compiled: _CompiledFormat, token_bytes: TokenBytes) -> None:
        self._compiled = compiled
        self._token_bytes = token_bytes
        self.ignored = compiled.ignored
        self.token_texts: list[bytes] = token_bytes.tokens

    @property
    def headers(self) -> dict[str, str]:
        """A header with as many ignored keywords as fit, escaped as in URLs; empty without any."""
        header = ""
        for name in self.ignored:
            escaped = quote(name[:_MAX_NAME], safe="$:.")
            if len(header) + len(escaped) + 7 > _MAX_HEADER:
                header += ", ..."
                break
            header += f", {escaped}" if header else escaped
        return {"x-headway-ignored": header} if header else {}

    def __call__(self) -> Rule:
        shapes = self._compiled.shapes
        uniqueness = (
            UniquenessChecker(shapes, self._token_bytes.tokens, self._token_bytes.json_end_tokens) if shapes else None
        )
        return GrammarRule(self._compiled.matcher.deep_copy(), self._token_bytes, uniqueness)


def rule_for(codec: Codec, response_format: Mapping[str, Any], stop_ids: Iterable[int] = ()) -> RuleFactory | None:
    """Makes the rule for each answer in a format; None for the format "text", which has none.

    `response_format` is OpenAI's, or one of {"type": "regex", "regex": ...} with an ECMA pattern that matches the whole
    answer, {"type": "choice", "choice": [...]} and {"type": "lark", "lark": ...}. A schema is always enforced, `strict`
    or not. `stop_ids` end an answer in addition to the codec's end token; they may only come where the format is
    complete. The first call for a format takes up to SECONDS of CPU time in a separate process, and the same again
    here, so call it in a thread. UserError for a format that cannot be enforced.
    """
    if not isinstance(response_format, Mapping) or not isinstance(kind := response_format.get("type"), str):
        raise UserError(f"the format {response_format!r:.80} has no type; use one of {', '.join(_FIELDS)}")
    if kind not in _FIELDS:
        raise UserError(f"unknown format {kind!r:.80}; {nearest(kind, _FIELDS)}")
    _check_fields(response_format, ("type", *_FIELDS[kind]), "the format")
    if kind == "text":
        return None
    value = response_format.get(kind)
    if kind == "json_object":
        return compile_format(codec, {"type": kind}, stop_ids)
    if kind == "json_schema":
        if not isinstance(value, Mapping) or not isinstance(value.get("schema"), (Mapping, bool)):
            raise UserError('json_schema has no schema; send {"name": ..., "schema": {...}}')
        _check_fields(value, _SCHEMA_FIELDS, "json_schema")
        return compile_format(codec, {"type": kind, "schema": value["schema"]}, stop_ids)
    if kind == "choice":
        if not isinstance(value, (list, tuple)) or not all(isinstance(text, str) for text in value):
            raise UserError(f"choice is {value!r:.80}; send a list of strings")
    elif not isinstance(value, str) or not value:
        raise UserError(f"{kind} is {value!r:.80}; send a string")
    return compile_format(codec, {"type": kind, kind: value}, stop_ids)


def _check_fields(fields: Mapping[str, Any], known: tuple[str, ...], source: str) -> None:
    unknown_field = next((name for name in fields if name not in known), None)
    if unknown_field is not None:
        raise UserError(f"{source} has the unknown field {unknown_field!r:.60}; {nearest(unknown_field, known)}")


def compile_format(codec: Codec, response_format: Mapping[str, Any], stop_ids: Iterable[int] = ()) -> RuleFactory:
    """Makes the rule for each answer in a format of `headway.serve.grammar_compiler`.

    The latest formats of a codec are cached, including rejected ones.
    """
    token_bytes = token_bytes_of(codec, stop_ids)
    try:
        key = json.dumps({"form": response_format, "symbols": token_bytes.vocab_size}, allow_nan=False)
    except (ValueError, TypeError, RecursionError):
        raise UserError("the format is not JSON, or nested too deeply; use a flatter one") from None
    if len(key) > 2 * MAX_SCHEMA_LENGTH:
        raise UserError(f"the format has {len(key):,} characters; use at most {2 * MAX_SCHEMA_LENGTH:,}")
    with _lock:
        cache = _caches.setdefault(codec, _FormatCache())
    compiled_format = cache.get((token_bytes.stop_ids, key), lambda: _compile(token_bytes, json.loads(key)))
    if isinstance(compiled_format, UserError):
        raise UserError(str(compiled_format))
    return RuleFactory(compiled_format, token_bytes)


class _FormatCache:
    """A cache of the latest formats."""

    def __init__(self) -> None:
        self._formats: dict[tuple[tuple[int, ...], str], _CompiledFormat | UserError] = {}
        self._lock = Lock()

    def get(
        self, key: tuple[tuple[int, ...], str], make: Callable[[], _CompiledFormat | UserError]
    ) -> _CompiledFormat | UserError:
        with self._lock:
            compiled_format = self._formats.pop(key, None)
            if compiled_format is not None:
                self._formats[key] = compiled_format
                return compiled_format
        compiled_format = make()  # without the lock: two threads may compile the same
        with self._lock:
            self._formats[key] = compiled_format
            while (
                len(self._formats) > _MAX_FORMATS or sum(len(text) for _, text in self._formats) > _MAX_GRAMMAR_LENGTH
            ):
                del self._formats[next(iter(self._formats))]
        return compiled_format


_caches: WeakKeyDictionary[Codec, _FormatCache] = WeakKeyDictionary()
_lock = Lock()


def _compile(token_bytes: TokenBytes, request: Mapping[str, Any]) -> _CompiledFormat | UserError:
    try:
        reply = _helper.ask(request, COMPILE_SECONDS)
    except HelperError as error:
        reason = {
            "time": f"takes more than {COMPILE_SECONDS:.0f} s to compile",
            "memory": f"takes more than {_COMPILE_MEMORY >> 20} MB to compile",
            "death": "crashes the process that compiles it",
        }[error.reason]
        return UserError(f"the format {reason}; use a simpler one")
    if "refused" in reply:
        return UserError(reply["refused"])
    matcher = LLMatcher(token_bytes.tokenizer, reply["grammar"], log_level=0, limits=LIMITS)
    if matcher.is_error():
        return UserError(format_error(matcher.get_error()))
    return _CompiledFormat(matcher, reply["ignored"], reply["shapes"])


class GrammarRule:
    """The rule for one answer. It raises UserError if the format becomes too complex to continue."""

    def __init__(
        self, matcher: LLMatcher, token_bytes: TokenBytes, uniqueness: UniquenessChecker | None = None
    ) -> None:
        self._matcher = matcher
        self._uniqueness = uniqueness
        self._token_bytes = token_bytes
        self._starts_line = True

    def fill(self, mask: np.ndarray) -> None:
        """Set the bits of the tokens that may come next, int32 [W], W at least vocab_size / 32."""
        words = self._token_bytes.num_words
        if mask.dtype != np.int32 or len(mask) < words or not mask.flags.c_contiguous:
            raise ValueError(f"a mask of {len(mask)} {mask.dtype}; pass {words} contiguous int32")
        mask[words:] = 0
        self._matcher.unsafe_compute_mask_ptr(mask.ctypes.data, 4 * words)
        if self._token_bytes.line_masks is not None:  # the decoder drops a space at the start of a line
            starting, within = self._token_bytes.line_masks
            mask[:words] &= starting if self._starts_line else within
        if self._uniqueness is not None:
            self._uniqueness.narrow(mask[:words])
        if self._matcher.is_error() or not mask.any():
            raise UserError(format_error(self._matcher.get_error() or "no token can follow"))

    def take(self, token: int) -> None:
        """Accept the chosen token, which may be an end token."""
        self._starts_line = token in self._token_bytes.line_breaks
        if not self._matcher.consume_token(token):
            raise UserError(format_error(self._matcher.get_error() or f"token {token} is not allowed"))
        if (
            self._uniqueness is not None
            and token not in self._token_bytes.stop_ids
            and not self._uniqueness.take(token)
        ):
            raise UserError(format_error("an item or a key occurs twice"))
