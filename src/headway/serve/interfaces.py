"""Types shared by the parts of the server: settings, models, requests and endpoints.

An endpoint is one small function: `async (body, context) -> answer`. The table in `app.py` gives its path. The server
does everything else: it reads and checks bodies, keys and limits, and handles errors, streams and disconnects.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import msgspec
from starlette.datastructures import FormData
from starlette.responses import Response

from headway.app.model import Model
from headway.formats.native import LoadedWeights
from headway.serve.api_keys import ApiKey, KeyFile
from headway.serve.batcher import Batcher
from headway.serve.engine_loop import EngineLoop
from headway.serve.session_keys import SessionKeys
from headway.serve.tickets import Tickets
from headway.serve.wire import SERVER_SENT, Wire


@dataclass(frozen=True)
class ServerSettings:
    """A server's access rules and limits. A request that exceeds a limit is rejected."""

    keys: tuple[ApiKey, ...] = ()  # without keys and key files, everyone may use the server
    key_files: tuple[KeyFile, ...] = ()  # files with more keys, read again when they change
    sessions: SessionKeys | None = None  # of the pages that `headway open` shows; their requests need one
    hosts: tuple[str, ...] = ()  # host names to accept in addition to loopback, without ports
    origins: tuple[str, ...] = ()  # web pages that may use the server, such as https://example.org; "*" allows all
    body_bytes: int = 8 << 20  # of a JSON body
    form_bytes: int = 64 << 20  # of a form with files
    max_depth: int = 64  # of nested lists and objects
    max_n: int = 16  # largest n in a request
    max_sequences: int = 64  # n times the number of prompts in a request
    max_stop_strings: int = 16  # stop strings per request
    request_seconds: float = 600.0  # of a request, from arrival to end
    receive_seconds: float = 30.0  # for a body to arrive; for each part of a body that an endpoint reads itself
    stalled_seconds: float = 30.0  # for which a client may leave its answer unread
    step_seconds: float = 60.0  # without a step while there is work, after which an engine loop counts as stalled
    grace: float = 10.0  # seconds that running requests get when the server shuts down
    thinking_token_budget: int | None = None  # of requests without one
    tickets: Tickets = field(default_factory=Tickets)  # for documents that browsers open without a key
    runs: Path | None = None  # folder of the runs that clients may see, and train in with a key that may; None: no runs
    log: bool = True  # write one line of JSON to stdout per request


InputKind = Literal["texts", "images", "sounds"]


class ModelSummary(NamedTuple):
    """What is known about a model before its weights are loaded."""

    kind: str
    verbs: list[str]  # tasks that it supports; see headway.app.predictors
    inputs: list[InputKind]
    context: int | None  # tokens
    parameters: int
    modified: int  # seconds since 1970
    sequential_reason: str | None  # why no request joins others that run; None if they do
    weights: LoadedWeights | None = None  # number format that its weights are loaded in; None: the default of `load`
    note: str | None = None  # message at startup: the format in which quantised weights are served, and why
    is_run: bool = False  # whether headway trained it
    examples: tuple[str, ...] = ()  # text inputs to try it with, from the held-out samples of its run
    languages: Sequence[str] = ()  # codes of the languages of a multilingual speech model
    path: Path | None = None  # of the model, absolute; clients do not need to know it


class ReadyModel(NamedTuple):
    """A loaded model. `loop` generates text; None if the model does not. `batcher` runs all other tasks. `fingerprint`
    identifies everything that determines the bits of its output.
    """

    name: str
    model: Model
    loop: EngineLoop | None
    batcher: Batcher
    fingerprint: str = ""


class ModelRegistry(Protocol):
    """The models of a server."""

    def using(self, name: str) -> AbstractAsyncContextManager[ReadyModel]:
        """The model with this name ("" for the only one), loaded if necessary and kept in memory while it is used.
        StatusError 404 for an unknown name; UserError or StatusError 503 if it cannot be loaded.
        """
        ...

    async def refresh(self) -> None:
        """Notice models that are new, have changed or are gone since the last list."""
        ...

    def listed(self) -> Mapping[str, ModelSummary]:
        """All models that can be requested, by name."""
        ...

    def summary(self, name: str) -> ModelSummary:
        """The summary of one model. StatusError 404 for an unknown name, 503 for a broken model."""
        ...

    def loops(self) -> Mapping[str, EngineLoop]:
        """The running engine loops, by model name."""
        ...

    def ready(self) -> bool:
        """Whether requests can be served now."""
        ...

    def preparing(self) -> float | None:
        """Seconds since the engine is being compiled in the background for these models; None if it is not."""
        ...

    async def start(self) -> None:
        """Called once, before the first request."""
        ...

    async def close(self, seconds: float) -> None:
        """Refuse waiting requests, let running ones finish within `seconds`, stop the rest, and free all memory."""
        ...


CLIENT_KEY = "client"  # key of the client in the state of a request


class Client(Protocol):
    """The client of a request, as its connection sees it. `on_disconnect` is called when it disconnects."""

    on_disconnect: Callable[[], None] | None

    @property
    def disconnected(self) -> bool: ...
    @property
    def full(self) -> bool:
        """Whether so much data is unread that the next send will wait."""
        ...

    def abort(self) -> None:
        """Close the connection immediately."""
        ...


@dataclass
class Context:
    """One request, as an endpoint sees it."""

    settings: ServerSettings
    served: ModelRegistry
    id: str  # of the request, in the log and in answers
    owner: str = ""  # the request's API key; an owner's requests share cached prefixes
    may_train: bool = False  # whether the request's key may start, change and delete runs; without keys, everyone may
    may_follow: bool = True  # whether a stream may stay open: it would use up the requests of a key with a limit
    has_ticket: bool = False  # whether it came with a ticket for its path (`Tickets`) instead of a key
    route: str = ""  # the endpoint's path
    path: Mapping[str, str] = field(default_factory=dict)  # values of the path's {name} parameters
    query: Mapping[str, str] = field(default_factory=dict)  # values after the path's question mark
    log_fields: dict[str, str | int] = field(default_factory=dict)  # for the log: the model, token counts
    logged_status: int | None = None  # status for the log if it differs from the status sent
    headers: dict[str, str] = field(default_factory=dict)  # additional headers of the answer


class Events(NamedTuple):
    """A streamed answer: each part is sent as soon as it exists, in the endpoint's stream format."""

    parts: AsyncGenerator[msgspec.Struct, None]


EndpointFunction = Callable[[Any, Context], Awaitable[msgspec.Struct | Events | Response]]


class BodyStream(NamedTuple):
    """A body that the endpoint reads itself, in chunks as they arrive; `size` is what the client stated, in bytes."""

    chunks: AsyncIterator[bytes]
    size: int | None


class Endpoint(NamedTuple):
    """One path on the server. `body` is the struct for a JSON body, None without a body, FormData for a form with
    files, and BodyStream for raw bytes without a limit of size or total time. `part` is the struct for stream parts,
    which `wire` encodes.
    """

    method: str
    path: str  # in Starlette's syntax, {name} for a parameter
    handler: EndpointFunction
    summary: str
    body: type[msgspec.Struct] | type[FormData] | type[BodyStream] | None = None
    answer: type[msgspec.Struct] | None = None
    part: type[msgspec.Struct] | None = None
    wire: Wire = SERVER_SENT
    query: tuple[str, ...] = ()  # optional parameters after the path's question mark
