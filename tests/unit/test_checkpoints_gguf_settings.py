"""What the values of a .gguf file mean, and what it means that some are left out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from headway.errors import UserError
from headway.formats.families import families, llama
from headway.formats.gguf import GgufFile
from headway.formats.gguf.dialects import ExpertWeights
from headway.formats.gguf.model import FileContents, find_dialect, read_values
from headway.formats.settings import Settings
from headway.nn.models import TransformerConfig
from headway.nn.parts.positions import ScalingConfig
from headway.nn.parts.scaling import LinearScaling

SIZES = {
    "context_length": 64,
    "embedding_length": 32,
    "block_count": 2,
    "feed_forward_length": 64,
    "attention.head_count": 4,
    "attention.head_count_kv": 2,
    "attention.layer_norm_rms_epsilon": 1e-6,
}


def meant(architecture: str, **values: Any) -> TransformerConfig:
    """The configuration of a file of such values; a dot is written __ here."""
    said = {**SIZES, **{name.replace("__", "."): value for name, value in values.items()}}
    file = FileContents(
        {f"{architecture}.{name}": value for name, value in said.items()},
        {"token_embd.weight": torch.zeros(48, 32)},
        "here",
    )
    given = read_values(file, *find_dialect({"general.architecture": architecture}, "here"))
    family = families()[given["model_type"]]
    config = family.read(Settings({**family.defaults, **given}, "here"), ())
    assert isinstance(config, TransformerConfig)
    return config


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ({}, None),
        ({"rope__scale_linear": 4.0}, LinearScaling(4.0)),
        ({"rope__scaling__factor": 4.0}, LinearScaling(4.0)),
        ({"rope__scaling__factor": 4.0, "rope__scaling__type": "linear"}, LinearScaling(4.0)),
        ({"rope__scaling__factor": 4.0, "rope__scaling__type": "none"}, None),
        ({"rope__scaling__factor": 0.0}, None),  # as llama.cpp reads it
    ],
)
def test_a_factor_without_a_type_scales_linearly(values: dict[str, Any], wanted: ScalingConfig | None) -> None:
    rotary = llama.first_rotary(meant("llama", **values))
    assert rotary is not None
    assert rotary.scaling == wanted


@pytest.mark.parametrize(
    ("architecture", "values", "wanted"),
    [
        ("gemma2", {}, [4096, None]),
        ("gemma2", {"attention__sliding_window": 8}, [8, None]),
        ("llama", {}, [None, None]),
        ("llama", {"attention__sliding_window": 8}, [8, 8]),
        ("qwen2", {}, [None, None]),
        ("phi3", {"attention__sliding_window": 0}, [None, None]),
    ],
)
def test_windows_that_a_file_leaves_out_are_the_familys(
    architecture: str, values: dict[str, Any], wanted: list[int | None]
) -> None:
    assert llama.windows_of(meant(architecture, **values)) == wanted


@pytest.mark.parametrize(
    ("architecture", "pattern", "wanted"),
    [
        ("gemma3", None, [8, 8, 8, 8, 8, None, 8]),
        ("gemma3", 3, [8, 8, None, 8, 8, None, 8]),
        ("olmo2", None, [8, 8, 8, None, 8, 8, 8]),
        ("olmo2", [True, False, True, True, True, True, False], [8, None, 8, 8, 8, 8, None]),
    ],
)
def test_patterns_of_windows(architecture: str, pattern: Any, wanted: list[int | None]) -> None:
    values = {"block_count": 7, "attention__sliding_window": 8, "attention__key_length": 8}
    if pattern is not None:
        values["attention__sliding_window_pattern"] = pattern
    config = meant(architecture, **values, rope__freq_base=5e3)
    assert llama.windows_of(config) == wanted
    bases = {
        window: rotary.theta
        for window, block in zip(wanted, config.stack.blocks)
        if (rotary := llama.attention(block).rotary) is not None
    }
    assert bases == {8: 1e4 if architecture == "gemma3" else 5e3, None: 5e3}


@pytest.mark.parametrize("pattern", [0, "x", ["x"], 0.5])
def test_patterns_that_are_none_are_refused(pattern: Any) -> None:
    with pytest.raises(UserError, match="window pattern"):
        meant("gemma3", attention__sliding_window=8, attention__sliding_window_pattern=pattern)


def test_stacks_of_too_many_experts_are_refused(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf", reason="the package gguf is not installed: pip install 'headway[gguf]'")
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "llama")
    writer.add_tensor("blk.0.ffn_up_exps.weight", np.zeros((1025, 1, 1), np.float32))
    writer.add_tensor("empty", np.zeros((0, 34), np.uint8), raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        write()
    writer.close()
    file = GgufFile(tmp_path / "a.gguf")
    assert file.get("empty").shape == (0, 32)
    with pytest.raises(UserError, match="1025 experts, more than 1024"):
        ExpertWeights(file)
