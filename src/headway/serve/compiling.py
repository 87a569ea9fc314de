"""Where forms are compiled for the first time: in a helper's process, which ends when its time or its memory is up.

Some schemas and patterns take minutes, or a stack without end. What has passed here is compiled again by the server, in
the same time.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from headway.errors import UserError
from headway.serve.calls import CallFormat, calls_grammar
from headway.serve.expressions import literal, whole
from headway.serve.schemas import LARGEST, held

LIMITS = LLParserLimits(precompute_large_lexemes=False, verbose_errors=False)
_SPACES = r" |\r?\n[ \t]{0,32}"  # between the parts of JSON: models write white space as long as they may
_ESCAPES = 'nrbtf\\"'  # with \u, a key could be spelt in two ways, and be taken for another
_JSON = {"whitespace_pattern": _SPACES, "json_allowed_escapes": _ESCAPES}
_CHOICES = 1000
_FIRST = 0.3  # seconds of a processor that finding the first token of an answer may take
# What a lark grammar may hold that is no grammar of ours: strings and expressions, then comments.
_TEXTS = re.compile(r'"(?:\\.|[^"\\\n])*"i?|/(?![/*])(?:\\.|[^/\\\n])+/[imslux]*|(?://|#)[^\n]*')
_STRANGE = re.compile(r"%json|%llguidance|%regex|<|@|\b(?:max_tokens|temperature|stop|stop_capture|suffix|lazy)\b")


def answer(request: dict[str, Any]) -> dict[str, str]:
    """The grammar of a form, for llguidance, or why it is refused."""
    try:
        return {"grammar": _tried(_grammar(request["form"]), request["symbols"])}
    except UserError as error:
        return {"refused": str(error)}


def _grammar(form: Mapping[str, Any]) -> str:
    kind = form["type"]
    if kind == "json_object":
        return LLMatcher.grammar_from_json_schema(guided({"type": "object"}))
    if kind == "json_schema":
        return LLMatcher.grammar_from_json_schema(guided(held(form["schema"])))
    if kind == "regex":
        return LLMatcher.grammar_from_regex(whole(form["regex"], "the form", searched=False))
    if kind == "choice":
        return LLMatcher.grammar_from_regex(_choices(form["choice"]))
    if kind == "lark":
        return LLMatcher.grammar_from_lark(_checked(form["lark"]))
    tools = [(each["name"], guided(held(each["schema"], f"the tool {each['name']!r:.80}"))) for each in form["tools"]]
    format_ = CallFormat(**form["format"])
    return LLMatcher.grammar_from_lark(calls_grammar(format_, tools, form["required"], form["parallel"]))


def guided(schema: dict[str, Any] | bool) -> dict[str, Any]:
    """The schema with what is ours to say of white space and escapes."""
    if schema is False:
        raise UserError("the schema allows nothing, so that no JSON fits it; say what is allowed")
    return {**({} if schema is True else schema), "x-guidance": _JSON}


def _choices(texts: list[str]) -> str:
    if not 1 <= len(texts) <= _CHOICES or not all(texts) or sum(map(len, texts)) > LARGEST:
        raise UserError(f"choice has {len(texts):,} texts; give 1 to {_CHOICES:,}, none of them empty")
    return f"(?:{'|'.join(map(literal, texts))})"


def _checked(grammar: str) -> str:
    strange = _STRANGE.search(_TEXTS.sub(" ", grammar))
    if strange is not None:
        remedy = "leave it out; for JSON ask for json_schema"
        raise UserError(f"the lark grammar has {strange[0]!r}, which cannot be held to; {remedy}")
    return grammar


@lru_cache(maxsize=8)
def _tokenizer(symbols: int) -> LLTokenizer:
    """Special symbols, at ids that a grammar may name, then the bytes."""
    return LLTokenizer(_Bytes(symbols))  # type: ignore[arg-type]


class _Bytes:
    is_tokenizer_wrapper = True
    bos_token_id = None
    special_token_ids: tuple[int, ...] = ()

    def __init__(self, symbols: int) -> None:
        self.eos_token_id = symbols
        self._first = symbols + 1
        specials = [b"\xff<%d>" % i for i in range(symbols + 1)]
        self.tokens = [*specials, *(bytes([i]) for i in range(255))]

    def __call__(self, text: str) -> list[int]:
        return [self._first + byte for byte in text.encode()]


def _tried(grammar: str, symbols: int) -> str:
    """The grammar, once it has been compiled. UserError where it cannot be held to as it stands, or nothing fits."""
    tokenizer = _tokenizer(symbols)
    failed, told = LLMatcher.validate_grammar_with_warnings(grammar, tokenizer, limits=LIMITS)
    matcher = LLMatcher(tokenizer, grammar, log_level=0, limits=LIMITS)
    if told or failed or matcher.is_error():
        raise UserError(refusal(told[0] if told else matcher.get_error()))
    began = time.process_time()
    first = any(matcher.compute_bitmask())
    if (took := time.process_time() - began) > _FIRST:
        raise UserError(
            f"the form takes {took:.1f} s to find its first token, {_FIRST:g} are the most; use a simpler one"
        )
    if not first or matcher.is_error():
        raise UserError("nothing fits the form; give one that allows some text")
    return grammar


def refusal(reason: str) -> str:
    """What is said of a form that llguidance does not take, in one line."""
    said = " ".join(reason.split())[:300]
    return f"the form cannot be held to ({json.dumps(said, ensure_ascii=False)[1:-1]}); give a simpler one"
