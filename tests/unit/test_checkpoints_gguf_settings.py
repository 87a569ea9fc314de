"""What the values of a .gguf file mean, and what it means that some are left out."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from headway.formats.families import families, llama
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
