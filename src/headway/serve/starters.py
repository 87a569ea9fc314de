"""Models to start with over HTTP: the list, and making one as a job that outlives the server."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from typing import Literal

import msgspec

from headway.app.jobs import Job, jobs, signal_process, start_job, stop_job
from headway.app.starters import STARTERS, missing_extra_error, models_folder, starter
from headway.errors import UserError
from headway.learn.run import RunDirectory
from headway.serve.http_errors import StatusError
from headway.serve.interfaces import Context, Endpoint

_CONTINUE = "continue with:"  # in the message of a job that somebody stopped


class StarterData(msgspec.Struct):
    """Where the data of a model come from."""

    what: str
    licence: str
    source: str


class StarterModel(msgspec.Struct):
    """A model to start with. It has trained for `seconds` of the `planned_seconds`; "starting" means that data are
    fetched or the training is planned, "stopping" that the last checkpoint is written. `message` is the last line of a
    job that is running or failed, or why the run cannot be read; only for clients that may make models.
    """

    name: str
    purpose: str
    minutes: float
    megabytes: float | None
    score: str
    data: list[StarterData]
    needs_network: bool
    missing_extra: str | None
    state: Literal["missing", "starting", "running", "stopping", "stopped", "finished", "failed"]
    seconds: float
    planned_seconds: float
    message: str = ""


class StarterList(msgspec.Struct):
    """The models to start with. `may_make` is whether this client may make them on this server."""

    data: list[StarterModel]
    may_make: bool
    object: str = "list"


async def list_starters(body: None, context: Context) -> StarterList:
    """All models to start with, and how far each is."""
    may_make = _refusal(context) is None
    models = await asyncio.to_thread(_list)
    if not may_make:
        for model in models:
            model.message = ""  # may name folders of this machine
    return StarterList(models, may_make)


async def make_starter(body: None, context: Context) -> StarterModel:
    """Start to make a model, or continue to."""
    return await _change(context, _start)


async def stop_starter(body: None, context: Context) -> StarterModel:
    """Stop making a model after its current step; making it again continues."""
    return await _change(context, _stop)


async def _change(context: Context, change: Callable[[str], None]) -> StarterModel:
    name = context.path["name"]
    if (refusal := _refusal(context)) is not None:
        raise refusal
    try:
        starter(name)
    except UserError as error:
        raise StatusError(404, str(error), code="unknown_starter") from None
    await asyncio.to_thread(change, name)
    return next(model for model in await asyncio.to_thread(_list) if model.name == name)


def _start(name: str) -> None:
    """Start the job that makes a model. UserError for one that cannot be made here."""
    if (extra := starter(name).missing_extra) is not None:
        raise missing_extra_error(name, extra)
    start_job(models_folder(), name, [sys.executable, "-m", "headway", "models", "make", name])


def _stop(name: str) -> None:
    """Ask the process that makes a model to stop, whether this server or a shell started it."""
    job, trainer = jobs(models_folder()).get(name), RunDirectory(starter(name).directory).trainer()
    if job is not None and job.state == "running":
        stop_job(models_folder(), name)
    elif trainer is None or not signal_process(trainer):
        raise UserError(f"{name} is not being made on this machine; look at the list again")


def _refusal(context: Context) -> StatusError | None:
    if context.settings.runs is None:
        return StatusError(403, "this server does not train; start it with headway open, or --runs DIR", code="no_runs")
    if not context.may_train:
        return StatusError(403, "this API key may not train; use one that may", code="may_not_train")
    return None


def _list() -> list[StarterModel]:
    made = jobs(models_folder())
    return [_starter_model(name, made.get(name)) for name in STARTERS]


def _starter_model(name: str, job: Job | None) -> StarterModel:
    """A model with the state of its run, or of its job where that knows more."""
    description = STARTERS[name].description()
    model = msgspec.convert({**description, "message": description["problem"] or ""}, StarterModel)
    if job is not None and job.state == "running" and model.state != "running":
        model.state, model.message = ("stopping", "") if _CONTINUE in job.message else ("starting", job.message)
    elif job is not None and job.state in ("failed", "ended") and model.state == "missing":
        model.state, model.message = "failed", job.message
    elif job is not None and job.state == "failed" and model.state == "stopped" and _CONTINUE not in job.message:
        model.message = job.message
    return model


ENDPOINTS = (
    Endpoint("GET", "/v1/starters", list_starters, "models to start with", None, StarterList),
    Endpoint("POST", "/v1/starters/{name}/make", make_starter, "make one, or continue to", None, StarterModel),
    Endpoint("POST", "/v1/starters/{name}/stop", stop_starter, "stop making one", None, StarterModel),
)
