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
from headway.generate.torch_weights import store_in_bf16
from headway.nn.models import Decoding, Prompt, evaluation_mode
from headway.nn.parts.experts import Experts

# Which families cannot be exported, and why. The table may only shrink.
NOT_EXPORTED: dict[str, str] = {}
FAMILIES = sorted({name for name, _ in CONFIGS})


# Which matrix products of a step in bf16 are in fp32, and why: per layer, in addition to routers of experts.
FP32_PRODUCTS = {"Gemma2ForCausalLM": (2, "scores under a soft cap and their sums of values")}
PRODUCTS = ("linear", "matmul", "mm", "bmm", "addmm", "baddbmm", "einsum", "scaled_dot_product_attention")


class Step(nn.Module):
    """A decoding step as a function of tensors."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, states: Any, positions: Tensor) -> tuple[Tensor, Any, Tensor]:
        logits, after = self.model.step(ids, Decoding(states, None, positions))
        return logits, after.states, after.positions


def family_model(name: str, folder: Path) -> Any:
    config = CONFIGS[name, "small"]
    config.architectures = [name]
    config.save_pretrained(folder)
    return described_config(folder).build(0)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_step_in_bf16_has_no_product_in_fp32(name: str, tmp_path: Path) -> None:
    if name in NOT_EXPORTED:
        pytest.skip(NOT_EXPORTED[name])
    model = family_model(name, tmp_path).eval()
    store_in_bf16(model)
    with torch.no_grad():
        logits, decoding = model.start(Prompt(*pad([[3, 4, 5, 6, 7], [9, 8]], torch.device("cpu"))), 12)
        program = torch.export.export(Step(model), (logits.argmax(-1), decoding.states, decoding.positions))
    products = [node for node in program.graph.nodes if str(node.target).split(".")[1:2] in [[p] for p in PRODUCTS]]
    inputs = [[x.meta["val"].dtype for x in node.all_input_nodes[:2]] for node in products]
    in_fp32 = [node for node, dtypes in zip(products, inputs) if torch.float32 in dtypes]
    count, _ = FP32_PRODUCTS.get(name, (0, ""))
    mixtures = [module for module in model.modules() if isinstance(module, Experts)]
    routers = sum(2 if mixture.shared_gate is not None else 1 for mixture in mixtures)
    assert len(in_fp32) == count * len(model.stack.blocks) + routers, in_fp32
    assert len(products) - len(in_fp32) >= 4 * len(model.stack.blocks) + 1
    assert next(iter(program.graph.nodes)).graph.output_node().args[0][0].meta["val"].dtype == torch.float32  # logits


@pytest.mark.parametrize("name", FAMILIES)
def test_a_decoding_step_is_one_program(name: str, tmp_path: Path) -> None:
    model = family_model(name, tmp_path)
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
