"""Models and runs that are made to do harm: `CASES`, for every format of weights and every file beside them.

Each must end within 10 s of a core and 1 GB, in one line, with exit 0 or 2.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from headway.codecs import train_codec
from headway.config import dumps
from headway.domains import recipe
from headway.formats.families import find_family
from headway.formats.published import save_published
from headway.formats.settings import Settings
from headway.nn.models import build
from hostile_case import Case

SHOW = ("show", "{file}")
GENERATE = ("generate", "{file}", "--prompt", "ab", "--max-new-tokens", "2", "--backend", "torch")
VERIFY = ("verify", "{file}")
READING = (SHOW, GENERATE)

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "vocab_size": 5,
    "max_position_embeddings": 64,
}
_DEEP = 200_000  # brackets in brackets
_MANY = 300_000  # entries

Edit = Callable[[Path], object]


def _llama(place: Path) -> Path:
    """A small whole model in the published format, with a tokenizer."""
    family = find_family(Settings(LLAMA, "a case"))
    config = family.read(Settings({**family.defaults, **LLAMA}, "a case"), ())
    folder = place / "model"
    save_published(build(config, 1), config, folder)
    train_codec("char", iter(["abc"])).save(folder)
    return folder


def _edited(edit: Edit, place: Path) -> Path:
    folder = _llama(place)
    edit(folder)
    return folder


def _model(name: str, edit: Edit, *commands: tuple[str, ...]) -> Case:
    """A whole model of which one thing was changed."""
    return Case(name, partial(_edited, edit), commands or READING)


# Weights: the header of safetensors.


def _header(change: Callable[[dict[str, Any]], Any], folder: Path, data: bytes | None = None) -> None:
    """Write the header that `change` makes of the file's own: a mapping, or bytes."""
    path = folder / "model.safetensors"
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    found = change(header)
    text = found if isinstance(found, bytes) else json.dumps(header if found is None else found).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + (content[8 + size :] if data is None else data))


def _first(header: dict[str, Any], **values: Any) -> None:
    header[next(name for name in header if name != "__metadata__")].update(values)


def _weights(name: str, change: Callable[[dict[str, Any]], Any], data: bytes | None = None) -> Case:
    return _model(f"safetensors: {name}", partial(_header, change, data=data))


def _raw(content: bytes, name: str, folder: Path, size: int = 0) -> None:
    """Replace a file; `size` makes it longer by a hole."""
    path = folder / name
    path.unlink(missing_ok=True)
    path.write_bytes(content)
    if size:
        os.truncate(path, size)


def _file(name: str, content: bytes, size: int = 0) -> Case:
    return _model(f"safetensors: {name}", partial(_raw, content, "model.safetensors", size=size))


def _empties(header: dict[str, Any]) -> None:
    header.update({f"x{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(_MANY)})


def _swapped(header: dict[str, Any]) -> None:
    one, two = [name for name in header if name != "__metadata__"][:2]
    header[two]["data_offsets"] = header[one]["data_offsets"]


SAFETENSORS = [
    _file("nothing", b""),
    _file("seven bytes", b"\0" * 7),
    _file("header of 2^63", struct.pack("<Q", 1 << 63) + b"{}"),
    _file("header of 2^64 - 1", struct.pack("<Q", (1 << 64) - 1) + b"{}"),
    _file("header of 99 MB of zeros", struct.pack("<Q", 99_000_000), 100_000_000),
    _file("a hole of a terabyte", struct.pack("<Q", 2) + b"{}", 1 << 40),
    _file("brackets", struct.pack("<Q", _DEEP) + b"[" * _DEEP),
    _weights("a name twice", lambda _: b'{"a": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}, "a": 1}'),
    _weights("metadata of numbers", lambda header: header.update(__metadata__={"a": 1})),
    _weights("metadata that is a list", lambda header: header.update(__metadata__=[["a", "b"]])),
    _weights("two tensors in one place", _swapped),
    _weights("offsets below zero", lambda header: _first(header, data_offsets=[-8, 0])),
    _weights("an end before its start", lambda header: _first(header, data_offsets=[64, 0])),
    _weights("a shape of 2^62 x 4", lambda header: _first(header, shape=[1 << 62, 4])),
    _weights("a shape of 100,000 dimensions", lambda header: _first(header, shape=[1] * 100_000)),
    _weights("a shape of nothing times 2^62", lambda header: _first(header, shape=[0, 1 << 62], data_offsets=[0, 0])),
    _weights("a shape of truths", lambda header: _first(header, shape=[True, True])),
    _weights("a shape of fractions", lambda header: _first(header, shape=[1e308])),
    _weights("a type that is a list", lambda header: _first(header, dtype=["F32"])),
    _weights("a type of 1 MB", lambda header: _first(header, dtype="F" * 1_000_000)),
    _weights("a number of 10,000 digits", lambda _: b'{"a": ' + b"9" * 10_000 + b"}"),
    _weights("300,000 tensors of nothing", _empties),
    _weights(
        "half a surrogate as a name", lambda header: header.update({"\ud800\n\x1b[2J": next(iter(header.values()))})
    ),
    _weights("a name of 5 MB", lambda header: header.update({"n" * 5_000_000: {}})),
    _weights("weights that are no numbers", lambda header: None, b"\xff" * 63_488),
    _weights("no weights at all", lambda header: {}, b""),
    _model("safetensors: a pipe", lambda folder: _pipe(folder / "model.safetensors")),
    _model("safetensors: a link to itself", lambda folder: _loop(folder / "model.safetensors")),
    _model("safetensors: a link to /dev/zero", lambda folder: _link(folder / "model.safetensors", "/dev/zero")),
    _model("safetensors: a folder", lambda folder: _folder(folder / "model.safetensors")),
]


def _pipe(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def _link(path: Path, target: str) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to(target)


def _loop(path: Path) -> None:
    _link(path, path.name)


def _folder(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.mkdir()


# Indices of shards.


def _index(content: Any, folder: Path) -> None:
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    os.replace(folder / "model.safetensors", folder / "model-00001-of-00001.safetensors")
    (folder / "model.safetensors.index.json").write_bytes(text)


def _indexed(name: str, content: Any, after: Edit = lambda folder: None) -> Case:
    def edit(folder: Path) -> None:
        _index(content, folder)
        after(folder)

    return _model(f"index: {name}", edit)


_SHARD = "model-00001-of-00001.safetensors"
INDICES = [
    _indexed("a shard that is missing", {"weight_map": {"a": "model-2.safetensors"}}),
    _indexed("a shard outside", {"weight_map": {"a": "../../../../etc/passwd"}}),
    _indexed("a shard at an absolute path", {"weight_map": {"a": "/etc/passwd"}}),
    _indexed("a list", []),
    _indexed("no map", {"weight_map": None}),
    _indexed("a map of numbers", {"weight_map": {"a": 7}}),
    _indexed("a map of lists", {"weight_map": {"a": ["x"]}}),
    _indexed("itself", {"weight_map": {"a": "model.safetensors.index.json"}}),
    _indexed("an empty name", {"weight_map": {"a": ""}}),
    _indexed("a name of 5,000 characters", {"weight_map": {"a": "x" * 5000}}),
    _indexed("a name with a zero", {"weight_map": {"a": "x\0y"}}),
    _indexed("300,000 shards", {"weight_map": {f"a{i}": f"s{i}.safetensors" for i in range(_MANY)}}),
    _indexed("a tensor that the shard has not", {"weight_map": {"a": _SHARD}}),
    _indexed("a shard that is a pipe", {"weight_map": {"a": _SHARD}}, lambda folder: _pipe(folder / _SHARD)),
    _indexed("brackets", b"[" * _DEEP),
]


# config.json and what else says how a published model is used.


def _settings(values: Mapping[str, Any], folder: Path, name: str = "config.json") -> None:
    path = folder / name
    known = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({**known, **values}))


def _config(name: str, *commands: tuple[str, ...], **values: Any) -> Case:
    return _model(f"config: {name}", partial(_settings, values), *commands)


def _text(name: str, content: bytes, file: str = "config.json", size: int = 0) -> Case:
    return _model(f"{file}: {name}", partial(_raw, content, file, size=size))


CONFIGS = [
    _config("10^9 layers", num_hidden_layers=10**9),
    _config("a width of 2^40", hidden_size=1 << 40),
    _config("a width of 10^30", hidden_size=10**30),
    _config("heads below zero", num_attention_heads=-4),
    _config("no heads", num_attention_heads=0),
    _config("more key heads than heads", num_key_value_heads=3),
    _config("10^12 symbols", vocab_size=10**12),
    _config("an epsilon that is no number", rms_norm_eps=float("nan")),
    _config("infinite angles", rope_theta=float("inf")),
    _config("angles of none", rope_theta=0),
    _config("counts as texts", num_hidden_layers="2"),
    _config("counts as truths", num_hidden_layers=True),
    _config("a kind that is a list", model_type=["llama"]),
    _config("a kind of 1 MB", model_type="l" * 1_000_000),
    _config("architectures that are numbers", architectures=[7]),
    _config("a context of 10^15", max_position_embeddings=10**15),
    _config("a million kinds of layers", layer_types=["full_attention"] * 1_000_000),
    _config("heads of 10^9 features", head_dim=10**9),
    _config("300,000 ends", eos_token_id=list(range(_MANY))),
    _config("an end below zero", eos_token_id=-1),
    _config("a begin that there is not", bos_token_id=10**9),
    _config("a scaling of angles by lists", rope_scaling={"rope_type": "yarn", "factor": [1] * 1000}),
    _config("a scaling of angles by nothing", rope_scaling={"rope_type": "linear", "factor": 0}),
    _config("a scaling of 10^300", rope_scaling={"rope_type": "dynamic", "factor": 1e300}),
    _config("a window below zero", model_type="mistral", sliding_window=-1),
    _config("a million experts", model_type="mixtral", num_local_experts=10**6, num_experts_per_tok=2),
    _config("more experts chosen than there are", model_type="mixtral", num_local_experts=2, num_experts_per_tok=3),
    _config("code to run", auto_map={"AutoModelForCausalLM": "evil.Model"}, trust_remote_code=True),
    _config("an activation of another name", hidden_act="__import__('os')"),
    _config("300,000 labels", id2label={str(i): f"l{i}" for i in range(_MANY)}),
    _config("labels without numbers", architectures=["LlamaForSequenceClassification"], id2label={"x": "y"}),
    _config("a vision tower of 10^9 layers", model_type="clip", vision_config={"num_hidden_layers": 10**9}),
    _config("patches of nothing", model_type="vit", patch_size=0, image_size=224, num_channels=3),
    _config("images of 10^9 pixels", model_type="vit", patch_size=1, image_size=10**9, num_channels=3),
    _text("nothing", b""),
    _text("brackets", b"[" * _DEEP),
    _text("braces", b'{"a":' * _DEEP),
    _text("a list", b"[1]"),
    _text("a number of 5,000 digits", b'{"model_type": "llama", "hidden_size": ' + b"9" * 5000 + b"}"),
    _text("letters of Latin-1", b'{"model_type": "\xe9"}'),
    _text("100 MB of nothing", b'{"model_type": "llama"}', size=100_000_000),
    _model("config: a pipe", lambda folder: _pipe(folder / "config.json")),
    _model("config: a folder", lambda folder: _folder(folder / "config.json")),
    _text("a list", b"[]", "generation_config.json"),
    _text("suppressed symbols that are none", b'{"suppress_tokens": [-5, 1e99, "x"]}', "generation_config.json"),
    _text("brackets", b"[" * _DEEP, "generation_config.json"),
    _model("generation_config.json: a pipe", lambda folder: _pipe(folder / "generation_config.json")),
    _text("a list", b"[]", "preprocessor_config.json"),
    _text("a module outside", b'[{"idx": 1, "type": "os.system", "path": "../../.."}]', "modules.json"),
    _text("brackets", b"[" * _DEEP, "modules.json"),
]


# GGUF.

_U32, _F32, _TEXT, _ARRAY, _U64 = 4, 6, 8, 9, 10


def _said(text: str | bytes) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw


def _value(key: str, kind: int, content: bytes) -> bytes:
    return _said(key) + struct.pack("<I", kind) + content


def _number(key: str, value: int) -> bytes:
    return _value(key, _U32, struct.pack("<I", value))


def _array(key: str, kind: int, count: int, content: bytes) -> bytes:
    return _value(key, _ARRAY, struct.pack("<IQ", kind, count) + content)


def _tensor(name: str, shape: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    return _said(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def _gguf(
    values: Sequence[bytes], tensors: Sequence[bytes], counts: tuple[int, int] | None, data: int, place: Path
) -> Path:
    path = place / "model.gguf"
    said, held = counts or (len(tensors), len(values))
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, said, held) + b"".join([*values, *tensors]) + b"\0" * data)
    return path


_LLAMA = [
    _value("general.architecture", _TEXT, _said("llama")),
    _number("llama.block_count", 1),
    _number("llama.embedding_length", 32),
    _number("llama.feed_forward_length", 64),
    _number("llama.attention.head_count", 4),
    _number("llama.context_length", 64),
    _value("llama.attention.layer_norm_rms_epsilon", _F32, struct.pack("<f", 1e-5)),
]


def _header_of(
    name: str, values: list[bytes], tensors: Sequence[bytes] = (), counts: tuple[int, int] | None = None, data: int = 0
) -> Case:
    return Case(f"gguf: {name}", partial(_gguf, values, tensors, counts, data), READING)


def _nested(depth: int) -> bytes:
    inner = struct.pack("<IQ", _U32, 0)
    for _ in range(depth):
        inner = struct.pack("<IQ", _ARRAY, 1) + inner
    return _value("deep", _ARRAY, inner)


def _bytes(name: str, content: bytes, file: str, *commands: tuple[str, ...]) -> Case:
    def make(place: Path) -> Path:
        (place / file).write_bytes(content)
        return place / file

    return Case(name, make, commands or READING)


def _special(make: Edit, file: str, place: Path) -> Path:
    make(place / file)
    return place / file


_WORDS = [_said(word) for word in ("<unk>", "<s>", "</s>", "a", "b")]
_TOKENS = _array("tokenizer.ggml.tokens", _TEXT, 5, b"".join(_WORDS))
_PIECES = _value("tokenizer.ggml.model", _TEXT, _said("llama"))
GGUF = [
    _bytes("gguf: nothing", b"", "a.gguf"),
    _bytes("gguf: the magic alone", b"GGUF", "a.gguf"),
    _bytes("gguf: version 99", b"GGUF" + struct.pack("<IQQ", 99, 0, 0), "a.gguf"),
    Case("gguf: a pipe", partial(_special, _pipe, "a.gguf"), READING),
    Case("gguf: a link to itself", partial(_special, _loop, "a.gguf"), READING),
    Case("gguf: a link to /dev/zero", partial(_special, lambda path: _link(path, "/dev/zero"), "a.gguf"), READING),
    _header_of("2^63 values", [], counts=(0, 1 << 63)),
    _header_of("2^40 tensors", [], counts=(1 << 40, 0)),
    _header_of("a text of 2^63 bytes", [_said("k") + struct.pack("<IQ", _TEXT, 1 << 63)]),
    _header_of("an array of 2^40", [_array("k", _U32, 1 << 40, b"")]),
    _header_of("an array of 2^61 truths", [_array("k", 7, 1 << 61, b"")]),
    _header_of("arrays in arrays, 100,000 deep", [_nested(100_000)]),
    _header_of("arrays in arrays, four deep", [*_LLAMA, _nested(3)]),
    _header_of("500,000 empty arrays", [_array("k", _ARRAY, 500_000, struct.pack("<IQ", _U32, 0) * 500_000)]),
    _header_of("a type of value that there is not", [_value("k", 77, b"")]),
    _header_of("a key that is no text", [_said(b"\xff\xfe") + struct.pack("<II", _U32, 1)]),
    _header_of("a key twice", [_number("k", 1), _number("k", 1)]),
    _header_of("an alignment of nothing", [*_LLAMA, _number("general.alignment", 0)]),
    _header_of("an alignment of 2^31", [*_LLAMA, _number("general.alignment", 1 << 31)]),
    _header_of("an alignment that is a text", [*_LLAMA, _value("general.alignment", _TEXT, _said("x"))]),
    _header_of("a tensor of 2^31 dimensions", _LLAMA, [_said("t") + struct.pack("<I", 1 << 31)]),
    _header_of("a tensor of 2^63 x 2^63", _LLAMA, [_tensor("t", (1 << 63, 1 << 63))]),
    _header_of("a tensor at 2^63", _LLAMA, [_tensor("t", (1,), offset=1 << 63)]),
    _header_of("a tensor of a type that there is not", _LLAMA, [_tensor("t", (32,), 200)]),
    _header_of("a tensor of half a block", _LLAMA, [_tensor("t", (31,), 8)]),
    _header_of("a tensor of nothing", _LLAMA, [_tensor("t", (0, 1 << 40))]),
    _header_of("one tensor twice", _LLAMA, [_tensor("t", (0,)), _tensor("t", (0,))]),
    _header_of("no tensors", _LLAMA),
    _header_of("10^9 layers", [*_LLAMA[:1], _number("llama.block_count", 10**9), *_LLAMA[2:]]),
    _header_of("layers that are a text", [*_LLAMA[:1], _value("llama.block_count", _TEXT, _said("1")), *_LLAMA[2:]]),
    _header_of("a width of 2^32 - 1", [*_LLAMA[:2], _number("llama.embedding_length", 2**32 - 1), *_LLAMA[3:]]),
    _header_of("no heads", [*_LLAMA[:4], _number("llama.attention.head_count", 0), *_LLAMA[5:]]),
    _header_of("an architecture that is a number", [_number("general.architecture", 1)]),
    _header_of("an architecture of 1 MB", [_value("general.architecture", _TEXT, _said("x" * 1_000_000))]),
    _header_of("symbols that are numbers", [*_LLAMA, _array("tokenizer.ggml.tokens", _U32, 2, b"\0" * 8)]),
    _header_of("a kind of tokenizer that there is not", [*_LLAMA, _TOKENS, _number("tokenizer.ggml.model", 3)]),
    _header_of("no scores", [*_LLAMA, _TOKENS, _PIECES]),
    _header_of(
        "an end that there is not", [*_LLAMA, _TOKENS, _PIECES, _number("tokenizer.ggml.eos_token_id", 2**32 - 1)]
    ),
    _header_of("a chat template of 16 MB", [*_LLAMA, _value("tokenizer.chat_template", _TEXT, _said("{" * (1 << 24)))]),
]


# llama2.c's binaries, CTranslate2's, ONNX, and other names.


def _ints(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}i", *values)


def _variables(count: int, *parts: bytes) -> bytes:
    name = b"WhisperSpec\0"
    head = struct.pack("<I", 6) + struct.pack("<H", len(name)) + name + struct.pack("<I", 3)
    return head + struct.pack("<I", count) + b"".join(parts)


def _variable(name: str, shape: tuple[int, ...], kind: int, size: int, data: bytes = b"") -> bytes:
    raw = name.encode() + b"\0"
    said = struct.pack("<H", len(raw)) + raw + struct.pack(f"<B{len(shape)}I", len(shape), *shape)
    return said + struct.pack("<BI", kind, size) + data


def _translating(name: str, content: bytes) -> Case:
    def make(place: Path) -> Path:
        folder = place / "ct2"
        folder.mkdir()
        (folder / "model.bin").write_bytes(content)
        return folder

    return Case(f"ctranslate2: {name}", make, READING)


BINARIES = [
    _bytes("llama2c: nothing", b"", "a.bin"),
    _bytes("llama2c: zeros", b"\0" * 28, "a.bin"),
    _bytes("llama2c: sizes of 2^31 - 1", _ints(*[2**31 - 1] * 7), "a.bin"),
    _bytes("llama2c: 10,000 layers", _ints(8, 8, 10_000, 2, 2, 3, 8), "a.bin"),
    _bytes("llama2c: a width below zero", _ints(-8, 8, 1, 2, 2, 3, 8), "a.bin"),
    _bytes("llama2c: symbols of -2^31", _ints(8, 8, 1, 2, 2, -(2**31), 8), "a.bin"),
    _bytes("llama2c: a context of 2^31 - 1", _ints(8, 8, 1, 2, 2, 3, 2**31 - 1), "a.bin"),
    _bytes("llama2c: version 77", _ints(0x616B3432, 77) + b"\0" * 300, "a.bin"),
    _bytes("llama2c: a pickle", b"\x80\x04cos\nsystem\n(S'true'\ntR.", "a.bin"),
    Case("llama2c: a pipe", partial(_special, _pipe, "a.bin"), READING),
    _translating("nothing", b""),
    _translating("zeros", b"\0" * 64),
    _translating("2^32 - 1 variables", _variables(2**32 - 1)),
    _translating("a name without its end", struct.pack("<IH", 6, 65535) + b"x"),
    _translating("255 dimensions", _variables(1, _variable("a", (1,) * 255, 0, 4, b"\0" * 4))),
    _translating("a shape of 2^32 - 1 cubed", _variables(1, _variable("a", (2**32 - 1,) * 3, 0, 4))),
    _translating("a type that there is not", _variables(1, _variable("a", (1,), 99, 1, b"\0"))),
    _translating("a size beyond the file", _variables(1, _variable("a", (1,), 0, 2**32 - 1))),
    _translating(
        "100,000 variables of nothing", _variables(100_000, *(_variable(f"v{i}", (0,), 0, 0) for i in range(100_000)))
    ),
    _bytes("onnx: a graph", b"\x08\x07\x12\x07pytorch" + b"\xff" * 64, "a.onnx"),
    _bytes("pickle: a checkpoint of torch", b"PK\x03\x04" + b"\0" * 64, "pytorch_model.bin"),
    Case("folder: a loop of links", lambda place: _special(_loop, "model", place), (*READING, VERIFY)),
    Case("folder: nothing", lambda place: _special(_folder, "model", place), (*READING, VERIFY)),
    Case("path: a pipe", partial(_special, _pipe, "model"), (*READING, VERIFY)),
    Case("path: 5,000 characters", lambda place: place / ("x" * 5000), (*READING, VERIFY)),
    Case("path: nobody's home", lambda place: Path("~nobody-here/model"), (*READING, VERIFY)),
]


# Runs and folders of our own.


def _run(place: Path) -> Path:
    """A run of which only what using it needs is there."""
    folder = place / "run"
    folder.mkdir()
    found = recipe("shakespeare")
    (folder / "recipe.json").write_text(dumps(found))
    (folder / "run.json").write_text(json.dumps({"format": 1, "status": "finished", "scores": {}}))
    config = _said_config()
    _safetensors(folder / "model.safetensors", {"format": "headway", "version": "1", "config": config})
    return folder


def _said_config() -> str:
    return dumps(recipe("shakespeare").model)


def _safetensors(path: Path, metadata: Mapping[str, str]) -> None:
    text = json.dumps({"__metadata__": dict(metadata)}).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text)


def _ours(name: str, edit: Edit, *commands: tuple[str, ...]) -> Case:
    def make(place: Path) -> Path:
        folder = _run(place)
        edit(folder)
        return folder

    return Case(f"run: {name}", make, commands or (SHOW, GENERATE, VERIFY))


def _changed(file: str, change: Callable[[Any], Any], folder: Path) -> None:
    path = folder / file
    data = json.loads(path.read_text())
    found = change(data)
    path.write_text(json.dumps(data if found is None else found))


def _said_in(file: str, **values: Any) -> Edit:
    return partial(_changed, file, lambda data: data.update(values))


def _within(part: str, **values: Any) -> Edit:
    return partial(_changed, "recipe.json", lambda data: data[part].update(values))


def _heading(change: Callable[[Any], Any], folder: Path) -> None:
    config = json.loads(_said_config())
    found = change(config)
    said = json.dumps(config if found is None else found)
    _safetensors(folder / "model.safetensors", {"format": "headway", "version": "1", "config": said})


def _blocks(config: Any) -> None:
    config["stack"]["blocks"] = config["stack"]["blocks"][:1] * 50_000


def _adapter(values: Any, tensors: Edit | None, place: Path) -> Path:
    folder = place / "adapter"
    folder.mkdir()
    text = values if isinstance(values, bytes) else json.dumps(values).encode()
    (folder / "adapter_config.json").write_bytes(text)
    (tensors or (lambda path: _safetensors(path, {})))(folder / "adapter_model.safetensors")
    return folder


def _lora(name: str, values: Any, tensors: Edit | None = None) -> Case:
    return Case(f"adapter: {name}", partial(_adapter, values, tensors), READING)


_RESUME = ("train", "shakespeare", "--run", "{file}", "--resume")
RUNS = [
    _ours("no weights", lambda folder: None),
    _ours("a recipe that is a list", lambda folder: (folder / "recipe.json").write_text("[]")),
    _ours("a recipe of brackets", lambda folder: (folder / "recipe.json").write_text("[" * _DEEP), GENERATE, _RESUME),
    _ours("a recipe that is a pipe", lambda folder: _pipe(folder / "recipe.json"), GENERATE, _RESUME),
    _ours("a task that there is not", _said_in("recipe.json", task={"kind": "os.system"}), GENERATE, _RESUME),
    _ours("a task that is a number", _said_in("recipe.json", task=7), GENERATE, _RESUME),
    _ours("data outside", _said_in("recipe.json", data=["/dev/zero"]), ("evaluate", "{file}"), _RESUME),
    _ours("data of a hub", _said_in("recipe.json", data=["owner/name"]), ("evaluate", "{file}")),
    _ours("a tokenizer of a hub", _within("task", tokenizer="hf:owner/name"), ("evaluate", "{file}"), _RESUME),
    _ours("a start of a hub", _said_in("recipe.json", start="hf:owner/name"), GENERATE, _RESUME),
    _ours("rates that are no numbers", _within("optim", lr=float("nan")), GENERATE, _RESUME),
    _ours("steps of 10^30", _within("train", steps=10**30), GENERATE, _RESUME),
    _ours("a seed of 2^64", _within("train", seed=1 << 64), GENERATE, _RESUME),
    _ours("a status that is a list", lambda folder: (folder / "run.json").write_text("[]")),
    _ours("a status that is a pipe", lambda folder: _pipe(folder / "run.json")),
    _ours("a format that is a list", _said_in("run.json", format=[1])),
    _ours("50,000 blocks", partial(_heading, _blocks)),
    _ours("a width of 10^12", partial(_heading, lambda config: config.update(width=10**12))),
    _ours("no width", partial(_heading, lambda config: config.update(width=0))),
    _ours("a configuration that is a number", partial(_heading, lambda config: 7)),
    _ours(
        "a configuration of brackets",
        lambda folder: _safetensors(
            folder / "model.safetensors", {"format": "headway", "version": "1", "config": "[" * _DEEP}
        ),
    ),
    _ours("digests that are a list", lambda folder: (folder / "digests.json").write_text("[]"), VERIFY),
    _ours("digests that are a pipe", lambda folder: _pipe(folder / "digests.json"), VERIFY),
    _ours("digests of files outside", lambda folder: _digests(folder, {"../x": [1, ""]}), VERIFY),
    _ours(
        "digests of /dev/zero",
        lambda folder: (_link(folder / "z", "/dev/zero"), _digests(folder, {"z": [0, ""]}))[1],
        VERIFY,
    ),
    _ours(
        "digests of 300,000 files", lambda folder: _digests(folder, {f"f{i}": [0, ""] for i in range(_MANY)}), VERIFY
    ),
    _ours("a usage that is a list", lambda folder: (folder / "usage.json").write_text("[]")),
    _ours("a usage of pipes", lambda folder: _pipe(folder / "usage.json")),
    _ours("metrics that are a pipe", lambda folder: _pipe(folder / "metrics.jsonl")),
    _ours(
        "a checkpoint of nothing",
        lambda folder: (folder / "checkpoints" / "step-00000001").mkdir(parents=True),
        VERIFY,
        _RESUME,
    ),
    _ours("a quantised model of nothing", lambda folder: (folder / "quantized.safetensors").write_bytes(b"")),
    _lora("a list", []),
    _lora("a base outside", {"base_model_name_or_path": "../../../etc", "peft_type": "LORA", "r": 1}),
    _lora("a base of a hub", {"base_model_name_or_path": "owner/name", "peft_type": "LORA", "r": 1}),
    _lora("a rank of 10^12", {"base_model_name_or_path": "x", "peft_type": "LORA", "r": 10**12}),
    _lora("a pipe", {"peft_type": "LORA"}, _pipe),
    _lora("brackets", b"[" * _DEEP),
]


def _digests(folder: Path, files: Mapping[str, Any]) -> None:
    said = {name: {"bytes": size, "sha256": digest} for name, (size, digest) in files.items()}
    (folder / "digests.json").write_text(json.dumps({"version": 1, "files": said}))


CASES: list[Case] = [*SAFETENSORS, *INDICES, *CONFIGS, *GGUF, *BINARIES, *RUNS]
