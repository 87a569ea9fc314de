"""Settings of a config.json that equal fields of headway's configuration, as one table for both directions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, is_dataclass, replace
from typing import Any, NamedTuple

from headway.errors import UserError
from headway.formats.settings import Settings, published_activation
from headway.formats.tensor_rules import expand, expect
from headway.nn.parts.feedforward import hidden_width


class SettingKind(NamedTuple):
    """How the value of a setting becomes that of a field, and back."""

    read: Callable[[Settings, str], Any]
    write: Callable[[Any], Any] = lambda value: value


def flag(true: Any, false: Any) -> SettingKind:
    """A true or false setting, and the values of the field that it stands for."""
    return SettingKind(lambda settings, name: true if settings.get(name, bool) else false, lambda field: field == true)


def height_width(settings: Settings, name: str) -> tuple[int, int]:
    """Return height and width: two numbers, or one for both."""
    if isinstance(settings.values.get(name), (list, tuple)):
        size = settings.get(name, list[int])
        if len(size) != 2:
            raise UserError(f"{settings.source}: {name} is {size}; it should be one number, or height and width")
        return size[0], size[1]
    edge = settings.get(name, int)
    return edge, edge


ACTIVATION = SettingKind(Settings.activation, published_activation)
CAP = SettingKind(Settings.cap)  # a number above 0, or null
POSITIONS = SettingKind(Settings.max_positions)  # the maximum length of a text
SIZE = SettingKind(height_width, lambda size: size[0] if size[0] == size[1] else list(size))


@dataclass(frozen=True)
class SettingTable:
    """Settings by name, each as (fields, default) or (fields, default, kind).

    `fields` are paths in the configuration, separated by spaces; they have the same value, and the first is written.
    "{encoder,decoder}.width" are two paths. In a path, `block` stands for every block of a stack, and `depth` for their
    number. Settings without a field are read and written by the family. `default` is that of transformers, or a type if
    config.json must have the setting. `model` is a configuration that has all other fields, with one block per stack.
    """

    model: Any
    rows: Mapping[str, tuple[Any, ...]]

    @property
    def defaults(self) -> dict[str, Any]:
        return {name: row[1] for name, row in self.rows.items() if not isinstance(row[1], type)}

    def read(self, settings: Settings, fields: Mapping[str, Any] | None = None) -> Any:
        """Return the configuration that the settings describe; `fields` are further values by path."""
        values = {}
        for name, (paths, default, *kinds) in self.rows.items():
            if paths:
                kind = default if isinstance(default, type) else type(default)
                value = kinds[0].read(settings, name) if kinds else settings.get(name, kind)
                values |= dict.fromkeys((path for part in paths.split() for path in expand(part)), value)
        return _with_fields(self.model, {**values, **(fields or {})})

    def write(self, config: Any, others: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The reverse of `read`; `others` are settings that do not equal their fields. UserError if a part of the
        configuration is of another kind than in the table.
        """
        settings: dict[str, Any] = {}
        known = dict(others or {})
        for name, (paths, _, *kinds) in self.rows.items():
            if name in known:
                settings[name] = known[name]
            elif paths:
                value = _field_value(config, self.model, expand(paths.split()[0])[0])
                settings[name] = kinds[0].write(value) if kinds else value
        return settings | known


def _field_value(part: Any, model: Any, path: str) -> Any:
    """Return the value of a field. UserError for a part on the way that is of another kind than in `model`."""
    width = 0
    for field in path.split("."):
        width = getattr(part, "width", width)
        if field == "depth":
            return len(getattr(part, "stack", part).blocks)
        if field == "hidden":
            return hidden_width(part.hidden, part.ratio, width)
        if field == "block":
            part, model = (getattr(stack, "stack", stack).blocks[0] for stack in (part, model))
            expect(part.mixer, type(model.mixer))  # the difference that says most
            continue
        part, model = (value[field] if isinstance(value, dict) else getattr(value, field) for value in (part, model))
        if is_dataclass(type(model)):
            expect(part, type(model))
    return part


def _with_fields(config: Any, values: Mapping[str, Any]) -> Any:
    """Return `config` with values by path; each part is built once."""
    by_field: dict[str, dict[str, Any]] = {}
    for path, value in values.items():
        field, _, rest = path.partition(".")
        if field in ("block", "depth") and hasattr(config, "stack"):
            field, rest = "stack", path
        by_field.setdefault(field, {})[rest] = value
    if isinstance(config, dict):
        return config | {field: _with_fields(config[field], inner) for field, inner in by_field.items()}
    changes = {}
    for field, inner in by_field.items():
        if field == "block":
            changes["blocks"] = tuple(_with_fields(block, inner) for block in config.blocks)
        elif field != "depth" or not hasattr(config, "blocks"):
            changes[field] = inner[""] if "" in inner else _with_fields(getattr(config, field), inner)
    if "depth" in by_field and hasattr(config, "blocks"):
        changes["blocks"] = changes.get("blocks", config.blocks) * by_field["depth"][""]
    return replace(config, **changes)
