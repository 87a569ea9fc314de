"""Codecs trained on real text: exact round trips, save and load, and what is refused."""

from __future__ import annotations

import gzip
import tarfile
import time
from pathlib import Path

import pytest

from headway.codecs import TokenizerCodec, load_codec, train_codec
from headway.codecs.tokenizer import SECTION_LENGTH
from headway.errors import UserError

SIZES = {"word": None, "byte": None, "char": None, "bpe": 2000, "wordpiece": 2000, "unigram": 2000}
BYTEWISE = ("byte", "bpe", "wordpiece", "unigram")
PAIR = ("<s>", "</s>")
AWKWARD = (
    "",
    " ",
    "\n",
    "\n\n  two spaces\n\tand a tab \r\n",
    " a space before, one after ",
    "a\n\n\n b \n ",
    "\ufeff\x00\x7f\u0085\u2028 \u3000 nul, and other kinds of space",
    "caf\u00e9 cafe\u0301 \u0e19\u0e49\u0e33 \u0939\u093f\u0928\u094d\u0926\u0940",
    "東京は日本の首都です。" * 40,
    "👩‍👩‍👧‍👦 👍🏽 🇩🇪 \ufe0f",
    "\u2581 \u0120 ## @@ \ufffd </w> <0x0A>",
    "no_break" * 100,
)


@pytest.fixture(scope="module")
def lines(data_dir: Path) -> list[str]:
    found = []
    for language in ("en", "de"):
        with gzip.open(data_dir / f"translation/multi30k-val.{language}.gz", "rt", encoding="utf-8") as file:
            found += [line.rstrip("\n") for line in file]
    return found


@pytest.fixture(scope="module")
def play(data_dir: Path) -> str:
    return (data_dir / "lm/tinyshakespeare.txt").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def encyclopedia(data_dir: Path) -> str:
    with tarfile.open(data_dir / "lm/wikitext-2-raw-valid-test.tar.xz") as archive:
        member = archive.extractfile("wiki.valid.raw")
        assert member is not None
        return member.read().decode("utf-8")


@pytest.fixture(scope="module")
def codecs(lines: list[str]) -> dict[str, TokenizerCodec]:
    return {kind: train_codec(kind, iter(lines), size, special=PAIR) for kind, size in SIZES.items()}  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", SIZES)
def test_what_it_was_trained_on_comes_back(kind: str, codecs: dict, lines: list[str]) -> None:
    codec = codecs[kind]
    ids = codec.encode_batch(lines)
    assert ids[:20] == [codec.encode(line) for line in lines[:20]]
    assert max(map(max, ids)) < codec.vocab_size
    if SIZES[kind] is not None:
        assert codec.vocab_size == SIZES[kind]
    assert [codec.decode(some) for some in ids] == lines


@pytest.mark.parametrize(
    ("kind", "prefix_space"), [*((kind, False) for kind in BYTEWISE), *((kind, True) for kind in BYTEWISE[1:])]
)
def test_any_text_comes_back_from_bytes(kind: str, prefix_space: bool, lines: list[str], encyclopedia: str) -> None:
    codec = train_codec(kind, iter(lines), SIZES[kind], prefix_space=prefix_space)  # type: ignore[arg-type]
    assert codec.unk_id is None
    for text in (*AWKWARD, encyclopedia[:50_000], "".join(map(chr, range(0x3100)))):
        assert codec.decode(codec.encode(text)) == text


def test_bytes_are_their_own_symbols(codecs: dict) -> None:
    text = AWKWARD[7]
    assert codecs["byte"].encode(text) == list(text.encode())
    assert codecs["byte"].vocab_size == 258


@pytest.mark.parametrize("kind", ["char", "word"])
def test_spaces_and_lines_come_back(kind: str) -> None:
    codec = train_codec(kind, AWKWARD)  # type: ignore[arg-type]
    for text in AWKWARD:
        assert codec.decode(codec.encode(text)) == text


def test_characters_of_a_play(play: str) -> None:
    codec = train_codec("char", [play])
    assert codec.vocab_size == 65 + 2  # the characters of the play, the unknown, the end of the text
    ids = codec.encode(play)
    assert len(ids) == len(play)
    assert codec.decode(ids) == play


def test_what_is_unknown_stays_visible(codecs: dict, lines: list[str]) -> None:
    assert codecs["word"].decode(codecs["word"].encode("A xyzzy in a boat.")) == "A <unk> in a boat."
    assert codecs["char"].decode(codecs["char"].encode("a 東 b")) == "a \ufffd b"
    small = train_codec("char", iter(lines), 12)
    assert small.vocab_size == 12
    assert small.unk_id in small.encode(lines[0])


def test_words_keep_their_case_or_lose_it(lines: list[str]) -> None:
    codec = train_codec("bpe", iter(lines), 1000, lowercase=True)
    assert codec.decode(codec.encode("Ein GROSSER Hund")) == "ein grosser hund"


@pytest.mark.parametrize("kind", ["bpe", "wordpiece", "unigram"])
def test_a_word_is_one_symbol_at_the_start_and_within(kind: str, lines: list[str]) -> None:
    codec = train_codec(kind, iter(lines), 2000, prefix_space=True)  # type: ignore[arg-type]
    first, second = codec.encode("man"), codec.encode("A man")
    assert second[-len(first) :] == first
    assert codec.encode("A\nman")[-len(first) :] == first


def test_phonemes_between_spaces() -> None:
    codec = train_codec("word", ["HH AH L OW", "W ER L D"], split="space", special=PAIR)
    assert codec.vocab_size == 7 + 1 + 2
    assert codec.decode(codec.encode("D L ER AH HH")) == "D L ER AH HH"
    assert codec.decode(codec.encode("D ZH")) == "D <unk>"
    stream = codec.stream()
    assert [stream.push(i) for i in codec.encode("HH AH L")] == ["HH", " AH", " L"]


@pytest.mark.parametrize("kind", SIZES)
def test_special_symbols_are_never_in_the_text(kind: str, codecs: dict) -> None:
    codec = codecs[kind]
    assert (codec.bos_id, codec.eos_id) == (codec.vocab_size - 2, codec.vocab_size - 1)
    assert not {codec.bos_id, codec.eos_id} & set(codec.encode("<s>a man</s>"))
    ids = codec.encode("A man")
    assert codec.decode([codec.bos_id, *ids, codec.eos_id]) == "A man"


def test_one_symbol_is_begin_and_end_of_language_models(lines: list[str]) -> None:
    codec = train_codec("byte", iter(lines))
    assert codec.bos_id == codec.eos_id == 256


@pytest.mark.parametrize("kind", SIZES)
def test_saved_and_loaded_it_is_the_same(kind: str, codecs: dict, lines: list[str], tmp_path: Path) -> None:
    codec = codecs[kind]
    codec.save(tmp_path / "run")
    codec.save(tmp_path / "mine.json")
    assert sorted(file.name for file in (tmp_path / "run").iterdir()) == ["tokenizer.json", "tokenizer_config.json"]
    for path in (tmp_path / "run", tmp_path / "run/tokenizer.json", tmp_path / "mine.json"):
        again = load_codec(path)
        assert again.fingerprint() == codec.fingerprint()
        assert again.encode_batch(lines[:100]) == codec.encode_batch(lines[:100])
        assert (again.vocab_size, again.bos_id, again.eos_id, again.unk_id) == (
            codec.vocab_size,
            codec.bos_id,
            codec.eos_id,
            codec.unk_id,
        )


@pytest.mark.parametrize("kind", SIZES)
def test_equal_data_give_an_equal_codec(kind: str, codecs: dict, lines: list[str]) -> None:
    again = train_codec(kind, iter(lines), SIZES[kind], special=PAIR)  # type: ignore[arg-type]
    assert again.fingerprint() == codecs[kind].fingerprint()
    other = train_codec(kind, iter(lines), SIZES[kind], special=("<s>", "<end>"))  # type: ignore[arg-type]
    assert other.fingerprint() != again.fingerprint()


@pytest.mark.parametrize("kind", SIZES)
def test_a_long_text_in_sections_is_the_whole(kind: str, codecs: dict, play: str) -> None:
    codec, text = codecs[kind], play[: 3 * SECTION_LENGTH]
    sections = list(codec.sections(text))
    assert len(sections) > 1
    assert "".join(sections) == text
    whole = codec.tokenizer.encode(text, add_special_tokens=False).ids
    assert codec.encode(text) == whole
    assert [i for section in sections for i in codec.encode(section)] == whole


def test_texts_are_read_once_and_as_they_come(lines: list[str]) -> None:
    def broken():
        yield from lines
        raise UserError("line 2029 is not UTF-8; convert the file")

    for kind, size in SIZES.items():
        if kind != "byte":  # which needs to read no more than the first
            with pytest.raises(UserError, match="line 2029"):
                train_codec(kind, broken(), size)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "texts", "size", "options", "message"),
    [
        ("wrod", ["a"], None, {}, "unknown codec kind 'wrod'; did you mean 'word'"),
        ("char", [], None, {}, "no text to train a codec on"),
        ("unigram", ["", ""], 300, {}, "no text to train a codec on"),
        ("bpe", ["a b"], None, {}, "a bpe codec needs a size"),
        ("bpe", ["a b"], 256, {}, "size 256 is too small for a bpe codec; set 257 or more"),
        ("bpe", ["a b"], 10**12, {}, "size 1,000,000,000,000 is too large for a codec; set 16,777,216 or less"),
        ("word", ["a b"], 2**31, {}, "is too large for a codec"),
        ("word", ["a b"], 2, {}, "size 2 is too small for a word codec; set 3 or more"),
        ("byte", ["a b"], 300, {}, "size 300 does not fit a byte codec; set 257"),
        ("word", ["a b"], 300, {}, "they suffice for a word codec with 4 tokens; set 4 or less"),
        ("char", ["a b"], 300, {}, "they suffice for a char codec with 5 tokens; set 5 or less"),
        ("bpe", ["low low"], 300, {}, "they suffice for a bpe codec with 259 tokens"),
        ("wordpiece", ["low low"], 300, {}, "they suffice for a wordpiece codec with 259 tokens"),
        ("unigram", ["low"], 300, {}, "they suffice for a unigram codec with"),
        ("char", ["a"], None, {"split": "space"}, "use kind='word'"),
        ("word", ["a"], None, {"split": "spaces"}, "did you mean 'space'"),
        ("char", ["a"], None, {"prefix_space": True}, "does not support prefix_space"),
        ("char", ["a"], None, {"special": ("<s>", "<s>")}, "not distinct"),
        ("word", ["a </s>"], None, {"split": "space", "special": PAIR}, "'</s>' also occurs in the data as a word"),
    ],
)
def test_what_cannot_be_trained(kind, texts, size, options, message) -> None:
    with pytest.raises(UserError) as caught:
        train_codec(kind, iter(texts), size, **options)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_cannot_be_loaded(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"tokenizer\.json does not exist"):
        load_codec(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0"}')
    with pytest.raises(UserError, match="cannot be read as a tokenizer"):
        load_codec(tmp_path)


@pytest.mark.parametrize("long", ["x", "-", " "])
def test_a_long_word_does_not_take_its_length_squared(long: str) -> None:
    started = time.process_time()
    codec = train_codec("bpe", ["a b c d e f"] * 9 + [long * 50_000 + "z"], 300, fewer=True)
    assert time.process_time() - started < 1
    assert codec.decode(codec.encode(long * 3000)) == long * 3000
