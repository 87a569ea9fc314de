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
from headway.generate.prompts import device_of
from headway.layout import Layout
from headway.nn.kernels import is_deterministic, recorder
from headway.nn.mixers.attention import SelfAttention
from headway.nn.mixers.base import tree_map
from headway.nn.models import Decoding, Generative, Prompt
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


def _tensors(tree: Any) -> list[Tensor]:
    """The tensors of states or memories, with the positions of layouts."""
    leaves = [leaf.positions if isinstance(leaf, Layout) else leaf for leaf in tree_leaves(tree)]
    return [leaf for leaf in leaves if leaf is not None]


class DecodingGraph:
    """A decoding step over buffers of its own for tokens, positions, states and memories.

    A generation gets views of the state buffers, which are in use as long as one of these views exists.
    """

    def __init__(self, model: Generative, key: Any, ids: Int[Tensor, "B"], decoding: Decoding) -> None:
        backend: Any = torch.get_device_module(ids.device)
        self.key = key
        layouts: dict[int, Layout] = {}  # the buffers of layouts, which layers share

        def buffer_of(part: Any) -> Any:
            if not isinstance(part, Layout):
                return part.clone()
            if id(part) not in layouts:  # a copy from which nothing is derived yet
                layouts[id(part)] = part.select(torch.arange(part.batch, device=ids.device))
            return layouts[id(part)]

        self._states, self._memories = tree_map(buffer_of, decoding.states), tree_map(buffer_of, decoding.memories)
        self._ids, self._positions = ids.clone(), decoding.positions.clone()
        self._views: list[weakref.ref[Tensor]] = []
        self._copied: Any = None  # the memories that the buffers contain
        self._graph = backend.CUDAGraph()
        with backend.graph(self._graph, capture_error_mode="thread_local"):  # other threads may use the GPU meanwhile
            buffers = Decoding(self._states, self._memories, self._positions)
            self._logits, after = model.step(self._ids, buffers)
            for buffer, state in zip(_tensors(self._states), _tensors(after.states)):
                if state is not buffer:  # a recurrence returns new tensors
                    buffer.copy_(state)

    @property
    def is_free(self) -> bool:
        return all(view() is None for view in self._views)

    def has(self, decoding: Decoding) -> bool:
        """Whether the states are views of these buffers."""
        return not self.is_free and all(a() is b for a, b in zip(self._views, tree_leaves(decoding.states)))

    def step(self, ids: Int[Tensor, "B"], decoding: Decoding) -> Output:
        """The logits are valid until the next step."""
        states, memories, positions = decoding
        if not self.has(decoding):
            for buffer, state in zip(_tensors(self._states), _tensors(states)):
                buffer.copy_(state)
            states = tree_map(lambda buffer: buffer.view_as(buffer), self._states)
            self._views = [weakref.ref(view) for view in tree_leaves(states)]
        if memories is not self._copied:
            for buffer, memory in zip(_tensors(self._memories), _tensors(memories)):
                buffer.copy_(memory)
            self._copied = memories
        self._ids.copy_(ids)
        self._positions.copy_(positions)
        self._graph.replay()
        return self._logits, Decoding(states, memories, positions + 1)


class GraphedModel:
    """A model on a GPU whose decoding steps are CUDA graphs, one per number of rows and size of caches and memories.

    A step whose shapes are new is taken without a graph first, in which kernels are loaded.
    """

    def __init__(self, module: Any) -> None:
        self.module = module
        self.enabled = True  # until a step turns out to need the host
        self._graphs: list[DecodingGraph] = []  # least recent first
        self._tried: set[Any] = set()
        device = device_of(module)
        for layer in module.modules():  # constants that are sent to the device in each step otherwise
            if isinstance(layer, SelfAttention) and layer.rotary is not None:
                layer.rotary.frequencies = layer.rotary.frequencies.to(device)
            elif isinstance(layer, Alibi):
                layer.slopes = layer.slopes.to(device)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.module, name)

    def __call__(self, *inputs: Any) -> Any:
        return self.module(*inputs)

    def start(self, prompt: Prompt, capacity: int) -> Output:
        """The module's, for a capacity that more requests share."""
        return self.module.start(prompt, -(-capacity // _SLOTS) * _SLOTS)

    def step(self, ids: Int[Tensor, "B"], decoding: Decoding) -> Output:
        """The module's; the logits are valid until the next step."""
        is_plain = is_deterministic() or recorder() is not None or torch.is_autocast_enabled(ids.device.type)
        if is_plain or not self.enabled or ids.device.type == "cpu":
            return self.module.step(ids, decoding)
        parts = (decoding.states, decoding.memories)
        dense = [leaf.dense for leaf in tree_leaves(parts) if isinstance(leaf, Layout)]
        key = (len(ids), *(tuple(part.shape) for part in _tensors(parts)), *dense)
        if key not in self._tried:
            self._tried.add(key)
            with _HostTensors() as host:
                output = self.module.step(ids, decoding)
            self.enabled = not host.found
            return output
        graph = self._graph(key, ids, decoding)
        return self.module.step(ids, decoding) if graph is None else graph.step(ids, decoding)

    def _graph(self, key: Any, ids: Int[Tensor, "B"], decoding: Decoding) -> DecodingGraph | None:
        """The graph whose buffers the generation uses, otherwise a free or a new one; None if all are in use."""
        alike = [graph for graph in self._graphs if graph.key == key and (graph.is_free or graph.has(decoding))]
        graph = max(alike, key=lambda graph: graph.has(decoding), default=None)
        free = [graph for graph in self._graphs if graph.is_free]
        if graph is None and len(self._graphs) >= _MAX_GRAPHS and not free:
            return None
        if graph is None:
            if len(self._graphs) >= _MAX_GRAPHS:
                self._graphs.remove(free[0])
            try:
                graph = DecodingGraph(self.module, key, ids, decoding)
            except RuntimeError as error:  # an operation that no graph can contain
                _LOG.warning(f"decoding without CUDA graphs: {str(error).splitlines()[0]}")
                self.enabled = False
                return None
        else:
            self._graphs.remove(graph)
        self._graphs.append(graph)
        return graph
