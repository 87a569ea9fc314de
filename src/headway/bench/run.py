"""A benchmark: every program in a process of its own, the programs in turn, and what came of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from headway.bench.job import Job, Kind
from headway.bench.machine import machine, spread
from headway.bench.prepare import check_shape, check_space, prepare_ours, without_dropout
from headway.bench.programs import FORMS, Program, check_peers, comparisons, programs
from headway.errors import UserError
from headway.models import EncoderDecoderConfig, ModelConfig, describe
from headway.models.describe import flop_per_token
from headway.recipes import find_model

SHAPES: dict[Kind, str] = {
    "decode": "llama-135m",
    "prefill": "llama-135m",
    "translate": "marian-base",
    "train": "gpt-10m",
    "load": "llama-135m",
}
ROWS: dict[Kind, int] = {"decode": 1, "prefill": 1, "translate": 32, "train": 12, "load": 1}
GOALS: dict[Kind, str] = {"translate": "sentences_per_second", "load": "seconds"}  # tokens_per_second else
REPEATS = 3
_PROBE = "headway.bench.probe"
_BF16 = ("avx512_bf16", "amx_bf16")  # units with which training in bf16 is worth a look

Note = Callable[[str], None]


@dataclass(frozen=True)
class Request:
    """What to measure. `forms` are the weights of headway, none for all that the kind has; `rows` None is the
    kind's own number: sequences, sentences, or rows of a batch.
    """

    kind: Kind
    shape: str | None = None
    forms: tuple[str, ...] = ()
    against: tuple[str, ...] = ()
    rows: int | None = None
    threads: int | None = None
    seed: int = 0
    repeats: int = REPEATS
    backend: str = "auto"
    deterministic: bool = False
    cache: str = "fp32"


def run(request: Request, note: Note = lambda line: None) -> dict[str, Any]:
    """Measure, and give settings, machine, bounds and all values by program. `note` is told of progress.

    Raises UserError, before anything is measured, for what cannot be.
    """
    kind, shape = request.kind, request.shape or SHAPES[request.kind]
    check_peers(kind, request.against)
    forms = _forms(request)
    if request.rows is not None and kind == "load":
        raise UserError(f"load reads files and has no {request.rows} rows; leave --rows out")
    config = without_dropout(find_model(shape))
    check_shape(kind, shape, config)
    found = programs(kind, forms, request.against)
    with tempfile.TemporaryDirectory(prefix="headway-bench-") as folder:
        check_space(kind, shape, config, found, Path(folder))
        note(f"drawing the weights of {shape}")
        prepare_ours(kind, config, request.seed, found, Path(folder))
        job = _job(request, config, folder)
        for program in found:
            if program.prepares:
                note(f"preparing {program.title}")
                _process(program.module, "prepare", replace(job, form=program.form))
        runs, probes = _measured(found, job, request.repeats, note)
    return _result(request, shape, config, job, found, runs, probes)


def _forms(request: Request) -> tuple[str, ...]:
    """The forms of headway's weights, or for training its precisions."""
    if request.kind != "train":
        return request.forms or FORMS
    wrong = [form for form in request.forms if form != "fp32"]
    if wrong:
        raise UserError(f"training needs weights in fp32, not in {wrong[0]}; leave --weights out")
    able = any(unit in machine()["units"] for unit in _BF16)
    return request.forms or (("fp32", "bf16") if able else ("fp32",))


def _job(request: Request, config: Any, folder: str) -> Job:
    rows = ROWS[request.kind] if request.rows is None else request.rows
    threads = request.threads or torch.get_num_threads()
    context = getattr(config, "context", None)
    settings: dict[str, Any] = {"backend": request.backend, "deterministic": request.deterministic}
    settings["cache"] = request.cache
    return Job(request.kind, "fp32", folder, rows, threads, request.seed, config.symbols, context, **settings)


def _measured(
    found: Sequence[Program], job: Job, repeats: int, note: Note
) -> tuple[dict[str, list[dict[str, float]]], list[dict[str, float]]]:
    """The runs of each program, by its title, and of the probe, in turn."""
    runs: dict[str, list[dict[str, float]]] = {program.title: [] for program in found}
    probes: list[dict[str, float]] = []
    for repeat in range(repeats):
        if job.kind != "load":
            probes.append(_process(_PROBE, "measure", job))
        for program in found:
            runs[program.title].append(_process(program.module, "measure", replace(job, form=program.form)))
            goal = GOALS.get(job.kind, "tokens_per_second")
            value = runs[program.title][-1][goal]
            note(f"run {repeat + 1} of {repeats}: {program.title}, {value:,.4g} {goal.replace('_', ' ')}")
    return runs, probes


def _process(module: str, action: str, job: Job) -> dict[str, float]:
    """Run a module for a job. UserError for what it says that it cannot do; RuntimeError where it fails."""
    threads = str(job.threads)
    pools = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), threads)
    path = os.pathsep.join(filter(None, [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, **pools, "HF_HUB_OFFLINE": "1", "PYTHONPATH": path}
    command = [sys.executable, "-P", "-m", module, action, json.dumps(asdict(job))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    lines = done.stdout.strip().splitlines()
    if done.returncode == -signal.SIGKILL:
        raise UserError(f"{module} was killed, as the system does where memory runs out; choose a smaller --shape")
    if done.returncode or not lines:
        said = done.stderr.strip().splitlines()
        raise RuntimeError(f"{module} ended with {done.returncode}: {said[-1] if said else 'it says nothing'}")
    found = json.loads(lines[-1])
    if "error" in found:
        raise UserError(found["error"])
    return found


def _result(
    request: Request,
    shape: str,
    config: ModelConfig,
    job: Job,
    found: Sequence[Program],
    runs: dict[str, list[dict[str, float]]],
    probes: list[dict[str, float]],
) -> dict[str, Any]:
    goal = GOALS.get(job.kind, "tokens_per_second")
    measured = {title: {name: spread([run[name] for run in each]) for name in each[0]} for title, each in runs.items()}
    for each in measured.values():
        each["peak_bytes"] = each["peak_bytes"]["max"]
    bounds = (
        {name: spread([probe[name] for probe in probes]) for name in probes[0] if name != "peak_bytes"}
        if probes
        else {}
    )
    settings = {"shape": shape, "parameters": describe(config)["parameters"], "rows": job.rows}
    settings |= {"threads": job.threads, "seed": job.seed, "repeats": request.repeats}
    settings |= {"backend": job.backend, "deterministic": job.deterministic, "cache": job.cache}
    _add_shares(job, config, measured, bounds)
    times = {
        own: {p.title: _times(measured[own], measured[p.title], goal) for p in peers}
        for own, peers in comparisons(found).items()
    }
    return {
        "kind": job.kind,
        **settings,
        "goal": goal,
        "bounds": bounds,
        "programs": measured,
        "times": times,
        "machine": machine(),
    }


def _times(ours: dict[str, Any], theirs: dict[str, Any], goal: str) -> float:
    """How many times as fast headway is, by medians."""
    ratio = ours[goal]["median"] / theirs[goal]["median"]
    return 1 / ratio if goal == "seconds" else ratio


def _add_shares(job: Job, config: ModelConfig, measured: dict[str, Any], bounds: dict[str, Any]) -> None:
    """What part each program reaches of what the machine gives."""
    if "read_bytes_per_second" in bounds:
        for each in measured.values():
            if "weight_bytes" in each:
                each["weight_bytes"] = round(each["weight_bytes"]["median"])
                steps = each["tokens_per_second"]["median"] / job.rows
                each["share_of_bound"] = steps * each["weight_bytes"] / bounds["read_bytes_per_second"]["median"]
    if "flop_per_second" in bounds and not isinstance(config, EncoderDecoderConfig):
        flop = _flop(job, config)
        for each in measured.values():
            each["flop_per_second"] = each["tokens_per_second"]["median"] * flop
            each["share_of_bound"] = each["flop_per_second"] / bounds["flop_per_second"]["median"]


def _flop(job: Job, config: ModelConfig) -> int:
    """Of a token, attention left out: two for each weight that it is multiplied by, and twice as many again where it is
    trained on.
    """
    with torch.device("meta"):
        forward = flop_per_token(config.build(None), None)
    return 3 * forward if job.kind == "train" else forward
