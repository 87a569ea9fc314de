"""Fingerprints of a run's data by content, to detect other data.

Paths are ignored: the same data may have another path or be on another machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from headway.data.content_hash import content_digest
from headway.errors import UserError
from headway.learn.distributed import Processes
from headway.learn.task import Task

_VERSION = 1
_TOTAL = "samples"


def fingerprint(task: Task) -> dict[str, int | str]:
    """The fingerprint of a task's data: the number of samples in total and per split, and a digest of each part. {} for
    a task whose examples do not report their contents.
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
    """How the `current` data differ from those `recorded` in run.json, for a message. None if they are equal, or if
    either has no fingerprint, as in runs of earlier versions.
    """
    if not isinstance(recorded, dict) or not current or recorded.get("version") != _VERSION:
        return None
    changes: list[str] = []
    for name, value in current.items():
        previous = recorded.get(name, value)  # a part that is unknown to the run's version
        if previous == value:
            continue
        counts = isinstance(value, int) and isinstance(previous, int)
        changes.append(f"{value:,} {name}, not {previous:,}" if counts else f"other {name}")
        if name == _TOTAL:  # with another number of samples everything else differs, too
            break
    return ", ".join(changes) or None


def check_equal_data(fingerprint: dict[str, int | str], processes: Processes) -> dict[str, int | str]:
    """The fingerprint of all processes. UserError in every process if one has other data than the main process."""
    first = processes.broadcast_object(fingerprint)
    changes = differences(first, fingerprint)
    differs = torch.tensor(float(first != fingerprint), device=processes.device)
    if processes.sum(differs).item():
        description = (
            f"process {processes.rank} has {changes}" if changes else "another process has other data than process 0"
        )
        raise UserError(f"{description}; pass the same data to all processes")
    return first
