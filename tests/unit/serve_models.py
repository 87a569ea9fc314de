"""Servers for tests: small models behind the application, each with a loop that writes one request at a time."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from served import Resident
from starlette.testclient import TestClient

import headway as hw
from headway.errors import UserError
from headway.generate import Event
from headway.generate.scheduler import FullError, Request
from headway.generate.sequences import AnswerReader
from headway.serve.app import create_app
from headway.serve.batcher import Batcher
from headway.serve.engine_loop import EngineLoop, Steps, open_engine_loop
from headway.serve.fingerprint import fingerprint
from headway.serve.interfaces import ReadyModel, ServerSettings


def stories(data_dir: Path) -> Path:
    """The published stories260K."""
    path = data_dir / "weights" / "stories260K.bin"
    if not path.is_file():
        pytest.skip(f"{path.parent} lacks stories260K.bin; get it from karpathy/tinyllamas")
    return path


def ready(path: Path, name: str, steps: Steps | None = None) -> ReadyModel:
    """A model that torch runs, written by `steps` or else one request after the other."""
    model = hw.load(path, "cpu", backend="torch")
    loop = open_engine_loop(model, name) if steps is None else EngineLoop(steps, name)
    return ReadyModel(name, model, loop, Batcher(name), fingerprint(model))


@contextmanager
def asking(*models: ReadyModel, **settings: Any) -> Iterator[TestClient]:
    """A client of a server with these models."""
    app = create_app(Resident(models), ServerSettings(**settings))
    with TestClient(app, base_url="http://localhost", raise_server_exceptions=False) as client:
        yield client


def events(text: str) -> list[dict[str, Any]]:
    """The events of a stream, whose end is checked."""
    lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


class Held(NamedTuple):
    running: int


class Script:
    """Steps that say the ids of each prompt again, one a step, for each copy, and the next ids as less likely ones."""

    def __init__(self, wait: float = 0.0, fails_at: int | None = None, spell: Callable[[int], str] = chr) -> None:
        self.under_way: dict[int, tuple[Request, int]] = {}
        self.readers: dict[int, list[AnswerReader]] = {}
        self.cancelled: list[int] = []
        self.threads: set[int] = set()
        self.steps = self.given = 0
        self._wait, self._fails_at, self._spell = wait, fails_at, spell

    def submit(self, request: Request) -> int:
        self.threads.add(threading.get_ident())
        if len(request.prompt) > 1000:
            raise UserError("a prompt is too long; shorten it")
        if len(self.under_way) >= 4:
            raise FullError("4 requests wait; ask later")
        self.given += 1
        self.under_way[self.given] = (request, 0)
        self.readers[self.given] = [] if request.reader is None else [request.reader() for _ in range(request.n)]
        return self.given

    def cancel(self, ticket: int) -> None:
        self.cancelled.append(ticket)
        self.under_way.pop(ticket, None)

    def step(self) -> list[Event]:
        self.threads.add(threading.get_ident())
        time.sleep(self._wait)
        self.steps += 1
        if self.steps == self._fails_at:
            raise ZeroDivisionError("a fault of the engine")
        said = []
        for ticket, (request, place) in list(self.under_way.items()):
            last = place + 1 == len(request.prompt)
            for copy in range(request.n):
                text, reason = self._spell(request.prompt[place]), "stop" if last else None
                top = [(request.prompt[place] + more, -1.0 - more) for more in range(request.top)]
                token = request.prompt[place]
                event = Event(copy, token, text, logprob=-1.0, top=top, reason=reason, ticket=ticket)
                if readers := self.readers[ticket]:
                    event.thinking = readers[copy].state == "thinking"
                    event.text = readers[copy].push(text, token, last)
                    event.reasoning = readers[copy].reasoning
                    event.recipient = readers[copy].recipient
                said.append(event)
            self.under_way[ticket] = (request, place + 1)
            if last:
                del self.under_way[ticket]
        return said

    def state(self) -> Held:
        return Held(len(self.under_way))
