"""Configuration is frozen data: dataclass <-> dict <-> command line, with strict keys and suggestions.

`to_dict` writes the kind of a config next to its fields, and `from_dict` selects the class by it; see
`headway.config_kinds`.
"""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from importlib import import_module
from typing import Annotated, Any, Literal, NotRequired, Required, TypeVar, Union, get_args, get_origin

from headway.config_kinds import KINDS, LAZY_KINDS, checks_deferred
from headway.errors import ConfigError, InapplicableError, nearest
from headway.io.json_files import DuplicateKeyError, parse_json

T = TypeVar("T")
Setter = Callable[[Any, Any], Any]
_SETTERS: dict[type, dict[str, Setter]] = {}
_MAX_BITS = 63  # maximum bits of an integer, as tensors and generators accept
_MAX_SHOWN = 200  # maximum characters of a value in a message
_MAX_MAGNITUDE = 1e30  # maximum magnitude of a number: it fits into a float32 and its square into a float64


def to_dict(config: Any) -> Any:
    """A config as plain dicts, lists and scalars for JSON."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        fields = {f.name: to_dict(getattr(config, f.name)) for f in dataclasses.fields(config)}
        kind = getattr(config, "kind", None)
        return {"kind": kind, **fields} if kind is not None else fields
    if isinstance(config, Mapping):
        return {key: to_dict(value) for key, value in config.items()}
    if isinstance(config, (list, tuple)):
        return [to_dict(value) for value in config]
    return config


def from_dict(cls: type[T], data: Any, path: str = "") -> T:
    """Build a config from plain data. Unknown keys, kinds and wrong types are ConfigErrors that name the path.

    A TypedDict accepts unknown keys, because run files may contain fields of other versions. A field may be annotated
    with checks, such as `Range`.
    """
    return _read(cls, data, path or cls.__name__)


@dataclasses.dataclass(frozen=True)
class Range:
    """A check for numbers: `Annotated[int, Range(0)]`. Both ends are included."""

    low: float
    high: float = math.inf

    def __call__(self, value: float, path: str) -> None:
        if not self.low <= value <= self.high:
            upper = "or more" if self.high == math.inf else f"to {self.high:g}"
            raise ConfigError(f"{path} is {value}; use {self.low:g} {upper}")


def dumps(config: Any) -> str:
    """A config as readable JSON."""
    return json.dumps(to_dict(config), indent=2, ensure_ascii=False) + "\n"


@cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls, include_extras=True)


def _read(hint: Any, data: Any, path: str) -> Any:
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any:
        return data
    if origin in (Required, NotRequired):
        return _read(args[0], data, path)
    if origin is Annotated:
        value = _read(args[0], data, path)
        for check in args[1:]:
            check(value, path)
        return value
    if origin in (Union, types.UnionType):
        if data is None and type(None) in args:
            return None
        *options, last = (a for a in args if a is not type(None))
        for option in options:
            try:
                return _read(option, data, path)
            except ConfigError:
                continue
        return _read(last, data, path)
    if origin is Literal:
        if not isinstance(data, (str, int)) or data not in args:
            raise ConfigError(f"{path} is {_format_value(data)}; choose from: {', '.join(map(str, args))}")
        return data
    if origin in (tuple, list):
        _expect(isinstance(data, (list, tuple)), path, data, "a list")
        if origin is tuple and args[-1] is not Ellipsis:
            _expect(len(data) == len(args), path, data, f"{len(args)} values")
            return tuple(_read(a, d, f"{path}.{i}") for i, (a, d) in enumerate(zip(args, data)))
        return origin(_read(args[0], d, f"{path}.{i}") for i, d in enumerate(data))
    if origin in (dict, Mapping):
        _expect(isinstance(data, Mapping), path, data, "a mapping")
        return {key: _read(args[1], value, f"{path}.{key}") for key, value in data.items()}
    if typing.is_typeddict(hint):
        _expect(isinstance(data, dict), path, data, "a JSON object")
        hints = _hints(hint)
        for key, annotation in hints.items():  # `__required_keys__` is wrong where annotations are strings
            kind = get_origin(annotation)
            if key not in data and (kind is Required or (hint.__total__ and kind is not NotRequired)):
                raise ConfigError(f"{path} has no {key!r}; restore it from a copy")
        return {key: _read(hints.get(key, Any), value, f"{path}: {key}") for key, value in data.items()}
    if dataclasses.is_dataclass(hint) or hint in KINDS:
        return _read_dataclass(hint, data, path)
    if isinstance(data, int) and data.bit_length() > _MAX_BITS:
        raise ConfigError(f"{path} is an integer of {data.bit_length()} bits; use at most {_MAX_BITS} bits")
    if hint is float and isinstance(data, int) and not isinstance(data, bool):
        return float(data)
    if hint is int and isinstance(data, bool):
        raise ConfigError(f"{path} is {data!r}; use an integer")
    type_names = {int: "an integer", float: "a number", bool: "true or false", str: "a string"}
    _expect(isinstance(data, hint), path, data, type_names.get(hint, str(hint)))
    if hint is float and not -_MAX_MAGNITUDE <= data <= _MAX_MAGNITUDE:
        expected = f"number from -{_MAX_MAGNITUDE:g} to {_MAX_MAGNITUDE:g}" if math.isfinite(data) else "finite number"
        raise ConfigError(f"{path} is {data}; use a {expected}")
    return data


def _expect(condition: bool, path: str, data: Any, expected: str) -> None:
    if not condition:
        raise ConfigError(f"{path} is {_format_value(data)}; use {expected}")


def _format_value(data: Any) -> str:
    """A value for a message: only the start of a very long one."""
    text = repr(data)
    return text if len(text) <= _MAX_SHOWN else f"{text[: _MAX_SHOWN - 3]}..."


def _read_dataclass(cls: Any, data: Any, path: str) -> Any:
    if isinstance(data, cls):
        return data
    is_shorthand = isinstance(data, str) and cls in KINDS  # `mixer=attention` is short for `{"kind": "attention"}`
    mapping: Any = {"kind": data} if is_shorthand else data
    _expect(isinstance(mapping, Mapping), path, data, 'a mapping of settings, as in {"name": value}')
    settings: dict[str, Any] = dict(mapping)
    if cls in KINDS:
        kind = settings.pop("kind", None)
        lazy_kinds = LAZY_KINDS[cls]() if cls in LAZY_KINDS else {}
        if isinstance(kind, str) and kind in lazy_kinds:
            import_module(lazy_kinds[kind])
        if not isinstance(kind, str) or kind not in KINDS[cls]:
            raise ConfigError(f"{path}.kind is {kind!r}; {nearest(str(kind), {**KINDS[cls], **lazy_kinds})}")
        cls = KINDS[cls][kind]
    else:
        settings.pop("kind", None)
    settings = {current_name(cls, key): value for key, value in settings.items()}
    field_names = [f.name for f in dataclasses.fields(cls)]
    for key in settings:
        if key not in field_names:
            raise ConfigError(f"{path} has no setting {key!r}; {nearest(key, field_names)}")
    hints = _hints(cls)
    values = {key: _read(hints[key], value, f"{path}.{key}") for key, value in settings.items()}
    try:
        return cls(**values)
    except TypeError as error:
        raise ConfigError(f"{path} is incomplete: {error}; add the missing settings") from None


def parse_value(text: str) -> Any:
    """A command-line value: parsed as JSON if possible, otherwise the text itself."""
    try:
        return parse_json(text)
    except DuplicateKeyError as error:
        raise ConfigError(f"the setting {text!r} has {error}; keep one of them") from None
    except json.JSONDecodeError:
        return None if text in ("None", "none") else text


def parse_settings(pairs: Iterable[str]) -> dict[str, Any]:
    """`["train.steps=10"]` as `{"train.steps": 10}`."""
    settings = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise ConfigError(f"setting {pair!r} has no '='; write key.path=value, as in train.steps=100")
        settings[key.strip()] = parse_value(value.strip())
    return settings


def override(config: T, settings: Mapping[str, Any]) -> T:
    """`config` with dotted settings replaced: `{"model.width": 256, "optim.lr": 0.001}`.

    A key that is not a field may be a *setting* (see `setting`), such as a model's depth, which changes the number of
    blocks. `schedule.kind=cosine` is short for `schedule=cosine`: another kind with its own defaults. All settings are
    applied before the result is checked. Raises ConfigError for anything else.
    """
    with _deferred_checks():
        for key, value in settings.items():
            config = _replace(config, key.split("."), value, key)
    if settings:
        _check(config)
    return config


def applicable(config: Any, settings: Mapping[str, Any], fixed: Mapping[str, Any]) -> dict[str, Any]:
    """The `settings` that `config` has after the `fixed` ones are set; an LSTM, for example, has no heads."""
    with _deferred_checks():
        for key, value in fixed.items():
            config = _replace(config, key.split("."), value, key)
        known = {}
        for key, value in settings.items():
            with suppress(InapplicableError):
                _replace(config, key.split("."), value, key)
                known[key] = value
        return known


@contextmanager
def _deferred_checks() -> Iterator[None]:
    """Suspend checks inside the context, because settings may be valid only together."""
    token = checks_deferred.set(True)
    try:
        yield
    finally:
        checks_deferred.reset(token)


def _check(config: Any) -> None:
    """Run the checks of a config and of all nested configs, innermost first."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        for field in dataclasses.fields(config):
            _check(getattr(config, field.name))
        check = getattr(config, "__post_init__", None)
        if check is not None:
            check()
    elif isinstance(config, (list, tuple)):
        for child in config:
            _check(child)
    elif isinstance(config, Mapping):
        for child in config.values():
            _check(child)


def differences(first: Any, second: Any, path: str) -> Iterator[str]:
    """The differences between two trees of plain data, each as "model.width is 64, not 128"."""
    if isinstance(first, dict) and isinstance(second, dict) and first.keys() == second.keys():
        for key in first:
            yield from differences(first[key], second[key], f"{path}.{key}")
    elif isinstance(first, list) and isinstance(second, list) and len(first) == len(second):
        for i, (a, b) in enumerate(zip(first, second)):
            yield from differences(a, b, f"{path}.{i}")
    elif first != second:
        yield f"{path} is {_short_json(first)}, not {_short_json(second)}"


def _short_json(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."


# Settings that were renamed, by the class of their config: old names in recipe.json and `--set` still work.
RENAMED: Mapping[str, Mapping[str, str]] = {
    "TransformerConfig": {"symbols": "vocab_size"},
    "EncoderDecoderConfig": {"symbols": "vocab_size"},
    "TwoTowerConfig": {"symbols": "vocab_size"},
    "CaptionerConfig": {"symbols": "vocab_size"},
    "TrainConfig": {"keep": "keep_checkpoints"},
    "PPOConfig": {"copies": "num_envs"},
    "DiffusionConfig": {"says": "predicts"},
    "CaptionsConfig": {"longest": "max_length"},
    "PairsConfig": {"longest": "max_length"},
}


def current_name(cls: type, name: str) -> str:
    """The current name of a setting of `cls`, given its current or former name."""
    return next((names[name] for base in cls.__mro__ if name in (names := RENAMED.get(base.__name__, {}))), name)


def settings_of(config: Any) -> list[str]:
    """Names that `override` accepts directly under this config."""
    return sorted({f.name for f in dataclasses.fields(config)} | shortcuts(type(config)).keys())


def setting(of: type, name: str) -> Callable[[Setter], Setter]:
    """Register a function (config, value) -> config for a key of `override` that is not a field of `of`, or that
    accepts values which the field's type does not.
    """

    def register(setter: Setter) -> Setter:
        _SETTERS.setdefault(of, {})[name] = setter
        return setter

    return register


def shortcuts(kind: type) -> dict[str, Setter]:
    """The setters that `setting` registered for a kind of config, by name."""
    return {name: setter for base in reversed(kind.__mro__) for name, setter in _SETTERS.get(base, {}).items()}


def _replace(config: Any, parts: list[str], value: Any, key: str) -> Any:
    name, remaining = parts[0], parts[1:]
    if isinstance(config, tuple):
        if not name.isdigit() or int(name) >= len(config):
            raise ConfigError(f"{key}: {name!r} is not an index below {len(config)}; use a number")
        index = int(name)
        child = _replace(config[index], remaining, value, key) if remaining else _read(type(config[index]), value, key)
        return (*config[:index], child, *config[index + 1 :])
    if isinstance(config, dict) and name in config:
        child = _replace(config[name], remaining, value, key) if remaining else _read(type(config[name]), value, key)
        return {**config, name: child}
    if not dataclasses.is_dataclass(config) or isinstance(config, type):
        raise ConfigError(f"{key}: there is nothing to set under {config!r}; shorten the key")
    if name == "kind" and not remaining and hasattr(config, "kind"):
        is_same_kind = value == getattr(config, "kind")  # noqa: B009
        family = next(base for base in type(config).__mro__ if base in KINDS)
        return config if is_same_kind else _read_dataclass(family, {"kind": value}, key[: -len(".kind")])
    name = current_name(type(config), name)
    if name not in settings_of(config):
        raise InapplicableError(f"{key}: no setting {name!r} here; {nearest(name, settings_of(config))}")
    setter = shortcuts(type(config)).get(name)
    if setter is not None and not remaining:
        return setter(config, value)
    if remaining and name not in {f.name for f in dataclasses.fields(config)}:
        parent_key = key.removesuffix("." + ".".join(remaining))
        raise ConfigError(
            f"{key}: {parent_key} can only be set as a whole; write it as JSON, with its kind: "
            f'{parent_key}={{"kind": ..., "{remaining[0]}": {json.dumps(value)}}}'
        )
    if remaining:
        return dataclasses.replace(config, **{name: _replace(getattr(config, name), remaining, value, key)})
    hint = _hints(type(config))[name]
    return dataclasses.replace(config, **{name: _read(hint, value, key)})
