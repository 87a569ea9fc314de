"""Files that are either there in full or not at all: written beside, synced, then renamed."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from headway.drafts import draft_of
from headway.errors import UserError
from headway.parsing import DuplicateKeyError, parse_json
from headway.received import opened

_ALIGNED = 64  # bytes: where the first tensor starts
_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


@contextmanager
def beside(path: Path, new: bool = False) -> Iterator[Path]:
    """Gives the place to write what shall stand at `path` (a file or a folder); renames it there when all went well.

    A failure (a full disk, no permission) removes the draft, leaves what stood at `path` as it was and is a UserError.
    With `new` so is whatever else has been written to `path` meanwhile.
    """
    draft = draft_of(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove(draft)
        yield draft
        _sync_all(draft)
        if new:
            _make_room(path)
        elif path.is_dir():
            remove(path)
        os.replace(draft, path)
        _sync(path.parent)
    except OSError as error:
        raise UserError(f"{path} could not be written: {_reason(error, path)}") from error
    finally:
        with suppress(OSError):  # where nothing may be written, nothing is there to be removed
            remove(draft)


def _make_room(path: Path) -> None:
    """Remove an empty folder. UserError for anything else that is at `path`."""
    with suppress(OSError):
        path.rmdir()
    if os.path.lexists(path):
        raise UserError(f"{path} was written by another program meanwhile; choose another path")


def write_text(path: Path, text: str) -> None:
    """Replace the text file at `path` in one step. What is no Unicode, as of names of files, is written as an escape,
    which is JSON's own.
    """
    with beside(path) as draft:
        draft.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: Path, data: Any) -> None:
    """Replace the JSON file at `path` in one step."""
    write_text(path, json.dumps(data, indent=2, ensure_ascii=False) + "\n")


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Replace the safetensors file at `path` in one step.

    Written here, as the library orders the metadata anew each time: equal tensors give equal files. Tensors are written
    one after the other, so that a second copy of all is never held.
    """
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-(len(text) + 8) % _ALIGNED)
    with beside(path) as draft, draft.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            file.write(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)


def read_json(path: Path) -> Any:
    """The data of a JSON file; a missing or broken one is a UserError."""
    if os.path.exists(path) and not os.path.isfile(path):  # a pipe would be waited for
        raise UserError(f"{path} is no plain file; restore it from a copy")
    with opened(path) as file:
        return decode_json(file.read(), str(path))


def decode_json(text: bytes, source: str) -> Any:
    """The data of JSON text in UTF-8; anything else is a UserError that names the source."""
    try:
        return parse_json(text.decode("utf-8"))
    except DuplicateKeyError as error:
        raise UserError(f"{source} has {error}; keep one of them, or restore it from a copy") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{source} is not JSON: {error}; restore it from a copy") from error


def remove(path: Path) -> None:
    """Remove a file or a folder if there is one. A folder is renamed first, so that none is ever left half complete; of
    a link nothing but the link is removed.
    """
    if path.is_dir() and not path.is_symlink():
        doomed = path if path.name.startswith(".") else draft_of(path, "removed")
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


def _reason(error: OSError, path: Path) -> str:
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{error.strerror}; let this user write there, or choose another folder"
    try:
        free = f"{shutil.disk_usage(path.parent).free / 1e6:.0f} MB are free there"
    except OSError:
        free = f"{path.parent} cannot be reached"
    return f"{error.strerror or error} ({free}); free space or choose another folder"
