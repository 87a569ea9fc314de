"""Checkpoints of processes that share a model: any number of processes reads what any number has written."""

from __future__ import annotations

import json
import shutil
import signal
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import row_learner
import torch
from row_learner import MOMENTS, RECIPE, SHARDS, RowLearner, assert_equal, save, whole_learner
from tiny_task import counting_recipe, train

import headway as hw
from headway.errors import UserError
from headway.formats import native
from headway.formats.deferred import deferred_weights
from headway.formats.stored_tensors import RANK_FILE, ROWS, StoredTensors, rank_files
from headway.formats.tensorfile import TensorFile, read_tensors, write_tensors
from headway.io.durable import find_damage, seal, write_json
from headway.learn.checkpoint import Checkpoints, load_weights
from headway.learn.parallel import saving
from headway.learn.parallel.saving import write_rank_file
from headway.learn.run import RunDirectory
from processes import Program

WORLDS = (1, 2, 3, 4, 12)  # 12: more than rows of some tensors


def rank_path(folder: Path, rank: int, world: int) -> Path:
    return folder / RANK_FILE.format(rank, world)


def prefixed(model: Mapping[str, Any], state: Mapping[str, Any]) -> dict[str, Any]:
    return {
        f"{part}.{name}": value
        for part, tensors in (("model", model), ("optimizer", state))
        for name, value in tensors.items()
    }


def written(folder: Path, world: int, step: int = 1, updates: int = 3) -> Path:
    """A checkpoint of `world` processes, written in turn; of 1: as a process without shards writes it."""
    path = folder / "checkpoints" / f"step-{step:08d}"
    if world == 1:
        save(folder, whole_learner(updates), step)
        return path
    path.mkdir(parents=True)
    entries: dict[str, Any] = {}
    for rank in range(world):
        learner = RowLearner(rank, world, updates=updates)
        tensors = prefixed(learner.saved_tensors(), learner.state_dict())
        entries |= write_rank_file(path, tensors, RECIPE.model, rank, world)
    progress = {"tokens": 0, "seconds": 0.0, "evaluated": 0, "stale": 0, "best": None, "forecast": None}
    write_json(path / "state.json", {"version": 1, "step": step, **progress})
    seal(path, entries)
    assert not find_damage(path)
    return path


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    folder = tmp_path_factory.mktemp("checkpoints")
    return {world: written(folder / str(world), world) for world in WORLDS}


@pytest.mark.parametrize("writers", WORLDS)
@pytest.mark.parametrize("readers", [1, 2, 3, 5])
def test_any_number_reads_what_any_number_has_written(writers: int, readers: int, checkpoints: dict[int, Path]) -> None:
    for rank in range(readers):
        learner = RowLearner(rank, readers).forget()
        Checkpoints(checkpoints[writers].parent).load_newest(learner, "loss")  # type: ignore[arg-type]
        assert_equal(learner, RowLearner(rank, readers))


@pytest.mark.parametrize("writers", WORLDS)
def test_one_process_resumes_from_the_rows_of_several(writers: int, checkpoints: dict[int, Path]) -> None:
    learner, wanted = whole_learner.__wrapped__(0), whole_learner()
    Checkpoints(checkpoints[writers].parent).load_newest(learner, "loss")
    for part in ("saved_tensors", "state_dict"):
        for (name, a), b in zip(getattr(learner, part)().items(), getattr(wanted, part)().values(), strict=True):
            assert torch.equal(a, b), name
    assert learner.optimizer.count == 3


def test_a_mean_of_checkpoints_is_that_of_one_process(tmp_path: Path) -> None:
    for folder, world in ((tmp_path / "one", 1), (tmp_path / "mixed", 3)):
        written(folder, world, 1, updates=2)
        written(folder, world * 2, 2, updates=3)
    shutil.rmtree(tmp_path / "one/checkpoints/step-00000002")
    written(tmp_path / "one", 1, 2, updates=3)
    whole = whole_learner.__wrapped__(0)
    Checkpoints(tmp_path / "one/checkpoints").average_newest(whole, 2)
    for rank in range(2):
        learner = RowLearner(rank, 2)
        assert Checkpoints(tmp_path / "mixed/checkpoints").average_newest(learner, 2) == 2  # type: ignore[arg-type]
        for name, tensor in whole.saved_tensors().items():
            rows = learner.model[name]
            assert torch.equal(rows.local, tensor[rows.start : rows.start + len(rows.local)]), name


def test_a_learner_reads_its_rows_alone(checkpoints: dict[int, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    read, rows = list[int](), TensorFile.rows

    def counted(self: TensorFile, name: str, start: int, count: int) -> torch.Tensor:
        values = rows(self, name, start, count)
        read.append(values.nbytes)
        return values

    monkeypatch.setattr(TensorFile, "rows", counted)
    monkeypatch.setattr(TensorFile, "get", lambda self, name: pytest.fail(name))
    for world in WORLDS:
        learner = RowLearner(1, 3)
        read.clear()
        load_weights(learner, checkpoints[world])  # type: ignore[arg-type]
        assert sum(read) == learner.flat.data.nbytes
    stored, _ = native.read_model(checkpoints[1] / native.FILE)
    part, again = stored.rows("embed.table", 2, 3), stored.rows("embed.table", 3, 3)
    assert part.untyped_storage().data_ptr() == again.untyped_storage().data_ptr(), "a copy, not a view of the file"
    with pytest.raises(IndexError, match="11 rows, not 9 to 12"):
        stored.rows("embed.table", 9, 3)


def test_a_checkpoint_of_several_processes_is_a_model(checkpoints: dict[int, Path], tmp_path: Path) -> None:
    for world in WORLDS:
        model = native.load_model(checkpoints[world])
        for (name, a), (_, b) in zip(native.named_tensors(model), whole_learner().saved_tensors().items(), strict=True):
            assert torch.equal(a, b), name
        assert hw.load(checkpoints[world]).module.config == RECIPE.model
        with deferred_weights():
            deferred = native.load_model(checkpoints[world])
        native.save_model(deferred, RECIPE.model, tmp_path / str(world))
        assert (tmp_path / str(world) / native.FILE).read_bytes() == (checkpoints[1] / native.FILE).read_bytes()
    for file in rank_files(checkpoints[3]):
        assert file.read_bytes()[8:9] == b"{"  # JSON and numbers, without pickle


def test_whole_tensors_are_in_the_first_file_alone(checkpoints: dict[int, Path]) -> None:
    first, *others = rank_files(checkpoints[12])
    assert "optimizer.count" in TensorFile(first).names()
    for path in others:
        file = TensorFile(path)
        assert set(file.names()) == set(json.loads(file.metadata[ROWS]))


def test_damage_is_named_with_the_file_of_its_process(tmp_path: Path) -> None:
    written(tmp_path, 3, 1)
    path = written(tmp_path, 3, 2)
    rank_path(path, 1, 3).unlink()
    damaged = bytearray(rank_path(path, 2, 3).read_bytes())
    damaged[-1] ^= 1
    rank_path(path, 2, 3).write_bytes(damaged)
    assert len(hw.verify(path).damaged) == 2
    (message,) = Checkpoints(tmp_path / "checkpoints").set_aside_damaged()
    assert "rank-00001-of-00003.safetensors is missing, " in message
    assert "rank-00002-of-00003.safetensors has changed; the run resumes from an intact checkpoint" in message
    assert [p.name for p in Checkpoints(tmp_path / "checkpoints").all()] == ["step-00000001"]
    (tmp_path / "checkpoints/step-00000001/digests.json").unlink()
    with pytest.raises(UserError, match=r"step-00000001/digests.json is missing, and no intact checkpoint is left"):
        Checkpoints(tmp_path / "checkpoints").set_aside_damaged()


def test_a_longer_run_goes_back_to_the_rows_of_several(tmp_path: Path) -> None:
    earlier = written(tmp_path / "trunk", 4, 1)
    later = Checkpoints(tmp_path / "run" / "checkpoints")
    written(tmp_path / "run", 3, 2, updates=2)
    later.go_back_to(earlier, {"step": 2, "loss": 0.5})
    assert [path.name for path in later.all()] == ["step-00000001"]
    assert not find_damage(later.all()[0])
    learner = RowLearner(1, 2).forget()
    progress = later.load_newest(learner, "loss")  # type: ignore[arg-type]
    assert progress is not None
    assert progress.best == {"step": 2, "loss": 0.5}
    assert_equal(learner, RowLearner(1, 2))


def test_a_folder_that_processes_do_not_share_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = {"bytes": 1000, "sha256": "0"}
    monkeypatch.setattr(saving, "write_rank_file", lambda *_: {"rank-00001-of-00002.safetensors": entry})
    with pytest.raises(UserError, match=r"wrote rank-00001\S+ with 1,000 bytes, but process 0 sees 0 in .*; choose a"):
        save(tmp_path, RowLearner(0, 1), 1)
    assert not list((tmp_path / "checkpoints").iterdir())


def _edited(path: Path, tensors: dict[str, torch.Tensor] | None = None, **metadata: str) -> None:
    old, header = read_tensors(path, "")
    copies = {name: tensor.clone() for name, tensor in old.items()}
    path.unlink()
    write_tensors(path, copies if tensors is None else {**copies, **tensors}, {**header, **metadata})


NAME = "model.embed.table"  # 11 rows: 4, 4 and 3


@pytest.mark.parametrize(
    ("rank", "tensors", "rows", "told"),
    [
        (1, {}, {NAME: [5, [11, 16]]}, "lacks rows 4 to 5 of tensor 'embed.table'"),
        (1, {}, {NAME: [3, [11, 16]]}, "has twice rows 3 to 4 of tensor 'embed.table'"),
        (1, {}, {NAME: [4, [12, 16]]}, "do not fit those of the other processes"),
        (1, {}, {NAME: [8, [11, 16]]}, "do not fit those of the other processes"),
        (1, {NAME: torch.zeros(4, 8)}, {NAME: [4, [11, 16]]}, "do not fit those of the other processes"),
        (1, {NAME: torch.zeros(4, 16).double()}, {NAME: [4, [11, 16]]}, "do not fit those of the other processes"),
        (1, {NAME: torch.tensor(1.0)}, {NAME: [4, [11, 16]]}, "do not fit those of the other processes"),
        (0, {"model.far": torch.zeros(1, 16)}, {"model.far": [0, [1 << 40, 16]]}, "lacks rows 1 to 1099511627776"),
        (1, {}, {NAME: [-4, [11, 16]]}, "does not describe its rows"),
        (1, {}, {NAME: [4.0, [11, 16]]}, "does not describe its rows"),
        (1, {}, {NAME: [4, [1 << 62, 1 << 62]]}, "does not describe its rows"),
        (1, {}, {NAME: [4, []]}, "does not describe its rows"),
        (1, {}, {NAME: 4}, "does not describe its rows"),
        (1, {}, [NAME], "does not describe its rows"),
    ],
)
def test_rows_that_do_not_make_a_tensor_are_refused(
    rank: int, tensors: dict[str, torch.Tensor], rows: Any, told: str, checkpoints: dict[int, Path], tmp_path: Path
) -> None:
    path = Path(shutil.copytree(checkpoints[3], tmp_path / "step-00000001"))
    file = rank_path(path, rank, 3)
    if isinstance(rows, dict):
        rows = {**json.loads(TensorFile(file).metadata[ROWS]), **rows}
    _edited(file, tensors, rows=json.dumps(rows))
    with pytest.raises(UserError, match="; restore it from a copy") as error:
        native.load_model(path)
    assert told in str(error.value)


def test_a_checkpoint_of_another_model_is_refused(checkpoints: dict[int, Path]) -> None:
    learner = RowLearner(1, 2)
    learner.model["embed.table"] = learner.model["embed.table"]._replace(shape=torch.Size((12, 16)))
    with pytest.raises(UserError, match=r"step-00000001: tensor 'embed.table' has shape \(11, 16\), the model needs"):
        load_weights(learner, checkpoints[3])  # type: ignore[arg-type]
    recipe = counting_recipe(ema=0.9)  # AdamW, while the checkpoint has a state of Muon
    other = whole_learner.__wrapped__(0)
    other.optimizer = type(other.optimizer)(recipe.optim, other.model)
    with pytest.raises(UserError, match=r"the optimiser's \w+\.[\w.]+ is missing, expected shape"):
        other.load_state_dict(StoredTensors.open(checkpoints[3] / "optimizer.safetensors", "optimizer.", ""))


def test_a_run_resumes_from_the_rows_of_several_processes(tmp_path: Path) -> None:
    recipe = counting_recipe(steps=6, ema=0.9, evaluate_every=3, checkpoint_every=3)
    whole = train(tmp_path / "whole", recipe)
    for name in ("step-00000003", "step-00000006"):
        shutil.copytree(tmp_path / "whole", tmp_path / name)
        path, rows = tmp_path / name / "checkpoints" / name, tmp_path / name / "rows"
        rows.mkdir()
        model, state = (read_tensors(path / f"{file}.safetensors", "")[0] for file in ("model", "optimizer"))
        for rank in range(3):
            parts = (
                {k: row_learner.split(t, rank, 3) if t.dim() else t for k, t in part.items()} for part in (model, state)
            )
            write_rank_file(rows, prefixed(*parts), recipe.model, rank, 3)
        for file in rows.iterdir():
            shutil.move(file, path)
        for file in ("model", "optimizer"):
            (path / f"{file}.safetensors").unlink()
        seal(path)
        if name == "step-00000003":
            shutil.rmtree(tmp_path / name / "checkpoints" / "step-00000006")
            status = json.loads((tmp_path / name / "run.json").read_text())
            RunDirectory(tmp_path / name).write_status({**status, "status": "interrupted"})
        assert not hw.verify(tmp_path / name).damaged
        train(tmp_path / name, recipe, resume=True)
        assert (tmp_path / name / native.FILE).read_bytes() == (whole.directory / native.FILE).read_bytes()
    last = "checkpoints/step-00000006"
    for file in ("model.safetensors", "optimizer.safetensors"):
        resumed = tmp_path / "step-00000003" / last / file
        assert resumed.read_bytes() == (tmp_path / "whole" / last / file).read_bytes()


def _ports(count: int) -> Iterator[str]:
    for _ in range(count):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            yield str(probe.getsockname()[1])


def test_processes_save_their_rows_and_collect_them(tmp_path: Path) -> None:
    script, ports = Path(row_learner.__file__), list(_ports(len(SHARDS) + 1))
    native.save_tensors(whole_learner().saved_tensors(), RECIPE.model, tmp_path)
    for name in (*SHARDS, "lost"):
        (tmp_path / str(name)).mkdir()
    programs = [
        Program(tmp_path, script, str(tmp_path), *ports, RANK=str(rank), LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1")
        for rank in range(max(SHARDS))
    ]
    outputs = [program.wait() for program in programs]
    assert [program.returncode for program in programs] == [1, -signal.SIGKILL, 0, 0], outputs
    lines = [out.splitlines() for out, _ in outputs]
    for index, (world, shards) in enumerate(SHARDS.items()):
        told = [process[3 * index : 3 * index + 3] for process in lines[:world]]
        full, unwritable, other = told[0]
        assert told == [told[0]] * world, "all processes end with the same error"
        folder, last = tmp_path / str(world), rank_path(Path("step-00000002"), shards - 1, world)
        path = folder / "checkpoints/step-00000001"
        assert full.startswith(f"process {shards - 1}: {path.parent / last} could not be written: File too large (")
        assert unwritable.startswith(f"process 0: {folder}/full/model.safetensors could not be written: File too large")
        assert other.startswith(f"{path} lacks tensor 'extra'; ")
        assert [file.name for file in path.parent.iterdir()] == [path.name]
        assert not find_damage(path)
        assert len(rank_files(path)) == shards, "of replicas, the first writes"
        assert (folder / native.FILE).read_bytes() == (tmp_path / native.FILE).read_bytes()
        assert not list((folder / "full").iterdir())
        learner = RowLearner(0, 1).forget()
        Checkpoints(path.parent).load_newest(learner, "loss")  # type: ignore[arg-type]
        assert_equal(learner, RowLearner(0, 1))
    assert "training process 1 on " in outputs[0][1]  # has ended, which the other one reports
    assert [path.name for path in (tmp_path / "lost/checkpoints").iterdir()] == ["step-00000001"]


def test_a_process_that_is_killed_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    out, error = Program(tmp_path, Path(row_learner.__file__), str(tmp_path)).wait()
    assert out.count("\n") == len(MOMENTS), error
    for line in out.splitlines():
        moment, status, *names = line.split("|")
        assert int(status) == signal.SIGKILL, moment
        whole = ["step-00000001", *(["step-00000002"] if moment == "after the rename" else [])]
        assert [name for name in names if not name.startswith(".")] == whole, moment
        checkpoints = Checkpoints(tmp_path / moment / "checkpoints")
        checkpoints.clean()
        assert sorted(path.name for path in checkpoints.directory.iterdir()) == whole
        assert not any(find_damage(path) for path in checkpoints.all())
