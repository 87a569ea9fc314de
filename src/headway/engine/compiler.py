"""The numba compiler, imported only when something must be compiled, not when all code is cached."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba.extending
import numpy as np
from numba import types
from numba.core import config as settings
from numba.core import registry

from headway.engine import machine
from headway.engine.object_code import ObjectCode

config: Any = settings  # numba fills it at import, which type checkers do not see
if machine.CPU_FEATURES is not None:
    config.CPU_FEATURES = machine.CPU_FEATURES
# Sums may be reordered, but NaN and infinity are kept: a broken weight must be visible.
_FLAGS = {"reassoc", "nsz", "arcp", "contract", "afn"}
# No reference counts for arrays: they would need functions of numba's runtime.
_OPTIONS: dict[str, Any] = {
    "nogil": True,
    "fastmath": _FLAGS,
    "error_model": "numpy",
    "boundscheck": False,
    "_nrt": False,
}
_NO_PYTHON_ENTRY: dict[str, Any] = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}  # no entry points for Python
_FOREIGN = ("NRT_", "numba_", "Py", "_Py")  # prefixes of numba's and the interpreter's functions


def dispatcher(function: Callable[..., Any]) -> Any:
    """For calls from compiled code, cached on disk if a folder is writable."""
    if machine.CACHE is None:
        return numba.njit(**_OPTIONS)(function)
    before, config.CACHE_DIR = config.CACHE_DIR, str(machine.CACHE)
    try:
        return numba.njit(cache=True, **_OPTIONS)(function)
    finally:
        config.CACHE_DIR = before


def type_of_intrinsic(definition: Callable[..., Any]) -> Any:
    """The type of an intrinsic, for numba's type inference."""
    wrapped: Any = numba.extending.intrinsic(definition)
    context: Any = registry.cpu_target.typing_context
    context.refresh()
    return context.resolve_value_type(wrapped)


def compile_object(function: Callable[..., Any], kinds: tuple[str, ...]) -> ObjectCode:
    """Compile a function, with everything it calls, for arguments of these kinds, without entry points for Python and
    without references to the compiler's own functions.
    """
    signature = []
    for kind in kinds:
        number = getattr(types, np.dtype(kind[0]).name)
        signature.append(types.Array(number, int(kind[1:]), "C") if len(kind) > 1 else number)
    compiled_function = numba.njit(**_OPTIONS, **_NO_PYTHON_ENTRY)(function)
    compiled_function.compile(tuple(signature))
    overload = compiled_function.overloads[tuple(signature)]
    library: Any = overload.library
    external = {declaration.name for declaration in library._final_module.functions if declaration.is_declaration}
    foreign = [name for name in external if name.startswith(_FOREIGN)]
    if foreign:
        raise RuntimeError(f"{function.__name__} needs {foreign}, which exist only in a process with the compiler")
    data = library._codegen._tm.emit_object(library._final_module)
    return ObjectCode(overload.fndesc.llvm_func_name, str(overload.signature.return_type), data)
