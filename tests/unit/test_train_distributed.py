"""Two processes on a CPU learn what one learns."""

from __future__ import annotations

import json
import signal
import socket
import time
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import tiny_task
import torch
from tiny_task import CountingConfig, counting, counting_recipe, train

from headway.errors import UserError
from headway.formats import native
from headway.learn import Shard
from headway.learn.parallel.processes import Processes
from headway.learn.run import read_metrics
from processes import Program

SETTINGS: dict[str, Any] = {"steps": 12, "accumulate": 4, "model.dropout": 0.0, "ema": 0.9, "checkpoint_every": 6}


def _launch(directory: Path, verb: str, source: str | None = None, world: int = 2, **settings: Any) -> list[Program]:
    """Processes with the environment that torchrun gives, of the tiny task or of a `source` that is given its file."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    pairs = [f"{name}={json.dumps(value)}" for name, value in settings.items()]
    script, shared = (
        Path(tiny_task.__file__),
        {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port},
    )
    given = (script,) if source is None else (source, str(script))
    words = (*given, str(directory), verb, *pairs)
    return [
        Program(directory.parent, *words, **shared, RANK=str(rank), LOCAL_RANK=str(rank))  # type: ignore[arg-type]
        for rank in range(world)
    ]


def _finish(programs: list[Program]) -> None:
    errors = [program.wait()[1] for program in programs]
    assert not any(program.returncode for program in programs), errors


def test_two_processes_learn_what_one_learns(tmp_path: Path) -> None:
    alone = train(tmp_path / "alone", counting_recipe(**SETTINGS))
    _finish(_launch(tmp_path / "two", "new", **SETTINGS))
    lines = read_metrics(tmp_path / "two" / "metrics.jsonl")
    assert [line["step"] for line in lines] == [line["step"] for line in alone.metrics]
    for one, two in zip(alone.metrics, lines):
        assert two["loss"] == pytest.approx(one["loss"], abs=1e-5)
        assert two.get("tokens") == one.get("tokens")  # the same data in the same steps
    trained = native.load_model(tmp_path / "two").state_dict()
    for name, tensor in alone.model.state_dict().items():
        torch.testing.assert_close(trained[name], tensor, rtol=1e-3, atol=1e-4, msg=name)
    assert json.loads((tmp_path / "two" / "run.json").read_text())["processes"] == 2


def test_an_interrupt_stops_all_at_the_same_step_and_resume_goes_on(tmp_path: Path) -> None:
    run = tmp_path / "run"
    programs = _launch(run, "new", **SETTINGS, delay=0.03)
    while not (run / "checkpoints" / "step-00000006").exists():
        assert all(program.returncode is None for program in programs)
        time.sleep(0.02)
    for program in programs:
        program.signal(signal.SIGINT)
    assert [program.wait() and program.returncode for program in programs] == [130, 130]
    assert json.loads((run / "run.json").read_text())["status"] == "interrupted"
    _finish(_launch(run, "resume", **SETTINGS))
    assert json.loads((run / "run.json").read_text())["step"] == 12


def test_the_order_of_the_data_is_the_same_at_any_world_size() -> None:
    task = counting(CountingConfig(), 1)
    whole = [batch.inputs[0] for batch in islice(task.batches("train", start=4), 6)]
    parts = [[batch.inputs[0] for batch in islice(task.batches("train", Shard(rank, 2), 4), 3)] for rank in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(whole, [ids for pair in zip(*parts) for ids in pair]))
    uneven = [list(islice(Shard(rank, 3, 8).indices(16), 6)) for rank in range(3)]  # 3, 3 and 2 of each 8
    assert uneven == [[16, 19, 22, 24, 27, 30], [17, 20, 23, 25, 28, 31], [18, 21, 26, 29, 34, 37]]


def test_a_step_that_cannot_be_shared_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    processes = Processes(torch.device("cpu"))
    assert (processes.local_micro_batches(3), processes.is_main, processes.shard(3)) == (3, True, Shard(0, 1, 3))
    assert processes.broadcast_object({"a": [1.5]}) == {"a": [1.5]}
    processes.world = 2
    assert processes.local_micro_batches(3) == 2
    with pytest.raises(UserError, match=r"train\.accumulate=1 has fewer micro-batches than 2 processes; set it to 2"):
        processes.local_micro_batches(1)


IMPATIENT = """
import runpy, sys
from headway.learn.parallel import heartbeat

heartbeat._HEARTBEAT_SECONDS, heartbeat._MAX_MISSED = 0.2, 15
script = sys.argv.pop(1)
sys.argv[0] = script
try:
    runpy.run_path(script, run_name="__main__")
except Exception as error:
    sys.exit(str(error))
"""


@pytest.mark.parametrize(("number", "told"), [(signal.SIGSTOP, "has not responded for 3 s"), (signal.SIGKILL, "ended")])
@pytest.mark.parametrize("lost", [0, 1])
def test_a_process_that_is_lost_ends_the_others_in_a_line(
    number: signal.Signals, told: str, lost: int, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    programs = _launch(run, "new", IMPATIENT, **{**SETTINGS, "steps": 600}, delay=0.03)
    while not (run / "checkpoints" / "step-00000006").exists():
        assert all(program.returncode is None for program in programs)
        time.sleep(0.02)
    programs[lost].signal(number)
    _, error = programs[1 - lost].wait()
    assert programs[1 - lost].returncode == 1
    (line,) = [line for line in error.splitlines() if "process" in line and "checkpoint" in line]
    assert told in line
    if number == signal.SIGSTOP:
        programs[lost].signal(signal.SIGKILL)
