"""Settings of kernels that hold inside a context."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Generic, TypeVar

import torch

T = TypeVar("T")


class ContextSetting(Generic[T]):
    """A value that holds inside the context `use(value)`, in the thread or task that entered it.

    torch.compile cannot trace a ContextVar. Traced code reads `latest`, which the thread that trains has set; it is
    compiled again when the value changes.
    """

    def __init__(self, name: str, default: T) -> None:
        self._variable, self.latest = ContextVar(name, default=default), default

    def get(self) -> T:
        return self.latest if torch.compiler.is_dynamo_compiling() else self._variable.get()

    @contextmanager
    def use(self, value: T) -> Iterator[None]:
        token, before = self._variable.set(value), self.latest
        self.latest = value
        try:
            yield
        finally:
            self._variable.reset(token)
            self.latest = before
