"""A comparison of the processes that train together, before any of them works."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from typing import Any

import torch

from headway.config import differences, to_dict
from headway.errors import UserError
from headway.learn.parallel.processes import Processes
from headway.learn.recipe import Recipe
from headway.learn.resume import differences as data_differences
from headway.learn.run import environment

_UNCOMPARED = ("name", "description", "expected", "reasons", "data")  # paths may differ between machines


def check_equal_processes(
    processes: Processes, recipe: Recipe, data: dict[str, int | str], is_exact: bool
) -> tuple[dict[str, int | str], str | None]:
    """The fingerprint of the data that all processes have, and a warning if their processors differ.

    UserError in every process if one has other data, another recipe, version or number of threads than process 0, or,
    where results are to be exact, another processor.
    """
    if processes.world == 1:
        return data, None
    facts = {**environment(processes.device, processes.world), "host": socket.gethostname(), "data": data}
    facts["machine"]["processor"] += f", {torch.backends.cpu.get_cpu_capability()}"
    settings = {name: value for name, value in to_dict(recipe).items() if name not in _UNCOMPARED}
    own = json.loads(json.dumps({**facts, "recipe": settings}))
    problem = warning = None
    others = processes.gather_objects(own)
    if processes.is_main:
        texts = (
            f"process {rank} on {other['host']} has {text}"
            for rank, other in enumerate(others)
            for text in _problems(own, other)
        )
        problem = next(texts, None)
        kinds = {rank: other["machine"]["processor"] for rank, other in enumerate(others)}
        different = next((rank for rank, kind in kinds.items() if kind != kinds[0]), None)
        if different is not None and processes.device.type == "cpu":
            warning = f"process {different} on {others[different]['host']} has another processor than process 0"
            warning += f" ({kinds[different]}, not {kinds[0]})"
            if is_exact and problem is None:
                problem = f"{warning}, which parallel.exact does not allow; use equal machines, or parallel.exact=false"
    shared, problem, warning = processes.broadcast_object([data, problem, warning])
    if problem is not None:
        raise UserError(problem)
    return shared, None if warning is None else f"warning: {warning}; results may differ between machines"


def _problems(first: dict[str, Any], other: dict[str, Any]) -> Iterator[str]:
    for name in ("headway", "torch"):
        if first["packages"][name] != other["packages"][name]:
            versions = f"{name} {other['packages'][name]}, but process 0 has {first['packages'][name]}"
            yield f"{versions}; install the same version everywhere"
    if first["data"] != other["data"]:
        changes = data_differences(first["data"], other["data"]) or "other data than process 0"
        yield f"{changes}; pass the same data to all processes"
    if change := next(differences(other["recipe"], first["recipe"], "recipe"), None):
        yield f"another recipe: {change.removeprefix('recipe.')}, as in process 0; start all with the same command"
    for name, remedy in (("device", "--device"), ("threads", "--threads N"), ("deterministic", "--deterministic")):
        if first[name] != other[name]:
            yield f"{name} {other[name]}, but process 0 has {first[name]}; start all with the same {remedy}"
