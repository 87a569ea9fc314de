"""Rest for Python's garbage collector while much is made and nothing is thrown away."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def resting() -> Iterator[None]:
    """No collection within; afterwards it goes on as before. Importing torch and building a model makes hundreds of
    thousands of objects that stay: looking through them for garbage takes a fifth of a process's start.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()
