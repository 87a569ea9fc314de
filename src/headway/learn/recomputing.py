"""Activations that are recomputed in the backward pass instead of stored (Chen et al. 2016, sublinear memory cost)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import copy_context
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from headway.nn.models import Block

P = ParamSpec("P")
R = TypeVar("R")
_METHODS = ("forward", "encode")  # of a block


def recomputed(function: Callable[P, R], generator: torch.Generator | None) -> Callable[P, R]:
    """`function` with its activations recomputed, with the same dropout, whose samples come from `generator`."""

    @contextmanager
    def rewound(state: Tensor | None) -> Iterator[None]:
        if generator is None or state is None:
            yield
            return
        current = generator.get_state()
        generator.set_state(state)
        try:
            yield
        finally:
            generator.set_state(current)

    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        if not torch.is_grad_enabled():
            return function(*args, **kwargs)
        state, context = None if generator is None else generator.get_state(), copy_context()

        def in_context(*args: P.args, **kwargs: P.kwargs) -> R:  # the backward pass of a GPU has a thread of its own
            return context.copy().run(function, *args, **kwargs)

        options: Any = {"context_fn": lambda: (nullcontext(), rewound(state)), "preserve_rng_state": False}
        return checkpoint(in_context, *args, use_reentrant=False, **options, **kwargs)  # type: ignore[return-value]

    return run


def prepare_blocks(model: nn.Module, every: int, generator: torch.Generator, compiles: bool) -> None:
    """Recompute every `every`-th block of `model`, the first included; none for 0. With `compiles`, compile each block
    by itself, because hooks around blocks break the graph of a whole model.
    """
    blocks = [module for module in model.modules() if isinstance(module, Block)]
    for index, block in enumerate(blocks):
        for method in _METHODS:
            function = getattr(block, method)
            function = torch.compile(function) if compiles else function
            if every and index % every == 0:
                function = recomputed(function, generator)
            if function != getattr(block, method):
                setattr(block, method, function)
