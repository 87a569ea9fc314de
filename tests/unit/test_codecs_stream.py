"""Text that appears while ids arrive is the text of all of them, and never half a character."""

from __future__ import annotations

import base64
import json
import random
from itertools import pairwise
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from headway.codecs import TokenizerCodec, load_codec, train_codec

SIZES = {"word": None, "byte": None, "char": None, "bpe": 600, "wordpiece": 600, "unigram": 600}
TEXTS = (
    "A man, a plan — a canal:\n\n  Panama!\n",
    "Zwei Männer stehen am Herd.\n Und? ",
    "👩‍👩‍👧‍👦 👍🏽 🇩🇪 cafe\u0301 \u0939\u093f\u0928\u094d\u0926\u0940\n東京は日本の首都です。",
    "\ufffd is a character too: \ufffd\ufffd",
)


@pytest.fixture(scope="module")
def captions(data_dir: Path) -> list[str]:
    emoji = json.loads((data_dir / "emoji/captions.json").read_text(encoding="utf-8"))
    languages = ("en", "de", "fr", "es", "cs")
    return [" ".join([entry["char"], *(entry[one]["name"] for one in languages)]) for entry in emoji]


def check_stream(codec: TokenizerCodec, ids: list[int], valid: bool = True) -> None:
    """After every id: what was printed is a prefix of the text so far and lacks only an incomplete character."""
    stream, printed = codec.stream(), ""
    for count, symbol in enumerate(ids, 1):
        printed += stream.push(symbol)
        so_far = codec.decode(ids[:count])
        assert so_far.startswith(printed)
        if valid:
            assert set(so_far[len(printed) :]) <= {"\ufffd"}
    assert printed + stream.flush() == codec.decode(ids)


@pytest.mark.parametrize(
    ("kind", "prefix_space"),
    [*((kind, False) for kind in SIZES), *((kind, True) for kind in ("bpe", "wordpiece", "unigram"))],
)
def test_stream_is_the_whole(kind: str, prefix_space: bool, captions: list[str]) -> None:
    codec = train_codec(kind, iter(captions), SIZES[kind], prefix_space=prefix_space)  # type: ignore[arg-type]
    for text in (*TEXTS, *captions[::20]):
        ids = codec.encode(text)
        check_stream(codec, [codec.bos_id, *ids, codec.eos_id] if codec.bos_id is not None else ids)
    generator = random.Random(7)
    for _ in range(20):  # what an untrained model says: any ids, so bytes that are no characters
        check_stream(codec, [generator.randrange(codec.vocab_size) for _ in range(60)], valid=False)


@pytest.mark.parametrize("kind", ["byte", "bpe"])
def test_an_emoji_is_printed_once_it_is_whole(kind: str, captions: list[str]) -> None:
    codec = train_codec(kind, iter(["plain words only"] * 2), {"byte": None, "bpe": 262}[kind])  # type: ignore[arg-type]
    stream = codec.stream()
    assert [stream.push(i) for i in codec.encode("👍é")] == ["", "", "", "👍", "", "é"]
    stream.push(codec.encode("👍")[0])
    assert stream.flush() == "\ufffd"
    assert "".join(stream.push(i) for i in codec.encode("new")) == "new"


def saved(tokenizer: Tokenizer, folder: Path) -> TokenizerCodec:
    tokenizer.save(str(folder / "tokenizer.json"))
    return load_codec(folder)


def test_gpt2_as_published(data_dir: Path, tmp_path: Path) -> None:
    """GPT-2's ranks give its tokenizer.json, which gives its published ids."""
    ranks = {}
    for line in (data_dir / "conformance/r50k_base.tiktoken").read_bytes().splitlines():
        token, rank = line.split()
        ranks[base64.b64decode(token)] = int(rank)
    tokenizer = Tokenizer(gpt2_model(ranks))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<|endoftext|>", normalized=False)])
    tokenizer.enable_truncation(8)
    codec = saved(tokenizer, tmp_path)
    assert (codec.vocab_size, codec.bos_id, codec.eos_id, codec.unk_id) == (50257, 50256, 50256, None)
    prompts = (data_dir / "conformance/ggml-prompts-gpt-2.txt").read_text(encoding="utf-8").splitlines()
    known = [line.rsplit(" => ", 1) for line in prompts if " => " in line]
    assert len(known) > 50
    for text, ids in known:
        expected = [int(i) for i in ids.split(",")]
        assert codec.encode(text.replace("\\n", "\n")) == expected
        check_stream(codec, expected)


def gpt2_model(ranks: dict[bytes, int]) -> models.BPE:
    from headway.codecs.tokenizer import BYTES

    letters = {byte: letter for letter, byte in BYTES.items()}

    def spell(token: bytes) -> str:
        return "".join(letters[byte] for byte in token)

    merges = []
    for token, rank in sorted(ranks.items(), key=lambda pair: pair[1]):
        parts = [token[i : i + 1] for i in range(len(token))]
        while len(parts) > 2:  # what BPE has made of it when this last merge is its turn
            joined = [ranks.get(a + b, rank) for a, b in pairwise(parts)]
            best = joined.index(min(joined))
            parts[best : best + 2] = [parts[best] + parts[best + 1]]
        if len(parts) == 2:
            merges.append((spell(parts[0]), spell(parts[1])))
    return models.BPE({spell(token): rank for token, rank in ranks.items()}, merges)


def test_bert_as_published(tmp_path: Path) -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "play", "##ing", "##ed", "cat", ",", ".", "'", "s"]
    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(words[:5])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    codec = saved(tokenizer, tmp_path)
    assert (codec.vocab_size, codec.bos_id, codec.eos_id, codec.unk_id) == (14, 2, 3, 1)
    ids = codec.encode("The cat, playing.")
    assert ids == [5, 9, 10, 6, 7, 11]
    assert codec.decode([2, *ids, 3]) == "the cat, playing."
    check_stream(codec, [2, *ids, 3, 5, 12, 13, 8])


def test_llama_as_published(tmp_path: Path) -> None:
    """Pieces with a mark for the space, and bytes where a character has no piece."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "▁a", "b", "a", "é"]
    tokenizer = Tokenizer(
        models.BPE({p: i for i, p in enumerate(pieces)}, [("▁", "a")], unk_token="<unk>", byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    codec = saved(tokenizer, tmp_path)
    assert (codec.bos_id, codec.eos_id, codec.unk_id) == (1, 2, 0)
    for text in ("a b", "  aé 東京 👍🏽b", "👍", "東b 京"):
        ids = codec.encode(text)
        assert codec.decode(ids) == text
        stream, printed = codec.stream(), ""
        for symbol in ids:  # the library's own text of half a run of bytes is no prefix of the whole
            printed += stream.push(symbol)
            assert text.startswith(printed)
        assert printed == text
        assert stream.flush() == ""
    stream = codec.stream()
    assert [stream.push(i) for i in codec.encode("a東a")] == ["a", "", "", "東", "a"]
    assert stream.push(codec.tokenizer.token_to_id("<0xE6>")) == ""
    assert stream.push(codec.tokenizer.token_to_id("b")) == "\ufffdb"
    assert list(codec.sections("a\nb " * 100_000)) == ["a\nb " * 100_000]  # each text gets its mark: none is cut


def test_metaspace_and_end_of_word_as_published(tmp_path: Path) -> None:
    pieces = [("<unk>", 0.0), ("</s>", 0.0), ("▁the", -1.0), ("▁", -2.0), ("c", -3.0), ("at", -3.5), (".", -2.0)]
    unigram = Tokenizer(models.Unigram(pieces, 0, False))
    unigram.pre_tokenizer = pre_tokenizers.Metaspace()
    unigram.decoder = decoders.Metaspace()
    unigram.add_special_tokens(["</s>", "<unk>"])
    codec = saved(unigram, tmp_path)
    assert (codec.bos_id, codec.eos_id, codec.unk_id) == (None, 1, 0)
    ids = codec.encode("the cat. the")
    assert codec.decode(ids) == "the cat. the"
    check_stream(codec, ids)

    words = {"<unk>": 0, "the</w>": 1, "c": 2, "at</w>": 3}
    gpt1 = Tokenizer(models.BPE(words, [], unk_token="<unk>", end_of_word_suffix="</w>"))
    gpt1.decoder = decoders.BPEDecoder(suffix="</w>")
    codec = TokenizerCodec(gpt1)
    assert codec.decode([1, 2, 3, 1]) == "the cat the"
    check_stream(codec, [1, 2, 3, 1])
