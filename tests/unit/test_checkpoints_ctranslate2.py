"""CTranslate2's model.bin: the real Whisper tiny.en, and files of every dtype and every damage."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from headway.codecs import load_codec
from headway.errors import UserError
from headway.formats.ctranslate2 import FILE, WHISPER, ModelBin, is_ctranslate2
from headway.formats.open import open_model

IDS = {"float32": 0, "int8": 1, "int16": 2, "int32": 3, "float16": 4, "bfloat16": 5}


def test_whisper_is_read_in_full(whisper: Path) -> None:
    model = ModelBin(whisper / FILE)
    assert (model.specification, model.revision) == (WHISPER, 3)
    assert model.parameters() == 37_764_864
    assert dict(model.aliases) == {"decoder/projection/weight": "decoder/embeddings/weight"}
    assert torch.equal(model.get("decoder/projection/weight"), model.get("decoder/embeddings/weight"))
    assert model.get("decoder/num_heads") == 6
    for name in model.names():
        tensor = model.get(name)
        assert tensor.float().isfinite().all(), name
        if tensor.dim() > 1:
            assert 0.001 < tensor.float().std() < 1, name
        model.done(name)
    table = model.get("encoder/position_encodings/encodings").float()
    assert torch.allclose(table[:, :192] ** 2 + table[:, 192:] ** 2, torch.ones(1500, 192), atol=2e-3)  # sinusoids


def test_whispers_tokenizer_is_a_codec(whisper: Path) -> None:
    codec = load_codec(whisper)
    assert codec.encode("Hello world") == [15496, 995]
    for text in ("She sells sea-shells, naïvely: 2024!", " \u2603 and \U0001f600\n"):
        assert codec.decode(codec.encode(text)) == text
    rows = ModelBin(whisper / FILE).get("decoder/embeddings/weight").shape[0]
    assert codec.vocab_size <= rows == len((whisper / "vocabulary.txt").read_text().splitlines())


def test_open_says_what_is_not_read(whisper: Path, tmp_path: Path) -> None:
    assert is_ctranslate2(whisper)
    (tmp_path / FILE).write_bytes(model_bin([]).replace(text("AnySpec"), text("TransformerSpec")))
    with pytest.raises(UserError, match="TransformerSpec\\): a translation model; load the model that it was"):
        open_model(tmp_path)


def text(value: str) -> bytes:
    return struct.pack("<H", len(value) + 1) + value.encode() + b"\0"


def variable(name: str, values: Any, dtype: str, size: int | None = None) -> bytes:
    array = np.asarray(values)
    raw = array.view(np.int16).tobytes() if dtype == "bfloat16" else array.astype(dtype).tobytes()
    head = text(name) + struct.pack(f"<B{array.ndim}I", array.ndim, *array.shape)
    return head + struct.pack("<BI", IDS[dtype], len(raw) if size is None else size) + raw


def model_bin(variables: list[bytes], aliases: list[tuple[str, str]] = [], version: int = 6) -> bytes:  # noqa: B006
    head = struct.pack("<I", version) + text("AnySpec") + struct.pack("<I", 1)
    pairs = b"".join(text(alias) + text(name) for alias, name in aliases)
    return head + struct.pack("<I", len(variables)) + b"".join(variables) + struct.pack("<I", len(aliases)) + pairs


def test_every_dtype_and_its_scales(tmp_path: Path) -> None:
    values = np.arange(-3, 3, dtype=np.float32).reshape(2, 3)
    halves = torch.from_numpy(values).bfloat16()
    stored = [variable(f"w_{name}", values, name) for name in IDS if name != "bfloat16"]
    stored += [
        variable("w_bfloat16", halves.view(torch.int16).numpy(), "bfloat16"),
        variable("rows", values, "int8"),
        variable("rows_scale", [2.0, 4.0], "float32"),
        variable("all", values, "int16"),
        variable("all_scale", 8.0, "float32"),
    ]
    (tmp_path / FILE).write_bytes(model_bin(stored, [("second", "rows")]))
    model = ModelBin(tmp_path / FILE)
    assert set(model.names()) == {*(f"w_{name}" for name in IDS), "rows", "all"}
    for name in IDS:
        found = model.get(f"w_{name}")
        assert found.dtype == getattr(torch, name)
        assert torch.equal(found.float(), torch.from_numpy(values))
    assert torch.equal(model.get("second"), torch.from_numpy(values) / torch.tensor([[2.0], [4.0]]))
    assert torch.equal(model.get("all"), torch.from_numpy(values) / 8)
    assert model.parameters() == 8 * 6


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    one = variable("a", [1.0, 2.0], "float32")
    whole = model_bin([one])
    place = len(model_bin([])) - 8
    cases = {
        "version 5": model_bin([one], version=5),
        "cannot follow": whole[:place] + struct.pack("<I", 1 << 30) + whole[place + 4 :],
        "occurs twice": model_bin([one, one]),
        "do not match": model_bin([variable("a", [1.0, 2.0], "float32", size=4)]),
        "dtype 9": whole.replace(struct.pack("<BI", 0, 8), struct.pack("<BI", 9, 8)),
        "needs": whole[:-6],
        "matches no variable": model_bin([one], [("b", "c")]),
        "left after": whole + b"0",
        "not UTF-8": whole.replace(b"AnySpec", b"\xff\xffySpec"),
        "scales of shape": model_bin([one, variable("a_scale", [1.0, 2.0, 3.0], "float32")]),
        "4 bits": model_bin([one, variable("a_zero", [1.0], "float32")]),
    }
    for message, data in cases.items():
        (tmp_path / FILE).write_bytes(data)
        with pytest.raises(UserError, match=message):
            ModelBin(tmp_path / FILE).get("a")
    (tmp_path / FILE).write_bytes(b"PK\3\4 a pickle of torch")
    assert not is_ctranslate2(tmp_path)
