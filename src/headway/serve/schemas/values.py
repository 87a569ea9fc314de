"""Sets of JSON values that a schema allows: per type, a list of alternatives.

The items of an array and the members of an object are sets, too. They are named by the schemas that they must match and
only evaluated when needed, so schemas may refer to themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar

from headway.errors import UserError
from headway.serve.schemas.numbers import Numbers, UnknownError

MOST = 512  # maximum alternatives of one type
_LOOKED = 4  # number of alternatives up to which empty ones are not removed
_NUMBERS = 1 << 13  # maximum for numbers, which are listed one by one
# Indices of schemas that must all match; a negated index must not match. Everything matches the empty set.
Fit = frozenset[int]
ANY: Fit = frozenset()
NEVER: Fit = frozenset((1,))
Record = TypeVar("Record")


class RecursionWithinError(Exception):
    """A schema refers to itself for the same value."""


def fit(*fits: Fit) -> Fit:
    """The values that match all of these."""
    found = frozenset().union(*fits)
    return NEVER if 1 in found or any(-number in found for number in found) else found - {-1}


class StringPattern(NamedTuple):
    """A pattern that a string must contain, or the name of a format."""

    text: str
    is_format: bool = False


@dataclass(frozen=True)
class Strings:
    """Strings with length limits that match some patterns and do not match others; only `values`, if these are set."""

    values: frozenset[str] | None = None
    excluded: frozenset[str] = frozenset()
    fits: frozenset[StringPattern] = frozenset()
    misfits: frozenset[StringPattern] = frozenset()
    least: int = 0
    most: int | None = None

    def intersection(self, other: Strings) -> Strings | None:
        values = other.values if self.values is None else self.values
        if self.values is not None and other.values is not None:
            values = self.values & other.values
        excluded, fits = self.excluded | other.excluded, self.fits | other.fits
        misfits, least, most = self.misfits | other.misfits, max(self.least, other.least), _min(self.most, other.most)
        if values is not None:
            values = frozenset(
                each for each in values - excluded if least <= len(each) and (most is None or len(each) <= most)
            )
            excluded, least, most = frozenset(), 0, None
        if values == frozenset() or (most is not None and least > most) or fits & misfits:
            return None
        return Strings(values, excluded, fits, misfits, least, most)

    def complement(self) -> list[Strings]:
        found = [Strings(fits=frozenset([each])) for each in self.misfits]
        found += [Strings(misfits=frozenset([each])) for each in self.fits]
        if self.values is not None:
            found.append(Strings(excluded=self.values))
        if self.excluded:
            found.append(Strings(values=self.excluded))
        if self.least:
            found.append(Strings(most=self.least - 1))
        if self.most is not None:
            found.append(Strings(least=self.most + 1))
        return found


class Contained(NamedTuple):
    """How many items of an array must match."""

    fit: Fit
    least: int
    most: int | None


@dataclass(frozen=True)
class Arrays:
    """Arrays by their items: the first ones, the others, and their number."""

    first: tuple[Fit, ...] = ()
    others: Fit = ANY
    least: int = 0
    most: int | None = None
    unique: bool = False
    contains: frozenset[Contained] = frozenset()

    def item(self, place: int) -> Fit:
        return self.first[place] if place < len(self.first) else self.others

    def intersection(self, other: Arrays) -> Arrays | None:
        count = max(len(self.first), len(other.first))
        found = Arrays(
            tuple(fit(self.item(i), other.item(i)) for i in range(count)),
            fit(self.others, other.others),
            max(self.least, other.least),
            _min(self.most, other.most),
            self.unique or other.unique,
            self.contains | other.contains,
        )
        never = next((i for i, each in enumerate(found.first) if each == NEVER), None)
        if never is None and found.others == NEVER:
            never = len(found.first)
        if never is not None:
            found = replace(found, first=found.first[:never], most=_min(found.most, never), others=NEVER)
        return None if found.most is not None and found.least > found.most else found

    def complement(self, negated: Callable[[Fit], Fit]) -> list[Arrays]:
        if self.unique:
            raise UnknownError("arrays with duplicate items")
        found = []
        if self.least:
            found.append(Arrays(most=self.least - 1))
        if self.most is not None:
            found.append(Arrays(least=self.most + 1))
        for i, each in enumerate(self.first):
            if each != ANY:
                found.append(Arrays((*[ANY] * i, negated(each)), least=i + 1))
        if self.others != ANY and (self.most is None or self.most > len(self.first)):
            if self.others == NEVER:
                found.append(Arrays(least=len(self.first) + 1))
            elif self.first:
                raise UnknownError("arrays with an item of another kind after the first")
            else:
                found.append(Arrays(contains=frozenset([Contained(negated(self.others), 1, None)])))
        for each in self.contains:
            if each.least == 1:
                found.append(Arrays(others=negated(each.fit)))
            elif each.least:
                found.append(Arrays(contains=frozenset([Contained(each.fit, 0, each.least - 1)])))
            if each.most is not None:
                found.append(Arrays(contains=frozenset([Contained(each.fit, each.most + 1, None)])))
        return found


class Scope(NamedTuple):
    """Keys that contain a pattern; without one, all keys except for some names and patterns."""

    pattern: StringPattern | None = None
    names: frozenset[str] = frozenset()
    patterns: frozenset[StringPattern] = frozenset()


@dataclass(frozen=True)
class Objects:
    """Objects by their members: named ones in their order, those of scopes, and their number."""

    named: tuple[tuple[str, Fit], ...] = ()
    scoped: frozenset[tuple[Scope, Fit]] = frozenset()
    some: frozenset[tuple[Scope, Fit]] = frozenset()  # each requires at least one such member
    keys: Fit = ANY
    required: tuple[str, ...] = ()
    least: int = 0
    most: int | None = None

    @property
    def members(self) -> dict[str, Fit]:
        return dict(self.named)

    def intersection(self, other: Objects) -> Objects | None:
        if other == _ALL_OBJECTS or self == _ALL_OBJECTS:
            return self if other == _ALL_OBJECTS else other
        mine = self.members
        for name, each in other.named:
            mine[name] = fit(mine[name], each) if name in mine else each
        required = tuple(dict.fromkeys((*self.required, *other.required)))
        found = Objects(
            tuple(mine.items()),
            self.scoped | other.scoped,
            self.some | other.some,
            fit(self.keys, other.keys),
            required,
            max(self.least, other.least, len(required)),
            _min(self.most, other.most),
        )
        if (found.most is not None and found.least > found.most) or any(mine.get(each) == NEVER for each in required):
            return None
        return found

    def complement(self, negated: Callable[[Fit], Fit]) -> list[Objects]:
        found = [
            Objects(((name, negated(each)),), required=(name,), least=1) for name, each in self.named if each != ANY
        ]
        found += [Objects(((name, NEVER),)) for name in self.required]
        if self.least > len(self.required):
            found.append(Objects(most=self.least - 1))
        if self.most is not None:
            found.append(Objects(least=self.most + 1))
        found += [Objects(some=frozenset([(scope, negated(each))])) for scope, each in self.scoped]
        found += [Objects(scoped=frozenset([(scope, negated(each))])) for scope, each in self.some]
        if self.keys != ANY:
            raise UnknownError("objects with a name that does not match propertyNames")
        return found


_ALL_OBJECTS = Objects()
BOOLEANS = frozenset((False, True))


@dataclass(frozen=True)
class JsonValues:
    """A set of JSON values."""

    null: bool = False
    booleans: frozenset[bool] = frozenset()
    numbers: tuple[Numbers, ...] = ()
    strings: tuple[Strings, ...] = ()
    arrays: tuple[Arrays, ...] = ()
    objects: tuple[Objects, ...] = ()

    @property
    def is_nothing(self) -> bool:
        return not (self.null or self.booleans or self.numbers or self.strings or self.arrays or self.objects)

    def intersection(self, other: JsonValues) -> JsonValues:
        return JsonValues(
            self.null and other.null,
            self.booleans & other.booleans,
            _products(self.numbers, other.numbers),
            _products(self.strings, other.strings),
            _products(self.arrays, other.arrays),
            _products(self.objects, other.objects),
        )

    def union(self, other: JsonValues) -> JsonValues:
        return JsonValues(
            self.null or other.null,
            self.booleans | other.booleans,
            _bounded([*self.numbers, *other.numbers]),
            _bounded([*self.strings, *other.strings]),
            _bounded([*self.arrays, *other.arrays]),
            _bounded([*self.objects, *other.objects]),
        )

    def without(self, is_void: Callable[[Any], bool]) -> JsonValues:
        """The same set without alternatives that are known to be empty."""

        def left(records: tuple[Record, ...]) -> tuple[Record, ...]:
            return tuple(each for each in records if not is_void(each)) if len(records) > _LOOKED else records

        return replace(self, strings=left(self.strings), arrays=left(self.arrays), objects=left(self.objects))

    def difference(
        self, other: JsonValues, negated: Callable[[Fit], Fit], is_void: Callable[[Any], bool]
    ) -> JsonValues:
        """The values that are not in the other set. `negated` returns the complement, and `is_void` whether a record is
        known to be empty. UnknownError if the difference cannot be expressed.
        """
        return JsonValues(
            self.null and not other.null,
            self.booleans - other.booleans,
            _differences(self.numbers, other.numbers, lambda each: each.complement(), is_void),
            _differences(self.strings, other.strings, lambda each: each.complement(), is_void),
            _differences(self.arrays, other.arrays, lambda each: each.complement(negated), is_void),
            _differences(self.objects, other.objects, lambda each: each.complement(negated), is_void),
        )


ALL = JsonValues(True, BOOLEANS, (Numbers(),), (Strings(),), (Arrays(),), (Objects(),))
NOTHING = JsonValues()


def _products(ones: Sequence[Record], others: Sequence[Record]) -> tuple[Record, ...]:
    """All intersections of one alternative of each list."""
    if len(ones) * len(others) > MOST * 32:
        raise _too_many()
    pairs = (one.intersection(other) for one in ones for other in others)  # type: ignore[attr-defined]
    return _bounded(pair for pair in pairs if pair is not None)


def _differences(
    ones: tuple[Record, ...],
    others: Sequence[Record],
    complement: Callable[[Record], list[Record]],
    is_void: Callable[[Record], bool],
) -> tuple[Record, ...]:
    """The values in one of `records` and in none of the others."""
    for other in others:
        left: list[Record] = []
        rest = None
        for one in ones:
            shared = one.intersection(other)  # type: ignore[attr-defined]
            if shared is None or is_void(shared):
                left.append(one)
                continue
            rest = complement(other) if rest is None else rest
            parts = (one.intersection(each) for each in rest)  # type: ignore[attr-defined]
            left += [part for part in parts if part is not None and not is_void(part)]
        ones = _bounded(left)
    return ones


def _bounded(records: Iterable[Record]) -> tuple[Record, ...]:
    found = tuple(dict.fromkeys(records))
    if len(found) > (_NUMBERS if found and isinstance(found[0], Numbers) else MOST):
        raise _too_many()
    return found


def _too_many() -> UserError:
    return UserError(f"the schema has more than {MOST} combined alternatives of one type; use fewer")


def _min(one: int | None, other: int | None) -> int | None:
    if one is None or other is None:
        return other if one is None else one
    return min(one, other)
