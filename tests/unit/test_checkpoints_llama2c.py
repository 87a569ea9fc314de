"""llama2.c's binaries: the published model writes its published text, and its tokenizer joins as the C program does."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import pytest
import torch
from format_models import LLAMA, drawn, published_config

from headway.codecs import TokenizerCodec
from headway.errors import UserError
from headway.formats.families import families
from headway.formats.llama2c import Binary, interleaved, is_llama2c, load_llama2c, load_tokenizer
from headway.formats.weights import published_tensors
from headway.generate import GREEDY, Limits, Session
from headway.nn.models import Transformer

STEPS = 256  # of the C program, where it is told nothing


@pytest.fixture(scope="module")
def weights(data_dir: Path) -> Path:
    folder = data_dir / "weights"
    if not (folder / "stories260K.bin").is_file():
        pytest.skip(f"{folder} lacks stories260K.bin; get it from karpathy/tinyllamas")
    return folder


@pytest.fixture(scope="module")
def codec(weights: Path) -> TokenizerCodec:
    return load_tokenizer(weights / "tok512.bin")


def golden(weights: Path) -> str:
    """The greedy text that the model's page shows."""
    return (weights / "stories260K.md").read_text().split("-t 0.0\n")[1].split("\n```")[0]


def test_stories_are_written_token_for_token(weights: Path, codec: TokenizerCodec) -> None:
    model, usage = load_llama2c(weights / "stories260K.bin")
    assert isinstance(model, Transformer)
    assert usage.begin is not None
    done = Session(model).generate([[usage.begin]], GREEDY, Limits(max_new_tokens=STEPS))[0]
    assert codec.decode(done.ids) == golden(weights)
    assert done.ids == codec.encode(golden(weights))


def greedy(text: str, pieces: list[tuple[str, float]]) -> list[int]:
    """llama2.c's encode, as it is written: the best pair, the first of equals, again and again."""
    ids = {piece: i for i, (piece, _) in enumerate(pieces)}
    found = [ids[" "]] if text else []
    for character in text:
        found += [ids[character]] if character in ids else [byte + 3 for byte in character.encode()]
    while True:
        best, place, joined = -1e10, -1, -1
        for i in range(len(found) - 1):
            merged = ids.get(pieces[found[i]][0] + pieces[found[i + 1]][0])
            if merged is not None and pieces[merged][1] > best:
                best, place, joined = pieces[merged][1], i, merged
        if place < 0:
            return found
        found[place : place + 2] = [joined]


def read_pieces(path: Path) -> list[tuple[str, float]]:
    data, place, found = path.read_bytes(), 4, []
    while place < len(data):
        score, length = struct.unpack_from("<fi", data, place)
        found.append((data[place + 8 : place + 8 + length].decode(), score))
        place += 8 + length
    return found


def test_the_tokenizer_joins_as_the_c_program_does(weights: Path, codec: TokenizerCodec, data_dir: Path) -> None:
    pieces = read_pieces(weights / "tok512.bin")
    text = (data_dir / "lm/tinyshakespeare.txt").read_text()
    draw = random.Random(1)
    cases = ["", " ", "a", "  two  spaces ", "naïve \u2603 \U0001f600\n", "<s> <0x41>", "aaaaaaa"]
    for _ in range(200):
        start = draw.randrange(len(text) - 60)
        cases.append(text[start : start + draw.randrange(60)])
        cases.append("".join(draw.choice("ab tehöö s\n😀.") for _ in range(draw.randrange(30))))
        cases.append("".join(draw.choice(pieces[259:])[0] for _ in range(draw.randrange(9))))
    for case in cases:
        assert codec.encode(case) == greedy(case, pieces), case
        assert codec.decode(codec.encode(case)) == case
    assert (codec.vocab_size, codec.bos_id, codec.eos_id, codec.unk_id) == (512, 1, 2, 0)


def write_binary(path: Path, model: Transformer, tied: bool, version: int) -> Path:
    """The format, written from its description."""
    config = model.config
    heads, kv = 4, 2
    held = published_tensors(model, interleaved(families()["llama"].rules(config), heads, kv))
    layer = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"]
    feed = ["mlp.gate_proj", "mlp.down_proj", "mlp.up_proj"]
    norms = ["input_layernorm", "post_attention_layernorm"]
    parts = [norms[0], *layer, norms[1], *feed] if version == 0 else [*norms, *layer, *feed]
    names = [f"model.layers.{i}.{part}.weight" for part in parts for i in range(len(config.stack.blocks))]
    if version == 0:
        order = ["model.embed_tokens.weight", *names, "model.norm.weight", None]
    else:
        order = [*names[:4], "model.norm.weight", "model.embed_tokens.weight", *names[4:]]
    order += [] if tied else ["lm_head.weight"]
    angles = torch.zeros(config.context or 0, 32 // heads)
    body = b"".join((angles if name is None else held[name]).numpy().tobytes() for name in order)
    symbols = config.vocab_size if tied or version else -config.vocab_size
    numbers = struct.pack("<7i", 32, 64, 2, heads, kv, symbols, config.context)
    header = numbers if version == 0 else (struct.pack("<Ii", 0x616B3432, version) + numbers + bytes([tied]))
    path.write_bytes((header if version == 0 else header.ljust(256, b"\0")) + body)
    return path


@pytest.mark.parametrize("version", [0, 1])
@pytest.mark.parametrize("tied", [True, False])
def test_both_forms_hold_the_same_model(tmp_path: Path, version: int, tied: bool) -> None:
    model = drawn(published_config(LLAMA, tie_word_embeddings=tied, rms_norm_eps=1e-5))
    assert isinstance(model, Transformer)
    found, _ = load_llama2c(write_binary(tmp_path / "a.bin", model, tied, version))
    assert found.config == model.config
    for name, tensor in found.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    model = drawn(published_config(LLAMA, rms_norm_eps=1e-5))
    assert isinstance(model, Transformer)
    path = write_binary(tmp_path / "a.bin", model, True, 0)
    whole = path.read_bytes()
    assert is_llama2c(path)
    huge = struct.pack("<7i", *[1 << 30] * 7)
    cases = {
        "needs": whole[:-4],
        "left after": whole + b"0000",
        "width is 0": struct.pack("<7i", 0, 64, 2, 4, 2, 48, 64) + whole[28:],
        "3 heads": struct.pack("<7i", 32, 64, 2, 3, 2, 48, 64) + whole[28:],
        "fit no model": huge,
        "header needs": b"PK\3\4 a pickle",
        "version 2": struct.pack("<Ii", 0x616B3432, 2) + whole,
    }
    for message, data in cases.items():
        path.write_bytes(data)
        with pytest.raises(UserError, match=message):
            Binary(path)
        assert not is_llama2c(path)


def test_damaged_tokenizers_are_refused(weights: Path, tmp_path: Path) -> None:
    whole = (weights / "tok512.bin").read_bytes()
    piece = struct.pack("<fi", 0.0, 2)
    cases = {
        "cannot follow": whole[:-1],
        "unique tokens": whole + (piece + b"xy") * 2,
        "not UTF-8": whole + piece + b"\xff\xff",
        "3 tokens": whole[:44],
        "with scores": whole + struct.pack("<fi", float("nan"), 2) + b"xy",
        "0 characters": whole + struct.pack("<fi", 0.0, 0),
        "-1 bytes": whole + struct.pack("<fi", 0.0, -1),
    }
    for message, data in cases.items():
        (tmp_path / "t.bin").write_bytes(data)
        with pytest.raises(UserError, match=message):
            load_tokenizer(tmp_path / "t.bin")
