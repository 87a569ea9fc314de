"""Figures of a run: metrics.jsonl always, TensorBoard and Weights & Biases when asked for."""

from __future__ import annotations

import importlib
import importlib.util
import json
import math
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from headway.checkpoints.durable import write_text
from headway.errors import UserError, nearest

# Names the loggers to use beside metrics.jsonl: HEADWAY_LOG=tensorboard,wandb
VARIABLE = "HEADWAY_LOG"


class Logger(Protocol):
    """Takes a line of figures; `step` is always among them."""

    def write(self, line: dict[str, Any]) -> None: ...

    def close(self) -> None: ...


class MetricsFile:
    """metrics.jsonl: a JSON object a line, for logged steps and evaluations. Numbers that are not finite are null."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("a", encoding="utf-8", buffering=1)  # by line, for who follows it

    def write(self, line: dict[str, Any]) -> None:
        finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in line.items()}
        try:
            self._file.write(json.dumps(finite, ensure_ascii=False) + "\n")
        except OSError as error:
            raise UserError(f"{self.path} could not be written: {error.strerror}; free space, then resume") from error

    def sync(self) -> None:
        """Make sure that all lines so far outlive a crash."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        with suppress(OSError):  # what a full disk did not take was told when it was written
            self._file.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl; a last line cut off by a kill is left out."""
    return list(_lines(path)) if path.exists() else []


def truncate_metrics(path: Path, step: int, evaluated: int) -> None:
    """Drop what will be written again: lines after `step`, evaluations after `evaluated` and of a mean at the end."""

    def stays(line: dict[str, Any]) -> bool:
        if "split" not in line:
            return line["step"] <= step
        return line["step"] <= evaluated and not str(line.get("weights")).startswith("mean of")

    kept = filter(stays, read_metrics(path))
    write_text(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in kept))


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        for text in file:
            try:
                yield json.loads(text)
            except json.JSONDecodeError:
                return


class TensorBoard:
    """Event files in the run's folder `tensorboard`."""

    def __init__(self, directory: Path, settings: dict[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(directory / "tensorboard"))

    def write(self, line: dict[str, Any]) -> None:
        for name, value in line.items():
            if name != "step" and isinstance(value, (int, float)):
                self._writer.add_scalar(name, value, line["step"])

    def close(self) -> None:
        self._writer.close()


class WandB:
    """A Weights & Biases run named as the directory; its own environment variables hold project and key."""

    def __init__(self, directory: Path, settings: dict[str, Any]) -> None:
        wandb = importlib.import_module("wandb")
        self._run = wandb.init(dir=str(directory), name=directory.name, config=settings, resume="allow")

    def write(self, line: dict[str, Any]) -> None:
        self._run.log({name: value for name, value in line.items() if name != "step"}, step=line["step"])

    def close(self) -> None:
        self._run.finish()


_LOGGERS = {"tensorboard": TensorBoard, "wandb": WandB}


def check_loggers() -> list[str]:
    """The names in HEADWAY_LOG; UserError for one that is unknown or not installed."""
    names = [name.strip() for name in os.environ.get(VARIABLE, "").split(",") if name.strip()]
    for name in names:
        if name not in _LOGGERS:
            raise UserError(f"{VARIABLE} names {name!r}; {nearest(name, _LOGGERS)}")
        if importlib.util.find_spec(name) is None:
            raise UserError(f"{VARIABLE} asks for {name}, which is not installed; pip install 'headway[logging]'")
    return names


def open_loggers(directory: Path, settings: dict[str, Any]) -> list[Logger]:
    """The loggers named in HEADWAY_LOG, for a run of these settings."""
    return [_LOGGERS[name](directory, settings) for name in check_loggers()]
