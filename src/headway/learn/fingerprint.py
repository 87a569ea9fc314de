"""What data a run was trained on, by their contents, so that other data are noticed.

The paths do not count: the same data may be somewhere else, or on another machine.
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
    """The data of a task: how many samples there are and each split has, and a digest of every part. {} for a task
    whose examples do not say what they read.
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
    """In what the data that were `found` differ from those that a run.json has `recorded`, for a message. None where
    they are the same, and where either says nothing, as runs of earlier versions do.
    """
    if not isinstance(recorded, dict) or not found or recorded.get("version") != _VERSION:
        return None
    told: list[str] = []
    for name, value in found.items():
        before = recorded.get(name, value)  # a part that the run's version did not know
        if before == value:
            continue
        counts = isinstance(value, int) and isinstance(before, int)
        told.append(f"{value:,} {name}, not {before:,}" if counts else f"other {name}")
        if name == _ALL:  # with more or fewer samples all else is another, too
            break
    return ", ".join(told) or None


def agreed(own: dict[str, int | str], processes: Processes) -> dict[str, int | str]:
    """The fingerprint of all processes. UserError in each of them where one has read other data than the first."""
    first = processes.tell(own)
    told = differences(first, own)
    other = torch.tensor(float(first != own), device=processes.device)
    if processes.sum(other).item():
        which = f"process {processes.rank} has {told}" if told else "another process has other data than the first"
        raise UserError(f"{which}; give all processes of the training the same data")
    return first
