"""The tokenizer in a GGUF file: real vocabularies give the ids they gave before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from format_models import LLAMA, drawn, published_config
from tokenizers import Regex, normalizers, pre_tokenizers

from headway.codecs import TokenizerCodec, load_codec, train_codec
from headway.codecs.sentencepiece import BYTE, CONTROL, NORMAL, SPACE, UNKNOWN
from headway.codecs.special_tokens import set_post_processor
from headway.codecs.vocabularies import CL100K, byte_pairs
from headway.errors import UserError
from headway.formats.gguf import GgufFile, load_gguf, load_gguf_codec, save_gguf
from headway.formats.gguf.tokens import WORDS, read_codec, read_special_tokens
from headway.formats.llama2c import load_llama2c, load_tokenizer
from headway.formats.usage import Usage
from headway.generate import GREEDY, Limits, Session
from headway.nn.models import Transformer

pytest.importorskip("gguf", reason="the package gguf is not installed: pip install 'headway[gguf]'")
TEXTS = (
    "",
    "Hello world",
    "  two  spaces\tand\nlines\n\n\n",
    "naïve, I'll 2024 12345",
    "\u2603 \U0001f600",
    "<s> </s>",
)


@pytest.fixture(scope="module")
def text(data_dir: Path) -> str:
    return (data_dir / "lm/tinyshakespeare.txt").read_text()[:20_000]


def round_trip(codec: TokenizerCodec, path: Path, usage: Usage | None = None) -> TokenizerCodec:
    config = published_config(LLAMA, vocab_size=codec.vocab_size + 3)
    save_gguf(drawn(config), config, path, codec, usage)
    found = load_gguf_codec(path)
    assert found is not None
    return found


def framed(codec: TokenizerCodec, text: str) -> list[int]:
    """As a prompt is read."""
    return codec.tokenizer.encode(text, add_special_tokens=True).ids


def test_bytes_come_back(tmp_path: Path, text: str) -> None:
    codec = train_codec("bpe", [text], 400)
    found = round_trip(codec, tmp_path / "a.gguf")
    assert (found.bos_id, found.eos_id) == (codec.bos_id, codec.eos_id)
    assert found.vocab_size == codec.vocab_size + 3  # the model's symbols, with three that are unused
    for each in (*TEXTS, text):
        assert found.encode(each) == codec.encode(each)
        assert found.decode(found.encode(each)) == each


def test_real_ranks_come_back(tmp_path: Path, data_dir: Path, text: str) -> None:
    file = data_dir / "conformance/r50k_base.tiktoken"
    if not file.is_file():
        pytest.skip(f"{file} is not there")
    codec = load_codec(file)
    config = published_config(
        LLAMA, vocab_size=codec.vocab_size, hidden_size=8, intermediate_size=8, num_hidden_layers=1
    )
    save_gguf(drawn(config), config, tmp_path / "a.gguf", codec)
    found = load_gguf_codec(tmp_path / "a.gguf")
    assert found is not None
    for each in (*TEXTS, text):
        assert found.encode(each) == codec.encode(each)


def test_stories_come_back_with_their_tokenizer(tmp_path: Path, data_dir: Path, text: str) -> None:
    folder = data_dir / "weights"
    if not (folder / "stories260K.bin").is_file():
        pytest.skip(f"{folder} lacks stories260K.bin")
    model, usage = load_llama2c(folder / "stories260K.bin")
    codec = load_tokenizer(folder / "tok512.bin")
    assert isinstance(model, Transformer)
    path = tmp_path / "stories.gguf"
    save_gguf(model, model.config, path, codec, usage)
    found, said = load_gguf(path)
    own = load_gguf_codec(path)
    assert isinstance(found, Transformer)
    assert own is not None
    assert (said.begin, said.ends) == (usage.begin, usage.ends)
    assert all(torch.equal(a, b) for a, b in zip(found.state_dict().values(), model.state_dict().values(), strict=True))
    for each in (*TEXTS, text[:3000]):
        assert own.encode(each) == codec.encode(each)
        assert framed(own, each) == framed(codec, each)
    assert framed(own, "a")[0] == usage.begin
    done = Session(found, own).generate([[1]], GREEDY, Limits(max_new_tokens=40))[0]
    assert done.text.startswith("Once upon a time, there was a little girl named Lily.")


def test_marks_and_template(tmp_path: Path, text: str) -> None:
    codec = train_codec("bpe", [text], 300, special=("<s>", "</s>", "<|end|>"))
    begin, end, turn = (codec.token_id(name) for name in ("<s>", "</s>", "<|end|>"))
    assert begin is not None
    assert end is not None
    assert turn is not None
    usage = Usage(begin=begin, ends=(end, turn), template="{{ messages }}")
    set_post_processor(codec.tokenizer, "", codec.special_tokens, {"add_bos_token": True})
    round_trip(codec, tmp_path / "a.gguf", usage)
    said = load_gguf(tmp_path / "a.gguf")[1]
    assert (said.begin, said.ends, said.template) == (begin, (end, turn), "{{ messages }}")
    values = GgufFile(tmp_path / "a.gguf").values
    without = {key: value for key, value in values.items() if not key.startswith("tokenizer.")}
    assert read_codec(without, "here") is None


BEGIN, END = 1, 2
PIECES = {
    "model": "llama",
    "tokens": ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), SPACE, "a"],
    "token_type": [UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256, NORMAL, NORMAL],
}
BYTES = {"model": "gpt2", "tokens": ["a", "<s>", "</s>"], "token_type": [NORMAL, CONTROL, CONTROL], "merges": []}


@pytest.mark.parametrize(
    ("said", "before", "after"),
    [
        (PIECES, [BEGIN], []),
        ({**PIECES, "add_bos_token": False, "add_eos_token": True}, [], [END]),
        (BYTES, [], []),
        ({**BYTES, "pre": "qwen2"}, [], []),
        ({**BYTES, "pre": "llama-bpe"}, [BEGIN], []),
        ({**BYTES, "pre": "llama3", "add_bos_token": False}, [], []),
        ({**BYTES, "pre": "qwen2", "add_bos_token": True, "add_eos_token": True}, [BEGIN], [END]),
    ],
)
def test_marks_stand_around_a_prompt_as_llama_cpp_puts_them(
    said: dict[str, Any], before: list[int], after: list[int]
) -> None:
    marks = {"bos_token_id": BEGIN, "eos_token_id": END}
    values = {f"tokenizer.ggml.{name}": value for name, value in {**said, **marks}.items()}
    codec = read_codec(values, "here")
    assert codec is not None
    assert framed(codec, "a") == [*before, *codec.encode("a"), *after]
    assert read_special_tokens(values, "here")["begin"] == (BEGIN if before else None)


@pytest.mark.parametrize(("before", "after"), [(False, False), (True, False), (True, True)])
def test_what_a_tokenizer_puts_around_a_text_is_said(tmp_path: Path, text: str, before: bool, after: bool) -> None:
    """And not what config.json names: Qwen 2's has a begin that no prompt gets."""
    codec = train_codec("bpe", [text], 300, special=("<s>", "</s>", "<|end|>"))
    set_post_processor(codec.tokenizer, "", codec.special_tokens, {"add_bos_token": before, "add_eos_token": after})
    turn = codec.token_id("<|end|>")
    assert turn is not None
    found = round_trip(codec, tmp_path / "a.gguf", Usage(begin=codec.bos_id, ends=(turn,)))
    values = GgufFile(tmp_path / "a.gguf").values
    assert values["tokenizer.ggml.add_bos_token"] == before
    assert values["tokenizer.ggml.bos_token_id"] == codec.bos_id
    assert framed(found, "a") == framed(codec, "a")
    assert turn in load_gguf(tmp_path / "a.gguf")[1].ends


def test_tokenizers_that_do_not_hold_together_are_refused(tmp_path: Path, text: str) -> None:
    round_trip(train_codec("bpe", [text], 300), tmp_path / "a.gguf")
    values = GgufFile(tmp_path / "a.gguf").values
    start = "tokenizer.ggml."
    cases = {
        "kind 't5'": {"model": "t5"},
        "-1 as the unknown one": {"model": "bert"},
        "pre-tokenizer 'gpt3'": {"pre": "gpt3"},
        "token_type for": {"token_type": [1]},
        "type 9": {"token_type": [9] * len(values[start + "tokens"])},
        "tokens, 1 duplicate": {"tokens": [*values[start + "tokens"][:-1], "a"]},
        "does not consist of tokens": {"merges": ["a nothing"]},
        "0 characters": {"tokens": [""]},
        "use a list": {"tokens": "abc"},
        "use a string": {"tokens": [1, 2]},
        "integer": {"bos_token_id": "1"},
    }
    for message, changes in cases.items():
        with pytest.raises(UserError, match=message):
            read_codec({**values, **{start + name: value for name, value in changes.items()}}, "here")


@pytest.mark.parametrize("kind", ["word", "char", "unigram", "wordpiece"])
def test_what_gguf_cannot_say_is_not_written(tmp_path: Path, text: str, kind: str) -> None:
    codec = train_codec(kind, [text], 400 if kind in ("unigram", "wordpiece") else None)  # type: ignore[arg-type]
    config = published_config(LLAMA, vocab_size=codec.vocab_size)
    with pytest.raises(UserError, match="export without"):
        save_gguf(drawn(config), config, tmp_path / "a.gguf", codec)
    small = published_config(LLAMA, vocab_size=codec.vocab_size - 1)
    with pytest.raises(UserError, match="does not fit a model"):
        save_gguf(drawn(small), small, tmp_path / "a.gguf", codec)
    assert not (tmp_path / "a.gguf").exists()


def test_equal_patterns_in_another_spelling_have_a_name(tmp_path: Path, text: str) -> None:
    """As published for GPT-4o and DeepSeek V3: what is between matches is removed, line ends as such, no normaliser."""
    codec = train_codec("bpe", [text], 400)
    pattern = CL100K.replace(r"\r", "\r").replace(r"\n", "\n")
    split = pre_tokenizers.Split(Regex(pattern), "removed", invert=True)
    bytewise = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    codec.tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, bytewise])  # type: ignore[assignment]
    codec.tokenizer.normalizer = normalizers.Sequence([])  # type: ignore[assignment]
    found = round_trip(codec, tmp_path / "a.gguf")
    assert WORDS[GgufFile(tmp_path / "a.gguf").values["tokenizer.ggml.pre"]].patterns == (CL100K,)
    for each in (*TEXTS, TEXT, text):
        assert found.encode(each) == codec.encode(each)


@pytest.mark.parametrize("text", ["It's 12 a  34b", "x 5", "  7", "a1b22 ,3.", "no\n\n 9 lives  ", "tab\t4", "²½ 3"])
def test_digits_are_words_of_their_own_in_the_manner_of_smollm(text: str) -> None:
    """As the published tokenizer.json of SmolLM splits: digits first, then GPT-2's words."""
    published = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    own = byte_pairs({}, [], WORDS["smollm"].patterns).pre_tokenizer
    assert own is not None
    assert own.pre_tokenize_str(text) == published.pre_tokenize_str(text)


TEXT = (
    "Hello world's 12345 \n\n  two  spaces, naïve 日本語テキスト, 中文。한국어 x=1;\t'quoted'--  \u2603 "
    "\U0001f600 हिन्दी Don't STOP HTTPServer <sentinel:4> IMGIMGABZ \r\n 3.14 ...   الْعَرَبِيَّة  ไทย /path/to\n"
)


@pytest.mark.parametrize("name", WORDS)
def test_words_by_another_engine(name: str) -> None:
    """The patterns of every name, applied as llama.cpp does: each splits the pieces that the one before has left."""
    import regex

    pieces = [TEXT]
    for pattern in WORDS[name].patterns:
        split = []
        for piece in pieces:
            end = 0
            for match in regex.finditer(pattern, piece, regex.V0):
                split += [piece[end : match.start()], match.group()]
                end = match.end()
            split.append(piece[end:])
        pieces = [piece for piece in split if piece]
    own = byte_pairs({}, [], WORDS[name].patterns).pre_tokenizer
    assert own is not None
    assert [TEXT[start:end] for _, (start, end) in own.pre_tokenize_str(TEXT)] == pieces


@pytest.mark.parametrize(("name", "text", "words"), [
    ("deepseek-v3", "12345 中文ab", ["123", "45", " ", "中文", "ab"]),
    ("falcon", "x 12345+", ["x", " ", "123", "45", "+"]),
    ("tekken", "HTTPServer 12", ["HTTPServer", " ", "1", "2"]),
    ("gpt-4o", "Don't 1234", ["Don't", " ", "123", "4"]),
    ("bloom", "a,b 12", ["a", ",", "b", " 12"]),
    ("viking", "ab 12", ["ab", " ", "1", "2"]),
    ("tiny_aya", "1234567", ["1", "234", "567"]),
    ("deepseek-coder", "a\n\nb12", ["a", "\n", "\n", "b", "1", "2"]),
])  # fmt: skip
def test_words_of_some_names(name: str, text: str, words: list[str]) -> None:
    own = byte_pairs({}, [], WORDS[name].patterns).pre_tokenizer
    assert own is not None
    assert [text[start:end] for _, (start, end) in own.pre_tokenize_str(text)] == words
