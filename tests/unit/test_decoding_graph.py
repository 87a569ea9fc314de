"""Decoding steps as CUDA graphs, on a simulated GPU whose graphs replay recorded operations on fixed tensors."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from headway.generate import (
    Limits,
    Sampling,
    SearchConfig,
    beam_search,
    search_steps,
    step_together,
    translate_ids,
    with_graphs,
)
from headway.generate.prompts import make_prompt
from headway.generate.scheduler import Request, Scheduler
from headway.generate.torch_weights import join_experts, store_in_bf16
from headway.layout import Layout, to_device
from headway.nn.kernels import deterministic
from headway.nn.mixers import (
    AttentionConfig,
    BidirectionalConfig,
    ConditionalGRUConfig,
    CrossAttentionConfig,
    DeltaConfig,
    DynamicLinksConfig,
    ElmanConfig,
    FastWeightsConfig,
    GatedDeltaConfig,
    GRUConfig,
    LinearAttentionConfig,
    LSTMConfig,
    MixerConfig,
    MLSTMConfig,
    MultiplicativeConfig,
    SigmaPiConfig,
)
from headway.nn.models import BlockConfig, EncoderDecoderConfig, Prompt, StackConfig, TransformerConfig
from headway.nn.models.presets import marian, whisper
from headway.nn.models.score_biases import AlibiConfig, RelativeConfig
from headway.nn.models.stack import BiasConfig
from headway.nn.parts.experts import ExpertsConfig
from headway.nn.parts.positions import RotaryConfig
from headway.visibility import Causal, Full
from simulated_gpu import SimulatedGraph, Waits, device

BLOCKS = {
    "grouped heads, rotary": BlockConfig(AttentionConfig(4, 2, rotary=RotaryConfig())),
    "window": BlockConfig(AttentionConfig(2, pattern=Causal(3))),
    "bias": BlockConfig(AttentionConfig(2, bias="alibi")),
    "experts": BlockConfig(AttentionConfig(2), feed_forward=ExpertsConfig(4)),
    "bf16": BlockConfig(AttentionConfig(2, rotary=RotaryConfig())),
}
RECURRENT: dict[str, MixerConfig] = {
    "elman": ElmanConfig(),
    "lstm": LSTMConfig(peepholes=True),
    "gru": GRUConfig(learned_start=True),
    "sigma-pi": SigmaPiConfig(cells=6),
    "multiplicative": MultiplicativeConfig(),
    "mlstm": MLSTMConfig(),
    "linear attention": LinearAttentionConfig(2),
    "fast weights": FastWeightsConfig(2),
    "delta": DeltaConfig(2),
    "gated delta": GatedDeltaConfig(2),
    "dynamic links": DynamicLinksConfig(),
}
BLOCKS |= {name: BlockConfig(mixer) for name, mixer in RECURRENT.items()}
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
        stepper.model.enabled = False
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


@pytest.mark.parametrize("name", BLOCKS)
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


def translator(name: str) -> Any:
    if name == "marian":
        config = marian(16, 1, 2, 32, 23)
    elif name == "relative bias":
        biases: dict[str, BiasConfig] = {"relative": RelativeConfig(2, 8, 16)}
        reads = BlockConfig(AttentionConfig(2, pattern=Full()))
        writes = BlockConfig(AttentionConfig(2, bias="relative"), CrossAttentionConfig(2, 1))
        parts = (StackConfig((reads,)), StackConfig((writes,) * 2, biases=biases))
        encoder, decoder = (TransformerConfig(16, 23, None, part) for part in parts)
        config = EncoderDecoderConfig(encoder, decoder)
    else:
        reads = BlockConfig(BidirectionalConfig(GRUConfig(8)))
        parts = (StackConfig((reads,)), StackConfig((BlockConfig(ConditionalGRUConfig()), BlockConfig(LSTMConfig()))))
        encoder, decoder = (TransformerConfig(16, 23, None, part) for part in parts)
        config = EncoderDecoderConfig(encoder, decoder)
    model = config.build(1).eval()
    for part, parameter in model.named_parameters():  # translations depend on their sources
        parameter.data.mul_(12 if "cross" in part or "context" in part else 3)
    return model


SOURCES = [[3, 4, 5], [6, 2, 2, 7, 9], [8], [4, 4]]
OTHERS = [[9, 9, 7], [3, 12, 20, 1, 1], [15], [19, 2]]


@pytest.mark.parametrize("name", ["marian", "relative bias", "conditional gru"])
@pytest.mark.parametrize("beam", [1, 3])
def test_graphs_translate_the_same(name: str, beam: int) -> None:
    """A second batch of sources with these lengths records nothing."""
    search = SearchConfig(beam, n_best=beam, most_ratio=0, most_extra=8)

    def translated(model: Any) -> list[list[list[int]]]:
        found = [translate_ids(model, sources, bos=0, eos=1, config=search) for sources in (SOURCES, OTHERS)]
        return [[hypothesis.ids for hypothesis in some] for batch in found for some in batch]

    expected = translated(translator(name))
    assert expected[:4] != expected[4:]
    with Waits():
        model: Any = with_graphs(translator(name).to(device()))
        before = SimulatedGraph.replays
        assert translated(model) == expected
    assert SimulatedGraph.replays - before >= 8
    assert len(model._graphs) == 1


def test_graphs_transcribe_the_same() -> None:
    config = whisper(16, (1, 1), 2, 23, 4)
    config = replace(config, encoder=replace(config.encoder, context=10))
    frames = torch.randn(2, 20, 4, generator=torch.Generator().manual_seed(0))
    prompt = Prompt(torch.tensor([[0], [0]]), Layout.full(2, 1), frames, Layout.full(2, 20))

    def heard(model: Any, prompt: Prompt) -> list[list[int]]:
        return [hypothesis.ids for [hypothesis] in beam_search(model, prompt, [8, 5], 1, SearchConfig(2))]

    expected = heard(config.build(1).eval(), prompt)
    with Waits():
        model = with_graphs(config.build(1).eval().to(device()))
        before = SimulatedGraph.replays
        assert [heard(model, to_device(prompt, device())) for _ in range(2)] == [expected] * 2
    assert SimulatedGraph.replays - before >= 8


@pytest.mark.parametrize("name", ["marian", "conditional gru"])
def test_generations_at_the_same_time_use_buffers_of_their_own(name: str) -> None:
    """Five searches, one more than there are graphs, take turns. An earlier state of the first is kept to the end."""
    search = SearchConfig(2, most_ratio=0, most_extra=8)
    sources = [[3, 4, 5], [6, 2, 2], [8, 1, 4], [4, 4, 9], [5, 6, 7]]

    def translated(model: Any, place: torch.device, count: int) -> list[list[int]]:
        searches, found, kept = {}, dict[int, list[int]](), None
        for number in range(0, 5, count):
            for index in range(number, number + count):
                logits, decoding = model.start(make_prompt([[0]], [sources[index]], place), 9)
                for token in (4, 5, 6):
                    logits, decoding = model.step(torch.tensor([token], device=place), decoding)
                kept = decoding if index == 0 else kept
                searches[index] = search_steps(logits.clone(), decoding, [4], 1, search)
            requests = {index: next(steps) for index, steps in searches.items()}
            while requests:
                outputs = step_together(model, list(requests.values()))
                for (index, _), output in zip(list(requests.items()), outputs):
                    try:
                        requests[index] = searches[index].send(output)
                    except StopIteration as end:
                        found[index] = end.value[0][0].ids
                        del requests[index]
            searches.clear()
        logits, _ = model.step(torch.tensor([7], device=place), kept)
        return [*found.values(), logits[0].topk(5).indices.tolist()]

    with torch.inference_mode(), Waits():
        cpu = torch.device("cpu")
        expected = translated(translator(name), cpu, 1)
        assert sorted(translated(with_graphs(translator(name).to(device())), device(), 5)) == sorted(expected)


def test_only_gpus_have_graphs() -> None:
    model = model_of("lstm")
    assert with_graphs(model) is model
    with Waits():
        graphed = with_graphs(model.to(device()))
        assert graphed is not model
        assert with_graphs(graphed) is graphed
