"""The compiler, numba: imported when something has to be compiled, and not by programs that find all of it kept."""

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

config: Any = settings  # numba fills it as it starts, which type checkers do not see
if machine.CPU_FEATURES is not None:
    config.CPU_FEATURES = machine.CPU_FEATURES
# Sums may be made in any order, but NaN and infinity stay what they are: a broken weight must be seen.
_FLAGS = {"reassoc", "nsz", "arcp", "contract", "afn"}
# Arrays have no owner whose references would be counted: that would ask for functions of numba's own.
_OPTIONS: dict[str, Any] = {
    "nogil": True,
    "fastmath": _FLAGS,
    "error_model": "numpy",
    "boundscheck": False,
    "_nrt": False,
}
_ALONE: dict[str, Any] = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}  # without ways in from Python
_FOREIGN = ("NRT_", "numba_", "Py", "_Py")  # how names of numba's and of the interpreter's functions begin


def dispatcher(function: Callable[..., Any]) -> Any:
    """For calls from compiled code, kept on disk where a directory can be written."""
    if machine.CACHE is None:
        return numba.njit(**_OPTIONS)(function)
    before, config.CACHE_DIR = config.CACHE_DIR, str(machine.CACHE)
    try:
        return numba.njit(cache=True, **_OPTIONS)(function)
    finally:
        config.CACHE_DIR = before


def type_of_intrinsic(definition: Callable[..., Any]) -> Any:
    """Of what writes LLVM's code itself, for numba's inference of types."""
    made: Any = numba.extending.intrinsic(definition)
    context: Any = registry.cpu_target.typing_context
    context.refresh()
    return context.resolve_value_type(made)


def compile_object(function: Callable[..., Any], kinds: tuple[str, ...]) -> ObjectCode:
    """A function, with all that it calls, for arguments of these kinds: nothing in it is for callers in Python, nor
    asks for the compiler's own functions.
    """
    signature = []
    for kind in kinds:
        number = getattr(types, np.dtype(kind[0]).name)
        signature.append(types.Array(number, int(kind[1:]), "C") if len(kind) > 1 else number)
    made = numba.njit(**_OPTIONS, **_ALONE)(function)
    made.compile(tuple(signature))
    found = made.overloads[tuple(signature)]
    library: Any = found.library
    asked = {each.name for each in library._final_module.functions if each.is_declaration}
    foreign = [name for name in asked if name.startswith(_FOREIGN)]
    if foreign:
        raise RuntimeError(f"{function.__name__} asks for {foreign}, which no process has without the compiler")
    data = library._codegen._tm.emit_object(library._final_module)
    return ObjectCode(found.fndesc.llvm_func_name, str(found.signature.return_type), data)
