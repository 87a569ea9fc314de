"""Health, readiness, version and metrics of the server."""

from __future__ import annotations

import msgspec
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import Response

from headway import __version__
from headway.serve import metrics
from headway.serve.http_errors import StatusError
from headway.serve.interfaces import Context, Endpoint


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
    max_seconds = context.settings.step_seconds
    for name, loop in loops.items():
        if (stalled := loop.seconds_since_step) > max_seconds:
            message = (
                f"{name} has taken no step for {stalled:.0f} s, but the limit is {max_seconds:.0f}; restart the server"
            )
            raise StatusError(503, message, code="no_step")
    return HealthAnswer(
        "ok", {name: LoopHealth(loop.working, round(loop.seconds_since_step, 3)) for name, loop in loops.items()}
    )


async def ready(body: None, context: Context) -> ReadyAnswer:
    """StatusError 503 before the server is ready and while it shuts down."""
    if not context.served.ready():
        message = "the server is not accepting requests; try again in a moment"
        raise StatusError(503, message, code="not_ready", retry_after=1)
    return ReadyAnswer("ready")


class VersionAnswer(msgspec.Struct):
    """The version of headway."""

    version: str


async def version(body: None, context: Context) -> VersionAnswer:
    return VersionAnswer(__version__)


async def get_metrics(body: None, context: Context) -> Response:
    loops = context.served.loops()
    page = metrics.render(lambda: {name: loop.steps.state()._asdict() for name, loop in loops.items()})
    return Response(page, media_type=CONTENT_TYPE_LATEST)


ENDPOINTS = (
    Endpoint("GET", "/health", health, "whether all models with work take steps", answer=HealthAnswer),
    Endpoint("GET", "/ready", ready, "whether the server accepts requests", answer=ReadyAnswer),
    Endpoint("GET", "/version", version, "the version of headway", answer=VersionAnswer),
    Endpoint("GET", "/metrics", get_metrics, "metrics for Prometheus"),
)
