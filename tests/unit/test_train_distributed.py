"""Two processes on a CPU learn what one learns."""

from __future__ import annotations

import json
import signal
import socket
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_task
import torch
from tiny_task import CountingConfig, counting, counting_recipe, train
from torch import Tensor

from headway.app.cli.main import main
from headway.errors import UserError
from headway.formats import native
from headway.learn import AdamWConfig, MuonConfig, Shard
from headway.learn.optim import OptimConfig, Optimizer
from headway.learn.parallel import overlap
from headway.learn.parallel.equality import check_equal_processes
from headway.learn.parallel.heartbeat import Beat
from headway.learn.parallel.processes import Processes
from headway.learn.parallel.speed import ComputeTimer
from headway.learn.run import read_metrics
from headway.nn.models.presets import gpt
from processes import Program

SETTINGS: dict[str, Any] = {"steps": 12, "accumulate": 4, "model.dropout": 0.0, "ema": 0.9, "checkpoint_every": 6}
SHORT = {"parallel.timeout": 3}


def _launch(
    directory: Path,
    verb: str,
    source: str | None = None,
    world: int = 2,
    ranks: tuple[int, ...] | None = None,
    **settings: Any,
) -> list[Program]:
    """All processes, or some `ranks`, with the environment that torchrun gives, of the tiny task or of a `source` that
    is given its file.
    """
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
        for rank in (range(world) if ranks is None else ranks)
    ]


def _await_step_6(run: Path, programs: list[Program]) -> None:
    while not (run / "checkpoints" / "step-00000006").exists():
        assert all(program.returncode is None for program in programs), [program.wait() for program in programs]
        time.sleep(0.02)


def _lines(programs: list[Program]) -> list[str]:
    """What headway reports on stderr, of all processes together."""
    errors = "\n".join(program.wait()[1] for program in programs)
    return [line for line in errors.splitlines() if line.startswith("headway: ")]


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


def test_sums_that_start_during_the_backward_pass_have_the_bits_of_one_sum(tmp_path: Path) -> None:
    sizes = {"many": 256, "one": 1 << 30}
    settings = {**SETTINGS, "parallel.exact": False, "optim": "adamw", "accumulate": 3}
    for name, size in sizes.items():
        source = f"import runpy, sys\nfrom headway.learn.parallel import overlap\noverlap._BUCKET_BYTES = {size}\n{RUN}"
        _finish(_launch(tmp_path / name, "new", source, **settings))
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in sizes]
    assert files[0] == files[1]


@pytest.mark.parametrize("optim", [AdamWConfig(), MuonConfig()])
def test_sums_start_in_one_order_when_their_gradients_are_complete(
    optim: OptimConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overlap, "_BUCKET_BYTES", 4096)
    model = gpt(32, 3, 2, vocab_size=40, context=16).build(1)
    model.get_parameter("stack.blocks.1.mixer.out.weight").requires_grad_(False)
    flat = Optimizer(optim, model).flat
    started: list[tuple[Tensor, Tensor]] = []
    waited: list[int] = []

    def start_sum(values: Tensor) -> Callable[[], None]:
        started.append((values, values.clone()))
        return lambda: waited.append(values.data_ptr())

    sums = overlap.OverlappedSum(flat, model, SimpleNamespace(start_sum=start_sum))  # type: ignore[arg-type]
    orders = []
    for is_whole in (True, True, False):
        flat.zero_grads()
        started.clear()
        waited.clear()
        features = model(torch.arange(16)[None]).x
        features.sum().backward()  # an earlier micro-batch
        assert not started
        loss = model.heads["vocabulary"].loss(model(torch.arange(16)[None]).x, torch.arange(16)[None]).total  # type: ignore[union-attr,operator]
        with sums.last_backward():
            (loss if is_whole else model.get_parameter("stack.blocks.0.mixer.out.weight").sum()).backward()
        early = len(started)
        flat.tail[0] = 1
        sums.sum_gradients()
        assert (early == 0) != is_whole
        orders.append([values.data_ptr() for values, _ in started])
        assert waited == orders[-1]
        assert all(torch.equal(values, copy) for values, copy in started)
        assert sorted(orders[-1]) == sorted({*orders[-1]})
        assert sum(values.numel() for values, _ in started) == flat.grads_and_tail.numel()
        assert early >= len(started) - 2 or not is_whole
    assert orders[0] == orders[1] == orders[2]


@pytest.mark.parametrize(("signalled", "number"), [(1, signal.SIGTERM), (0, signal.SIGINT)])
def test_a_signal_to_one_stops_all_after_the_same_step_and_resume_gives_the_same_bytes(
    signalled: int, number: signal.Signals, tmp_path: Path
) -> None:
    run, settings = tmp_path / "run", {**SETTINGS, "steps": 60, "checkpoint_every": 50}
    programs = _launch(run, "new", **settings, delay=0.02)
    while len(read_metrics(run / "metrics.jsonl")) < 5:
        assert all(program.returncode is None for program in programs)
        time.sleep(0.02)
    programs[signalled].signal(number)
    (line,) = _lines(programs)
    assert [program.returncode for program in programs] == [128 + number] * 2
    assert "stopped at step" in line
    assert "resume" in line
    status = json.loads((run / "run.json").read_text())
    assert status["status"] == "interrupted"
    assert (run / "checkpoints" / f"step-{status['step']:08d}").exists()
    _finish(_launch(run, "resume", **settings))
    _finish(_launch(tmp_path / "undisturbed", "new", **settings))
    files = [folder / "model.safetensors" for folder in (run, tmp_path / "undisturbed")]
    assert files[0].read_bytes() == files[1].read_bytes()


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
from headway.learn import interrupts
from headway.learn.parallel import group

group._MIN_START_SECONDS = 3
"""
RUN = """
script = sys.argv.pop(1)
sys.argv[0] = script
runpy.run_path(script, run_name="__main__")
"""


@pytest.mark.parametrize(("number", "told"), [(signal.SIGSTOP, "has not responded for 3 s"), (signal.SIGKILL, "ended")])
@pytest.mark.parametrize("lost", [0, 1])
def test_a_process_that_is_lost_ends_the_others_in_a_line(
    number: signal.Signals, told: str, lost: int, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    programs = _launch(run, "new", **{**SETTINGS, "steps": 600, **SHORT}, delay=0.03)
    _await_step_6(run, programs)
    programs[lost].signal(number)
    (line,) = _lines([programs[1 - lost]])
    assert programs[1 - lost].returncode == 1
    assert f"training process {lost} on {socket.gethostname()}" in line
    assert told in line
    assert "its last heartbeat was at step" in line
    assert "--resume" in line
    if number == signal.SIGSTOP:
        programs[lost].signal(signal.SIGKILL)


def test_a_lost_process_of_a_shared_model_is_named(tmp_path: Path) -> None:
    """FSDP's own operations fail then, instead of headway's."""
    run = tmp_path / "run"
    settings = {**SETTINGS, **SHORT, "steps": 600, "parallel.shard": 2}
    programs = _launch(run, "new", **settings, delay=0.03)
    _await_step_6(run, programs)
    programs[0].signal(signal.SIGKILL)
    (line,) = _lines([programs[1]])
    assert programs[1].returncode == 1
    assert f"training process 0 on {socket.gethostname()} has ended" in line


@pytest.mark.parametrize("missing", [0, 1])
def test_a_process_that_never_starts_is_named(missing: int, tmp_path: Path) -> None:
    (program,) = _launch(tmp_path / "run", "new", IMPATIENT + RUN, ranks=(1 - missing,), **SETTINGS, **SHORT)
    (line,) = _lines([program])
    assert program.returncode == 1
    assert f"training process {missing} " in line
    assert "did not start within 3 s" in line


def test_a_step_that_takes_too_long_is_broken_off(tmp_path: Path) -> None:
    run, settings = tmp_path / "run", {**SETTINGS, **SHORT, "steps": 600, "checkpoint_every": 1}
    programs = _launch(run, "new", IMPATIENT + "interrupts.STEP_SECONDS = 0.2" + RUN, **settings, delay=0.6)
    while not (run / "checkpoints" / "step-00000001").exists():
        assert all(program.returncode is None for program in programs)
        time.sleep(0.02)
    programs[1].signal(signal.SIGTERM)
    (line,) = _lines(programs)
    assert [program.returncode for program in programs] == [143, 143]
    assert "stopped during step" in line
    assert f"resume {run} after step" in line
    checkpoints = sorted(path.name for path in (run / "checkpoints").glob("step-*"))
    assert int(checkpoints[-1][-8:]) + 1 == int(line.split("during step ")[1].split(",")[0])


DATA: dict[str, int | str] = {"version": 1, "samples": 10, "texts": "a"}


class Other:
    """Process 0 of two; the other one is on b, and differs by `change`."""

    world, is_main, device = 2, True, torch.device("cpu")

    def __init__(self, change: Callable[[dict[str, Any]], object]) -> None:
        self.change = change

    def gather_objects(self, data: Any) -> list[Any]:
        other = {**json.loads(json.dumps(data)), "host": "b"}
        self.change(other)
        return [data, other]

    def broadcast_object(self, data: Any) -> Any:
        return data


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda other: other["packages"].update(torch="1.0"), r"torch 1\.0, but process 0 has .*; install the same"),
        (lambda other: other["data"].update(samples=11), "11 samples, not 10; pass the same data to all processes"),
        (lambda other: other["recipe"]["train"].update(steps=7), r"another recipe: train\.steps is 7, not 20"),
        (lambda other: other.update(threads=3), "threads 3, but process 0 has .; start all with the same --threads"),
        (lambda other: other.update(deterministic=True), "deterministic True, but process 0 has False"),
        (lambda other: other["machine"].update(processor="Z80"), r"another processor .*Z80.*parallel\.exact=false"),
    ],
)
def test_processes_that_differ_are_refused(change: Callable[[dict[str, Any]], object], told: str) -> None:
    with pytest.raises(UserError, match=f"process 1 on b has {told}"):
        check_equal_processes(Other(change), counting_recipe(), DATA, is_exact=True)  # type: ignore[arg-type]


def test_equal_processes_go_on_and_other_processors_are_a_warning_without_exact_sums() -> None:
    equal = check_equal_processes(Other(lambda other: None), counting_recipe(), DATA, True)  # type: ignore[arg-type]
    assert equal == (DATA, None)
    other = Other(lambda other: other["machine"].update(processor="Z80"))
    data, warning = check_equal_processes(other, counting_recipe(), DATA, is_exact=False)  # type: ignore[arg-type]
    assert data == DATA
    assert "process 1 on b has another processor than process 0" in str(warning)


def test_an_error_in_one_process_is_reported_once_and_ends_all(tmp_path: Path) -> None:
    failing = RUN.replace("runpy", "import os\nif os.environ['RANK'] == '1':\n    sys.argv += ['rows=-1']\nrunpy", 1)
    failing = failing.replace("rows=-1", "seed=2")
    programs = _launch(tmp_path / "run", "new", "import runpy, sys" + failing, **SETTINGS, **SHORT)
    (line,) = _lines(programs)
    assert [program.returncode for program in programs] == [2, 2]
    assert "process 1 on" in line
    assert "train.seed is 2, not" in line


def test_a_slow_process_is_named_once_in_a_while() -> None:
    timer = ComputeTimer(torch.device("cpu"))
    for _ in range(20):
        with timer.step(), timer.wait():
            time.sleep(0.001)
    assert 0 < timer.mean() < 0.001  # waits do not count
    beats = [Beat(1, 20, seconds, False, f"host{rank}") for rank, seconds in ((1, 0.1), (2, 0.16), (3, 0.1))]
    pulse = SimpleNamespace(watched=[1, 2, 3], beats=beats, seconds=0.1)
    warning = timer.slow_process(pulse)  # type: ignore[arg-type]
    assert "training process 2 on host2 is slow: it computes 0.16 s per step, the median is 0.1 s" in str(warning)
    assert timer.slow_process(pulse) is None  # type: ignore[arg-type]


def test_headway_train_starts_its_processes(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "book.txt").write_text("\n".join(f"The number {i} comes before {i + 1}." for i in range(3000)))
    command = ["train", "text", "--data", str(tmp_path / "book.txt"), "--device", "cpu", "--processes", "2", "--run"]
    command += [str(tmp_path / "run"), "--set", "train.steps=2", "train.accumulate=2", "train.batch_tokens=256"]
    assert main([*command, "model.width=16", "model.depth=1", "--codec", "char", "--context", "32"]) == 0
    told = capfd.readouterr()
    assert told.out.count("run: ") == told.err.count("training for 2 steps") == 1
    assert json.loads((tmp_path / "run" / "run.json").read_text())["processes"] == 2


@pytest.mark.parametrize(
    ("arguments", "environment", "told"),
    [
        (["--processes", "0"], {}, "'0' is not an integer of at least 1"),
        (["--processes", "100000"], {}, "100000 processes are too many"),
        (["--processes", "2"], {"WORLD_SIZE": "2"}, "WORLD_SIZE is set"),
        (["--processes", "2", "--device", "cuda:0"], {}, "cuda"),
    ],
)
def test_numbers_of_processes_are_refused(
    arguments: list[str],
    environment: dict[str, str],
    told: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert main(["train", "text", *arguments]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert told in line
