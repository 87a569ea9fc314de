"""Response formats that constrain decoding: JSON, JSON schemas, regular expressions, choices and grammars.

llguidance computes the tokens that may come next. Nothing is loosened: a format that cannot be enforced is an error
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
from headway.codecs.helper import Helper, HelperError
from headway.errors import UserError, nearest
from headway.generate.scheduler import Rule
from headway.serve.compiling import LIMITS, refusal
from headway.serve.distinct import Distinct
from headway.serve.schemas.documents import LARGEST
from headway.serve.symbols import ByteSymbols, symbols_of

SECONDS = 3.0  # CPU time to compile a format
_MEMORY = 1 << 30  # bytes, for the same
_NAME, _HEADER = 60, 1024  # characters of a keyword, and of the header with ignored keywords
_KEPT, _ROOM = 64, 1 << 21  # cached formats of a codec, and characters of their grammars
_FIELDS = {
    "text": (),
    "json_object": (),
    "json_schema": ("json_schema",),
    "regex": ("regex",),
    "choice": ("choice",),
    "lark": ("lark",),
}
_NAMED = ("name", "schema", "strict", "description")
_helper = Helper("headway.serve.compiling", _MEMORY)


class _Compiled(NamedTuple):
    matcher: LLMatcher
    ignored: list[str]
    shapes: list[Any]


class FormMaker:
    """Makes the rule of each answer in a format. `ignored` are keywords and formats of schemas without effect."""

    def __init__(self, made: _Compiled, symbols: ByteSymbols) -> None:
        self._made = made
        self._symbols = symbols
        self.ignored = made.ignored

    @property
    def headers(self) -> dict[str, str]:
        """A header with as many ignored keywords as fit, escaped as in URLs; empty without any."""
        listed = ""
        for name in self.ignored:
            named = quote(name[:_NAME], safe="$:.")
            if len(listed) + len(named) + 7 > _HEADER:
                listed += ", ..."
                break
            listed += f", {named}" if listed else named
        return {"x-headway-ignored": listed} if listed else {}

    def __call__(self) -> Rule:
        shapes = self._made.shapes
        distinct = Distinct(shapes, self._symbols.tokens, self._symbols.ending) if shapes else None
        return FormRule(self._made.matcher.deep_copy(), self._symbols, distinct)


def rule_for(codec: Codec, form: Mapping[str, Any], ends: Iterable[int] = ()) -> FormMaker | None:
    """Makes the rule of each answer in a format; None for the format "text", which has none.

    `response_format` is OpenAI's, or one of {"type": "regex", "regex": ...} with an ECMA pattern that matches the whole
    answer, {"type": "choice", "choice": [...]} and {"type": "lark", "lark": ...}. A schema is always enforced, `strict`
    or not. `stop_ids` end an answer in addition to the codec's end token; they may only come where the format is
    complete. The first call for a format takes up to SECONDS of CPU time in a separate process, and the same again
    here: call it in a thread. UserError for a format that cannot be enforced.
    """
    if not isinstance(form, Mapping) or not isinstance(kind := form.get("type"), str):
        raise UserError(f"the format {form!r:.80} has no type; use one of {', '.join(_FIELDS)}")
    if kind not in _FIELDS:
        raise UserError(f"unknown format {kind!r:.80}; {nearest(kind, _FIELDS)}")
    _check_names(form, ("type", *_FIELDS[kind]), "the format")
    if kind == "text":
        return None
    return compiled(codec, _asked(kind, form), ends)


def _check_names(given: Mapping[str, Any], known: tuple[str, ...], source: str) -> None:
    strange = next((name for name in given if name not in known), None)
    if strange is not None:
        raise UserError(f"{source} has the unknown field {strange!r:.60}; {nearest(strange, known)}")


def _asked(kind: str, form: Mapping[str, Any]) -> dict[str, Any]:
    """The checked format to compile."""
    if kind == "json_object":
        return {"type": kind}
    value = form.get(kind)
    if kind == "json_schema":
        if not isinstance(value, Mapping) or not isinstance(value.get("schema"), (Mapping, bool)):
            raise UserError('json_schema has no schema; send {"name": ..., "schema": {...}}')
        _check_names(value, _NAMED, "json_schema")
        return {"type": kind, "schema": value["schema"]}
    if kind == "choice":
        if not isinstance(value, (list, tuple)) or not all(isinstance(text, str) for text in value):
            raise UserError(f"choice is {value!r:.80}; send a list of strings")
    elif not isinstance(value, str) or not value:
        raise UserError(f"{kind} is {value!r:.80}; send a string")
    return {"type": kind, kind: value}


def compiled(codec: Codec, form: Mapping[str, Any], ends: Iterable[int] = ()) -> FormMaker:
    """Makes the rule of each answer in a format of `headway.serve.grammar_compiler`.

    The latest formats of a codec are cached, and so are refused ones.
    """
    symbols = symbols_of(codec, ends)
    try:
        key = json.dumps({"form": form, "symbols": symbols.count}, allow_nan=False)
    except (ValueError, TypeError, RecursionError):
        raise UserError("the format is not JSON, or nested too deeply; use a flatter one") from None
    if len(key) > 2 * LARGEST:
        raise UserError(f"the format has {len(key):,} characters; use {2 * LARGEST:,} at most")
    with _lock:
        kept = _compiled.setdefault(codec, _Kept())
    made = kept.of((symbols.ends, key), lambda: _compile(symbols, json.loads(key)))
    if isinstance(made, UserError):
        raise UserError(str(made))
    return FormMaker(made, symbols)


class _Kept:
    """A cache of the latest formats."""

    def __init__(self) -> None:
        self._forms: dict[tuple[tuple[int, ...], str], _Compiled | UserError] = {}
        self._lock = Lock()

    def of(self, key: tuple[tuple[int, ...], str], make: Callable[[], _Compiled | UserError]) -> _Compiled | UserError:
        with self._lock:
            made = self._forms.pop(key, None)
            if made is not None:
                self._forms[key] = made
                return made
        made = make()  # without the lock: two threads may compile the same
        with self._lock:
            self._forms[key] = made
            while len(self._forms) > _KEPT or sum(len(text) for _, text in self._forms) > _ROOM:
                del self._forms[next(iter(self._forms))]
        return made


_compiled: WeakKeyDictionary[Codec, _Kept] = WeakKeyDictionary()
_lock = Lock()


def _compile(symbols: ByteSymbols, request: Mapping[str, Any]) -> _Compiled | UserError:
    try:
        told = _helper.ask(request, SECONDS)
    except HelperError as error:
        reason = {
            "time": f"takes more than {SECONDS:.0f} s to compile",
            "memory": f"takes more than {_MEMORY >> 20} MB to compile",
            "death": "ends the process that compiles it",
        }[error.reason]
        return UserError(f"the format {reason}; use a simpler one")
    if "refused" in told:
        return UserError(told["refused"])
    matcher = LLMatcher(symbols.tokenizer, told["grammar"], log_level=0, limits=LIMITS)
    if matcher.is_error():
        return UserError(refusal(matcher.get_error()))
    return _Compiled(matcher, told["ignored"], told["shapes"])


class FormRule:
    """The rule of one answer. It raises UserError if the format becomes too complex to continue."""

    def __init__(self, matcher: LLMatcher, symbols: ByteSymbols, distinct: Distinct | None = None) -> None:
        self._matcher = matcher
        self._distinct = distinct
        self._symbols = symbols
        self._starts_line = True

    def fill(self, mask: np.ndarray) -> None:
        """Set the bits of the tokens that may come next, int32 [W], W at least vocab_size / 32."""
        words = self._symbols.words
        if mask.dtype != np.int32 or len(mask) < words or not mask.flags.c_contiguous:
            raise ValueError(f"a mask of {len(mask)} {mask.dtype}; pass {words} contiguous int32")
        mask[words:] = 0
        self._matcher.unsafe_compute_mask_ptr(mask.ctypes.data, 4 * words)
        if self._symbols.narrow is not None:  # the decoder drops a space at the start of a line
            starting, within = self._symbols.narrow
            mask[:words] &= starting if self._starts_line else within
        if self._distinct is not None:
            self._distinct.narrow(mask[:words])
        if self._matcher.is_error() or not mask.any():
            raise UserError(refusal(self._matcher.get_error() or "no token can follow"))

    def take(self, symbol: int) -> None:
        """Accept the chosen token, which may be an end token."""
        self._starts_line = symbol in self._symbols.breaks
        if not self._matcher.consume_token(symbol):
            raise UserError(refusal(self._matcher.get_error() or f"token {symbol} is not allowed"))
        if self._distinct is not None and symbol not in self._symbols.ends and not self._distinct.take(symbol):
            raise UserError(refusal("an item or a key occurs twice"))
