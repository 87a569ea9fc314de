"""Fingerprints of a run's data by content, to detect other data.

Paths are ignored: the same data may have another path or be on another machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from headway.data.fingerprint import digest_of
from headway.errors import UserError
from headway.learn.distributed import Processes
from headway.learn.task import Task

_VERSION = 1
_ALL = "samples"


def fingerprint(task: Task) -> dict[str, int | str]:
    """The fingerprint of a task's data: the number of samples in total and per split, and a digest of each part. {} for
    a task whose examples do not report their contents.
    """
    contents = task.examples.contents()
    if not contents:
        return {}
    found: dict[str, int | str] = {"version": _VERSION}
    splits = task.examples.splits_read
    if splits is not None:
        found[_ALL] = len(splits.every)
        found |= {f"{side} samples": len(rows) for side, rows in splits.sides.items()}
    found |= {name: digest_of(values) for name, values in contents.items()}
    if splits is not None:
        found["splits"] = digest_of(splits.sides.values())
    return found


def differences(recorded: Any, found: Mapping[str, int | str]) -> str | None:
    """How the `current` data differ from those `recorded` in run.json, for a message. None if they are equal, or if
    either has no fingerprint, as in runs of earlier versions.
    """
    if not isinstance(recorded, dict) or not found or recorded.get("version") != _VERSION:
        return None
    told: list[str] = []
    for name, value in found.items():
        before = recorded.get(name, value)  # a part that is unknown to the run's version
        if before == value:
            continue
        counts = isinstance(value, int) and isinstance(before, int)
        told.append(f"{value:,} {name}, not {before:,}" if counts else f"other {name}")
        if name == _ALL:  # with another number of samples everything else differs, too
            break
    return ", ".join(told) or None


def agreed(own: dict[str, int | str], processes: Processes) -> dict[str, int | str]:
    """The fingerprint of all processes. UserError in every process if one has other data than the main process."""
    first = processes.tell(own)
    told = differences(first, own)
    other = torch.tensor(float(first != own), device=processes.device)
    if processes.sum(other).item():
        which = f"process {processes.rank} has {told}" if told else "another process has other data than process 0"
        raise UserError(f"{which}; pass the same data to all processes")
    return first
