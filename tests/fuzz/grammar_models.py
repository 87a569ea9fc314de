"""Files that say what a model or a run is, of valid structure and hostile values: pure functions of a draw."""

from __future__ import annotations

import io
import json
import random
import struct
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

WHOLE = (
    0,
    1,
    2,
    3,
    4,
    7,
    8,
    16,
    32,
    64,
    255,
    1 << 10,
    1 << 16,
    1 << 20,
    (1 << 31) - 1,
    1 << 32,
    (1 << 63) - 1,
    1 << 64,
)
REAL = (0.0, -0.0, 1.0, -1.0, 0.5, 1e-9, 1e-300, 1e9, 1e300, float("inf"), float("nan"))
TEXTS = (
    "",
    " ",
    "x",
    "none",
    "default",
    "linear",
    "dynamic",
    "yarn",
    "longrope",
    "llama3",
    "gelu",
    "silu",
    "relu",
    "tanh",
)
TEXTS += (
    "full_attention",
    "sliding_attention",
    "float16",
    "float64",
    "\x1b[2J",
    "\u202e",
    "\ufdd4",
    "a\0b",
    "/etc/passwd",
)
TEXTS += ("../../a", "hf:someone/model", "x" * 5000, "LlamaForCausalLM", "BertForMaskedLM")
DTYPES = ("F64", "F32", "F16", "BF16", "F8_E4M3", "I64", "I32", "I16", "I8", "U64", "U8", "BOOL", "F4", "", "f32")
NAMES = ("a", "b", "", " ", "a.b", "\x1b]0;x\x07", "\u202e", "../a", "x" * 300, "__metadata__", "a\0", "\ufdd4")


def varied(value: Any, draw: random.Random, kinds: Mapping[str, Sequence[str]] | None = None) -> Any:
    """Another value of the same type, or now and then of another; containers keep most of what they hold. A "kind" is
    one of those that are `kinds` of the same sort.
    """
    if draw.random() < 0.03:
        return draw.choice((None, True, -1, 0.5, "x", [], {}, [None], {"a": 1}, *WHOLE))
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return draw.choice((*WHOLE, -value, value + 1, value * 2, value // 2, -1))
    if isinstance(value, float):
        return draw.choice((*REAL, value * 2, -value))
    if isinstance(value, str):
        near = next((sort for sort in (kinds or {}).values() if value in sort), TEXTS)
        return draw.choice((*near, *near, draw.choice(TEXTS)))
    if isinstance(value, dict) and value:
        return composed_object(value, draw, kinds)
    if isinstance(value, list) and value:
        return draw.choice((value[:-1], value * 2, value * 40, [varied(each, draw, kinds) for each in value]))
    return draw.choice((value, *WHOLE[:8], *REAL[:5], draw.choice(TEXTS), {}, []))


def composed_object(
    values: Mapping[str, Any], draw: random.Random, kinds: Mapping[str, Sequence[str]] | None = None
) -> Any:
    """One to four of the values, at any depth, are others."""
    found = dict(values)
    for name in draw.sample(sorted(found), min(len(found), draw.choice((1, 1, 2, 4)))):
        inner = found[name]
        deep = isinstance(inner, (dict, list)) and inner and draw.random() < 0.8
        if deep and isinstance(inner, list):
            at = draw.randrange(len(inner))
            found[name] = [*inner[:at], varied(inner[at], draw, kinds), *inner[at + 1 :]]
        else:
            found[name] = varied(inner, draw, kinds)
    return found


def _scaling(draw: random.Random) -> dict[str, Any]:
    name = draw.choice(("type", "rope_type"))
    factors = [draw.choice((1.0, 2.0, 0.0, *REAL)) for _ in range(draw.choice((0, 1, 8, 16)))]
    said = {"factor": draw.choice((2.0, 1, *REAL)), "original_max_position_embeddings": draw.choice(WHOLE)}
    said |= {"short_factor": factors, "long_factor": factors, "attention_factor": draw.choice((None, *REAL))}
    said |= {
        each: draw.choice(REAL) for each in ("low_freq_factor", "high_freq_factor", "beta_fast", "beta_slow", "mscale")
    }
    kept = {each: value for each, value in said.items() if draw.random() < 0.7}
    return {name: draw.choice(("linear", "dynamic", "yarn", "longrope", "llama3", "su", "default")), **kept}


def composed_config(seed: bytes, draw: random.Random) -> bytes:
    """A config.json: that of a family with other values, and with what published ones have beside."""
    found = composed_object(json.loads(seed), draw)
    count = draw.choice((0, 1, 2, 3, 300, 30_000 if draw.random() < 0.05 else 9))
    optional = {
        "rope_scaling": _scaling(draw),
        "rope_parameters": {"rope_theta": draw.choice(REAL), **_scaling(draw)},
        "id2label": {str(draw.choice((n, n, -n, n * 7))): draw.choice(TEXTS) for n in range(count)},
        "label2id": {draw.choice(TEXTS): draw.choice(WHOLE) for _ in range(count)},
        "layer_types": [draw.choice(("full_attention", "sliding_attention", "x", 3))] * draw.choice((0, 1, 2, 500)),
        "architectures": [draw.choice(TEXTS) for _ in range(draw.choice((0, 1, 2)))],
        "quantization_config": {"quant_method": draw.choice(("gptq", "awq", "bitsandbytes", "fp8", 3)), "bits": 4},
        "eos_token_id": draw.choice((None, 1, -1, [1, 2], [[1]], *WHOLE)),
        "problem_type": draw.choice(("regression", "multi_label_classification", "x")),
        "torch_dtype": draw.choice(TEXTS),
        "sliding_window": draw.choice((None, *WHOLE)),
        "head_dim": draw.choice(WHOLE),
        "partial_rotary_factor": draw.choice(REAL),
        "tie_word_embeddings": draw.choice((True, False, None, 1)),
    }
    return json.dumps({**found, **{name: value for name, value in optional.items() if draw.random() < 0.12}}).encode()


def composed_recipe(seed: bytes, draw: random.Random, kinds: Mapping[str, Sequence[str]]) -> bytes:
    """A recipe.json: a built-in one with other values, mostly in one of its parts, and parts of other kinds."""
    found = json.loads(seed)
    for part in draw.sample(sorted(found), draw.choice((1, 1, 2, 3))):
        inner = found[part]
        found[part] = composed_object(inner, draw, kinds) if isinstance(inner, dict) and inner else varied(inner, draw)
    return json.dumps(found).encode()


def composed_tensors(draw: random.Random) -> bytes:
    """A safetensors file: entries whose sizes mostly fit, one after the other, in any order, over each other."""
    header, end = {}, 0
    odd = draw.choice((0.0, 0.0, 0.1, 0.5))  # how many of its entries do not fit
    for _ in range(draw.choice((0, 1, 2, 3, 8, 200))):
        dtype = draw.choice(DTYPES if draw.random() < odd else DTYPES[:-3])
        shape = [draw.choice((0, 1, 2, 3, 5)) for _ in range(draw.choice((0, 1, 2, 3, 9)))]
        bits = next((int(digits) for digits in ("64", "32", "16", "8") if digits in dtype), 8)
        size = bits // 8
        for side in shape:
            size *= side
        start = draw.choice((0, end + 1, 1 << 40)) if draw.random() < odd / 4 else end
        entry: dict[str, Any] = {"dtype": dtype, "shape": shape, "data_offsets": [start, start + size]}
        if draw.random() < odd / 4:
            entry = composed_object(entry, draw)
        header[draw.choice(NAMES) + draw.choice(("", str(len(header))))] = entry
        end = max(end, start + size if start < 1 << 30 else 0)
    if draw.random() < 0.4:
        header["__metadata__"] = draw.choice(({"format": "pt"}, {}, {"a": draw.choice(TEXTS)}, {"a": 1}, [], None))
    text = json.dumps(dict(draw.sample(sorted(header.items(), key=lambda item: item[0]), len(header)))).encode()
    text += b" " * draw.choice((0, 0, -(len(text) + 8) % 64, 7))
    more, less = (draw.choice((1, -1)) if draw.random() < odd / 8 else 0 for _ in range(2))
    return max(0, len(text) + more).to_bytes(8, "little") + text + bytes(max(0, end + less))


PICKLED = (  # instructions with their arguments; those of files that torch.save writes come first
    *(b"}", b")", b"]", b"(", b"t", b"\x85", b"\x86", b"\x87", b"Q", b"R", b"u", b"s", b"q\0", b"h\0", b"\x89", b"b"),
    *(b"K\0", b"K\2", b"K\3", b"M\0\1", b"J\xff\xff\xff\xff", b"\x8a\2\0\1", b"X\1\0\0\0a", b"X\1\0\0\x000", b"N"),
    *(b".", b"X\7\0\0\0storage", b"ctorch\nFloatStorage\n", b"ctorch._utils\n_rebuild_tensor_v2\n", b"X\3\0\0\0cpu"),
    *(b"ccollections\nOrderedDict\n", b"ctorch._utils\n_rebuild_parameter\n", b"G" + bytes(8), b"\x94", b"e", b"a"),
    *(b"cos\nsystem\n", b"\x93", b"i__main__\nX\n", b"o", b"\x81", b"\x92", b"\x82\1", b"P0\n", b"0", b"1"),
    *(b"2", b"I1\n", b"\x8b\xff\xff\xff\x7f", b"B\xff\xff\xff\xff", b"\x8d" + b"\xff" * 8, b"\x8f", b"\x90"),
    *(b"j\xff\xff\xff\x7f", b"\x97"),
)  # fmt: skip
_TENSOR = (
    b"ctorch._utils\n_rebuild_tensor_v2\n((X\7\0\0\0storageq\1ctorch\nFloatStorage\nX\1\0\0\x000X\3\0\0\0cpuK\x06tQ"
    b"%s\x89ccollections\nOrderedDict\n)RtR"
)


def composed_torch(draw: random.Random) -> bytes:
    """A zip archive of torch.save: tensors of any shape in a mapping, between any instructions."""
    program = [b"\x80\2", b"}", b"("]
    for number in range(draw.choice((1, 1, 2, 5))):
        numbers = [b"K" + bytes([draw.choice((0, 1, 2, 3, 6, 255))]) for _ in range(5)]
        shape = numbers[0] + numbers[1] + b"\x86" + numbers[2] + numbers[3] + b"\x86"
        offset = draw.choice((b"K\0", b"K\0", numbers[4]))
        tensor = _TENSOR % (offset + draw.choice((b"K\2K\3\x86K\3K\1\x86", shape)))
        program += [b"X\1\0\0\0" + bytes([97 + number]), tensor]
    program += [b"u", b"."]
    for _ in range(draw.choice((0, 1, 1, 3, 30))):
        program.insert(draw.randrange(2, len(program) + 1), draw.choice(PICKLED))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", b"".join(program))
        place = draw.choice(("archive/data/0", "archive/data/0", "archive/data/1"))
        archive.writestr(place, bytes(draw.choice((24, 24, 0))))
        if draw.random() < 0.2:
            archive.writestr("archive/byteorder", draw.choice(("little", "big", "")))
    return buffer.getvalue()


def _text(value: str) -> bytes:
    data = value.encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(data)) + data


_FORMS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


def _gguf_value(value: Any, draw: random.Random) -> bytes:
    """A typed value; numbers in a type that holds them, mostly that which llama.cpp writes."""
    if isinstance(value, str):
        return struct.pack("<I", 8) + _text(value)
    if isinstance(value, list):
        kind = 8 if any(isinstance(each, str) for each in value) else draw.choice((5, 6, 4, 10))
        items = [
            _gguf_value(each if kind != 8 else str(each), draw) if kind == 8 else _number(kind, each) for each in value
        ]
        held = [item[4:] for item in items] if kind == 8 else items
        count = len(value) if draw.random() < 0.99 else draw.choice(WHOLE[:-1])
        return struct.pack("<IIQ", 9, kind, count) + b"".join(held)
    kind = 7 if isinstance(value, bool) else 6 if isinstance(value, float) else 4
    if draw.random() < 0.01:
        kind = draw.choice(tuple(_FORMS))
    return struct.pack("<I", kind) + _number(kind, value)


def _number(kind: int, value: Any) -> bytes:
    form = _FORMS[kind]
    if not isinstance(value, (int, float)):
        value = 0
    if form in "fd":
        return struct.pack(f"<{form}", max(-3e38, min(3e38, float(value))))
    if isinstance(value, float):
        value = int(value) if abs(value) < 1e18 else 0
    size = struct.calcsize(form) * 8
    return struct.pack(f"<{form}", value) if form == "?" else (int(value) % (1 << size)).to_bytes(size // 8, "little")


_TOKENS = (
    "<unk>",
    "<s>",
    "</s>",
    "a",
    "b",
    "ab",
    "\u2581",
    "\u2581a",
    "<0x41>",
    "\u0120",
    "\u0120a",
    "",
    "x" * 300,
    "\ufdd4",
)


def composed_gguf(draw: random.Random) -> bytes:
    """A GGUF file of a small model, whose values, tokens and tensors are mostly those that it should have."""
    name = draw.choice(("llama",) * 8 + ("qwen2", "qwen3", "gemma", "x"))
    strange = draw.choice((0.0, 0.0, 0.2))
    tokens = [
        draw.choice(_TOKENS) if draw.random() < strange else f"t{n}" for n in range(draw.choice((3, 12, 12, 12, 300)))
    ]
    count = len(tokens)
    values: dict[str, Any] = {
        "general.architecture": name,
        "general.alignment": 32,
        **{f"{name}.{each}": 1 for each in ("block_count", "attention.head_count_kv")},
        f"{name}.embedding_length": 32,
        f"{name}.feed_forward_length": 32,
        f"{name}.attention.head_count": 2,
        f"{name}.context_length": 16,
        f"{name}.attention.layer_norm_rms_epsilon": 1e-6,
        f"{name}.rope.freq_base": 1e4,
        f"{name}.vocab_size": count,
        "tokenizer.ggml.model": draw.choice(("llama", "llama", "gpt2", "gpt2", "gpt2", "bert")),
        "tokenizer.ggml.pre": draw.choice(("default", "default", "qwen2", "llama-bpe", "x")),
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [-float(n) for n in range(count)],
        "tokenizer.ggml.token_type": [draw.choice((1, 1, 1, 1, 2, 3, 4, 6)) for _ in range(count)],
        "tokenizer.ggml.merges": draw.choice(([], ["a b"], ["a b", "ab a"], ["ab"], ["a  b"], [" "])),
        **{
            f"tokenizer.ggml.{each}_token_id": draw.choice((0, 1, 2, *WHOLE))
            for each in ("bos", "eos", "unknown", "padding")
        },
        "tokenizer.chat_template": draw.choice(("{{ messages }}", "{% for", "x" * 100_000, "\x1b")),
    }
    kept = {key: value for key, value in values.items() if draw.random() < 0.995}
    kept = composed_object(kept, draw) if draw.random() < 0.5 else kept
    sizes = {"token_embd.weight": (32, count), "output_norm.weight": (32,), "blk.0.attn_q.weight": (32, 32)}
    sizes |= {f"blk.0.{each}.weight": (32, 16) for each in ("attn_k", "attn_v")}
    sizes |= {f"blk.0.{each}.weight": (32, 32) for each in ("attn_output", "ffn_gate", "ffn_up", "ffn_down")}
    sizes |= {f"blk.0.{each}.weight": (32,) for each in ("attn_norm", "ffn_norm")}
    described, end, odd = b"", 0, draw.choice((0.0, 0.0, 0.0, 0.02, 0.2))
    usual = draw.choice((0, 0, 1, 8, 30))
    for key, shape in sizes.items():
        kind = draw.choice((0, 1, 8, 2, 30, 14, 99)) if draw.random() < odd else usual
        side = shape if draw.random() > odd else tuple(draw.choice((0, 1, *WHOLE)) % (1 << 64) for _ in shape)
        place = end if draw.random() > odd else draw.choice((0, 1, *WHOLE[:-1]))
        described += _text(key if draw.random() > odd else draw.choice(NAMES))
        described += struct.pack(f"<I{len(side)}QIQ", len(side), *side, kind, place)
        numbers = 1
        for each in shape:
            numbers *= each
        size = numbers * 34 // 32 if kind == 8 else numbers * {0: 4}.get(kind, 2)
        end += -(-size // 32) * 32
    pairs = b"".join(
        _text(key) + _gguf_value(value, draw) for key, value in kept.items() if not isinstance(value, dict)
    )
    listed = sum(not isinstance(value, dict) for value in kept.values())
    head = b"GGUF" + struct.pack("<IQQ", draw.choice((3, 3, 2)), len(sizes), listed) + pairs + described
    return head + bytes(-len(head) % 32 + end)
