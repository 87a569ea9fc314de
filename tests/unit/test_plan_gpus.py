"""Plans of a step on many GPUs, computed without one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import headway as hw
from headway.app.cli.main import main
from headway.app.recipes import configure_recipe, load_recipe
from headway.config import override
from headway.domains import recipe as find_recipe
from headway.errors import ConfigError
from headway.learn.adapters import LoRAConfig
from headway.learn.parallel.sharding import units
from headway.learn.plan.ranks import _synthetic, find_gpu, measure_demand, plan_ranks, rank_memory
from headway.learn.recomputing import prepare_blocks
from headway.nn.models import describe

TINY = {"model.width": 64, "model.depth": 2, "model.heads": 2, "task.context": 64, "train.batch_tokens": 256}
ADAM = {**TINY, "optim": "adamw"}


def test_the_memory_of_a_model_is_split_among_shards() -> None:
    whole = hw.plan_gpus("text", 4, "h100", set=ADAM)
    recipe = configure_recipe(load_recipe("text"), None, ADAM, None)
    weights = 4 * describe(recipe.model)["parameters"]
    assert whole.shard == 1
    assert whole.replicas == 4
    assert whole.memory["weights"] == pytest.approx(weights, rel=0.01)  # parameters are padded to cache lines
    assert whole.memory["optimiser"] == 2 * whole.memory["weights"]
    assert set(whole.traffic) == {"weights", "gradients", "replicas"}
    assert whole.traffic["weights"] == whole.traffic["gradients"] == 0
    split = hw.plan_gpus("text", 4, "h100", set={**ADAM, "parallel.shard": 4})
    for name in ("weights", "gradients", "optimiser"):
        assert split.memory[name] == pytest.approx(whole.memory[name] / 4, abs=1)
    assert split.traffic["replicas"] == 0 < split.traffic["gradients"]
    exact = hw.plan_gpus("text", 4, "h100", set={**ADAM, "parallel.exact": True})
    assert exact.memory["exact sums"] >= 2 * whole.memory["weights"]


def test_a_model_gets_the_fewest_shards_that_fit() -> None:
    settings = {**ADAM, "model.width": 512, "train.batch_tokens": 64}
    recipe = configure_recipe(load_recipe("text"), None, settings, None)
    needed = sum(rank_memory(measure_demand(recipe, None, 2), 1).values())
    for share, fits in ((1.2, True), (0.9, False)):
        plan = plan_ranks(recipe, None, 8, find_gpu("h100")._replace(memory=share * needed))
        assert (plan.shard == 1) == fits
        assert sum(plan.memory.values()) < plan.available
        assert "the fewest shards that fit" in plan.reasons[0]
    plan = plan_ranks(recipe, None, 8, find_gpu("h100")._replace(memory=0.01 * needed))
    assert "does not fit on 8 GPUs" in plan.reasons[0]


def test_frozen_weights_are_neither_sent_nor_differentiated() -> None:
    recipe = override(find_recipe("text"), {"model.width": 256, "model.depth": 2, "model.heads": 4})
    whole, adapted = (plan_ranks(replace(recipe, adapter=a), None, 2, find_gpu("l40s")) for a in (None, LoRAConfig(8)))
    assert adapted.traffic["replicas"] == adapted.memory["gradients"] < whole.traffic["replicas"] / 5
    with pytest.raises(ConfigError, match=r"adapter\.base=int4 is computed on a CPU"):
        plan_ranks(replace(recipe, adapter=LoRAConfig(8, base="int4")), None, 2, find_gpu("l40s"))


def test_recomputing_blocks_needs_less_memory_for_activations() -> None:
    def activations(every: int) -> int:
        return hw.plan_gpus("text", 1, "h100", set={**TINY, "model.depth": 4, "train.recompute": every}).memory[
            "activations"
        ]

    none, half, full = activations(0), activations(2), activations(1)
    assert full < half < none


def test_activations_are_those_of_a_real_micro_batch() -> None:
    """Of a linear map, a nonlinearity and a loss, counted by hand."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    from headway.learn.plan.ranks import MemoryMeter

    with FakeTensorMode():
        model = torch.nn.Sequential(torch.nn.Linear(8, 16, bias=False), torch.nn.Tanh())
        x = torch.zeros(32, 8)
        with (meter := MemoryMeter(model)):
            y = model(x)
            assert meter.live == 4 * 32 * 16  # tanh keeps its output alone
            del y
        assert meter.live == 0
        assert meter.peak == 2 * 4 * 32 * 16


def test_fp32_needs_more_than_bf16() -> None:
    recipe = configure_recipe(load_recipe("text"), None, TINY, None)
    half, full = (measure_demand(recipe, None, size) for size in (2, 4))
    assert half.activations < full.activations < 2.5 * half.activations


@pytest.mark.parametrize("recompute", [0, 1])
def test_shards_need_what_pytorchs_tracker_finds_in_fsdp(recompute: int) -> None:
    """Within 10 % of the peak that PyTorch's tracker of FSDP finds in a real micro-batch of one of 4 processes."""
    import torch.distributed as dist
    from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.testing._internal.distributed.fake_pg import FakeStore

    settings = {**TINY, "model.width": 128, "model.depth": 4, "train.recompute": recompute}
    recipe = configure_recipe(load_recipe("text"), None, settings, None)
    demand = measure_demand(recipe, None, 4)
    model, (batch, loss) = recipe.model.build(1), _synthetic(recipe)
    prepare_blocks(model, recompute, torch.Generator(), compiles=False)
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=4)
    try:
        mesh = init_device_mesh("cpu", (4,))
        for block in units(model):
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
        with (tracker := FSDPMemTracker(model)):
            loss(model, batch)["loss"].total.backward()
    finally:
        dist.destroy_process_group()
    found = tracker.get_tracker_snapshot("peak")[torch.device("cpu")]
    rows = sum(
        size
        for kind, size in found.items()
        if str(kind).endswith(("SHARDED_PARAM", "SHARDED_GRAD")) and "UN" not in str(kind)
    )
    assert demand.activations + demand.gathered == pytest.approx(found["Total"] - rows, rel=0.1)


def test_tasks_are_planned_with_their_own_batches(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = tmp_path / "a.csv"
    table.write_text("text,label\n" + "".join(f"{'one two ' * (i % 5 + 1)},{i % 2}\n" for i in range(200)))
    words = ["plan", "classification", "--data", str(table), "--gpus", "2", "--gpu", "a100", "--json"]
    assert main(words) == 0
    plan = json.loads(capsys.readouterr().out.splitlines()[-1])["plan"]
    assert plan["processes"] == plan["replicas"] == 2
    assert plan["step_seconds"] > 0


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["text", "--gpu", "a100"], "--gpu a100 needs the number of GPUs; add --gpus N"),
        (["text", "--gpus", "2", "--gpu", "h1"], "there are no figures for a GPU called 'h1'; did you mean 'h100'?"),
        (["vision", "--gpus", "2"], "planning vision for GPUs needs its data"),
        (["text", "--gpus", "6", "--set", "parallel.shard=4"], "do not use 6 processes"),
    ],
)
def test_what_cannot_be_planned_is_refused_in_a_line(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", *words]) == 2
    assert told in capsys.readouterr().err
