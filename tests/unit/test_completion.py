"""Completion in real shells: commands, options, choices, names, runs and files, as the parsers have them."""

from __future__ import annotations

import os
import pty
import resource
import select
import shlex
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from headway.app.cli import main as cli
from headway.app.cli.completion import _commands
from headway.domains import recipe_domains
from headway.nn.models.presets import PRESETS

SHELLS = ("bash", "zsh", "fish")
Complete = Callable[[str], set[str]]
EDITING = "\x1b[?2004h"  # zsh's editor of lines is ready


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scripts, in a folder with two runs and some files."""
    folder = tmp_path_factory.mktemp("shell")
    for shell in SHELLS:
        with pytest.MonkeyPatch.context() as patch, (folder / f"script.{shell}").open("w") as file:
            patch.setattr("sys.stdout", file)
            assert cli.main(["completion", shell]) == 0
    for run in ("mine", "my other"):
        (folder / "runs" / run).mkdir(parents=True)
        (folder / "runs" / run / "run.json").touch()
    (folder / "notes").mkdir()
    (folder / "my text.txt").touch()
    return folder


def bash(folder: Path, line: str) -> set[str]:
    """As readline splits a line: at spaces and at =."""
    words = [word for part in line.split(" ") for word in part.replace("=", " = ").split(" ")]
    position = f"COMP_WORDS=({' '.join(map(shlex.quote, words))}); COMP_CWORD={len(words) - 1}"
    code = f"source script.bash; {position}; _headway; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    done = subprocess.run(["bash", "--norc", "-c", code], cwd=folder, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return set(done.stdout.splitlines()) - {""}


def fish(folder: Path, line: str) -> set[str]:
    code = f"source script.fish; complete -C '{line}'"
    home = {**os.environ, "HOME": str(folder), "XDG_CONFIG_HOME": str(folder), "XDG_DATA_HOME": str(folder)}
    done = subprocess.run(["fish", "-N", "-c", code], cwd=folder, env=home, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    found = {text.partition("\t")[0].rstrip("/") for text in done.stdout.splitlines()}
    return {text for text in found if text.startswith(line.split(" ")[-1])}  # fish offers similar ones, too


ZSH = r"""
fpath=($PWD $fpath)
autoload -Uz compinit; compinit -u -D
compadd() {
  local -a shown=()
  builtin compadd -O shown "$@"
  print -rl -- "${(@)shown}" >> found
  builtin compadd "$@"
}
print set up
"""


@pytest.fixture(scope="module")
def zsh(scripts: Path) -> Iterator[Complete]:
    """In a terminal, because only an editor of lines completes; compadd is replaced by one that writes a file."""
    (scripts / "setup.zsh").write_text(ZSH)
    (scripts / "_headway").symlink_to("script.zsh")
    process, terminal = pty.fork()
    if process == 0:
        os.chdir(scripts)
        os.execvpe("zsh", ["zsh", "-f", "-i"], {**os.environ, "TERM": "dumb", "HOME": str(scripts)})

    def until(text: str, then: str) -> None:
        seen = ""
        while text not in seen or then not in seen[seen.index(text) :]:
            assert select.select([terminal], [], [], 30)[0], seen
            seen += os.read(terminal, 4096).decode(errors="replace")

    def complete(line: str) -> set[str]:
        (scripts / "found").write_text("")
        os.write(terminal, line.encode() + b"\t")
        os.write(terminal, b"\x15print the end\n")  # after control-U, which clears the line
        until("\nthe end", EDITING)
        return {text.rstrip("/") for text in (scripts / "found").read_text().splitlines() if text}

    until("", EDITING)
    os.write(terminal, b"source setup.zsh\n")
    until("set up", EDITING)
    yield complete
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    os.close(terminal)


@pytest.fixture(params=SHELLS)
def complete(request: pytest.FixtureRequest, scripts: Path) -> Complete:
    if shutil.which(request.param) is None:
        pytest.skip(f"there is no {request.param}")
    if request.param == "zsh":
        return request.getfixturevalue("zsh")
    return partial({"bash": bash, "fish": fish}[request.param], scripts)


def test_commands_options_choices_and_names(complete: Complete) -> None:
    assert {"train", "translate", "transcribe"} <= complete("headway tra")
    assert complete("headway data ge") == {"get"}
    assert complete("headway chess p") == {"puzzles"}
    assert complete("headway train --mi") == {"--minutes"}
    assert complete("headway generate runs/mine --weights int") == {"int8", "int4"}
    assert complete("headway generate --backend t") == {"torch"}
    assert {"gguf"} == complete("headway export runs/mine out --format gg")
    assert "shakespeare" in complete("headway train shake")
    assert "gpt2-medium" in complete("headway show gpt2-m")
    assert complete("headway data get cmud") == {"cmudict"}
    assert complete("headway completion f") == {"fish"}


def test_runs_and_files(complete: Complete) -> None:
    assert "runs/mine" in complete("headway generate runs/mi")
    assert not complete("headway train shakespeare --minutes ")
    assert {"my text.txt", "my\\ text.txt"} & complete("headway train text --data notes my")
    assert "notes" in complete("headway serve --models no")


def test_values_after_an_equals_sign(scripts: Path) -> None:
    assert bash(scripts, "headway generate --weights=int") == {"int8", "int4"}
    assert bash(scripts, "headway generate --weights=") == {"fp32", "bf16", "int8", "int4"}
    assert bash(scripts, "headway serve --models=no") == {"notes"}


def test_bash_in_detail(scripts: Path) -> None:
    """Every command has its options, and the words before the cursor decide what is completed."""
    described = _commands()
    assert bash(scripts, "headway ") == {name.split()[0] for name in cli.COMMANDS}
    for command in ("train", "data get", "chess match", "import", "open"):
        names = {option.name for option in described[command].options}
        assert bash(scripts, f"headway {command} -") == names
        assert {"--json", "--threads", "--help"} <= names
    assert bash(scripts, "headway train ") >= set(recipe_domains())
    assert bash(scripts, "headway bench decode --shape ") == set(PRESETS)
    assert bash(scripts, "headway generate runs/m") == {"runs/mine", "runs/my other"}
    assert bash(scripts, "headway generate --json runs/mi") == {"runs/mine"}  # a flag takes no value
    assert bash(scripts, "headway generate runs/mine runs/mi") == set()
    assert bash(scripts, "headway serve runs/mine runs/mi") == {"runs/mine"}  # several models
    assert bash(scripts, "headway train text --data notes --se") == {"--seed", "--set"}
    assert bash(scripts, "headway nonsense ") == set()
    code = "source script.bash; complete -p headway"
    done = subprocess.run(["bash", "-c", code], cwd=scripts, capture_output=True, text=True, check=True)
    assert done.stdout == "complete -F _headway headway\n"


def test_completing_takes_less_than_a_fifth_of_a_second(scripts: Path) -> None:
    for shell, run in (("bash", bash), ("fish", fish)):
        if shutil.which(shell):
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            run(scripts, "headway train --mi")
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            # Processor time with that of the shell's start, which a busy machine does not stretch.
            assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.2
