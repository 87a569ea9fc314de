"""Kernels written with operators on numbers and vectors, which become LLVM's instructions.

A `kernel` is called from compiled functions. Its Python code runs once, while code is generated: operations on `Value`s
write instructions in their order, and Python's own loops are unrolled.

Numba lets LLVM reorder all operations on floats but `plus`, `minus`, `times` and `multiply_add`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from inspect import Parameter, Signature
from typing import Any

from llvmlite import binding, ir

from headway.engine.machine import cgutils, intrinsic, types

I1, I8, I16, I32, I64 = map(ir.IntType, (1, 8, 16, 32, 64))
F32, F64, VOID = ir.FloatType(), ir.DoubleType(), ir.VoidType()
AHEAD = 4096  # bytes prefetched ahead
# The cache for prefetched data that is read once: whichever was faster on AMD's processors and on others (0021).
STREAMED = 2 if binding.get_host_cpu_name().startswith("znver") else 3
_CONTRACT = ("contract",)
# Annotations of a kernel's arguments and result.
Int = Int32 = Float = Double = Bool = Any
_KINDS = {"Int": "int64", "Int32": "int32", "Float": "float32", "Double": "float64", "Bool": "boolean", "None": "void"}
_BUILDERS: list[Any] = []


def builder() -> Any:
    """LLVM's builder, with which operations on values write their instructions."""
    return _BUILDERS[-1]


def kernel(write: Callable[..., Any]) -> Any:
    """A function for compiled functions. `write` takes values and returns one, or None."""
    *names, _ = write.__annotations__
    *kinds, returns = (_KINDS[kind] for kind in write.__annotations__.values())

    def definition(typing: Any, *_: Any) -> Any:
        def generate(context: Any, with_builder: Any, signature: Any, args: Any) -> Any:
            _BUILDERS.append(with_builder)
            try:
                result = write(*map(Value, args))
            finally:
                _BUILDERS.pop()
            return context.get_dummy_value() if result is None else result.ir

        return getattr(types, returns)(*(getattr(types, kind) for kind in kinds)), generate

    parameters = [Parameter(name, Parameter.POSITIONAL_OR_KEYWORD) for name in ("typing", *names)]
    definition.__signature__ = Signature(parameters)  # type: ignore[attr-defined]  # for numba, which counts them
    definition.__name__, definition.__module__, definition.__doc__ = write.__name__, write.__module__, write.__doc__
    return intrinsic(definition)


def _operator(of_integers: str | None, of_floats: str | None = None, reverse: bool = False, **options: Any) -> Any:
    def apply(a: Value, b: Any) -> Value:
        b = a.like(b)
        write = getattr(builder(), of_floats if of_floats and a.is_float else of_integers or "")
        return Value(write(b.ir, a.ir, **options) if reverse else write(a.ir, b.ir, **options))

    return apply


def _comparison(sign: str, of_integers: str = "icmp_signed") -> Any:
    def apply(a: Value, b: Any) -> Value:
        compare = getattr(builder(), "fcmp_ordered" if a.is_float else of_integers)
        return Value(compare(sign, a.ir, a.like(b).ir))

    return apply


class Value:
    """A number, vector or pointer in generated code. The other operand of an operator may be a Python number."""

    def __init__(self, ir_value: Any) -> None:
        self.ir = ir_value

    @property
    def type(self) -> Any:
        return self.ir.type

    @property
    def is_float(self) -> bool:
        kind = self.type.element if isinstance(self.type, ir.VectorType) else self.type
        return isinstance(kind, (ir.FloatType, ir.DoubleType))

    def like(self, other: Any) -> Value:
        """A Python number as a constant of this value's type."""
        return other if isinstance(other, Value) else constant(self.type, other)

    def __add__(self, other: Any) -> Value:
        """For a pointer, the address this many elements further."""
        if isinstance(self.type, ir.PointerType):
            return Value(builder().gep(self.ir, [(other if isinstance(other, Value) else word(other)).ir]))
        return _ADD(self, other)

    __radd__: Any = __add__
    __sub__: Any = _operator("sub", "fsub")
    __rsub__: Any = _operator("sub", "fsub", reverse=True)
    __mul__: Any = _operator("mul", "fmul")
    __rmul__: Any = __mul__
    __truediv__: Any = _operator(None, "fdiv")
    __rtruediv__: Any = _operator(None, "fdiv", reverse=True)
    __floordiv__: Any = _operator("sdiv")  # rounds towards 0
    __lshift__: Any = _operator("shl")
    __rshift__: Any = _operator("ashr")
    shift_unsigned: Any = _operator("lshr")
    __and__: Any = _operator("and_")
    __or__: Any = _operator("or_")
    __xor__: Any = _operator("xor")
    __lt__: Any = _comparison("<")
    __le__: Any = _comparison("<=")
    __gt__: Any = _comparison(">")
    __ge__: Any = _comparison(">=")
    above: Any = _comparison(">", "icmp_unsigned")
    equals: Any = _comparison("==")
    differs: Any = _comparison("!=")
    plus: Any = _operator(None, "fadd", flags=_CONTRACT)
    minus: Any = _operator(None, "fsub", flags=_CONTRACT)
    times: Any = _operator(None, "fmul", flags=_CONTRACT)

    def is_nan(self) -> Value:
        return Value(builder().fcmp_unordered("uno", self.ir, self.ir))

    def to(self, kind: ir.Type, conversion: str = "bitcast") -> Value:
        """Converted by this instruction of LLVM."""
        return Value(getattr(builder(), conversion)(self.ir, kind))

    def at(self, kind: ir.Type) -> Value:
        """This address, a number or a pointer, as a pointer to another type."""
        return self.to(kind.as_pointer(), "bitcast" if isinstance(self.type, ir.PointerType) else "inttoptr")

    def load(self, kind: ir.Type | None = None, align: int | None = None) -> Value:
        """What is at this address."""
        return Value(builder().load((self.at(kind) if kind else self).ir, align=align))

    def store(self, value: Value, align: int | None = None) -> None:
        """Write a value to this address."""
        builder().store(value.ir, self.at(value.type).ir, align=align)

    def prefetch(self, cache: int = 3, to_write: bool = False) -> None:
        """Prefetch the line of memory at this address into the first cache (3) or the second (2). When several products
        use each weight, few loads are in flight, and memory would wait for the arithmetic.
        """
        call("prefetch.p0i8", VOID, self.at(I8), *(constant(I32, value) for value in (int(to_write), cache, 1)))

    def multiply_add(self, b: Any, c: Any) -> Value:
        """self b + c, in this order, whatever the compiler does elsewhere; rounded once where the processor can."""
        return self.times(b).plus(c)

    def apply(self, name: str, *others: Value) -> Value:
        """An LLVM intrinsic for vectors of floats."""
        return call(f"{name}.v{self.type.count}f32", self.type, self, *others)

    def select(self, a: Any, b: Any) -> Value:
        """a where this is true, b elsewhere."""
        a, b = (a, a.like(b)) if isinstance(a, Value) else (b.like(a), b)
        return Value(builder().select(self.ir, a.ir, b.ir))

    def broadcast(self, kind: ir.VectorType) -> Value:
        """This number in all lanes."""
        empty = Value(ir.Constant(kind, ir.Undefined))
        single = Value(builder().insert_element(empty.ir, self.ir, ir.Constant(I32, 0)))
        return shuffle(single, empty, [0] * kind.count)

    def reduce(self, join: Callable[[Value, Value], Value]) -> Value:
        """One number from all lanes, by halves."""
        x = self
        while x.type.count > 1:
            half = x.type.count // 2
            x = join(*(shuffle(x, x, range(start, start + half)) for start in (0, half)))
        return x[0]

    def __getitem__(self, index: int) -> Value:
        return Value(builder().extract_element(self.ir, ir.Constant(I32, index)))


_ADD = _operator("add", "fadd")


class Accumulator:
    """A sum or other value that code changes, in a register: `total.value` reads and sets it, `total += x` adds."""

    def __init__(self, kind: ir.Type, value: Any = None) -> None:
        self._address = cgutils.alloca_once(builder(), kind)
        if value is not None:
            self.value = value if isinstance(value, Value) else constant(kind, value)

    @property
    def value(self) -> Value:
        return Value(builder().load(self._address))

    @value.setter
    def value(self, value: Value) -> None:
        builder().store(value.ir, self._address)

    def __iadd__(self, value: Value) -> Accumulator:
        self.value = self.value + value
        return self

    def add_product(self, a: Value, b: Value) -> None:
        self.value = a.multiply_add(b, self.value)


def vector(kind: ir.Type, lanes: int) -> ir.VectorType:
    return ir.VectorType(kind, lanes)


def constant(kind: ir.Type, value: Any) -> Value:
    """A number, in all lanes of a vector; or one number per lane."""
    if isinstance(kind, ir.VectorType):
        return Value(ir.Constant(kind, value if isinstance(value, list) else [value] * kind.count))
    return Value(ir.Constant(kind, value))


def word(value: int) -> Value:
    """An address, or a number of elements, bytes or iterations."""
    return constant(I64, value)


def larger(a: Value, b: Value) -> Value:
    """The larger of two numbers; b if one is NaN."""
    return (a > b).select(a, b)


def shuffle(a: Value, b: Value, order: Sequence[int]) -> Value:
    """Lanes of a, and after them of b, in this order."""
    lanes = ir.Constant(ir.VectorType(I32, len(order)), list(order))
    return Value(builder().shuffle_vector(a.ir, b.ir, lanes))


def join(numbers: Sequence[Value]) -> Value:
    """A vector of these numbers."""
    lanes: Any = ir.Constant(ir.VectorType(numbers[0].type, len(numbers)), ir.Undefined)
    for n, number in enumerate(numbers):
        lanes = builder().insert_element(lanes, number.ir, ir.Constant(I32, n))
    return Value(lanes)


def fold_halves(values: list[Value], join: Callable[[Value, Value], Value]) -> Value:
    """One vector from 2^n, by halves."""
    while len(values) > 1:
        values = [join(*values[n : n + 2]) for n in range(0, len(values), 2)]
    return values[0]


def add(a: Value, b: Value) -> Value:
    return a + b


def call(name: str, return_type: ir.Type, *args: Value) -> Value:
    """Call an LLVM intrinsic by its name without "llvm."."""
    return call_function(f"llvm.{name}", return_type, args, [arg.type for arg in args])


def call_function(
    name: str, return_type: ir.Type, args: Sequence[Value], fixed: Sequence[ir.Type], more: bool = False
) -> Value:
    """Call a function by its name; `more` arguments may follow those of the `fixed` types."""
    kind = ir.FunctionType(return_type, fixed, var_arg=more)
    function = cgutils.get_or_insert_function(builder().module, kind, name)
    return Value(builder().call(function, [arg.ir for arg in args]))


def loop(start: Value | int, stop: Value | int | None = None, step: Value | int = 1) -> Iterator[Value]:
    """`for index in loop(count)`, or from `start` to `stop`: the body is written once, and repeated at run time."""
    if stop is None:
        with cgutils.for_range(builder(), word(0).like(start).ir) as counted:
            yield Value(counted.index)
        return
    fields = (word(0).like(value).ir for value in (start, stop, step))
    with cgutils.for_range_slice(builder(), *fields) as (index, _):
        yield Value(index)


def switch(value: Value, cases: Mapping[int, Callable[[], None]]) -> None:
    """The code of each case, selected at run time; any other value runs the last one."""
    writer = builder()
    blocks = {number: writer.append_basic_block() for number in cases}
    after = writer.append_basic_block()
    instruction = writer.switch(value.ir, list(blocks.values())[-1])
    for number, write in cases.items():
        instruction.add_case(ir.Constant(value.type, number), blocks[number])
        writer.position_at_end(blocks[number])
        write()
        writer.branch(after)
    writer.position_at_end(after)


def if_then(condition: Value) -> Any:
    """`with if_then(condition):`."""
    return builder().if_then(condition.ir)


def if_else(condition: Value) -> Any:
    """`with if_else(condition) as (then, otherwise):`, then `with then:` and `with otherwise:`."""
    return builder().if_else(condition.ir)
