"""Processes that share the weights of a model learn what one process learns."""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
import sharded_models
import tiny_task
import torch
from sharded_models import CASES, STEPS, learn
from tiny_task import counting_recipe, train
from torch import nn

from headway.errors import ConfigError
from headway.learn.parallel.rows import sampled_rows, span, whole_shape
from headway.learn.recipe import ParallelConfig
from headway.nn.mixers import SelfAttention
from headway.nn.models import Block, build, outline
from headway.nn.models.presets import PRESETS
from processes import Program

SEVERAL = [name for name in CASES if name != "recomputed"]  # its dropout depends on the process without exact


def _launch(place: Path, script: str, world: int, *words: str) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    shared = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    programs = [Program(place, Path(script), *words, **shared, RANK=str(rank)) for rank in range(world)]
    errors = [program.wait()[1] for program in programs]
    assert [program.returncode for program in programs] == [0] * world, errors


def _bits(weights: dict[str, torch.Tensor]) -> dict[str, bytes]:
    return {key: tensor.numpy().tobytes() for key, tensor in weights.items()}


def test_two_shards_learn_what_one_process_learns(tmp_path: Path) -> None:
    _launch(tmp_path, sharded_models.__file__, 2, str(tmp_path / "learned"), "1", "2", *SEVERAL)
    learned = torch.load(tmp_path / "learned", weights_only=True)
    for name in SEVERAL:
        found, wanted = learned[f"{name} False"], learn(name)
        assert found["losses"] == pytest.approx(wanted["losses"], abs=1e-9), name
        assert found["norms"] == pytest.approx(wanted["norms"], abs=1e-9), name
        assert found["matrices"] == wanted["matrices"]
        torch.testing.assert_close(found["weights"], wanted["weights"], rtol=0, atol=1e-9, msg=name)
        found, wanted = learned[f"{name} True"], learn(name, exact=True)
        assert (found["losses"], found["norms"]) == (wanted["losses"], wanted["norms"]), name
        assert _bits(found["weights"]) == _bits(wanted["weights"]), name
    assert len(learned["muon False"]["matrices"]) == 3 * 4  # blocks, matrices


def test_the_plan_covers_every_parameter_once() -> None:
    """FSDP refuses a parameter of two blocks, so what blocks share belongs to the stack."""
    for name, preset in PRESETS.items():
        blocks: dict[int, str] = {}
        for path, module in outline(preset()).named_modules():
            for parameter in module.parameters() if isinstance(module, Block) else ():
                assert blocks.setdefault(id(parameter), path) == path, (name, path)


def test_recomputed_blocks_give_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    found, calls, case = [], list[nn.Module](), CASES["recomputed"]
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: calls.append(module))
    for every in (0, 1, 2):
        calls.clear()
        monkeypatch.setitem(CASES, "recomputed", case._replace(settings={"recompute": every}))
        found.append(learn("recomputed"))
        found[-1]["calls"] = sum(isinstance(module, SelfAttention) for module in calls)
    handle.remove()
    forward = STEPS * 2 * 3  # steps, micro-batches, blocks
    assert [part["calls"] for part in found] == [forward, 2 * forward, forward + forward * 2 // 3]
    for part in found[1:]:
        assert (part["losses"], part["norms"]) == (found[0]["losses"], found[0]["norms"])
        assert _bits(part["weights"]) == _bits(found[0]["weights"])


def test_a_run_of_two_shards_has_the_bits_of_one_process_and_continues_as_one(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"steps": 6, "accumulate": 3, "ema": 0.9, "optim": "muon", "parallel.exact": True}
    settings["checkpoint_every"] = 3
    train(tmp_path / "alone", counting_recipe(**settings))
    run, model = tmp_path / "run", (tmp_path / "alone" / "model.safetensors").read_bytes()
    words = [f"{name}={json.dumps(value)}" for name, value in settings.items()]
    _launch(tmp_path, tiny_task.__file__, 2, str(run), "new", *words, "parallel.shard=2")
    assert (run / "model.safetensors").read_bytes() == model
    shutil.rmtree(run / "checkpoints" / "step-00000006")  # as if it had been stopped after step 3
    status = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(status | {"status": "interrupted", "step": 3}))
    train(run, counting_recipe(**settings), resume=True)
    assert (run / "model.safetensors").read_bytes() == model


def test_processes_that_do_not_divide_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"parallel\.shard=2 and parallel\.replicas=-1 do not use 1 processes"):
        train(tmp_path / "run", counting_recipe(**{"parallel.shard": 2}))
    assert not (tmp_path / "run" / "run.json").exists()
    assert ParallelConfig(shard=-1, replicas=2).sizes(8) == (2, 4)


PLANNED = """
import sys

import headway.learn.trainer
from headway.domains import recipe
from headway.learn.memory import training_bytes
from headway.nn.models import outline

asked = recipe("text")
assert training_bytes(asked, outline(asked.model))["optimiser"]
print(*sorted(set(sys.argv[1:]) & set(sys.modules)))
"""


def test_one_process_imports_neither_fsdp_nor_sympy(tmp_path: Path) -> None:
    """sympy takes a third of a second; torch imports it for zeros_like of a tensor without storage."""
    modules = ("torch.distributed.fsdp", "torch.distributed.tensor", "headway.learn.parallel.sharding", "sympy")
    out, err = Program(tmp_path, PLANNED, *modules).wait()
    assert out == "\n", err


@pytest.mark.parametrize("name", ["text", "experts", "rnnsearch", "towers", "captioner", "robot"])
def test_sampled_rows_are_those_of_the_whole_model(name: str) -> None:
    whole = dict(build(CASES[name].model, 7).named_parameters())
    for shard in range(3):
        with sampled_rows(shard, 3):
            model = build(CASES[name].model, 7)
        kept = 0
        for key, parameter in model.named_parameters():
            start, count = span(len(whole[key]), shard, 3) if whole[key].dim() else (0, 0)
            is_kept = parameter.shape != whole[key].shape
            kept += is_kept
            assert whole_shape(parameter) == whole[key].shape
            assert torch.equal(parameter, whole[key][start : start + count] if is_kept else whole[key]), key
        assert kept > 5
