"""Block formats of GGUF as written: the layout of the package gguf, and errors below those of plain rounding."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from format_models import LLAMA, drawn, published_config

from headway.app.cli.export import DTYPES
from headway.errors import UserError
from headway.formats.gguf import GgufFile, load_gguf, save_gguf
from headway.formats.gguf.k_quants import FORMATS, encode
from headway.formats.gguf.mixtures import FormatMixture, Precision

gguf = pytest.importorskip("gguf", reason="the package gguf is not installed: pip install 'headway[gguf]'")
# Root mean square errors of normal numbers, relative to their own: a bit more than measured.
ERRORS = {
    "Q4_0": 0.085,
    "Q5_0": 0.043,
    "Q5_1": 0.04,
    "Q2_K": 0.3,
    "Q3_K": 0.15,
    "Q4_K": 0.075,
    "Q5_K": 0.04,
    "Q6_K": 0.02,
}


def numbers(kind: str) -> np.ndarray:
    rng = np.random.default_rng(3)
    x = rng.standard_normal((24, 512)).astype(np.float32) * 0.05
    others: dict[str, np.ndarray] = {
        "normal": x,
        "heavy tails": x * np.exp(rng.standard_normal(x.shape)).astype(np.float32),
        "outliers": np.where(rng.random(x.shape) < 0.01, 20 * x, x),
        "positive": np.abs(x),
        "negative": -np.abs(x) - 0.1,
        "constant rows": np.repeat(x[:, :1], 512, axis=1),
        "zeros": np.where(np.arange(512) < 300, 0, x),
        "large": x * 1e5,
        "small": x * 1e-3,
    }
    return others[kind].astype(np.float32)


def decoded(blocks: np.ndarray, name: str) -> np.ndarray:
    return gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[name])


def plainly_rounded(x: np.ndarray, name: str) -> np.ndarray:
    """Rounded with the scale that maps the extreme numbers to the last codes; scales as the format stores them."""
    form = FORMATS[name]
    parts = x.reshape(-1, form.part).astype(np.float64)
    half, top = 1 << form.bits - 1, (1 << form.bits) - 1
    low = np.minimum(parts.min(1), 0) if form.has_minimum else np.zeros(len(parts))
    largest = np.take_along_axis(parts, np.abs(parts).argmax(1)[:, None], 1)[:, 0]
    scale = (np.maximum(parts.max(1), 0) - low) / top if form.has_minimum else largest / -half

    def stored(values: np.ndarray) -> np.ndarray:
        if not form.scales:
            return values.astype(np.float16).astype(np.float64)
        rows = values.reshape(-1, 256 // form.part)
        most = form.scales if form.has_minimum else -form.scales
        whole = np.take_along_axis(rows, np.abs(rows).argmax(1)[:, None], 1) / most
        whole = whole.astype(np.float16).astype(np.float64)
        steps = np.rint(np.divide(rows, whole, out=np.zeros_like(rows), where=whole != 0))
        steps = steps.clip(0, form.scales) if form.has_minimum else steps.clip(-form.scales, form.scales - 1)
        return (whole * steps).reshape(-1)

    scale, low = stored(scale)[:, None], -stored(-low)[:, None]
    codes = np.rint(np.divide(parts - low, scale, out=np.zeros_like(parts), where=scale != 0))
    codes = codes.clip(0, top) if form.has_minimum else codes.clip(-half, half - 1)
    return (codes * scale + low).reshape(x.shape)


def error(x: np.ndarray, y: np.ndarray) -> float:
    return float(np.sqrt(np.square(x.astype(np.float64) - y).mean()))


@pytest.mark.parametrize("name", FORMATS)
def test_errors_are_below_those_of_plain_rounding(name: str) -> None:
    for kind in ("normal", "heavy tails", "outliers", "positive", "negative", "zeros", "large", "small"):
        x = numbers(kind)
        own, plain = error(x, decoded(encode(x, name), name)), error(x, plainly_rounded(x, name))
        assert own <= plain, kind
    x = numbers("normal")
    assert error(x, decoded(encode(x, name), name)) < ERRORS[name] * float(np.sqrt(np.square(x).mean()))


@pytest.mark.parametrize("name", FORMATS)
def test_numbers_that_a_format_has_come_back(name: str) -> None:
    """Constant rows, and what was decoded once."""
    x = numbers("constant rows")
    assert np.allclose(decoded(encode(x, name), name), x, rtol=0.02, atol=1e-7)
    assert not decoded(encode(np.zeros((2, 256), np.float32), name), name).any()
    blocks = encode(numbers("normal"), name)
    again = decoded(encode(decoded(blocks, name), name), name)
    assert error(decoded(blocks, name), again) < 0.35 * error(numbers("normal"), decoded(blocks, name))


@pytest.mark.parametrize("name", FORMATS)
def test_rows_do_not_depend_on_each_other(name: str) -> None:
    x = np.concatenate([numbers("normal")] * 12)
    blocks = encode(x, name)
    assert blocks.shape == (len(x), gguf.quant_shape_to_byte_shape(x.shape, gguf.GGMLQuantizationType[name])[-1])
    assert np.array_equal(blocks, np.concatenate([encode(x[:7], name), encode(x[7:], name)]))


def test_mixtures_of_llama_cpp() -> None:
    """Llama 2 7B in Q4_K_M: half of the values and feed-forwards in Q6_K; see tensors of published files."""
    mixture = FormatMixture("Q4_K_M", 32, 1, 0, is_tied=False)
    shape = (4096, 4096)
    more = [i for i in range(32) if mixture.format_of(f"blk.{i}.attn_v.weight", shape) == "Q6_K"]
    assert more == [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31]
    assert [i for i in range(32) if mixture.format_of(f"blk.{i}.ffn_down.weight", shape) == "Q6_K"] == more
    formats = {name: mixture.format_of(f"{name}.weight", shape) for name in ("token_embd", "output", "blk.0.attn_q")}
    assert formats == {"token_embd": "Q4_K", "output": "Q6_K", "blk.0.attn_q": "Q4_K"}
    assert mixture._replace(is_tied=True).format_of("token_embd.weight", shape) == "Q6_K"
    experts = mixture._replace(experts=8)
    assert experts.format_of("blk.5.attn_k.weight", shape) == "Q8_0"
    assert experts.format_of("blk.5.attn_output.weight", shape) == "Q5_K"
    assert experts.format_of("blk.1.ffn_down_exps.weight", (8, *shape)) == "Q6_K"
    assert experts.format_of("blk.1.ffn_down_shexp.weight", shape) == "Q6_K"
    assert experts.format_of("blk.1.ffn_gate_inp.weight", shape) == "F32"


@pytest.mark.parametrize(
    ("columns", "formats"),
    [(576, ("Q5_0", "Q8_0", "Q8_0")), (32, ("Q5_0", "Q8_0", "Q8_0")), (40, ("F16", "F16", "F16"))],
)
def test_rows_without_complete_blocks(columns: int, formats: tuple[str, ...]) -> None:
    mixture, shape = FormatMixture("Q4_K_M", 8, 1, 0, is_tied=False), (64, columns)
    assert (
        tuple(mixture.format_of(f"{name}.weight", shape) for name in ("blk.1.attn_q", "blk.0.attn_v", "output"))
        == formats
    )
    assert FormatMixture("Q3_K_M", 8, 1, 0, is_tied=False).format_of("blk.1.ffn_up.weight", (64, 576)) == "Q4_0"
    assert FormatMixture("Q5_K_M", 8, 1, 0, is_tied=False).format_of("blk.1.ffn_up.weight", (64, 576)) == "Q5_1"


def test_names_of_formats() -> None:
    assert tuple(name.lower() for name in get_args(Precision)) == DTYPES
    known = {member.name.removeprefix("MOSTLY_").removeprefix("ALL_") for member in gguf.LlamaFileType}
    assert set(get_args(Precision)) <= known


WIDE = {**LLAMA, "hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4}


@pytest.mark.parametrize("precision", [name for name in get_args(Precision) if name.startswith("Q")])
def test_a_model_in_every_format(tmp_path: Path, precision: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    T = pytest.importorskip("transformers")
    monkeypatch.setenv("TQDM_DISABLE", "1")
    config = published_config(WIDE)
    model = drawn(config)
    save_gguf(model, config, tmp_path / "a.gguf", precision=precision)
    save_gguf(model, config, tmp_path / "b.gguf")
    file, exact = GgufFile(tmp_path / "a.gguf"), GgufFile(tmp_path / "b.gguf")
    assert file.kind("blk.0.attn_q.weight").name == precision.removesuffix("_M").removesuffix("_S")
    assert file.kind("output_norm.weight").name == "F32"
    assert file.values["general.file_type"] == gguf.LlamaFileType[f"MOSTLY_{precision}"]
    for name in file.names():
        numbers, wanted = file.get(name).numpy(), exact.get(name).numpy()
        bound = {"F32": 0.0, "Q8_0": 0.01, **ERRORS}[file.kind(name).name]
        assert error(numbers, wanted) <= bound * error(wanted, np.zeros_like(wanted)), name
    ids = torch.arange(24)[None]
    with torch.no_grad():
        theirs = T.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="a.gguf", dtype=torch.float32)(ids).logits
        assert torch.allclose(load_gguf(tmp_path / "a.gguf").model.logits(ids), theirs, atol=1e-3)  # type: ignore[operator]


def test_numbers_that_are_none_are_not_quantised(tmp_path: Path) -> None:
    config = published_config(WIDE)
    model = drawn(config)
    next(model.parameters()).data[0, 0] = float("nan")
    with pytest.raises(UserError, match="contains NaN or infinity"):
        save_gguf(model, config, tmp_path / "a.gguf", precision="Q4_K_M")
    assert not (tmp_path / "a.gguf").exists()
