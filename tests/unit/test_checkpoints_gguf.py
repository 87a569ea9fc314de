"""GGUF both ways: bit for bit in F32, the logits of transformers, every common quantisation, nothing unsound."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from format_models import GPT2, LLAMA, drawn, published_config, rewritten
from torch import Tensor

from headway.errors import UserError
from headway.formats.gguf import GgufFile, load_gguf, save_gguf
from headway.formats.gguf.file import KINDS
from headway.formats.published import load_published, save_published
from headway.formats.usage import Usage
from headway.nn.models import Transformer

gguf = pytest.importorskip("gguf", reason="the package gguf is not installed: pip install 'headway[gguf]'")
IDS = torch.randint(0, 40, (2, 12), generator=torch.Generator().manual_seed(1))
SCALED = {"rope_type": "linear", "factor": 4.0, "rope_theta": 5e5}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "rope_theta": 5e5, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4, "original_max_position_embeddings": 16}
# Written models, and whether transformers reads all of what they say from GGUF (it knows no biases, scalings, windows).
MODELS: dict[str, tuple[dict[str, Any], bool]] = {
    "llama": ({}, True),
    "llama, tied": ({"tie_word_embeddings": True}, True),
    "llama, biases": ({"attention_bias": True, "mlp_bias": True}, False),
    "llama, linear": ({"rope_parameters": SCALED}, False),
    "llama, llama3": ({"rope_parameters": {**LLAMA3, "original_max_position_embeddings": 32}}, False),
    "llama, yarn": ({"rope_parameters": YARN}, False),
    "mistral": ({"model_type": "mistral", "sliding_window": 8}, False),
    "qwen2": ({"model_type": "qwen2"}, True),
    "qwen3": ({"model_type": "qwen3", "head_dim": 128}, True),
}


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model.logits(IDS) if hasattr(model, "logits") else model(IDS).logits


def by_transformers(path: Path) -> Any:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    pytest.importorskip("tqdm")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TQDM_DISABLE", "1")
        load = transformers.AutoModelForCausalLM.from_pretrained
        return load(path.parent, gguf_file=path.name, dtype=torch.float32).eval()


@pytest.mark.parametrize("case", MODELS)
def test_a_written_model_comes_back_bit_for_bit(tmp_path: Path, case: str) -> None:
    changes, plain = MODELS[case]
    config = published_config(LLAMA, **changes)
    model = drawn(config)
    save_gguf(model, config, tmp_path / "a.gguf")
    found, _ = load_gguf(tmp_path / "a.gguf")
    for name, tensor in model.state_dict().items():
        assert torch.equal(found.state_dict()[name], tensor), name
    assert torch.allclose(logits(found), logits(model), atol=1e-5)
    if plain:
        assert found.config == config
        assert torch.allclose(logits(by_transformers(tmp_path / "a.gguf")), logits(found), atol=1e-5)


@pytest.mark.parametrize("precision", ["F16", "Q8_0"])
def test_fewer_bits_are_read_as_transformers_reads_them(tmp_path: Path, precision: Any) -> None:
    config = published_config(LLAMA)
    model = drawn(config)
    save_gguf(model, config, tmp_path / "a.gguf", precision=precision)
    file = GgufFile(tmp_path / "a.gguf")
    assert file.values["tokenizer.ggml.model"] == "none"  # llama.cpp opens no file that does not say so
    assert file.kind("blk.0.attn_q.weight").name == precision
    assert file.kind("output_norm.weight").name == "F32"
    found, _ = load_gguf(tmp_path / "a.gguf")
    assert torch.allclose(logits(by_transformers(tmp_path / "a.gguf")), logits(found), atol=1e-5)
    assert torch.allclose(logits(found), logits(model), atol=0.1)
    stored, _ = load_gguf(tmp_path / "a.gguf", dtype=None)
    assert {each.dtype for each in stored.parameters()} == {torch.float16 if precision == "F16" else torch.float32}


def reference(model: Any, architecture: str, values: dict[str, Any], path: Path, rows: bool = False) -> Path:
    """A GGUF of a transformers model as llama.cpp's converter writes it, with the package's own table of names."""
    kind = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(kind, model.config.num_hidden_layers)
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in values.items():
        add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}[type(value)]
        add(key.replace("*", architecture), value)
    table = model.get_input_embeddings().weight
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and tensor.data_ptr() == table.data_ptr():
            continue
        stem, _, end = name.rpartition(".")
        found = tensor.float()
        if architecture.startswith("gemma") and name.endswith("norm.weight"):
            found = found + 1
        if rows and "h." in name and found.dim() == 2:
            found = found.T
        writer.add_tensor(f"{names.get_name(stem)}.{end}", found.contiguous().numpy())
    for write in (
        writer.write_header_to_file,
        writer.write_kv_data_to_file,
        writer.write_tensors_to_file,
        writer.close,
    ):
        write()
    return path


SIZES = {
    "*.context_length": 64,
    "*.embedding_length": 32,
    "*.block_count": 4,
    "*.feed_forward_length": 64,
    "*.attention.head_count": 4,
    "*.attention.head_count_kv": 2,
    "*.attention.key_length": 16,
    "*.attention.layer_norm_rms_epsilon": 1e-6,
    "*.rope.freq_base": 10000.0,
}
GEMMA2 = {"*.attention.sliding_window": 8, "*.attn_logit_softcapping": 50.0, "*.final_logit_softcapping": 30.0}
PHI3 = {
    "*.attention.layer_norm_rms_epsilon": 1e-5,
    "*.rope.dimension_count": 16,
    "*.rope.scaling.original_context_length": 64,
}
GPT2_SIZES = {
    "*.context_length": 24,
    "*.embedding_length": 16,
    "*.block_count": 2,
    "*.feed_forward_length": 64,
    "*.attention.head_count": 2,
    "*.attention.layer_norm_epsilon": 1e-5,
}
# The architecture, how transformers builds it, and the values that the converter writes.
REFERENCES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "gemma": ("Gemma", {"head_dim": 16}, SIZES),
    "gemma2": ("Gemma2", {"head_dim": 16, "sliding_window": 8, "query_pre_attn_scalar": 16}, {**SIZES, **GEMMA2}),
    "gemma3": (
        "Gemma3",
        {"head_dim": 16, "sliding_window": 8, "query_pre_attn_scalar": 16, "num_hidden_layers": 7},
        {**SIZES, "*.block_count": 7, "*.attention.sliding_window": 8, "*.rope.freq_base": 1e6},
    ),
    "phi3": ("Phi3", {"hidden_size": 64, "pad_token_id": 0}, {**SIZES, **PHI3, "*.embedding_length": 64}),
    "gpt2": ("GPT2", {key: value for key, value in GPT2.items() if key != "model_type"}, GPT2_SIZES),
}


def published(case: str) -> Any:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    name, changes, _ = REFERENCES[case]
    if case != "gpt2":
        changes = {**{k: v for k, v in LLAMA.items() if k != "model_type"}, "num_hidden_layers": 4, **changes}
    config = getattr(transformers, f"{name}TextConfig" if name == "Gemma3" else f"{name}Config")(**changes)
    torch.manual_seed(1)  # transformers draws from the global generator
    model = getattr(transformers, "GPT2LMHeadModel" if name == "GPT2" else f"{name}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


@pytest.mark.parametrize("case", REFERENCES)
def test_other_architectures_are_read_as_published(tmp_path: Path, case: str) -> None:
    model = published(case)
    path = reference(model, case, REFERENCES[case][2], tmp_path / "a.gguf", rows=case == "gpt2")
    found, usage = load_gguf(path)
    assert torch.allclose(logits(found), logits(model), atol=2e-5)
    save_published(found, found.config, tmp_path / "folder", usage)  # and go out as a folder
    assert torch.equal(logits(load_published(tmp_path / "folder")[0]), logits(found))


def test_phi3s_factors_are_read(tmp_path: Path) -> None:
    short, long = [1.0 + i / 10 for i in range(8)], [2.0 + i for i in range(8)]
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": short, "long_factor": long}
    model = published("phi3")
    config = type(model.config)(**{**model.config.to_dict(), "rope_parameters": rope, "max_position_embeddings": 64})
    config.original_max_position_embeddings = 32
    longer = type(model)(config).eval()
    longer.load_state_dict(model.state_dict())
    values = {
        **REFERENCES["phi3"][2],
        "*.rope.scaling.original_context_length": 32,
        "*.rope.scaling.attn_factor": 1.0954451,
    }
    path = reference(longer, "phi3", values, tmp_path / "a.gguf")
    path = with_tensors(path, {"rope_factors_short.weight": short, "rope_factors_long.weight": long})
    assert torch.allclose(logits(load_gguf(path)[0]), logits(longer), atol=2e-5)


def with_tensors(path: Path, more: dict[str, list[float]]) -> Path:
    """The same file with more vectors."""
    file = GgufFile(path)
    writer = gguf.GGUFWriter(path.with_name("more.gguf"), file.values["general.architecture"])
    for key, value in file.values.items():
        if not key.startswith("general."):
            (writer.add_uint32 if isinstance(value, int) else writer.add_float32)(key, value)
    for name in file.names():
        writer.add_tensor(name, file.get(name).numpy().copy())
    for name, values in more.items():
        writer.add_tensor(name, np.asarray(values, np.float32))
    for write in (
        writer.write_header_to_file,
        writer.write_kv_data_to_file,
        writer.write_tensors_to_file,
        writer.close,
    ):
        write()
    return path.with_name("more.gguf")


def test_kinds_are_the_packages() -> None:
    for number, kind in KINDS.items():
        known = gguf.GGMLQuantizationType(number)
        assert (known.name, *gguf.GGML_QUANT_SIZES[known]) == (kind.name, kind.block, kind.size)


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "BF16"])
def test_quantised_numbers_stand_for_what_was_written(tmp_path: Path, kind: str) -> None:
    values = torch.randn(4, 64, generator=torch.Generator().manual_seed(1))
    number = gguf.GGMLQuantizationType[kind]
    blocks = gguf.quants.quantize(values.numpy(), number)
    found = GgufFile(one_tensor(tmp_path / "a.gguf", number, (4, 64), blocks.tobytes())).get("x")
    step = {"Q4": 0.5, "Q5": 0.25, "Q8": 0.03, "BF": 0.02}[kind[:2]]
    assert found.shape == values.shape
    assert float((found.float() - values).abs().max()) < step


@pytest.mark.parametrize("number", [number for number, kind in KINDS.items() if kind.dtype is None])
def test_every_kind_is_read(tmp_path: Path, number: int) -> None:
    """Random blocks, with finite scales where a kind has them in fp16."""
    block, size = KINDS[number].block, KINDS[number].size
    raw = np.random.default_rng(number).integers(0, 60, (3, 2 * size), dtype=np.uint8)
    found = GgufFile(one_tensor(tmp_path / "a.gguf", number, (3, 2 * block), raw.tobytes())).get("x")
    assert found.shape == (3, 2 * block)
    expected = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType(number))
    assert np.array_equal(found.numpy(), expected)
    assert len(np.unique(expected)) > 2


@pytest.mark.parametrize("kind", ["IQ1_S", "IQ1_M", "TQ1_0"])
def test_a_model_in_less_than_two_bits_opens(tmp_path: Path, kind: str) -> None:
    config = published_config(LLAMA, hidden_size=256, intermediate_size=512, head_dim=64, vocab_size=256)
    save_gguf(drawn(config), config, tmp_path / "whole.gguf")
    number, draws = gguf.GGMLQuantizationType[kind], np.random.default_rng(1)
    size = gguf.GGML_QUANT_SIZES[number][1]

    def small(data: np.ndarray) -> np.ndarray:
        return draws.integers(0, 60, (len(data), data.shape[1] // 256 * size), dtype=np.uint8)

    path = rewritten(tmp_path / "whole.gguf", lambda data: (small(data), number) if data.ndim == 2 else (data, None))
    state, file = load_gguf(path).model.state_dict(), GgufFile(path)
    assert torch.equal(state["stack.blocks.0.feed_forward.down.weight"], file.get("blk.0.ffn_down.weight"))


def test_mxfp4_by_its_definition(tmp_path: Path) -> None:
    """OCP MX: a power of two, and 32 numbers of 4 bits: sign, two bits of exponent, one of mantissa."""
    raw = np.random.default_rng(1).integers(0, 256, (2, 17), dtype=np.uint8)
    raw[:, 0] = (127, 130)
    found = GgufFile(one_tensor(tmp_path / "a.gguf", 39, (2, 32), raw.tobytes())).get("x").numpy()
    magnitudes = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    for block, row, scale in zip(raw, found, (1.0, 8.0), strict=True):
        codes = np.concatenate([block[1:] & 15, block[1:] >> 4])
        assert np.array_equal(row, scale * np.where(codes & 8, -1, 1) * magnitudes[codes & 7])


def test_a_model_in_several_files(tmp_path: Path) -> None:
    config = published_config(LLAMA)
    model = drawn(config)
    save_gguf(model, config, tmp_path / "whole.gguf")
    rewritten(tmp_path / "whole.gguf", tensors=4)
    parts = sorted(tmp_path.glob("p-*.gguf"))
    assert len(parts) > 2
    tensors, expected = load_gguf(parts[0]).model.state_dict(), load_gguf(tmp_path / "whole.gguf").model.state_dict()
    assert all(torch.equal(tensors[name], tensor) for name, tensor in expected.items())
    with pytest.raises(UserError, match="is not part 1 of its model"):
        GgufFile(parts[1])
    parts[0].rename(tmp_path / "renamed.gguf")
    with pytest.raises(UserError, match="its name does not end in -00001-of-N"):
        GgufFile(tmp_path / "renamed.gguf")
    (tmp_path / "renamed.gguf").rename(parts[0])
    parts[1].write_bytes(parts[2].read_bytes())
    with pytest.raises(UserError, match="is not part 2 of its model"):
        GgufFile(parts[0])
    parts[1].unlink()
    with pytest.raises(UserError, match=rf"{parts[1].name} is missing: {parts[0].name} is one of {len(parts)} files"):
        load_gguf(parts[0])


def test_a_scale_that_is_no_number_is_read_as_it_is(tmp_path: Path) -> None:
    """Numpy would warn, which is an error here and noise elsewhere."""
    raw = np.float16(np.inf).tobytes() + np.arange(32, dtype=np.int8).tobytes()
    found = GgufFile(one_tensor(tmp_path / "a.gguf", 8, (1, 32), raw)).get("x")
    assert found.isnan().sum() == 1
    assert found.isinf().sum() == 31


def refined(scales: np.ndarray, j: int) -> tuple[int, int]:
    """The j-th of eight pairs of 6 bits, scale and minimum, in 12 bytes."""
    if j < 4:
        return scales[j] & 63, scales[j + 4] & 63
    return (scales[j + 4] & 15) | (scales[j - 4] >> 6) << 4, (scales[j + 4] >> 4) | (scales[j] >> 6) << 4


@pytest.mark.parametrize("number", [12, 13])
def test_q4_k_and_q5_k_by_their_definition(tmp_path: Path, number: int) -> None:
    """256 numbers: a scale and a minimum in fp16, eight pairs that refine them, 4 or 5 bits each."""
    raw = np.random.default_rng(1).integers(0, 256, (3, KINDS[number].size), dtype=np.uint8)
    raw[:, :4] = np.array([0.02, 0.01], np.float16).view(np.uint8)
    found = GgufFile(one_tensor(tmp_path / "a.gguf", number, (3, 256), raw.tobytes())).get("x").numpy()
    d, m = (np.float32(np.float16(value)) for value in (0.02, 0.01))
    for block, row in zip(raw, found, strict=True):
        nibbles = block[-128:].reshape(4, 32)
        for j in range(8):
            scale, least = refined(block[4:16].astype(int), j)
            part = (nibbles[j // 2] >> 4 if j % 2 else nibbles[j // 2] & 15).astype(int)
            if number == 13:
                part = part + 16 * (block[16:48] >> j & 1)
            assert np.allclose(row[32 * j : 32 * j + 32], d * scale * part - m * least, atol=1e-5)


def test_q6_k_by_its_definition(tmp_path: Path) -> None:
    """256 numbers: 4 low bits each, 2 high bits each, sixteen 8-bit scales, and one in fp16."""
    raw = np.random.default_rng(1).integers(0, 256, (2, 210), dtype=np.uint8)
    raw[:, 208:] = np.array([0.01], np.float16).view(np.uint8)
    found = GgufFile(one_tensor(tmp_path / "a.gguf", 14, (2, 256), raw.tobytes())).get("x").numpy()
    for block, row in zip(raw.astype(int), found, strict=True):
        scales = block[192:208].astype(np.uint8).view(np.int8)
        for i in range(256):
            half, quarter, place = i // 128, i % 128 // 32, i % 32
            low = block[64 * half + 32 * (quarter % 2) + place] >> 4 * (quarter // 2) & 15
            high = block[128 + 32 * half + place] >> 2 * quarter & 3
            number = (low | high << 4) - 32
            assert np.isclose(row[i], np.float32(np.float16(0.01)) * scales[i // 16] * number, atol=1e-5)


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def header(tensors: int, values: list[bytes], version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, len(values)) + b"".join(values)


def described(name: str, shape: tuple[int, ...], number: int, offset: int) -> bytes:
    sizes = struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape))
    return text(name) + sizes + struct.pack("<IQ", number, offset)


def padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 32)


def one_tensor(path: Path, number: int, shape: tuple[int, ...], data: bytes) -> Path:
    path.write_bytes(padded(header(1, []) + described("x", shape, number, 0)) + data)
    return path


def test_unsound_files_are_refused(tmp_path: Path) -> None:
    sixteen = described("x", (16,), 0, 0)
    whole = padded(header(1, []) + sixteen) + b"\0" * 64
    twice = padded(header(2, []) + sixteen + described("x", (16,), 0, 64)) + b"\0" * 128
    over = padded(header(2, []) + sixteen + described("y", (16,), 0, 32)) + b"\0" * 128
    deep = struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 6 + struct.pack("<IQ", 0, 0)
    one = text("a") + struct.pack("<II", 4, 1)
    cases = {
        "not a GGUF file": b"PK\3\4 a pickle",
        "version 1 ": header(0, [], version=1),
        "version 50331648": header(0, [], version=3 << 24),
        "tensors cannot follow": header(1 << 60, []),
        "values cannot follow": b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 60),
        "bytes of a key cannot follow": header(0, [struct.pack("<Q", 1 << 62) + b"12345"]),
        "items of a cannot follow": header(0, [text("a") + struct.pack("<IIQ", 9, 0, 1 << 62)]),
        "unknown type 77": header(0, [text("a") + struct.pack("<II", 77, 0)]),
        "unknown type 9": header(0, [text("a") + deep]),
        "'a' occurs twice": header(0, [one, one]),
        "alignment": header(0, [text("general.alignment") + struct.pack("<II", 4, 48)]),
        "not UTF-8": header(0, [struct.pack("<Q", 1) + b"\xff" + struct.pack("<II", 4, 1)]),
        "'x' occurs twice": twice,
        "instead of 64": over,
        "ends at": whole[:-1],
        "9 dimensions": padded(header(1, []) + described("x", (1,) * 9, 0, 0)) + b"\0" * 64,
        "quantisation type 99": padded(header(1, []) + described("x", (16,), 99, 0)) + b"\0" * 64,
        "blocks of 32": padded(header(1, []) + described("x", (16,), 8, 0)) + b"\0" * 64,
        "does not consist": padded(header(1, []) + described("x", (1 << 40, 1 << 40), 0, 0)) + b"\0" * 64,
    }
    for message, data in cases.items():
        (tmp_path / "a.gguf").write_bytes(data)
        with pytest.raises(UserError, match=message):
            GgufFile(tmp_path / "a.gguf")
    (tmp_path / "a.gguf").write_bytes(whole)
    assert torch.equal(GgufFile(tmp_path / "a.gguf").get("x"), torch.zeros(16))


def test_what_cannot_be_said_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    config = published_config({**GPT2, "model_type": "openai-gpt"})
    with pytest.raises(UserError, match="not in a family that GGUF supports"):
        save_gguf(drawn(config), config, path)
    config = published_config(LLAMA, rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4})
    with pytest.raises(UserError, match="cannot store rotary positions scaled by DynamicScaling"):
        save_gguf(drawn(config), config, path)
    windows = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}
    config = published_config(LLAMA, model_type="qwen2", **windows)
    with pytest.raises(UserError, match="windows or positions of some layers"):
        save_gguf(drawn(config), config, path, usage=Usage("qwen2"))
    config = published_config(LLAMA)
    with pytest.raises(UserError, match="precision is 'Q3'"):
        save_gguf(drawn(config), config, path, precision="Q3")  # type: ignore[arg-type]
    assert not path.exists()


def test_settings_that_fit_no_model_are_refused(tmp_path: Path) -> None:
    config = published_config(LLAMA)
    model = drawn(config)
    assert isinstance(model, Transformer)
    save_gguf(model, config, tmp_path / "a.gguf")
    whole = (tmp_path / "a.gguf").read_bytes()

    def changed(key: str, old: int, new: int) -> bytes:
        start = text(key) + struct.pack("<I", 4)
        assert start + struct.pack("<I", old) in whole
        return whole.replace(start + struct.pack("<I", old), start + struct.pack("<I", new))

    cases = {
        "for the 21 tensors": changed("llama.block_count", 2, 1 << 30),
        "parameters, more than": changed("llama.feed_forward_length", 64, 1 << 30),
        "do not describe a valid llama": changed("llama.attention.head_count", 4, 0),
        "unknown architecture 'lllll'": whole.replace(text("llama"), text("lllll")),
        "lacks tensor": changed("llama.block_count", 2, 3),
        "unknown tensor": changed("llama.block_count", 2, 1),
    }
    for message, data in cases.items():
        (tmp_path / "b.gguf").write_bytes(data)
        with pytest.raises(UserError, match=message):
            load_gguf(tmp_path / "b.gguf")
