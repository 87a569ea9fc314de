"""The first compilation of a response format, in a helper process that is killed beyond its time or memory limit.

Some schemas and patterns take minutes, or overflow the stack. The server compiles again what has passed here, in the
same time.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from typing import Any

from llguidance import LLMatcher

from headway.errors import UserError
from headway.serve.calls import CallFormat, calls_grammar
from headway.serve.expressions import expression, literal
from headway.serve.schemas.documents import LARGEST
from headway.serve.schemas.grammar import Grammar, grammar_of
from headway.serve.schemas.matching import LIMITS, byte_tokenizer

_CHOICES = 1000
_FIRST = 0.3  # CPU seconds to find the first token of an answer
# Parts of a lark grammar that are not checked: strings and regular expressions, then comments.
_TEXTS = re.compile(r'"(?:\\.|[^"\\\n])*"i?|/(?![/*])(?:\\.|[^/\\\n])+/[imslux]*|(?://|#)[^\n]*')
_STRANGE = re.compile(r"%json|%llguidance|%regex|<|@|\b(?:max_tokens|temperature|stop|stop_capture|suffix|lazy)\b")


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """The llguidance grammar of a format, with ignored keywords and unchecked shapes; or the reason for refusing it."""
    try:
        grammar, of_schemas = _grammar(request["form"])
        ignored = dict.fromkeys(name for each in of_schemas for name in each.ignored)
        shapes = [] if request["form"]["type"] == "calls" else [shape for each in of_schemas for shape in each.shapes]
        return {"grammar": _tried(grammar, request["symbols"]), "ignored": list(ignored), "shapes": shapes}
    except UserError as error:
        return {"refused": str(error)}


def _grammar(form: Mapping[str, Any]) -> tuple[str, list[Grammar]]:
    """A format's grammar, and those of its schemas."""
    kind = form["type"]
    if kind in ("json_object", "json_schema"):
        made = grammar_of({"type": "object"} if kind == "json_object" else form["schema"])
        return "\n".join([f"start: {made.start}", *made.lines]), [made]
    if kind == "regex":
        terminal = expression(form["regex"], "the format").terminal(searched=False, quoted=False)
        return f"start: T\nT: {terminal.lark()}", []
    if kind == "choice":
        return LLMatcher.grammar_from_regex(_choices(form["choice"])), []
    if kind == "lark":
        return LLMatcher.grammar_from_lark(_checked(form["lark"])), []
    tools = [
        (each["name"], grammar_of(each["schema"], f"the tool {each['name']!r:.80}", f"s{i}"))
        for i, each in enumerate(form["tools"])
    ]
    for name, made in tools:
        if made.shapes:
            what = f"the tool {name!r:.80} requires unique items or keys"
            raise UserError(f"{what}, which cannot be enforced in calls; leave uniqueItems and minProperties out")
    format_ = CallFormat(**form["format"])
    rules = [(name, made.start, made.lines) for name, made in tools]
    return calls_grammar(format_, rules, form["required"], form["parallel"]), [made for _, made in tools]


def _choices(texts: list[str]) -> str:
    if not 1 <= len(texts) <= _CHOICES or not all(texts) or sum(map(len, texts)) > LARGEST:
        raise UserError(f"choice has {len(texts):,} strings; send 1 to {_CHOICES:,} non-empty ones")
    return f"(?:{'|'.join(map(literal, texts))})"


def _checked(grammar: str) -> str:
    strange = _STRANGE.search(_TEXTS.sub(" ", grammar))
    if strange is not None:
        remedy = "leave it out; for JSON use json_schema"
        raise UserError(f"the lark grammar has {strange[0]!r}, which is not supported; {remedy}")
    return grammar


def _tried(grammar: str, symbols: int) -> str:
    """The grammar after a successful compilation. UserError if it cannot be enforced, or if nothing matches it."""
    tokenizer = byte_tokenizer(symbols)
    failed, told = LLMatcher.validate_grammar_with_warnings(grammar, tokenizer, limits=LIMITS)
    matcher = LLMatcher(tokenizer, grammar, log_level=0, limits=LIMITS)
    if told or failed or matcher.is_error():
        raise UserError(refusal(told[0] if told else matcher.get_error()))
    began = time.process_time()
    first = any(matcher.compute_bitmask())
    if (took := time.process_time() - began) > _FIRST:
        raise UserError(
            f"the format takes {took:.1f} s to find its first token, and the limit is {_FIRST:g}; use a simpler one"
        )
    if not first or matcher.is_error():
        raise UserError("nothing matches the format; use one that allows some text")
    return grammar


def refusal(reason: str) -> str:
    """The error, in one line, for a format that llguidance does not accept."""
    said = " ".join(reason.split())[:300]
    return f"the format cannot be enforced ({json.dumps(said, ensure_ascii=False)[1:-1]}); use a simpler one"
