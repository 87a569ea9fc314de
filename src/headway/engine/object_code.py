"""Compiled functions as object files: stored on disk, loaded by LLVM, called from Python.

None of this needs the compiler, whose import and cache take a second and a hundred megabytes. LLVM's own loader handles
relocations and calls to system functions.
"""

from __future__ import annotations

import ctypes
import hashlib
import mmap
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from llvmlite import binding

from headway.io.durable import temporary_path

_RESULTS = {"none": None, "int64": ctypes.c_int64, "float32": ctypes.c_float}
_RETURNED = (0, -2)  # status of numba's functions on success: with a value, or without one
_DIGEST = hashlib.sha256().digest_size


class ObjectCode(NamedTuple):
    symbol: str  # the name of the function in the object file
    return_type: str  # numba's name for the return type
    object_file: bytes  # the object file


def read_object(path: Path) -> ObjectCode | None:
    """None if the file does not exist or is not as `write_object` wrote it."""
    try:
        raw = path.read_bytes()
    except OSError:
        return None
    digest, content = raw[:_DIGEST], raw[_DIGEST:]
    if hashlib.sha256(content).digest() != digest:
        return None
    symbol, return_type, object_file = content.split(b"\0", 2)
    return ObjectCode(symbol.decode(), return_type.decode(), object_file)


def write_object(path: Path, code: ObjectCode) -> None:
    """Write atomically, so that no other process reads a partial file. Errors are ignored."""
    content = b"\0".join((code.symbol.encode(), code.return_type.encode(), code.object_file))
    part = temporary_path(path)
    try:
        part.write_bytes(hashlib.sha256(content).digest() + content)
        part.replace(path)
    except OSError:
        with suppress(OSError):
            part.unlink()


_ENGINES: list[Any] = []  # keeps loaded code in place for the life of the process


def load_object(code: ObjectCode, kinds: tuple[str, ...]) -> Callable[..., Any]:
    """A callable for the function, with arguments of the kinds that it was compiled for.

    A kind is the letter of a numpy type; for an array, which must be contiguous, also the number of dimensions.
    """
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    machine = binding.Target.from_default_triple().create_target_machine(jit=True)
    engine = binding.create_mcjit_compiler(binding.parse_assembly(""), machine)
    engine.add_object_file(binding.ObjectFileRef.from_data(code.object_file))
    engine.finalize_object()
    _ENGINES.append(engine)
    address, return_type = engine.get_function_address(code.symbol), _RESULTS[code.return_type]
    # Release the pages of LLVM's machine code, about 35 MB that importing it maps in but loaded code does not need.
    # They are file pages and come back if they run again.
    maps = Path("/proc/self/maps")
    for line in maps.read_text(errors="replace").splitlines() if maps.exists() else ():
        span, rights, *_, path = line.split(maxsplit=5)
        if rights == "r-xp" and Path(path).name.startswith("libllvmlite"):
            first, last = (int(edge, 16) for edge in span.split("-"))
            ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), mmap.MADV_DONTNEED)
    # Numba's convention: addresses of the result and an exception, then all arguments; an array is a null owner and
    # parent, its number of elements, their size, their address, its shape and its strides.
    fields: list[Any] = [ctypes.c_void_p, ctypes.c_void_p]
    for kind in kinds:
        if len(kind) > 1:
            fields += [ctypes.c_int64] * (5 + 2 * int(kind[1:]))
        else:
            fields.append(np.ctypeslib.as_ctypes_type(np.dtype(kind)))
    function = ctypes.CFUNCTYPE(ctypes.c_int32, *fields)(address)

    def call(*arguments: Any) -> Any:
        values: list[Any] = []
        for argument in arguments:
            if isinstance(argument, np.ndarray):
                if not argument.flags.c_contiguous:
                    raise ValueError(f"an array {list(argument.shape)} for compiled code is not contiguous")
                values += (0, 0, argument.size, argument.itemsize, argument.ctypes.data)
                values += (*argument.shape, *argument.strides)
            else:
                values.append(argument if type(argument) is int else argument.item())
        out, raised = (ctypes.c_int64 * 2)(), ctypes.c_void_p()
        status = function(ctypes.addressof(out), ctypes.addressof(raised), *values)
        if status not in _RETURNED:
            raise RuntimeError(f"compiled code failed with status {status}")
        return None if return_type is None else return_type.from_buffer(out).value

    return call
