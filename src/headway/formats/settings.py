"""The config.json of a published model, read with the same checks as headway's own configurations."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from headway.config import from_dict
from headway.errors import UserError, nearest
from headway.nn.parts.feedforward import ActivationName
from headway.nn.parts.positions import RotaryConfig, ScalingConfig
from headway.nn.parts.scaling import DynamicScaling, LinearScaling, Llama3Scaling, LongRopeScaling, YarnScaling

T = TypeVar("T")
_TRAINED_CONTEXT = "original_max_position_embeddings"

# Activation names in published configurations: `gelu` is exact, `gelu_new` and others the tanh approximation.
ACTIVATION_NAMES: dict[str, ActivationName] = {
    "relu": "relu",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu2": "relu_squared",
    "silu": "silu",
    "swish": "silu",
    "tanh": "tanh",
}


@dataclass(frozen=True)
class Settings:
    """The values of a config.json; `source` names their origin in messages.

    `context` is the longest sequence that the model should serve (None: the trained context). `used` collects the keys
    that were read, with `path` (such as "text_config.") in front of nested ones; all sections share it.
    """

    values: Mapping[str, Any]
    source: str
    context: int | None = None
    used: set[str] = field(default_factory=set, compare=False, repr=False)
    path: str = ""

    def _lookup(self, name: str) -> Any:
        self.used.add(self.path + name)
        return self.values.get(name)

    def __contains__(self, name: str) -> bool:
        return self._lookup(name) is not None

    def get(self, name: str, kind: type[T], default: T | None = None) -> T:
        """Return a value of a type. UserError if it is absent (or null) without a default, or has another type."""
        raw = self._lookup(name)
        if raw is None:
            if default is None:
                if name in self.values:
                    raise UserError(f"{self.source}: {name} is null; set a value, or remove it")
                remedy = nearest(name, self.values) if self.values else "get the file again"
                raise UserError(f"{self.source} lacks {name!r}; {remedy}")
            return default
        return from_dict(kind, raw, f"{self.source}: {name}")

    def positive(self, name: str) -> float:
        """Return a number above 0."""
        number = self.get(name, float)
        if not 0 < number < math.inf:
            raise UserError(f"{self.source}: {name} is {number}; it should be above 0")
        return number

    def cap(self, name: str) -> float | None:
        """Return a number above 0, or None if it is absent or null."""
        return self.positive(name) if name in self else None

    def optional(self, name: str, kind: type[T]) -> T | None:
        """Return a value of a type, or None if it is absent or null."""
        raw = self._lookup(name)
        return None if raw is None else from_dict(kind, raw, f"{self.source}: {name}")

    def first(self, names: tuple[str, ...], kind: type[T], default: T | None = None) -> T:
        """Return the value under the first of several names that is present."""
        spelling = next((name for name in names if name in self), names[0])
        return self.get(spelling, kind, default)

    def require(self, name: str, *expected: Any) -> None:
        """Raise UserError if a setting is present with a value that is not supported."""
        actual = self._lookup(name)
        if actual is not None and actual not in expected:
            known = ", ".join(map(repr, expected)) or "omitted"
            raise UserError(f"{self.source}: {name} is {actual!r:.200}, which is not supported; it may be {known}")

    def activation(self, name: str, default: str | None = None) -> ActivationName:
        """Return an activation by its published name."""
        published_name = self.get(name, str, default)
        if published_name not in ACTIVATION_NAMES:
            raise UserError(f"{self.source}: {name} is {published_name!r}; {nearest(published_name, ACTIVATION_NAMES)}")
        return ACTIVATION_NAMES[published_name]

    def part(self, name: str) -> Settings:
        """Return the settings nested below a key; empty if it is absent or null."""
        section = self._lookup(name) or {}
        if not isinstance(section, Mapping):
            raise UserError(f"{self.source}: {name} is {section!r}; it should be a mapping of settings")
        return Settings(section, f"{self.source}: {name}", self.context, self.used, f"{self.path}{name}.")

    @property
    def architecture(self) -> str:
        """Class that the file was saved from; empty if the file does not name it."""
        architectures = self.values.get("architectures") or [""]
        return str(architectures[0])

    def rotary(self, theta: float = 10000.0, fraction: float = 1.0) -> RotaryConfig:
        """Return rotary positions in the old form (rope_theta, rope_scaling), which takes precedence as in
        transformers, or in the new one (rope_parameters).

        Scaling by sequence length is built for `context`, or otherwise for the trained length.
        """
        scaling = self.part("rope_scaling")
        parameters = scaling if scaling.values else self.part("rope_parameters")
        max_positions = self.get("max_position_embeddings", int, 2048)
        original = self.get(_TRAINED_CONTEXT, int, parameters.get(_TRAINED_CONTEXT, int, max_positions))
        return self._rotary(parameters, self.get("rope_theta", float, theta), fraction, original)

    def layer_rotary(self, kind: str, theta: float, scaled: bool = True) -> RotaryConfig:
        """Return the rotary positions of a layer kind (full_attention, ...), whose parameters are nested below its
        name.

        `scaled` is whether rope_scaling applies to this kind. UserError for parameters without a kind of
        layer.
        """
        kinds = self.part("rope_parameters")
        parameters = kinds.part(kind)
        stray = [name for name, value in kinds.values.items() if not isinstance(value, Mapping) and value is not None]
        if stray:
            raise UserError(
                f"{kinds.source}: {stray[0]} belongs to no kind of layer; put it below full_attention, "
                "sliding_attention or both"
            )
        self.require("partial_rotary_factor", 1.0)  # it is read below each kind of layer
        scaling = self.part("rope_scaling")
        if scaled:
            if "type" in scaling and "rope_type" not in scaling:
                raise UserError(f"{scaling.source} names no rope_type; write rope_type instead of type")
            parameters = replace(parameters, values={**parameters.values, **scaling.values})
        original = parameters.get(_TRAINED_CONTEXT, int, self.get("max_position_embeddings", int, 2048))
        return self._rotary(parameters, theta, 1.0, original)

    def _rotary(self, parameters: Settings, theta: float, fraction: float, original: int) -> RotaryConfig:
        base = parameters.get("rope_theta", float, theta)
        part = parameters.get("partial_rotary_factor", float, self.get("partial_rotary_factor", float, fraction))
        return RotaryConfig(base, part, self._scaling(parameters, original))

    def served_positions(self, rotary: RotaryConfig) -> int:
        """Return how many positions a model with these rotary positions serves; see `rotary`."""
        if isinstance(rotary.scaling, (DynamicScaling, LongRopeScaling)) and rotary.scaling.length:
            return rotary.scaling.length
        return self.max_positions("max_position_embeddings")

    def max_positions(self, name: str) -> int:
        """Return the setting that limits the positions. UserError if `context` is longer."""
        limit = self.get(name, int)
        return self._checked_context(limit, limit)

    def _checked_context(self, default: int, limit: int) -> int:
        if self.context is not None and self.context > limit:
            raise UserError(
                f"{self.source}: a context of {self.context} exceeds the model's {limit} positions; "
                f"choose {limit} or fewer"
            )
        return max(default, self.context or default)

    def _scaling(self, parameters: Settings, original: int) -> ScalingConfig | None:
        kind = parameters.first(("rope_type", "type"), str, "default")
        if kind in ("su", "yarn") and "short_factor" in parameters:  # earlier names of longrope
            kind = "longrope"
        max_positions = self.get("max_position_embeddings", int, 2048)
        if kind == "default":
            return None
        if kind == "linear":
            return LinearScaling(parameters.get("factor", float))
        if kind == "dynamic":
            return DynamicScaling(
                parameters.get("factor", float), max_positions, max(max_positions, self.context or max_positions)
            )
        if kind == "llama3":
            low, high = parameters.get("low_freq_factor", float), parameters.get("high_freq_factor", float)
            return Llama3Scaling(parameters.get("factor", float), original, low, high)
        if kind == "yarn":
            factor = parameters.get("factor", float, max_positions / original)
            attention_factor = parameters.optional("attention_factor", float)
            scales = (parameters.optional("mscale", float), parameters.optional("mscale_all_dim", float))
            if attention_factor is None and all(scales) and factor > 1:  # DeepSeek's form
                over, under = (0.1 * (scale or 0.0) * math.log(factor) + 1.0 for scale in scales)
                attention_factor = over / under
            fast, slow = parameters.get("beta_fast", float, 32.0), parameters.get("beta_slow", float, 1.0)
            return YarnScaling(factor, original, fast, slow, attention_factor, parameters.get("truncate", bool, True))
        if kind == "longrope":  # short factors for `original` positions, unless `context` is longer
            short, long = (tuple(parameters.get(name, list[float])) for name in ("short_factor", "long_factor"))
            attention_factor, over = (
                parameters.optional("attention_factor", float),
                parameters.optional("factor", float),
            )
            if attention_factor is None and over is not None:
                attention_factor = math.sqrt(1 + math.log(max(over, 1.0)) / math.log(original))
            length = self._checked_context(original, max(max_positions, original))
            return LongRopeScaling(short, long, original, length, attention_factor, max_positions / original)
        known = ("default", "linear", "dynamic", "llama3", "yarn", "longrope")
        raise UserError(f"{parameters.source}: rope_type is {kind!r}; {nearest(kind, known)}")


# The name of each scaling, and its settings with the fields that they equal.
_ORIGINAL = {_TRAINED_CONTEXT: "original"}
_SCALINGS: dict[type, tuple[str, dict[str, str]]] = {
    LinearScaling: ("linear", {"factor": "factor"}),
    DynamicScaling: ("dynamic", {"factor": "factor"}),
    Llama3Scaling: ("llama3", {"factor": "factor", "low_freq_factor": "low", "high_freq_factor": "high", **_ORIGINAL}),
    YarnScaling: (
        "yarn",
        {name: name for name in ("factor", "truncate", "beta_fast", "beta_slow")}
        | {**_ORIGINAL, "attention_factor": "attention_factor"},
    ),
    LongRopeScaling: (
        "longrope",
        {"short_factor": "short", "long_factor": "long", **_ORIGINAL, "attention_factor": "attention_factor"},
    ),
}


def rope_parameters(rotary: RotaryConfig) -> dict[str, Any]:
    """Return the rotary position settings in the new form; the reverse of `Settings.rotary`."""
    parameters: dict[str, Any] = {"rope_type": "default", "rope_theta": rotary.theta}
    if rotary.fraction != 1.0:
        parameters["partial_rotary_factor"] = rotary.fraction
    if rotary.scaling is not None:
        parameters["rope_type"], fields = _SCALINGS[type(rotary.scaling)]
        for name, field_name in fields.items():
            value = getattr(rotary.scaling, field_name)
            parameters[name] = list(value) if isinstance(value, tuple) else value
    return {name: value for name, value in parameters.items() if value is not None}


def published_context(context: int | None, rotary: RotaryConfig) -> int | None:
    """Return max_position_embeddings; the reverse of `Settings.served_positions`."""
    scaling = rotary.scaling
    if isinstance(scaling, DynamicScaling):
        return scaling.original
    if isinstance(scaling, LongRopeScaling):
        return round((scaling.factor or 1.0) * scaling.original)
    return context


def published_activation(name: str) -> str:
    """Return the published name for one of headway's activations."""
    preferred = {"gelu_tanh": "gelu_pytorch_tanh"}
    return preferred.get(name) or next(
        published for published, activation in ACTIVATION_NAMES.items() if activation == name
    )
