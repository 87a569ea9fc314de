"""Schemas of draft 4 to 2020-12: what each allows may be written and nothing else; what asks for nothing is listed."""

from __future__ import annotations

import json
import random
from typing import Any

import numpy as np
import pytest
from llguidance import LLMatcher

from headway.codecs import TokenizerCodec, train_codec
from headway.errors import UserError
from headway.serve.grammar_compiler import answer
from headway.serve.schemas.grammar import grammar_of
from headway.serve.schemas.matching import LIMITS, byte_tokenizer
from headway.serve.structured_outputs import rule_for

DRAFT4 = "http://json-schema.org/draft-04/schema#"
DRAFT7 = "http://json-schema.org/draft-07/schema#"
NEWEST = "https://json-schema.org/draft/2020-12/schema"
EMAIL = (  # as Zod writes it
    r"^(?!\.)(?!.*\.\.)([A-Za-z0-9_'+\-\.]*)[A-Za-z0-9_+-]@([A-Za-z0-9][A-Za-z0-9\-]*\.)+[A-Za-z]{2,}$"
)


def accepted(schema: Any, *values: Any) -> list[bool]:
    """Whether each value may be written, as the grammar alone says it."""
    told = answer({"form": {"type": "json_schema", "schema": schema}, "symbols": 0})
    assert "refused" not in told, told
    found = []
    for value in values:
        text = json.dumps(value, ensure_ascii=False).encode()
        matcher = LLMatcher(byte_tokenizer(), told["grammar"], log_level=0, limits=LIMITS)
        taken = matcher.try_consume_tokens([1 + byte for byte in text])
        found.append(taken == len(text) and matcher.is_accepting())
    return found


CASES: dict[str, tuple[Any, list[Any], list[Any]]] = {
    "draft 4: bounds": ({"$schema": DRAFT4, "type": "number", "minimum": 1, "exclusiveMinimum": True}, [1.5], [1, 0]),
    "draft 4: const is unknown": ({"$schema": DRAFT4, "const": 3}, [3, "x"], []),
    "draft 7: next to $ref": (
        {
            "$schema": DRAFT7,
            "definitions": {"a": {"type": "integer"}},
            "properties": {"x": {"$ref": "#/definitions/a", "minimum": 5}},
            "required": ["x"],
            "type": "object",
        },
        [{"x": 1}],
        [{"x": "a"}],
    ),
    "2020-12: next to $ref": (
        {"$schema": NEWEST, "$defs": {"a": {"type": "integer"}}, "$ref": "#/$defs/a", "minimum": 5},
        [5],
        [1, "a"],
    ),
    "draft 7: tuples": (
        {"$schema": DRAFT7, "type": "array", "items": [{"type": "integer"}], "additionalItems": {"type": "string"}},
        [[], [1], [1, "a"]],
        [["a"], [1, 2]],
    ),
    "$id and $anchor": (
        {
            "$id": "http://x.org/root",
            "$defs": {"a": {"$id": "item", "type": "integer"}, "b": {"$anchor": "b", "type": "null"}},
            "type": "array",
            "prefixItems": [{"$ref": "item"}, {"$ref": "#b"}],
            "minItems": 2,
            "items": False,
        },
        [[1, None]],
        [[1, 1], [1]],
    ),
    "pointers": (
        {
            "type": "object",
            "required": ["a"],
            "properties": {"a/b": {"type": "null"}, "a": {"$ref": "#/properties/a~1b"}},
        },
        [{"a": None}],
        [{"a": 1}],
    ),
    "not: values": ({"type": "string", "not": {"enum": ["a", "b"]}}, ["c", "ab"], ["a", "b", 1]),
    "not: types": ({"not": {"type": ["string", "number", "object"]}}, [None, True, []], ["a", 1, {}]),
    "not: a key": ({"type": "object", "not": {"required": ["a"]}}, [{}, {"b": 1}], [{"a": 1}]),
    "not: ranges": ({"type": "integer", "not": {"minimum": 3, "maximum": 5}}, [2, 6], [3, 5]),
    "not: a pattern": ({"type": "string", "not": {"pattern": "^x"}}, ["a", ""], ["x", "xa"]),
    "oneOf: ranges": (
        {"oneOf": [{"type": "integer", "maximum": 5}, {"type": "integer", "minimum": 4}]},
        [3, 6],
        [4, 5],
    ),
    "oneOf: keys": (
        {
            "type": "object",
            "properties": {"a": {}, "b": {}},
            "oneOf": [{"required": ["a"]}, {"required": ["b"]}],
            "additionalProperties": False,
        },
        [{"a": 1}, {"b": 1}],
        [{}, {"a": 1, "b": 1}],
    ),
    "oneOf: what is within": ({"oneOf": [{"type": "number"}, {"type": "integer"}]}, [1.5], [1]),
    "anyOf and what stands next to it": (
        {
            "type": "object",
            "properties": {"a": {"type": "integer"}},
            "anyOf": [{"required": ["a"]}, {"required": ["b"]}],
        },
        [{"a": 1}, {"b": 2}],
        [{}, {"a": "x"}],
    ),
    "allOf": (
        {
            "allOf": [
                {"properties": {"a": {"minimum": 1}}},
                {"properties": {"a": {"type": "integer"}}, "required": ["a"]},
            ],
            "type": "object",
        },
        [{"a": 1}],
        [{"a": 0}, {}, {"a": 1.5}],
    ),
    "if, then, else": (
        {
            "type": "object",
            "properties": {"k": {"enum": ["x", "y"]}, "v": {}},
            "required": ["k", "v"],
            "if": {"properties": {"k": {"const": "x"}}},
            "then": {"properties": {"v": {"type": "integer"}}},
            "else": {"properties": {"v": {"type": "string"}}},
        },
        [{"k": "x", "v": 1}, {"k": "y", "v": "a"}],
        [{"k": "x", "v": "a"}, {"k": "y", "v": 1}],
    ),
    "dependencies": (
        {
            "$schema": DRAFT7,
            "type": "object",
            "dependencies": {"a": ["b"], "c": {"properties": {"b": {"type": "null"}}}},
        },
        [{}, {"b": 1}, {"a": 1, "b": 1}, {"c": 1, "b": None}],
        [{"a": 1}, {"c": 1, "b": 1}],
    ),
    "dependentRequired": (
        {"type": "object", "dependentRequired": {"a": ["b"]}},
        [{"a": 1, "b": 2}, {"b": 1}],
        [{"a": 1}],
    ),
    "propertyNames": (
        {"type": "object", "propertyNames": {"pattern": "^[a-z]+$"}},
        [{"ab": 1}, {}],
        [{"A": 1}, {"": 1}],
    ),
    "patternProperties that overlap": (
        {
            "type": "object",
            "patternProperties": {"^a": {"type": "integer"}, "z$": {"minimum": 5}},
            "additionalProperties": {"type": "string"},
        },
        [{"a": 1}, {"az": 5}, {"z": "x"}, {"b": "x"}],
        [{"az": 4}, {"az": "x"}, {"b": 1}, {"a": "x"}, {"z": 4}],
    ),
    "properties and their patterns": (
        {"type": "object", "properties": {"ab": {"minimum": 3}}, "patternProperties": {"^a": {"type": "integer"}}},
        [{"ab": 3}],
        [{"ab": 2}, {"ab": "x"}, {"ac": "x"}],
    ),
    "minProperties": (
        {
            "type": "object",
            "properties": {"a": {}, "b": {}},
            "minProperties": 1,
            "maxProperties": 1,
            "additionalProperties": False,
        },
        [{"a": 1}, {"b": 1}],
        [{}, {"a": 1, "b": 1}],
    ),
    "contains": (
        {"type": "array", "contains": {"const": 1}, "maxItems": 3},
        [[1], [0, 1], [0, 0, 1]],
        [[], [0], [0, 0, 0, 1]],
    ),
    "contains so many": (
        {"type": "array", "items": {"type": "integer"}, "contains": {"const": 1}, "minContains": 2, "maxContains": 2},
        [[1, 1], [0, 1, 2, 1]],
        [[1], [1, 1, 1]],
    ),
    "look-ahead": (
        {"type": "string", "format": "email", "pattern": EMAIL},
        ["a.b@example.org"],
        [".a@b.org", "a..b@c.org", "a@b"],
    ),
    "look-ahead from the start": (  # as pydantic writes decimal numbers
        {"type": "string", "pattern": r"^(?!^[-+.]*$)[+-]?0*\d*\.?\d*$"},
        ["1.5", "-3", ".5"],
        ["", "-.", "x"],
    ),
    "integers up to 2 ** 53": (
        {"type": "integer", "minimum": -9007199254740991, "maximum": 9007199254740991},
        [9007199254740991, -9007199254740991, 0],
        [9007199254740992, -9007199254740992, 1.5],
    ),
    "multiples": ({"type": "number", "multipleOf": 0.01}, [0.25, 3, -1.5], [0.125]),
    "multiples in bounds": (
        {"type": "integer", "multipleOf": 7, "exclusiveMinimum": 7, "maximum": 28},
        [14, 28],
        [7, 15, 35],
    ),
    "formats that overlap": (
        {"oneOf": [{"type": "string", "format": "ipv4"}, {"type": "string", "format": "ipv6"}]},
        ["1.2.3.4", "::1"],
        ["a"],
    ),
    "numbers that are listed": ({"enum": list(range(3000))}, [0, 2999], [3000, 1.5]),
    "conditions on one key": (
        {
            "type": "object",
            "properties": {"k": {"enum": list("abcdefghijkl")}},
            "required": ["k"],
            "allOf": [
                {"if": {"properties": {"k": {"const": k}}}, "then": {"required": [f"{k}1"]}} for k in "abcdefghijkl"
            ],
        },
        [{"k": "a", "a1": 1}, {"k": "l", "l1": 0}],
        [{"k": "a"}, {"k": "a", "b1": 1}],
    ),
    "pydantic's types": (
        {
            "type": "object",
            "properties": {
                "bytes": {"type": "string", "format": "binary"},
                "path": {"type": "string", "format": "path"},
                "address": {"type": "string", "format": "ipv4"},
                "set": {"type": "array", "items": {"type": "string"}, "uniqueItems": True},
            },
            "required": ["bytes", "path", "address", "set"],
        },
        [{"bytes": "a", "path": "/b", "address": "10.0.0.1", "set": ["a", "b"]}],
        [{"bytes": "a", "path": "/b", "address": "10.0.0", "set": []}],
    ),
    "Zod's record": (
        {"type": "object", "propertyNames": {"type": "string"}, "additionalProperties": {"type": "integer"}},
        [{}, {"a": 1, "b": 2}],
        [{"a": "x"}],
    ),
    "recursion": (
        {
            "$ref": "#/$defs/n",
            "$defs": {
                "n": {
                    "type": "object",
                    "properties": {
                        "v": {"type": "integer"},
                        "next": {"anyOf": [{"$ref": "#/$defs/n"}, {"type": "null"}]},
                    },
                    "required": ["v", "next"],
                }
            },
        },
        [{"v": 1, "next": {"v": 2, "next": None}}],
        [{"v": 1}, {"v": 1, "next": {}}],
    ),
    "control characters": ({"const": "a\0\n"}, ["a\0\n"], ["a"]),
    "an object that is listed": (
        {"enum": [{"a": [1, None]}, 2.5]},
        [{"a": [1, None]}, 2.5],
        [{"a": [1]}, {"a": [1, None], "b": 1}, {}],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_schema_is_held_to(name: str) -> None:
    schema, good, bad = CASES[name]
    assert accepted(schema, *good) == [True] * len(good)
    assert accepted(schema, *bad) == [False] * len(bad)


def test_what_demands_nothing_is_listed() -> None:
    schema = {
        "title": "T",
        "type": "object",
        "properties": {"maxLenght": {"type": "string", "maxLenght": 3, "format": "colour"}},
        "x-mine": {"type": "no schema"},
        "readOnly": True,
        "$defs": {"unused": {"alsoUnknown": 1}},
    }
    assert grammar_of(schema).ignored == ["x-mine", "readOnly", "maxLenght", "format:colour"]


def test_the_header_is_escaped_and_bounded() -> None:
    schema = {"type": "null", "a\r\nset-cookie: b": 1, "é" * 500: 1, **{f"unknown{i}" * 5: i for i in range(200)}}
    make = rule_for(train_codec("byte", ["any"]), {"type": "json_schema", "json_schema": {"schema": schema}})
    assert make is not None
    header = make.headers["x-headway-ignored"]
    assert header.startswith("a%0D%0Aset-cookie:%20b, %C3%A9")
    assert header.isascii()
    assert len(header) <= 1024


DISTINCT: dict[str, tuple[Any, list[str], list[str]]] = {
    "strings": ({"type": "string"}, ['["a", "b"]', '["a", "\\""]', "[]"], ['["a", "a"]', '["b","a" ,"a"]']),
    "numbers": ({"type": "number"}, ["[1, 12, 2]", "[1, -1]"], ["[1, 1.0]", "[0,0]", "[1 , 1 ]", "[10, 1e1]"]),
    "listed ones": (
        {"enum": ["a", "ab", "b", 3, 31, None]},
        ['["ab","a","b"]', "[31,3]"],
        ['["a","a"]', "[3,3]", "[null,null]"],
    ),
    "anything": (
        True,
        ['[[1],[2],{"a":1},{"a":2},1,true,"1"]', "[[1,1]]", '[null,"null"]'],
        ["[[1],[1]]", '[{"a":1,"b":2},{"b":2,"a":1}]', "[null, null]", "[true,true]", "[[],[]]"],
    ),
}


@pytest.mark.parametrize("name", DISTINCT)
def test_items_do_not_come_twice(name: str) -> None:
    items, good, bad = DISTINCT[name]
    codec = train_codec("bpe", iter(['["a", "b"], [1, 12] {"a":1},{"a" true, null,[],[]'] * 40), 275)
    schema = {"type": "object", "properties": {"x": {"type": "array", "items": items, "uniqueItems": True}}}
    for texts, wanted in ((good, True), (bad, False)):
        for text in texts:
            assert may_be_written(codec, schema, f'{{"x": {text}}}') is wanted, text


def may_be_written(codec: TokenizerCodec, schema: Any, text: str) -> bool:
    """Whether each token of a text is in its mask."""
    make = rule_for(codec, {"type": "json_schema", "json_schema": {"schema": schema}})
    assert make is not None
    rule, mask = make(), np.zeros(-(-codec.vocab_size // 32), np.int32)
    for token in (*codec.encode(text), codec.eos_id or 0):
        rule.fill(mask)
        if not mask[token // 32] >> token % 32 & 1:
            with pytest.raises(UserError):  # what is taken all the same is an error
                rule.take(token)
            return False
        rule.take(token)
    return True


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "array", "items": {"enum": ["a", "ab", "abc", "b", 1, 12, None]}, "uniqueItems": True, "minItems": 5},
        {
            "type": "array",
            "items": {"type": "integer", "minimum": 8, "maximum": 12},
            "uniqueItems": True,
            "minItems": 4,
        },
        {
            "type": "object",
            "additionalProperties": {"type": "boolean"},
            "minProperties": 3,
            "propertyNames": {"pattern": "^[ab]{1,9}$"},
        },
    ],
)
def test_what_is_sampled_holds_nothing_twice(schema: Any) -> None:
    codec, draw = (
        train_codec("bpe", iter(['["a", "ab", "abc", 1, 12, 10, 11, true false null {"aa": '] * 40), 275),
        random.Random(5),
    )
    make = rule_for(codec, {"type": "json_schema", "json_schema": {"schema": schema}})
    assert make is not None
    for _ in range(8):
        rule, mask, ids = make(), np.zeros(-(-codec.vocab_size // 32), np.int32), []
        for _ in range(300):
            rule.fill(mask)
            may = np.unpackbits(mask.view(np.uint8), bitorder="little").nonzero()[0]
            token = codec.eos_id if codec.eos_id in may else int(draw.choice(may))
            rule.take(token or 0)
            if token == codec.eos_id:
                break
            ids.append(token)
        pairs = json.loads(codec.decode(ids), object_pairs_hook=lambda pairs: [key for key, _ in pairs])
        assert len(pairs) == len({json.dumps(each) for each in pairs})
        assert len(pairs) >= schema.get("minItems", 3)


def test_a_tool_that_cannot_be_looked_after_is_refused() -> None:
    tools = [{"name": "f", "schema": {"type": "object", "properties": {"x": {"type": "array", "uniqueItems": True}}}}]
    call = {"opening": "", "closing": "", "arguments": "arguments"}
    form = {"type": "calls", "format": call, "tools": tools, "required": True, "parallel": True}
    told = answer({"form": form, "symbols": 0})
    assert "the tool 'f'" in told["refused"]
