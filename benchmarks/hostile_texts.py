"""Tokenizers and chat templates that are made to do harm: `CASES`.

Each must end within 10 s of a core and 1 GB, in one line, with exit 0 or 2.
"""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from headway.formats.families import find_family
from headway.formats.gguf.model import save_gguf
from headway.formats.published import save_published
from headway.formats.settings import Settings
from headway.nn.models import build
from hostile_case import Case

TEXT = "the cat sat on the mat, and the dog saw the cat " * 20
GENERATE = ("generate", "{file}", "--prompt", TEXT, "--max-new-tokens", "2", "--backend", "torch")
CHAT = ("chat", "{file}", "--max-new-tokens", "2")
LETTERS = [*"abcdefghijklmnopqrstuvwxyz ,.\n"]
LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 32,
    "vocab_size": 512,
    "max_position_embeddings": 4096,
}
Files = dict[str, Any]


def _model(files: Callable[[], Files], place: Path) -> Path:
    """A small whole model in the published format, beside a tokenizer's files."""
    family = find_family(Settings(LLAMA, "a case"))
    config = family.read(Settings({**family.defaults, **LLAMA}, "a case"), ())
    folder = place / "model"
    save_published(build(config, 1), config, folder)
    for name, content in files().items():
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        (folder / name).write_bytes(data)
    return folder


def _case(name: str, files: Callable[[], Files], *commands: tuple[str, ...]) -> Case:
    return Case(name, partial(_model, files), commands or (GENERATE,))


# tokenizer.json: what its parts make of a text.

_BPE = {"type": "BPE", "vocab": {letter: i for i, letter in enumerate(LETTERS)}, "merges": [], "unk_token": "a"}


def state(**parts: Any) -> dict[str, Any]:
    """A tokenizer.json of letters, with these parts."""
    return {"version": "1.0", "added_tokens": [], "model": _BPE, **parts}


def _json(name: str, **parts: Any) -> Case:
    return _case(f"tokenizer.json: {name}", lambda: {"tokenizer.json": state(**parts)})


def replace(pattern: str, content: str, kind: str = "String") -> dict[str, Any]:
    return {"type": "Replace", "pattern": {kind: pattern}, "content": content}


def normalized(*steps: Any) -> dict[str, Any]:
    return {"type": "Sequence", "normalizers": list(steps)}


def split(pattern: str, **rest: Any) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False, **rest}


def splits(*steps: Any) -> dict[str, Any]:
    return {"type": "Sequence", "pretokenizers": list(steps)}


def decoded(*steps: Any) -> dict[str, Any]:
    return {"type": "Sequence", "decoders": list(steps)}


def template(single: list[Any], ids: list[int], **rest: Any) -> dict[str, Any]:
    pair = [{"Sequence": {"id": name, "type_id": 0}} for name in "AB"]
    symbol = {"id": "x", "ids": ids, "tokens": ["a"] * len(ids)}
    return {
        "type": "TemplateProcessing",
        "single": single,
        "pair": pair,
        "special_tokens": {"x": symbol},
        **rest,
    }


_A, _X = {"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "x", "type_id": 0}}
_BYTES = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
_META = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always", "split": True}
_ISOLATED = split(".")
_CHINESE = {
    "type": "BertNormalizer",
    "clean_text": True,
    "handle_chinese_chars": True,
    "strip_accents": None,
    "lowercase": False,
}
PADDING = {"direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0, "pad_token": "a"}
CUT = {"direction": "Right", "strategy": "LongestFirst", "stride": 0}

GROWING = [
    _json("a letter becomes a megabyte", normalizer=replace("a", "a" * 1_000_000)),
    _json("ten letters for one, thirty times", normalizer=normalized(*[replace("a", "a" * 10)] * 30)),
    _json("letters that become each other", normalizer=normalized(*[replace("a", "bb"), replace("b", "aa")] * 20)),
    _json("nothing becomes a text", normalizer=replace("", "x" * 1000)),
    _json("a pattern of nothing becomes a text", normalizer=replace("", "x" * 1000, "Regex")),
    _json("a place becomes a text", normalizer=normalized(*[replace("(?=.)", "xx", "Regex")] * 20)),
    _json(
        "a character of Unicode that has eighteen", normalizer=normalized(replace("a", "\ufdfa" * 60), {"type": "NFKD"})
    ),
    _json(
        "eighteen for one, again and again",
        normalizer=normalized(*[replace("a", "\ufdfa"), {"type": "NFKD"}, replace("\u0627", "aaa")] * 9),
    ),
    _json("a prefix of a megabyte", normalizer={"type": "Prepend", "prepend": "a" * 1_000_000}),
    _json("bytes of bytes of bytes", normalizer=normalized(*[{"type": "ByteLevel"}] * 20)),
    _json("a thousand spaces around Chinese", normalizer=normalized(*[_CHINESE] * 1000)),
    _json("ten thousand steps", normalizer=normalized(*[{"type": "NFC"}] * 10_000)),
    _json("prefixes of single letters", pre_tokenizer=splits(*[_ISOLATED, _META] * 20)),
    _json("bytes of single letters", pre_tokenizer=splits(*[_ISOLATED, _BYTES] * 20)),
    _json("a text five thousand times", post_processor=template([_A] * 5000, [0])),
    _json("a million symbols around", post_processor=template([_X, _A], [0] * 1_000_000)),
    _json("a symbol a hundred thousand times", post_processor=template([_X] * 100_000 + [_A], [0])),
    _json("symbols that there are not", post_processor=template([_X, _A], [1 << 30])),
    _json(
        "a class that there is not", post_processor={"type": "BertProcessing", "sep": ["a", 1 << 31], "cls": ["a", 0]}
    ),
    _json("frames in frames", post_processor={"type": "Sequence", "processors": [template([_X, _A], [0] * 200)] * 60}),
    _json("decoding that repeats", decoder=decoded(*[replace("a", "aaaaaaaaaa")] * 20)),
    _json("decoding nothing to something", decoder=decoded(*[replace("", "xyz")] * 10)),
    _json("decoding an end of nothing", decoder=decoded(*[{"type": "BPEDecoder", "suffix": ""}] * 40)),
    _json(
        "decoding that strips more than there is",
        decoder={"type": "Strip", "content": "a", "start": 0, "stop": 1 << 40},
    ),
    _json(
        "decoding that strips a start of 2^62", decoder={"type": "Strip", "content": "a", "start": 1 << 62, "stop": 0}
    ),
    _json("padding to a billion", padding={"strategy": {"Fixed": 1_000_000_000}, **PADDING}),
    _json(
        "padding to a multiple of 2^40", padding={"strategy": "BatchLongest", **PADDING, "pad_to_multiple_of": 1 << 40}
    ),
    _json("truncation to nothing", truncation={**CUT, "max_length": 0}),
    _json("truncation with a stride of all but one", truncation={**CUT, "max_length": 3, "stride": 2}),
    _json("pieces of no length", pre_tokenizer={"type": "FixedLength", "length": 0}),
]

# tokenizer.json: regular expressions.

_PATTERNS = {
    "repeats of repeats": "(a+)+$",
    "repeats of repeats with a mark": "(?:[a-z ]+,?)+\\d",
    "the cube": "[a-z ]*[a-z ]*[a-z ]*\\d",
    "the sixth power": ".*.*.*.*.*.*\\d",
    "choices that are the same": "(a|a|t|t|h|e| )+\\d",
    "choices one after the other": "(?:t|t)?(?:h|h)?(?:e|e)?" * 30 + "\\d",
    "a look ahead that repeats": "(?=([a-z ]+)+\\d)x",
    "a look back": "(?<=(a+)+)b",
    "a group that calls itself": "(?<n>a|b\\g<n>c|\\g<n>\\g<n>)*x",
    "back references": "(.*)\\1(.*)\\2(.*)\\3x",
    "a million repeats": "((a{1000}){1000}){1000}",
    "repeats of nothing": "(?:(?:a?){1000}){1000}b",
    "brackets in brackets": "(" * 20_000 + "a" + ")" * 20_000,
    "a pattern of two megabytes": "a" * 2_000_000,
    "a hundred thousand choices": "|".join(f"x{i}" for i in range(100_000)),
    "half a bracket": "(",
    "an absent operator": "(?~abc)*(?~abc)*(?~abc)*x",
    "a condition": "(a)?(?(1)b|c)*" * 50,
}
BACKTRACKING = [
    *(_json(f"splits by {name}", pre_tokenizer=split(pattern)) for name, pattern in _PATTERNS.items()),
    *(
        _json(f"replaces {name}", normalizer=replace(_PATTERNS[name], "", "Regex"))
        for name in ("repeats of repeats", "the cube", "half a bracket")
    ),
    _json("decodes by the cube", decoder=replace(_PATTERNS["the cube"], "", "Regex")),
    _case(
        "tokenizer.json: a part behind the model",
        lambda: {"tokenizer.json": {**state(), "pre_tokenizer": split("(a+)+$")}},
    ),
    _case(
        "tokenizer.json: a part behind the model in other letters",
        lambda: {
            "tokenizer.json": json.dumps({**state(), "normalizer": replace("a", "b" * 999_999)})
            .replace('"normalizer"', '"\\u006eormalizer"')
            .encode()
        },
    ),
    _case(
        "tokenizer.json: a part twice",
        lambda: {
            "tokenizer.json": json.dumps(state(normalizer=replace("a", "b" * 999), x=0))
            .replace('"x": 0', '"normalizer": null')
            .encode()
        },
    ),
]

# tokenizer.json: vocabularies and added tokens.


def _added(*contents: str, special: bool = True, first: int = len(LETTERS)) -> list[dict[str, Any]]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": special}
    return [{"id": first + i, "content": content, **flags} for i, content in enumerate(contents)]


def _wordpiece(**settings: Any) -> dict[str, Any]:
    pieces = [*LETTERS, *(f"##{letter}" for letter in LETTERS)]
    found = {"type": "WordPiece", "unk_token": "a", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100}
    return {**found, "vocab": {piece: i for i, piece in enumerate(pieces)}, **settings}


def _unigram(*pieces: str) -> dict[str, Any]:
    return {"type": "Unigram", "unk_id": 0, "vocab": [["a", 0.0], *([piece, -1.0] for piece in pieces)]}


VOCABULARIES = [
    _json("words of a million letters", model=_wordpiece(max_input_chars_per_word=1_000_000)),
    _json("a prefix of a megabyte in words", model=_wordpiece(continuing_subword_prefix="#" * 1_000_000)),
    _json(
        "an unknown of a megabyte",
        model={**_BPE, "vocab": {**_BPE["vocab"], "u" * 1_000_000: 40}, "unk_token": "u" * 1_000_000},
    ),
    _json("a suffix of a megabyte", model={**_BPE, "end_of_word_suffix": "w" * 1_000_000}),
    _json("pieces of 60,000 letters", model=_unigram(*("b" * length for length in range(1, 60_000, 997)))),
    _json("pieces that begin with each other", model=_unigram(*("t" * length for length in range(1, 250)))),
    _json("a piece of nothing", model=_unigram("")),
    _json("an unknown that there is not", model={**_unigram("b"), "unk_id": 1 << 40}),
    _json("a score beyond numbers", model={"type": "Unigram", "unk_id": 0, "vocab": [["a", -1e308], ["b", 1e308]]}),
    _json("ids beyond numbers", model={**_BPE, "vocab": {"a": (1 << 32) - 1}}),
    _json("a special symbol of 60,000 letters", added_tokens=_added("s" * 60_000)),
    _json("a special symbol of noncharacters", added_tokens=_added("he", "h\ufdd4", "\ufdd2")),
    _json("an empty special symbol", added_tokens=_added("")),
    _json("symbols inside symbols", added_tokens=_added(*("<" * n for n in range(1, 250)))),
    _json("twenty thousand special symbols", added_tokens=_added(*(f"<|{i}|>" for i in range(20_000)))),
    _json("symbols of the model that are special", added_tokens=_added(*LETTERS, first=0)),
    _json("a dropout of all", model={**_BPE, "dropout": 1.0}),
    _case("tokenizer.json: brackets in brackets", lambda: {"tokenizer.json": b'{"normalizer":' + b"[" * 500_000}),
    _case(
        "tokenizer.json: sequences in sequences",
        lambda: {
            "tokenizer.json": b'{"version":"1.0","added_tokens":[],"normalizer":'
            + b'{"type":"Sequence","normalizers":[' * 60
            + b'{"type":"NFC"}'
            + b"]}" * 60
            + b',"model":{"type":"BPE","vocab":{"a":0},"merges":[]}}'
        },
    ),
    _case(
        "tokenizer_config.json: a special symbol of 60,000 letters",
        lambda: {
            "tokenizer.json": state(),
            "tokenizer_config.json": {"added_tokens_decoder": {"30": {"content": "s" * 60_000, "special": True}}},
        },
    ),
]

# sentencepiece, tiktoken, vocab.json with merges.txt, vocab.txt.


def _varint(value: int) -> bytes:
    found = b""
    while value > 127:
        found, value = found + bytes([value & 127 | 128]), value >> 7
    return found + bytes([value])


def _message(*fields: tuple[int, int | float | bytes]) -> bytes:
    found = b""
    for number, value in fields:
        if isinstance(value, int):
            found += _varint(number << 3) + _varint(value)
        elif isinstance(value, float):
            found += _varint(number << 3 | 5) + struct.pack("<f", value)
        else:
            found += _varint(number << 3 | 2) + _varint(len(value)) + value
    return found


def _pieces(*texts: str, kind: int = 1, charsmap: bytes = b"") -> bytes:
    own = [("<unk>", 2), ("<s>", 3), ("</s>", 3), *((text, 1) for text in (*LETTERS, "\u2581", *texts))]
    held = [(1, _message((1, text.encode()), (2, -float(i)), (3, type_))) for i, (text, type_) in enumerate(own)]
    return _message((2, _message((3, kind))), (3, _message((2, charsmap), (3, 1), (4, 1), (5, 1))), *held)


def _spm(name: str, content: Callable[[], bytes]) -> Case:
    return _case(f"tokenizer.model: {name}", lambda: {"tokenizer.model": content()})


def _charsmap() -> bytes:
    """Each character `a` becomes a text of 100,000."""
    units = [0] * 256
    units[0] = 1 << 10  # the children of the root lie at 1 ^ label
    units[1 ^ ord("a")] = (2 << 10) | 1 << 8 | ord("a")
    units[1 ^ ord("a") ^ 2] = 1 << 31
    return struct.pack("<I", 1024) + struct.pack("<256I", *units) + b"b" * 100_000 + b"\0"


OTHERS = [
    _spm("a charsmap that makes 100,000 letters of one", lambda: _pieces(charsmap=_charsmap())),
    _spm("pieces of 60,000 letters", lambda: _pieces(*("b" * length for length in range(2, 60_000, 997)))),
    _spm("pieces that begin with each other", lambda: _pieces(*("t" * length for length in range(2, 250)))),
    _spm(
        "merges of one piece of 10,000 letters",
        lambda: _pieces(*("t" * n for n in range(2, 300)), "t" * 10_000, kind=2),
    ),
    _spm(
        "a special symbol of 60,000 letters",
        lambda: _message((1, _message((1, b"s" * 60_000), (2, 0.0), (3, 3)))) + _pieces(),
    ),
    _spm("a field of 2^60 bytes", lambda: b"\x0a" + _varint(1 << 60)),
    _spm("a million empty pieces", lambda: b"\x0a\x00" * 1_000_000),
    _case("qwen.tiktoken: symbols of 1,000 bytes", lambda: {"qwen.tiktoken": _ranks(1000)}),
    _case(
        "qwen.tiktoken: a symbol of a megabyte", lambda: {"qwen.tiktoken": base64.b64encode(b"t" * 1_000_000) + b" 0"}
    ),
    _case("qwen.tiktoken: a rank of 5,000 digits", lambda: {"qwen.tiktoken": b"YQ== " + b"9" * 5000}),
    _case("vocab.txt: a word of ten megabytes", lambda: {"vocab.txt": b"[UNK]\n" + b"t" * 10_000_000}),
    _case(
        "vocab.txt: an unknown of a megabyte",
        lambda: {"vocab.txt": b"u" * 1_000_000, "tokenizer_config.json": {"unk_token": "u" * 1_000_000}},
    ),
    _case("vocab.json: ids of 5,000 digits", lambda: {"vocab.json": b'{"a": ' + b"9" * 5000 + b"}", "merges.txt": b""}),
    _case("vocab.json: brackets", lambda: {"vocab.json": b"[" * 500_000, "merges.txt": b""}),
    _case(
        "merges.txt: a line of ten megabytes", lambda: {"vocab.json": _BPE["vocab"], "merges.txt": b"a " * 5_000_000}
    ),
    _case(
        "merges.txt: a million lines of one merge",
        lambda: {"vocab.json": {**_BPE["vocab"], "th": 30}, "merges.txt": b"t h\n" * 1_000_000},
    ),
]


def _ranks(length: int) -> bytes:
    symbols = [*(bytes([byte]) for byte in range(256)), *(b"t" * n for n in range(2, length))]
    return b"".join(base64.b64encode(symbol) + b" %d\n" % rank for rank, symbol in enumerate(symbols))


# GGUF: the tokens.


def _gguf(values: Callable[[], dict[str, Any]], place: Path) -> Path:
    """A small whole model, with these tokens in place of none."""
    from gguf import GGUFReader, GGUFWriter

    place.mkdir(exist_ok=True)
    plain, path = place / "plain.gguf", place / "model.gguf"
    family = find_family(Settings(LLAMA, "a case"))
    config = family.read(Settings({**family.defaults, **LLAMA}, "a case"), ())
    save_gguf(build(config, 1), config, plain)
    writer = GGUFWriter(path, "llama")
    writer.add_context_length(4096)
    writer.add_embedding_length(16)
    writer.add_block_count(1)
    writer.add_feed_forward_length(32)
    writer.add_head_count(2)
    writer.add_layer_norm_rms_eps(1e-6)
    tokens = {"model": "gpt2", "pre": "gpt-2", "tokens": LETTERS, **values()}
    for name, value in tokens.items():
        add = writer.add_array if isinstance(value, list) else writer.add_string
        add(f"tokenizer.ggml.{name}", value)
    for tensor in GGUFReader(plain).tensors:
        writer.add_tensor(tensor.name, tensor.data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _in_gguf(name: str, values: Callable[[], dict[str, Any]]) -> Case:
    return Case(f"gguf: {name}", partial(_gguf, values), (GENERATE,))


GGUF = [
    _in_gguf("a token of a megabyte", lambda: {"tokens": [*LETTERS, "t" * 1_000_000]}),
    _in_gguf(
        "a control symbol of 900 letters", lambda: {"tokens": [*LETTERS, "s" * 900], "token_type": [1] * 30 + [3]}
    ),
    _in_gguf(
        "a control symbol of noncharacters", lambda: {"tokens": [*LETTERS, "h\ufdd4"], "token_type": [1] * 30 + [3]}
    ),
    _in_gguf("types of another number", lambda: {"token_type": [1, 2, 3]}),
    _in_gguf("scores that are no numbers", lambda: {"model": "llama", "scores": [float("nan")] * len(LETTERS)}),
    _in_gguf("a hundred thousand merges of strangers", lambda: {"merges": ["q q"] * 100_000}),
    _in_gguf("a name of a megabyte", lambda: {"pre": "x" * 1_000_000}),
]

# Chat templates.

LONG = "{% set t = ('a' * 1000) * 4000 %}"
GROWS = "{{% set ns = namespace(x={}) %}}{{% for i in range(99) %}}{{% set ns.x = {} %}}{{% endfor %}}"
MACROS = "".join(f"{{% macro m{i}() %}}{{{{ m{i + 1}() }}}}{{% endmacro %}}" for i in range(2000))
TEMPLATES = {
    "a loop without end": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "a macro that calls itself twice": "{% macro m(n) %}{{ m(n - 1) }}{{ m(n - 1) }}{% endmacro %}{{ m(60) }}",
    "a text that doubles": GROWS.format("'xy'", "ns.x ~ ns.x"),
    "a list that doubles": GROWS.format("[1]", "[ns.x, ns.x]"),
    "many texts at once": "{% macro m(n, x) %}{% if n %}{{ m(n - 1, ('\u2603' * 1000) * 4000) }}{% endif %}"
    "{% endmacro %}{{ m(400, '') }}",
    "words that are wrapped": LONG + "{{ t|wordwrap(1) }}",
    "words that are wrapped in words": LONG + "{{ t.replace('a', 'a ')|wordwrap(2, true, 'xyz') }}",
    "what is not found from the right": LONG + "{% for i in range(99999) %}{% set x = t.rfind('b' ~ i) %}{% endfor %}",
    "what is split from the right": LONG + "{% for i in range(99999) %}{% set x = t.rsplit('ab') %}{% endfor %}",
    "a text that is replaced": LONG + "{% for i in range(99999) %}{{ t.replace('aa', 'b')|length }}{% endfor %}",
    "tags that are taken out": LONG + "{{ t.replace('a', '<')|striptags }}",
    "titles": LONG + "{% for i in range(99999) %}{{ t|title|length }}{% endfor %}",
    "a width of a billion": "{{ '%999999999d' % 1 }}{{ 'x'.center(999999999) }}",
    "a width in a width": "{{ '{0:{1}}'.format('x', 9999999999) }}",
    "a number of a million digits": "{{ 10 ** (10 ** 10) }}{{ 9 ** 9 ** 9 }}",
    "a number times a number": GROWS.format("9", "ns.x * ns.x"),
    "JSON of a wide margin": "{{ {'a': 1}|tojson(indent=9999999999) }}",
    "sorts of sorts": "{% for i in range(99999) %}{{ range(99999)|sort|length }}{% endfor %}",
    "brackets in brackets": "{{ " + "(" * 50_000,
    "names of names": "{{ a" + ".b" * 50_000 + " }}",
    "fifty thousand blocks": "{% if true %}" * 10_000 + "{% endif %}" * 10_000,
    "the format of a text": "{{ ('{0.__class__.__mro__}'|attr('format'))(1) }}{{ cycler.__init__.__globals__ }}",
    "the format of a map": "{{ (['{0.__class__}']|map('attr', 'format')|first)(1) }}",
    "another file": "{% include '/etc/passwd' %}",
    "an error of a megabyte": "{{ raise_exception('x' * 1000000) }}",
    "an error of many lines": "{{ raise_exception('a\\nb\\x1b[2J') }}",
    "half a bracket": "{{ 1 +",
    "borders of another": "\ufdd2\ufdd3",
    "a time of its own form": "{{ strftime_now('%9999999999Y' * 9) }}",
    "macros that call each other": MACROS + "{{ m0() }}",
}


def _templates(text: str) -> Files:
    return {"tokenizer.json": state(), "chat_template.jinja": text.encode()}


CHATS = [_case(f"chat template: {name}", partial(_templates, text), CHAT) for name, text in TEMPLATES.items()]
CASES: list[Case] = [*GROWING, *BACKTRACKING, *VOCABULARIES, *OTHERS, *GGUF, *CHATS]
