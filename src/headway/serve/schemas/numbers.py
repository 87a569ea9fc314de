"""Sets of numbers, and regular expressions for their JSON notation."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from decimal import Context, Decimal
from fractions import Fraction

from headway.serve.ecma_regex import LarkTerminal, intersection, union

_MAX_DIGITS = 400  # digits per bound: JSON parsers do not read longer numbers
_MAX_MULTIPLE = 100_000  # maximum multiple: llguidance has one state per remainder
_MAX_LISTED = 1000  # maximum number of multiples that are listed one by one
_INTEGER = "-?(?:0|[1-9][0-9]*)"
_PLAIN = rf"{_INTEGER}(?:\.[0-9]+)?"
_ANY_NUMBER = rf"{_PLAIN}(?:[eE][+-]?[0-9]+)?"
_NON_INTEGER = rf"{_INTEGER}\.[0-9]*[1-9][0-9]*"
_EXACT_CONTEXT = Context(prec=4 * _MAX_DIGITS)


class UnknownError(Exception):
    """A schema requirement, named in the message, cannot be expressed as a set of values."""


@dataclass(frozen=True)
class NumberSet:
    """Numbers between bounds: only integers if `integer` is True, only non-integers if it is False."""

    low: Decimal | None = None
    high: Decimal | None = None
    low_open: bool = False
    high_open: bool = False
    integer: bool | None = None
    step: Decimal | None = None  # all are multiples of it

    def intersection(self, other: NumberSet) -> NumberSet | None:
        """The numbers in both sets; None if there are none."""
        if None not in (self.integer, other.integer) and self.integer != other.integer:
            return None
        low, low_open = _tighter((self.low, self.low_open), (other.low, other.low_open), 1)
        high, high_open = _tighter((self.high, self.high_open), (other.high, other.high_open), -1)
        integer = other.integer if self.integer is None else self.integer
        step = _common_multiple(self.step, other.step)
        shared = NumberSet(low, high, low_open, high_open, integer, step)
        return None if shared._is_empty() else shared

    def complement(self) -> list[NumberSet]:
        if self.step is not None:
            raise UnknownError("numbers that are not multiples")
        parts = []
        if self.low is not None:
            parts.append(NumberSet(high=self.low, high_open=not self.low_open))
        if self.high is not None:
            parts.append(NumberSet(low=self.high, low_open=not self.high_open))
        if self.integer is not None:
            parts.append(replace(NumberSet(), integer=not self.integer))
        return parts

    def listed(self) -> list[str] | None:
        """All numbers, if there are few."""
        if self.low is not None and self.low == self.high:
            return [f"{self.low.normalize(_EXACT_CONTEXT):f}"]
        values = self._multiples()
        return None if values is None else [f"{_decimal(value).normalize(_EXACT_CONTEXT):f}" for value in values]

    def _is_empty(self) -> bool:
        if self.integer is False and self.step is not None and self.step == self.step.to_integral_value():
            return True
        if self.low is None or self.high is None:
            return False
        if self.low > self.high or (self.low == self.high and (self.low_open or self.high_open)):
            return True
        if self.integer is False:
            return (self.low == self.high and self.low == self.low.to_integral_value()) or self._multiples() == []
        unit = self._unit()
        if unit is None:
            return False
        first, last = self._range(unit)
        return first > last

    def _unit(self) -> Fraction | None:
        """The number that all of them are multiples of."""
        if self.step is not None:
            return Fraction(_common_multiple(self.step, Decimal(1)) or 1) if self.integer else Fraction(self.step)
        return Fraction(1) if self.integer else None

    def _range(self, unit: Fraction) -> tuple[int, int]:
        assert self.low is not None
        assert self.high is not None
        first, last = math.ceil(Fraction(self.low) / unit), math.floor(Fraction(self.high) / unit)
        first += self.low_open and first * unit == Fraction(self.low)
        last -= self.high_open and last * unit == Fraction(self.high)
        return first, last

    def _multiples(self) -> list[Fraction] | None:
        unit = self._unit()
        if unit is None or self.low is None or self.high is None:
            return None
        first, last = self._range(unit)
        if last - first >= _MAX_LISTED:
            return None
        values = [unit * i for i in range(first, last + 1)]
        return [value for value in values if self.integer is not False or value.denominator > 1]

    def terminal(self) -> LarkTerminal | None:
        """The notation of the numbers; None if only `fragment` can express it."""
        if self.low is not None and self.low == self.high:
            return LarkTerminal(_notation(self.low))
        bounds = [_min_terminal(self.low, self.low_open), _max_terminal(self.high, self.high_open)]
        if self.step is not None:
            values = self._multiples()
            if values is not None:
                return union([LarkTerminal(_notation(_decimal(value))) for value in values])
            shape = _power_of_ten_multiples(self._unit() or Fraction(1))
            broken = [] if self.integer is None or self.integer else [LarkTerminal(_NON_INTEGER)]
            return (
                None
                if shape is None
                else intersection([LarkTerminal(shape), *broken, *(bound for bound in bounds if bound)])
            )
        if self.integer is False:
            return intersection([LarkTerminal(_NON_INTEGER), *(bound for bound in bounds if bound)])
        if self.integer:
            return intersection([LarkTerminal(_INTEGER), *(bound for bound in bounds if bound)])
        if not any(bounds):
            return LarkTerminal(_ANY_NUMBER)
        return intersection([LarkTerminal(_PLAIN), *(bound for bound in bounds if bound)])

    def fragment(self) -> str | None:
        """The set as a schema for llguidance, for multiples that are not powers of ten; None if it is unsupported."""
        unit = self._unit() or Fraction(1)
        schema: dict[str, object] = {"type": "integer" if self.integer else "number", "multipleOf": _exact_number(unit)}
        if self.low is not None:
            first = math.ceil(Fraction(self.low) / unit)
            first += self.low_open and first * unit == Fraction(self.low)
            schema["minimum"] = _exact_number(first * unit)
        if self.high is not None:
            last = math.floor(Fraction(self.high) / unit)
            last -= self.high_open and last * unit == Fraction(self.high)
            schema["maximum"] = _exact_number(last * unit)
        if self.integer is False or unit.numerator > _MAX_MULTIPLE or any(entry is None for entry in schema.values()):
            return None
        return json.dumps({**schema, "x-guidance": {"whitespace_flexible": False}})


def decimal(value: float | int) -> Decimal | None:
    """A number of a schema; None if it has too many digits."""
    number = Decimal(value) if isinstance(value, int) else Decimal(repr(value))
    if number == 0:
        return Decimal(0)
    _, digits, exponent = number.as_tuple()
    if not isinstance(exponent, int) or len(digits) + abs(exponent) > _MAX_DIGITS:
        return None
    return number


def _tighter(
    left: tuple[Decimal | None, bool], right: tuple[Decimal | None, bool], sign: int
) -> tuple[Decimal | None, bool]:
    """The tighter of two bounds: the larger of lower ones (`sign` 1), the smaller of upper ones."""
    if left[0] is None or right[0] is None:
        return right if left[0] is None else left
    if left[0] == right[0]:
        return left[0], left[1] or right[1]
    return left if (left[0] - right[0]) * sign > 0 else right


def _common_multiple(left: Decimal | None, right: Decimal | None) -> Decimal | None:
    """The least common multiple."""
    if left is None or right is None:
        return right if left is None else left
    a, b = Fraction(left), Fraction(right)
    return _decimal(Fraction(math.lcm(a.numerator, b.numerator), math.gcd(a.denominator, b.denominator)))


def _decimal(value: Fraction) -> Decimal:
    return _EXACT_CONTEXT.divide(Decimal(value.numerator), Decimal(value.denominator))


def _exact_number(value: Fraction) -> int | float | None:
    """A number for llguidance; None if it would be rounded."""
    if value.denominator == 1:
        return value.numerator if abs(value.numerator) < 10**15 else None
    approximation = float(value)
    return (
        approximation
        if Fraction(repr(approximation)) == value and len(repr(approximation)) < 16 and "e" not in repr(approximation)
        else None
    )


def _notation(number: Decimal) -> str:
    """A number with optional trailing zeros."""
    plain = f"{number.normalize(_EXACT_CONTEXT):f}"
    integer_part, _, fraction = plain.partition(".")
    return f"{integer_part}(?:\\.0+)?" if plain.startswith("-0") and not fraction else plain.replace(".", "\\.")


def _power_of_ten_multiples(unit: Fraction) -> str | None:
    """Multiples of a power of ten."""
    text = f"{_decimal(unit).normalize(_EXACT_CONTEXT):f}"
    if unit.denominator == 1 and text.rstrip("0") == "1":
        zeros = len(text) - 1
        return _INTEGER if zeros == 0 else f"-?(?:0|[1-9][0-9]*0{{{zeros}}})"
    if text.startswith("0.") and text[2:].strip("0") == "1":
        return rf"{_INTEGER}(?:\.[0-9]{{1,{len(text) - 2}}})?"
    return None


def _min_terminal(bound: Decimal | None, is_open: bool) -> LarkTerminal | None:
    """Numbers without an exponent that are at least `bound`."""
    if bound is None:
        return None
    if bound > 0:
        return LarkTerminal(_unsigned_from(bound, is_open))
    if bound == 0:
        return LarkTerminal(_unsigned_from(bound, True) if is_open else r"[0-9.]+|-0(?:\.0+)?")
    return LarkTerminal(f"[0-9.]+|-(?:{_unsigned_to(-bound, is_open)})")


def _max_terminal(bound: Decimal | None, is_open: bool) -> LarkTerminal | None:
    if bound is None:
        return None
    if bound < 0:
        return LarkTerminal(f"-(?:{_unsigned_from(-bound, is_open)})")
    if bound == 0:
        return LarkTerminal(f"-(?:{_unsigned_from(bound, True)})" if is_open else r"-[0-9.]+|0(?:\.0+)?")
    return LarkTerminal(f"-[0-9.]+|{_unsigned_to(bound, is_open)}")


def _split_decimal(bound: Decimal) -> tuple[str, str]:
    integer_part, _, fraction = f"{bound.normalize(_EXACT_CONTEXT):f}".partition(".")
    return integer_part, fraction


def _unsigned_from(bound: Decimal, is_open: bool) -> str:
    """Unsigned numbers of at least `bound`, which is not negative."""
    integer_part, fraction = _split_decimal(bound)
    options = [f"[1-9][0-9]{{{len(integer_part)},}}(?:\\.[0-9]+)?"]
    for i, digit in enumerate(integer_part):
        if digit < "9":
            options.append(f"{integer_part[:i]}[{int(digit) + 1}-9][0-9]{{{len(integer_part) - i - 1}}}(?:\\.[0-9]+)?")
    for i, digit in enumerate(fraction):
        if digit < "9":
            options.append(f"{integer_part}\\.{fraction[:i]}[{int(digit) + 1}-9][0-9]*")
    if is_open:
        options.append(f"{integer_part}\\.{fraction}[0-9]*[1-9][0-9]*")
    elif fraction:
        options.append(f"{integer_part}\\.{fraction}[0-9]*")
    else:
        options.append(f"{integer_part}(?:\\.[0-9]+)?")
    return "|".join(options)


def _unsigned_to(bound: Decimal, is_open: bool) -> str:
    """Unsigned numbers up to `bound`, which is positive."""
    integer_part, fraction = _split_decimal(bound)
    options = []
    if len(integer_part) > 1:
        options.append(f"[0-9]{{1,{len(integer_part) - 1}}}(?:\\.[0-9]+)?")
    for i, digit in enumerate(integer_part):
        if digit > "0":
            options.append(f"{integer_part[:i]}[0-{int(digit) - 1}][0-9]{{{len(integer_part) - i - 1}}}(?:\\.[0-9]+)?")
    for i, digit in enumerate(fraction):
        options.append(integer_part + (f"\\.{fraction[:i]}0*" if i else "(?:\\.0+)?"))
        if digit > "0":
            options.append(f"{integer_part}\\.{fraction[:i]}[0-{int(digit) - 1}][0-9]*")
    if not is_open:
        options.append(f"{integer_part}\\.{fraction}0*" if fraction else f"{integer_part}(?:\\.0+)?")
    return "|".join(options)
