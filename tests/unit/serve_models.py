"""Servers for tests: small models behind the application, each with a loop that writes one request at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

import headway as hw
from headway.serve.app import create_app
from headway.serve.frame import Ready, ServerSettings
from headway.serve.loop import EngineLoop, Steps, open_loop
from headway.serve.served import Resident


def stories(data_dir: Path) -> Path:
    """The published stories260K."""
    path = data_dir / "weights" / "stories260K.bin"
    if not path.is_file():
        pytest.skip(f"{path.parent} lacks stories260K.bin; get it from karpathy/tinyllamas")
    return path


def ready(path: Path, name: str, steps: Steps | None = None) -> Ready:
    """A model that torch runs, written by `steps` or else one request after the other."""
    model = hw.load(path, "cpu", backend="torch")
    return Ready(name, model, open_loop(model, name) if steps is None else EngineLoop(steps, name))


@contextmanager
def asking(*models: Ready, **settings: Any) -> Iterator[TestClient]:
    """A client of a server with these models."""
    app = create_app(Resident(models), ServerSettings(**settings))
    with TestClient(app, base_url="http://localhost", raise_server_exceptions=False) as client:
        yield client


def events(text: str) -> list[dict[str, Any]]:
    """The events of a stream, whose end is checked."""
    lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]
