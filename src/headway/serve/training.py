"""Training on files that a client sends: uploads, plans and the start of runs. Planning and training are processes of
their own.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import secrets
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import msgspec

from headway.app.jobs import check_name, jobs, start_job
from headway.app.run_board import EXPORT_SUFFIX, EXPORTS
from headway.app.uploads import (
    USED,
    DiskFullError,
    Upload,
    UploadRemovedError,
    Uploads,
    UploadTooLargeError,
    UploadUsedError,
    storage_errors,
)
from headway.data.input_files import File, read_lines
from headway.errors import UserError, nearest, printable
from headway.io.durable import read_json, write_json
from headway.io.files import DATA_ROOT_VARIABLE
from headway.io.json_files import parse_json
from headway.serve.child_process import run_command
from headway.serve.http_errors import StatusError
from headway.serve.interfaces import BodyStream, Context, Endpoint
from headway.serve.runs import check_may_train, open_board

_PLAN_SECONDS = 300.0  # seconds after which a plan is given up
_MAX_PLANS = 2  # plans at once
_LINES_AROUND = 2  # lines shown before and after a wrong one
_MAX_CHARACTERS = 300  # of a line that is shown
_MAX_BEFORE = 1 << 26  # characters that are read in order to find a line
_MAX_NAME = 100  # characters of a run's name, as in `check_name`; at most twice as many bytes
_LOCATION = re.compile(r"(?P<name>[^,;:]+), line (?P<line>\d{1,9})\b")
_COLUMNS = ("text", "text2", "label", "path", "time", "series", "value")  # roles of columns that a reader may name
_SETTINGS = (*(f"task.{column}" for column in _COLUMNS), "task.skip_bad", "task.fill")
_plans_running = 0


class StatedLimits(msgspec.Struct):
    """What an upload may have: bytes of one file and of all files, and the number of files."""

    file_bytes: int
    upload_bytes: int
    files: int


class FileEntry(msgspec.Struct):
    """A file that has arrived: its name, with folders, and its size in bytes."""

    name: str
    size: int


class UploadAnswer(msgspec.Struct):
    """An upload, with the files that have arrived completely."""

    id: str
    files: list[FileEntry]
    limits: StatedLimits


class Removed(msgspec.Struct):
    """The upload that was removed."""

    id: str


class NoFields(msgspec.Struct, forbid_unknown_fields=True):
    """A body without fields."""


_Minutes = Annotated[float, msgspec.Meta(gt=0, le=100_000)]


class PlanBody(msgspec.Struct, forbid_unknown_fields=True):
    """Plan a training of `recipe` on an upload for each number of minutes. `files` are the names of the data files, in
    the order that the recipe takes them; by default the complete upload. `settings` name columns, such as task.label,
    skip samples that cannot be used (task.skip_bad), or fill gaps of a series (task.fill).
    """

    recipe: str
    upload: str
    minutes: Annotated[list[_Minutes], msgspec.Meta(min_length=1, max_length=5)]
    files: Annotated[list[str], msgspec.Meta(max_length=10)] = []
    settings: dict[str, str] = {}


class PlanAnswer(msgspec.Struct):
    """The plans, a summary of the data, and notes about files and lines that are left out. Each plan that fits into its
    time has an `id`, with which a run trains what was planned.
    """

    plans: list[dict[str, Any]]
    data: dict[str, Any] | None
    notes: list[str]


class RunBody(msgspec.Struct, forbid_unknown_fields=True):
    """Train a recipe on an upload for a number of minutes. If a run has the `name`, a number is added. With the id of a
    `plan` of these files, settings and minutes, the run has the plan's size; otherwise the size is chosen at the start.
    """

    recipe: str
    upload: str
    minutes: _Minutes
    name: str
    files: Annotated[list[str], msgspec.Meta(max_length=10)] = []
    settings: dict[str, str] = {}
    plan: str = ""


class StartedRun(msgspec.Struct):
    """The name of the run that was started."""

    name: str


class WrongLine(msgspec.Struct):
    """Lines of an uploaded file around number `line`; the first of them has the number `first`."""

    name: str
    line: int
    first: int
    lines: list[str]


@cache
def _uploads_in(runs: Path) -> Uploads:
    return Uploads(runs)


def uploads_of(context: Context) -> Uploads:
    """The uploads of the server's folder of runs. StatusError 404 if the server has none, and 403 if the request's key
    may not train.
    """
    runs = open_board(context).folder
    check_may_train(context)
    return _uploads_in(runs)


def _find(context: Context, upload_id: str) -> Upload:
    try:
        return uploads_of(context).find(upload_id)
    except KeyError:
        shown = printable(upload_id[:40])
        message = f"there is no upload {shown!r}; unused ones are removed after a day, so send the files again"
        raise StatusError(404, message, "upload", "no_upload") from None


def _answer(upload: Upload, context: Context) -> UploadAnswer:
    listing, limits = upload.listing(), uploads_of(context).limits
    stated = StatedLimits(limits.file_bytes, limits.upload_bytes, limits.files)
    return UploadAnswer(upload.id, [FileEntry(*file) for file in listing], stated)


@contextmanager
def _http_statuses() -> Iterator[None]:
    """Give errors of uploads their HTTP status."""
    try:
        yield
    except DiskFullError as error:
        raise StatusError(507, str(error), code="disk_full") from None
    except UploadTooLargeError as error:
        raise StatusError(413, str(error), code="body_too_large") from None
    except UploadUsedError as error:
        raise StatusError(409, str(error), "upload", "upload_used") from None
    except UploadRemovedError as error:
        raise StatusError(404, str(error), "upload", "no_upload") from None


async def get_limits(body: None, context: Context) -> StatedLimits:
    """The limits of an upload."""
    limits = uploads_of(context).limits
    return StatedLimits(limits.file_bytes, limits.upload_bytes, limits.files)


async def create_upload(body: NoFields, context: Context) -> UploadAnswer:
    """A new upload without files."""
    with _http_statuses():
        return _answer(await asyncio.to_thread(uploads_of(context).create), context)


async def put_file(body: BodyStream, context: Context) -> FileEntry:
    """Store one file of an upload; it replaces an earlier one with this name."""
    upload = _find(context, context.path["upload"])
    with _http_statuses():
        return FileEntry(*await uploads_of(context).receive(upload, context.path["path"], body.chunks, body.size))


async def delete_file(body: None, context: Context) -> UploadAnswer:
    """Remove a file of an upload, or a folder with its files, unless a run uses them."""
    upload, name = _find(context, context.path["upload"]), context.path["path"]
    try:
        with _http_statuses():
            uploads_of(context).check_unused(upload)
            await asyncio.to_thread(upload.remove, name)
    except KeyError:
        raise StatusError(404, f"the upload has no file {printable(name[:60])!r}; look at its list", "path") from None
    return _answer(upload, context)


async def get_upload(body: None, context: Context) -> UploadAnswer:
    """What has arrived of an upload, so that an interrupted one can continue."""
    return _answer(_find(context, context.path["upload"]), context)


async def delete_upload(body: None, context: Context) -> Removed:
    """Remove an upload that no run uses."""
    upload = _find(context, context.path["upload"])
    with _http_statuses():
        await asyncio.to_thread(uploads_of(context).remove, upload)
    return Removed(upload.id)


async def get_lines(body: None, context: Context) -> WrongLine:
    """A line of an uploaded file, and the lines around it."""
    upload, name = _find(context, context.path["upload"]), context.path["path"]
    path, line = _stored_file(upload, name), context.path["line"]
    if not re.fullmatch("[0-9]{1,9}", line) or int(line) == 0:
        raise StatusError(400, f"the line is {printable(line[:40])!r}; use 1 to 999,999,999", "line")
    return await asyncio.to_thread(_read_around, path, name, int(line))


def _read_around(path: Path, name: str, number: int) -> WrongLine:
    first, lines, characters = max(1, number - _LINES_AROUND), [], 0
    for current, line in enumerate(read_lines(File(path)), 1):
        if current >= first:
            lines.append(line[:_MAX_CHARACTERS])
        if current == number + _LINES_AROUND:
            break
        characters += len(line) + 1
        if characters > _MAX_BEFORE:
            fact = f"line {number:,} is after the first {_MAX_BEFORE:,} characters of the file"
            raise StatusError(400, f"{fact}; look at it in your own copy", "line")
    return WrongLine(name, number, first, lines)


async def create_plans(body: PlanBody, context: Context) -> PlanAnswer:
    """Plan a training on an upload, in a process of its own that ends with the request. An error's `param` is FILE:LINE
    if a line of a file is wrong.
    """
    global _plans_running
    upload = _find(context, body.upload)
    minutes = ",".join(f"{number:g}" for number in body.minutes)
    command = [*_command("plan", body, upload, body.settings), "--minutes", minutes, "--json"]
    if _plans_running >= _MAX_PLANS:
        raise StatusError(429, f"{_MAX_PLANS} plans are being made; wait for one of them", code="busy", retry_after=5)
    _plans_running += 1
    try:
        digest = await asyncio.to_thread(upload.digest)  # before the files are read
        code, output, notes = await run_command(command, _PLAN_SECONDS, _data_root(upload))
    except TimeoutError:
        message = f"the plan took longer than {_PLAN_SECONDS:g} s; try again with fewer files, or start without a plan"
        raise StatusError(408, message, code="timeout") from None
    finally:
        _plans_running -= 1
    root = str(upload.files.absolute())  # messages name the client's files, not the server's
    for path, name in {f"{root}/": "", f"folder {root}": "the upload", root: "the upload"}.items():
        notes = notes.replace(path, name)
    lines = [line for line in notes.splitlines() if line.strip()]
    if code:
        message = (lines[-1] if lines else "the plan failed without a message; try again").removeprefix("headway: ")
        match, names = _LOCATION.search(message), {file.name for file in upload.listing()}
        location = f"{match['name']}:{match['line']}" if match is not None and match["name"] in names else None
        raise StatusError(400 if code == 2 else 500, message, location, "plan_failed")
    result: Any = parse_json(output)
    with _http_statuses(), storage_errors("the plan"):
        for plan in result["plans"]:
            if plan["steps"] is not None:
                plan["id"] = secrets.token_hex(10)
                planned = {"request": _request(body, plan["minutes"]), "settings": plan["settings"], "digest": digest}
                write_json(upload.files.parent / f"plan-{plan['id']}.json", planned)
    return PlanAnswer(result["plans"], result["data"], [line for line in lines if not line.startswith("headway: ")])


async def start_run(body: RunBody, context: Context) -> StartedRun:
    """Train on an upload, in a process of its own that outlives the server."""
    upload, runs = _find(context, body.upload), open_board(context).folder
    name = _free_name(runs, body.name.strip())
    planned = await asyncio.to_thread(_planned_settings, body, upload) if body.plan else {}
    command = _command("train", body, upload, body.settings | planned)
    command += ["--run", str(runs / name), "--minutes", f"{body.minutes:g}"]
    with _http_statuses(), storage_errors(name):
        (upload.files.parent / USED).touch()
    await asyncio.to_thread(start_job, runs, name, command, _data_root(upload))
    return StartedRun(name)


def _request(body: PlanBody | RunBody, minutes: float) -> dict[str, Any]:
    return {"recipe": body.recipe, "files": body.files, "settings": body.settings, "minutes": minutes}


def _planned_settings(body: RunBody, upload: Upload) -> dict[str, Any]:
    """The settings that a run's plan chose. StatusError for a plan of something else, or of files that have changed."""
    shown, path = printable(body.plan[:40]), upload.files.parent / f"plan-{body.plan}.json"
    if not re.fullmatch("[0-9a-f]{20}", body.plan) or not path.is_file():
        raise StatusError(404, f"there is no plan {shown!r} of this upload; plan again", "plan", "no_plan")
    plan = read_json(path)
    if plan["request"] != _request(body, body.minutes):
        raise StatusError(400, f"the plan {shown!r} is for other minutes, files or settings; plan again", "plan")
    if plan["digest"] != upload.digest():
        message = "the files have changed since this plan was made; plan again"
        raise StatusError(409, message, "plan", "files_changed")
    return plan["settings"] or {}


def _free_name(runs: Path, name: str) -> str:
    """`name`, or its start with -2, -3, ... if a run has it. UserError for a name that a run cannot have."""
    if check_name(name) == EXPORTS or name.endswith(EXPORT_SUFFIX):
        raise UserError(f"{printable(name[:60])!r} is a name for exported models; choose another name")
    running = {job.name for job in jobs(runs).values() if job.state == "running"}  # some have no folder yet
    candidate, number = name, 1
    while candidate in running or os.path.lexists(runs / candidate):
        number += 1
        suffix = f"-{number}"
        start = name[: _MAX_NAME - len(suffix)].encode()[: 2 * _MAX_NAME - len(suffix)]
        candidate = start.decode(errors="ignore").rstrip() + suffix
    return candidate


def _data_root(upload: Upload) -> dict[str, str]:
    """The environment of a command that reads an upload: tables cannot name files outside it."""
    return {DATA_ROOT_VARIABLE: str(upload.files.absolute())}


def _command(verb: str, body: PlanBody | RunBody, upload: Upload, settings: Mapping[str, Any]) -> list[str]:
    """The command that plans or trains a recipe on an upload. StatusError for unknown recipes, files and settings of
    the client.
    """
    from headway.domains import recipe_domains  # scans the installed packages

    if body.recipe not in recipe_domains():
        shown = printable(body.recipe[:40])
        raise StatusError(400, f"unknown recipe {shown!r}; {nearest(body.recipe, recipe_domains())}", "recipe")
    unknown = next((name for name in body.settings if name not in _SETTINGS), None)
    if unknown is not None:
        raise StatusError(400, f"unknown setting {printable(unknown[:40])!r}; use {', '.join(_SETTINGS)}", "settings")
    paths = [_stored_file(upload, name) for name in body.files] or _data_paths(upload.files)
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in settings.items()}
    command = [sys.executable, "-m", "headway", verb, body.recipe, "--data", *map(str, paths)]
    return [*command, "--set", *(f"{name}={text}" for name, text in texts.items())] if texts else command


def _data_paths(folder: Path) -> list[Path]:
    """What to read of an upload's files: a single file, two files with aligned lines, or a folder, without folders
    around it.
    """
    entries = sorted(folder.iterdir())
    if not entries:
        raise StatusError(400, "the upload has no files; send some first", "upload")
    if len(entries) == 1 and entries[0].is_file():
        return entries
    if len(entries) == 1 and any(inner.is_dir() for inner in entries[0].iterdir()):
        return _data_paths(entries[0])
    return [folder]


def _stored_file(upload: Upload, name: str) -> Path:
    if name not in (file.name for file in upload.listing()):
        raise StatusError(404, f"the upload has no file {printable(name[:60])!r}; send it first", "files")
    return upload.files / name


ENDPOINTS = (
    Endpoint("GET", "/v1/uploads", get_limits, "the limits of uploads", None, StatedLimits),
    Endpoint("POST", "/v1/uploads", create_upload, "a new upload of files to train on", NoFields, UploadAnswer),
    Endpoint("GET", "/v1/uploads/{upload}", get_upload, "what has arrived of an upload", None, UploadAnswer),
    Endpoint("DELETE", "/v1/uploads/{upload}", delete_upload, "remove an upload", None, Removed),
    Endpoint("PUT", "/v1/uploads/{upload}/files/{path:path}", put_file, "store one file", BodyStream, FileEntry),
    Endpoint(
        "DELETE", "/v1/uploads/{upload}/files/{path:path}", delete_file, "remove a file or folder", None, UploadAnswer
    ),
    Endpoint("GET", "/v1/uploads/{upload}/lines/{line}/{path:path}", get_lines, "a line of a file", None, WrongLine),
    Endpoint("POST", "/v1/plans", create_plans, "plan a training on an upload", PlanBody, PlanAnswer),
    Endpoint("POST", "/v1/runs", start_run, "start a training on an upload", RunBody, StartedRun),
)
