"""What the parts of the server agree on: its settings, the models that it has, and what an endpoint is.

An endpoint is one small function: `async (body, context) -> answer`. The table of `app.py` says which path it serves;
all else (reading and checking of the body, keys, limits, errors, streams, clients that go) is done for it.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

import msgspec
from starlette.datastructures import FormData
from starlette.responses import Response

from headway.app.model import Model
from headway.formats.native import Weights
from headway.serve.batches import Batcher
from headway.serve.keys import ApiKey, KeyFile
from headway.serve.loop import EngineLoop
from headway.serve.wire import SERVER_SENT, Wire


@dataclass(frozen=True)
class ServerSettings:
    """What a server allows. Seconds, bytes and counts; each is a limit beyond which a request is refused."""

    keys: tuple[ApiKey, ...] = ()  # neither these nor files: everybody is served
    key_files: tuple[KeyFile, ...] = ()  # of more keys, read again when they change
    hosts: tuple[str, ...] = ()  # names of the server beside those of loopback, without ports
    origins: tuple[str, ...] = ()  # web pages that may ask, as https://example.org; "*" are all
    body_bytes: int = 8 << 20  # of a JSON body
    form_bytes: int = 64 << 20  # of a form with files
    depth: int = 64  # of nested lists and objects
    copies: int = 16  # n of a request
    sequences: int = 64  # n times the prompts of a request
    stops: int = 16  # stop strings of a request
    seconds: float = 600.0  # of a request, from its arrival to its end
    receive_seconds: float = 30.0  # for a body to arrive
    stalled_seconds: float = 30.0  # that a client may leave its answer unread
    step_seconds: float = 60.0  # without a step while there is work, after which a loop counts as dead
    grace: float = 10.0  # seconds for what is under way when the server is told to end
    log: bool = True  # a line of JSON on stdout for each request


Reads = Literal["texts", "images", "sounds"]


class Known(NamedTuple):
    """What is known of a model before a weight is read."""

    kind: str
    verbs: list[str]  # what it can do; see headway.app.predictors
    reads: list[Reads]
    context: int | None  # tokens
    parameters: int
    changed: int  # seconds since 1970
    alone: str | None  # why the texts that it writes are written one after the other; None where they need not be
    weights: Weights | None = None  # the number format that its weights are loaded in; None for fp32
    note: str | None = None  # for the start: in which format quantised weights are served, and why


class Ready(NamedTuple):
    """A model that is loaded. `loop` writes its texts; None where it writes none. All else it does by `batcher`.
    `fingerprint` says what decides the bits of its texts.
    """

    name: str
    model: Model
    loop: EngineLoop | None
    batcher: Batcher
    fingerprint: str = ""


class Served(Protocol):
    """The models of a server."""

    def using(self, name: str) -> AbstractAsyncContextManager[Ready]:
        """The model of a name, "" for the only one there is; loaded if it is not yet, and kept while it is used.
        StatusError 404 where there is none of this name, UserError or StatusError 503 where it cannot be loaded.
        """
        ...

    def listed(self) -> Mapping[str, Known]:
        """What can be asked for, by name."""
        ...

    def known(self, name: str) -> Known:
        """What is known of one. StatusError 404 where there is none of this name, 503 for one that is broken."""
        ...

    def loops(self) -> Mapping[str, EngineLoop]:
        """The loops that run now, by the names of their models."""
        ...

    def ready(self) -> bool:
        """Whether requests can be served now."""
        ...

    async def start(self) -> None:
        """Called once, before the first request."""
        ...

    async def close(self, seconds: float) -> None:
        """Refuse what waits, let what is under way end within `seconds`, end the rest, and free all."""
        ...


CLIENT = "client"  # where the state of a request has it


class Client(Protocol):
    """Who asks, as its connection knows it. `leaving` is called when it goes."""

    leaving: Callable[[], None] | None

    @property
    def gone(self) -> bool: ...
    @property
    def full(self) -> bool:
        """Whether so much waits to be read that the next sending will wait for it."""
        ...

    def abort(self) -> None:
        """Cut the connection off."""
        ...


@dataclass
class Context:
    """One request, as an endpoint sees it."""

    settings: ServerSettings
    served: Served
    id: str  # of the request, in the log and in answers
    owner: str = ""  # whose key it came with; prefixes are shared within one owner
    route: str = ""  # the endpoint's path
    path: Mapping[str, str] = field(default_factory=dict)  # what stands in the path for {name}
    noted: dict[str, str | int] = field(default_factory=dict)  # for the log: the model, numbers of tokens
    outcome: int | None = None  # the status for the log where the answer did not end as the status sent says
    headers: dict[str, str] = field(default_factory=dict)  # of the answer, added to its own


class Events(NamedTuple):
    """An answer that comes in parts: each is sent as soon as it is there, in the format of the endpoint's stream."""

    parts: AsyncGenerator[msgspec.Struct, None]


Serve = Callable[[Any, Context], Awaitable[msgspec.Struct | Events | Response]]


class Endpoint(NamedTuple):
    """What is served at a path. `body` is the struct of a JSON body, None where there is none, and FormData for a form
    with files. `part` is the struct of a stream's parts, which are written as `wire` does.
    """

    method: str
    path: str  # as starlette writes it, {name} for a part of it
    serve: Serve
    summary: str
    body: type[msgspec.Struct] | type[FormData] | None = None
    answer: type[msgspec.Struct] | None = None
    part: type[msgspec.Struct] | None = None
    wire: Wire = SERVER_SENT
