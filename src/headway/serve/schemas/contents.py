"""Contents of sets of values: strings, keys of objects, and whether a set is known to be empty."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain, combinations
from typing import Any

from headway.serve.expressions import CHARACTER, LarkTerminal, both, either, literal, spelt
from headway.serve.schemas.formats import AROUND
from headway.serve.schemas.matching import is_void, matches, pattern_terminal
from headway.serve.schemas.numbers import Numbers, UnknownError
from headway.serve.schemas.values import (
    ANY,
    NEVER,
    Arrays,
    Fit,
    JsonValues,
    Objects,
    RecursionWithinError,
    Scope,
    StringPattern,
    Strings,
    fit,
)

ANY_STRING = LarkTerminal(f"{CHARACTER}*")
_LONGEST = 1 << 16  # maximum characters of a string
_PATTERNS = 6  # maximum patterns for the keys of an object
_LOOKS = 20_000  # maximum records to check for one schema


class Contents:
    """Examines sets of values. `values` returns the values that match."""

    def __init__(self, values: Callable[[Fit], JsonValues], source: str) -> None:
        self._values = values
        self._source = source
        self._known: dict[Fit, bool] = {}
        self._within: list[Fit] = []
        self._is_assumed = False  # whether a set was assumed to be empty because it is being examined
        self._left = _LOOKS

    def is_fit_void(self, wanted: Fit) -> bool:
        """Whether it is known that no finite value matches."""
        if wanted in (NEVER, ANY):
            return wanted == NEVER
        if wanted in self._known:
            return self._known[wanted]
        if wanted in self._within:
            self._is_assumed = True
            return True
        before, self._is_assumed = self._is_assumed, False
        self._within.append(wanted)
        try:
            found = self.is_all_void(self._values(wanted))
            if not found or not self._is_assumed or len(self._within) == 1:
                self._known[wanted] = found
        except RecursionWithinError:
            found = False
        finally:
            self._within.pop()
        self._is_assumed = (before or (self._is_assumed and found)) and bool(self._within)
        return found

    def is_all_void(self, values: JsonValues) -> bool:
        if values.null or values.booleans:
            return False
        return all(map(self.is_void, (*values.numbers, *values.strings, *values.arrays, *values.objects)))

    def is_void(self, record: Any) -> bool:
        """Whether an alternative is known to be empty."""
        self._left -= 1
        try:
            return self._left >= 0 and self._is_void(record)
        except UnknownError:
            return False

    def _is_void(self, record: Any) -> bool:
        if isinstance(record, Numbers):
            return False
        if isinstance(record, Strings):
            return bool(record.values is not None or record.fits) and self.strings(record, exact=False) is None
        if isinstance(record, Arrays):
            return any(self.is_fit_void(record.item(i)) for i in range(min(record.least, len(record.first) + 1)))
        assert isinstance(record, Objects)
        if any(self.is_fit_void(self.member(record, name, False)) for name in record.required):
            return True
        if record.least <= len(record.required) and not record.some:
            return False
        closed = any(scope.pattern is None and each == NEVER and not scope.patterns for scope, each in record.scoped)
        if not closed:
            return False
        possible = [name for name in self.names(record) if not self.is_fit_void(self.member(record, name, False))]
        if record.least > len(possible):
            return True
        return any(not any(self.is_in(scope, name) for name in possible) for scope, _ in record.some)

    def strings(self, record: Strings, exact: bool = True) -> LarkTerminal | None:
        """The strings in JSON notation, without quotation marks; None if there are known to be none.

        If `exact`, only plain strings of a format; otherwise a superset of the format. UnknownError if neither is
        known.
        """
        fits = [self._pattern(each, exact) for each in sorted(record.fits)]
        misfits = [self._pattern(each, not exact) for each in sorted(record.misfits)]
        if exact and None in misfits:
            raise UnknownError("strings that do not have a format")
        held, not_held = [each for each in fits if each], [each for each in misfits if each]
        if record.values is not None:
            texts = [
                text
                for text in sorted(record.values)
                if all(matches(each, text) for each in held) and not any(matches(each, text) for each in not_held)
            ]
            return either([LarkTerminal(literal(spelt(text))) for text in texts]) if texts else None
        if record.least > _LONGEST:
            raise UnknownError(f"strings of {record.least:,} characters")
        most = record.most if record.most is None or record.most < _LONGEST else _LONGEST
        if record.least or most is not None:
            held.append(LarkTerminal(f"{CHARACTER}{{{record.least},{'' if most is None else most}}}"))
        excluded = [LarkTerminal(literal(spelt(text))) for text in sorted(record.excluded)]
        others = [*not_held, *([either(excluded)] if excluded else [])]
        found = both(held or [ANY_STRING], others)
        return None if (len(held) > 1 or others) and is_void(found) else found

    def _pattern(self, pattern: StringPattern, exact: bool) -> LarkTerminal | None:
        if not pattern.is_format or exact:
            return pattern_terminal(pattern, self._source)
        around = AROUND.get(pattern.text)
        return None if around is None else pattern_terminal(StringPattern(around), self._source)

    def names(self, record: Objects) -> list[str]:
        """All named keys, in order."""
        scoped = chain.from_iterable(sorted(scope.names) for scope, _ in sorted(record.scoped, key=str))
        return list(dict.fromkeys((*record.members, *record.required, *scoped)))

    def is_in(self, scope: Scope, name: str) -> bool:
        if scope.pattern is not None:
            return matches(pattern_terminal(scope.pattern, self._source), name)
        inside = name in scope.names or any(
            matches(pattern_terminal(each, self._source), name) for each in scope.patterns
        )
        return not inside

    def member(self, record: Objects, name: str, exact: bool = True) -> Fit:
        """The set that the member with this name must match."""
        found = fit(record.members.get(name, ANY), *(each for scope, each in record.scoped if self.is_in(scope, name)))
        return found if record.keys == ANY or self._is_key(record.keys, name, exact) else NEVER

    def _is_key(self, keys: Fit, name: str, exact: bool) -> bool:
        """Whether a name matches the constraints on names."""
        exactly = Strings(values=frozenset([name]))
        shared = [each.intersection(exactly) for each in self._values(keys).strings]
        return any(each is not None and self.strings(each, exact) is not None for each in shared)

    def others(self, record: Objects) -> list[tuple[LarkTerminal, Fit]]:
        """Keys that are not named, and the sets that their members must match."""
        scopes = [scope for scope, _ in record.scoped]
        patterns = sorted({each for scope in scopes for each in (*scope.patterns, *filter(None, [scope.pattern]))})
        if len(patterns) > _PATTERNS:
            raise UnknownError(f"objects with {len(patterns)} patterns of keys, more than {_PATTERNS}")
        keys = self._keys(record.keys)
        named = [LarkTerminal(literal(spelt(name))) for name in self.names(record)]
        without = [either(named)] if named else []
        found: dict[Fit, list[tuple[StringPattern, ...]]] = {}
        for some in chain.from_iterable(combinations(patterns, count) for count in range(len(patterns) + 1)):
            wanted = fit(*(each for scope, each in record.scoped if _covers(scope, some)))
            found.setdefault(wanted, []).append(some)
        options = []
        for wanted, groups in found.items():
            if self.is_fit_void(wanted):
                continue
            if len(groups) == 2 ** len(patterns):
                options.append((both(keys or [ANY_STRING], without), wanted))
                continue
            for some in groups:
                held = [pattern_terminal(each, self._source) for each in some]
                not_held = [pattern_terminal(each, self._source) for each in patterns if each not in some]
                key = both([*keys, *held] or [ANY_STRING], [*not_held, *without])
                if not is_void(key):
                    options.append((key, wanted))
        return options

    def _keys(self, keys: Fit) -> list[LarkTerminal]:
        if keys == ANY or Strings() in (records := self._values(keys).strings):
            return []
        spelled = [each for each in map(self.strings, records) if each is not None]
        return [either(spelled) if spelled else both([LarkTerminal("a"), LarkTerminal("b")])]


def _covers(scope: Scope, patterns: tuple[StringPattern, ...]) -> bool:
    """Whether unnamed keys that match exactly these patterns are in a scope."""
    if scope.pattern is not None:
        return scope.pattern in patterns
    return not any(each in patterns for each in scope.patterns)
