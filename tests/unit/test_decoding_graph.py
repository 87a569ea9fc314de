"""Decoding steps as CUDA graphs, on a simulated GPU whose graphs replay recorded operations on fixed tensors."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from headway.generate import Limits, Sampling
from headway.generate.decoding_graph import decoding_graphs
from headway.generate.scheduler import Request, Scheduler
from headway.generate.torch_weights import join_experts, store_in_bf16
from headway.nn.kernels import deterministic
from headway.nn.mixers import AttentionConfig, LSTMConfig
from headway.nn.models import BlockConfig, StackConfig, TransformerConfig
from headway.nn.models.score_biases import AlibiConfig
from headway.nn.models.stack import BiasConfig
from headway.nn.parts.experts import ExpertsConfig
from headway.nn.parts.positions import RotaryConfig
from headway.visibility import Causal
from simulated_gpu import SimulatedGraph, Waits, device

BLOCKS = {
    "grouped heads, rotary": BlockConfig(AttentionConfig(4, 2, rotary=RotaryConfig())),
    "window": BlockConfig(AttentionConfig(2, pattern=Causal(3))),
    "bias": BlockConfig(AttentionConfig(2, bias="alibi")),
    "experts": BlockConfig(AttentionConfig(2), feed_forward=ExpertsConfig(4)),
    "bf16": BlockConfig(AttentionConfig(2, rotary=RotaryConfig())),
    "lstm": BlockConfig(LSTMConfig()),
}
PROMPTS = [[3, 4, 5, 6, 7, 8, 2], [9, 8], [1], [5, 5]]


def model_of(name: str) -> Any:
    biases: dict[str, BiasConfig] = {"alibi": AlibiConfig(2)} if name == "bias" else {}
    model = TransformerConfig(16, 23, None, StackConfig((BLOCKS[name],) * 2, biases=biases)).build(1).eval()
    for parameter in model.parameters():
        parameter.data.mul_(3)
    if name == "bf16":
        store_in_bf16(model)
    return model


def generated(model: Any, waits: Waits | None, rounds: int = 2, enabled: bool = True) -> list[list[int]]:
    """Two batches, one after the other, of requests with different settings whose rows end at different steps."""
    scheduler, rows = Scheduler(model), []
    stepper: Any = scheduler._stepper
    if not enabled:
        stepper._graphs.enabled = False
    for _ in range(rounds):
        tickets = [
            scheduler.submit(
                Request(prompt, Sampling(0.8, seed=number), Limits(9 - 2 * number), top=number), keys=[number]
            )
            for number, prompt in enumerate(PROMPTS)
        ]
        ids: dict[int, list[int]] = {ticket: [] for ticket in tickets}
        steps = 0
        while events := scheduler.step():
            steps += 1
            if waits is not None:
                assert waits.total == 1 or steps == 1, waits.counts
                waits.clear()
            for event in events:
                ids[event.ticket] += [] if event.id is None else [event.id]
        rows += list(ids.values())
    return rows


@pytest.mark.parametrize("name", ["grouped heads, rotary", "window", "bias", "experts", "bf16"])
def test_graphs_generate_the_same_tokens(name: str) -> None:
    """Most steps are replays: the first step of a new number of rows is not, and a second batch records nothing."""
    expected = generated(model_of(name), None)
    with Waits() as waits:
        model = model_of(name).to(device())
        join_experts(model)
        if name == "bf16":  # other kernels round otherwise
            expected = generated(model, None, enabled=False)
        waits.clear()
        before = SimulatedGraph.replays
        assert generated(model, waits) == expected
    assert SimulatedGraph.replays - before >= 8


def test_what_a_graph_cannot_contain_is_computed_without_one(caplog: pytest.LogCaptureFixture) -> None:
    expected = generated(model_of("bias"), None, 1)
    with Waits() as waits:
        model = model_of("bias").to(device())
        step, before = model.step, SimulatedGraph.replays

        def waiting(ids: torch.Tensor, decoding: Any) -> Any:
            assert int(ids.max()) >= 0
            return step(ids, decoding)

        model.step = waiting
        assert generated(model, None, 1) == expected
        assert [record.message[:28] for record in caplog.records] == ["decoding without CUDA graphs"]
        del model.step
        host = torch.zeros(16)
        model.stack.norm.register_forward_hook(lambda module, args, y: y + host.to(y.device))
        assert generated(model, None, 1) == expected
        with deterministic():
            generated(model_of("bias").to(device()), None, 1)
        assert SimulatedGraph.replays == before
        waits.clear()


def test_only_attention_on_gpus_has_graphs() -> None:
    with Waits():
        assert decoding_graphs(model_of("bias")) is None
        assert decoding_graphs(model_of("lstm").to(device())) is None
        assert decoding_graphs(model_of("bias").to(device())) is not None
