"""The first compilation of a response format, in a helper process that is killed if it exceeds its time or memory.

Some schemas and patterns take minutes, or overflow the stack. The server compiles what passes here again, in the
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
from headway.serve.call_formats import CallFormat, arguments_grammar, calls_grammar
from headway.serve.ecma_regex import escape_literal, parse_pattern
from headway.serve.schemas.documents import MAX_SCHEMA_LENGTH
from headway.serve.schemas.grammar import Grammar, grammar_of
from headway.serve.schemas.matching import LIMITS, byte_tokenizer

_MAX_CHOICES = 1000
_MAX_FIRST_SECONDS = 0.3  # CPU seconds to find the first token of an answer
# Parts of a lark grammar that are not checked: strings and regular expressions, then comments.
_LITERALS = re.compile(r'"(?:\\.|[^"\\\n])*"i?|/(?![/*])(?:\\.|[^/\\\n])+/[imslux]*|(?://|#)[^\n]*')
_UNSUPPORTED = re.compile(r"%json|%llguidance|%regex|<|@|\b(?:max_tokens|temperature|stop|stop_capture|suffix|lazy)\b")


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """A format's llguidance grammar, with ignored keywords and unchecked shapes; or the reason for rejecting it."""
    try:
        grammar, schema_grammars = _grammar(request["form"])
        ignored = dict.fromkeys(name for schema_grammar in schema_grammars for name in schema_grammar.ignored)
        shapes = (
            []
            if request["form"]["type"] == "calls"
            else [shape for schema_grammar in schema_grammars for shape in schema_grammar.shapes]
        )
        return {"grammar": _try_compile(grammar, request["symbols"]), "ignored": list(ignored), "shapes": shapes}
    except UserError as error:
        return {"refused": str(error)}


def _grammar(response_format: Mapping[str, Any]) -> tuple[str, list[Grammar]]:
    """A format's grammar, and those of its schemas."""
    kind = response_format["type"]
    if kind in ("json_object", "json_schema"):
        schema_grammar = grammar_of({"type": "object"} if kind == "json_object" else response_format["schema"])
        return "\n".join([f"start: {schema_grammar.start}", *schema_grammar.lines]), [schema_grammar]
    if kind == "regex":
        terminal = parse_pattern(response_format["regex"], "the format").terminal(searched=False, quoted=False)
        return f"start: T\nT: {terminal.lark()}", []
    if kind == "choice":
        choices = response_format["choice"]
        if not 1 <= len(choices) <= _MAX_CHOICES or not all(choices) or sum(map(len, choices)) > MAX_SCHEMA_LENGTH:
            raise UserError(f"choice has {len(choices):,} strings; send 1 to {_MAX_CHOICES:,} non-empty ones")
        return LLMatcher.grammar_from_regex(f"(?:{'|'.join(map(escape_literal, choices))})"), []
    if kind == "lark":
        unsupported = _UNSUPPORTED.search(_LITERALS.sub(" ", response_format["lark"]))
        if unsupported is not None:
            remedy = "leave it out; for JSON use json_schema"
            raise UserError(f"the lark grammar has {unsupported[0]!r}, which is not supported; {remedy}")
        return LLMatcher.grammar_from_lark(response_format["lark"]), []
    call_format = CallFormat(**response_format["format"])
    tools = [
        (tool["name"], arguments_grammar(call_format, tool["schema"], f"the tool {tool['name']!r:.80}", f"s{i}"))
        for i, tool in enumerate(response_format["tools"])
    ]
    for name, schema_grammar in tools:
        if schema_grammar.shapes:
            problem = f"the tool {name!r:.80} requires unique items or keys"
            raise UserError(f"{problem}, which cannot be enforced in calls; leave uniqueItems and minProperties out")
    rules = [(name, schema_grammar.start, schema_grammar.lines) for name, schema_grammar in tools]
    return calls_grammar(call_format, rules, response_format["required"], response_format["parallel"]), [
        schema_grammar for _, schema_grammar in tools
    ]


def _try_compile(grammar: str, vocab_size: int) -> str:
    """The grammar after a successful compilation. UserError if it cannot be enforced, or if nothing matches it."""
    tokenizer = byte_tokenizer(vocab_size)
    failed, messages = LLMatcher.validate_grammar_with_warnings(grammar, tokenizer, limits=LIMITS)
    matcher = LLMatcher(tokenizer, grammar, log_level=0, limits=LIMITS)
    if messages or failed or matcher.is_error():
        raise UserError(format_error(messages[0] if messages else matcher.get_error()))
    start = time.process_time()
    has_first_token = any(matcher.compute_bitmask())
    if (seconds := time.process_time() - start) > _MAX_FIRST_SECONDS:
        raise UserError(
            f"the format takes {seconds:.1f} s to find its first token, but the limit is {_MAX_FIRST_SECONDS:g}; use "
            "a simpler one"
        )
    if not has_first_token or matcher.is_error():
        raise UserError("nothing matches the format; use one that allows some text")
    return grammar


def format_error(reason: str) -> str:
    """The error, in one line, for a format that llguidance does not accept."""
    message = " ".join(reason.split())[:300]
    return f"the format cannot be enforced ({json.dumps(message, ensure_ascii=False)[1:-1]}); use a simpler one"
