"""Compiling the engine in the background: when it begins, who waits for it, and how it ends."""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path

import pytest

from headway.engine import machine, preparation
from headway.engine.machine import CompiledFunction
from headway.serve import engine_preparation
from headway.serve.engine_preparation import EnginePreparation
from headway.serve.interfaces import ModelSummary

WRITER = ModelSummary("a decoder", ["generate"], ["texts"], 64, 100, 0, None)
TORCH = WRITER._replace(sequential_reason="it runs on torch")
CLASSIFIER = WRITER._replace(verbs=["classify"])


class Stored:
    """Code that is compiled as soon as its file exists."""

    def __init__(self, file: Path) -> None:
        self.file = file

    @property
    def is_compiled(self) -> bool:
        return self.file.exists()


def test_only_models_that_need_the_engine_wait_for_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    prepared = tmp_path / "prepared"
    code = "import sys, time; time.sleep(0.3); open(sys.argv[1], 'w')"
    monkeypatch.setattr(engine_preparation, "_COMMAND", (sys.executable, "-c", code, str(prepared)))
    monkeypatch.setattr(engine_preparation, "FUNCTIONS", (Stored(prepared),))

    async def use() -> None:
        engine = EnginePreparation()
        engine.start({"classifier": CLASSIFIER, "torch": TORCH})
        assert engine.seconds is None
        engine.start({"classifier": CLASSIFIER, "writer": WRITER})
        await engine.wait_for(CLASSIFIER)
        assert engine.seconds is not None
        assert not prepared.exists()
        await engine.wait_for(WRITER)
        assert prepared.exists()
        assert engine.seconds is None
        other = EnginePreparation()
        other.start({"writer": WRITER})
        assert other.seconds is None, "everything is compiled"

    asyncio.run(use())


def test_it_ends_with_the_server_and_nobody_waits_for_ever(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(engine_preparation, "_COMMAND", (sys.executable, "-c", "import time; time.sleep(60)"))
    monkeypatch.setattr(engine_preparation, "FUNCTIONS", (Stored(tmp_path / "none"),))
    monkeypatch.setattr(engine_preparation, "_MAX_SECONDS", 0.5)

    async def use() -> None:
        engine, begun = EnginePreparation(), time.monotonic()
        engine.start({"writer": WRITER})
        await engine.wait_for(WRITER)
        assert engine.seconds is None
        other = EnginePreparation()
        other.start({"writer": WRITER})
        assert other.seconds is not None
        await other.close()
        assert other.seconds is None
        assert time.monotonic() - begun < 20

    asyncio.run(use())


def test_what_is_compiled_is_what_models_call(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The file in the cache has the name that a call with these arguments looks for."""

    def add(one: int, other: int) -> int:
        return one + other

    function = CompiledFunction(add)
    monkeypatch.setattr(machine, "CACHE", tmp_path)
    monkeypatch.setattr(preparation, "FUNCTIONS", (function,))
    preparation.prepare()
    assert function.is_compiled
    files = [path.name for path in tmp_path.glob("*.object")]
    assert files == [f"{function._name}-{'-'.join([machine._kind(1)] * 2)}.object"]
