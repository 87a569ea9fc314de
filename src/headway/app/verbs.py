"""The verbs as methods of models. The stub of this module has their types; `python docs/reference.py` writes it."""

from __future__ import annotations

from functools import cached_property
from inspect import Signature
from types import MethodType
from typing import Any

from headway.app.verb_table import ATTRIBUTES, REMOTE_VERBS, VERBS


class VerbMethod:
    # A verb as a method. Its signature and docstring are those of the verb's predictors, whose domains are imported
    # when somebody looks at them.

    def __init__(self, name: str) -> None:
        self.__name__ = self.__qualname__ = name

    def __get__(self, model: Any, owner: type | None = None) -> Any:
        return self._function if model is None else MethodType(self, model)

    def __call__(self, model: Any, *args: Any, **kwargs: Any) -> Any:
        return model._run_verb(self.__name__, *args, **kwargs)

    @property
    def __doc__(self) -> str | None:  # type: ignore[override]
        from headway.app.predictors import predictors

        return next(filter(None, (function.__doc__ for function in predictors(self.__name__))), None)

    @property
    def __signature__(self) -> Signature:
        from headway.app.predictors import signature

        return signature(self.__name__)

    @cached_property
    def _function(self) -> Any:
        """The method as a function, for `help` of its class."""
        function: Any = lambda model, *args, **kwargs: self(model, *args, **kwargs)  # noqa: E731
        function.__name__ = function.__qualname__ = self.__name__
        function.__doc__, function.__signature__ = self.__doc__, self.__signature__
        return function


class LocalVerbs:
    """Methods that a model's predictors implement."""


class RemoteVerbs:
    """Methods that a server runs."""


for _name in VERBS:
    if _name not in ATTRIBUTES:
        setattr(LocalVerbs, _name, VerbMethod(_name))
    if _name in REMOTE_VERBS:
        setattr(RemoteVerbs, _name, VerbMethod(_name))
