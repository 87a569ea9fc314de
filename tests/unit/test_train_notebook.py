"""Progress in a notebook: one block of output that is renewed, however long a run is."""

from __future__ import annotations

import builtins
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from tiny_task import counting, counting_recipe

from headway.learn import Trainer, display
from headway.learn.display import LiveDisplay, NotebookDisplay, PlainDisplay, open_display


class ZMQInteractiveShell:
    """What a kernel's shell is called, by which rich knows it."""


class TerminalInteractiveShell:
    """What it is called in a terminal."""


class _Handle:
    def __init__(self, first: Any) -> None:
        self.shown = [first]

    def update(self, block: Any) -> None:
        self.shown.append(block)


@pytest.fixture
def handles(monkeypatch: pytest.MonkeyPatch) -> list[_Handle]:
    """A kernel's shell, and the handles of the outputs that are made in it."""
    made: list[_Handle] = []

    def show(block: Any, display_id: bool = False) -> _Handle:
        assert display_id
        made.append(_Handle(block))
        return made[-1]

    module = ModuleType("IPython.display")
    module.display = show  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    monkeypatch.setattr(builtins, "get_ipython", ZMQInteractiveShell, raising=False)
    return made


def test_a_run_is_one_block_that_is_renewed(
    handles: list[_Handle], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(NotebookDisplay, "interval", 1e9)  # only what is said, and the last step
    recipe = counting_recipe(steps=40, evaluate_every=20)
    Trainer(recipe, counting(recipe.task, 1), tmp_path, device="cpu", threads=1).fit()  # type: ignore[arg-type]
    (handle,) = handles  # one output for the whole run
    assert len(handle.shown) < 20  # though it has 40 steps
    last = handle.shown[-1]
    lines = repr(last).splitlines()
    assert any("training for 40 steps" in line for line in lines)
    assert sum("validation loss" in line for line in lines) == 2
    assert lines[-1].startswith("step 40/40")
    assert "<progress" not in last._repr_html_()
    assert any("<progress" in block._repr_html_() for block in handle.shown)
    assert "\x1b" not in "".join(map(repr, handle.shown))
    assert "step" not in capsys.readouterr().err  # nothing twice


def test_blocks_are_renewed_once_a_second(handles: list[_Handle], monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(display.time, "perf_counter", lambda: now[0])
    shown = open_display(True, 1000, 1e6, "cpu")
    assert isinstance(shown, NotebookDisplay)
    for step in range(1, 1001):
        now[0] += 0.01
        shown.update(step, 2.0, step, step)
    shown.print_line("<evaluated> & done")
    assert 10 <= len(handles[0].shown) <= 14
    html = handles[0].shown[-1]._repr_html_()
    assert "&lt;evaluated&gt; &amp; done" in html
    assert '<progress value="1000" max="1000"' in html


def test_what_is_shown_hangs_on_the_shell(handles: list[_Handle], monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(open_display(True, 1, 1.0, "cpu"), NotebookDisplay)
    monkeypatch.setattr(builtins, "get_ipython", TerminalInteractiveShell, raising=False)
    assert isinstance(open_display(True, 1, 1.0, "cpu"), PlainDisplay)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    live = open_display(True, 1, 1.0, "cpu")
    live.close()
    assert isinstance(live, LiveDisplay)


def test_a_run_that_is_interrupted_says_how_far_it_came(handles: list[_Handle]) -> None:
    shown = open_display(True, 10, 1e6, "cpu")
    shown.close()
    assert repr(handles[0].shown[-1]) == ""  # before the first step there is nothing to say
    again = open_display(True, 10, 1e6, "cpu")
    again.update(4, 1.5, 10, 10)
    again.close()
    assert repr(handles[1].shown[-1]).startswith("step 4/10 · loss 1.5000")
