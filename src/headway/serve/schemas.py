"""JSON schemas (draft 2020-12) that texts can be held to while they are written, in words that mean the same.

What llguidance does not know it refuses, but some of what it knows it takes otherwise than the standard: it allows
keys to come twice, rounds numbers, reads patterns as Rust's, and passes over what a schema says of itself in other
places. So a schema is read here first: each keyword is checked, changed into what is exact, or refused by name.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from decimal import Decimal
from itertools import combinations
from typing import Any
from urllib.parse import unquote

from headway.errors import UserError
from headway.serve.expressions import whole

LARGEST = 1 << 18  # characters of a schema
_DEEPEST = 64  # levels of schemas within schemas
_MOST = 1 << 16  # characters of a text, items of an array, keys of an object
_DIGITS = 15  # of a number: no more are exact
_CONTROL = re.compile("[\x00-\x07\x0b\x0e-\x1f\ud800-\udfff]")  # without an escape of its own, or half a character
_OF_TYPE = {bool: "boolean", int: "number", float: "number", str: "string", list: "array", dict: "object"}
_BOUNDS = (("exclusiveMinimum", "minimum", 1, max), ("exclusiveMaximum", "maximum", -1, min))
_TYPES = ("null", "boolean", "integer", "number", "string", "array", "object")
_NOTES = (
    *("title", "description", "default", "examples", "example", "deprecated", "readOnly", "writeOnly", "$comment"),
    *("contentMediaType", "contentEncoding", "contentSchema", "discriminator", "externalDocs", "xml"),
)
_DRAFTS = ("2020-12/schema", "2019-09/schema", "draft-07/schema", "draft-06/schema")
_REMEDIES = {
    "not": "say what is allowed",
    "if": "use anyOf with a const",
    "uniqueItems": "leave it out",
    "unevaluatedProperties": "use additionalProperties",
    "unevaluatedItems": "use items",
    "propertyNames": "use patternProperties and additionalProperties",
    "dependencies": "use anyOf",
    "dependentRequired": "use anyOf",
    "dependentSchemas": "use anyOf",
    "$anchor": "use $ref with a path, as #/$defs/name",
    "$dynamicRef": "use $ref",
    "additionalItems": "use prefixItems and items",
    "nullable": 'use "type": ["string", "null"]',
}
_HOURS = "(?:[01][0-9]|2[0-3]):[0-5][0-9]"
_TIME = rf"{_HOURS}:[0-5][0-9](?:\.[0-9]{{1,9}})?(?:Z|[+-]{_HOURS})"
_LEAP = "(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:[02468][048]|[13579][26])00)"
_DATE = (
    "(?:[0-9]{4}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)"
    f"|02-(?:0[1-9]|1[0-9]|2[0-8]))|{_LEAP}-02-29)"
)
_BYTE = "(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_LABEL = "[A-Za-z0-9]{1,20}(?:-[A-Za-z0-9]{1,20}){0,2}"  # 62 characters at most, without the marks of IDNA
_HOST = rf"{_LABEL}(?:\.{_LABEL}){{0,3}}"
_IPV4 = rf"{_BYTE}(?:\.{_BYTE}){{3}}"
_PATH = r"(?:[A-Za-z0-9._~!$&'()*+,;=:@-]|%[0-9A-Fa-f]{2})"
_PARTS = "(?:[0-9]+H(?:[0-9]+M(?:[0-9]+S)?)?|[0-9]+M(?:[0-9]+S)?|[0-9]+S)"
_DAYS = "(?:[0-9]+Y(?:[0-9]+M(?:[0-9]+D)?)?|[0-9]+M(?:[0-9]+D)?|[0-9]+D)"
# What of each format is written: never anything else, though not all of it (no leap seconds, no quoted addresses).
_FORMATS = {
    "date": f"^{_DATE}$",
    "time": f"^{_TIME}$",
    "date-time": f"^{_DATE}T{_TIME}$",
    "duration": f"^P(?:[0-9]+W|{_DAYS}(?:T{_PARTS})?|T{_PARTS})$",
    "email": rf"^[A-Za-z0-9_+-]{{1,30}}(?:\.[A-Za-z0-9_+-]{{1,30}}){{0,1}}@{_HOST}$",
    "hostname": f"^{_HOST}$",
    "ipv4": f"^{_IPV4}$",
    "ipv6": "^(?:(?:[0-9a-fA-F]{1,4}:){7}[0-9a-fA-F]{1,4}"
    + "".join(f"|(?:[0-9a-fA-F]{{1,4}}:){{1,{7 - n}}}(?::[0-9a-fA-F]{{1,4}}){{1,{n}}}" for n in range(1, 7))
    + "|::|::[0-9a-fA-F]{1,4}(?::[0-9a-fA-F]{1,4}){0,6}|(?:[0-9a-fA-F]{1,4}:){1,7}:)$",
    "uuid": "^[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$",
    "uri": rf"^[A-Za-z][A-Za-z0-9+.-]*://{_HOST}(?::[0-9]{{1,5}})?(?:/{_PATH}*)*(?:\?(?:{_PATH}|[/?])*)?(?:#{_PATH}*)?$",
}


def held(schema: Any, source: str = "the schema") -> dict[str, Any] | bool:
    """The schema in words that are held to exactly: no text that it allows is against `schema`.

    UserError for what is no schema, for one that is too large and for each keyword that cannot be held to.
    """
    try:
        size = len(json.dumps(schema, allow_nan=False))
    except (ValueError, TypeError, RecursionError):
        raise UserError(f"{source} is no JSON, or nested too deeply; give a JSON schema") from None
    if size > LARGEST:
        raise UserError(f"{source} has {size:,} characters; give one of {LARGEST:,} at most")
    reader = _Reader(source)
    read = reader.schema(schema, "", 0)
    reader.check_references()
    reader.part()
    if isinstance(read, dict) and not reader.ends(read):
        raise UserError(f"{source} asks for itself without end, so that nothing fits it; make a part of it optional")
    return read


class _Reader:
    """Reads a schema and the schemas within it, at their places in it (JSON pointers)."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._at: dict[str, dict[str, Any] | bool] = {}
        self._references: list[tuple[str, str]] = []
        self._keywords: dict[str, Callable[[Any, str, int], Any]] = {
            **dict.fromkeys(("$defs", "definitions", "properties"), self._named),
            **dict.fromkeys(("items", "additionalProperties"), self.schema),
            **dict.fromkeys(("prefixItems", "allOf", "anyOf", "oneOf"), self._listed),
            **dict.fromkeys(("minLength", "maxLength", "minItems", "maxItems"), self._count),
            **dict.fromkeys(("minProperties", "maxProperties"), self._count),
            **dict.fromkeys(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"), self._number),
            "type": self._type,
            "enum": self._values,
            "const": self._value,
            "required": self._required,
            "$ref": self._reference,
            "patternProperties": self._patterned,
            "pattern": self._pattern,
            "format": self._format,
        }

    def refused(self, place: str, what: str, remedy: str = "leave it out") -> UserError:
        where = f" at {place!r:.100}" if place else ""
        return UserError(f"{self._source} has {what}{where}, which cannot be held to; {remedy}")

    def schema(self, schema: Any, place: str, depth: int) -> dict[str, Any] | bool:
        if depth > _DEEPEST:
            raise UserError(f"{self._source} has schemas more than {_DEEPEST} deep; give a flatter one")
        if not isinstance(schema, (bool, Mapping)):
            raise self.refused(place, f"{json.dumps(schema):.40} where a schema belongs", "give an object")
        read: dict[str, Any] | bool
        if isinstance(schema, bool):
            read = schema
        else:
            read = {}
            for name, value in schema.items():
                self._keyword(read, name, value, place, depth)
            self._check_together(read, place)
        self._at[place] = read
        return read

    def _keyword(self, read: dict[str, Any], name: str, value: Any, place: str, depth: int) -> None:
        """Put what a keyword says into `read`."""
        at = f"{place}/{_escaped(name)}"
        if name in self._keywords:
            told = self._keywords[name](value, at, depth + 1)
            if name == "allOf":
                read["allOf"] = [*told, *read.get("allOf", [])]
            elif name in ("pattern", "format") and "pattern" in read:  # both are held to
                read.setdefault("allOf", []).append({"pattern": told})
            else:
                read["pattern" if name == "format" else name] = told
        elif name == "$schema":
            if not isinstance(value, str) or not value.rstrip("#").endswith(_DRAFTS):
                raise self.refused(place, f"the $schema {value!r:.80}", "use draft 2020-12")
        elif name == "$id" and not place and isinstance(value, str):
            pass  # a name; what refers to it by that name is refused
        elif name == "uniqueItems" and value is False:
            pass
        elif name not in _NOTES and not name.startswith("x-"):
            raise self.refused(place, f"the keyword {name!r:.60}", _REMEDIES.get(name, "leave it out"))

    def _check_together(self, read: dict[str, Any], place: str) -> None:
        """What keywords say of each other."""
        for name, bound, step, larger in _BOUNDS:
            value = read.get(name)
            if isinstance(value, int):  # between 1 and 1.5, llguidance takes an excluded 1 for allowed
                near = Decimal(value) + Decimal(step).scaleb(-9 if abs(value) < 10**5 else -3)
                if Decimal(repr(float(near))) != near:
                    raise self.refused(f"{place}/{name}", f"the number {value:,}", f"use {bound}")
                del read[name]
                read[bound] = larger(float(near), read.get(bound, float(near)))
        least, required = read.get("minProperties", 0), read.get("required", [])
        if least > len(required) + 1:  # a key that comes twice counts twice for llguidance
            raise self.refused(place, f"minProperties {least} with {len(required)} required", "name more as required")

    def _named(self, value: Any, place: str, depth: int) -> dict[str, Any]:
        self._mapping(value, place)
        return {
            self._text(name, place): self.schema(each, f"{place}/{_escaped(name)}", depth)
            for name, each in value.items()
        }

    def _patterned(self, value: Any, place: str, depth: int) -> dict[str, Any]:
        self._mapping(value, place)
        read = {
            self._pattern(name, place, depth): self.schema(each, f"{place}/{_escaped(name)}", depth)
            for name, each in value.items()
        }
        if len(read) < len(value):
            raise self.refused(place, "two patterns for the same keys", "give one")
        return read

    def _mapping(self, value: Any, place: str) -> None:
        if not isinstance(value, Mapping):
            raise self.refused(place, f"{json.dumps(value):.40}", "give an object of schemas")

    def _listed(self, value: Any, place: str, depth: int) -> list[Any]:
        if not isinstance(value, list) or not value:
            raise self.refused(place, f"{json.dumps(value):.40}", "give a list of schemas")
        return [self.schema(each, f"{place}/{i}", depth) for i, each in enumerate(value)]

    def _count(self, value: Any, place: str, depth: int) -> int:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value != int(value) or value < 0:
            raise self.refused(place, f"{json.dumps(value):.40}", "give a whole number from 0 on")
        if value > _MOST:
            raise self.refused(place, f"{value:,}", f"give {_MOST:,} at most")
        return int(value)

    def _number(self, value: Any, place: str, depth: int) -> int | float:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise self.refused(place, f"{json.dumps(value):.40}", "give a number")
        number = Decimal(repr(value)).normalize()
        digits, exponent = number.as_tuple().digits, int(number.as_tuple().exponent)
        if len(digits) + max(exponent, 0) > _DIGITS or -exponent > _DIGITS:
            raise self.refused(place, f"the number {value!r:.40}", f"give one of {_DIGITS} digits at most")
        if place.endswith("/multipleOf") and value <= 0:
            raise self.refused(place, f"{value}", "give a number above 0")
        return int(value) if value == int(value) else value

    def _type(self, value: Any, place: str, depth: int) -> Any:
        named = value if isinstance(value, list) else [value]
        if not named or not all(isinstance(each, str) and each in _TYPES for each in named):
            raise self.refused(place, f"{json.dumps(value):.60}", f"give some of {', '.join(_TYPES)}")
        return value

    def _values(self, value: Any, place: str, depth: int) -> list[Any]:
        if not isinstance(value, list) or not value:
            raise self.refused(place, f"{json.dumps(value):.40}", "give a list of values")
        return [self._value(each, place, depth) for each in value]

    def _value(self, value: Any, place: str, depth: int) -> Any:
        if depth > _DEEPEST:
            raise UserError(f"{self._source} has values more than {_DEEPEST} deep; give flatter ones")
        if isinstance(value, Mapping):
            return {name: self._value(each, place, depth + 1) for name, each in value.items()}
        if isinstance(value, list):
            return [self._value(each, place, depth + 1) for each in value]
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return self._number(value, place, depth)
        return self._text(value, place) if isinstance(value, str) else value

    def _text(self, text: str, place: str) -> str:
        """A text that JSON can spell in one way alone."""
        strange = _CONTROL.search(text)
        if strange:
            raise self.refused(place, f"the character U+{ord(strange[0]):04X}", "leave it out")
        return text

    def _required(self, value: Any, place: str, depth: int) -> list[str]:
        if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
            raise self.refused(place, f"{json.dumps(value):.40}", "give a list of names")
        return [self._text(each, place) for each in dict.fromkeys(value)]

    def _pattern(self, value: Any, place: str, depth: int) -> str:
        if not isinstance(value, str):
            raise self.refused(place, f"{json.dumps(value):.40}", "give a pattern")
        return f"^{whole(value, self._source)}$"

    def _format(self, value: Any, place: str, depth: int) -> str:
        if not isinstance(value, str) or value not in _FORMATS:
            known = f"use one of {', '.join(_FORMATS)}"
            raise self.refused(place, f"the format {json.dumps(value):.40}", known)
        return f"^{whole(_FORMATS[value], self._source)}$"

    def _reference(self, value: Any, place: str, depth: int) -> str:
        if not isinstance(value, str) or not (value == "#" or value.startswith("#/")):
            raise self.refused(place, f"the $ref {json.dumps(value):.80}", "use one as #/$defs/name")
        self._references.append((place, unquote(value[1:])))
        return value

    def check_references(self) -> None:
        for place, target in self._references:
            if target not in self._at:
                raise self.refused(place, f"the $ref {'#' + target!r:.80} to what is no schema", "name one of $defs")

    def part(self) -> None:
        """Make anyOf of each oneOf whose schemas are known to share nothing; others llguidance refuses."""
        for place, schema in self._at.items():
            if isinstance(schema, dict) and "oneOf" in schema:
                if not all(self._apart(one, other, 0) for one, other in combinations(schema["oneOf"], 2)):
                    remedy = "use anyOf, or give each a property with a const of its own"
                    raise self.refused(place, "a oneOf whose schemas are not known to share nothing", remedy)
                if "anyOf" in schema:
                    schema.setdefault("allOf", []).append({"anyOf": schema.pop("oneOf")})
                else:
                    schema["anyOf"] = schema.pop("oneOf")

    def _apart(self, one: dict[str, Any] | bool, other: dict[str, Any] | bool, depth: int) -> bool:
        """Whether it is plain that nothing fits both schemas."""
        if not (isinstance(one, dict) and isinstance(other, dict)) or depth > _DEEPEST:
            return one is False or other is False
        for this, that in ((one, other), (other, one)):
            if "$ref" in this and self._apart(self._at[unquote(this["$ref"][1:])], that, depth + 1):
                return True
        values, others = _values_of(one), _values_of(other)
        if values is not None and others is not None:
            return not values & others
        types, kinds = _types_of(one), _types_of(other)
        if not types & kinds:
            return True
        if types != {"object"} or kinds != {"object"}:
            return False
        shared = set(one.get("required", [])) & set(other.get("required", []))
        pairs = [[each.get("properties", {}).get(name, True) for each in (one, other)] for name in shared]
        return any(self._apart(this, that, depth + 1) for this, that in pairs)

    def ends(self, root: dict[str, Any]) -> bool:
        """Whether something finite fits: references that lead back to themselves are none."""
        finite: set[str] = set()
        while True:
            before = len(finite)
            finite |= {place for place, schema in self._at.items() if _is_finite(schema, finite)}
            if "" in finite or len(finite) == before:
                return "" in finite


def _is_finite(schema: dict[str, Any] | bool, finite: set[str]) -> bool:
    """Whether something finite fits, where that is known of the schemas at `finite`."""

    def fits(part: dict[str, Any] | bool) -> bool:
        return _is_finite(part, finite)

    if isinstance(schema, bool):
        return schema
    if "$ref" in schema and unquote(schema["$ref"][1:]) not in finite:
        return False
    if not all(map(fits, schema.get("allOf", []))):
        return False
    if not any(map(fits, schema.get("anyOf", [True]))):
        return False
    return all(_parts_fit(kind, schema, fits) for kind in ("array", "object") if schema.get("type") == kind)


def _parts_fit(kind: str, schema: dict[str, Any], fits: Callable[[dict[str, Any] | bool], bool]) -> bool:
    """Whether what an array or an object must have is finite."""
    if kind == "array":
        least, first = schema.get("minItems", 0), schema.get("prefixItems", [])
        return all(map(fits, first[:least])) and (least <= len(first) or fits(schema.get("items", True)))
    known, others = schema.get("properties", {}), schema.get("additionalProperties", True)
    return all(fits(known.get(name, others)) for name in schema.get("required", []) if name in known)


def _values_of(schema: dict[str, Any]) -> set[str] | None:
    """All that may fit, as JSON; None where that is not listed."""
    values = [schema["const"]] if "const" in schema else schema.get("enum")
    return None if values is None else {json.dumps(value, sort_keys=True) for value in values}


def _types_of(schema: dict[str, Any]) -> set[str]:
    """The types of what may fit; a whole number is a number."""
    values = [schema["const"]] if "const" in schema else schema.get("enum")
    if values is not None:
        return {_OF_TYPE.get(type(value), "null") for value in values}
    named = schema.get("type", list(_TYPES))
    return {"number" if each == "integer" else each for each in (named if isinstance(named, list) else [named])}


def _escaped(name: str) -> str:
    """A name as a part of a JSON pointer."""
    return name.replace("~", "~0").replace("/", "~1")
