"""/v1/runs: the runs of a folder, their curves, settings and reports, and what can be done with them."""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import quote

import msgspec
from starlette.responses import HTMLResponse, Response

from headway.app.run_board import DeletedRun, RunBoard, UnknownRunError, settings
from headway.app.run_rows import RunRow
from headway.app.uploads import FOLDER as UPLOADS
from headway.errors import UserError
from headway.io.durable import read_json
from headway.io.outputs import check_kind
from headway.learn.run import RunDirectory
from headway.learn.run_report import notes, scores
from headway.serve.http_errors import StatusError
from headway.serve.interfaces import Context, Endpoint, Events

T = TypeVar("T")
_MAX_SAMPLES, _MAX_SAMPLE = 20, 4000  # samples per run, and characters per sample
_MAX_REPORT = 1 << 28  # bytes
_MAX_CURVES = 8  # curves in an answer with the list
_FOLLOW_SECONDS = 1.75  # seconds between two looks at the runs that a client follows
_ENDING_SECONDS = 0.5  # seconds between two looks at whether the server ends
_MAX_FOLLOW_SECONDS = 300.0  # seconds after which the client has to ask again
_PATH = re.compile(r"""(^|["'\s=:])(~|\.{0,2}/|[A-Za-z]:[\\/])""")  # a path in the value of a setting
_MAX_PICTURE = 1 << 24  # bytes
_PICTURE_TYPES = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp", ".gif": "gif", ".bmp": "bmp"}
_REPORT_HEADERS = {
    # A report contains text of models and data. It has no scripts, and no access to this page's keys.
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; img-src data:; media-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; sandbox",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class RunLines(msgspec.Struct):
    """Lines of a run's metrics after a position. `after` is the next position. With `is_restart` these are the first
    lines of a file that was written again; with `has_more` there are more. Of the lines of training steps, only every
    n-th is included (`every`).
    """

    after: str
    is_restart: bool
    has_more: bool
    every: int
    lines: list[dict[str, Any]]


class RunList(msgspec.Struct):
    """The runs that changed `since` a version, or all runs if `is_complete`. `removed`: names of runs that are gone;
    `deleted`: runs that can be restored for a day; `may_train`: whether this key may change runs, without which
    reasons, messages and paths are blank and reports closed; `points`: new lines of the requested curves, by run.
    """

    version: str
    is_complete: bool
    runs: list[RunRow]
    removed: list[str]
    deleted: list[DeletedRun]
    may_train: bool
    points: dict[str, RunLines] = {}


class RunDetails(msgspec.Struct):
    """A run: its row in the list, its folder, settings by path, samples, scores with intervals, what its results depend
    on, and remarks about its training. Folder, remarks and settings with paths are blank for keys that may not train.
    """

    run: RunRow
    folder: str
    settings: dict[str, str]
    samples: list[dict[str, str]]
    scores: list[dict[str, str | float | None]]
    environment: dict[str, str]
    notes: list[str]


class ReportAddress(msgspec.Struct):
    """The path of a report, which a browser can open once within a minute."""

    path: str


class RunChange(msgspec.Struct, forbid_unknown_fields=True):
    """What to do in addition: `minutes` for extend, `format` for export (hf, gguf or onnx)."""

    minutes: Annotated[float, msgspec.Meta(gt=0, le=1e6)] | None = None
    format: Literal["hf", "gguf", "onnx"] = "hf"


class RunChanged(msgspec.Struct):
    """What happens now, in one sentence, and after a deletion whether the run can be restored."""

    message: str
    can_restore: bool = False


@cache
def _board(folder: Path) -> RunBoard:
    return RunBoard(folder)


def open_board(context: Context) -> RunBoard:
    """The server's board of runs. StatusError 404 if it has none."""
    if context.settings.runs is None:
        raise StatusError(404, "this server has no folder of runs; start it with --runs DIR", code="no_runs")
    return _board(context.settings.runs)


def check_may_train(context: Context) -> None:
    """StatusError 404 for a server without a folder of runs, and 403 for a key that may not train."""
    open_board(context)
    if not context.may_train:
        message = "this key may not train or change runs; use one whose line in the file of keys ends with train"
        raise StatusError(403, message, code="may_not_train")


def check_may_read_report(context: Context) -> None:
    """`check_may_train`, because a report has the paths of its data and its command, unless there is a ticket."""
    if not context.has_ticket:
        check_may_train(context)


async def _work(context: Context, work: Callable[[RunBoard], T]) -> T:
    """Run work on the board in a thread. Errors name runs, not the server's folders."""
    board = open_board(context)
    try:
        return await asyncio.to_thread(work, board)
    except StatusError:
        raise
    except UnknownRunError as error:
        raise StatusError(404, str(error), code="unknown_run") from None
    except UserError as error:
        raise StatusError(400, str(error).replace(f"{board.folder}{os.sep}", "")) from None


async def list_runs(body: None, context: Context) -> RunList | Events:
    """The list; with `follow`, a stream of it and then of what changes."""
    try:
        positions = msgspec.json.decode(context.query.get("points", "{}"), type=dict[str, str])
    except (msgspec.ValidationError, msgspec.DecodeError):
        message = (
            "points is not a JSON object of run names and positions; send the values of after from earlier answers"
        )
        raise StatusError(400, message, "points") from None

    since, positions = context.query.get("since", ""), dict(list(positions.items())[:_MAX_CURVES])
    if "follow" in context.query:
        open_board(context)
        return Events(_follow(since, positions, context))
    return await _work(context, partial(_changes, since=since, positions=positions, context=context))


def _changes(board: RunBoard, since: str, positions: Mapping[str, str], context: Context) -> RunList:
    changes, points = board.changes(since), {}
    for name, after in positions.items():
        with suppress(UnknownRunError):  # it is deleted, as `changes` states
            points[name] = RunLines(*board.points(name, after))
    changes = changes._replace(runs=[_visible(row, context) for row in changes.runs])
    return RunList(*changes, context.may_train, points)


async def _follow(since: str, positions: dict[str, str], context: Context) -> AsyncGenerator[RunList, None]:
    """What changed `since` a version, and then what changes. A client with a limit of requests gets the first alone."""
    look = time.monotonic()
    end, deleted = look + _MAX_FOLLOW_SECONDS, None
    while True:
        answer = await _work(context, partial(_changes, since=since, positions=positions, context=context))
        answer.points = {name: points for name, points in answer.points.items() if points.lines or points.is_restart}
        if answer.runs or answer.removed or answer.points or answer.deleted != deleted:
            yield answer
        since, deleted = answer.version, answer.deleted
        positions = positions | {name: points.after for name, points in answer.points.items()}
        if any(points.has_more for points in answer.points.values()):
            continue
        look = max(look + _FOLLOW_SECONDS, time.monotonic())
        while (seconds := look - time.monotonic()) > 0 and context.served.ready():
            await asyncio.sleep(min(seconds, _ENDING_SECONDS))
        if not context.served.ready() or not context.may_follow or look > end:
            return


async def get_run(body: None, context: Context) -> RunDetails:
    details = await _work(context, lambda board: _details(board, context.path["name"]))
    if not context.may_train:
        shown = {name: value for name, value in details.settings.items() if not _PATH.search(value) and name != "data"}
        details = msgspec.structs.replace(
            details, run=_visible(details.run, context), folder="", settings=shown, notes=[]
        )
    return details


def _visible(row: RunRow, context: Context) -> RunRow:
    """A run's row without this machine's paths, processes and output, unless the key may train."""
    hidden = {"reason": "", "export_message": "", "export_path": None, "has_report": False}
    return row if context.may_train else replace(row, **hidden)


def _details(board: RunBoard, name: str) -> RunDetails:
    row, path = board.row(name), board.folder / name
    if row.state in ("starting", "broken"):
        return RunDetails(row, str(path), {}, [], [], {}, [])
    summary = RunDirectory(path).read_status()
    samples = [
        {key[:_MAX_SAMPLE]: text[:_MAX_SAMPLE] for key, text in sample.items()}
        for sample in (summary.get("samples") or [])[:_MAX_SAMPLES]
    ]
    final, best, unit = summary.get("scores") or {}, summary.get("best") or {}, summary.get("unit", "token")
    facts = {**(summary.get("machine") or {}), **(summary.get("packages") or {})}
    facts |= {key: summary.get(key) for key in ("python", "device", "threads", "processes", "precision")}
    environment = {key: str(value)[:200] for key, value in facts.items() if value is not None}
    recipe = read_json(path / "recipe.json")
    rows = scores(final, best, f"nats per {unit}") if final or best else []
    return RunDetails(row, str(path), settings(recipe), samples, rows, environment, notes((), summary))


async def get_points(body: None, context: Context) -> RunLines:
    after = context.query.get("after", "")
    return RunLines(*await _work(context, lambda board: board.points(context.path["name"], after)))


async def issue_report(body: None, context: Context) -> ReportAddress:
    check_may_read_report(context)
    name = context.path["name"]
    row = await _work(context, lambda board: board.row(name))
    if not row.has_report:
        raise StatusError(404, f"{row.name[:100]} has no report yet; it is written when the run ends", code="no_report")
    ticket = context.settings.tickets.issue(f"/v1/runs/{name}/report", context.owner)
    return ReportAddress(f"/v1/runs/{quote(name, safe='')}/report?ticket={ticket}")


async def get_report(body: None, context: Context) -> Response:
    check_may_read_report(context)
    return await _work(context, lambda board: report_answer(board.path(context.path["name"])))


def report_answer(folder: Path) -> Response:
    """The report in a run's folder, as a page without scripts. UserError if it cannot be read."""
    path = folder / "report.html"
    try:
        status = os.lstat(path)
        check_kind(path, status)
        if status.st_size > _MAX_REPORT:
            raise UserError(f"the report has {status.st_size:,} bytes; open it from the run's folder")
        return HTMLResponse(path.read_bytes(), headers=_REPORT_HEADERS)
    except OSError as error:
        raise UserError(f"the report cannot be read ({error.strerror}); it is written when the run ends") from None


async def get_sample_picture(body: None, context: Context) -> Response:
    """The image of a sample whose file a client has sent, for keys that may train."""
    check_may_train(context)
    name, number = context.path["name"], context.path["number"]
    return await _work(context, lambda board: _sample_picture(board, name, number))


def _sample_picture(board: RunBoard, name: str, number: str) -> Response:
    """The image of a sample. StatusError 404 unless exactly one file of the run's upload has its name and folder."""
    samples, uploads = RunDirectory(board.path(name)).read_status().get("samples") or [], board.folder / UPLOADS
    sample = samples[int(number)] if re.fullmatch("[0-9]{1,4}", number) and int(number) < len(samples) else {}
    source, label = sample.get("source", ""), sample.get("reference")
    roots = [os.path.abspath(root) for root in read_json(board.folder / name / "recipe.json").get("data") or []]
    folders = (entry for root in roots if Path(root).is_relative_to(uploads.absolute()) for entry in os.walk(root))
    paths = [Path(folder, source) for folder, _, files in folders if source in files and Path(folder).name == label]
    media_type = _PICTURE_TYPES.get(Path(source).suffix.lower())
    if len(paths) != 1 or media_type is None or os.lstat(paths[0]).st_size > _MAX_PICTURE:
        raise StatusError(404, "this sample has no image here; look for its name in your files", code="no_picture")
    check_kind(paths[0], os.lstat(paths[0]))
    headers = {**_REPORT_HEADERS, "X-Content-Type-Options": "nosniff"}
    return Response(paths[0].read_bytes(), media_type=f"image/{media_type}", headers=headers)


async def change_run(action: str, body: RunChange, context: Context) -> RunChanged:
    check_may_train(context)
    name = context.path["name"]

    def change(board: RunBoard) -> str:
        if action == "stop":
            is_training = board.stop(name) == "running"
            return "stopping after this step, which is saved first" if is_training else "stopping"
        if action == "extend":
            if body.minutes is None:
                raise StatusError(400, "minutes is missing; pass how long to train", "minutes")
            board.resume(name, body.minutes)
            return f"training for {body.minutes:g} more minutes"
        if action == "export":
            return f"the model is being converted to {board.export(name, body.format)}"
        if action == "delete":
            return "deleted; it can be restored for a day" if board.delete(name) else "removed from the list"
        if action == "restore":
            board.restore(name)
            return "restored"
        board.resume(name, finish=action == "finish")
        return (
            "continuing from its last saved state"
            if action == "resume"
            else "finishing within a tenth of the steps so far"
        )

    message = await _work(context, change)
    return RunChanged(message, message.startswith("deleted"))


_ACTIONS = {
    "stop": "stop a run after its step, with a checkpoint",
    "resume": "continue a stopped run from its last checkpoint",
    "finish": "continue a stopped run to an early end",
    "extend": "train a run for more minutes",
    "export": "convert a run's model to a format that other programs read",
    "delete": "delete a run, which can be restored for a day",
    "restore": "restore a deleted run",
}


ENDPOINTS = (
    Endpoint(
        "GET",
        "/v1/runs",
        list_runs,
        "runs that changed since a version; with follow=1, a stream of changes",
        answer=RunList,
        part=RunList,
        query=("since", "points", "follow"),
    ),
    Endpoint("GET", "/v1/runs/{name:path}/points", get_points, "a run's curves", answer=RunLines, query=("after",)),
    Endpoint("POST", "/v1/runs/{name:path}/report", issue_report, "an address of a run's report", answer=ReportAddress),
    Endpoint("GET", "/v1/runs/{name:path}/report", get_report, "a run's report", query=("ticket",)),
    Endpoint("GET", "/v1/runs/{name:path}/samples/{number}", get_sample_picture, "the image of a sample"),
    *(
        Endpoint(
            "POST", f"/v1/runs/{{name:path}}/{action}", partial(change_run, action), summary, RunChange, RunChanged
        )
        for action, summary in _ACTIONS.items()
    ),
    # Last, because the name of a run in a folder of runs has a slash, as the paths above have.
    Endpoint("GET", "/v1/runs/{name:path}", get_run, "a run's settings, samples and scores", answer=RunDetails),
)
