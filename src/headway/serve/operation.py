"""Health, readiness, version and metrics of the server."""

from __future__ import annotations

import msgspec
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import Response

from headway import __version__
from headway.serve import metrics
from headway.serve.errors import StatusError
from headway.serve.frame import Context, Endpoint


class LoopHealth(msgspec.Struct):
    """Whether a model has work, and how many seconds ago its last step ended."""

    working: bool
    still: float


class HealthAnswer(msgspec.Struct):
    """The health of the models that generate text, by name."""

    status: str
    models: dict[str, LoopHealth]


class ReadyAnswer(msgspec.Struct):
    """The server accepts requests."""

    status: str


async def health(body: None, context: Context) -> HealthAnswer:
    """StatusError 503 if a model has work and takes no step."""
    loops = context.served.loops()
    most = context.settings.step_seconds
    for name, loop in loops.items():
        if (still := loop.still) > most:
            told = f"{name} has taken no step for {still:.0f} s, and the limit is {most:.0f}; restart the server"
            raise StatusError(503, told, code="no_step")
    return HealthAnswer("ok", {name: LoopHealth(loop.working, round(loop.still, 3)) for name, loop in loops.items()})


async def ready(body: None, context: Context) -> ReadyAnswer:
    """StatusError 503 before the server is ready and while it shuts down."""
    if not context.served.ready():
        told = "the server accepts no requests now; try again in a moment"
        raise StatusError(503, told, code="not_ready", retry_after=1)
    return ReadyAnswer("ready")


class VersionAnswer(msgspec.Struct):
    """The version of headway."""

    version: str


async def version(body: None, context: Context) -> VersionAnswer:
    return VersionAnswer(__version__)


async def counted(body: None, context: Context) -> Response:
    loops = context.served.loops()
    page = metrics.page(lambda: {name: loop.steps.state()._asdict() for name, loop in loops.items()})
    return Response(page, media_type=CONTENT_TYPE_LATEST)


ENDPOINTS = (
    Endpoint("GET", "/health", health, "whether all models with work take steps", answer=HealthAnswer),
    Endpoint("GET", "/ready", ready, "whether the server accepts requests", answer=ReadyAnswer),
    Endpoint("GET", "/version", version, "the version of headway", answer=VersionAnswer),
    Endpoint("GET", "/metrics", counted, "metrics for Prometheus"),
)
