"""Converts the schemas of a document to sets of JSON values."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from decimal import Decimal
from itertools import combinations
from typing import Any

from headway.errors import UserError
from headway.serve.expressions import expression
from headway.serve.schemas.contents import Contents
from headway.serve.schemas.documents import DEEPEST, Document, SchemaNode
from headway.serve.schemas.formats import FORMATS
from headway.serve.schemas.numbers import Numbers, UnknownError, decimal
from headway.serve.schemas.values import (
    ALL,
    ANY,
    BOOLEANS,
    NEVER,
    NOTHING,
    Arrays,
    Contained,
    Fit,
    JsonValues,
    Objects,
    RecursionWithinError,
    Scope,
    StringPattern,
    Strings,
)

_TYPES: dict[str, JsonValues] = {
    "null": JsonValues(null=True),
    "boolean": JsonValues(booleans=BOOLEANS),
    "integer": JsonValues(numbers=(Numbers(whole=True),)),
    "number": JsonValues(numbers=ALL.numbers),
    "string": JsonValues(strings=ALL.strings),
    "array": JsonValues(arrays=ALL.arrays),
    "object": JsonValues(objects=ALL.objects),
}
_NUMBERS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
_STRINGS = ("minLength", "maxLength", "pattern", "format")
_ARRAYS = ("items", "prefixItems", "additionalItems", "minItems", "maxItems", "uniqueItems")
_ARRAYS = (*_ARRAYS, "contains", "minContains", "maxContains")
_OBJECTS = ("properties", "patternProperties", "additionalProperties", "required", "propertyNames")
_OBJECTS = (*_OBJECTS, "minProperties", "maxProperties")
_LATER = ("dependencies", "dependentRequired", "dependentSchemas", "if", "not")
_HALF = range(0xD800, 0xE000)


class SchemaReader:
    """Reads the schemas of a document. A SchemaSet refers to schemas by indices from 2 up."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self._made: list[SchemaNode | JsonValues | Fit] = [
            NOTHING,
            NOTHING,
        ]  # by index; 1 is the empty set
        self._numbers: dict[Any, int] = {}
        self._values: dict[Fit, JsonValues | None] = {}  # None while being read
        self.contents = Contents(self.values, document.source)

    def root(self) -> Fit:
        return self._fit_of(self.document.root)

    def values(self, wanted: Fit) -> JsonValues:
        """The matching values. RecursionWithinError if they depend on themselves."""
        if wanted in self._values:
            found = self._values[wanted]
            if found is None:
                raise RecursionWithinError
            return found
        self._values[wanted] = None
        try:
            found = ALL
            for number in sorted(wanted, key=abs):
                if number < 0:
                    found = self._difference(found, self.values(frozenset([-number])))
                elif len(wanted) > 1:
                    found = found.intersection(self.values(frozenset([number])))
                else:
                    made = self._made[number]
                    found = made if isinstance(made, JsonValues) else self._made_of(made)
        except BaseException:
            del self._values[wanted]
            raise
        self._values[wanted] = found
        return found

    def negated(self, wanted: Fit) -> Fit:
        """The complement."""
        if wanted == NEVER:
            return ANY
        if len(wanted) == 1:
            return frozenset([-next(iter(wanted))])
        return frozenset([-self._number(wanted, wanted)]) if wanted else NEVER

    def _number(self, key: Any, made: SchemaNode | JsonValues | Fit) -> int:
        if key not in self._numbers:
            self._made.append(made)
            self._numbers[key] = len(self._made) - 1
        return self._numbers[key]

    def _made_of(self, made: SchemaNode | Fit) -> JsonValues:
        return self._read(made) if isinstance(made, SchemaNode) else self.values(made)

    def _fit_of(self, number: int) -> Fit:
        """The set of one schema of the document."""
        node = self.document.nodes[number]
        if isinstance(node.schema, bool):
            return ANY if node.schema else NEVER
        return frozenset([self._number(("node", number), node)])

    def _inner(self, node: SchemaNode, schema: Any, *names: str | int) -> Fit:
        return self._fit_of(self.document.inner(node, schema, *names))

    def _difference(self, values: JsonValues, other: JsonValues) -> JsonValues:
        return values.difference(other, self.negated, self.contents.is_void)

    def _refused(self, node: SchemaNode, keyword: str, what: str, remedy: str = "leave it out") -> UserError:
        return self.document.refused(f"{node.path}/{keyword}", what, remedy)

    def _read(self, node: SchemaNode) -> JsonValues:
        """The values that a schema allows."""
        keywords = self.document.keywords(node)
        found, done = ALL, set()
        order = sorted(keywords, key=lambda name: name in _LATER)
        for name in order:
            for group, read in ((_NUMBERS, self._numbers_of), (_STRINGS, self._strings_of), (_ARRAYS, self._arrays_of),
                                (_OBJECTS, self._objects_of)):  # fmt: skip
                if name in group:
                    late = group is _OBJECTS and "properties" in keywords and name != "properties"
                    if group not in done and not late:
                        done.add(group)
                        found = found.intersection(read(node, keywords))
                    break
            else:
                found = self._applied(node, name, keywords, found).without(self.contents.is_void)
        return found

    def _applied(self, node: SchemaNode, name: str, keywords: dict[str, Any], found: JsonValues) -> JsonValues:
        """The part of `values` that one of the other keywords allows."""
        value = keywords[name]
        if name in ("type", "enum", "const"):
            read = {"type": self._type, "enum": self._enum, "const": lambda node, value: self._constant(node, value)}
            return found.intersection(read[name](node, value))
        if name in ("$ref", "$recursiveRef", "$dynamicRef"):
            return found.intersection(self.values(self._fit_of(self.document.target(node, name, value))))
        if name == "allOf":
            for each in self._listed(node, name, value):
                found = found.intersection(self.values(each)).without(self.contents.is_void)
            return found
        if name == "anyOf":
            some = NOTHING
            for each in self._listed(node, name, value):
                some = some.union(self.values(each))
            return found.intersection(some)
        if name == "oneOf":
            return self._one_of(node, self._listed(node, name, value), found)
        if name == "not":
            other = self._inner(node, value, name)
            return self._known(node, name, lambda: self._difference(found, self.values(other)))
        if name == "if":
            return self._known(node, name, lambda: self._condition(node, keywords, found))
        if name in ("dependencies", "dependentRequired", "dependentSchemas"):
            return self._dependent(node, name, value, found)
        if name in ("then", "else"):
            return found
        raise self._refused(node, name, f"the keyword {name!r}", "use additionalProperties or items")

    def _known(self, node: SchemaNode, keyword: str, read: Callable[[], JsonValues]) -> JsonValues:
        try:
            return read()
        except UnknownError as error:
            what = f"a {keyword!r} that requires {error}"
            raise self._refused(node, keyword, what, "list the allowed values instead") from None

    def _one_of(self, node: SchemaNode, options: list[Fit], found: JsonValues) -> JsonValues:
        """The values that match exactly one of the options."""
        sets = [found.intersection(self.values(each)) for each in options]
        clashes = {
            pair for pair in combinations(range(len(sets)), 2) if not self._are_apart(sets[pair[0]], sets[pair[1]])
        }
        some = NOTHING
        for i, each in enumerate(sets):
            for j, other in enumerate(sets):
                if (min(i, j), max(i, j)) in clashes:
                    try:
                        each = self._difference(each, other)
                    except UnknownError as error:
                        what = f"a oneOf whose schemas overlap, which requires {error}"
                        remedy = "use anyOf, or add a property with a different const to each"
                        raise self._refused(node, "oneOf", what, remedy) from None
            some = some.union(each)
        return some

    def _are_apart(self, one: JsonValues, other: JsonValues) -> bool:
        shared = one.intersection(other)
        return shared.is_nothing or self.contents.is_all_void(shared)

    def _condition(self, node: SchemaNode, keywords: dict[str, Any], found: JsonValues) -> JsonValues:
        if "then" not in keywords and "else" not in keywords:
            return found
        test = self.values(self._inner(node, keywords["if"], "if"))
        true, false = found.intersection(test), self._difference(found, test)
        if "then" in keywords:
            true = true.intersection(self.values(self._inner(node, keywords["then"], "then")))
        if "else" in keywords:
            false = false.intersection(self.values(self._inner(node, keywords["else"], "else")))
        return true.union(false)

    def _dependent(self, node: SchemaNode, name: str, value: Any, found: JsonValues) -> JsonValues:
        """The values that match the requirements of each key that is present."""
        self._check(node, name, value, Mapping, "an object")
        for key, each in value.items():
            if isinstance(each, list) and name != "dependentSchemas":
                needed = JsonValues(objects=(self._needing(node, name, [key, *each]),))
            elif name == "dependentRequired":
                raise self._refused(node, name, f"{json.dumps(each):.40}", "use a list of names")
            else:
                schema = self.values(self._inner(node, each, name, key))
                needed = JsonValues(objects=(self._needing(node, name, [key]),)).intersection(schema)
            absent = JsonValues(objects=(Objects(((self._text(node, name, key), NEVER),)),))
            others = JsonValues(True, BOOLEANS, ALL.numbers, ALL.strings, ALL.arrays, ())
            found = found.intersection(others.union(needed).union(absent))
        return found

    def _needing(self, node: SchemaNode, keyword: str, names: list[Any]) -> Objects:
        texts = tuple(dict.fromkeys(self._text(node, keyword, each) for each in names))
        named = tuple((text, ANY) for text in texts if keyword != "required")  # in this order
        return Objects(named, required=texts, least=len(texts))

    def _listed(self, node: SchemaNode, keyword: str, value: Any) -> list[Fit]:
        if not isinstance(value, list) or not value:
            raise self._refused(node, keyword, f"{json.dumps(value):.40}", "use a list of schemas")
        return [self._inner(node, each, keyword, i) for i, each in enumerate(value)]

    def _type(self, node: SchemaNode, value: Any) -> JsonValues:
        named = value if isinstance(value, list) else [value]
        found = NOTHING
        for each in named:
            if not isinstance(each, str) or each not in _TYPES:
                raise self._refused(node, "type", f"{json.dumps(value):.60}", f"use some of {', '.join(_TYPES)}")
            found = found.union(_TYPES[each])
        if not named:
            raise self._refused(node, "type", "[]", f"use some of {', '.join(_TYPES)}")
        return found

    def _enum(self, node: SchemaNode, value: Any) -> JsonValues:
        if not isinstance(value, list) or not value:
            raise self._refused(node, "enum", f"{json.dumps(value):.40}", "use a list of values")
        strings = [each for each in value if isinstance(each, str)]
        texts = frozenset(self._text(node, "enum", each) for each in strings)
        others = [self._constant(node, each) for each in value if not isinstance(each, str)]
        numbers = tuple(dict.fromkeys(number for each in others for number in each.numbers))
        found = JsonValues(numbers=numbers, strings=(Strings(values=texts),) if texts else ())
        for each in others:
            found = found if each.numbers else found.union(each)
        return found

    def _constant(self, node: SchemaNode, value: Any, depth: int = 0) -> JsonValues:
        if depth > DEEPEST:
            raise UserError(f"{self.document.source} has values more than {DEEPEST} deep; use flatter ones")
        if value is None:
            return _TYPES["null"]
        if isinstance(value, bool):
            return JsonValues(booleans=frozenset([value]))
        if isinstance(value, (int, float)):
            number = self._decimal(node, "const", value)
            return JsonValues(numbers=(Numbers(number, number),))
        if isinstance(value, str):
            return JsonValues(strings=(Strings(values=frozenset([self._text(node, "const", value)])),))
        if isinstance(value, list):
            items = tuple(self._constant_fit(node, each, depth) for each in value)
            return JsonValues(arrays=(Arrays(items, NEVER, len(items), len(items)),))
        members = {
            self._text(node, "const", name): self._constant_fit(node, each, depth) for name, each in value.items()
        }
        others = frozenset([(Scope(names=frozenset(members)), NEVER)])
        names = tuple(members)
        return JsonValues(objects=(Objects(tuple(members.items()), others, required=names, least=len(names)),))

    def _constant_fit(self, node: SchemaNode, value: Any, depth: int) -> Fit:
        made = self._constant(node, value, depth + 1)
        return frozenset([self._number(("const", made), made)])

    def _numbers_of(self, node: SchemaNode, keywords: dict[str, Any]) -> JsonValues:
        found = Numbers()
        for name in _NUMBERS:
            value = keywords.get(name)
            if name not in keywords or (isinstance(value, bool) and name.startswith("ex") and node.draft in (0, 4)):
                continue
            bound = self._decimal(node, name, value)
            if name == "multipleOf":
                if bound <= 0:
                    raise self._refused(node, name, f"{value}", "use a number above 0")
                each = Numbers(whole=True) if bound == 1 else Numbers(step=bound)
            elif name in ("minimum", "exclusiveMinimum"):
                is_open = name == "exclusiveMinimum" or keywords.get("exclusiveMinimum") is True
                each = Numbers(low=bound, low_open=is_open)
            else:
                is_open = name == "exclusiveMaximum" or keywords.get("exclusiveMaximum") is True
                each = Numbers(high=bound, high_open=is_open)
            both_fit = found.intersection(each)
            if both_fit is None:
                return JsonValues(True, BOOLEANS, (), ALL.strings, ALL.arrays, ALL.objects)
            found = both_fit
        return JsonValues(True, BOOLEANS, (found,), ALL.strings, ALL.arrays, ALL.objects)

    def _strings_of(self, node: SchemaNode, keywords: dict[str, Any]) -> JsonValues:
        least = self._count(node, keywords, "minLength") or 0
        found: Strings | None = Strings(least=least, most=self._count(node, keywords, "maxLength"))
        if found.most is not None and found.most < least:
            found = None
        for name in ("pattern", "format"):
            if name not in keywords:
                continue
            text = keywords[name]
            self._check(node, name, text, str, "a string")
            if name == "format" and text not in FORMATS:
                self.document.ignore(f"format:{text}")
                continue
            pattern = self._pattern(text, name == "format")
            found = found and found.intersection(Strings(fits=frozenset([pattern])))
        strings = (found,) if found else ()
        return JsonValues(True, BOOLEANS, ALL.numbers, strings, ALL.arrays, ALL.objects)

    def _pattern(self, text: str, is_format: bool = False) -> StringPattern:
        if not is_format:
            expression(text, self.document.source)
        return StringPattern(text, is_format)

    def _arrays_of(self, node: SchemaNode, keywords: dict[str, Any]) -> JsonValues:
        first: list[Fit] = []
        others = ANY
        items = keywords.get("items", True)
        if "prefixItems" in keywords:
            first = self._listed(node, "prefixItems", keywords["prefixItems"])
        if isinstance(items, list) and node.draft != 2020 and "prefixItems" not in keywords:
            first = [self._inner(node, each, "items", i) for i, each in enumerate(items)]
            if "additionalItems" in keywords:
                others = self._inner(node, keywords["additionalItems"], "additionalItems")
        elif "items" in keywords:
            others = self._inner(node, items, "items")
        unique = keywords.get("uniqueItems", False)
        self._check(node, "uniqueItems", unique, bool, "a boolean")
        found = Arrays().intersection(
            Arrays(
                tuple(first),
                others,
                self._count(node, keywords, "minItems") or 0,
                self._count(node, keywords, "maxItems"),
                unique,
                self._contained(node, keywords),
            )
        )
        arrays = () if found is None else (found,)
        return JsonValues(True, BOOLEANS, ALL.numbers, ALL.strings, arrays, ALL.objects)

    def _contained(self, node: SchemaNode, keywords: dict[str, Any]) -> frozenset[Contained]:
        if "contains" not in keywords:
            return frozenset()
        least, most = self._count(node, keywords, "minContains"), self._count(node, keywords, "maxContains")
        inside = self._inner(node, keywords["contains"], "contains")
        return frozenset([Contained(inside, 1 if least is None else least, most)])

    def _objects_of(self, node: SchemaNode, keywords: dict[str, Any]) -> JsonValues:
        named = self._schemas(node, keywords, "properties")
        patterned = {
            self._pattern(text): each for text, each in self._schemas(node, keywords, "patternProperties").items()
        }
        scoped = {(Scope(pattern), each) for pattern, each in patterned.items() if each != ANY}
        if keywords.get("additionalProperties", True) is not True:
            others = self._inner(node, keywords["additionalProperties"], "additionalProperties")
            scope = Scope(None, frozenset(named), frozenset(patterned))
            scoped |= {(scope, others)} if others != ANY else set()
        required = keywords.get("required", [])
        self._check(node, "required", required, list, "a list of names")
        keys = ANY
        if "propertyNames" in keywords:
            keys = self._inner(node, keywords["propertyNames"], "propertyNames")
        least = self._count(node, keywords, "minProperties") or 0
        most = self._count(node, keywords, "maxProperties")
        found = Objects(tuple(named.items()), frozenset(scoped), keys=keys, least=least, most=most)
        found = found.intersection(self._needing(node, "required", required))
        objects = () if found is None else (found,)
        return JsonValues(True, BOOLEANS, ALL.numbers, ALL.strings, ALL.arrays, objects)

    def _schemas(self, node: SchemaNode, keywords: dict[str, Any], name: str) -> dict[str, Fit]:
        value = keywords.get(name, {})
        self._check(node, name, value, Mapping, "an object of schemas")
        return {self._text(node, name, key): self._inner(node, each, name, key) for key, each in value.items()}

    def _check(self, node: SchemaNode, keyword: str, value: Any, wanted: type, remedy: str) -> None:
        if not isinstance(value, wanted):
            raise self._refused(node, keyword, f"{json.dumps(value):.40}", f"use {remedy}")

    def _count(self, node: SchemaNode, keywords: dict[str, Any], name: str) -> int | None:
        value = keywords.get(name)
        if name not in keywords:
            return None
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value != math.floor(value) or value < 0:
            raise self._refused(node, name, f"{json.dumps(value):.40}", "use an integer from 0 up")
        return int(value)

    def _decimal(self, node: SchemaNode, keyword: str, value: Any) -> Decimal:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self._refused(node, keyword, f"{json.dumps(value):.40}", "use a number")
        number = decimal(value)
        if number is None:
            raise self._refused(node, keyword, "a number of more than 400 digits", "use a smaller one")
        return number

    def _text(self, node: SchemaNode, keyword: str, text: Any) -> str:
        """A string that JSON can represent."""
        self._check(node, keyword, text, str, "a string")
        if any(ord(character) in _HALF for character in text):
            raise self._refused(node, keyword, "half a surrogate pair", "use whole characters")
        return text
