"""Content fingerprints of a run's data, to detect different data.

Paths are ignored, because the same data may be in another place or on another machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from headway.data.token_store import content_digest
from headway.errors import UserError
from headway.learn.distributed import Processes
from headway.learn.task import Task

_VERSION = 1
_TOTAL = "samples"


def fingerprint(task: Task) -> dict[str, int | str]:
    """A fingerprint of a task's data: the number of samples in total and per split, and a digest of each part. It is {}
    if the task's examples do not report their contents.
    """
    contents = task.examples.contents()
    if not contents:
        return {}
    digests: dict[str, int | str] = {"version": _VERSION}
    splits = task.examples.data_splits
    if splits is not None:
        digests[_TOTAL] = len(splits.all_indices)
        digests |= {f"{split} samples": len(rows) for split, rows in splits.indices.items()}
    digests |= {name: content_digest(values) for name, values in contents.items()}
    if splits is not None:
        digests["splits"] = content_digest(splits.indices.values())
    return digests


def differences(recorded: Any, current: Mapping[str, int | str]) -> str | None:
    """How the `current` data differ from the data `recorded` in run.json, for a message. None if they are equal, or if
    either has no fingerprint, as in runs from earlier versions.
    """
    if not isinstance(recorded, dict) or not current or recorded.get("version") != _VERSION:
        return None
    changes: list[str] = []
    for name, value in current.items():
        previous = recorded.get(name, value)  # a part that the run's version did not record
        if previous == value:
            continue
        counts = isinstance(value, int) and isinstance(previous, int)
        changes.append(f"{value:,} {name}, not {previous:,}" if counts else f"other {name}")
        if name == _TOTAL:  # if the number of samples differs, so does everything else
            break
    return ", ".join(changes) or None


def check_equal_data(fingerprint: dict[str, int | str], processes: Processes) -> dict[str, int | str]:
    """The fingerprint shared by all processes. Raises UserError in every process if one has different data than the
    main process.
    """
    first = processes.broadcast_object(fingerprint)
    changes = differences(first, fingerprint)
    differs = torch.tensor(float(first != fingerprint), device=processes.device)
    if processes.sum(differs).item():
        description = (
            f"process {processes.rank} has {changes}" if changes else "another process has other data than process 0"
        )
        raise UserError(f"{description}; pass the same data to all processes")
    return first
