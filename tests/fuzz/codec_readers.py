"""Readers of tokenizers in all the forms in which they are published."""

from __future__ import annotations

import base64
import io
import json
import struct
from functools import partial
from pathlib import Path

import numpy as np
from grammar import composed
from mutate import damaged, damaged_json, half_mild
from run import Reader
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from headway.codecs import published_codec, train_codec
from headway.codecs.image_processor import FORMATS, ImageProcessor, read_image
from headway.codecs.tokenizer import BYTES
from headway.data.labelled_files import read_idx
from headway.formats.llama2c import load_tokenizer
from headway.formats.published import read_processor

TEXT = "the cat sat on the MAT, \u00e9 \u6771\n\n 12"


def read_codec(path: Path) -> None:
    """What can be read can be used."""
    codec = published_codec(path.parent)
    if codec is not None:
        codec.decode(codec.encode(TEXT))
        codec.decode(range(codec.vocab_size))


def codec_seeds(folder: Path) -> list[bytes]:
    """A small tokenizer.json of each kind of model, with most of the parts there are."""
    texts = ["the cat sat on the mat, and the dog saw the cat\n"] * 3
    trained = [train_codec("bpe", texts, 270), train_codec("unigram", texts, 258), train_codec("word", texts)]
    found = [codec.tokenizer.to_str().encode() for codec in trained]
    names = ["[UNK]", "[CLS]", "[SEP]", "the", "c", "##at", "s"]
    bert = Tokenizer(models.WordPiece({name: i for i, name in enumerate(names)}, unk_token="[UNK]"))
    bert.normalizer = normalizers.BertNormalizer()
    bert.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    bert.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    bert.decoder = decoders.WordPiece()
    bert.add_special_tokens([AddedToken(name, special=True) for name in names[:3]])
    unigram = Tokenizer.from_str(trained[1].tokenizer.to_str())
    unigram.normalizer = normalizers.Precompiled(charsmap())
    return [*found, bert.to_str().encode(), unigram.to_str().encode()]


def charsmap() -> bytes:
    """A trie of one block, in which nothing is found."""
    return struct.pack("<I", 1024) + bytes(1024) + b"a\0"


def message(*fields: tuple[int, int | float | bytes]) -> bytes:
    """A protocol buffer."""
    found = b""
    for number, value in fields:
        if isinstance(value, int):
            found += varint(number << 3) + varint(value)
        elif isinstance(value, float):
            found += varint(number << 3 | 5) + struct.pack("<f", value)
        else:
            found += varint(number << 3 | 2) + varint(len(value)) + value
    return found


def varint(value: int) -> bytes:
    found = b""
    while value > 127:
        found, value = found + bytes([value & 127 | 128]), value >> 7
    return found + bytes([value])


def sentencepiece_seeds(folder: Path) -> list[bytes]:
    """Unigram and BPE, with bytes and without, and one with a map of characters."""
    pieces = [("<unk>", 2), ("<s>", 3), ("</s>", 3), ("<sep>", 4), *((f"<0x{byte:02X}>", 6) for byte in range(256))]
    pieces += [(text, 1) for text in ("\u2581the", "\u2581t", "he", "\u2581", "t", "h", "e", "c", "a", "s", "at")]
    found = []
    for kind, fallback, mapped in ((1, 0, b""), (2, 1, b""), (1, 1, charsmap())):
        held = [(1, message((1, text.encode()), (2, -float(i)), (3, type_))) for i, (text, type_) in enumerate(pieces)]
        trainer = message((3, kind), (35, fallback), (41, 1), (42, 2), (43, (1 << 64) - 1))
        normalizer = message((1, b"nmt_nfkc" if mapped else b"identity"), (2, mapped), (3, 1), (4, 1), (5, 1))
        # The settings first, where most of the damage is.
        found.append(message((2, trainer), (3, normalizer), *held))
    return found


def ranks_seeds(folder: Path) -> list[bytes]:
    symbols = [*(bytes([byte]) for byte in range(256)), b"th", b"he", b"the", b" the", b" c", b"at"]
    return [b"".join(base64.b64encode(symbol) + b" %d\n" % rank for rank, symbol in enumerate(symbols))]


def words_seeds(folder: Path) -> list[bytes]:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "##s", "s", "##at", ",", "on", "\u6771"]
    return ["".join(f"{word}{end}" for word in words).encode() for end in ("\n", "\r\n")]


def pair_seeds(folder: Path) -> list[tuple[bytes, bytes]]:
    """vocab.json and merges.txt of GPT-2's kind, CLIP's and GPT-1's."""
    letters = sorted(BYTES)
    merges = [("t", "h"), ("th", "e"), ("\u0120", "the"), ("c", "at"), ("a", "t")]
    ends = [("th", "e</w>"), ("a", "t</w>"), ("t", "h")]
    symbols = {
        "gpt2": [*letters, *map("".join, merges), "<|endoftext|>"],
        "clip": [*letters, *(f"{letter}</w>" for letter in letters), *map("".join, ends), "<|startoftext|>"],
        "gpt1": ["<unk>", *"theca", "e</w>", "t</w>", *map("".join, ends)],
    }
    found = []
    for kind, names in symbols.items():
        pairs = merges if kind == "gpt2" else ends
        vocabulary = json.dumps({name: i for i, name in enumerate(names)}).encode()
        found.append((vocabulary, b"#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in pairs).encode()))
    return found


def vocabulary_seeds(folder: Path) -> list[bytes]:
    seeds = pair_seeds(folder)
    (folder / "merges.txt").write_bytes(b"t h\n")
    return [vocabulary for vocabulary, _ in seeds]


def merges_seeds(folder: Path) -> list[bytes]:
    (vocabulary, merges), *_ = pair_seeds(folder)
    (folder / "vocab.json").write_bytes(vocabulary)
    return [merges]


def piece_seeds(folder: Path) -> list[bytes]:
    texts = [
        b"<unk>",
        b"\n<s>\n",
        b"\n</s>\n",
        *(f"<0x{byte:02X}>".encode() for byte in range(256)),
        b" t",
        b"he",
        b" ",
        b"t",
        b"h",
    ]
    return [struct.pack("<i", 7) + b"".join(struct.pack("<fi", -i, len(text)) + text for i, text in enumerate(texts))]


def image_seeds(folder: Path) -> list[bytes]:
    """A small image in each format that is read."""
    from PIL import Image

    pixels, found = np.random.default_rng(0).integers(0, 256, (12, 17, 3), dtype=np.uint8), []
    for kind in FORMATS:
        out = io.BytesIO()
        Image.fromarray(pixels).save(out, kind)
        found.append(out.getvalue())
    return found


def idx_seeds(folder: Path) -> list[bytes]:
    """Images as MNIST has them."""
    return [bytes([0, 0, 8, 3]) + struct.pack(">3I", 3, 4, 5) + bytes(range(60))]


def processor_seeds(folder: Path) -> list[bytes]:
    """A preprocessor_config.json of each kind, with all that it may say."""
    common = {"do_resize": True, "do_rescale": True, "do_normalize": True, "rescale_factor": 1 / 255, "resample": 3}
    common |= {"image_mean": [0.5, 0.4, 0.3], "image_std": 0.5}
    vit = {"image_processor_type": "ViTImageProcessor", "size": {"height": 8, "width": 9}}
    deit = {"feature_extractor_type": "DeiTFeatureExtractor", "size": {"shortest_edge": 9}, "crop_size": 8}
    return [json.dumps(common | own).encode() for own in (vit, deit)]


def read_prepared(path: Path) -> None:
    """What can be read can be used."""
    ImageProcessor.read(read_processor(path.parent), str(path))(np.zeros((5, 7, 3), np.uint8))


CODECS = {
    "image": Reader("image", image_seeds, damaged, read_image),
    "idx": Reader("train-images-idx3-ubyte", idx_seeds, damaged, partial(read_idx, dimensions=3)),
    "processor": Reader("preprocessor_config.json", processor_seeds, damaged_json, read_prepared),
    "tokenizer": Reader("tokenizer.json", codec_seeds, damaged_json, read_codec),
    "composed": Reader("tokenizer.json", codec_seeds, lambda _, draw: composed(half_mild(draw)), read_codec),
    "sentencepiece": Reader("tokenizer.model", sentencepiece_seeds, damaged, read_codec),
    "ranks": Reader("qwen.tiktoken", ranks_seeds, damaged, read_codec),
    "wordpiece": Reader("vocab.txt", words_seeds, damaged, read_codec),
    "vocabulary": Reader("vocab.json", vocabulary_seeds, damaged_json, read_codec),
    "merges": Reader("merges.txt", merges_seeds, damaged, read_codec),
    "llama2c-pieces": Reader("tokenizer.bin", piece_seeds, damaged, load_tokenizer),
}
