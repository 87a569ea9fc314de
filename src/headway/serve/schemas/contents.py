"""Contents of sets of values: strings, keys of objects, and whether a set is known to be empty."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain, combinations
from typing import Any

from headway.serve.ecma_regex import CHARACTER, LarkTerminal, escape_json, escape_literal, intersection, union
from headway.serve.schemas.matching import NECESSARY_PATTERNS, is_void, matches, pattern_terminal
from headway.serve.schemas.numbers import NumberSet, UnknownError
from headway.serve.schemas.values import (
    ANY,
    NEVER,
    ArraySet,
    JsonValues,
    ObjectSet,
    RecursionWithinError,
    SchemaSet,
    Scope,
    StringPattern,
    StringSet,
    all_of,
)

ANY_STRING = LarkTerminal(f"{CHARACTER}*")
_MAX_LENGTH = 1 << 16  # characters per string
_MAX_PATTERNS = 6  # key patterns per object
_MAX_CHECKS = 20_000  # records to check per schema


class Contents:
    """Examines sets of values. `values` returns the values that match."""

    def __init__(self, values: Callable[[SchemaSet], JsonValues], source: str) -> None:
        self._values = values
        self._source = source
        self._known: dict[SchemaSet, bool] = {}
        self._within: list[SchemaSet] = []
        self._is_assumed = False  # whether a set was assumed to be empty because it is being examined
        self._checks_left = _MAX_CHECKS

    def is_set_void(self, schemas: SchemaSet) -> bool:
        """Whether it is known that no finite value matches."""
        if schemas in (NEVER, ANY):
            return schemas == NEVER
        if schemas in self._known:
            return self._known[schemas]
        if schemas in self._within:
            self._is_assumed = True
            return True
        was_assumed, self._is_assumed = self._is_assumed, False
        self._within.append(schemas)
        try:
            is_empty = self.is_all_void(self._values(schemas))
            if not is_empty or not self._is_assumed or len(self._within) == 1:
                self._known[schemas] = is_empty
        except RecursionWithinError:
            is_empty = False
        finally:
            self._within.pop()
        self._is_assumed = (was_assumed or (self._is_assumed and is_empty)) and bool(self._within)
        return is_empty

    def is_all_void(self, values: JsonValues) -> bool:
        if values.null or values.booleans:
            return False
        return all(map(self.is_void, (*values.numbers, *values.strings, *values.arrays, *values.objects)))

    def is_void(self, record: Any) -> bool:
        """Whether an alternative is known to be empty."""
        self._checks_left -= 1
        try:
            return self._checks_left >= 0 and self._is_void(record)
        except UnknownError:
            return False

    def _is_void(self, record: Any) -> bool:
        if isinstance(record, NumberSet):
            return False
        if isinstance(record, StringSet):
            return bool(record.values is not None or record.patterns) and self.strings(record, exact=False) is None
        if isinstance(record, ArraySet):
            return any(
                self.is_set_void(record.item_schemas(i)) for i in range(min(record.min_items, len(record.first) + 1))
            )
        assert isinstance(record, ObjectSet)
        if any(self.is_set_void(self.member(record, name, False)) for name in record.required):
            return True
        if record.min_members <= len(record.required) and not record.required_scopes:
            return False
        is_closed = any(
            scope.pattern is None and schemas == NEVER and not scope.patterns for scope, schemas in record.scoped
        )
        if not is_closed:
            return False
        possible = [name for name in self.names(record) if not self.is_set_void(self.member(record, name, False))]
        if record.min_members > len(possible):
            return True
        return any(not any(self.is_in(scope, name) for name in possible) for scope, _ in record.required_scopes)

    def strings(self, record: StringSet, exact: bool = True) -> LarkTerminal | None:
        """The strings in JSON notation, without quotation marks; None if there are known to be none.

        If `exact`, only plain strings of a format; otherwise a superset of the format. UnknownError if neither is
        known.
        """
        fits = [self._pattern(pattern, exact) for pattern in sorted(record.patterns)]
        misfits = [self._pattern(pattern, not exact) for pattern in sorted(record.excluded_patterns)]
        if exact and None in misfits:
            raise UnknownError("strings that do not have a format")
        required, forbidden = [pattern for pattern in fits if pattern], [pattern for pattern in misfits if pattern]
        if record.values is not None:
            allowed_texts = [
                text
                for text in sorted(record.values)
                if all(matches(pattern, text) for pattern in required)
                and not any(matches(pattern, text) for pattern in forbidden)
            ]
            return (
                union([LarkTerminal(escape_literal(escape_json(text))) for text in allowed_texts])
                if allowed_texts
                else None
            )
        if record.min_length > _MAX_LENGTH:
            raise UnknownError(f"strings of {record.min_length:,} characters")
        max_length = record.max_length if record.max_length is None or record.max_length < _MAX_LENGTH else _MAX_LENGTH
        if record.min_length or max_length is not None:
            required.append(
                LarkTerminal(f"{CHARACTER}{{{record.min_length},{'' if max_length is None else max_length}}}")
            )
        excluded = [LarkTerminal(escape_literal(escape_json(text))) for text in sorted(record.excluded)]
        complement = [*forbidden, *([union(excluded)] if excluded else [])]
        terminal = intersection(required or [ANY_STRING], complement)
        return None if (len(required) > 1 or complement) and is_void(terminal) else terminal

    def _pattern(self, pattern: StringPattern, exact: bool) -> LarkTerminal | None:
        if not pattern.is_format or exact:
            return pattern_terminal(pattern, self._source)
        around = NECESSARY_PATTERNS.get(pattern.text)
        return None if around is None else pattern_terminal(StringPattern(around), self._source)

    def names(self, record: ObjectSet) -> list[str]:
        """All named keys, in order."""
        scoped = chain.from_iterable(sorted(scope.names) for scope, _ in sorted(record.scoped, key=str))
        return list(dict.fromkeys((*record.members, *record.required, *scoped)))

    def is_in(self, scope: Scope, name: str) -> bool:
        if scope.pattern is not None:
            return matches(pattern_terminal(scope.pattern, self._source), name)
        inside = name in scope.names or any(
            matches(pattern_terminal(pattern, self._source), name) for pattern in scope.patterns
        )
        return not inside

    def member(self, record: ObjectSet, name: str, exact: bool = True) -> SchemaSet:
        """The set that the member with this name must match."""
        schemas = all_of(
            record.members.get(name, ANY),
            *(scope_schemas for scope, scope_schemas in record.scoped if self.is_in(scope, name)),
        )
        if record.keys == ANY:
            return schemas
        exactly = StringSet(values=frozenset([name]))
        shared = [strings.intersection(exactly) for strings in self._values(record.keys).strings]
        is_key = any(strings is not None and self.strings(strings, exact) is not None for strings in shared)
        return schemas if is_key else NEVER

    def other_members(self, record: ObjectSet) -> list[tuple[LarkTerminal, SchemaSet]]:
        """Keys that are not named, and the sets that their members must match."""
        scopes = [scope for scope, _ in record.scoped]
        patterns = sorted({entry for scope in scopes for entry in (*scope.patterns, *filter(None, [scope.pattern]))})
        if len(patterns) > _MAX_PATTERNS:
            raise UnknownError(f"objects with {len(patterns)} patterns of keys, more than {_MAX_PATTERNS}")
        keys: list[LarkTerminal] = []  # what the constraints on names allow
        if record.keys != ANY and StringSet() not in (records := self._values(record.keys).strings):
            spelled = [terminal for terminal in map(self.strings, records) if terminal is not None]
            keys = [union(spelled) if spelled else intersection([LarkTerminal("a"), LarkTerminal("b")])]
        named = [LarkTerminal(escape_literal(escape_json(name))) for name in self.names(record)]
        excluded = [union(named)] if named else []
        groups_by_set: dict[SchemaSet, list[tuple[StringPattern, ...]]] = {}
        for subset in chain.from_iterable(combinations(patterns, count) for count in range(len(patterns) + 1)):
            schemas = all_of(*(entry for scope, entry in record.scoped if _covers(scope, subset)))
            groups_by_set.setdefault(schemas, []).append(subset)
        options = []
        for schemas, groups in groups_by_set.items():
            if self.is_set_void(schemas):
                continue
            if len(groups) == 2 ** len(patterns):
                options.append((intersection(keys or [ANY_STRING], excluded), schemas))
                continue
            for subset in groups:
                required = [pattern_terminal(entry, self._source) for entry in subset]
                forbidden = [pattern_terminal(entry, self._source) for entry in patterns if entry not in subset]
                key = intersection([*keys, *required] or [ANY_STRING], [*forbidden, *excluded])
                if not is_void(key):
                    options.append((key, schemas))
        return options


def _covers(scope: Scope, patterns: tuple[StringPattern, ...]) -> bool:
    """Whether unnamed keys that match exactly these patterns are in a scope."""
    if scope.pattern is not None:
        return scope.pattern in patterns
    return not any(pattern in patterns for pattern in scope.patterns)
