"""Converts the schemas in a document to sets of JSON values."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from decimal import Decimal
from itertools import combinations
from typing import Any

from headway.errors import UserError
from headway.serve.ecma_regex import parse_pattern
from headway.serve.schemas.contents import Contents
from headway.serve.schemas.documents import MAX_SCHEMA_DEPTH, Document, SchemaNode
from headway.serve.schemas.matching import FORMATS
from headway.serve.schemas.numbers import NumberSet, UnknownError, decimal
from headway.serve.schemas.values import (
    ALL,
    ANY,
    BOOLEANS,
    NEVER,
    NOTHING,
    ArraySet,
    Contained,
    JsonValues,
    ObjectSet,
    RecursionWithinError,
    SchemaSet,
    Scope,
    StringPattern,
    StringSet,
)

_TYPES: dict[str, JsonValues] = {
    "null": JsonValues(null=True),
    "boolean": JsonValues(booleans=BOOLEANS),
    "integer": JsonValues(numbers=(NumberSet(integer=True),)),
    "number": JsonValues(numbers=ALL.numbers),
    "string": JsonValues(strings=ALL.strings),
    "array": JsonValues(arrays=ALL.arrays),
    "object": JsonValues(objects=ALL.objects),
}
_NUMBER_KEYWORDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
_STRING_KEYWORDS = ("minLength", "maxLength", "pattern", "format")
_ARRAY_KEYWORDS = ("items", "prefixItems", "additionalItems", "minItems", "maxItems", "uniqueItems")
_ARRAY_KEYWORDS = (*_ARRAY_KEYWORDS, "contains", "minContains", "maxContains")
_OBJECT_KEYWORDS = ("properties", "patternProperties", "additionalProperties", "required", "propertyNames")
_OBJECT_KEYWORDS = (*_OBJECT_KEYWORDS, "minProperties", "maxProperties")
_LATE_KEYWORDS = ("dependencies", "dependentRequired", "dependentSchemas", "if", "not")
_SURROGATES = range(0xD800, 0xE000)


class SchemaReader:
    """Reads the schemas of a document. A SchemaSet refers to schemas by indices from 2 up."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self._entries: list[SchemaNode | JsonValues | SchemaSet] = [NOTHING, NOTHING]  # by index; 1 is the empty set
        self._indices: dict[Any, int] = {}
        self._cache: dict[SchemaSet, JsonValues | None] = {}  # None while being read
        self.contents = Contents(self.values, document.source)

    def root(self) -> SchemaSet:
        return self._schema_set(self.document.root)

    def values(self, schemas: SchemaSet) -> JsonValues:
        """The matching values. RecursionWithinError if they depend on themselves."""
        if schemas in self._cache:
            allowed = self._cache[schemas]
            if allowed is None:
                raise RecursionWithinError
            return allowed
        self._cache[schemas] = None
        try:
            allowed = ALL
            for index in sorted(schemas, key=abs):
                if index < 0:
                    allowed = self._difference(allowed, self.values(frozenset([-index])))
                elif len(schemas) > 1:
                    allowed = allowed.intersection(self.values(frozenset([index])))
                else:
                    entry = self._entries[index]
                    if isinstance(entry, SchemaNode):
                        allowed = self._read_schema(entry)
                    else:
                        allowed = entry if isinstance(entry, JsonValues) else self.values(entry)
        except BaseException:
            del self._cache[schemas]
            raise
        self._cache[schemas] = allowed
        return allowed

    def negated(self, schemas: SchemaSet) -> SchemaSet:
        """The complement."""
        if schemas == NEVER:
            return ANY
        if len(schemas) == 1:
            return frozenset([-next(iter(schemas))])
        return frozenset([-self._index_of(schemas, schemas)]) if schemas else NEVER

    def _index_of(self, key: Any, entry: SchemaNode | JsonValues | SchemaSet) -> int:
        if key not in self._indices:
            self._entries.append(entry)
            self._indices[key] = len(self._entries) - 1
        return self._indices[key]

    def _schema_set(self, index: int) -> SchemaSet:
        """The set for one schema in the document."""
        node = self.document.nodes[index]
        if isinstance(node.schema, bool):
            return ANY if node.schema else NEVER
        return frozenset([self._index_of(("node", index), node)])

    def _inner(self, node: SchemaNode, schema: Any, *names: str | int) -> SchemaSet:
        return self._schema_set(self.document.inner(node, schema, *names))

    def _difference(self, values: JsonValues, excluded: JsonValues) -> JsonValues:
        return values.difference(excluded, self.negated, self.contents.is_void)

    def _error(self, node: SchemaNode, keyword: str, problem: str, remedy: str = "leave it out") -> UserError:
        return self.document.error(f"{node.path}/{keyword}", problem, remedy)

    def _read_schema(self, node: SchemaNode) -> JsonValues:
        """The values that a schema allows."""
        keywords = self.document.keywords(node)
        allowed, read_groups = ALL, set()
        order = sorted(keywords, key=lambda name: name in _LATE_KEYWORDS)
        for name in order:
            for group, read in ((_NUMBER_KEYWORDS, self._number_values), (_STRING_KEYWORDS,
            self._string_values), (_ARRAY_KEYWORDS, self._array_values),
                                (_OBJECT_KEYWORDS, self._object_values)):  # fmt: skip
                if name in group:
                    is_late = group is _OBJECT_KEYWORDS and "properties" in keywords and name != "properties"
                    if group not in read_groups and not is_late:
                        read_groups.add(group)
                        allowed = allowed.intersection(read(node, keywords))
                    break
            else:
                allowed = self._apply(node, name, keywords, allowed).without(self.contents.is_void)
        return allowed

    def _apply(self, node: SchemaNode, name: str, keywords: dict[str, Any], values: JsonValues) -> JsonValues:
        """The part of `values` that one of the other keywords allows."""
        value = keywords[name]
        if name in ("type", "enum", "const"):
            read = {"type": self._type, "enum": self._enum, "const": lambda node, value: self._constant(node, value)}
            return values.intersection(read[name](node, value))
        if name in ("$ref", "$recursiveRef", "$dynamicRef"):
            return values.intersection(self.values(self._schema_set(self.document.target(node, name, value))))
        if name == "allOf":
            for schemas in self._schema_list(node, name, value):
                values = values.intersection(self.values(schemas)).without(self.contents.is_void)
            return values
        if name == "anyOf":
            alternatives = NOTHING
            for schemas in self._schema_list(node, name, value):
                alternatives = alternatives.union(self.values(schemas))
            return values.intersection(alternatives)
        if name == "oneOf":
            return self._one_of(node, self._schema_list(node, name, value), values)
        if name == "not":
            excluded = self._inner(node, value, name)
            return self._require_known(node, name, lambda: self._difference(values, self.values(excluded)))
        if name == "if":
            return self._require_known(node, name, lambda: self._condition(node, keywords, values))
        if name in ("dependencies", "dependentRequired", "dependentSchemas"):
            return self._dependent(node, name, value, values)
        if name in ("then", "else"):
            return values
        raise self._error(node, name, f"the keyword {name!r}", "use additionalProperties or items")

    def _require_known(self, node: SchemaNode, keyword: str, read: Callable[[], JsonValues]) -> JsonValues:
        try:
            return read()
        except UnknownError as error:
            problem = f"a {keyword!r} that requires {error}"
            raise self._error(node, keyword, problem, "list the allowed values instead") from None

    def _one_of(self, node: SchemaNode, options: list[SchemaSet], values: JsonValues) -> JsonValues:
        """The values that match exactly one of the options."""
        sets = [values.intersection(self.values(option)) for option in options]
        clashes = set()
        for i, j in combinations(range(len(sets)), 2):
            shared = sets[i].intersection(sets[j])
            if not (shared.is_nothing or self.contents.is_all_void(shared)):
                clashes.add((i, j))
        exclusive = NOTHING
        for i, option in enumerate(sets):
            for j, other in enumerate(sets):
                if (min(i, j), max(i, j)) in clashes:
                    try:
                        option = self._difference(option, other)
                    except UnknownError as error:
                        problem = f"a oneOf whose schemas overlap, which requires {error}"
                        remedy = "use anyOf, or add a property with a different const to each"
                        raise self._error(node, "oneOf", problem, remedy) from None
            exclusive = exclusive.union(option)
        return exclusive

    def _condition(self, node: SchemaNode, keywords: dict[str, Any], values: JsonValues) -> JsonValues:
        if "then" not in keywords and "else" not in keywords:
            return values
        test = self.values(self._inner(node, keywords["if"], "if"))
        true, false = values.intersection(test), self._difference(values, test)
        if "then" in keywords:
            true = true.intersection(self.values(self._inner(node, keywords["then"], "then")))
        if "else" in keywords:
            false = false.intersection(self.values(self._inner(node, keywords["else"], "else")))
        return true.union(false)

    def _dependent(self, node: SchemaNode, name: str, value: Any, values: JsonValues) -> JsonValues:
        """The values that match the requirements of each key that is present."""
        self._check(node, name, value, Mapping, "an object")
        for key, dependency in value.items():
            if isinstance(dependency, list) and name != "dependentSchemas":
                needed = JsonValues(objects=(self._with_required(node, name, [key, *dependency]),))
            elif name == "dependentRequired":
                raise self._error(node, name, f"{json.dumps(dependency):.40}", "use a list of names")
            else:
                schema = self.values(self._inner(node, dependency, name, key))
                needed = JsonValues(objects=(self._with_required(node, name, [key]),)).intersection(schema)
            absent = JsonValues(objects=(ObjectSet(((self._text(node, name, key), NEVER),)),))
            other_types = JsonValues(True, BOOLEANS, ALL.numbers, ALL.strings, ALL.arrays, ())
            values = values.intersection(other_types.union(needed).union(absent))
        return values

    def _with_required(self, node: SchemaNode, keyword: str, names: list[Any]) -> ObjectSet:
        keys = tuple(dict.fromkeys(self._text(node, keyword, name) for name in names))
        named = tuple((text, ANY) for text in keys if keyword != "required")  # in this order
        return ObjectSet(named, required=keys, min_members=len(keys))

    def _schema_list(self, node: SchemaNode, keyword: str, value: Any) -> list[SchemaSet]:
        if not isinstance(value, list) or not value:
            raise self._error(node, keyword, f"{json.dumps(value):.40}", "use a list of schemas")
        return [self._inner(node, schema, keyword, i) for i, schema in enumerate(value)]

    def _type(self, node: SchemaNode, value: Any) -> JsonValues:
        names = value if isinstance(value, list) else [value]
        allowed = NOTHING
        for type_name in names:
            if not isinstance(type_name, str) or type_name not in _TYPES:
                raise self._error(node, "type", f"{json.dumps(value):.60}", f"use some of {', '.join(_TYPES)}")
            allowed = allowed.union(_TYPES[type_name])
        if not names:
            raise self._error(node, "type", "[]", f"use some of {', '.join(_TYPES)}")
        return allowed

    def _enum(self, node: SchemaNode, value: Any) -> JsonValues:
        if not isinstance(value, list) or not value:
            raise self._error(node, "enum", f"{json.dumps(value):.40}", "use a list of values")
        strings = [entry for entry in value if isinstance(entry, str)]
        checked_strings = frozenset(self._text(node, "enum", entry) for entry in strings)
        constants = [self._constant(node, entry) for entry in value if not isinstance(entry, str)]
        numbers = tuple(dict.fromkeys(number for entry in constants for number in entry.numbers))
        allowed = JsonValues(numbers=numbers, strings=(StringSet(values=checked_strings),) if checked_strings else ())
        for entry in constants:
            allowed = allowed if entry.numbers else allowed.union(entry)
        return allowed

    def _constant(self, node: SchemaNode, value: Any, depth: int = 0) -> JsonValues:
        if depth > MAX_SCHEMA_DEPTH:
            raise UserError(f"{self.document.source} has values nested over {MAX_SCHEMA_DEPTH} deep; use flatter ones")
        if value is None:
            return _TYPES["null"]
        if isinstance(value, bool):
            return JsonValues(booleans=frozenset([value]))
        if isinstance(value, (int, float)):
            number = self._decimal(node, "const", value)
            return JsonValues(numbers=(NumberSet(number, number),))
        if isinstance(value, str):
            return JsonValues(strings=(StringSet(values=frozenset([self._text(node, "const", value)])),))
        if isinstance(value, list):
            items = tuple(self._constant_schemas(node, member, depth) for member in value)
            return JsonValues(arrays=(ArraySet(items, NEVER, len(items), len(items)),))
        members = {
            self._text(node, "const", name): self._constant_schemas(node, member, depth)
            for name, member in value.items()
        }
        other_members = frozenset([(Scope(names=frozenset(members)), NEVER)])
        names = tuple(members)
        return JsonValues(
            objects=(ObjectSet(tuple(members.items()), other_members, required=names, min_members=len(names)),)
        )

    def _constant_schemas(self, node: SchemaNode, value: Any, depth: int) -> SchemaSet:
        values = self._constant(node, value, depth + 1)
        return frozenset([self._index_of(("const", values), values)])

    def _number_values(self, node: SchemaNode, keywords: dict[str, Any]) -> JsonValues:
        allowed = NumberSet()
        for name in _NUMBER_KEYWORDS:
            value = keywords.get(name)
            if name not in keywords or (isinstance(value, bool) and name.startswith("ex") and node.draft in (0, 4)):
                continue
            bound = self._decimal(node, name, value)
            if name == "multipleOf":
                if bound <= 0:
                    raise self._error(node, name, f"{value}", "use a number above 0")
                bounds = NumberSet(integer=True) if bound == 1 else NumberSet(step=bound)
            elif name in ("minimum", "exclusiveMinimum"):
                is_open = name == "exclusiveMinimum" or keywords.get("exclusiveMinimum") is True
                bounds = NumberSet(low=bound, low_open=is_open)
            else:
                is_open = name == "exclusiveMaximum" or keywords.get("exclusiveMaximum") is True
                bounds = NumberSet(high=bound, high_open=is_open)
            shared = allowed.intersection(bounds)
            if shared is None:
                return JsonValues(True, BOOLEANS, (), ALL.strings, ALL.arrays, ALL.objects)
            allowed = shared
        return JsonValues(True, BOOLEANS, (allowed,), ALL.strings, ALL.arrays, ALL.objects)

    def _string_values(self, node: SchemaNode, keywords: dict[str, Any]) -> JsonValues:
        min_length = self._count(node, keywords, "minLength") or 0
        allowed: StringSet | None = StringSet(
            min_length=min_length, max_length=self._count(node, keywords, "maxLength")
        )
        if allowed.max_length is not None and allowed.max_length < min_length:
            allowed = None
        for name in ("pattern", "format"):
            if name not in keywords:
                continue
            text = keywords[name]
            self._check(node, name, text, str, "a string")
            if name == "format" and text not in FORMATS:
                self.document.ignore(f"format:{text}")
                continue
            pattern = self._pattern(text, name == "format")
            allowed = allowed and allowed.intersection(StringSet(patterns=frozenset([pattern])))
        strings = (allowed,) if allowed else ()
        return JsonValues(True, BOOLEANS, ALL.numbers, strings, ALL.arrays, ALL.objects)

    def _pattern(self, text: str, is_format: bool = False) -> StringPattern:
        if not is_format:
            parse_pattern(text, self.document.source)
        return StringPattern(text, is_format)

    def _array_values(self, node: SchemaNode, keywords: dict[str, Any]) -> JsonValues:
        first: list[SchemaSet] = []
        other_items = ANY
        items = keywords.get("items", True)
        if "prefixItems" in keywords:
            first = self._schema_list(node, "prefixItems", keywords["prefixItems"])
        if isinstance(items, list) and node.draft != 2020 and "prefixItems" not in keywords:
            first = [self._inner(node, item_schema, "items", i) for i, item_schema in enumerate(items)]
            if "additionalItems" in keywords:
                other_items = self._inner(node, keywords["additionalItems"], "additionalItems")
        elif "items" in keywords:
            other_items = self._inner(node, items, "items")
        unique = keywords.get("uniqueItems", False)
        self._check(node, "uniqueItems", unique, bool, "a boolean")
        min_items, max_items = self._count(node, keywords, "minItems") or 0, self._count(node, keywords, "maxItems")
        contains: list[Contained] = []
        if "contains" in keywords:
            min_count, max_count = (self._count(node, keywords, name) for name in ("minContains", "maxContains"))
            schemas = self._inner(node, keywords["contains"], "contains")
            contains = [Contained(schemas, 1 if min_count is None else min_count, max_count)]
        allowed = ArraySet().intersection(
            ArraySet(tuple(first), other_items, min_items, max_items, unique, frozenset(contains))
        )
        arrays = () if allowed is None else (allowed,)
        return JsonValues(True, BOOLEANS, ALL.numbers, ALL.strings, arrays, ALL.objects)

    def _object_values(self, node: SchemaNode, keywords: dict[str, Any]) -> JsonValues:
        named = self._schemas(node, keywords, "properties")
        patterned = {
            self._pattern(text): schemas for text, schemas in self._schemas(node, keywords, "patternProperties").items()
        }
        scoped = {(Scope(pattern), schemas) for pattern, schemas in patterned.items() if schemas != ANY}
        if keywords.get("additionalProperties", True) is not True:
            other_members = self._inner(node, keywords["additionalProperties"], "additionalProperties")
            scope = Scope(None, frozenset(named), frozenset(patterned))
            scoped |= {(scope, other_members)} if other_members != ANY else set()
        required = keywords.get("required", [])
        self._check(node, "required", required, list, "a list of names")
        keys = ANY
        if "propertyNames" in keywords:
            keys = self._inner(node, keywords["propertyNames"], "propertyNames")
        min_members = self._count(node, keywords, "minProperties") or 0
        max_members = self._count(node, keywords, "maxProperties")
        allowed = ObjectSet(
            tuple(named.items()), frozenset(scoped), keys=keys, min_members=min_members, max_members=max_members
        )
        allowed = allowed.intersection(self._with_required(node, "required", required))
        objects = () if allowed is None else (allowed,)
        return JsonValues(True, BOOLEANS, ALL.numbers, ALL.strings, ALL.arrays, objects)

    def _schemas(self, node: SchemaNode, keywords: dict[str, Any], name: str) -> dict[str, SchemaSet]:
        value = keywords.get(name, {})
        self._check(node, name, value, Mapping, "an object of schemas")
        return {self._text(node, name, key): self._inner(node, schema, name, key) for key, schema in value.items()}

    def _check(self, node: SchemaNode, keyword: str, value: Any, expected: type, remedy: str) -> None:
        if not isinstance(value, expected):
            raise self._error(node, keyword, f"{json.dumps(value):.40}", f"use {remedy}")

    def _count(self, node: SchemaNode, keywords: dict[str, Any], name: str) -> int | None:
        value = keywords.get(name)
        if name not in keywords:
            return None
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value != math.floor(value) or value < 0:
            raise self._error(node, name, f"{json.dumps(value):.40}", "use an integer of at least 0")
        return int(value)

    def _decimal(self, node: SchemaNode, keyword: str, value: Any) -> Decimal:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self._error(node, keyword, f"{json.dumps(value):.40}", "use a number")
        number = decimal(value)
        if number is None:
            raise self._error(node, keyword, "a number of more than 400 digits", "use a smaller one")
        return number

    def _text(self, node: SchemaNode, keyword: str, text: Any) -> str:
        """A string that JSON can represent."""
        self._check(node, keyword, text, str, "a string")
        if any(ord(character) in _SURROGATES for character in text):
            raise self._error(node, keyword, "half a surrogate pair", "use whole characters")
        return text
