"""Models to start with over HTTP: the list, and making one as a job that outlives the server."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

import msgspec
from starlette.responses import Response

from headway.app.jobs import Job, jobs, signal_process, start_job, stop_job
from headway.app.starters import STARTERS, Starter, missing_extra_error, models_folder, starter
from headway.errors import UserError
from headway.learn.run import RunDirectory
from headway.serve.http_errors import StatusError
from headway.serve.interfaces import Context, Endpoint
from headway.serve.runs import ReportAddress, check_may_read_report, check_may_train, report_answer

_CONTINUE = "continue with:"  # in the message of a job that somebody stopped


class StarterData(msgspec.Struct):
    """Where the data of a model come from."""

    what: str
    licence: str
    source: str


class StarterModel(msgspec.Struct):
    """A model to start with. It has trained for `seconds` of the `planned_seconds`, and a `share` of its steps.
    "starting" means that data are fetched or the training is planned, "stopping" that the last checkpoint is written.
    `message` is the last line of a job that is running or failed, or why the run cannot be read; only for clients that
    may make models. `score` is the one to expect; a finished model has its `own_score`, the name under which this
    server has it (`served`), and perhaps a report.
    """

    name: str
    purpose: str
    minutes: float
    megabytes: float | None
    score: str
    data: list[StarterData]
    needs_network: bool
    missing_extra: str | None
    state: Literal["missing", "starting", "running", "evaluating", "stopping", "stopped", "finished", "failed"]
    seconds: float
    planned_seconds: float
    share: float
    own_score: str
    has_report: bool
    served: str | None = None
    message: str = ""


class StarterList(msgspec.Struct):
    """The models to start with. `may_make` is whether this client may make them on this server."""

    data: list[StarterModel]
    may_make: bool
    object: str = "list"


async def list_starters(body: None, context: Context) -> StarterList:
    """All models to start with, and how far each is."""
    may_make = context.may_train and context.settings.runs is not None
    await context.served.refresh()
    names = {summary.path: name for name, summary in context.served.listed().items()}
    models = await asyncio.to_thread(_list, names, may_make)
    return StarterList(models, may_make)


async def make_starter(body: None, context: Context) -> StarterModel:
    """Start to make a model, or continue to."""
    return await _change(context, _start)


async def stop_starter(body: None, context: Context) -> StarterModel:
    """Stop making a model after its current step; making it again continues."""
    return await _change(context, _stop)


async def _change(context: Context, change: Callable[[str], None]) -> StarterModel:
    check_may_train(context)
    name = _requested(context).name
    await asyncio.to_thread(change, name)
    return next(model for model in (await list_starters(None, context)).data if model.name == name)


def _requested(context: Context) -> Starter:
    """The model that a path names. StatusError 404 if there is none."""
    try:
        return starter(context.path["name"])
    except UserError as error:
        raise StatusError(404, str(error), code="unknown_starter") from None


async def issue_starter_report(body: None, context: Context) -> ReportAddress:
    """An address of the report of a model that was made, for clients that may make models."""
    check_may_read_report(context)
    path = f"/v1/starters/{_requested(context).name}/report"
    return ReportAddress(f"{path}?ticket={context.settings.tickets.issue(path, context.owner)}")


async def get_starter_report(body: None, context: Context) -> Response:
    check_may_read_report(context)
    return await asyncio.to_thread(report_answer, _requested(context).directory)


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


def _list(names: Mapping[Path | None, str], may_make: bool) -> list[StarterModel]:
    """All models, as a client may see them; `names` are those under which the server has models, by path. Messages and
    reports may name folders of this machine.
    """
    made = jobs(models_folder())
    models = [_starter_model(name, made.get(name)) for name in STARTERS]
    for model in models:
        model.served = names.get(Path(os.path.abspath(STARTERS[model.name].directory)))
        model.has_report = model.has_report and may_make
        model.message = model.message if may_make else ""
    return models


def _starter_model(name: str, job: Job | None) -> StarterModel:
    """A model with the state of its run, or of its job where that knows more."""
    description = STARTERS[name].description()
    model = msgspec.convert({**description, "message": description["problem"] or ""}, StarterModel)
    if job is not None and job.state == "running" and model.state in ("missing", "stopped"):
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
    Endpoint(
        "POST", "/v1/starters/{name}/report", issue_starter_report, "an address of its report", None, ReportAddress
    ),
    Endpoint("GET", "/v1/starters/{name}/report", get_starter_report, "the report of one", query=("ticket",)),
)
