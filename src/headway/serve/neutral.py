"""Fields that clients send with values that have no effect.

The struct of a body may have a table `NEUTRAL`. A field in it is accepted with values without effect; any other value
is rejected with the field's name and the reason. `null` has no effect in any field, known or not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, NamedTuple, get_args, get_type_hints

import msgspec

from headway.serve.http_errors import StatusError

_MAX_SHOWN = 60  # characters of a value in a message


class Neutral(NamedTuple):
    """The values of a field that have no effect."""

    values: tuple[Any, ...] = ()
    reason: str | None = None  # why other values are rejected, and what to do; None: the struct also has this field
    default_of: str | None = None  # a field of the body whose value (default: 1) is also accepted
    kind: type | None = None  # for hints to other servers: the type whose values are all accepted

    def accepts(self, value: Any, body: Mapping[str, Any]) -> bool:
        if self.kind is not None and type(value) is self.kind:
            return True
        same = self.default_of is not None and value == (body.get(self.default_of) or 1)
        return same or any(
            value == neutral_value and type(value) is type(neutral_value) for neutral_value in self.values
        )


Neutrals = dict[str, Neutral]


def without_neutral(value: Any, struct: type[msgspec.Struct], path: str = "") -> Any:
    """Parsed JSON of a struct without fields that have no effect. StatusError 400 for other values of such fields."""
    if not isinstance(value, dict):
        return value
    fields, effective = _fields(struct), {}
    neutral: Mapping[str, Neutral] = getattr(struct, "NEUTRAL", {})
    for name, member in value.items():
        if member is None:
            continue
        if (known := neutral.get(name)) is not None:
            if known.accepts(member, value):
                continue
            reason = f"it must be a {known.kind.__name__}; leave it out" if known.kind else known.reason
            if reason is not None:
                encoded = msgspec.json.encode(member).decode("utf-8", "replace")
                encoded = encoded if len(encoded) <= _MAX_SHOWN else f"{encoded[:_MAX_SHOWN]}..."
                raise StatusError(400, f"{path}{name} is {encoded}, but {reason}", f"{path}{name}", "unsupported")
        inner = fields.get(name)
        if inner is not None and isinstance(member, list):
            member = [without_neutral(item, inner, f"{path}{name}[{index}].") for index, item in enumerate(member)]
        elif inner is not None:
            member = without_neutral(member, inner, f"{path}{name}.")
        effective[name] = member
    return effective


def structs_within(struct: type[msgspec.Struct]) -> Iterator[type[msgspec.Struct]]:
    """A struct and all structs in its fields."""
    yield struct
    for inner in _fields(struct).values():
        if inner is not None and inner is not struct:
            yield from structs_within(inner)


@cache
def _fields(struct: type[msgspec.Struct]) -> dict[str, type[msgspec.Struct] | None]:
    """The struct of each field, or of the items of its list."""
    hints = get_type_hints(struct)
    return {field.encode_name: next(_structs(hints[field.name]), None) for field in msgspec.structs.fields(struct)}


def _structs(hint: Any) -> Iterator[type[msgspec.Struct]]:
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
        yield hint
    for inner in get_args(hint):
        yield from _structs(inner)
