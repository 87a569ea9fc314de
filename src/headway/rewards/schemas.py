"""A reward for JSON that a schema allows. The schema may use a part of JSON Schema 2020-12."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from headway.io.json_files import DECODER, parse_json
from headway.rewards.strings import check_expression


def _refuse(constant: str) -> None:
    """Raise ValueError for NaN, Infinity and -Infinity, which Python reads."""
    raise ValueError(f"{constant} is not JSON")


_TYPES: dict[str, Callable[[Any], bool]] = {
    "object": lambda content: isinstance(content, dict),
    "array": lambda content: isinstance(content, list),
    "string": lambda content: isinstance(content, str),
    "number": lambda content: isinstance(content, (int, float)) and not isinstance(content, bool),
    "integer": lambda content: type(content) is int or (isinstance(content, float) and content.is_integer()),
    "boolean": lambda content: isinstance(content, bool),
    "null": lambda content: content is None,
}
_NUMBER: tuple[type, ...] = (int, float)
_KEYWORDS: dict[str, tuple[type, ...]] = {
    "type": (str, list),
    "enum": (list,),
    "const": (object,),
    "anyOf": (list,),
    "properties": (dict,),
    "required": (list,),
    "additionalProperties": (dict, bool),
    "items": (dict, bool),
    "minItems": (int,),
    "maxItems": (int,),
    "minimum": _NUMBER,
    "maximum": _NUMBER,
    "minLength": (int,),
    "maxLength": (int,),
    "pattern": (str,),
}
_DECODER = json.JSONDecoder(object_pairs_hook=DECODER.object_pairs_hook, parse_constant=_refuse)
_REMARKS = ("$schema", "$id", "$comment", "title", "description", "default", "examples")  # allow everything


def valid_json(prompt: str, output: str, row: Mapping[str, Any]) -> float:
    """1 if the output is JSON that the row's `schema` allows."""
    try:
        content = _DECODER.decode(output)
    except (ValueError, RecursionError):
        return 0.0
    return float(is_valid(content, parsed_schema(row)))


def check_row(row: Mapping[str, Any]) -> None:
    """Raise ValueError for a row without a schema, or with one that this reward cannot check."""
    pending = [parsed_schema(row)]
    while pending:
        schema = pending.pop()
        if isinstance(schema, bool):
            continue
        if not isinstance(schema, dict):
            raise ValueError(f"has a schema with {schema!r:.80} instead of an object; correct it")
        for keyword, setting in schema.items():
            if keyword not in _KEYWORDS and keyword not in _REMARKS:
                raise ValueError(f"has a schema with {keyword!r}, which is not checked; use {', '.join(_KEYWORDS)}")
            if not isinstance(setting, _KEYWORDS.get(keyword, (object,))):
                raise ValueError(f"has a schema with {keyword} {setting!r:.80}; correct it")
        types = schema.get("type", [])
        for name in [types] if isinstance(types, str) else types:
            if not isinstance(name, str) or name not in _TYPES:
                raise ValueError(f"has a schema of type {name!r:.80}; use {', '.join(_TYPES)}")
        wrong = next((name for name in schema.get("required", []) if not isinstance(name, str)), None)
        if wrong is not None:
            raise ValueError(f"has a schema that requires {wrong!r:.80}; use the names of properties")
        check_expression(schema.get("pattern", ""), "a schema with the pattern")
        pending += [*schema.get("properties", {}).values(), *schema.get("anyOf", [])]
        pending += [schema[name] for name in ("items", "additionalProperties") if name in schema]


def parsed_schema(row: Mapping[str, Any]) -> Any:
    """The row's schema, which may be written as a string."""
    schema = row.get("schema")
    if isinstance(schema, str):
        try:
            return parse_json(schema)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"has a schema that is not JSON ({error}); correct it") from error
    if not isinstance(schema, (dict, bool)):
        raise ValueError("has no 'schema'; add a JSON schema, or set task.schema for all prompts")
    return schema


def is_valid(content: Any, schema: Any) -> bool:
    """Whether the schema allows the content."""
    if isinstance(schema, bool):
        return schema
    types = schema.get("type")
    names = [types] if isinstance(types, str) else types
    if names is not None and not any(_TYPES[name](content) for name in names):
        return False
    if "enum" in schema and not any(same_json(content, allowed) for allowed in schema["enum"]):
        return False
    if "const" in schema and not same_json(content, schema["const"]):
        return False
    if "anyOf" in schema and not any(is_valid(content, option) for option in schema["anyOf"]):
        return False
    if isinstance(content, dict):
        properties, others = schema.get("properties", {}), schema.get("additionalProperties", True)
        if not all(name in content for name in schema.get("required", [])):
            return False
        return all(is_valid(item, properties.get(name, others)) for name, item in content.items())
    if isinstance(content, list):
        items, low, high = schema.get("items", True), schema.get("minItems", 0), schema.get("maxItems", len(content))
        return low <= len(content) <= high and all(is_valid(item, items) for item in content)
    if isinstance(content, str):
        fits = schema.get("minLength", 0) <= len(content) <= schema.get("maxLength", len(content))
        return fits and re.search(schema.get("pattern", ""), content) is not None
    if isinstance(content, (int, float)) and not isinstance(content, bool):
        return schema.get("minimum", content) <= content <= schema.get("maximum", content)
    return True


def same_json(first: Any, second: Any) -> bool:
    """Equality of JSON values, in which 1 equals 1.0 and differs from true, also inside lists and objects."""
    if isinstance(first, list) and isinstance(second, list):
        return len(first) == len(second) and all(map(same_json, first, second))
    if isinstance(first, dict) and isinstance(second, dict):
        return first.keys() == second.keys() and all(same_json(first[name], second[name]) for name in first)
    return first == second and isinstance(first, bool) == isinstance(second, bool)
