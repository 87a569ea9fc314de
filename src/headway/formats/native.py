"""headway's own model file: model.safetensors with the configuration in its header; and memory checks before a model is
built from a file.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.utils import swap_tensors

from headway.config import from_dict, to_dict
from headway.errors import ConfigError, UserError, nearest
from headway.formats.deferred import DeferredTensor, SequentialReader, is_deferring
from headway.formats.stored_tensors import StoredTensors, rank_files
from headway.formats.tensorfile import TensorFile, write_tensors
from headway.io.json_files import parse_json
from headway.io.machine_memory import check_free_memory
from headway.nn.models import ModelConfig, outline
from headway.nn.models.embeds import TokenEmbed
from headway.nn.parts.projection import Projection

if TYPE_CHECKING:
    from headway.formats.settings import Settings
    from headway.formats.tensor_rules import Family


_DEPTH_SETTINGS = ("num_hidden_layers", "num_layers", "num_decoder_layers", "encoder_layers", "decoder_layers")
_DEPTH_SETTINGS += ("n_encoder_layers", "n_decoder_layers", "n_vae_encoder_layers")
_DEPTH_SETTINGS += ("n_layer", "n_layers")  # settings for the number of layers
_EXPERT_SETTINGS, _MAX_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts"), 1024
_MAX_SIZE = (1 << 31) - 1  # of a vector, or positions: kernels and files have 32-bit numbers
_MAX_PARAMETERS_PER_BYTE = 6  # maximum parameters per byte in a file; IQ1_S of GGUF packs 5.12
_BUILD_ERRORS = (ArithmeticError, LookupError, TypeError, ValueError, AttributeError, RuntimeError)


def read_config(family: Family, settings: Settings, names: Collection[str], max_layers: int = 0) -> ModelConfig:
    """Return the configuration that a file's settings describe, with `names` of its tensors. UserError if settings are
    invalid (such as 0 heads) or ask for more than `max_layers` (0: as many as there are names).
    """
    tensors = max_layers or len(names)
    towers = (part for part in settings.values.values() if isinstance(part, Mapping))  # of a model with several towers
    for values in (settings.values, *towers):
        for name in (*_DEPTH_SETTINGS, *_EXPERT_SETTINGS):
            count, max_count = values.get(name), _MAX_EXPERTS if name in _EXPERT_SETTINGS else tensors
            if isinstance(count, int) and count < 1 and name in _DEPTH_SETTINGS:
                raise UserError(f"{settings.source}: {name} is {count}; it should be at least 1; get the file again")
            if isinstance(count, int) and count > max_count:
                raise UserError(
                    f"{settings.source}: {name} is {count}, too many for the {tensors} tensors in the file; "
                    "the settings do not match the weights"
                )
    try:
        config: Any = family.read(settings, names)
    except (*_BUILD_ERRORS, ConfigError) as error:
        raise UserError(_mismatch_message(settings.source, family.name, error)) from error
    for part in (config, *(getattr(config, name, None) for name in ("encoder", "decoder", "left", "right", "tower"))):
        for name, size in (("hidden size", getattr(part, "width", None)), ("context", getattr(part, "context", None))):
            if size is not None and not 1 <= size <= _MAX_SIZE:
                raise UserError(f"{settings.source}: the {name} is {size}; it should be 1 to {_MAX_SIZE}")
    return config


def uninitialized_model(
    config: ModelConfig, file_bytes: int, source: str, dtype: torch.dtype | None = None
) -> nn.Module:
    """Build the model of `config` without allocating weights, for a file of `file_bytes` to fill in `dtype` (None: as
    stored).

    UserError if the file cannot contain that many parameters, or if they do not fit into free memory. Within
    `deferred_weights` they need none.
    """
    try:
        model = outline(config)
        # The numbers that a file stores; tied weights count once.
        tensors = {id(tensor): tensor.numel() for tensor in model.state_dict(keep_vars=True).values()}
        needed = sum(tensors.values())
        if needed <= file_bytes * _MAX_PARAMETERS_PER_BYTE:
            if is_deferring():
                return model
            remedy = "use a machine with more memory, or a smaller model"
            if dtype == torch.float32:
                remedy = (
                    "load it in half the memory with headway.formats.open.open_model(path, torch.bfloat16), or "
                    + remedy
                )
            check_free_memory(
                f"{source}",
                {"weights": file_bytes if dtype is None else needed * dtype.itemsize},
                torch.device("cpu"),
                remedy,
            )
            return model
    except (*_BUILD_ERRORS, ConfigError) as error:
        raise UserError(_mismatch_message(source, "model", error)) from error
    raise UserError(
        f"{source}: the configuration needs {needed} parameters, more than {file_bytes} bytes can hold; "
        "the settings do not match the weights"
    )


def _mismatch_message(source: str, name: str, error: Exception) -> str:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return f"{source}: the settings do not describe a valid {name} ({reason}); get the file again"


FILE = "model.safetensors"
MODEL_PREFIX = "model."  # of the model's tensors in the files of several processes
QUANTISED = "quantized.safetensors"  # replaces FILE in folders written by headway.engine.packed_weights
Weights = Literal["fp32", "int8", "int4"]  # number formats of a file
LoadedWeights = Literal["fp32", "bf16", "int8", "int4"]  # number formats of a model in memory
VERSION = "1"
_MIN_BLOCK_LIMIT, _BLOCKS_PER_TENSOR = 1000, 4  # more than any model has: most blocks have ten tensors each


def save_model(model: nn.Module, config: ModelConfig, directory: Path, notes: Mapping[str, str] | None = None) -> None:
    """Write `directory`/model.safetensors atomically, with `notes` in its header. Tied weights are saved once, under
    their first name.
    """
    save_tensors(dict(named_tensors(model)), config, directory, notes)


def save_tensors(
    tensors: Mapping[str, Tensor], config: ModelConfig, directory: Path, notes: Mapping[str, str] | None = None
) -> None:
    """Like `save_model`, for the given tensors."""
    write_tensors(directory / FILE, tensors, {**(notes or {}), **header(config)})


def header(config: ModelConfig) -> dict[str, str]:
    """The metadata of a native file."""
    return {"format": "headway", "version": VERSION, "config": json.dumps(to_dict(config))}


def load_model(directory: Path, device: torch.device | str = "cpu", target: nn.Module | None = None) -> nn.Module:
    """Load the model saved in `directory`, in evaluation mode. On a CPU the weights are memory-mapped and read on use.
    If `target` is an unallocated model of the same configuration, the weights are loaded into it.
    """
    path = Path(directory) / FILE
    stored, config = read_model(path)
    model = target
    if model is None or model.config != config:
        model = uninitialized_model(config, stored.size, stored.source)
    load_tensors(model, _tensors(stored), Path(stored.source))
    return model.to(device).eval()


def _tensors(stored: StoredTensors) -> dict[str, Tensor]:
    """Return the memory-mapped tensors by name."""
    if not is_deferring():
        return dict(stored)
    reader = SequentialReader(stored.done)
    return {
        name: DeferredTensor(
            tensor.shape, tensor.dtype, partial(reader.read, (name,), partial(stored.__getitem__, name))
        )
        for name, tensor in stored.tensors.items()
    }


def exists(directory: Path) -> bool:
    """Whether a folder has a native model, in one file or, in a checkpoint, in those of several processes."""
    return (directory / FILE).is_file() or bool(rank_files(directory))


def read_model(path: Path) -> tuple[StoredTensors, ModelConfig]:
    """Return the tensors and the configuration of a native model file or, if it does not exist, of the files of several
    processes in its folder.
    """
    if not exists(path.parent):
        raise UserError(f"{path} does not exist; pass a run or model folder that contains {FILE}")
    stored = StoredTensors.open(path, MODEL_PREFIX, "restore it from a copy")
    source, metadata = stored.source, stored.metadata
    if metadata.get("format") != "headway":
        raise UserError(f"{source} has format {metadata.get('format')!r}, not 'headway'; add its config.json")
    if metadata.get("version") != VERSION:
        version = metadata.get("version")
        raise UserError(
            f"{source} has version {version}, but headway reads {VERSION}; install the version that wrote it"
        )
    return stored, config_of(metadata, Path(source), len(stored))


def native_config(directory: Path) -> ModelConfig:
    """Return the configuration of the model in a folder."""
    return read_model(directory / FILE)[1]


def quantised_config(directory: Path) -> ModelConfig:
    """Return the configuration of the quantized model in a folder."""
    file = TensorFile(directory / QUANTISED, "quantize the model again")
    return config_of(file.metadata, directory / QUANTISED, len(file.names()))


def quantised_formats(directory: Path) -> dict[str, Weights]:
    """Return the number formats of the quantised matrices in a folder by name; others are in fp32."""
    file, ending = TensorFile(directory / QUANTISED, "quantize the model again"), ".codes"
    return {
        name.removesuffix(ending): "int4" if file.get(name).dtype == torch.uint8 else "int8"
        for name in file.names()
        if name.endswith(ending)
    }


def config_of(metadata: dict[str, str], path: Path, tensors: int) -> ModelConfig:
    """Parse the configuration in the header of a file with this many tensors. UserError if it is missing or does not
    fit.
    """
    try:
        config_data = parse_json(metadata.get("config", ""))
        blocks = _count_blocks(config_data)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} has no configuration in its header ({error}); restore it from a copy") from None
    if blocks > _MIN_BLOCK_LIMIT + _BLOCKS_PER_TENSOR * tensors:
        raise UserError(f"{path} declares {blocks:,} blocks but has {tensors:,} tensors; restore it from a copy")
    return from_dict(ModelConfig, config_data, f"{path}: model")


def _count_blocks(config_data: Any) -> int:
    """Count the blocks in all stacks of a serialised configuration."""
    if isinstance(config_data, dict):
        return sum(
            len(v) if k == "blocks" and isinstance(v, list) else _count_blocks(v) for k, v in config_data.items()
        )
    return 0


def load_tensors(model: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    """Load `tensors` into the model."""
    model_tensors = dict(named_tensors(model))
    check_tensors(model_tensors, tensors, path)
    for name, model_tensor in model_tensors.items():
        replace_tensor(model_tensor, tensors[name].to(model_tensor.dtype))


def replace_tensor(model_tensor: Tensor, tensor: Tensor) -> None:
    """Swap `tensor` into a parameter or buffer, which may be on the meta device. The object stays the same, so ties
    hold.
    """
    new = nn.Parameter(tensor) if isinstance(model_tensor, nn.Parameter) else tensor.detach()
    vars(new).update(vars(model_tensor))  # a projection's slices
    swap_tensors(model_tensor, new)


class _Shaped(Protocol):
    @property
    def shape(self) -> torch.Size: ...


def check_tensors(model_tensors: Mapping[str, _Shaped], tensors: Mapping[str, _Shaped], path: Path) -> None:
    """Raise UserError naming the first tensor that is missing, unknown or of another shape than the model's."""
    for name in model_tensors:
        if name not in tensors:
            raise UserError(f"{path} lacks tensor {name!r}; {nearest(name, tensors)}")
    for name, tensor in tensors.items():
        if name not in model_tensors:
            raise UserError(f"{path} has tensor {name!r}, which the model lacks; {nearest(name, model_tensors)}")
        if tensor.shape != model_tensors[name].shape:
            saved, built = tuple(tensor.shape), tuple(model_tensors[name].shape)
            raise UserError(
                f"{path}: tensor {name!r} has shape {saved}, the model needs {built}; "
                "load it with the configuration it was saved with"
            )


def total_bytes(tensors: Iterable[Tensor]) -> int:
    """The bytes of the values of tensors, deferred ones included."""
    return sum(tensor.nbytes for tensor in tensors)


def named_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield parameters and saved buffers by name; tied ones once."""
    seen_ids: set[int] = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen_ids:
            seen_ids.add(id(tensor))
            yield name, tensor


def quantisable(model: nn.Module) -> dict[str, Tensor]:
    """The matrices of a model's linear layers, embedding and heads by name; tied ones once.

    Positions, norms, biases and the state matrices of recurrences are not among them.
    """
    matrices = {id(module.table) for module in model.modules() if isinstance(module, TokenEmbed)}
    matrices |= {id(module.weight) for module in model.modules() if isinstance(module, Projection)}
    return {name: tensor for name, tensor in named_tensors(model) if id(tensor) in matrices}


def replace_parameters(model: nn.Module, replacements: Mapping[int, Tensor]) -> None:
    """Replace parameters by their id, wherever the model has them, so that ties are kept."""
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if id(parameter) in replacements:
                setattr(module, name, replacements[id(parameter)])


def parameter_of(tensor: Tensor) -> nn.Parameter:
    """A parameter for inference only. In inference mode a tensor subclass cannot become a parameter."""
    with torch.inference_mode(False):
        return nn.Parameter(tensor, requires_grad=False)
