"""Decoding steps as CUDA graphs: the kernels of a step are recorded once and then started by one call."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from headway.errors import logger
from headway.nn.kernels import is_deterministic
from headway.nn.mixers.attention import SelfAttention
from headway.nn.mixers.base import Mixer
from headway.nn.models import Decoding, Transformer
from headway.nn.models.score_biases import Alibi

_SLOTS = 256  # the size of a cache is a multiple, so that requests of other lengths use the same graph
_MAX_GRAPHS = 4  # graphs in memory, each with a cache
_LOG = logger(__name__)

Output = tuple[Float[Tensor, "B C"], Decoding]


class _HostTensors(TorchDispatchMode):
    """Notices operations on tensors of the host: a graph would read them from memory that others use by then."""

    found = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        self.found |= any(tensor.device.type == "cpu" and tensor.dim() for tensor in tensors)
        return func(*args, **(kwargs or {}))


class DecodingGraph:
    """A decoding step over fixed buffers for tokens, positions and states."""

    def __init__(self, model: Transformer, ids: Int[Tensor, "B"], decoding: Decoding) -> None:
        backend: Any = torch.get_device_module(ids.device)
        self.states = decoding.states  # from now on, the graph's
        self._ids, self._positions = ids.clone(), decoding.positions.clone()
        self._graph = backend.CUDAGraph()
        with backend.graph(self._graph, capture_error_mode="thread_local"):  # other threads may use the GPU meanwhile
            self._logits, _ = model.step(self._ids, Decoding(self.states, None, self._positions))

    def step(self, ids: Int[Tensor, "B"], decoding: Decoding) -> Output:
        """The logits are valid until the next step."""
        if decoding.states is not self.states:
            for buffer, state in zip(tree_leaves(self.states), tree_leaves(decoding.states)):
                buffer.copy_(state)
        self._ids.copy_(ids)
        self._positions.copy_(decoding.positions)
        self._graph.replay()
        return self._logits, Decoding(self.states, None, decoding.positions + 1)


class DecodingGraphs:
    """The graphs of a model's steps, one per number of rows and size of the caches.

    A batch whose shape is new takes one step without a graph first, in which kernels are loaded.
    """

    def __init__(self, model: Transformer) -> None:
        self._model = model
        self._graphs: dict[Any, tuple[DecodingGraph, weakref.ref[Any]]] = {}  # with their batches; least recent first
        self._tried: set[Any] = set()
        self.enabled = True  # until a step turns out to need the host
        device = next(model.parameters()).device
        for layer in model.modules():  # constants that are sent to the device in each step otherwise
            if isinstance(layer, SelfAttention) and layer.rotary is not None:
                layer.rotary.frequencies = layer.rotary.frequencies.to(device)
            elif isinstance(layer, Alibi):
                layer.slopes = layer.slopes.to(device)

    def capacity(self, tokens: int) -> int:
        """The size of a cache for this many tokens."""
        return -(-tokens // _SLOTS) * _SLOTS

    def step(self, batch: Any, ids: Int[Tensor, "B"]) -> Output:
        """The step of `batch`, which owns the buffers of its graph as long as it lives."""
        decoding: Decoding = batch.decoding
        key = (len(ids), *(tuple(leaf.shape) for leaf in tree_leaves(decoding.states)))
        if not self.enabled or is_deterministic():
            return self._model.step(ids, decoding)
        if key not in self._tried:
            self._tried.add(key)
            with _HostTensors() as host:
                output = self._model.step(ids, decoding)
            self.enabled = not host.found
            return output
        graph, owner = self._graphs.pop(key, (None, None))
        if graph is None or (owner is not None and owner() not in (None, batch)):
            try:
                graph = DecodingGraph(self._model, ids, decoding)
            except RuntimeError as error:  # an operation that no graph can contain
                _LOG.warning(f"decoding without CUDA graphs: {str(error).splitlines()[0]}")
                self.enabled = False
                return self._model.step(ids, decoding)
        self._graphs[key] = graph, weakref.ref(batch)
        while len(self._graphs) > _MAX_GRAPHS:
            del self._graphs[next(iter(self._graphs))]
        return graph.step(ids, decoding)


def decoding_graphs(model: Any) -> DecodingGraphs | None:
    """Graphs for a decoder on a GPU whose layers are attention; None for other models and devices."""
    if not isinstance(model, Transformer):
        return None
    device = next(model.parameters()).device
    if device.type == "cpu" or not hasattr(torch.get_device_module(device), "CUDAGraph"):
        return None
    mixers = [layer for layer in model.modules() if isinstance(layer, Mixer)]
    return DecodingGraphs(model) if all(isinstance(layer, SelfAttention) for layer in mixers) else None
