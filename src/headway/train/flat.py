"""All trainable weights of a model in one flat tensor, and their gradients in another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

_ALIGNED = 64  # bytes: a vector register and a cache line
_TAIL = 32


class FlatParameters:
    """Moves a model's parameters into `data` and their gradients into `grads`, where the parameters stay views.

    What works on all weights (clipping, optimisers, moving averages, sums over processes) is then one operation on one
    tensor, however many parameters there are. `groups` are names; each group lies in one piece, `segments[i]`, in the
    order given. `tail` is room after the gradients for figures that are summed over processes together with them.
    """

    def __init__(self, model: nn.Module, groups: Sequence[Sequence[str]]) -> None:
        parameters = dict(model.named_parameters())
        self.names = [name for group in groups for name in group]
        first = parameters[self.names[0]]
        step = _ALIGNED // first.element_size()
        self.offsets: dict[str, int] = {}
        self.shapes = {name: parameters[name].shape for name in self.names}
        self.segments: list[slice] = []
        end = 0
        for group in groups:
            start = end
            for name in group:
                self.offsets[name] = end
                end += -(-parameters[name].numel() // step) * step
            self.segments.append(slice(start, end))
        self.data = first.new_zeros(end)
        self._grads = first.new_zeros(end + _TAIL)
        self.grads = self._grads[:end]
        self.tail = self._grads[end:]
        self._move(parameters)

    @torch.no_grad()
    def _move(self, parameters: dict[str, nn.Parameter]) -> None:
        gradients = dict(self.views(self.grads))
        for name, place in self.views(self.data):
            place.copy_(parameters[name])
            parameters[name].data = place
            parameters[name].grad = gradients[name]

    def views(self, flat: Float[Tensor, "N"]) -> Iterator[tuple[str, Tensor]]:
        """The parts of a tensor laid out as `data`, by parameter name and in its shape."""
        for name in self.names:
            yield name, self.view(flat, name)

    def view(self, flat: Float[Tensor, "N"], name: str) -> Tensor:
        shape, start = self.shapes[name], self.offsets[name]
        return flat[start : start + shape.numel()].view(shape)

    @property
    def grads_and_tail(self) -> Float[Tensor, "M"]:
        return self._grads

    def zero_grads(self) -> None:
        """Zero gradients and tail."""
        self._grads.zero_()
