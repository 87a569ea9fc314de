"""Tokenizers as they were published: real ranks give the published ids, and what is wrong is said in one line."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from headway.codecs import check_vocab_size, load_codec, published_codec, regex_timing
from headway.codecs.published_tokenizers import KNOWN_PATTERNS, is_simple
from headway.codecs.tokenizer import BYTES, TokenizerCodec
from headway.errors import UserError

LETTERS = {byte: letter for letter, byte in BYTES.items()}


def ranks(data_dir: Path, name: str) -> TokenizerCodec:
    return load_codec(data_dir / f"conformance/{name}.tiktoken")


def test_gpt2s_prompts_from_its_ranks(data_dir: Path) -> None:
    codec = ranks(data_dir, "r50k_base")
    prompts = (data_dir / "conformance/ggml-prompts-gpt-2.txt").read_text(encoding="utf-8").splitlines()
    known = [line.rsplit(" => ", 1) for line in prompts if " => " in line]
    assert len(known) == 100
    for text, ids in known:
        text = text.replace("\\n", "\n")
        assert codec.encode(text) == [int(i) for i in ids.split(",")]
        assert codec.decode(codec.encode(text)) == text


def test_whispers_symbols_from_its_ranks(data_dir: Path) -> None:
    """The ids that OpenAI's tokenizer gives them; 99 languages."""
    codec = ranks(data_dir, "whisper_multilingual")
    names = ("<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|su|>", "<|translate|>", "<|transcribe|>")
    names += ("<|startoflm|>", "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>", "<|0.00|>", "<|30.00|>")
    known = (50257, 50258, 50259, 50357, 50358, 50359, 50360, 50361, 50362, 50363, 50364, 51864)
    assert tuple(map(codec.token_id, names)) == known
    assert (codec.vocab_size, codec.eos_id) == (51865, 50257)
    assert codec.encode(" Hello") == [2425]
    assert codec.decode([50258, 50259, 50359, 50363, *codec.encode(" Grüße, 東京 👍🏽"), 50257]) == " Grüße, 東京 👍🏽"


def test_llama3s_ranks_under_the_name_of_a_sentencepiece_model(data_dir: Path, tmp_path: Path) -> None:
    """Its file is told by its content; this one has another size, and no encoding is guessed."""
    content = (data_dir / "conformance/r50k_base.tiktoken").read_bytes()
    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(UserError, match=r"50256 ranks in 'tokenizer' do not match a known encoding"):
        published_codec(tmp_path)


def write(folder: Path, files: dict[str, Any]) -> Path:
    for name, content in files.items():
        if isinstance(content, bytes):
            (folder / name).write_bytes(content)
        else:
            (folder / name).write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return folder


PAIR = {"vocab.json": {LETTERS[byte]: byte for byte in range(256)}, "merges.txt": "#version: 0.2\n"}


def test_a_folder_without_a_tokenizer_has_none(tmp_path: Path) -> None:
    assert published_codec(tmp_path) is None
    assert published_codec(write(tmp_path, {"vocab.json": PAIR["vocab.json"]})) is None


def test_added_tokens_keep_their_ids(tmp_path: Path) -> None:
    """Phi has gaps between its symbols and those that were added."""
    added = {"300": {"content": "<|im_start|>", "special": True}, "258": {"content": "  ", "special": False}}
    config = {"tokenizer_class": "CodeGenTokenizer", "added_tokens_decoder": added, "eos_token": "<|im_start|>"}
    codec = load_codec(write(tmp_path, {**PAIR, "tokenizer_config.json": config, "added_tokens.json": {"<x>": 257}}))
    assert (codec.vocab_size, codec.eos_id, codec.token_id("<x>"), codec.token_id("  ")) == (301, 300, 257, 258)
    assert codec.encode("a  b<x><|im_start|>")[:5] == [97, 258, 98, 257, ord("<")]
    codec.save(tmp_path / "again")
    again = load_codec(tmp_path / "again")
    assert (again.vocab_size, again.eos_id, again.encode("a  b<x>")) == (301, 300, [97, 258, 98, 257])


def gaps(*ids: int) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    added = [{"id": number, "content": f"<{number}>", "special": True, **flags} for number in ids]
    return {"version": "1.0", "added_tokens": added, "model": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": []}}


def test_gaps_between_added_tokens_of_a_file_stay(tmp_path: Path) -> None:
    codec = load_codec(write(tmp_path, {"tokenizer.json": gaps(2, 7)}))
    assert (codec.vocab_size, codec.token_id("<2>"), codec.token_id("<7>")) == (8, 2, 7)


PIECES = b"\x0a\x0a\x0a\x03abc\x15\x00\x00\x80\xbf"  # one piece and its score
BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "a pickle": ({"tokenizer.model": b"\x80\x04\x95abc"}, "is a pickle"),
    "a pickled vocabulary": ({"vocab.txt": b"\x80\x02abc"}, "is a pickle"),
    "empty": ({"tokenizer.json": ""}, "is empty"),
    "no JSON": ({"tokenizer.json": "{]"}, "cannot be read as a tokenizer"),
    "no tokenizer": ({"tokenizer.json": {"a": 1}}, "cannot be read as a tokenizer"),
    "no symbols": ({"tokenizer.json": {"model": {"type": "BPE", "vocab": {}, "merges": []}}}, "contains no tokens"),
    "an id far beyond": ({"tokenizer.json": gaps(1 << 30)}, "far beyond its 2 tokens"),
    "no UTF-8": ({"vocab.txt": b"[UNK]\n\xff"}, "not UTF-8 at byte 6"),
    "no unknown": ({"vocab.txt": "a\nb\n"}, r"not contain the unknown token '\[UNK\]'"),
    "ids that are none": ({**PAIR, "vocab.json": {"a": -1}}, "invalid id -1"),
    "an id twice": ({**PAIR, "vocab.json": {"a": 1, "b": 1}}, "the same id 1"),
    "a list": ({**PAIR, "vocab.json": ["a"]}, "contains a list, not a mapping"),
    "merges of strangers": ({**PAIR, "merges.txt": "a bc\n"}, "merges 'bc', which is not in the voc"),
    "merges of three": ({**PAIR, "merges.txt": "a b c\n"}, "is not a pair"),
    "code": ({**PAIR, "tokenizer_config.json": {"auto_map": {"AutoTokenizer": ["x.Y", None]}}}, "custom code"),
    "another class": ({**PAIR, "tokenizer_config.json": {"tokenizer_class": "CTRLTokenizer"}}, "class 'ctrl'"),
    "another class of pieces": (
        {"spm.model": PIECES, "tokenizer_config.json": {"tokenizer_class": "BigBirdTokenizer"}},
        "the unsupported class 'bigbird'; add its tokenizer.json",
    ),
    "an id taken": ({**PAIR, "added_tokens.json": {"<x>": 3}}, "adds '<x>' with id 3, but its id is 256"),
    "an id that is text": ({**PAIR, "added_tokens.json": {"<x>": "y"}}, "the invalid id 'y'"),
    "added tokens in a list": ({**PAIR, "tokenizer_config.json": {"added_tokens_decoder": [1]}}, "not a mapping"),
    "a config nested too deeply": ({**PAIR, "tokenizer_config.json": '{"a":' * 100_000}, "not JSON"),
    "two sets of ranks": ({"a.tiktoken": "IQ== 0", "b.tiktoken": "IQ== 0"}, "several tokenizers"),
    "ranks of nothing known": ({"a.tiktoken": "IQ== 0"}, "1 ranks in 'a' do not match a known"),
    "few ranks of many": ({"r50k_base.tiktoken": "IQ== 0"}, "has 1 ranks, but its encoding has 50256"),
    "ranks with a gap": ({"qwen.tiktoken": "IQ== 0\nIg== 9999"}, "has 2 ranks, but its encoding has 10000"),
    "ranks that are none": ({"a.tiktoken": "IQ== x"}, "line 1"),
    "ranks twice": ({"a.tiktoken": "IQ== 0\nIg== 0"}, "the same rank twice"),
    "no pieces": ({"tokenizer.model": b"\x12\x00"}, "contains no pieces"),
    "half a piece": ({"tokenizer.model": PIECES[:-1]}, "not a sentencepiece model"),
    "a score that is not a number": ({"tokenizer.model": PIECES[:-4] + b"\x00\x00\xc0\x7f"}, "is nan"),
    "too many sentinels": (
        {"spiece.model": PIECES, "tokenizer_config.json": {"tokenizer_class": "T5Tokenizer", "extra_ids": 1 << 40}},
        "extra_ids",
    ),
    "XLM-R of another order": (
        {"sentencepiece.bpe.model": PIECES, "tokenizer_config.json": {"tokenizer_class": "XLMRobertaTokenizer"}},
        "not <unk>, <s>, </s>",
    ),
    "Marian without its vocabulary": ({"source.spm": PIECES}, r"vocab\.json cannot be read"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_wrong_is_said(case: str, tmp_path: Path) -> None:
    files, words = BROKEN[case]
    with pytest.raises(UserError, match=words) as caught:
        published_codec(write(tmp_path, files))
    assert "\n" not in str(caught.value)


def charsmap(unit: int, texts: bytes = b"a\0", size: int = 1024) -> bytes:
    """A trie of one block whose first unit is `unit`."""
    return size.to_bytes(4, "little") + unit.to_bytes(4, "little") + bytes(1020) + texts


MAPS: dict[str, tuple[bytes, str]] = {
    "no array": (b"\0" * 8, "declares an array of 0"),
    "half an array": (charsmap(0)[:500], "declares an array of 1024"),
    "out of the array": (charsmap(1 << 18), "offset outside its array"),
    "out of the array by a large step": (charsmap(1 << 10 | 1 << 9), "offset outside its array"),
    "out of the texts": (charsmap(1 << 8, b""), "position outside its strings"),
    "into a character": (charsmap(1 << 8, b"\xc3\xa9\0"), "position in the middle of a character"),
    "no UTF-8": (charsmap(0, b"\xff\0"), "utf-8"),
    "a text without an end": (charsmap(0, b"a"), "not terminated"),
}


@pytest.mark.parametrize("case", MAPS)
def test_a_charsmap_that_leads_astray_is_refused(case: str, tmp_path: Path) -> None:
    """The library would end the process's work where a text meets it."""
    data, words = MAPS[case]
    if case == "into a character":
        data = data[:4] + (1 << 8 | 1 << 10).to_bytes(4, "little") + (1).to_bytes(4, "little") + data[12:]
    normalizer = b"\x12" + varint(len(data)) + data
    model = PIECES + b"\x1a" + varint(len(normalizer)) + normalizer
    with pytest.raises(UserError, match=words):
        published_codec(write(tmp_path, {"tokenizer.model": model}))
    normalizer = {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(data).decode()}
    (tmp_path / "tokenizer.json").write_text(json.dumps({**gaps(2), "normalizer": normalizer}))
    with pytest.raises(UserError, match=words):
        published_codec(tmp_path)


def varint(value: int) -> bytes:
    """A number below 2^14 as protocol buffers have it."""
    return bytes([value & 127 | 128, value >> 7])


def test_a_text_without_symbols_is_refused(tmp_path: Path) -> None:
    """A tokenizer may have no symbol for what is unknown."""
    model = {"type": "Unigram", "unk_id": None, "vocab": [["a", 0.0]]}
    codec = load_codec(write(tmp_path, {"tokenizer.json": {"version": "1.0", "added_tokens": [], "model": model}}))
    assert codec.encode("aa") == [0, 0]
    for encode in (codec.encode, lambda text: codec.encode_batch([text])):
        with pytest.raises(UserError, match="has no tokens for the text"):
            encode("b")


def test_a_tokenizer_larger_than_the_embedding_is_refused(tmp_path: Path) -> None:
    codec = load_codec(write(tmp_path, PAIR))
    check_vocab_size(codec, 256, "here")
    with pytest.raises(UserError, match=r"^here: the tokenizer has 256 tokens, but the model's embedding has only 255"):
        check_vocab_size(codec, 255, "here")


def letters(**parts: Any) -> dict[str, Any]:
    """A tokenizer.json of a few letters with these parts."""
    model = {"type": "BPE", "vocab": {"a": 0, "b": 1, " ": 2}, "merges": []}
    return {"version": "1.0", "added_tokens": [], "model": model, **parts}


def replacing(text: str, content: str, kind: str = "String") -> dict[str, Any]:
    return {"type": "Replace", "pattern": {kind: text}, "content": content}


def added(content: str) -> list[dict[str, Any]]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return [{"id": 3, "content": content, "special": True, **flags}]


def framing(*ids: int, texts: int = 1) -> dict[str, Any]:
    first, second = ([{"Sequence": {"id": name, "type_id": 0}}] for name in "AB")
    mark = {"SpecialToken": {"id": "x", "type_id": 0}}
    special = {"x": {"id": "x", "ids": list(ids), "tokens": ["a"] * len(ids)}}
    return {
        "type": "TemplateProcessing",
        "single": [mark, *first * texts],
        "pair": [*first, *second],
        "special_tokens": special,
    }


_WORDS = {"type": "WordPiece", "unk_token": "a", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100}
_WORDS |= {"vocab": {"a": 0}}
HARMFUL: dict[str, tuple[dict[str, Any], str]] = {
    "a letter grows": ({"normalizer": replacing("a", "b" * 65)}, "one character may become 65, more than 64"),
    "letters grow each other": (
        {"normalizer": {"type": "Sequence", "normalizers": [replacing("a", "bbb"), replacing("b", "aaa")] * 2}},
        "one character may become 81, more than 64",
    ),
    "Unicode grows": ({"normalizer": replacing("a", "\ufdfa" * 4)}, "one character may become 72"),
    "a place grows": ({"normalizer": replacing("(?=a)", "b" * 64, "Regex")}, "one character may become 65"),
    "nothing grows": ({"normalizer": replacing("", "b")}, "replaces an empty string"),
    "decoding grows": ({"decoder": replacing("a", "b" * 99)}, "decodes so that one character may become 99"),
    "decoding strips": ({"decoder": {"type": "Strip", "content": "a", "start": 0, "stop": 9}}, "strips 9 characters"),
    "many steps": (
        {"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}] * 99}},
        "has a sequence of 99 steps",
    ),
    "no length": ({"pre_tokenizer": {"type": "FixedLength", "length": 0}}, "chunks of length 0"),
    "texts twice": ({"post_processor": framing(0, texts=2)}, "has 2 texts in its template, one of them"),
    "many marks": ({"post_processor": framing(*[0] * 300)}, "adds 300 special tokens to each text \\(limit: 256\\)"),
    "marks that are none": ({"post_processor": framing(1 << 20)}, "adds token 1048576 to texts, but has no such"),
    "a long mark": ({"added_tokens": added("s" * 257)}, "a special token of 257 characters .*, more than 256"),
    "no text": ({"added_tokens": added("h\ufdd4")}, r"special token 'h\\ufdd4', which contains a noncharacter"),
    "backtracking": (
        {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}},
        r"splits words with '\(a\+\)\+\$', which .*; use another tokenizer",
    ),
    "long words": ({"model": {**_WORDS, "max_input_chars_per_word": 999}}, "is 999, more than 200; set it to 100"),
    "a long unknown": ({"model": {**_WORDS, "unk_token": "u" * 300, "vocab": {"u" * 300: 0}}}, "unk_token of 300"),
    "a long piece": ({"model": {"type": "Unigram", "unk_id": 0, "vocab": [["a" * 300, 0.0]]}}, "piece of 300"),
    "pieces in pieces": (
        {"model": {"type": "Unigram", "unk_id": 0, "vocab": [["a" * n, 0.0] for n in range(1, 99)]}},
        "a piece with .* other pieces as prefixes, more than 64",
    ),
}


@pytest.mark.parametrize("case", HARMFUL)
def test_a_tokenizer_that_is_made_to_do_harm_is_refused(case: str, tmp_path: Path) -> None:
    parts, words = HARMFUL[case]
    with pytest.raises(UserError, match=words) as caught:
        published_codec(write(tmp_path, {"tokenizer.json": letters(**parts)}))
    assert "\n" not in str(caught.value)


def test_padding_and_truncation_are_off_before_anything_is_read(tmp_path: Path) -> None:
    padding = {"strategy": {"Fixed": 1_000_000_000}, "direction": "Right", "pad_to_multiple_of": None}
    padding |= {"pad_id": 0, "pad_type_id": 0, "pad_token": "a"}
    cut = {"direction": "Right", "max_length": 0, "strategy": "LongestFirst", "stride": 0}
    codec = load_codec(write(tmp_path, {"tokenizer.json": letters(padding=padding, truncation=cut)}))
    assert codec.encode("ab") == [0, 1]


def test_parts_behind_the_model_are_seen(tmp_path: Path) -> None:
    """Also where their names are written in another way, and a part that comes twice is refused."""
    grows = json.dumps(letters(normalizer=replacing("a", "b" * 99)))
    for text in (grows, grows.replace('"normalizer"', '"n\\u006frmalizer"')):
        with pytest.raises(UserError, match="one character may become 99"):
            published_codec(write(tmp_path, {"tokenizer.json": text}))
    twice = grows.replace('"added_tokens"', '"normalizer": null, "added_tokens"')
    with pytest.raises(UserError, match="two entries named 'normalizer'"):
        published_codec(write(tmp_path, {"tokenizer.json": twice}))


def test_steps_that_each_find_their_own_do_not_multiply(tmp_path: Path) -> None:
    """Published normalisers spell out many characters one after the other."""
    steps = [replacing(letter, "...") for letter in "\u2026\u00bd\u00bc\u2014\u201c\u201d"]
    parts = {"normalizer": {"type": "Sequence", "normalizers": steps}}
    assert load_codec(write(tmp_path, {"tokenizer.json": letters(**parts)})).encode("ab") == [0, 1]


@pytest.mark.parametrize(
    ("pattern", "simple"),
    {
        r"\s+": True,
        " {2,}": True,
        r"\p{N}": True,
        r"[^\n]+|\n": True,
        r"(?<=<)(?=s>|unk>)": True,
        r"\s?\p{L}+": True,
        "(a+)+": False,
        "a+b": False,
        "a*a*": False,
        "(a|a)(a|a)": False,
        r"\1": False,
        "(?=a+)": False,
        "a{9999}": False,
    }.items(),
)
def test_simple_patterns_take_a_step_a_character(pattern: str, simple: bool) -> None:
    assert is_simple(pattern) == simple


@pytest.mark.parametrize("pattern", ["a*a*a*b", "(a|aa)+b", r"(\w+\s?)*\d$", "("])
def test_patterns_that_backtrack_are_found_by_trying(pattern: str) -> None:
    assert regex_timing.answer(pattern) is not None


def test_known_patterns_stand_the_tries() -> None:
    assert [regex_timing.answer(pattern) for pattern in sorted(KNOWN_PATTERNS)] == [None] * len(KNOWN_PATTERNS)
