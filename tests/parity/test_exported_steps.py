"""A decoding step of each published family of decoders is one program of fixed shapes, as a CUDA graph needs it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from decoder_models import CONFIGS
from torch import Tensor, nn

from headway.formats.published import described_config
from headway.generate.prompts import pad
from headway.nn.models import Decoding, Prompt, evaluation_mode

# Which families cannot be exported, and why. The table may only shrink.
NOT_EXPORTED = dict.fromkeys(
    (
        "Glm4MoeForCausalLM",
        "GptOssForCausalLM",
        "GraniteMoeForCausalLM",
        "MixtralForCausalLM",
        "OlmoeForCausalLM",
        "Qwen2MoeForCausalLM",
        "Qwen3MoeForCausalLM",
    ),
    "the number of tokens of an expert is a shape",
)
FAMILIES = sorted({name for name, _ in CONFIGS})


class Step(nn.Module):
    """A decoding step as a function of tensors."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, states: Any, positions: Tensor) -> tuple[Tensor, Any, Tensor]:
        logits, after = self.model.step(ids, Decoding(states, None, positions))
        return logits, after.states, after.positions


@pytest.mark.parametrize("name", FAMILIES)
def test_a_decoding_step_is_one_program(name: str, tmp_path: Path) -> None:
    config = CONFIGS[name, "small"]
    config.architectures = [name]
    config.save_pretrained(tmp_path)
    model: Any = described_config(tmp_path).build(0)
    with torch.no_grad(), evaluation_mode(model):
        prompt = Prompt(*pad([[3, 4, 5, 6, 7], [9, 8]], torch.device("cpu")))
        logits, expected = model.start(prompt, 12)
        ids = logits.argmax(-1)
        copy = expected.select(torch.arange(2))
        arguments = (ids, copy.states, copy.positions)
        if name in NOT_EXPORTED:
            with pytest.raises(Exception, match=r"data-dependent|unbacked|Constraint|guard"):
                torch.export.export(Step(model), arguments)
            return
        program = torch.export.export(Step(model), arguments).module()
        states, positions = copy.states, copy.positions
        for _ in range(3):
            logits, expected = model.step(ids, expected)
            found, states, positions = program(ids, states, positions)
            torch.testing.assert_close(found, logits, atol=1e-5, rtol=1e-4)
            assert torch.equal(positions, expected.positions)
            ids = logits.argmax(-1)
