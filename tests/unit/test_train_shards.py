"""Processes that share the weights of a model learn what one process learns."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
import sharded_models
import torch
from sharded_models import CASES, learn

from headway.errors import ConfigError
from headway.learn.optim import MuonConfig, is_matrix
from headway.learn.parallel.settings import ParallelConfig
from headway.nn.models import Block, outline
from headway.nn.models.presets import PRESETS
from processes import Program

SEVERAL = [name for name in CASES if name != "recomputed"]  # whose dropout depends on the process


def _launch(place: Path, dtype: str, replicas: int, shards: int, *names: str) -> dict[str, Any]:
    """What several processes learn."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    shared = {"WORLD_SIZE": str(replicas * shards), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    words = (str(place / "learned.pt"), dtype, str(replicas), str(shards), *names)
    script = Path(sharded_models.__file__)
    programs = [Program(place, script, *words, **shared, RANK=str(rank)) for rank in range(replicas * shards)]
    errors = [program.wait()[1] for program in programs]
    assert [program.returncode for program in programs] == [0] * len(programs), errors
    return torch.load(place / "learned.pt", weights_only=True)


def _compare(found: dict[str, Any], wanted: dict[str, Any], tolerance: float) -> None:
    assert found["losses"] == pytest.approx(wanted["losses"], abs=tolerance)
    assert found["norms"] == pytest.approx(wanted["norms"], abs=tolerance)
    assert found["weights"].keys() == wanted["weights"].keys()
    for key, tensor in wanted["weights"].items():
        torch.testing.assert_close(found["weights"][key], tensor, rtol=0, atol=tolerance, msg=key)


def test_two_shards_learn_what_one_process_learns(tmp_path: Path) -> None:
    shared = _launch(tmp_path, "float64", 1, 2, *SEVERAL)
    for name in SEVERAL:
        _compare(shared[name], learn(name, 1, 1, torch.float64), 1e-9)


def test_the_plan_covers_every_parameter_once() -> None:
    """FSDP refuses a parameter of two blocks, so those that blocks share belong to the stack."""
    for name, preset in PRESETS.items():
        model = outline(preset())
        seen: dict[int, str] = {}
        for path, module in model.named_modules():
            for parameter in module.parameters() if isinstance(module, Block) else ():
                assert seen.setdefault(id(parameter), path) == path, (name, path)
        names = {id(parameter) for parameter in model.parameters()}
        whole = {id(parameter) for parameter in whole_parameters(model)}
        assert seen.keys() <= names
        assert all(p.numel() < 10_000 for p in model.parameters() if id(p) in whole), name


def test_recomputed_blocks_give_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES["recomputed"]
    found = []
    for every in (0, 1, 2):
        monkeypatch.setitem(CASES, "recomputed", case._replace(settings={"recompute": every}))
        calls: list[Any] = []
        handle = nn.modules.module.register_module_forward_hook(lambda module, *_: calls.append(module))
        found.append(learn("recomputed", 1, 1, torch.float32))
        handle.remove()
        found[-1]["calls"] = sum(type(module).__name__ == "SelfAttention" for module in calls)
    first, all_blocks, every_other = found
    steps = 3 * 2 * 3  # steps, micro-batches, blocks
    assert [part["calls"] for part in found] == [steps, 2 * steps, steps + steps * 2 // 3]
    for other in (all_blocks, every_other):
        assert (other["losses"], other["norms"]) == (first["losses"], first["norms"])
        assert all(torch.equal(other["weights"][key], tensor) for key, tensor in first["weights"].items())


def test_a_run_continues_with_another_number_of_shards(tmp_path: Path) -> None:
    """Weights, velocities and averages are read from the rows of others."""
    settings: dict[str, Any] = {"steps": 6, "accumulate": 2, "model.dropout": 0.0, "ema": 0.9, "optim": "muon"}
    alone = train(tmp_path / "alone", counting_recipe(**settings))
    run, stopped = tmp_path / "run", {**settings, "steps": 3}
    _train(run, "new", **stopped, **{"parallel.shard": 2})


def test_processes_that_do_not_divide_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="parallel.shard=2 and parallel.replicas=-1 do not use 1 processes"):
        train(tmp_path / "run", counting_recipe(**{"parallel.shard": 2}))
    assert not (tmp_path / "run" / "run.json").exists()
    assert ParallelConfig(shard=-1, replicas=2).sizes(8) == (2, 4)


def test_one_process_imports_no_fsdp() -> None:
    source = "import sys, headway.learn; sys.exit('torch.distributed.fsdp' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", source], check=False).returncode == 0
