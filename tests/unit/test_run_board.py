"""The board of runs, and /v1/runs: states, curves that grow, and what is done with runs."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from board_runs import lines, make_run, trained
from serve_models import asking
from starlette.testclient import TestClient

from headway.app import jobs as job_module
from headway.app import run_board, run_points
from headway.app.cli.main import main
from headway.app.jobs import jobs, start_job, stop_job
from headway.app.run_board import EXPORTS, TRASH, RunBoard, settings
from headway.errors import UserError
from headway.serve.app import ENDPOINTS
from headway.serve.interfaces import ApiKey
from headway.serve.tickets import Tickets


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return tmp_path / "runs"


@pytest.fixture
def board(runs: Path, monkeypatch: pytest.MonkeyPatch) -> RunBoard:
    monkeypatch.setattr(run_board, "_SCAN_SECONDS", 0.0)
    return RunBoard(runs)


def states(board: RunBoard) -> dict[str, str]:
    return {run.name: run.state for run in board.changes().runs}


def test_only_what_changed_is_listed(runs: Path, board: RunBoard) -> None:
    assert board.changes().runs == []
    make_run(runs, "first")
    first = board.changes()
    assert [run.name for run in first.runs] == ["first"]
    assert first.is_complete
    row = first.runs[0]
    assert (row.state, row.recipe, row.goal, row.value, row.step, row.parameters) == (
        "finished",
        "tiny",
        "bleu",
        12.0,
        20,
        1234,
    )
    make_run(runs, "second", 20, 10)
    second = board.changes(first.version)
    assert [run.name for run in second.runs] == ["second"]
    assert not second.is_complete
    nothing = board.changes(second.version)
    assert (nothing.version, nothing.runs, nothing.removed) == (second.version, [], [])
    os.rename(runs / "first", runs / "renamed")
    renamed = board.changes(second.version)
    assert ([run.name for run in renamed.runs], renamed.removed) == (["renamed"], ["first"])
    for unknown in ("", "x", "-1", f"{renamed.version}0", "abc-" + "9" * 30):
        assert len(board.changes(unknown).runs) == (2 if not unknown.startswith(renamed.version) else 0)


def change_status(path: Path, status: str) -> None:
    summary = json.loads((path / "run.json").read_text())
    (path / "run.new").write_text(json.dumps({**summary, "status": status}))
    os.replace(path / "run.new", path / "run.json")


def test_a_stopped_run_shows_how_far_it_got(runs: Path, board: RunBoard) -> None:
    make_run(runs, "stopped", 40, 20)
    make_run(runs, "killed", 40, 30, status="running", step=0)
    rows = {run.name: run for run in board.changes().runs}
    assert (rows["stopped"].state, rows["stopped"].step, rows["stopped"].steps) == ("stopped", 20, 40)
    assert (rows["killed"].state, rows["killed"].step, rows["killed"].value) == ("stopped", 30, 45.0)
    assert "without a message" in rows["killed"].reason
    assert rows["killed"].minutes_left is rows["killed"].tokens_per_second is rows["killed"].stage is None
    assert (rows["stopped"].share, rows["stopped"].value_samples) == (0.5, None)


def test_a_finished_run_shows_its_final_score(runs: Path, board: RunBoard) -> None:
    make_run(runs, "finished", goal="accuracy", scores={"split": "test", "accuracy": 18 / 31, "samples": 31})
    row = board.row("finished")
    assert (row.value_text, row.value_samples, row.share) == ("58.1 %", 31, 1.0)


def test_planned_minutes_decide_how_far_a_run_is(runs: Path, board: RunBoard) -> None:
    path = make_run(runs, "live", 40, 10, status="running", minutes=1.0)
    with trained(path):
        row = board.row("live")
        assert (row.share, row.minutes_left) == (0.3333, 0.67), "10 of 40 steps, but 20 of 60 seconds"
        change_status(path, "finished")
        assert (board.row("live").stage, board.row("live").minutes_left) == ("checking", None)


def test_a_run_that_continues_says_after_which_step(runs: Path, board: RunBoard) -> None:
    path = make_run(runs, "live", 40, 10)
    change_status(path, "interrupted")  # after the last line of metrics
    with trained(path):
        assert board.row("live").stage == "continuing"
        change_status(path, "running")
        assert board.row("live").stage == "training"
        board.stop("live")
        assert board.row("live").stage in ("stopping", None)


def test_the_image_of_a_sample_is_read_only_from_an_upload(runs: Path, tmp_path: Path) -> None:
    names = {"uploaded": runs / ".uploads/0/files", "elsewhere": tmp_path / "photos"}
    for name, folder in names.items():
        (folder / "cat").mkdir(parents=True)
        (folder / "cat/1.png").write_bytes(b"pixels")
        samples = [{"source": source, "output": "dog", "reference": "cat"} for source in ("1.png", "../cat/1.png")]
        path = make_run(runs, name, samples=samples)
        (path / "recipe.json").write_text(json.dumps({"name": "vision", "data": [str(folder)]}))
    with asking(keys=(ApiKey("reader"), ApiKey("trainer", None, True)), runs=runs, log=False) as client:
        get = lambda path, key="trainer": client.get(  # noqa: E731
            f"/v1/runs/{path}", headers={"Authorization": f"Bearer {key}"}
        )
        answer = get("uploaded/samples/0")
        assert (answer.status_code, answer.content, answer.headers["content-type"]) == (200, b"pixels", "image/png")
        assert get("uploaded/samples/0", "reader").status_code == 403
        for path in ("uploaded/samples/1", "uploaded/samples/2", "uploaded/samples/x", "elsewhere/samples/0"):
            assert get(path).status_code == 404, path


def test_a_run_that_trains_is_followed_and_stopped(runs: Path, board: RunBoard) -> None:
    path = make_run(runs, "live", 40, 10, status="running")
    with trained(path) as process:
        first = board.changes()
        row = first.runs[0]
        assert (row.state, row.step, row.value, row.tokens_per_second) == ("running", 10, 15.0, 99.5)
        assert f"process {process.pid}" in row.reason
        assert row.minutes_left == 0.5
        with (path / "metrics.jsonl").open("a") as file:
            file.write("".join(lines(11, 21)) + '{"step": 21, "lo')
        row = board.changes(first.version).runs[0]
        assert (row.step, row.value, row.can_stop) == (20, 30.0, True)
        with pytest.raises(UserError, match="is being trained"):
            board.delete("live")
        with pytest.raises(UserError, match="is being trained"):
            board.resume("live")
        board.stop("live")
        process.wait(10)
    assert states(board) == {"live": "stopped"}
    assert (path / ".lease").exists(), "a process that is killed leaves its lease"
    with pytest.raises(UserError, match="is not being trained"):
        board.stop("live")


def test_a_run_of_another_machine_is_shown_and_not_stopped(runs: Path, board: RunBoard) -> None:
    path = make_run(runs, "far", 40, 10)
    lease = {"host": "other", "process": os.getpid(), "machine": "elsewhere", "started": 1.0}
    (path / ".lease").write_text(json.dumps(lease))
    row = board.changes().runs[0]
    assert (row.state, row.can_stop) == ("running", False)
    with pytest.raises(UserError, match=f"process {os.getpid()} on other"):
        board.stop("far")
    os.utime(path / ".lease", (1.0, 1.0))
    assert states(board) == {"far": "stopped"}
    (path / ".lease").write_text(json.dumps({**lease, "machine": job_module.machine_id(), "began": "1"}))
    assert states(board) == {"far": "stopped"}, "this process has the id of the one that held the run"


def test_curves_are_read_from_where_they_ended(runs: Path, board: RunBoard) -> None:
    path = make_run(runs, "run", 40, 10) / "metrics.jsonl"
    first = board.points("run")
    assert (len(first.lines), first.is_restart, first.has_more, first.every) == (11, False, False, 1)
    assert first.lines[-1] == {"step": 10, "seconds": 10.0, "split": "validation", "loss": 3.5, "bleu": 15.0}
    assert board.points("run", first.after).lines == []
    with path.open("a") as file:
        file.write("".join(lines(11, 13)) + '{"step": 13')
    second = board.points("run", first.after)
    assert [line["step"] for line in second.lines] == [11, 12]
    path.write_text("".join(lines(1, 6)))  # as a resumed run that went back
    third = board.points("run", second.after)
    assert (third.is_restart, len(third.lines)) == (True, 5)
    path.unlink()
    assert board.points("run", third.after) == run_points.RunPoints("", True, False, 1, [])


def test_long_curves_are_thinned_and_damaged_lines_left_out(
    runs: Path, board: RunBoard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_points, "_MAX_LINES", 100)
    path = make_run(runs, "run", 1000, 0) / "metrics.jsonl"
    path.write_text(
        '[]\nnull\n{"step": -1}\n{"step": NaN}\n\xff\n{"step": 1, "loss": 1e300, "x": "<b>"}\n'
        + "".join(lines(2, 1001))
    )
    points = board.points("run")
    assert points.every == 10
    assert len([line for line in points.lines if "split" not in line]) == 100
    assert len([line for line in points.lines if "split" in line]) == 100, "evaluations are few, and all are shown"
    assert points.lines[-2]["step"] == 1000
    monkeypatch.setattr(run_points, "_MAX_READ", 1000)
    read, after, more = 0, "", True
    while more:
        part = board.points("run", after)
        read, after, more = read + len(part.lines), part.after, part.has_more
    assert read == 1 + 999 + 100


def test_broken_runs_are_named_and_explained(runs: Path, board: RunBoard, tmp_path: Path) -> None:
    make_run(runs, "newer", format=2)
    (make_run(runs, "half") / "run.json").write_text('{"format": 1, "sta')
    (make_run(runs, "wrong") / "run.json").write_text(json.dumps({"format": 1, "status": "finished"}))
    (make_run(runs, "missing") / "run.json").unlink()
    (make_run(runs, "inner") / "run.json").rename(tmp_path / "run.json")
    (runs / "inner" / "run.json").symlink_to(tmp_path / "run.json")
    (runs / "link").symlink_to(make_run(tmp_path, "elsewhere"))
    (runs / "folder").mkdir()
    (runs / "file").write_text("x")
    (runs / ".hidden").mkdir()
    rows = {run.name: run for run in board.changes().runs}
    assert {run.state for run in rows.values()} == {"broken"}
    reasons = {
        "newer": "a newer headway", "half": "not JSON", "wrong": "parameters", "missing": "no run.json",
        "inner": "no run.json", "link": "is a link",
    }  # fmt: skip
    assert rows.keys() == reasons.keys()
    for name, reason in reasons.items():
        assert reason in rows[name].reason
        assert str(runs) not in rows[name].reason
        assert "\n" not in rows[name].reason
    with pytest.raises(UserError, match="is broken"):
        board.resume("half")
    assert board.delete("half")
    assert "half" not in states(board)
    assert not board.delete("link")
    assert not os.path.lexists(runs / "link")
    assert (tmp_path / "elsewhere" / "run.json").exists()


def test_names_with_paths_and_strange_text(runs: Path, board: RunBoard) -> None:
    make_run(runs, "<img src=x onerror=alert(1)>", recipe="<b>" + "x" * 10_000, goal="\x1b[2J\u202e")
    row = board.changes().runs[0]
    assert len(row.recipe) < 210
    assert row.goal.isprintable()
    (runs / os.fsdecode(b"\xff")).mkdir()
    make_run(runs.parent, "outside")
    for name in ("../outside", "..", ".", "", "/etc", "a\0b", "x" * 10_000):
        with pytest.raises(UserError, match="there is no run"):
            board.row(name)
    for name in ("../outside", "x" * 10_000):
        with pytest.raises(UserError, match=r"not in the trash"):
            board.restore(name)


def test_deleted_runs_can_be_restored_for_a_day(runs: Path, board: RunBoard) -> None:
    make_run(runs, "a-b")
    board.delete("a-b")
    changes = board.changes()
    assert changes.runs == []
    assert [run.name for run in changes.deleted] == ["a-b"]
    make_run(runs, "a-b", 30)
    with pytest.raises(UserError, match="there is another run"):
        board.restore("a-b")
    board.delete("a-b")
    board.empty_trash()
    assert [run.name for run in board.changes().deleted] == ["a-b", "a-b"]
    board.restore("a-b")
    assert board.row("a-b").steps == 30, "the one that was deleted last"
    with pytest.raises(UserError, match="not in the trash"):
        board.restore("unknown")
    make_run(runs / TRASH, "1000-old")
    live = make_run(runs, "live", 40, 10)
    with trained(live):
        board.changes()
        board.empty_trash()
        assert (runs / TRASH / "1000-old").exists(), "never while a run trains"
    board.changes()
    board.empty_trash()
    assert not (runs / TRASH / "1000-old").exists()


def test_a_full_disk_leaves_the_run(runs: Path, board: RunBoard, monkeypatch: pytest.MonkeyPatch) -> None:
    make_run(runs, "run")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "rename", full)
    with pytest.raises(UserError, match="run cannot be deleted: No space left on device; try again"):
        board.delete("run")
    assert states(board) == {"run": "finished"}


def test_commands_of_their_own_go_on_with_runs_and_export_them(
    runs: Path, board: RunBoard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_board, "_HEADWAY", (sys.executable, "-c", "import sys; print(*sys.argv[1:])"))
    path = make_run(runs, "run", 40, 20, deterministic=True)

    def until_ended(name: str) -> str:
        deadline = time.monotonic() + 20
        while jobs(runs)[name].state == "running":
            assert time.monotonic() < deadline
            time.sleep(0.01)
        return jobs(runs)[name].message

    common = f"train {path}/recipe.json --run {path} --resume"
    board.resume("run")
    assert until_ended("run") == f"{common} --deterministic --device cpu --threads 1"
    board.resume("run", finish=True)
    assert until_ended("run").startswith(f"{common} --finish")
    board.resume("run", 2.5)
    assert until_ended("run").startswith(f"{common} --minutes 2.5")
    target = board.export("run", "gguf")
    assert until_ended("run (export)") == f"export {path} {target} --format gguf"
    row = board.changes().runs[0]
    assert (row.export, row.export_path) == ("finished", str(runs / EXPORTS / "run.gguf"))
    target.parent.mkdir()
    target.touch()
    assert board.export("run", "gguf").name == "run-2.gguf"
    until_ended("run (export)")
    monkeypatch.setattr(run_board, "_HEADWAY", ("sh", "-c", "exec sleep 30"))
    board.export("run", "hf")
    with pytest.raises(UserError, match="run is being exported; delete it when"):
        board.delete("run")
    stop_job(runs, "run (export)")
    while jobs(runs)["run (export)"].state == "running":
        time.sleep(0.01)
    board.delete("run")
    assert os.listdir(runs / ".jobs") == []
    make_run(runs, "run")
    assert board.row("run").export is None


def test_runs_of_a_comparison_and_runs_with_long_names(
    runs: Path, board: RunBoard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_board, "_HEADWAY", (sys.executable, "-c", "import sys; print(*sys.argv[1:])"))
    make_run(make_run(runs, "alone"), "checkpoint")  # of a run, whose folders are not looked at
    inner, long = "cells 100%/lstm", "x" * 95
    make_run(runs, inner, 40, 20)
    make_run(runs / "cells 100%" / "deeper", "run")
    (runs / "link").symlink_to(runs / "cells 100%")
    make_run(runs, long)
    expected = {"alone": "finished", inner: "stopped", "link": "broken", long: "finished"}
    assert states(board) == expected
    deadline, row = time.monotonic() + 20, lambda name: next(row for row in board.changes().runs if row.name == name)
    for name, stem in ((inner, "cells 100%-lstm"), (long, long)):
        board.resume(name)
        while row(name).state == "starting":
            assert time.monotonic() < deadline
        target = board.export(name, "gguf")
        assert target == runs / EXPORTS / f"{stem}.gguf"
        while row(name).export == "running":
            assert time.monotonic() < deadline
        assert (row(name).export, row(name).export_path) == ("finished", str(target))
    assert states(board) == expected, "the jobs are those of these runs"
    assert board.delete(inner)
    (runs / "cells 100%" / "deeper" / "run" / "run.json").unlink()
    with trained(make_run(runs, "cells 100%/live", 40, 20)):
        assert board.row("cells 100%/live").state == "running"
    shutil.rmtree(runs / "cells 100%")
    assert [deleted.name for deleted in board.changes().deleted] == [inner]
    board.restore(inner)
    assert states(board) == expected
    board.delete(long)
    board.delete(inner)
    assert os.listdir(runs / ".jobs") == []


def test_a_training_without_a_folder_yet(runs: Path, board: RunBoard) -> None:
    start_job(runs, "new", ("sh", "-c", "echo reading; exec sleep 30", "train"))
    deadline = time.monotonic() + 20
    while board.row("new").reason != "reading":
        assert time.monotonic() < deadline
    assert states(board) == {"new": "starting"}
    board.stop("new")
    while states(board) != {"new": "broken"}:
        assert time.monotonic() < deadline
    assert not board.delete("new"), "there is nothing to restore"
    assert states(board) == {}
    assert os.listdir(runs / ".jobs") == []


def test_why_a_run_stopped_has_no_commands(runs: Path, board: RunBoard) -> None:
    make_run(runs, "run", 40, 20)
    for message, reason in (
        ("stopped at step 20 of 40; resume runs/run with --resume", "it can continue from its last saved state"),
        (
            "stopped during step 21 and lost; resume runs/run after step 20 with --resume",
            "stopped during step 21 and lost",
        ),
        ("the disk is full; free space", "the disk is full; free space"),
    ):
        start_job(runs, "run", ("sh", "-c", f"echo 'headway: {message}'; exit 2", "train"))
        deadline = time.monotonic() + 20
        while (row := board.changes().runs[0]).state != "stopped" or row.reason != reason:
            assert time.monotonic() < deadline, row.reason


def test_equal_blocks_are_stated_once() -> None:
    blocks = {"list": [{"x": 1}, {"x": 1}], "two": [{"x": 1}, {"x": None}]}
    assert settings({"a": {"b": 1, "c": [1, "x"]}, **blocks, "reasons": ["r"]}) == {
        "a.b": "1", "a.c": '[1, "x"]', "list.count": "2", "list.x": "1",
        "two.count": "2", "two.0.x": "1", "two.1.x": "null",
    }  # fmt: skip
    assert settings([]) == {}


def test_the_command_lists_runs(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(runs, "run")
    assert main(["board", str(runs), "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["runs"]
    assert (row["name"], row["state"], row["value"]) == ("run", "finished", 12.0)
    for path, message in (
        (runs / "run", f"is a run; .* headway board {runs}"),
        (runs / "none", "is not a folder; pass"),
    ):
        assert main(["board", str(path)]) == 2
        assert re.search(message, capsys.readouterr().err)


@pytest.fixture
def client(runs: Path) -> Iterator[TestClient]:
    make_run(runs, "run")
    (runs / "run" / "report.html").write_text("<!DOCTYPE html><title>Report</title>")
    with asking(keys=(ApiKey("reader"), ApiKey("trainer", None, True)), runs=runs, log=False) as client:
        yield client


def headers(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def test_a_key_that_may_not_train_only_looks(client: TestClient, runs: Path) -> None:
    assert client.get("/v1/runs").status_code == 401
    listed = client.get("/v1/runs", headers=headers("reader")).json()
    assert [run["name"] for run in listed["runs"]] == ["run"]
    assert not listed["may_train"]
    assert client.get(f"/v1/runs?since={listed['version']}", headers=headers("reader")).json()["runs"] == []
    curves = json.dumps({"run": "", "none": ""})
    followed = client.get("/v1/runs", params={"points": curves}, headers=headers("reader")).json()["points"]
    assert followed == {"run": client.get("/v1/runs/run/points", headers=headers("reader")).json()}
    assert client.get("/v1/runs?points=[]", headers=headers("reader")).json()["error"]["param"] == "points"
    make_run(runs, "several/one")
    inner = client.get("/v1/runs/several%2Fone", headers=headers("reader")).json()
    assert inner["run"]["name"] == "several/one"
    assert client.get("/v1/runs/several%2Fone/points", headers=headers("reader")).json()["lines"]
    details = client.get("/v1/runs/run", headers=headers("reader")).json()
    assert details["samples"] == [{"prompt": "a <b>bold</b> start", "output": "of run"}]
    assert details["settings"]["model.stack.blocks.mixer.kind"] == "lstm"
    assert {"metric": "BLEU", "test": "12", "95 % interval": None, "best validation": "30"} in details["scores"]
    assert len(client.get("/v1/runs/run/points", headers=headers("reader")).json()["lines"]) == 22
    for action in ("stop", "resume", "finish", "extend", "export", "delete", "restore"):
        refused = client.post(f"/v1/runs/run/{action}", json={}, headers=headers("reader"))
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "may_not_train")
    assert (runs / "run").exists()
    assert client.get("/v1/runs", headers=headers("trainer")).json()["may_train"]
    assert client.post("/v1/runs/run/delete", json={}, headers=headers("trainer")).status_code == 200
    assert not (runs / "run").exists()
    assert client.post("/v1/runs/run/restore", json={}, headers=headers("trainer")).status_code == 200


def test_a_key_that_may_not_train_sees_no_path(client: TestClient, runs: Path) -> None:
    recipe = json.loads((runs / "run" / "recipe.json").read_text())
    settings = {"data": ["texts"], "start": "/srv/start", "task": {"file": "../x", "codec": "bytes"}}
    (runs / "run" / "recipe.json").write_text(json.dumps({**recipe, **settings}))
    start_job(runs, "run (export)", ("sh", "-c", "echo /srv/model; exit 2", "export", "x", str(runs / EXPORTS / "out")))
    deadline = time.monotonic() + 20
    while jobs(runs)["run (export)"].state == "running":
        assert time.monotonic() < deadline
    for key, is_shown in (("reader", False), ("trainer", True)):
        row = client.get("/v1/runs", headers=headers(key)).json()["runs"][0]
        details = client.get("/v1/runs/run", headers=headers(key)).json()
        assert (details["run"]["export"], details["settings"]["task.codec"]) == ("failed", "bytes")
        for shown in (row, details["run"]):
            assert bool(shown["export_path"]) == bool(shown["export_message"]) == is_shown
        assert bool(details["folder"]) == is_shown
        for name in ("data", "start", "task.file"):
            assert (name in details["settings"]) == is_shown
        assert ("/srv" in json.dumps([row, details])) == (str(runs) in json.dumps([row, details])) == is_shown


def test_a_report_opens_once_and_runs_nothing(client: TestClient, runs: Path) -> None:
    """A report has the paths of its data, so a key that may not train opens none."""
    assert client.get("/v1/runs/run/report").status_code == 401
    assert not client.get("/v1/runs", headers=headers("reader")).json()["runs"][0]["has_report"]
    for method, query in (("POST", ""), ("GET", ""), ("GET", "?ticket=x")):
        refused = client.request(method, f"/v1/runs/run/report{query}", headers=headers("reader"))
        assert refused.json()["error"]["code"] == "may_not_train"
    path = client.post("/v1/runs/run/report", headers=headers("trainer")).json()["path"]
    assert client.get(path.replace("/run/", "/other/")).status_code == 401
    assert client.post(path).status_code == 401
    report = client.get(path)
    assert report.text.startswith("<!DOCTYPE html>")
    assert "sandbox" in report.headers["Content-Security-Policy"]
    assert "script" not in report.headers["Content-Security-Policy"]
    assert client.get(path).status_code == 401, "an address that somebody else sees later opens nothing"
    (runs / "run" / "report.html").unlink()
    (runs / "run" / "report.html").symlink_to("/etc/hostname")
    assert client.post("/v1/runs/run/report", headers=headers("trainer")).status_code == 404
    refused = client.get("/v1/runs/run/report", headers=headers("trainer"))
    assert refused.status_code == 400
    assert "is a link" in refused.json()["error"]["message"]
    assert str(runs) not in refused.json()["error"]["message"]


def test_the_tickets_of_a_key_leave_those_of_others() -> None:
    tickets = Tickets()
    other = tickets.issue("/x", "other")
    issued = [tickets.issue("/x", "one") for _ in range(150)]
    assert tickets.redeem("/x", other) == "other"
    assert [tickets.redeem("/x", ticket) for ticket in issued] == [None] * 50 + ["one"] * 100


def test_a_page_of_another_origin_may_use_every_method(runs: Path) -> None:
    with asking(origins=("https://page.example",), runs=runs, log=False) as client:
        asked = {"Origin": "https://page.example", "Access-Control-Request-Method": "DELETE"}
        answer = client.options("/v1/uploads/x", headers=asked)
    methods = {endpoint.method for endpoint in ENDPOINTS}
    assert methods <= set(answer.headers["Access-Control-Allow-Methods"].split(", "))


def test_what_is_not_there(client: TestClient) -> None:
    for name in ("none", "%2e%2e", "a%00b", "x" * 10_000):
        for path in ("", "/points", "/report"):
            answer = client.get(f"/v1/runs/{name}{path}", headers=headers("trainer"))
            assert answer.status_code == 404
            assert len(answer.json()["error"]["message"]) < 500
    wrong = client.post("/v1/runs/run/extend", json={}, headers=headers("trainer"))
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "minutes")
    for body in ({"minutes": 0}, {"minutes": "x"}, {"format": "exe"}, {"other": 1}):
        assert client.post("/v1/runs/run/extend", json=body, headers=headers("trainer")).status_code == 400
    with asking() as other:
        assert other.get("/v1/runs").json()["error"]["code"] == "no_runs"
