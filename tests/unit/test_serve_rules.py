"""Forms: what is written under a rule fits its form and ends where it is whole alone; what cannot be is refused."""

from __future__ import annotations

import gc
import json
import random
import re
import time
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import headway as hw
from headway.codecs import TokenizerCodec, load_codec, train_codec
from headway.errors import UserError
from headway.formats.llama2c import load_tokenizer
from headway.generate.sampling import Rule
from headway.serve import structured_outputs
from headway.serve.ecma_regex import parse_pattern
from headway.serve.structured_outputs import rule_for

BOOK = {
    "$defs": {"person": {"type": "object", "properties": {"name": {"type": "string", "maxLength": 5}}}},
    "type": "object",
    "properties": {
        "title": {"type": "string", "minLength": 2, "maxLength": 6, "pattern": "^[^0-9]*$"},
        "year": {"type": "integer", "minimum": -12, "exclusiveMaximum": 2030},
        "price": {"type": "number", "exclusiveMinimum": 0, "maximum": 0.5},
        "kind": {"enum": ["é☃", 3, None]},
        "by": {"type": "array", "items": {"$ref": "#/$defs/person"}, "minItems": 1, "maxItems": 2},
    },
    "required": ["title", "year", "kind"],
    "additionalProperties": False,
}


def is_book(book: Any) -> bool:
    title, year, price = book["title"], book["year"], book.get("price", 0.1)
    known = {"title", "year", "price", "kind", "by"}
    people = book.get("by", [{}])
    return (
        {"title", "year", "kind"} <= set(book) <= known
        and 2 <= len(title) <= 6
        and not re.search("[0-9]", title)
        and (type(year), -12 <= year < 2030) == (int, True)
        and 0 < price <= 0.5
        and book["kind"] in ("é☃", 3, None)
        and 1 <= len(people) <= 2
        and all(type(one) is dict and len(one.get("name", "")) <= 5 for one in people)
    )


def as_json(check: Callable[[Any], bool]) -> Callable[[str], bool]:
    def fits(text: str) -> bool:
        try:
            return check(json.loads(text))
        except (ValueError, KeyError):
            return False

    return fits


def of_schema(schema: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "one", "schema": schema, "strict": True}}


FORMS: dict[str, tuple[dict[str, Any], Callable[[str], bool]]] = {
    "object": ({"type": "json_object"}, as_json(lambda value: isinstance(value, dict))),
    "book": (of_schema(BOOK), as_json(is_book)),
    "regex": (
        {"type": "regex", "regex": "[A-Z][a-zé]{2,4}(, [a-z]+)*\\.|^\\d+$"},
        lambda text: bool(re.fullmatch("[A-Z][a-zé]{2,4}(, [a-z]+)*\\.|[0-9]+", text)),
    ),
    "choice": (
        {"type": "choice", "choice": ["yes", "yes, but", "né ☃"]},
        lambda text: text in ("yes", "yes, but", "né ☃"),
    ),
    "lark": (
        {"type": "lark", "lark": 'start: "<" (start | X) ">"\nX: /[ab]/'},
        lambda text: bool(re.fullmatch("<+[ab]>+", text)) and text.count("<") == text.count(">"),
    ),
}


@pytest.fixture(scope="module")
def codecs(data_dir: Path) -> dict[str, TokenizerCodec]:
    """Byte-level and sentencepiece vocabularies, published and trained here."""
    lines = ["The ship, the sea.\nA man\n said: 'née' ☃"] * 40
    return {
        "bytes": train_codec("byte", ["any"]),
        "gpt2": load_codec(data_dir / "conformance/r50k_base.tiktoken"),
        "stories260K": load_tokenizer(data_dir / "weights/tok512.bin"),
        "lines": train_codec("bpe", iter(lines), 270, prefix_space=True),
    }


def allowed(rule: Rule, codec: TokenizerCodec) -> np.ndarray:
    mask = np.full(-(-codec.vocab_size // 32) + 2, -1, np.int32)  # a model may have more symbols than its tokenizer
    rule.fill(mask)
    found = np.unpackbits(mask.view(np.uint8), bitorder="little").nonzero()[0]
    assert found.max() < codec.vocab_size
    return found


def written(codec: TokenizerCodec, ids: list[int]) -> str:
    """The text behind a prompt, as it is streamed."""
    stream = codec.stream()
    for symbol in codec.encode("a prompt:"):
        stream.push(symbol)
    return "".join(map(stream.push, ids)) + stream.flush()


@pytest.mark.parametrize("name", ["bytes", "gpt2", "stories260K", "lines"])
@pytest.mark.parametrize("form", FORMS)
def test_what_is_written_fits_and_ends_where_it_is_whole(
    codecs: dict[str, TokenizerCodec], name: str, form: str
) -> None:
    codec, (asked, fits) = codecs[name], FORMS[form]
    closing = [symbol for mark in ('"', "}", "]", ".", ">") for symbol in codec.encode(mark)[-1:]]
    make, ended, draw = rule_for(codec, asked), 0, random.Random(3)
    assert make is not None
    for _ in range(6):
        rule, ids = make(), []
        for _ in range(120):
            may = allowed(rule, codec)
            assert (codec.eos_id in may) == fits(written(codec, ids))
            near = np.intersect1d(may, closing)
            symbol = int(draw.choice(near if len(near) and draw.random() < 0.4 else may))
            if codec.eos_id in may and draw.random() < 0.7:
                symbol = codec.eos_id or 0
            rule.take(symbol)
            if symbol == codec.eos_id:
                ended += 1
                break
            ids.append(symbol)
    assert ended >= 3


def test_a_real_model_writes_a_form(data_dir: Path) -> None:
    """stories260K, which has never seen JSON, with the likeliest symbol that its rule allows."""
    model = hw.load(data_dir / "weights/stories260K.bin", backend="torch")
    codec = load_tokenizer(data_dir / "weights/tok512.bin")
    schema = {
        "type": "object",
        "properties": {
            "who": {"type": "string", "maxLength": 12},
            "age": {"type": "integer", "minimum": 0, "maximum": 99},
        },
        "required": ["who", "age"],
        "additionalProperties": False,
    }
    rule = (rule_for(codec, of_schema(schema)) or pytest.fail)()
    ids = [codec.bos_id or 0, *codec.encode("Once upon a time there was a girl. ")]
    start = len(ids)
    while True:
        may = allowed(rule, codec)
        row = np.asarray(model.logits([ids]))[0, -1]
        ids.append(int(may[row[may].argmax()]))
        rule.take(ids[-1])
        if ids[-1] == codec.eos_id:
            break
    told = json.loads(written(codec, ids[start:-1]))
    assert set(told) == {"who", "age"}
    assert len(told["who"]) <= 12
    assert told["age"] <= 99


def test_any_end_symbol_may_end_and_nowhere_else(codecs: dict[str, TokenizerCodec]) -> None:
    codec = train_codec("byte", ["any"], special=("<|im_end|>", "<|endoftext|>"))
    end = codec.token_id("<|im_end|>") or 0
    rule = (rule_for(codec, {"type": "choice", "choice": ["a"]}, [end]) or pytest.fail)()
    assert list(allowed(rule, codec)) == codec.encode("a")
    rule.take(codec.encode("a")[0])
    assert set(allowed(rule, codec)) == {end, codec.eos_id}
    rule.take(end)


def accepts(codec: TokenizerCodec, schema: Any, text: str) -> bool:
    make = rule_for(codec, of_schema(schema))
    assert make is not None
    rule = make()
    try:
        for symbol in codec.encode(text):
            rule.take(symbol)
        return codec.eos_id in allowed(rule, codec)
    except UserError:
        return False


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        # A key has one spelling: by another, it would pass for an additional one.
        (
            {"properties": {"a\nb": {"type": "integer"}}, "type": "object", "additionalProperties": {"type": "string"}},
            '{"a\\nb":1,"c":"x"}',
            '{"a\\u000ab":"x"}',
        ),
        # Numbers between an excluded whole one and what is near.
        ({"type": "number", "exclusiveMinimum": 1, "exclusiveMaximum": 1.8}, "1.5", "1"),
        ({"allOf": [{"exclusiveMaximum": 0}, {"minimum": -0.5}]}, "-0.25", "-0"),
        ({"type": "integer", "exclusiveMinimum": 1}, "2", "1"),
        ({"type": "string", "format": "date"}, '"2024-02-29"', '"2023-02-29"'),
        ({"type": "string", "format": "date", "pattern": "^2"}, '"2024-02-29"', '"1024-02-29"'),
        ({"type": "string", "format": "email"}, '"a.b@example.org"', '"a..b@example.org"'),
        ({"type": "string", "pattern": "a.b"}, '"xa.bx"', '"a\\rb"'),
        ({"type": "object", "required": ["a"], "minProperties": 2}, '{"a":1,"b":2}', '{"a":1}'),
        ({"type": "string", "maxLength": 2}, '"☃👍"', '"abc"'),
        # unions of objects that a constant tells apart, as programs write them
        (
            {
                "oneOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/b"}],
                "discriminator": {"propertyName": "k"},
                "$defs": {
                    "a": {"type": "object", "properties": {"k": {"const": "a"}, "x": True}, "required": ["k", "x"]},
                    "b": {"type": "object", "properties": {"k": {"enum": ["b"]}}, "required": ["k"]},
                },
            },
            '{"k":"b"}',
            '{"k":"a"}',
        ),
        ({"x-guidance": {"lenient": True}, "type": "integer"}, "7", '"7"'),
        ({"maxLenght": 3, "type": "string", "format": "unheard-of"}, '"abcd"', "3"),  # unknown words demand nothing
        (True, '[{"a": null}]', "[1,]"),
    ],
)
def test_schemas_are_held_to_to_the_letter(codecs: dict[str, TokenizerCodec], schema: Any, good: str, bad: str) -> None:
    assert accepts(codecs["bytes"], schema, good)
    assert not accepts(codecs["bytes"], schema, bad)


def test_white_space_has_an_end(codecs: dict[str, TokenizerCodec]) -> None:
    for space, fits in ((" ", True), ("\n" + " " * 32, True), ("  ", False), ("\n\n", False)):
        assert accepts(codecs["bytes"], {"type": "object"}, f"{{{space}}}") is fits


@pytest.mark.parametrize(
    ("pattern", "fit", "unfit"),
    [
        ("^a$|b", ["a", "xb"], ["xa"]),
        ("(^a)|(c|b$)", ["ax", "xcx", "xb"], ["xa", "bx"]),
        ("a.b", ["xa\tby"], ["a\nb", "a\rb", "a\u2028b"]),
        ("^\\d\\D\\w\\W$", ["1a_-", "1é0é"], ["\u06631a-", "1aé-"]),
        ("^[\\s\\d]+$", [" \t\ufeff\u00a03"], ["a", "\u0085"]),
        ("^[^\\S]$", ["\ufeff"], ["a"]),
        ("^(?:ab?){2,3}?$", ["aba", "aaa"], ["ab", "aaaa"]),
        ("^(?<year>[0-9]{2})\\/\\u0041\\x42\\u{1F600}$", ["12/AB😀"], ["12/ab😀"]),
        ("^[a\\-z\\]&&[-]$", ["-", "]", "&", "["], ["b"]),
        ("^\\p{Lu}\\P{Lu}$", ["Éa"], ["éa", "ÉA"]),
        ("", ["", "anything"], []),
    ],
)
def test_patterns_mean_what_they_mean_to_ecma(
    codecs: dict[str, TokenizerCodec], pattern: str, fit: list[str], unfit: list[str]
) -> None:
    for texts, wanted in ((fit, True), (unfit, False)):
        for text in texts:
            quoted = json.dumps(text, ensure_ascii=False)
            assert accepts(codecs["bytes"], {"type": "string", "pattern": pattern}, quoted) is wanted


@pytest.mark.parametrize(
    "pattern",
    ["a\\b", "(?<=a)", "(?i)a", "(a)\\1", "\\cA", "a**", "(", "a)", "[", "[z-a]", "[]", "x(^a)", "a{3,2}",
     "a{99999999}", "\\", "\\p{Greek}", "{2}", "a^b", "*", "\\u{110000}", "\\ud800", "(" * 40, "(^a)*", "\\Z",
     "a" * 5000, "((?=a)b)+"],
)  # fmt: skip
def test_patterns_that_cannot_be_held_to_are_refused(pattern: str) -> None:
    with pytest.raises(UserError) as refused:
        parse_pattern(pattern, "the schema")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"not": {}}, "nothing matches"),
        ({"properties": {"a": {"unevaluatedProperties": False}}}, "'unevaluatedProperties' at '/properties/a"),
        ({"type": "number", "not": {"multipleOf": 3}}, "not multiples"),
        ({"type": "array", "contains": {"const": 1}, "not": {"uniqueItems": True}}, "duplicate items"),
        ({"$schema": "http://json-schema.org/draft-03/schema#"}, "use a draft from 4 to 2020-12"),
        ({"$ref": "https://example.org/x"}, "without a target"),
        ({"$ref": "#/$defs/none"}, "without a target"),
        ({"const": {"$ref": 1}, "allOf": [{"$ref": "#/const/$ref"}]}, "without a target"),
        ({"type": "text"}, "use some of null"),
        ({"type": []}, "use some of"),
        ({"enum": []}, "a list of values"),
        ({"const": "\ud800"}, "half a surrogate pair"),
        ({"minimum": 10**500}, "400 digits"),
        ({"minimum": "3"}, "use a number"),
        ({"multipleOf": 0}, "above 0"),
        ({"minLength": 1_000_000_000, "type": "string"}, "1,000,000,000 characters"),
        ({"minItems": -1}, "use an integer of at least 0"),
        ({"minLength": 1.5}, "use an integer of at least 0"),
        ({"$schema": "https://json-schema.org/draft/2020-12/schema", "items": [{}]}, "instead of a schema"),
        ({"anyOf": []}, "a list of schemas"),
        ({"properties": []}, "an object of schemas"),
        ({"required": [1]}, "use a string"),
        ({"oneOf": [{"multipleOf": 3}, {"multipleOf": 5}]}, "overlap"),
        ({"$ref": "#"}, "without end"),
        ({"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}, "without end"),
        ({"type": "array", "items": {"$ref": "#"}, "minItems": 1}, "without end"),
        (False, "nothing matches"),
        ({"type": "string", "allOf": [{"type": "integer"}]}, "nothing matches"),
    ],
)
def test_what_cannot_be_held_to_is_refused_before_the_first_symbol(
    codecs: dict[str, TokenizerCodec], schema: Any, said: str
) -> None:
    with pytest.raises(UserError, match=said) as refused:
        rule_for(codecs["bytes"], of_schema(schema))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("form", "said"),
    [
        ({}, "has no type"),
        ({"type": "xml"}, "unknown format 'xml'"),
        ({"type": "json_object", "schema": {}}, "the unknown field 'schema'"),
        ({"type": "json_schema"}, "has no schema"),
        ({"type": "json_schema", "json_schema": {"schema": {}, "strickt": True}}, "did you mean 'strict'"),
        ({"type": "regex", "regex": 3}, "send a string"),
        ({"type": "choice", "choice": "yes"}, "send a list of strings"),
        ({"type": "choice", "choice": []}, "send 1 to 1,000"),
        ({"type": "choice", "choice": ["a", ""]}, "non-empty"),
        ({"type": "lark", "lark": "start: missing"}, "cannot be enforced"),
        ({"type": "lark", "lark": 'start: %json {"not": {}}'}, "'%json'"),
        ({"type": "lark", "lark": "start: <|endoftext|>"}, "'<'"),
        ({"type": "lark", "lark": "start[max_tokens=3]: /a+/"}, "'max_tokens'"),
        ({"type": "lark", "lark": "start: /a(?=b)/"}, "cannot be enforced"),
    ],
)
def test_what_is_no_form_is_refused(codecs: dict[str, TokenizerCodec], form: Any, said: str) -> None:
    with pytest.raises(UserError, match=said) as refused:
        rule_for(codecs["bytes"], form)
    assert "\n" not in str(refused.value)


def nested(depth: int) -> Any:
    schema: Any = {}
    for _ in range(depth):
        schema = {"items": schema}
    return schema


HOSTILE: dict[str, Any] = {
    "deep": nested(80),
    "deeper than a stack": nested(20_000),
    "large": {"enum": ["x" * 1000 + str(i) for i in range(1000)]},
    "many keys": {"type": "object", "properties": {f"key{i}": {} for i in range(6000)}},
    "a multiple of a prime": {"type": "integer", "multipleOf": 10_000_019},
    "references in a ring": {
        "allOf": [{"$ref": "#/$defs/a"}],
        "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}},
    },
    "references that double": {
        "$ref": "#/$defs/d0",
        "$defs": {
            **{f"d{i}": {"allOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(40)},
            "d40": {"type": "object", "properties": {"a": {}}},
        },
    },
    "alternatives of alternatives": {
        "allOf": [
            {"anyOf": [{"properties": {f"a{i}{j}": {}}, "required": [f"a{i}{j}"]} for j in range(9)]} for i in range(9)
        ]
    },
    "alternatives that overlap": {
        "oneOf": [{"type": "object", "properties": {f"p{i}{j}": {"minimum": 1} for j in range(9)}} for i in range(40)]
    },
    "repeats of repeats": {"type": "string", "pattern": "^((((a{1,900}){1,900}){1,900}){1,900})x$"},
    "intersections": {"allOf": [{"type": "string", "pattern": f"^(.*{c}.{{30}})*$"} for c in "abcdefgh"]},
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_schemas_end_soon(
    codecs: dict[str, TokenizerCodec], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refused in a line, or held to; and neither the compiling nor a step takes long."""
    monkeypatch.setattr(structured_outputs, "COMPILE_SECONDS", 0.5)
    start = time.thread_time()
    said, make = "", None
    try:
        make = rule_for(codecs["bytes"], of_schema(HOSTILE[name]))
    except UserError as error:
        said = str(error)
    assert len(said) < 600
    assert "\n" not in said
    assert (make is None) == bool(said)
    assert make is None or len(allowed(make(), codecs["bytes"]))
    assert time.thread_time() - start < 3


def test_searches_do_not_backtrack(codecs: dict[str, TokenizerCodec]) -> None:
    start = time.thread_time()
    assert not accepts(codecs["bytes"], {"type": "string", "pattern": "^(a+)+$"}, json.dumps("a" * 5000 + "b"))
    assert time.thread_time() - start < 5


def test_codecs_whose_texts_are_no_bytes_are_refused_by_name(minilm: Path) -> None:
    for codec, said in (
        (load_codec(minilm), "WordPiece tokenizer is joined by WordPiece"),
        (train_codec("word", ["a b"] * 9), "no token for"),
        (train_codec("char", ["abc"]), "no token for"),
    ):
        with pytest.raises(UserError, match=said):
            rule_for(codec, {"type": "json_object"})


def test_a_codec_that_is_gone_leaves_nothing() -> None:
    codec = train_codec("byte", ["any"])
    make = rule_for(codec, {"type": "json_object"})
    gone = weakref.ref(codec)
    del codec
    gc.collect()
    assert gone() is None
    assert make is not None  # what was made goes on
    make().fill(np.zeros(9, np.int32))


def test_a_form_is_compiled_once_and_answers_are_apart(
    codecs: dict[str, TokenizerCodec], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    ask = structured_outputs._helper.ask
    monkeypatch.setattr(structured_outputs._helper, "ask", lambda *request: asked.append(request) or ask(*request))
    codec, form = codecs["bytes"], {"type": "choice", "choice": ["left", "right"]}
    with ThreadPoolExecutor(2) as pool:
        makers = list(pool.map(lambda _: rule_for(codec, form), range(4)))
    assert 1 <= len(asked) <= 2
    one, other = ((make or pytest.fail)() for make in makers[:2])
    one.take(ord("l"))
    assert {codec.decode([symbol]) for symbol in allowed(other, codec)} == {"l", "r"}
    for _ in range(2):
        with pytest.raises(UserError, match="cannot be enforced"):
            rule_for(codec, {"type": "lark", "lark": "start: nothing"})
    assert len(asked) <= 3  # a refusal is kept too
    assert rule_for(codec, {"type": "text"}) is None


def test_a_symbol_against_the_form_is_an_error(codecs: dict[str, TokenizerCodec]) -> None:
    rule = (rule_for(codecs["bytes"], {"type": "json_object"}) or pytest.fail)()
    with pytest.raises(UserError):
        rule.take(ord("x"))
    with pytest.raises(UserError):
        rule.fill(np.zeros(9, np.int32))
