"""A device without hardware, whose tensors are computed on the CPU: it counts operations that wait for the device.

Its tensors have a device type of their own ("sim"), so programs take their paths for accelerators, and an operation
on tensors of two devices is an error, as on a GPU. The values are those of the CPU's kernels.
"""

from __future__ import annotations

import math
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any, Self
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend
from torch.utils.weak import WeakTensorKeyDictionary

aten = torch.ops.aten
SOURCE = str(Path(__file__).parents[1] / "src")

# Operations whose result's shape or value the host must know, by what CUDA's kernels do.
WAITING = {
    aten._local_scalar_dense.default,
    aten.is_nonzero.default,
    aten.equal.default,
    aten.nonzero.default,
    aten.argwhere.default,
    aten.masked_select.default,
    aten.bincount.default,
    aten._unique2.default,
    aten.unique_dim.default,
    aten.unique_consecutive.default,
    aten.linalg_cholesky_ex.default,
    aten._linalg_solve_ex.default,
    aten.linalg_inv_ex.default,
    aten.multinomial.default,
    aten.embedding_renorm_.default,
}


_PINNED = WeakTensorKeyDictionary()  # tensors in pinned memory
_LIBRARIES: list[torch.library.Library] = []  # what is registered lasts as long as its library


class SimulatedGraph:
    """Recorded operations. Their replay reads and writes the tensors of the recording, and nothing else."""

    replays = 0  # of all graphs
    recording: SimulatedGraph | None = None

    def __init__(self) -> None:
        self._operations: list[tuple[Any, Any, Any, Any]] = []

    def add(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        self._operations.append((func, args, kwargs, result))

    def replay(self) -> None:
        SimulatedGraph.replays += 1
        for func, args, kwargs, result in self._operations:
            found = func(*args, **kwargs)
            for old, new in zip(tree_leaves(result), tree_leaves(found)):
                if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():  # neither a view nor in place
                    old.copy_(new)


@contextmanager
def _record(graph: SimulatedGraph, capture_error_mode: str) -> Iterator[None]:
    SimulatedGraph.recording = graph
    try:
        yield
    finally:
        SimulatedGraph.recording = None


class _Module:
    """What torch asks of the module of a device."""

    CUDAGraph = SimulatedGraph
    graph = staticmethod(_record)

    @staticmethod
    def get_amp_supported_dtype() -> list[torch.dtype]:
        return [torch.bfloat16]

    @staticmethod
    def is_initialized() -> bool:
        return True

    @staticmethod
    def is_available() -> bool:
        return False

    @staticmethod
    def current_device() -> int:
        return 0

    @staticmethod
    def _is_in_bad_fork() -> bool:
        return False

    @staticmethod
    def manual_seed_all(seed: int) -> None:
        pass

    @staticmethod
    def device_count() -> int:
        return 1


@cache
def device() -> torch.device:
    """The device, which is registered once per process."""
    _setup_privateuseone_for_python_backend("sim", backend_module=_Module())
    library = torch.library.Library("_", "IMPL", "AutocastPrivateUse1")
    library.fallback(torch.library.fallthrough_kernel)
    _LIBRARIES.append(library)
    return torch.device("sim", 0)


class SimulatedTensor(Tensor):
    """A tensor of the simulated device, with its values in `host`."""

    host: Tensor

    @staticmethod
    def __new__(cls, host: Tensor) -> SimulatedTensor:
        wrapper = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, host.shape, strides=host.stride(), storage_offset=host.storage_offset(), dtype=host.dtype,
            device=device(),
        )  # fmt: skip
        wrapper.host = host
        return wrapper

    def __repr__(self, **_: Any) -> str:
        return f"simulated {self.host!r}"

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(not issubclass(kind, (cls, torch.nn.Parameter)) for kind in types):
            return NotImplemented  # a weight of another class has operations of its own
        if func is Tensor.data.__set__:  # type: ignore[attr-defined]
            args[0].host = args[1].host
        if func is Tensor.tolist:
            return args[0].detach().to("cpu").tolist()
        with torch._C.DisableTorchFunctionSubclass():
            if func is F.scaled_dot_product_attention:
                return _fused_attention(*args, **kwargs or {})
            result = func(*args, **kwargs or {})
        return result

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _compute(func, args, kwargs or {}, lambda name: None)


def _compute(func: Any, args: Any, kwargs: dict[str, Any], count: Callable[[str], None]) -> Any:
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    simulated = [x for x in tensors if isinstance(x, SimulatedTensor)]
    wanted = kwargs.get("device")
    to_device = wanted is not None and torch.device(wanted).type == "sim"
    if func is aten.is_pinned.default:
        return args[0] in _PINNED
    if func is aten._pin_memory.default:
        pinned = args[0].clone()
        _PINNED[pinned] = True
        return pinned
    if not simulated and not to_device:
        return func(*args, **kwargs)
    if func in (aten._to_copy.default, aten.copy_.default):
        return _copy(func, args, kwargs, count)
    graph = SimulatedGraph.recording
    waits = func in WAITING and simulated
    if func in (aten.index.Tensor, aten.index_put_.default, aten.index_put.default, aten._index_put_impl_.default):
        masks = [x for x in args[1] if x is not None and x.dtype in (torch.bool, torch.uint8)]
        fills = func is not aten.index.Tensor and args[2].numel() == 1 and not (len(args) > 3 and args[3])
        waits = bool(masks) and not (fills and len(args[1]) == 1)
        if any(not isinstance(x, SimulatedTensor) for x in args[1] if x is not None):
            waits = True  # indices of the host are copied
    if func is aten.repeat_interleave.Tensor and kwargs.get("output_size") is None:
        waits = True
    if waits and graph is not None:
        raise RuntimeError(f"{func} waits, which is not permitted when a graph is recorded")
    if waits:
        count(str(func))
    for x in tensors:
        if not isinstance(x, SimulatedTensor) and x.dim() and func not in (aten.index.Tensor, aten.index_put_.default):
            raise RuntimeError(f"{func}: tensors are on two devices, {device()} and {x.device}")
    if func is aten.mm.dtype:  # which the CPU lacks, as the next two, whose layout is the CPU's here
        func, args = aten.mm.default, [x.to(args[2]) for x in args[:2]]
    if func is aten._convert_weight_to_int4pack.default:
        codes = torch.stack([args[0].host >> 4, args[0].host & 15], -1).flatten(1).int()  # two columns per byte
        return SimulatedTensor(aten._convert_weight_to_int4pack_for_cpu(codes, args[1]))
    if func is aten._weight_int4pack_mm.default:
        func = aten._weight_int4pack_mm_for_cpu.default
    unwrapped = tree_map(lambda x: x.host if isinstance(x, SimulatedTensor) else x, args)
    settings = {k: v.host if isinstance(v, SimulatedTensor) else v for k, v in kwargs.items()}
    if wanted is not None:
        settings["device"] = torch.device("cpu") if to_device else wanted
    settings.pop("pin_memory", None)
    kernel = _KERNELS.get(func, func)
    result = kernel(*unwrapped, **settings)
    if graph is not None:
        graph.add(kernel, unwrapped, settings, result)
    # In inference mode, a view of a tensor from outside is not an inference tensor.
    is_outside = torch.is_inference_mode_enabled() and func.is_view and not args[0].is_inference()
    with torch.inference_mode(False) if is_outside else nullcontext():
        wrapped = tree_map(lambda x: SimulatedTensor(x) if isinstance(x, Tensor) else x, result)
        return return_and_correct_aliasing(func, args, kwargs, wrapped)


def _copy(func: Any, args: Any, kwargs: dict[str, Any], count: Callable[[str], None]) -> Any:
    """A copy between devices waits, except for one that is told not to: to the device only from pinned memory."""
    source = args[1] if func is aten.copy_.default else args[0]
    target = args[0] if func is aten.copy_.default else None
    is_simulated, wanted = isinstance(source, SimulatedTensor), kwargs.get("device")
    if target is not None:
        becomes = isinstance(target, SimulatedTensor)
    else:
        becomes = is_simulated if wanted is None else torch.device(wanted).type == "sim"
    told = kwargs.get("non_blocking", False) or (target is not None and len(args) > 2 and args[2])
    graph = SimulatedGraph.recording
    if graph is not None and becomes != is_simulated and source.dim():
        raise RuntimeError(f"{func} between devices is not permitted when a graph is recorded")
    if (
        becomes
        and not is_simulated
        and not (told and source in _PINNED)
        and not (target is not None and not source.dim())
    ):
        count(f"{func} to the device")
    elif is_simulated and not becomes and not told:
        count(f"{func} from the device")
    values = source.host if is_simulated else source
    if target is not None:
        host = target.host if isinstance(target, SimulatedTensor) else target
        host.copy_(values)
        if graph is not None:
            graph.add(aten.copy_.default, (host, values), {}, host)
        return target
    settings = {k: v for k, v in kwargs.items() if k not in ("device", "non_blocking", "pin_memory")}
    copied = func(values, **settings)
    if graph is not None:
        graph.add(func, (values,), settings, copied)
    return SimulatedTensor(copied) if becomes else copied


def _fused_attention(
    q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0, is_causal: bool = False,
    scale: float | None = None, enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    """torch chooses a fused kernel only for devices that it knows."""
    assert enable_gqa or q.shape[1] == k.shape[1]
    kernel = aten._scaled_dot_product_fused_attention_overrideable
    return kernel(q, k, v, attn_mask, dropout_p, is_causal, scale=scale)[0]


def _weights(
    q: Tensor, k: Tensor, bias: Tensor | None, p: float, is_causal: bool, scale: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Attention weights [B, H, T, S] before dropout, and what dropout multiplies them by."""
    scores = (q @ k.mT) * scale
    if is_causal:
        scores = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), -math.inf)
    elif bias is not None:
        scores = scores.masked_fill(~bias, -math.inf) if bias.dtype == torch.bool else scores + bias
    kept = torch.ones_like(scores) if not p else torch.empty_like(scores).bernoulli_(1 - p, generator=generator)
    return scores.softmax(-1), kept / (1 - p)


def _attention(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None, p: float = 0.0, is_causal: bool = False,
    _: bool = False, *, scale: float | None = None,
) -> tuple[Any, ...]:  # fmt: skip
    """A fused kernel of attention: scores are no tensors of the device. Its seed is the state of the generator."""
    state, groups = torch.get_rng_state(), q.shape[1] // k.shape[1]
    keys, values = (x.repeat_interleave(groups, dim=1).float() for x in (k, v))
    weights, kept = _weights(q.float(), keys, bias, p, is_causal, scale or q.shape[-1] ** -0.5, torch.default_generator)
    empty = q.new_zeros(0)
    sums = q.new_zeros(q.shape[:3])
    return ((weights * kept) @ values).to(q.dtype), sums, empty, empty, q.shape[2], k.shape[2], state, empty, empty


def _attention_backward(
    gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, needed: list[bool], *saved: Any,
    scale: float | None = None,
) -> tuple[Tensor | None, ...]:  # fmt: skip
    *_, p, is_causal, state, _ = saved
    generator, groups, factor = torch.Generator(), q.shape[1] // k.shape[1], scale or q.shape[-1] ** -0.5
    generator.set_state(state)
    keys, values = (x.repeat_interleave(groups, dim=1) for x in (k, v))
    weights, kept = _weights(q, keys, bias, p, is_causal, factor, generator)
    dropped = gradient @ values.mT * kept
    scores = weights * (dropped - (dropped * weights).sum(-1, keepdim=True))
    dk, dv = scores.mT @ q * factor, (weights * kept).mT @ gradient
    dk, dv = (x.unflatten(1, (k.shape[1], groups)).sum(2) for x in (dk, dv))
    return scores @ keys * factor, dk, dv, scores.sum_to_size(bias.shape) if bias is not None and needed[3] else None


_KERNELS: Any = {
    aten._scaled_dot_product_fused_attention_overrideable.default: _attention,
    aten._scaled_dot_product_fused_attention_overrideable_backward.default: _attention_backward,
}


class _Generator(torch.Generator):
    """A generator of the device is one of the CPU."""

    def __new__(cls, device: torch.device | str = "cpu") -> _Generator:
        return super().__new__(cls)


class Waits(TorchDispatchMode):
    """Counts the operations of a block that wait for the device, by operation and line of headway."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __enter__(self) -> Self:
        device()
        self._lifted = torch._C._only_lift_cpu_tensors()
        torch._C._set_only_lift_cpu_tensors(True)  # otherwise torch.tensor(..., device=...) is not dispatched
        self._patch = patch.object(torch, "Generator", _Generator)
        self._patch.start()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._patch.stop()
        torch._C._set_only_lift_cpu_tensors(self._lifted)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"):
            TorchDispatchMode.__enter__(self)  # in inference mode, composed operations arrive whole
            try:
                result = func.decompose(*args, **kwargs or {})
            finally:
                TorchDispatchMode.__exit__(self, None, None, None)
            if result is not NotImplemented:
                return result
        return _compute(func, args, kwargs or {}, self._count)

    def _count(self, name: str) -> None:
        frames = [frame for frame in traceback.extract_stack() if frame.filename.startswith(SOURCE)]
        place = f"{frames[-1].filename.removeprefix(SOURCE)}:{frames[-1].lineno}" if frames else "outside"
        self.counts[f"{name} at {place}"] += 1

    def clear(self) -> None:
        self.counts.clear()

    @property
    def total(self) -> int:
        return self.counts.total()
