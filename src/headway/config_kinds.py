"""Classes of configuration: frozen dataclasses, some of which are kinds of a family.

A *family* is a base dataclass (MixerConfig, NormConfig, ...) whose subclasses are registered under a kind:

    @register("rms")
    @dataclass(frozen=True)
    class RMSNormConfig(NormConfig): ...

`headway.config` writes the kind next to the fields and selects the class by it, so a new mixer is one file and there is
no registry of mixers beyond the package that imports them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import Any, TypeVar

from headway.errors import ConfigError

T = TypeVar("T")
KINDS: dict[type, dict[str, type]] = {}  # the registered kinds of each family
LAZY_KINDS: dict[type, Callable[[], Mapping[str, str]]] = {}  # modules of further kinds, imported when one is used
# Whether checks wait until all settings are applied.
checks_deferred: ContextVar[bool] = ContextVar("waiting", default=False)


def family(base: type[T]) -> type[T]:
    """Declare `base` as the base class of registered kinds."""
    KINDS[base] = {}
    return base


def register(kind: str) -> Callable[[type[T]], type[T]]:
    """Register a config dataclass under `kind` in the nearest family above it."""

    def add(cls: type[T]) -> type[T]:
        base = next(b for b in cls.__mro__[1:] if b in KINDS)
        if kind in KINDS[base]:
            raise ConfigError(f"kind {kind!r} is registered twice in {base.__name__}; choose another name")
        KINDS[base][kind] = cls
        cls.kind = kind  # type: ignore[attr-defined]
        return cls

    return add


def kinds(base: type[T]) -> dict[str, type[T]]:
    """The registered kinds of a family, by name."""
    return dict(KINDS[base])


def deferred_check(cls: type[T]) -> type[T]:
    """Decorate a config whose `__post_init__` compares several settings: `override` runs that check only after it has
    applied all of them.
    """
    check = cls.__post_init__  # type: ignore[attr-defined]

    def wait_or_check(config: Any) -> None:
        if not checks_deferred.get():
            check(config)

    cls.__post_init__ = wait_or_check  # type: ignore[attr-defined]
    return cls
