"""The command line without any model: help, exit codes, one line for what a user got wrong."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys

import pytest

from headway.app.cli import main as cli
from headway.app.cli.options import integer, number
from headway.app.cli.terminal import Terminal, format_table


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    code = cli.main(argv)
    out, err = capsys.readouterr()
    return code, out, err


def test_the_overview_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "--help")
    assert code == cli.DONE
    assert err == ""
    assert all(name in out for name in cli.COMMANDS)


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_help_has_an_example_and_the_common_options_and_needs_no_torch(name: str) -> None:
    code = f"import sys; from headway.app.cli.main import main; main({[*name.split(), '--help']})"
    check = "assert not {'torch', 'numpy', 'rich', 'tokenizers'} & set(sys.modules), 'heavy imports'"
    script = f"try:\n    {code}\nfinally:\n    {check}"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    assert f"headway {name}" in done.stdout.split("example:")[1]
    for option in ("--threads", "--device", "--seed", "--deterministic", "--json", "--debug", "--backend"):
        assert option in done.stdout
    # Processor time, which a busy machine does not stretch.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.3


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["trian"], "unknown command 'trian'; did you mean 'train'?"),
        (["tokenizer", "trane"], "unknown command 'tokenizer trane'; did you mean 'train'?"),
        (["--json", "recipes"], "option --json comes before the command; write headway COMMAND --json"),
        (["train"], "the following arguments are required: RECIPE; see headway train --help"),
        (["train", "x", "--minuts", "3"], "headway train has no option --minuts; did you mean '--minutes'?"),
        (["train", "x", "y"], "unexpected argument 'y'; see headway train --help"),
        (["train", "x", "--threads", "0"], "argument --threads: '0' is not an integer of at least 1"),
        (["train", "x", "--minutes", "-1"], "argument --minutes: '-1' is not a number above 0"),
        (["train", "x", "--minutes", "inf"], "argument --minutes: 'inf' is not a number above 0"),
        (["generate", "x", "--prompt", "a", "--top-p", "2"], "'2' is not a number above 0 to 1"),
        (["recipes", "--backend", "gpu"], "unknown backend 'gpu'; use auto, torch or cpu"),
        (["recipes", "--threads", "5000"], "5000 threads are too many for"),
    ],
)
def test_a_wrong_argument_is_one_line_and_exit_2(
    capsys: pytest.CaptureFixture[str], argv: list[str], message: str
) -> None:
    code, out, err = run(capsys, *argv)
    assert code == cli.USER_ERROR
    assert out == ""
    assert err.startswith("headway: ")
    assert err.count("\n") == 1
    assert message in err


def test_input_that_is_no_unicode_is_one_line() -> None:
    """Whatever the locale says."""
    program = "import sys; from headway.app.cli import main as m; m._dispatch = lambda given: sys.stdin.read(); "
    program += "sys.exit(m.main([]))"
    for locale in ("C", "C.UTF-8"):
        surroundings = {**os.environ, "LC_ALL": locale}
        found = subprocess.run(
            [sys.executable, "-c", program], input=b"caf\xe9\n", capture_output=True, env=surroundings, check=False
        )
        assert found.returncode == cli.USER_ERROR
        assert found.stderr.decode() == (
            "headway: the input is not UTF-8 at byte 3; convert it, for example: iconv -f ISO-8859-1 -t UTF-8\n"
        )


def _fake(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def fail(arguments: list[str]) -> None:
        raise error

    monkeypatch.setattr(cli, "_dispatch", fail)


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (RuntimeError("broken\nhere"), cli.FAILED, "headway: RuntimeError: broken; add --debug for the traceback\n"),
        (KeyboardInterrupt(), cli.INTERRUPTED, "headway: interrupted\n"),
        (OSError(28, "No space left", "x.bin"), cli.FAILED, "headway: x.bin: no space left\n"),
    ],
)
def test_failures_have_their_own_exit_codes(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    code: int,
    message: str,
) -> None:
    _fake(monkeypatch, error)
    assert run(capsys, "recipes") == (code, "", message)


def test_debug_shows_the_traceback(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    _fake(monkeypatch, RuntimeError("it broke"))
    _, _, err = run(capsys, "recipes", "--debug")
    assert "Traceback" in err


def test_a_closed_pipe_is_no_error() -> None:
    script = "import sys; from headway.app.cli.main import main; sys.exit(main(['--help']))"
    process = subprocess.Popen(
        [sys.executable, "-c", f"import time; time.sleep(0.2)\n{script}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    with process.stderr:
        assert process.stderr.read() == b""
    assert process.wait() == cli.DONE


def test_json_is_one_object_on_the_last_line(capsys: pytest.CaptureFixture[str]) -> None:
    terminal = Terminal(json=True)
    terminal.print("for people")
    terminal.note("progress")
    terminal.print_result({"loss": float("nan"), "values": (1, 2.5)})
    out, err = capsys.readouterr()
    assert json.loads(out) == {"loss": None, "values": [1, 2.5]}
    assert err == "progress\n"


def test_columns_are_aligned_and_numbers_stand_right() -> None:
    text = format_table([{"name": "a", "parameters": 1200}, {"name": "long name", "parameters": 3}])
    assert text.splitlines() == ["name       parameters", "a               1,200", "long name           3"]


def test_types_of_numbers() -> None:
    assert integer(1)("3") == 3
    assert number(0)("0") == 0.0
    assert number(0, 1, above=True)("1") == 1.0
