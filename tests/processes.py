"""Programs in processes of their own, forked from one that has imported torch: a start takes no seconds."""

from __future__ import annotations

import os
import runpy
import signal
import sys
from multiprocessing import get_context
from pathlib import Path
from tempfile import mkdtemp

_FORKING = get_context("forkserver")
# Packages alone: what of headway a program imports, and in which state, is its own affair.
_FORKING.set_forkserver_preload(
    ["torch", "torch.distributed", "numba", "tokenizers", "safetensors.torch", "jaxtyping", "jinja2"]
)


class Program:
    """A running program. `source` is its text or its file; what it writes is kept in a new folder in `place`."""

    def __init__(self, place: Path, source: str | Path, *words: str, **environment: str) -> None:
        self._said = Path(mkdtemp(dir=place))
        self._process = _FORKING.Process(
            target=_run, args=(source, words, {**os.environ, **environment}, self._said), daemon=True
        )
        self._process.start()

    @property
    def returncode(self) -> int | None:
        """None while it runs, and -N where signal N has ended it."""
        return self._process.exitcode

    @property
    def pid(self) -> int:
        return self._process.pid or 0

    @property
    def out(self) -> str:
        """What it has written until now."""
        return (self._said / "out").read_text() if (self._said / "out").exists() else ""

    def wait(self, seconds: float = 100) -> tuple[str, str]:
        """What it has written to stdout and stderr, when it has ended."""
        self._process.join(seconds)
        if self.returncode is None:
            self._process.kill()
            self._process.join()
            raise TimeoutError(f"no end after {seconds} s: {(self._said / 'err').read_text()}")
        return (self._said / "out").read_text(), (self._said / "err").read_text()

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)


def _run(source: str | Path, words: tuple[str, ...], environment: dict[str, str], said: Path) -> None:
    for name, number in (("out", 1), ("err", 2)):
        os.dup2(os.open(said / name, os.O_WRONLY | os.O_CREAT), number)
    sys.argv = [str(source) if isinstance(source, Path) else "-c", *words]
    os.environ.clear()
    os.environ.update(environment)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whatever nohup these tests run under
    os.fsync = os.fstat  # as in conftest.py: what a killed process has written is there
    if isinstance(source, Path):
        runpy.run_path(str(source), run_name="__main__")
    else:
        exec(compile(source, "<program>", "exec"), {"__name__": "__main__"})
