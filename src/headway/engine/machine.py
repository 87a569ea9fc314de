"""Processor support of the compiled engine: addresses, atomics, barriers, and instruction sets.

Compiled functions take plain numbers: addresses of arrays that Python keeps alive, so one program, compiled once, runs
every model.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib
import os
import platform
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property, update_wrapper
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from llvmlite import binding, ir

from headway.engine.code_cache import code_folder
from headway.engine.object_code import load_object, read_object, write_object
from headway.errors import UserError, nearest

F32 = Any  # a single-precision float in compiled code, known to numba but not to type checkers
_I8, _I16, _I32, _I64, _F32 = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType()
_MESSAGE = "compiling the CPU engine, once on this machine (about ten seconds)"
_ARCH_PRCTL, _REQUEST, _TILE_DATA = 158, 0x1023, 18  # Linux system call that enables the matrix unit
# The futex system call of Linux, by processor.
_FUTEX = {"x86_64": 202, "aarch64": 98}.get(platform.machine()) if platform.system() == "Linux" else None
_SLEEPS = _FUTEX is not None
_WAIT, _WAKE, _ALL = 128, 129, 1 << 30  # private futex operations; more than there are threads


# Prefixes of the LLVM features that a lesser processor lacks, by the instruction set that HEADWAY_FORM names.
_LACKING = {
    "amx": (),
    "vnni": ("amx",),
    "avx2": ("amx", "avx512", "avx10", "avxvnni", "avxifma", "avxneconvert", "evex512"),
    "portable": ("amx", "avx", "fma", "f16c", "evex512", "vaes", "vpclmulqdq", "xop"),
}


def _features() -> tuple[dict[str, bool], str | None]:
    """The processor's features, or those that HEADWAY_FORM selects, and the compiler's feature string if they differ.
    Raises UserError for an instruction set that the processor lacks.
    """
    features, forced = dict(binding.get_host_cpu_features()), os.environ.get("HEADWAY_FORM")
    if forced is None:
        return features, None
    if forced not in _LACKING:
        raise UserError(f"HEADWAY_FORM={forced} is not an instruction set of the engine; {nearest(forced, _LACKING)}")
    reduced = {name: has and not name.startswith(_LACKING[forced]) for name, has in features.items()}
    native = _instruction_set(features)
    if _instruction_set(reduced) != forced:
        raise UserError(
            f"HEADWAY_FORM={forced}: this processor has at most {native}; use that or a lesser one, or unset "
            "HEADWAY_FORM"
        )
    return reduced, None if native == forced else ",".join(
        f"{'+' if has else '-'}{n}" for n, has in sorted(reduced.items())
    )


def _instruction_set(features: dict[str, bool]) -> str:
    """The best products for a processor with these features: amx, vnni, avx2 or portable."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return "portable"
    if _is_wide(features) and features.get("amx-tile") and features.get("amx-int8"):
        return "amx"
    if _is_wide(features) or features.get("avxvnni"):
        return "vnni"
    return "avx2" if features.get("avx2") else "portable"


def _is_wide(features: dict[str, bool]) -> bool:
    """Whether integer products use registers of 64 bytes."""
    return bool(features.get("avx512vnni") and features.get("avx512vl"))


FEATURES, CPU_FEATURES = _features()
INSTRUCTIONS = "vnni" if _instruction_set(FEATURES) == "amx" else _instruction_set(FEATURES)  # for integer vectors
WIDE = INSTRUCTIONS == "vnni" and _is_wide(FEATURES)
# A process must request the matrix unit from the system.
HAS_MATRIX_UNIT = (
    _instruction_set(FEATURES) == "amx"
    and platform.system() == "Linux"
    and ctypes.CDLL(None).syscall(_ARCH_PRCTL, _REQUEST, _TILE_DATA) == 0
)
HAS_BF16_UNIT = HAS_MATRIX_UNIT and FEATURES.get("amx-bf16", False)
INSTRUCTION_SET = "amx" if HAS_MATRIX_UNIT else INSTRUCTIONS


def _cache() -> Path | None:
    """A folder for the code compiled from this source on this machine, or None if none is writable.

    Its name depends on the source, the compiler and the processor, so outdated code is never found.
    """
    processor = (binding.get_host_cpu_name(), CPU_FEATURES, INSTRUCTIONS, WIDE, HAS_MATRIX_UNIT)
    overrides = [os.environ.get(f"NUMBA_CPU_{name}") for name in ("NAME", "FEATURES")]
    versions = [metadata.version(package) for package in ("numba", "llvmlite")]
    digest = hashlib.sha256(repr((processor, overrides, versions)).encode())
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return code_folder(f"engine-{digest.hexdigest()[:16]}")


CACHE = _cache()  # folder of machine code
_LOADING = threading.RLock()
_INT = np.dtype(np.int64).char


def _kind(argument: Any) -> str:
    """The kind of an argument as in `load_object`."""
    if type(argument) is int:
        return _INT
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
                    self._ready[kinds] = self._load(kinds)
        return self._ready[kinds](*arguments)

    @property
    def is_compiled(self) -> bool:
        """Whether calls with earlier argument kinds compile nothing."""
        return bool(self._ready) or (CACHE is not None and any(CACHE.glob(f"{self._name}-*.object")))

    @property
    def _name(self) -> str:
        return f"{self.function.__module__}.{self.function.__name__}"

    def _load(self, kinds: tuple[str, ...]) -> Callable[..., Any]:
        path = None if CACHE is None else CACHE / f"{self._name}-{'-'.join(kinds)}.object"
        code = None if path is None else read_object(path)
        if code is None:
            from headway.engine.compiler import compile_object

            code = compile_object(self.function, kinds)
            if path is not None:
                write_object(path, code)
        return load_object(code, kinds)

    @cached_property
    def _dispatcher(self) -> Any:
        from headway.engine.compiler import dispatcher

        return dispatcher(self.function)

    @property
    def _numba_type_(self) -> Any:
        """Looked up by numba when a compiled function calls this one."""
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


f32 = _pointer("float32", _F32)
i32 = _pointer("int32", _I32)
i64 = _pointer("int64", _I64)
i8 = _pointer("int8", _I8)
u8 = _pointer("uint8", _I8)


@intrinsic
def _add(typing: Any, address: Any, value: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.atomic_rmw("add", builder.inttoptr(args[0], _I64.as_pointer()), args[1], "seq_cst")

    return types.int64(types.int64, types.int64), generate


@intrinsic
def _load(typing: Any, address: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load_atomic(builder.inttoptr(args[0], _I64.as_pointer()), "seq_cst", 8)

    return types.int64(types.int64), generate


@intrinsic
def _relax(typing: Any) -> Any:
    """A hint to the processor that this is a spin loop."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if INSTRUCTIONS != "portable":
            kind = ir.FunctionType(ir.VoidType(), [])
            builder.call(cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.sse2.pause"), [])
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic
def _yield_core(typing: Any) -> Any:
    """Yield the core to another thread."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if platform.system() != "Windows":
            kind = ir.FunctionType(_I32, [])
            builder.call(cgutils.get_or_insert_function(builder.module, kind, "sched_yield"), [])
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic
def _swap(typing: Any, address: Any, old: Any, new: Any) -> Any:
    """Compare and swap: write `new` if the value is `old`; return whether it was."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = builder.inttoptr(args[0], _I64.as_pointer())
        return builder.extract_value(builder.cmpxchg(pointer, args[1], args[2], "seq_cst", "seq_cst"), 1)

    return types.boolean(types.int64, types.int64, types.int64), generate


@intrinsic
def _futex(typing: Any, address: Any, operation: Any, number: Any) -> Any:
    """Sleep while the 32 bits at an address equal `number`, or wake that many threads that sleep there."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if _SLEEPS:
            kind = ir.FunctionType(_I64, [_I64], var_arg=True)
            call = cgutils.get_or_insert_function(builder.module, kind, "syscall")
            builder.call(call, [ir.Constant(_I64, _FUTEX), *args, ir.Constant(_I64, 0)])  # 0: no timeout
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), generate


# Barrier memory: int64 in separate cache lines. The number of arrivals, the number of sleepers, the spins before a
# sleep, and for each thread the claimed parts of its share.
_SLEEPERS, _PATIENCE, _CLAIMED, _LINE = 8, 64, 128, 64  # bytes from the counter on
_MIN_SPINS, _MAX_SPINS, _RESET_INTERVAL = 16, 4000, 64  # 4,000 take 100 to 200 us; barriers between resets
_PARTS = 20  # bits for the parts of a share


def new_barrier(threads: int) -> np.ndarray:
    """Zeroed memory for a barrier of this many threads; its address is the `counter`."""
    memory = np.zeros(_CLAIMED + _LINE * (threads + 1), np.uint8)
    start = -memory.ctypes.data % _LINE
    return memory[start : start + _CLAIMED + _LINE * threads].view(np.int64)


@compiled
def barrier(counter: int, threads: int) -> None:
    """Wait until all threads have arrived.

    A thread spins for a while and then sleeps: if another program interrupted the thread it waits for, that thread gets
    this core. After each sleep threads spin half as long, and the limit is reset periodically: otherwise a short wait
    prolonged by a sleep would make them sleep forever.
    """
    if threads == 1:
        return
    arrivals = _add(counter, 1) + 1
    goal = (arrivals + threads - 1) // threads * threads
    if arrivals == goal:
        if _load(counter + _SLEEPERS) > 0:
            _futex(counter, _WAKE, _ALL)
        return
    patience, spins = i64(counter + _PATIENCE), 0
    if goal // threads % _RESET_INTERVAL == 1:
        patience[0] = _MAX_SPINS
    max_spins = patience[0]
    while _load(counter) < goal:
        if spins < max_spins:
            _relax()
            spins += 1
        else:
            _sleep(counter, goal)
            max_spins = max(max_spins // 2, _MIN_SPINS)
            patience[0], spins = max_spins, 0


@compiled
def _sleep(counter: int, goal: int) -> None:
    """Sleep until others arrive. Either the last one sees the sleeper, or this thread sees that it has arrived."""
    if not _SLEEPS:
        _yield_core()
        return
    _add(counter + _SLEEPERS, 1)
    arrivals = _load(counter)
    if arrivals < goal:
        _futex(counter, _WAIT, arrivals)
    _add(counter + _SLEEPERS, -1)


@compiled
def comes_last(counter: int, threads: int) -> bool:
    """Arrive at a barrier without waiting; return whether all others have arrived."""
    return (_add(counter, 1) + 1) % threads == 0


@compiled
def barriers_passed(counter: int, threads: int) -> int:
    """How many barriers all threads have passed, as seen by one of them."""
    return _load(counter) // threads


@compiled
def claim_part(counter: int, owner: int, barriers: int, count: int) -> int:
    """Claim the next part of the share of `owner` since barrier number `barriers`; no other thread gets it. Returns at
    least `count` if none is left. There is one set of parts between two barriers.
    """
    address, first = counter + _CLAIMED + _LINE * owner, barriers << _PARTS
    claimed = _load(address)
    if claimed >= first + count:
        return count
    if claimed < first and _swap(address, claimed, first + 1):
        return 0
    return _add(address, 1) - first


@intrinsic
def _bits(typing: Any, number: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], _F32)

    return types.float32(types.int32), generate


@compiled
def exp(x: F32) -> F32:
    """e^x in single precision to two units in the last place, in a form that vectorises; x is clamped to -87 ... 88."""
    x = min(max(x, np.float32(-87.0)), np.float32(88.0))
    n = np.floor(x * np.float32(1.4426950408889634) + np.float32(0.5))
    r = x - n * np.float32(0.693359375) - n * np.float32(-2.12194440e-4)
    p = np.float32(1.9875691500e-4)
    p = p * r + np.float32(1.3981999507e-3)
    p = p * r + np.float32(8.3334519073e-3)
    p = p * r + np.float32(4.1665795894e-2)
    p = p * r + np.float32(1.6666665459e-1)
    p = p * r + np.float32(5.0000001201e-1)
    p = p * r * r + r + np.float32(1.0)
    return p * _bits((np.int32(n) + np.int32(127)) << np.int32(23))
