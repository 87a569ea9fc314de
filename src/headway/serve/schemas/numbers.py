"""Sets of numbers, and regular expressions of their JSON notation."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from decimal import Context, Decimal
from fractions import Fraction

from headway.serve.expressions import LarkTerminal, both, either

_DIGITS = 400  # maximum digits of a bound: JSON parsers read no longer numbers
_LARGEST = 100_000  # maximum multiple: llguidance has one state per remainder
_LISTED = 1000  # maximum number of multiples that are listed one by one
_WHOLE = "-?(?:0|[1-9][0-9]*)"
_PLAIN = rf"{_WHOLE}(?:\.[0-9]+)?"
_ANY = rf"{_PLAIN}(?:[eE][+-]?[0-9]+)?"
_BROKEN = rf"{_WHOLE}\.[0-9]*[1-9][0-9]*"
_EXACT = Context(prec=4 * _DIGITS)


class UnknownError(Exception):
    """A requirement of a schema cannot be expressed as a set of values. The message names it."""


@dataclass(frozen=True)
class Numbers:
    """Numbers between bounds: only integers if `integer` is True, only non-integers if it is False."""

    low: Decimal | None = None
    high: Decimal | None = None
    low_open: bool = False
    high_open: bool = False
    whole: bool | None = None
    step: Decimal | None = None  # all are multiples of it

    def intersection(self, other: Numbers) -> Numbers | None:
        """The numbers in both sets; None if there are none."""
        if None not in (self.whole, other.whole) and self.whole != other.whole:
            return None
        low, low_open = _tighter((self.low, self.low_open), (other.low, other.low_open), 1)
        high, high_open = _tighter((self.high, self.high_open), (other.high, other.high_open), -1)
        whole = other.whole if self.whole is None else self.whole
        step = _common(self.step, other.step)
        found = Numbers(low, high, low_open, high_open, whole, step)
        return None if found._is_empty() else found

    def complement(self) -> list[Numbers]:
        if self.step is not None:
            raise UnknownError("numbers that are not multiples")
        found = []
        if self.low is not None:
            found.append(Numbers(high=self.low, high_open=not self.low_open))
        if self.high is not None:
            found.append(Numbers(low=self.high, low_open=not self.high_open))
        if self.whole is not None:
            found.append(replace(Numbers(), whole=not self.whole))
        return found

    def listed(self) -> list[str] | None:
        """All numbers, if there are few."""
        if self.low is not None and self.low == self.high:
            return [f"{self.low.normalize(_EXACT):f}"]
        values = self._multiples()
        return None if values is None else [f"{_decimal(value).normalize(_EXACT):f}" for value in values]

    def _is_empty(self) -> bool:
        if self.whole is False and self.step is not None and self.step == self.step.to_integral_value():
            return True
        if self.low is None or self.high is None:
            return False
        if self.low > self.high or (self.low == self.high and (self.low_open or self.high_open)):
            return True
        if self.whole is False:
            return (self.low == self.high and self.low == self.low.to_integral_value()) or self._multiples() == []
        unit = self._unit()
        if unit is None:
            return False
        first, last = self._range(unit)
        return first > last

    def _unit(self) -> Fraction | None:
        """The number that all are multiples of."""
        if self.step is not None:
            return Fraction(_common(self.step, Decimal(1)) or 1) if self.whole else Fraction(self.step)
        return Fraction(1) if self.whole else None

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
        if last - first >= _LISTED:
            return None
        values = [unit * i for i in range(first, last + 1)]
        return [value for value in values if self.whole is not False or value.denominator > 1]

    def terminal(self) -> LarkTerminal | None:
        """The notation of the numbers; None if only `fragment` can express it."""
        if self.low is not None and self.low == self.high:
            return LarkTerminal(_spelt(self.low))
        bounds = [_at_least(self.low, self.low_open), _at_most(self.high, self.high_open)]
        if self.step is not None:
            values = self._multiples()
            if values is not None:
                return either([LarkTerminal(_spelt(_decimal(value))) for value in values])
            shape = _power(self._unit() or Fraction(1))
            broken = [] if self.whole is None or self.whole else [LarkTerminal(_BROKEN)]
            return (
                None if shape is None else both([LarkTerminal(shape), *broken, *(bound for bound in bounds if bound)])
            )
        if self.whole is False:
            return both([LarkTerminal(_BROKEN), *(bound for bound in bounds if bound)])
        if self.whole:
            return both([LarkTerminal(_WHOLE), *(bound for bound in bounds if bound)])
        if not any(bounds):
            return LarkTerminal(_ANY)
        return both([LarkTerminal(_PLAIN), *(bound for bound in bounds if bound)])

    def fragment(self) -> str | None:
        """The set as a schema for llguidance, for multiples that are not powers of ten; None if it is unsupported."""
        unit = self._unit() or Fraction(1)
        schema: dict[str, object] = {"type": "integer" if self.whole else "number", "multipleOf": _number(unit)}
        if self.low is not None:
            first = math.ceil(Fraction(self.low) / unit)
            first += self.low_open and first * unit == Fraction(self.low)
            schema["minimum"] = _number(first * unit)
        if self.high is not None:
            last = math.floor(Fraction(self.high) / unit)
            last -= self.high_open and last * unit == Fraction(self.high)
            schema["maximum"] = _number(last * unit)
        if self.whole is False or unit.numerator > _LARGEST or any(each is None for each in schema.values()):
            return None
        return json.dumps({**schema, "x-guidance": {"whitespace_flexible": False}})


def decimal(value: float | int) -> Decimal | None:
    """A number of a schema; None if it has too many digits."""
    number = Decimal(value) if isinstance(value, int) else Decimal(repr(value))
    if number == 0:
        return Decimal(0)
    _, digits, exponent = number.as_tuple()
    if not isinstance(exponent, int) or len(digits) + abs(exponent) > _DIGITS:
        return None
    return number


def _tighter(
    one: tuple[Decimal | None, bool], other: tuple[Decimal | None, bool], sign: int
) -> tuple[Decimal | None, bool]:
    """The tighter of two bounds: the larger of lower ones (`sign` 1), the smaller of upper ones."""
    if one[0] is None or other[0] is None:
        return other if one[0] is None else one
    if one[0] == other[0]:
        return one[0], one[1] or other[1]
    return one if (one[0] - other[0]) * sign > 0 else other


def _common(one: Decimal | None, other: Decimal | None) -> Decimal | None:
    """The least common multiple."""
    if one is None or other is None:
        return other if one is None else one
    a, b = Fraction(one), Fraction(other)
    return _decimal(Fraction(math.lcm(a.numerator, b.numerator), math.gcd(a.denominator, b.denominator)))


def _decimal(value: Fraction) -> Decimal:
    return _EXACT.divide(Decimal(value.numerator), Decimal(value.denominator))


def _number(value: Fraction) -> int | float | None:
    """A number for llguidance; None if it would be rounded."""
    if value.denominator == 1:
        return value.numerator if abs(value.numerator) < 10**15 else None
    near = float(value)
    return near if Fraction(repr(near)) == value and len(repr(near)) < 16 and "e" not in repr(near) else None


def _spelt(number: Decimal) -> str:
    """A number with optional trailing zeros."""
    plain = f"{number.normalize(_EXACT):f}"
    whole, _, rest = plain.partition(".")
    return f"{whole}(?:\\.0+)?" if plain.startswith("-0") and not rest else plain.replace(".", "\\.")


def _power(unit: Fraction) -> str | None:
    """Multiples of a power of ten."""
    text = f"{_decimal(unit).normalize(_EXACT):f}"
    if unit.denominator == 1 and text.rstrip("0") == "1":
        zeros = len(text) - 1
        return _WHOLE if zeros == 0 else f"-?(?:0|[1-9][0-9]*0{{{zeros}}})"
    if text.startswith("0.") and text[2:].strip("0") == "1":
        return rf"{_WHOLE}(?:\.[0-9]{{1,{len(text) - 2}}})?"
    return None


def _at_least(bound: Decimal | None, is_open: bool) -> LarkTerminal | None:
    """Numbers without an exponent that are at least `bound`."""
    if bound is None:
        return None
    if bound > 0:
        return LarkTerminal(_more(bound, is_open))
    if bound == 0:
        return LarkTerminal(_more(bound, True) if is_open else r"[0-9.]+|-0(?:\.0+)?")
    return LarkTerminal(f"[0-9.]+|-(?:{_less(-bound, is_open)})")


def _at_most(bound: Decimal | None, is_open: bool) -> LarkTerminal | None:
    if bound is None:
        return None
    if bound < 0:
        return LarkTerminal(f"-(?:{_more(-bound, is_open)})")
    if bound == 0:
        return LarkTerminal(f"-(?:{_more(bound, True)})" if is_open else r"-[0-9.]+|0(?:\.0+)?")
    return LarkTerminal(f"-[0-9.]+|{_less(bound, is_open)}")


def _parts(bound: Decimal) -> tuple[str, str]:
    whole, _, rest = f"{bound.normalize(_EXACT):f}".partition(".")
    return whole, rest


def _joined(options: Iterable[str]) -> str:
    return "|".join(options)


def _more(bound: Decimal, is_open: bool) -> str:
    """Unsigned numbers of at least `bound`, which is not negative."""
    whole, rest = _parts(bound)
    options = [f"[1-9][0-9]{{{len(whole)},}}(?:\\.[0-9]+)?"]
    for i, digit in enumerate(whole):
        if digit < "9":
            options.append(f"{whole[:i]}[{int(digit) + 1}-9][0-9]{{{len(whole) - i - 1}}}(?:\\.[0-9]+)?")
    for i, digit in enumerate(rest):
        if digit < "9":
            options.append(f"{whole}\\.{rest[:i]}[{int(digit) + 1}-9][0-9]*")
    if is_open:
        options.append(f"{whole}\\.{rest}[0-9]*[1-9][0-9]*")
    elif rest:
        options.append(f"{whole}\\.{rest}[0-9]*")
    else:
        options.append(f"{whole}(?:\\.[0-9]+)?")
    return _joined(options)


def _less(bound: Decimal, is_open: bool) -> str:
    """Unsigned numbers up to `bound`, which is positive."""
    whole, rest = _parts(bound)
    options = []
    if len(whole) > 1:
        options.append(f"[0-9]{{1,{len(whole) - 1}}}(?:\\.[0-9]+)?")
    for i, digit in enumerate(whole):
        if digit > "0":
            options.append(f"{whole[:i]}[0-{int(digit) - 1}][0-9]{{{len(whole) - i - 1}}}(?:\\.[0-9]+)?")
    for i, digit in enumerate(rest):
        options.append(whole + (f"\\.{rest[:i]}0*" if i else "(?:\\.0+)?"))
        if digit > "0":
            options.append(f"{whole}\\.{rest[:i]}[0-{int(digit) - 1}][0-9]*")
    if not is_open:
        options.append(f"{whole}\\.{rest}0*" if rest else f"{whole}(?:\\.0+)?")
    return _joined(options)
