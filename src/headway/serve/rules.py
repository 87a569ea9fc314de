"""Forms that answers are held to while they are written: JSON, JSON of a schema, expressions, choices and grammars.

llguidance says which symbols may come next. Nothing is loosened: what cannot be held to is an error before the first
symbol.
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

SECONDS = 3.0  # of a processor, that compiling a form may take
_MEMORY = 1 << 30  # bytes, for the same
_NAME, _HEADER = 60, 1024  # characters of a keyword, and of the header with those that are ignored
_KEPT, _ROOM = 64, 1 << 21  # compiled forms of a codec, and characters of their grammars
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
    """Makes the rule of each answer in a form. `ignored` are keywords and formats of schemas that demand nothing."""

    def __init__(self, made: _Compiled, symbols: ByteSymbols) -> None:
        self._made = made
        self._symbols = symbols
        self.ignored = made.ignored

    @property
    def headers(self) -> dict[str, str]:
        """A header that lists what is ignored, escaped as in URLs, as far as it has room; or nothing."""
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
    """What makes a rule for each answer in a form; None for the form "text", which has none.

    `form` is a `response_format` of OpenAI's, or one of {"type": "regex", "regex": ...}, whose pattern is ECMA's and
    matches the whole answer, {"type": "choice", "choice": [...]} and {"type": "lark", "lark": ...}. A schema is always
    held to, `strict` or not. `ends` are ids that end an answer beside the codec's end; they may come where the form is
    complete, and nowhere else. The first call for a form takes up to SECONDS of a processor, in a process of its own,
    and as long again here: call it in a thread. UserError for what cannot be held to.
    """
    if not isinstance(form, Mapping) or not isinstance(kind := form.get("type"), str):
        raise UserError(f"the form {form!r:.80} has no type; give one of {', '.join(_FIELDS)}")
    if kind not in _FIELDS:
        raise UserError(f"the form {kind!r:.80} is not known; {nearest(kind, _FIELDS)}")
    _check_names(form, ("type", *_FIELDS[kind]), "the form")
    if kind == "text":
        return None
    return compiled(codec, _asked(kind, form), ends)


def _check_names(given: Mapping[str, Any], known: tuple[str, ...], source: str) -> None:
    strange = next((name for name in given if name not in known), None)
    if strange is not None:
        raise UserError(f"{source} has the field {strange!r:.60}, which it does not know; {nearest(strange, known)}")


def _asked(kind: str, form: Mapping[str, Any]) -> dict[str, Any]:
    """What is to be compiled, of the right types."""
    if kind == "json_object":
        return {"type": kind}
    value = form.get(kind)
    if kind == "json_schema":
        if not isinstance(value, Mapping) or not isinstance(value.get("schema"), (Mapping, bool)):
            raise UserError('json_schema has no schema; give {"name": ..., "schema": {...}}')
        _check_names(value, _NAMED, "json_schema")
        return {"type": kind, "schema": value["schema"]}
    if kind == "choice":
        if not isinstance(value, (list, tuple)) or not all(isinstance(text, str) for text in value):
            raise UserError(f"choice is {value!r:.80}; give a list of texts")
    elif not isinstance(value, str) or not value:
        raise UserError(f"{kind} is {value!r:.80}; give a text")
    return {"type": kind, kind: value}


def compiled(codec: Codec, form: Mapping[str, Any], ends: Iterable[int] = ()) -> FormMaker:
    """What makes a rule for each answer in a form as `headway.serve.compiling` takes it.

    The newest forms of a codec are kept, and so is that one was refused.
    """
    symbols = symbols_of(codec, ends)
    try:
        key = json.dumps({"form": form, "symbols": symbols.count}, allow_nan=False)
    except (ValueError, TypeError, RecursionError):
        raise UserError("the form is no JSON, or nested too deeply; give a flatter one") from None
    if len(key) > 2 * LARGEST:
        raise UserError(f"the form has {len(key):,} characters; give one of {2 * LARGEST:,} at most")
    with _lock:
        kept = _compiled.setdefault(codec, _Kept())
    made = kept.of((symbols.ends, key), lambda: _compile(symbols, json.loads(key)))
    if isinstance(made, UserError):
        raise UserError(str(made))
    return FormMaker(made, symbols)


class _Kept:
    """The newest forms, as many as have room."""

    def __init__(self) -> None:
        self._forms: dict[tuple[tuple[int, ...], str], _Compiled | UserError] = {}
        self._lock = Lock()

    def of(self, key: tuple[tuple[int, ...], str], make: Callable[[], _Compiled | UserError]) -> _Compiled | UserError:
        with self._lock:
            made = self._forms.pop(key, None)
            if made is not None:
                self._forms[key] = made
                return made
        made = make()  # others go on meanwhile; two may make the same
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
        return UserError(f"the form {reason}; give a simpler one")
    if "refused" in told:
        return UserError(told["refused"])
    matcher = LLMatcher(symbols.tokenizer, told["grammar"], log_level=0, limits=LIMITS)
    if matcher.is_error():
        return UserError(refusal(matcher.get_error()))
    return _Compiled(matcher, told["ignored"], told["shapes"])


class FormRule:
    """The rule of one answer. It raises UserError where the form has become too complex to go on."""

    def __init__(self, matcher: LLMatcher, symbols: ByteSymbols, distinct: Distinct | None = None) -> None:
        self._matcher = matcher
        self._distinct = distinct
        self._symbols = symbols
        self._starts_line = True

    def fill(self, mask: np.ndarray) -> None:
        """Set the bits of the symbols that may come next, int32 [W], W at least a 32nd of the codec's symbols."""
        words = self._symbols.words
        if mask.dtype != np.int32 or len(mask) < words or not mask.flags.c_contiguous:
            raise ValueError(f"a mask of {len(mask)} {mask.dtype}; give {words} int32, side by side")
        mask[words:] = 0
        self._matcher.unsafe_compute_mask_ptr(mask.ctypes.data, 4 * words)
        if self._symbols.narrow is not None:  # a space that is dropped would be missing from the form
            starting, within = self._symbols.narrow
            mask[:words] &= starting if self._starts_line else within
        if self._distinct is not None:
            self._distinct.narrow(mask[:words])
        if self._matcher.is_error() or not mask.any():
            raise UserError(refusal(self._matcher.get_error() or "no symbol goes on with it"))

    def take(self, symbol: int) -> None:
        """The symbol that was chosen, one of those; an end symbol too."""
        self._starts_line = symbol in self._symbols.breaks
        if not self._matcher.consume_token(symbol):
            raise UserError(refusal(self._matcher.get_error() or f"symbol {symbol} is none of it"))
        if self._distinct is not None and symbol not in self._symbols.ends and not self._distinct.take(symbol):
            raise UserError(refusal("an item or a key comes twice"))
