"""Files that exist either completely or not at all: written to a draft, synced, then renamed."""

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

from headway.errors import UserError
from headway.parsing import DuplicateKeyError, parse_json
from headway.safe_io import open_file
from headway.temporary_files import temporary_path

_ALIGNED = 64  # bytes: alignment of the first tensor
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
def atomic_write(path: Path, new: bool = False) -> Iterator[Path]:
    """Yield a draft path to write the file or folder `path` to; rename it to `path` on success.

    A failure (a full disk, no permission) removes the draft, leaves `path` unchanged and raises UserError. With `new`,
    so does anything that was written to `path` in the meantime.
    """
    draft = temporary_path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove(draft)
        yield draft
        _sync_all(draft)
        if new:
            _remove_empty_folder(path)
        elif path.is_dir():
            remove(path)
        os.replace(draft, path)
        _sync(path.parent)
    except OSError as error:
        raise UserError(f"{path} could not be written: {_reason(error, path)}") from error
    finally:
        with suppress(OSError):  # an unwritable folder has no draft to remove
            remove(draft)


def _remove_empty_folder(path: Path) -> None:
    """Remove an empty folder. UserError if `path` is anything else."""
    with suppress(OSError):
        path.rmdir()
    if os.path.lexists(path):
        raise UserError(f"{path} was written by another program in the meantime; choose another path")


def write_text(path: Path, text: str) -> None:
    """Replace the text file at `path` atomically. Characters that are not valid Unicode (in file names) are written as
    JSON escapes.
    """
    with atomic_write(path) as draft:
        draft.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: Path, data: Any) -> None:
    """Replace the JSON file at `path` atomically."""
    write_text(path, json.dumps(data, indent=2, ensure_ascii=False) + "\n")


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Replace the safetensors file at `path` atomically.

    The library orders the metadata differently each time; here equal tensors give equal files. Tensors are written one
    by one, so memory never holds a second copy of all of them.
    """
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-(len(text) + 8) % _ALIGNED)
    with atomic_write(path) as draft, draft.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            file.write(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)


def read_json(path: Path) -> Any:
    """Parse a JSON file; UserError if it is missing or broken."""
    if os.path.exists(path) and not os.path.isfile(path):  # reading a pipe would block
        raise UserError(f"{path} is not a regular file; restore it from a copy")
    with open_file(path) as file:
        return decode_json(file.read(), str(path))


def decode_json(text: bytes, source: str) -> Any:
    """Parse JSON text in UTF-8; UserError, naming the source, for anything else."""
    try:
        return parse_json(text.decode("utf-8"))
    except DuplicateKeyError as error:
        raise UserError(f"{source} has {error}; keep one of them, or restore it from a copy") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{source} is not JSON: {error}; restore it from a copy") from error


def remove(path: Path) -> None:
    """Remove a file or a folder if it exists. A folder is renamed first, so that it is never left half complete; of a
    link only the link is removed.
    """
    if path.is_dir() and not path.is_symlink():
        trash = path if path.name.startswith(".") else temporary_path(path, "removed")
        if trash != path:
            os.replace(path, trash)
        shutil.rmtree(trash, ignore_errors=True)
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
        free = f"{path.parent} is not accessible"
    return f"{error.strerror or error} ({free}); free space or choose another folder"
