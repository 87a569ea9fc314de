"""The numba compiler, imported only when something must be compiled, not when all code is cached."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba.extending
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import config as settings
from numba.core import registry
from numba.core.typing.templates import AttributeTemplate

from headway.engine.instructions import FLOATS, WORDS, Opcode
from headway.engine.object_code import ObjectCode
from headway.engine.processor import CPU_FEATURES

config: Any = settings  # numba fills it at import, which type checkers do not see
if CPU_FEATURES is not None:
    config.CPU_FEATURES = CPU_FEATURES
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


class Operands(types.Type):
    """The address of an instruction in compiled code, whose operands are attributes."""

    def __init__(self, kind: int) -> None:
        super().__init__(f"Operands({kind})")
        self.kind = Opcode(kind)


@numba.extending.register_model(Operands)
class _OperandsModel(numba.extending.models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Operands) -> None:
        super().__init__(manager, kind, ir.IntType(64))


@numba.extending.infer_getattr
class _OperandTypes(AttributeTemplate):
    key = Operands

    def generic_resolve(self, operands: Operands, name: str) -> types.Type | None:
        if name not in WORDS[operands.kind]:
            return None
        return types.float64 if name in FLOATS[operands.kind] else types.int64


@numba.extending.lower_getattr_generic(Operands)
def _load_operand(context: Any, builder: Any, operands: Operands, row: Any, name: str) -> Any:
    kind = ir.DoubleType() if name in FLOATS[operands.kind] else ir.IntType(64)
    words = builder.inttoptr(row, kind.as_pointer())
    return builder.load(builder.gep(words, [ir.Constant(ir.IntType(64), WORDS[operands.kind][name])]))


def dispatcher(function: Callable[..., Any], folder: Path | None) -> Any:
    """For calls from compiled code, cached in a folder."""
    if folder is None:
        return numba.njit(**_OPTIONS)(function)
    before, config.CACHE_DIR = config.CACHE_DIR, str(folder)
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
    # The machine code that `compile` has loaded: LLVM would generate the same again, in a seventh of the whole time.
    data = library._get_compiled_object()
    return ObjectCode(overload.fndesc.llvm_func_name, str(overload.signature.return_type), data)
