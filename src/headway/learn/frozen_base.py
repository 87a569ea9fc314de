"""The quantised weights under an adapter (QLoRA, Dettmers et al. 2023): made, stored with the run, and loaded again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from headway.errors import ConfigError
from headway.formats.deferred import computed
from headway.formats.native import Weights as Format
from headway.formats.native import named_tensors, parameter_of, replace_parameters
from headway.learn.parallel.rows import SHAPE
from headway.nn.models import ModelConfig, outline
from headway.nn.parts.init import after_sampling

# headway.engine imports LLVM, which adapters on fp32 weights do not need, so its functions are imported on use.


def check_frozen_base(dtype: Format, device: torch.device, shards: int, compiles: bool) -> None:
    """Raise ConfigError if weights in `dtype` cannot be trained on `device`, in `shards`, or by compiled code."""
    if dtype == "fp32":
        return
    if device.type != "cpu":
        raise ConfigError(f"adapter.base={dtype} is computed on a CPU, not on {device}; use device=cpu or fp32")
    if shards > 1:
        raise ConfigError(f"adapter.base={dtype} cannot be split over {shards} processes; set parallel.shard=1")
    if compiles:
        raise ConfigError(f"adapter.base={dtype} cannot be compiled by torch; set train.compile=false")


@contextmanager
def released_matrices(config: ModelConfig, formats: Mapping[str, Format]) -> Iterator[None]:
    """Inside the context, a model of `config` that is built releases the matrices in `formats` as soon as they are
    sampled, except those with the shape of another tensor. They keep their `whole_shape`.
    """
    if not formats:  # the hook of another context stays in place
        yield
        return
    shapes = {name: tensor.shape for name, tensor in named_tensors(outline(config))}
    released = {shapes[name] for name in formats} - {shape for name, shape in shapes.items() if name not in formats}

    def release(parameter: nn.Parameter) -> None:
        if parameter.shape in released:
            setattr(parameter, SHAPE, parameter.shape)
            parameter.data = parameter.data.new_empty(0, *parameter.shape[1:])

    with after_sampling(release):
        yield


@torch.no_grad()
def quantise_matrices(model: nn.Module, values: Mapping[str, tuple[Tensor, Format]]) -> None:
    """Replace the matrices of `model` that are named in `values` by those values, each in its number format. Deferred
    values are read one by one. Raises UserError for NaN or infinity.
    """
    from headway.engine.frozen_weights import FrozenTensor
    from headway.engine.packed_weights import pack

    tensors = dict(named_tensors(model))
    for name, (value, dtype) in values.items():
        packed = parameter_of(FrozenTensor(pack(computed(value.detach()), dtype, name)))
        replace_parameters(model, {id(tensors[name]): packed})


def load_frozen(directory: Path) -> nn.Module:
    """The model with quantised matrices that a run stored in `directory`, mapped from its file, for training."""
    from headway.engine.frozen_weights import FrozenTensor
    from headway.engine.packed_weights import PackedTensor, load_quantised

    model = load_quantised(directory)
    packed = [parameter for parameter in model.parameters() if isinstance(parameter, PackedTensor)]
    replace_parameters(model, {id(weight): parameter_of(FrozenTensor(weight.packed)) for weight in packed})
    return model
