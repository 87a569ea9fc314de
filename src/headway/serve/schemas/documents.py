"""A JSON schema as a document: its draft, the schemas within it, and the targets of references."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple
from urllib.parse import unquote, urldefrag, urljoin

from headway.errors import UserError

MAX_SCHEMA_LENGTH = 1 << 18  # characters per schema
MAX_SCHEMA_DEPTH = 64  # maximum nesting depth
_MAX_IGNORED = 64  # maximum names of ignored keywords
NEWEST = 2020
ANY_DRAFT = 0  # a schema without $schema: 2020-12, and the keywords of older drafts
_DRAFTS = {
    "json-schema.org/draft-04/schema": 4,
    "json-schema.org/draft-06/schema": 6,
    "json-schema.org/draft-07/schema": 7,
    "json-schema.org/draft/2019-09/schema": 2019,
    "json-schema.org/draft/2020-12/schema": 2020,
}
# Keywords that constrain values, with the first and the last draft of each.
_KEYWORDS: dict[str, tuple[int, int]] = {
    **dict.fromkeys(("type", "enum", "properties", "required", "additionalProperties", "patternProperties"), (4, 2020)),
    **dict.fromkeys(("minProperties", "maxProperties", "items", "minItems", "maxItems", "uniqueItems"), (4, 2020)),
    **dict.fromkeys(("minLength", "maxLength", "pattern", "format", "minimum", "maximum", "multipleOf"), (4, 2020)),
    **dict.fromkeys(("exclusiveMinimum", "exclusiveMaximum", "allOf", "anyOf", "oneOf", "not", "$ref"), (4, 2020)),
    **dict.fromkeys(("const", "contains", "propertyNames"), (6, 2020)),
    **dict.fromkeys(("if", "then", "else"), (7, 2020)),
    **dict.fromkeys(("dependentRequired", "dependentSchemas", "minContains", "maxContains"), (2019, 2020)),
    **dict.fromkeys(("unevaluatedProperties", "unevaluatedItems"), (2019, 2020)),
    "dependencies": (4, 2020),  # newer drafts still allow it
    "additionalItems": (4, 2019),
    "prefixItems": (2020, 2020),
    "$recursiveRef": (2019, 2019),
    "$dynamicRef": (2020, 2020),
}
_SINGLE_SCHEMA_AT = (
    "items",
    "additionalItems",
    "additionalProperties",
    "contains",
    "propertyNames",
    "not",
    "if",
    "then",
    "else",
)
_SCHEMA_AT = (*_SINGLE_SCHEMA_AT, "unevaluatedProperties", "unevaluatedItems")
_SCHEMAS_AT = ("allOf", "anyOf", "oneOf", "prefixItems", "items")
_NAMED_SCHEMAS_AT = ("properties", "patternProperties", "$defs", "definitions", "dependencies", "dependentSchemas")
_IDENTIFIERS = ("$schema", "$id", "id", "$anchor", "$dynamicAnchor", "$recursiveAnchor", "$defs", "definitions")
_ANNOTATIONS = ("title", "description", "default", "examples", "example", "$comment", "deprecated", "$vocabulary")


class SchemaNode(NamedTuple):
    """A schema within a document."""

    schema: Mapping[str, Any] | bool
    base: str  # base URI of its references
    path: str  # JSON pointer from the document's root
    draft: int


class Document:
    """The schemas of a document by index. Schemas that are not part of the document can be added."""

    def __init__(self, schema: Any, source: str) -> None:
        """UserError for a schema that is not JSON, too large or too deep."""
        try:
            size = len(json.dumps(schema, allow_nan=False))
        except (ValueError, TypeError, RecursionError):
            raise UserError(f"{source} is not JSON, or nested too deeply; send a JSON schema") from None
        if size > MAX_SCHEMA_LENGTH:
            raise UserError(f"{source} has {size:,} characters; use at most {MAX_SCHEMA_LENGTH:,}")
        self.source = source
        self.nodes: list[SchemaNode] = []
        self._indices: dict[int, int] = {}  # of schemas, by object identity
        self._ignored: dict[str, None] = {}
        self._resources: dict[str, SchemaNode] = {}  # by URI
        self._anchors: dict[str, SchemaNode] = {}
        self._dynamic: dict[str, int] = {}  # count of each dynamic anchor
        draft = ANY_DRAFT
        if isinstance(schema, Mapping) and "$schema" in schema:
            identifier = schema["$schema"]
            uri = identifier.rstrip("#").split("://")[-1] if isinstance(identifier, str) else ""
            if uri in _DRAFTS:
                draft = _DRAFTS[uri]
            elif "json-schema.org/" in uri:
                raise self.error("", f"the $schema {identifier!r:.80}", "use a draft from 4 to 2020-12")
            else:
                self.ignore("$schema")
        identifier = _identifier(schema, draft)
        root = SchemaNode(schema, "" if identifier is None else urldefrag(identifier)[0], "", draft)
        self._resources[root.base] = self._resources[""] = root
        for node in self._walk(root, 0):
            self._collect(node)
        self.root = self.index_of(root)

    def error(self, path: str, problem: str, remedy: str = "leave it out") -> UserError:
        location = f" at {path!r:.100}" if path else ""
        return UserError(f"{self.source} has {problem}{location}, which cannot be enforced; {remedy}")

    def ignore(self, name: str) -> None:
        if len(self._ignored) < _MAX_IGNORED:
            self._ignored[name] = None

    @property
    def ignored(self) -> list[str]:
        """Keywords and formats without effect, in order of appearance."""
        return list(self._ignored)

    def index_of(self, node: SchemaNode) -> int:
        """The index of a schema, the same each time."""
        index = self._indices.get(id(node.schema)) if isinstance(node.schema, Mapping) else None
        if index is None:
            if not isinstance(node.schema, (bool, Mapping)):
                text = json.dumps(node.schema)
                raise self.error(node.path, f"{text:.40} instead of a schema", "use an object or a boolean")
            self.nodes.append(node)
            index = len(self.nodes) - 1
            if isinstance(node.schema, Mapping):
                self._indices[id(node.schema)] = index
        return index

    def inner(self, node: SchemaNode, schema: Any, *names: str | int) -> int:
        """The index of a schema within another."""
        return self.index_of(self._inner(node, schema, *names))

    def keywords(self, node: SchemaNode) -> dict[str, Any]:
        """The constraining keywords that a schema's draft knows. Others are recorded as ignored."""
        schema, draft = node.schema, node.draft
        assert isinstance(schema, Mapping)
        if "$ref" in schema and 4 <= draft <= 7:  # keywords next to a reference have no effect
            for name in schema:
                if name != "$ref" and name not in (*_ANNOTATIONS, *_IDENTIFIERS):
                    self.ignore(name)
            return {"$ref": schema["$ref"]}
        known = {}
        for name, value in schema.items():
            first, last = _KEYWORDS.get(name, (9999, 0))
            if first <= draft <= last or (draft == ANY_DRAFT and last):
                known[name] = value
            elif name not in _IDENTIFIERS and name not in _ANNOTATIONS:
                self.ignore(name)
        return known

    def target(self, node: SchemaNode, keyword: str, reference: Any) -> int:
        """The index of a reference's target."""
        path = f"{node.path}/{keyword}"
        if not isinstance(reference, str):
            raise self.error(path, f"the {keyword} {json.dumps(reference):.80}", "use one as #/$defs/name")
        uri, fragment = urldefrag(_absolute(node.base, reference))
        value: Any
        is_dynamic = keyword == "$dynamicRef" and self._dynamic.get(fragment, 0) > 1
        if is_dynamic or (keyword == "$recursiveRef" and self._dynamic.get("", 0)):
            raise self.error(path, f"a {keyword} that depends on where it is used", "use $ref")
        target_node = self._anchors.get(f"{uri}#{fragment}") if fragment else None
        resource = self._resources.get(uri)
        if target_node is None and resource is not None and (not fragment or fragment.startswith("/")):
            # A JSON pointer, whose target must be able to be a schema.
            target_node, value = resource, resource.schema
            for part in fragment.split("/")[1:]:
                name = unquote(part).replace("~1", "/").replace("~0", "~")
                if isinstance(value, Mapping) and name in value:
                    value = value[name]
                elif isinstance(value, list) and name.isdigit() and int(name) < len(value):
                    value = value[int(name)]
                else:
                    target_node = value = None
                    break
                target_node = self._inner(target_node, value, name)
            if not isinstance(value, (bool, Mapping)):
                target_node = None
        if target_node is None:
            problem = f"the {keyword} {reference!r:.80} without a target"
            raise self.error(path, problem, "put the schema into $defs and refer to it as #/$defs/name")
        return self.index_of(target_node)

    def _inner(self, node: SchemaNode, schema: Any, *names: str | int) -> SchemaNode:
        path = node.path + "".join(f"/{str(name).replace('~', '~0').replace('/', '~1')}" for name in names)
        identifier = _identifier(schema, node.draft)
        base = node.base if identifier is None else urldefrag(_absolute(node.base, identifier))[0]
        return SchemaNode(schema, base, path, node.draft)

    def _collect(self, node: SchemaNode) -> None:
        """Record the identifiers and anchors of a schema."""
        schema = node.schema
        if not isinstance(schema, Mapping):
            return
        identifier = _identifier(schema, node.draft)
        if identifier is not None:
            uri, fragment = urldefrag(_absolute(node.base, identifier))
            if fragment:
                self._anchors[f"{uri}#{fragment}"] = node
            else:
                self._resources.setdefault(uri, node)
        for keyword in ("$anchor", "$dynamicAnchor"):
            if isinstance(schema.get(keyword), str) and node.draft in (ANY_DRAFT, 2019, 2020):
                self._anchors[f"{node.base}#{schema[keyword]}"] = node
                if keyword == "$dynamicAnchor":
                    self._dynamic[schema[keyword]] = self._dynamic.get(schema[keyword], 0) + 1
        if schema.get("$recursiveAnchor") is True:
            self._dynamic[""] = self._dynamic.get("", 0) + 1

    def _walk(self, node: SchemaNode, depth: int) -> Iterator[SchemaNode]:
        """The schema and all schemas within it, at the keywords that contain schemas."""
        if depth > MAX_SCHEMA_DEPTH:
            raise UserError(f"{self.source} has schemas nested over {MAX_SCHEMA_DEPTH} deep; use a flatter one")
        schema = node.schema
        yield node
        if not isinstance(schema, Mapping):
            return
        for name, value in schema.items():
            subschemas: list[tuple[tuple[str | int, ...], Any]] = []
            if name in _SCHEMA_AT and isinstance(value, Mapping):
                subschemas = [((name,), value)]
            elif name in _SCHEMAS_AT and isinstance(value, list):
                subschemas = [((name, i), subschema) for i, subschema in enumerate(value)]
            elif name in _NAMED_SCHEMAS_AT and isinstance(value, Mapping):
                subschemas = [((name, key), subschema) for key, subschema in value.items()]
            for names, subschema in subschemas:
                if isinstance(subschema, Mapping):
                    yield from self._walk(self._inner(node, subschema, *names), depth + 1)


def _identifier(schema: Any, draft: int) -> str | None:
    if not isinstance(schema, Mapping) or ("$ref" in schema and 4 <= draft <= 7):
        return None
    identifier = schema.get("id" if draft == 4 else "$id")
    if draft == ANY_DRAFT and not isinstance(identifier, str):
        identifier = schema.get("id")
    return identifier if isinstance(identifier, str) else None


def _absolute(base: str, reference: str) -> str:
    """A reference as an absolute URI. A base may also be a name such as urn:name, which urljoin does not support."""
    if reference.startswith("#") or not reference:
        return urldefrag(base)[0] + reference
    try:
        return urljoin(base, reference)
    except ValueError:
        return reference
