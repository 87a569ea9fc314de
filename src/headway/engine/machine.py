"""Functions and intrinsics of the compiled engine, and addresses in them.

Compiled functions take plain numbers: addresses of arrays that Python keeps alive, so one program, compiled once, runs
every model.
"""

from __future__ import annotations

import importlib
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property, update_wrapper
from typing import Any

import numpy as np
from llvmlite import ir

from headway.engine.code_cache import CACHE
from headway.engine.object_code import ObjectCode, load_object, read_object, write_object

F32 = Any  # a single-precision float in compiled code, known to numba but not to type checkers
_MESSAGE = "compiling the CPU engine, once on this machine (ten seconds to a minute)"
_LOADING = threading.RLock()
INT = np.dtype(np.int64).char  # the kind of an integer


def _kind(argument: Any) -> str:
    """The kind of an argument as in `load_object`."""
    if type(argument) is int:
        return INT
    kind: str = argument.dtype.char
    return f"{kind}{argument.ndim}" if isinstance(argument, np.ndarray) else kind


class CompiledFunction:
    """A function as machine code: for other compiled functions through numba, and for Python as an object file, called
    with contiguous arrays and numbers, without the interpreter's lock.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self._ready: dict[tuple[str, ...], Callable[..., Any]] = {}
        update_wrapper(self, function)

    def __call__(self, *arguments: Any) -> Any:
        kinds = tuple(map(_kind, arguments))
        if kinds not in self._ready:
            with _LOADING:
                if kinds not in self._ready:
                    self._ready[kinds] = load_object(self.compile(kinds), kinds)
        return self._ready[kinds](*arguments)

    def compile(self, kinds: tuple[str, ...]) -> ObjectCode:
        """The code for arguments of these kinds, from the cache or compiled into it."""
        path = None if CACHE is None else CACHE / f"{self._name}-{'-'.join(kinds)}.object"
        code = None if path is None else read_object(path)
        if code is None:
            from headway.engine.compiler import compile_object

            code = compile_object(self.function, kinds)
            if path is not None:
                write_object(path, code)
        return code

    @property
    def is_compiled(self) -> bool:
        """Whether calls with earlier argument kinds compile nothing."""
        return bool(self._ready) or (CACHE is not None and any(CACHE.glob(f"{self._name}-*.object")))

    @property
    def _name(self) -> str:
        return f"{self.function.__module__}.{self.function.__name__}"

    @cached_property
    def _dispatcher(self) -> Any:
        from headway.engine.compiler import dispatcher

        return dispatcher(self.function, CACHE)

    @property
    def _numba_type_(self) -> Any:
        """Looked up by numba when a compiled function calls this one. It does not keep the dispatcher alive."""
        return self._dispatcher._numba_type_


compiled = CompiledFunction  # the decorator


class Intrinsic:
    """A generator of LLVM code, called from compiled functions with one argument less than its definition."""

    def __init__(self, definition: Callable[..., Any]) -> None:
        self._definition = definition

    @cached_property
    def _numba_type_(self) -> Any:
        from headway.engine.compiler import type_of_intrinsic

        return type_of_intrinsic(self._definition)


intrinsic: Any = Intrinsic  # type checkers do not see that intrinsics can be called in compiled code


class _DeferredModule:
    """A module of numba, imported on first use, that is, when something is compiled."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(importlib.import_module(self._name), attribute)


types: Any = _DeferredModule("numba.core.types")
cgutils: Any = _DeferredModule("numba.core.cgutils")


@contextmanager
def announce_compilation(function: CompiledFunction) -> Iterator[None]:
    """Print a message to stderr before the first call of a compiled function, within, has to compile it."""
    if not function.is_compiled:
        print(_MESSAGE, file=sys.stderr, flush=True)
    yield


def _pointer(kind: str, llvm: ir.Type) -> Any:
    @intrinsic
    def at(typing: Any, address: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return builder.inttoptr(args[0], llvm.as_pointer())

        return types.CPointer(getattr(types, kind))(types.int64), generate

    return at


f32 = _pointer("float32", ir.FloatType())
f64 = _pointer("float64", ir.DoubleType())
i32 = _pointer("int32", ir.IntType(32))
i64 = _pointer("int64", ir.IntType(64))
i8, u8 = (_pointer(kind, ir.IntType(8)) for kind in ("int8", "uint8"))
