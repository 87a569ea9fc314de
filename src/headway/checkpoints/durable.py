"""Files that are either there in full or not at all: written beside, synced, then renamed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from headway.errors import UserError


@contextmanager
def beside(path: Path) -> Iterator[Path]:
    """Gives the place to write what shall stand at `path` (a file or a folder); renames it there when all went well.

    A failure (a full disk, no permission) removes the draft, leaves what stood at `path` as it was and is a UserError.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}.draft")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove(draft)
        yield draft
        _sync_all(draft)
        if path.is_dir():
            remove(path)
        os.replace(draft, path)
        _sync(path.parent)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} could not be written: {_reason(error, path)}") from error
    finally:
        remove(draft)


def write_text(path: Path, text: str) -> None:
    """Replace the text file at `path` in one step."""
    with beside(path) as draft:
        draft.write_text(text, encoding="utf-8")


def write_json(path: Path, data: Any) -> None:
    """Replace the JSON file at `path` in one step."""
    write_text(path, json.dumps(data, indent=2, ensure_ascii=False) + "\n")


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Replace the safetensors file at `path` in one step."""
    contiguous = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    with beside(path) as draft:
        save_file(contiguous, draft, dict(metadata))
        draft.chmod(draft.parent.stat().st_mode & 0o666)  # safetensors gives it to its owner alone


def read_json(path: Path) -> Any:
    """The data of a JSON file; a missing or broken one is a UserError."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}; check the path") from error
    except ValueError as error:
        raise UserError(f"{path} is no JSON: {error}; restore it from a copy") from error


def remove(path: Path) -> None:
    """Remove a file or a folder if there is one. A folder is renamed first, so that none is ever left half complete."""
    if path.is_dir():
        doomed = path if path.name.startswith(".") else path.with_name(f".{path.name}.{os.getpid()}.removed")
        if doomed != path:
            os.replace(path, doomed)
        shutil.rmtree(doomed, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _sync_all(path: Path) -> None:
    if path.is_dir():
        for entry in path.iterdir():
            _sync_all(entry)
    _sync(path)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _reason(error: Exception, path: Path) -> str:
    try:
        free = f"{shutil.disk_usage(path.parent).free / 1e6:.0f} MB are free there"
    except OSError:
        free = f"{path.parent} cannot be reached"
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return f"{text} ({free}); free space or choose another folder"
