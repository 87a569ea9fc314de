"""Low-rank adapters in PEFT's layout, so that PEFT users can apply the folder to the published model."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from headway.errors import UserError, logger, nearest
from headway.formats.export_check import ExportCheck, compare, joined
from headway.formats.families import families
from headway.formats.native import named_tensors
from headway.formats.published import can_express
from headway.formats.tensor_rules import Family, TensorRule, Transposed
from headway.formats.tensorfile import read_tensors, write_tensors
from headway.formats.torch_file import TorchFile
from headway.formats.weights import slice_sizes
from headway.io.durable import atomic_write, read_json, write_json
from headway.nn.models import ModelConfig
from headway.nn.parts.projection import Projection, slice_names

CONFIG, WEIGHTS, TORCH_WEIGHTS = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
_PREFIX = "base_model.model."
_LAYER = re.compile(r".*\.\d+\.")  # the prefix of a linear map's name within its layer
_TASKS = {
    "ForCausalLM": "CAUSAL_LM",
    "LMHeadModel": "CAUSAL_LM",
    "ForSequenceClassification": "SEQ_CLS",
    "ForTokenClassification": "TOKEN_CLS",
    "ForConditionalGeneration": "SEQ_2_SEQ_LM",
}
_LOG = logger(__name__)
_ROUNDING = 1e-5  # largest difference that another order of sums explains, relative to the largest change
_UNSUPPORTED = ("trainable_token_indices", "target_parameters", "megatron_config", "use_qalora")


class Factors(NamedTuple):
    """The unscaled change to a weight: block k of B times block k of A, for each chosen slice.

    `a` is [n r, D], `b` [E, r] with the rows of the n `chosen` slices of `sizes`.
    """

    a: Tensor
    b: Tensor
    chosen: tuple[int, ...]
    sizes: tuple[int, ...]


@dataclass(frozen=True)
class AdapterSettings:
    """Hyperparameters of an adapter; `base` is the model that it belongs to."""

    rank: int
    alpha: float
    dropout: float
    rslora: bool
    base: str


@torch.no_grad()
def save_adapter(
    directory: Path,
    model: nn.Module,
    factors: Mapping[str, Factors],
    fresh: Mapping[str, Tensor],
    settings: AdapterSettings,
    family: str = "",
) -> None:
    """Replace the folder `directory` with an adapter of `model`: `factors` by the names of headway's weights.

    Tensors are named after the family that can express the model, otherwise after headway's own. `fresh` are complete
    tensors that were trained as well (heads). A linear map that is fused here and in the published file has the sum of
    its slices' ranks, and a matching scale: the product is the same.
    """
    rules = _rules(model, family)
    sizes = slice_sizes(model)
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    for rule in rules:
        if rule.target in factors:
            for module, a, b in _published_factors(rule, factors[rule.target]):
                tensors[f"{_PREFIX}{module}.lora_A.weight"] = a.contiguous()
                tensors[f"{_PREFIX}{module}.lora_B.weight"] = b.contiguous()
                ranks[module] = a.shape[0]
    full_tensors = {
        source: part.contiguous()
        for rule in rules
        if rule.target in fresh and not rule.is_copy
        for source, part in zip(rule.sources, _split(rule, fresh[rule.target].detach(), sizes))
    }
    tensors |= {_PREFIX + name: part for name, part in full_tensors.items()}
    config = _adapter_config(
        model, rules, ranks, sorted({name.rpartition(".")[0] for name in full_tensors}), settings, family
    )
    with atomic_write(directory) as draft:
        draft.mkdir()
        write_json(draft / CONFIG, config)
        write_tensors(draft / WEIGHTS, tensors, {"format": "pt"})
        _LOG.info(f"{directory}: {_check_saved(draft, rules, factors, full_tensors, settings).summary}")


def _check_saved(
    folder: Path,
    rules: Sequence[TensorRule],
    factors: Mapping[str, Factors],
    full_tensors: Mapping[str, Tensor],
    settings: AdapterSettings,
) -> ExportCheck:
    """Compare the written adapter with the changes s B A that `factors` make. UserError if they differ."""
    config, tensors = _read(folder)
    changes = dict(_read_change(name, tensors, config, folder)[:2] for name in tensors)
    scale = settings.alpha / (math.sqrt(settings.rank) if settings.rslora else settings.rank)
    checks = [compare({name: part}, changes, _ROUNDING, "changes") for name, part in full_tensors.items()]
    for rule in rules:
        if rule.target not in factors:
            continue
        a, b, chosen, sizes = factors[rule.target]
        update = b.new_zeros(sum(sizes), a.shape[1])
        rows, rank = update.split(list(sizes)), b.shape[1]
        for slice_, a_part, b_part in zip(chosen, a.split(rank), b.split([sizes[i] for i in chosen])):
            rows[slice_][:] = scale * (b_part @ a_part)
        parts = [update] if isinstance(rule.transform, Transposed) else rule.transform.split(update, sizes)
        for source, part in zip(rule.sources, parts):
            if part.any() or changes.get(source) is not None:
                checks.append(compare({source: part}, changes, _ROUNDING, "changes"))
    return joined(f"the changes to {len(checks)} tensors", checks)


def _published_factors(rule: TensorRule, factors: Factors) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Yield (module, A, B) for each published map: headway's slices, side by side if the file fuses them."""
    rank = factors.b.shape[1]
    blocks = len(factors.chosen)
    wide_b = factors.b.new_zeros(sum(factors.sizes), blocks * rank)
    owner = wide_b.new_zeros(wide_b.shape[0], blocks)  # the block of each row of the weight
    rows, owner_slices = wide_b.split(list(factors.sizes)), owner.split(list(factors.sizes))
    for k, (slice_, b) in enumerate(zip(factors.chosen, factors.b.split([factors.sizes[i] for i in factors.chosen]))):
        rows[slice_][:, k * rank : (k + 1) * rank] = b
        owner_slices[slice_][:, k] = 1
    # B's rows are the weight's outputs, even if the file transposes the weight.
    split = (
        (lambda tensor: [tensor])
        if isinstance(rule.transform, Transposed)
        else lambda w: rule.transform.split(w, factors.sizes)
    )
    for source, b, owner_slice in zip(rule.sources, split(wide_b), split(owner)):
        columns = owner_slice.any(0).repeat_interleave(rank)
        if bool(columns.any()):
            yield source.removesuffix(".weight"), factors.a[columns], b[:, columns]


def _adapter_config(
    model: nn.Module,
    rules: Sequence[TensorRule],
    ranks: Mapping[str, int],
    saved: Sequence[str],
    settings: AdapterSettings,
    family: str,
) -> dict[str, Any]:
    published_family = _family(model.config, family)  # type: ignore[arg-type]
    architecture = (
        str((published_family.write(model.config).get("architectures") or [""])[0]) if published_family else ""
    )
    other_maps = {n.removesuffix(".weight") for rule in rules for n in rule.sources if n.endswith(".weight")} - set(
        ranks
    )
    suffixes = {name: _LAYER.sub("", name) for name in ranks}
    if any(f".{other_map}".endswith(f".{suffix}") for other_map in other_maps for suffix in suffixes.values()):
        suffixes = {name: name for name in ranks}  # a suffix would match maps that have no adapter
    power = 0.5 if settings.rslora else 1.0
    rank_pattern = {suffixes[name]: rank for name, rank in ranks.items() if rank != settings.rank}
    return {
        "peft_type": "LORA",
        "task_type": next((task for suffix, task in _TASKS.items() if architecture.endswith(suffix)), None),
        "base_model_name_or_path": settings.base,
        "r": settings.rank,
        "lora_alpha": _as_number(settings.alpha),
        "lora_dropout": settings.dropout,
        "use_rslora": settings.rslora,
        "target_modules": sorted(set(suffixes.values())),
        "modules_to_save": list(saved) or None,
        "rank_pattern": rank_pattern,
        "alpha_pattern": {
            suffix: _as_number(settings.alpha * (rank / settings.rank) ** power)
            for suffix, rank in rank_pattern.items()
        },
        "fan_in_fan_out": any(isinstance(rule.transform, Transposed) for rule in rules),
        "bias": "none",
        "init_lora_weights": True,
        "inference_mode": True,
    }


def _as_number(value: float) -> float | int:
    return int(value) if float(value).is_integer() else value


@torch.no_grad()
def merge_adapter(model: nn.Module, directory: Path | str, family: str = "") -> int:
    """Add an adapter in PEFT's layout to the weights of `model`; return how many linear maps changed.

    Its names may be those of a published family (`family`, if several fit) or headway's own. Raises UserError, before
    any weight changes, for a folder without an adapter, an unknown kind, or tensors that do not fit.
    """
    folder = Path(directory)
    config, tensors = _read(folder)
    rules = {name: rule for rule in _rules(model, family) if not rule.is_copy for name in rule.sources}
    sizes, model_tensors = slice_sizes(model), dict(named_tensors(model))
    added: dict[str, dict[str, Tensor]] = {}
    count = 0
    for name in tensors:
        source, change, replaces = _read_change(name, tensors, config, folder)
        if change is None:
            continue
        if source not in rules:
            raise UserError(f"{folder} adapts {source!r}, which the model lacks; {nearest(source, rules)}")
        rule = rules[source]
        parts = added.setdefault(rule.target, dict(zip(rule.sources, _split(rule, model_tensors[rule.target], sizes))))
        change = change.T if isinstance(rule.transform, Transposed) and not replaces else change
        if parts[source].shape != change.shape:
            shapes = f"{tuple(change.shape)}, but the model's is {tuple(parts[source].shape)}"
            raise UserError(f"{folder}: its change to {source!r} has shape {shapes}; use the model it was made for")
        parts[source] = change if replaces else parts[source] + change
        if (magnitude := _magnitude(name, tensors)) is not None:
            axis = 0 if isinstance(rule.transform, Transposed) else 1  # inputs, over which the length is taken
            if magnitude.shape != (change.shape[1 - axis],):
                raise UserError(
                    f"{folder}: {source!r} has {tuple(magnitude.shape)} magnitudes; use the model it was made for"
                )
            length = torch.linalg.vector_norm(parts[source], dim=axis, keepdim=True)
            parts[source] = parts[source] * (magnitude.unsqueeze(axis) / length)
        count += 1
    rules_by_target = {rule.target: rule for rule in rules.values()}
    for target, parts in added.items():
        model_tensors[target].copy_(torch.cat(rules_by_target[target].transform.slices(list(parts.values()))))
    return count


def _magnitude(name: str, tensors: Mapping[str, Tensor]) -> Tensor | None:
    """Return DoRA's lengths of a weight's rows (Liu et al. 2024, equation 5), for the name of an adapter's A."""
    if not name.endswith(".lora_A.weight"):
        return None
    stem = name.removesuffix("A.weight") + "magnitude_vector"  # a parameter, in older files, or a module
    found = next((tensors[each] for each in (f"{stem}.weight", stem) if each in tensors), None)
    return None if found is None else found.reshape(-1)


def _split(rule: TensorRule, tensor: Tensor, sizes: Mapping[str, tuple[int, ...]]) -> list[Tensor]:
    return rule.transform.split(tensor, sizes.get(rule.target, (tensor.shape[0],) if tensor.dim() else ()))


def _read_change(
    name: str, tensors: Mapping[str, Tensor], config: Mapping[str, Any], folder: Path
) -> tuple[str, Tensor | None, bool]:
    """Return the published tensor that an adapter's tensor changes, the change, and whether it replaces the tensor; no
    change for a tensor that belongs to its A.
    """
    inner = name.removeprefix(_PREFIX)
    if inner.endswith((".lora_B.weight", ".lora_magnitude_vector.weight", ".lora_magnitude_vector")):
        return inner, None, False
    module, found, end = inner.rpartition(".lora_")
    if not found or end not in ("A.weight", "B.bias"):
        return inner, tensors[name], True
    a_name, b_name = f"{_PREFIX}{module}.lora_A.weight", f"{_PREFIX}{module}.lora_B.weight"
    if lacking := next((each for each in (a_name, b_name) if each not in tensors), None):
        raise UserError(f"{folder} lacks {lacking!r}; save it again")
    a, b = tensors[a_name], tensors[b_name]
    alpha = next((v for key, v in config["alpha_pattern"].items() if re.match(rf"(.*\.)?({key})$", module)), None)
    scale = (config["lora_alpha"] if alpha is None else alpha) / (math.sqrt(len(a)) if config["use_rslora"] else len(a))
    if end == "B.bias":
        return f"{module}.bias", scale * tensors[name], False
    return f"{module}.weight", scale * (b @ a), False


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    config = read_json(folder / CONFIG)
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        kind = config.get("peft_type") if isinstance(config, dict) else config
        raise UserError(f"{folder / CONFIG} is an adapter of kind {kind!r}; use one of kind 'LORA'")
    unsupported = next((name for name in _UNSUPPORTED if config.get(name)), None)
    if unsupported or config.get("bias", "none") != "none":
        raise UserError(f"{folder / CONFIG}: {unsupported or 'bias'} is not supported; merge it with the package peft")
    if (folder / WEIGHTS).is_file():
        tensors, _ = read_tensors(folder / WEIGHTS, "save it again")
    elif (folder / TORCH_WEIGHTS).is_file():
        file = TorchFile(folder / TORCH_WEIGHTS)
        tensors = {name: file.get(name) for name in file.names()}
    else:
        raise UserError(f"{folder} contains neither {WEIGHTS} nor {TORCH_WEIGHTS}; save the adapter again")
    settings = {
        "lora_alpha": 8,
        "use_rslora": False,
        **{key: value for key, value in config.items() if value is not None},
    }
    return {**settings, "alpha_pattern": config.get("alpha_pattern") or {}}, tensors


def _family(config: ModelConfig, name: str) -> Family | None:
    """Return the family by which a model is published: the one it came from, or the first that can express it."""
    known = families()
    order = [known[name]] if name in known else list(known.values())
    return next((family for family in order if can_express(family, config)), None)


def _rules(model: nn.Module, name: str) -> list[TensorRule]:
    """Return the family's rules, or headway's own names, slice by slice, if no family can express the model."""
    family = _family(model.config, name)  # type: ignore[arg-type]
    if family is not None:
        return family.rules(model.config)
    projections = {path: module for path, module in model.named_modules() if isinstance(module, Projection)}
    rules = []
    for target in dict(named_tensors(model)):
        path, _, kind = target.rpartition(".")
        fused = projections.get(path)
        if kind == "weight" and fused is not None:
            names = slice_names(path.rpartition(".")[2], fused)
            rules.append(TensorRule(target, tuple(f"{path}.{name}.weight" for name in names)))
        else:
            rules.append(TensorRule(target, (target,)))
    return rules
