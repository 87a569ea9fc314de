"""Sets of JSON values that a schema allows: a list of alternatives per type.

The items of an array and the members of an object are sets, too. They are named by the schemas that they must match and
only evaluated when needed, so schemas may refer to themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar

from headway.errors import UserError
from headway.serve.schemas.numbers import NumberSet, UnknownError

MAX_ALTERNATIVES = 512  # alternatives per type
_MAX_UNCHECKED = 4  # number of alternatives up to which empty ones are not removed
_MAX_NUMBERS = 1 << 13  # maximum for numbers, which are listed one by one
# Indices of schemas that must all match; a negated index must not match. Everything matches the empty set.
SchemaSet = frozenset[int]
ANY: SchemaSet = frozenset()
NEVER: SchemaSet = frozenset((1,))
Record = TypeVar("Record")


class RecursionWithinError(Exception):
    """A schema refers to itself for the same value."""


def all_of(*fits: SchemaSet) -> SchemaSet:
    """The values that match all of these."""
    combined = frozenset().union(*fits)
    return NEVER if 1 in combined or any(-number in combined for number in combined) else combined - {-1}


class StringPattern(NamedTuple):
    """A pattern that a string must contain, or the name of a format."""

    text: str
    is_format: bool = False


@dataclass(frozen=True)
class StringSet:
    """Strings with length limits that match some patterns and not others; only `values`, if these are set."""

    values: frozenset[str] | None = None
    excluded: frozenset[str] = frozenset()
    patterns: frozenset[StringPattern] = frozenset()
    excluded_patterns: frozenset[StringPattern] = frozenset()
    min_length: int = 0
    max_length: int | None = None

    def intersection(self, other: StringSet) -> StringSet | None:
        values = other.values if self.values is None else self.values
        if self.values is not None and other.values is not None:
            values = self.values & other.values
        excluded, patterns = self.excluded | other.excluded, self.patterns | other.patterns
        excluded_patterns, min_length, max_length = (
            self.excluded_patterns | other.excluded_patterns,
            max(self.min_length, other.min_length),
            _min(self.max_length, other.max_length),
        )
        if values is not None:
            values = frozenset(
                text
                for text in values - excluded
                if min_length <= len(text) and (max_length is None or len(text) <= max_length)
            )
            excluded, min_length, max_length = frozenset(), 0, None
        if (
            values == frozenset()
            or (max_length is not None and min_length > max_length)
            or patterns & excluded_patterns
        ):
            return None
        return StringSet(values, excluded, patterns, excluded_patterns, min_length, max_length)

    def complement(self) -> list[StringSet]:
        parts = [StringSet(patterns=frozenset([pattern])) for pattern in self.excluded_patterns]
        parts += [StringSet(excluded_patterns=frozenset([pattern])) for pattern in self.patterns]
        if self.values is not None:
            parts.append(StringSet(excluded=self.values))
        if self.excluded:
            parts.append(StringSet(values=self.excluded))
        if self.min_length:
            parts.append(StringSet(max_length=self.min_length - 1))
        if self.max_length is not None:
            parts.append(StringSet(min_length=self.max_length + 1))
        return parts


class Contained(NamedTuple):
    """How many items of an array must match."""

    schemas: SchemaSet
    min_count: int
    max_count: int | None


@dataclass(frozen=True)
class ArraySet:
    """Arrays by their items: the first ones, the others, and their number."""

    first: tuple[SchemaSet, ...] = ()
    other_items: SchemaSet = ANY
    min_items: int = 0
    max_items: int | None = None
    unique: bool = False
    contains: frozenset[Contained] = frozenset()

    def item_schemas(self, index: int) -> SchemaSet:
        return self.first[index] if index < len(self.first) else self.other_items

    def intersection(self, other: ArraySet) -> ArraySet | None:
        count = max(len(self.first), len(other.first))
        shared = ArraySet(
            tuple(all_of(self.item_schemas(i), other.item_schemas(i)) for i in range(count)),
            all_of(self.other_items, other.other_items),
            max(self.min_items, other.min_items),
            _min(self.max_items, other.max_items),
            self.unique or other.unique,
            self.contains | other.contains,
        )
        first_impossible = next((i for i, schemas in enumerate(shared.first) if schemas == NEVER), None)
        if first_impossible is None and shared.other_items == NEVER:
            first_impossible = len(shared.first)
        if first_impossible is not None:
            shared = replace(
                shared,
                first=shared.first[:first_impossible],
                max_items=_min(shared.max_items, first_impossible),
                other_items=NEVER,
            )
        return None if shared.max_items is not None and shared.min_items > shared.max_items else shared

    def complement(self, negated: Callable[[SchemaSet], SchemaSet]) -> list[ArraySet]:
        if self.unique:
            raise UnknownError("arrays with duplicate items")
        parts = []
        if self.min_items:
            parts.append(ArraySet(max_items=self.min_items - 1))
        if self.max_items is not None:
            parts.append(ArraySet(min_items=self.max_items + 1))
        for i, entry in enumerate(self.first):
            if entry != ANY:
                parts.append(ArraySet((*[ANY] * i, negated(entry)), min_items=i + 1))
        if self.other_items != ANY and (self.max_items is None or self.max_items > len(self.first)):
            if self.other_items == NEVER:
                parts.append(ArraySet(min_items=len(self.first) + 1))
            elif self.first:
                raise UnknownError("arrays with an item of another kind after the first")
            else:
                parts.append(ArraySet(contains=frozenset([Contained(negated(self.other_items), 1, None)])))
        for entry in self.contains:
            if entry.min_count == 1:
                parts.append(ArraySet(other_items=negated(entry.schemas)))
            elif entry.min_count:
                parts.append(ArraySet(contains=frozenset([Contained(entry.schemas, 0, entry.min_count - 1)])))
            if entry.max_count is not None:
                parts.append(ArraySet(contains=frozenset([Contained(entry.schemas, entry.max_count + 1, None)])))
        return parts


class Scope(NamedTuple):
    """Keys that contain a pattern; without one, all keys except for some names and patterns."""

    pattern: StringPattern | None = None
    names: frozenset[str] = frozenset()
    patterns: frozenset[StringPattern] = frozenset()


@dataclass(frozen=True)
class ObjectSet:
    """Objects by their members: named ones in their order, those of scopes, and their number."""

    named: tuple[tuple[str, SchemaSet], ...] = ()
    scoped: frozenset[tuple[Scope, SchemaSet]] = frozenset()
    required_scopes: frozenset[tuple[Scope, SchemaSet]] = frozenset()  # each requires at least one such member
    keys: SchemaSet = ANY
    required: tuple[str, ...] = ()
    min_members: int = 0
    max_members: int | None = None

    @property
    def members(self) -> dict[str, SchemaSet]:
        return dict(self.named)

    def intersection(self, other: ObjectSet) -> ObjectSet | None:
        if other == _ALL_OBJECTS or self == _ALL_OBJECTS:
            return self if other == _ALL_OBJECTS else other
        members = self.members
        for name, entry in other.named:
            members[name] = all_of(members[name], entry) if name in members else entry
        required = tuple(dict.fromkeys((*self.required, *other.required)))
        shared = ObjectSet(
            tuple(members.items()),
            self.scoped | other.scoped,
            self.required_scopes | other.required_scopes,
            all_of(self.keys, other.keys),
            required,
            max(self.min_members, other.min_members, len(required)),
            _min(self.max_members, other.max_members),
        )
        if (shared.max_members is not None and shared.min_members > shared.max_members) or any(
            members.get(entry) == NEVER for entry in required
        ):
            return None
        return shared

    def complement(self, negated: Callable[[SchemaSet], SchemaSet]) -> list[ObjectSet]:
        parts = [
            ObjectSet(((name, negated(schemas)),), required=(name,), min_members=1)
            for name, schemas in self.named
            if schemas != ANY
        ]
        parts += [ObjectSet(((name, NEVER),)) for name in self.required]
        if self.min_members > len(self.required):
            parts.append(ObjectSet(max_members=self.min_members - 1))
        if self.max_members is not None:
            parts.append(ObjectSet(min_members=self.max_members + 1))
        parts += [ObjectSet(required_scopes=frozenset([(scope, negated(schemas))])) for scope, schemas in self.scoped]
        parts += [ObjectSet(scoped=frozenset([(scope, negated(schemas))])) for scope, schemas in self.required_scopes]
        if self.keys != ANY:
            raise UnknownError("objects with a name that does not match propertyNames")
        return parts


_ALL_OBJECTS = ObjectSet()
BOOLEANS = frozenset((False, True))


@dataclass(frozen=True)
class JsonValues:
    """A set of JSON values."""

    null: bool = False
    booleans: frozenset[bool] = frozenset()
    numbers: tuple[NumberSet, ...] = ()
    strings: tuple[StringSet, ...] = ()
    arrays: tuple[ArraySet, ...] = ()
    objects: tuple[ObjectSet, ...] = ()

    @property
    def is_nothing(self) -> bool:
        return not (self.null or self.booleans or self.numbers or self.strings or self.arrays or self.objects)

    def intersection(self, other: JsonValues) -> JsonValues:
        return JsonValues(
            self.null and other.null,
            self.booleans & other.booleans,
            _intersections(self.numbers, other.numbers),
            _intersections(self.strings, other.strings),
            _intersections(self.arrays, other.arrays),
            _intersections(self.objects, other.objects),
        )

    def union(self, other: JsonValues) -> JsonValues:
        return JsonValues(
            self.null or other.null,
            self.booleans | other.booleans,
            _limit([*self.numbers, *other.numbers]),
            _limit([*self.strings, *other.strings]),
            _limit([*self.arrays, *other.arrays]),
            _limit([*self.objects, *other.objects]),
        )

    def without(self, is_void: Callable[[Any], bool]) -> JsonValues:
        """The same set without alternatives that are known to be empty."""

        def nonempty(records: tuple[Record, ...]) -> tuple[Record, ...]:
            return (
                tuple(record for record in records if not is_void(record)) if len(records) > _MAX_UNCHECKED else records
            )

        return replace(
            self, strings=nonempty(self.strings), arrays=nonempty(self.arrays), objects=nonempty(self.objects)
        )

    def difference(
        self, other: JsonValues, negated: Callable[[SchemaSet], SchemaSet], is_void: Callable[[Any], bool]
    ) -> JsonValues:
        """The values that are not in the other set. `negated` returns the complement, and `is_void` whether a record is
        known to be empty. UnknownError if the difference cannot be expressed.
        """
        return JsonValues(
            self.null and not other.null,
            self.booleans - other.booleans,
            _differences(self.numbers, other.numbers, lambda record: record.complement(), is_void),
            _differences(self.strings, other.strings, lambda record: record.complement(), is_void),
            _differences(self.arrays, other.arrays, lambda record: record.complement(negated), is_void),
            _differences(self.objects, other.objects, lambda record: record.complement(negated), is_void),
        )


ALL = JsonValues(True, BOOLEANS, (NumberSet(),), (StringSet(),), (ArraySet(),), (ObjectSet(),))
NOTHING = JsonValues()


def _intersections(left: Sequence[Record], right: Sequence[Record]) -> tuple[Record, ...]:
    """All intersections of one alternative of each list."""
    if len(left) * len(right) > MAX_ALTERNATIVES * 32:
        raise _too_many()
    pairs = (left_record.intersection(right_record) for left_record in left for right_record in right)  # type: ignore[attr-defined]
    return _limit(pair for pair in pairs if pair is not None)


def _differences(
    records: tuple[Record, ...],
    excluded_records: Sequence[Record],
    complement: Callable[[Record], list[Record]],
    is_void: Callable[[Record], bool],
) -> tuple[Record, ...]:
    """The values in one of `records` and in none of the others."""
    for excluded in excluded_records:
        remaining: list[Record] = []
        complements = None
        for record in records:
            shared = record.intersection(excluded)  # type: ignore[attr-defined]
            if shared is None or is_void(shared):
                remaining.append(record)
                continue
            complements = complement(excluded) if complements is None else complements
            parts = (record.intersection(outside) for outside in complements)  # type: ignore[attr-defined]
            remaining += [part for part in parts if part is not None and not is_void(part)]
        records = _limit(remaining)
    return records


def _limit(records: Iterable[Record]) -> tuple[Record, ...]:
    unique = tuple(dict.fromkeys(records))
    if len(unique) > (_MAX_NUMBERS if unique and isinstance(unique[0], NumberSet) else MAX_ALTERNATIVES):
        raise _too_many()
    return unique


def _too_many() -> UserError:
    return UserError(f"the schema has more than {MAX_ALTERNATIVES} combined alternatives of one type; use fewer")


def _min(left: int | None, right: int | None) -> int | None:
    if left is None or right is None:
        return right if left is None else left
    return min(left, right)
