"""Low-rank adapters in the layout of the package PEFT, whose users can apply the folder to the published model."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from headway.errors import UserError, nearest
from headway.formats.durable import beside, read_json, write_json, write_tensors
from headway.formats.families import families
from headway.formats.native import named_tensors
from headway.formats.published import says
from headway.formats.rules import Family, TensorRule, Transposed
from headway.formats.tensorfile import read_tensors
from headway.formats.weights import slice_sizes
from headway.nn.models import ModelConfig
from headway.nn.parts.projection import Projection, slice_names

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_LAYER = re.compile(r".*\.\d+\.")  # the prefix of a linear map's name within its layer
_TASKS = {
    "ForCausalLM": "CAUSAL_LM",
    "LMHeadModel": "CAUSAL_LM",
    "ForSequenceClassification": "SEQ_CLS",
    "ForTokenClassification": "TOKEN_CLS",
    "ForConditionalGeneration": "SEQ_2_SEQ_LM",
}
_REFUSED = ("use_dora", "lora_bias", "trainable_token_indices", "target_parameters", "megatron_config", "use_qalora")


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
    for each in rules:
        if each.ours in factors:
            for module, a, b in _published(each, factors[each.ours]):
                tensors[f"{_PREFIX}{module}.lora_A.weight"] = a.contiguous()
                tensors[f"{_PREFIX}{module}.lora_B.weight"] = b.contiguous()
                ranks[module] = a.shape[0]
    whole = {
        theirs: part.contiguous()
        for each in rules
        if each.ours in fresh and not each.copy
        for theirs, part in zip(each.theirs, _split(each, fresh[each.ours].detach(), sizes))
    }
    tensors |= {_PREFIX + name: part for name, part in whole.items()}
    said = _said(model, rules, ranks, sorted({name.rpartition(".")[0] for name in whole}), settings, family)
    with beside(directory) as draft:
        draft.mkdir()
        write_json(draft / CONFIG, said)
        write_tensors(draft / WEIGHTS, tensors, {"format": "pt"})


def _published(rule: TensorRule, factors: Factors) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Yield (module, A, B) for each published map: headway's slices, side by side if the file fuses them."""
    rank = factors.b.shape[1]
    blocks = len(factors.chosen)
    wide = factors.b.new_zeros(sum(factors.sizes), blocks * rank)
    owner = wide.new_zeros(wide.shape[0], blocks)  # the block of each row of the weight
    rows, marks = wide.split(list(factors.sizes)), owner.split(list(factors.sizes))
    for k, (slice_, b) in enumerate(zip(factors.chosen, factors.b.split([factors.sizes[i] for i in factors.chosen]))):
        rows[slice_][:, k * rank : (k + 1) * rank] = b
        marks[slice_][:, k] = 1
    # B's rows are the weight's outputs, even if the file transposes the weight.
    split = (
        (lambda whole: [whole]) if isinstance(rule.form, Transposed) else lambda w: rule.form.split(w, factors.sizes)
    )
    for theirs, b, mark in zip(rule.theirs, split(wide), split(owner)):
        columns = mark.any(0).repeat_interleave(rank)
        if bool(columns.any()):
            yield theirs.removesuffix(".weight"), factors.a[columns], b[:, columns]


def _said(
    model: nn.Module,
    rules: Sequence[TensorRule],
    ranks: Mapping[str, int],
    saved: Sequence[str],
    settings: AdapterSettings,
    family: str,
) -> dict[str, Any]:
    found = _family(model.config, family)  # type: ignore[arg-type]
    architecture = str((found.write(model.config).get("architectures") or [""])[0]) if found else ""
    others = {n.removesuffix(".weight") for each in rules for n in each.theirs if n.endswith(".weight")} - set(ranks)
    short = {name: _LAYER.sub("", name) for name in ranks}
    if any(f".{other}".endswith(f".{end}") for other in others for end in short.values()):
        short = {name: name for name in ranks}  # a suffix would match maps that have no adapter
    power = 0.5 if settings.rslora else 1.0
    odd = {short[name]: rank for name, rank in ranks.items() if rank != settings.rank}
    return {
        "peft_type": "LORA",
        "task_type": next((task for end, task in _TASKS.items() if architecture.endswith(end)), None),
        "base_model_name_or_path": settings.base,
        "r": settings.rank,
        "lora_alpha": _plain(settings.alpha),
        "lora_dropout": settings.dropout,
        "use_rslora": settings.rslora,
        "target_modules": sorted(set(short.values())),
        "modules_to_save": list(saved) or None,
        "rank_pattern": odd,
        "alpha_pattern": {end: _plain(settings.alpha * (rank / settings.rank) ** power) for end, rank in odd.items()},
        "fan_in_fan_out": any(isinstance(each.form, Transposed) for each in rules),
        "bias": "none",
        "init_lora_weights": True,
        "inference_mode": True,
    }


def _plain(value: float) -> float | int:
    return int(value) if float(value).is_integer() else value


@torch.no_grad()
def merge_adapter(model: nn.Module, directory: Path | str, family: str = "") -> int:
    """Add an adapter in PEFT's layout to the weights of `model`; return how many linear maps changed.

    Its names may be those of a published family (`family`, if several fit) or headway's own. Raises UserError, before
    any weight changes, for a folder without an adapter, an unknown kind, or tensors that do not fit.
    """
    place = Path(directory)
    said, tensors = _read(place)
    rules = {name: each for each in _rules(model, family) if not each.copy for name in each.theirs}
    sizes, own = slice_sizes(model), dict(named_tensors(model))
    added: dict[str, dict[str, Tensor]] = {}
    count = 0
    for name in tensors:
        theirs, change, replaces = _change(name, tensors, said, place)
        if theirs is None:
            continue
        if theirs not in rules:
            raise UserError(f"{place} adapts {theirs!r}, which the model lacks; {nearest(theirs, rules)}")
        each = rules[theirs]
        parts = added.setdefault(each.ours, dict(zip(each.theirs, _split(each, own[each.ours], sizes))))
        change = change.T if isinstance(each.form, Transposed) and not replaces else change
        if parts[theirs].shape != change.shape:
            shapes = f"{tuple(change.shape)}, the model's is {tuple(parts[theirs].shape)}"
            raise UserError(f"{place}: its change to {theirs!r} has shape {shapes}; use the model it was made for")
        parts[theirs] = change if replaces else parts[theirs] + change
        count += 1
    made = {each.ours: each for each in rules.values()}
    for ours, parts in added.items():
        own[ours].copy_(torch.cat(made[ours].form.slices(list(parts.values()))))
    return count


def _split(rule: TensorRule, tensor: Tensor, sizes: Mapping[str, tuple[int, ...]]) -> list[Tensor]:
    return rule.form.split(tensor, sizes.get(rule.ours, (tensor.shape[0],) if tensor.dim() else ()))


def _change(
    name: str, tensors: Mapping[str, Tensor], said: Mapping[str, Any], place: Path
) -> tuple[str | None, Tensor, bool]:
    """Return the published tensor that an adapter's tensor changes, the change, and whether it replaces the tensor."""
    inner = name.removeprefix(_PREFIX)
    if inner.endswith(".lora_B.weight"):
        return None, tensors[name], False  # handled with its A
    if not inner.endswith(".lora_A.weight"):
        return inner, tensors[name], True
    module = inner.removesuffix(".lora_A.weight")
    other = f"{_PREFIX}{module}.lora_B.weight"
    if other not in tensors:
        raise UserError(f"{place} lacks {other!r}; save it again")
    a, b = tensors[name], tensors[other]
    alpha = next((v for key, v in said["alpha_pattern"].items() if re.match(rf"(.*\.)?({key})$", module)), None)
    scale = (said["lora_alpha"] if alpha is None else alpha) / (math.sqrt(len(a)) if said["use_rslora"] else len(a))
    return f"{module}.weight", scale * (b @ a), False


def _read(place: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    said = read_json(place / CONFIG)
    if not isinstance(said, dict) or said.get("peft_type") != "LORA":
        kind = said.get("peft_type") if isinstance(said, dict) else said
        raise UserError(f"{place / CONFIG} is an adapter of kind {kind!r}; use one of kind 'LORA'")
    asked = next((name for name in _REFUSED if said.get(name)), None)
    if asked or said.get("bias", "none") != "none":
        raise UserError(f"{place / CONFIG}: {asked or 'bias'} is not supported; merge it with the package peft")
    if not (place / WEIGHTS).is_file():
        raise UserError(f"{place} contains no {WEIGHTS}; save the adapter as safetensors")
    tensors, _ = read_tensors(place / WEIGHTS, "save it again")
    found = {"lora_alpha": 8, "use_rslora": False, **{key: value for key, value in said.items() if value is not None}}
    return {**found, "alpha_pattern": said.get("alpha_pattern") or {}}, tensors


def _family(config: ModelConfig, name: str) -> Family | None:
    """Return the family by which a model is published: the one it came from, or the first that can express it."""
    known = families()
    order = [known[name]] if name in known else list(known.values())
    return next((each for each in order if says(each, config)), None)


def _rules(model: nn.Module, name: str) -> list[TensorRule]:
    """Return the family's rules, or headway's own names, slice by slice, if no family can express the model."""
    found = _family(model.config, name)  # type: ignore[arg-type]
    if found is not None:
        return found.rules(model.config)
    projections = {path: each for path, each in model.named_modules() if isinstance(each, Projection)}
    rules = []
    for ours in dict(named_tensors(model)):
        path, _, kind = ours.rpartition(".")
        fused = projections.get(path)
        if kind == "weight" and fused is not None:
            names = slice_names(path.rpartition(".")[2], fused)
            rules.append(TensorRule(ours, tuple(f"{path}.{name}.weight" for name in names)))
        else:
            rules.append(TensorRule(ours, (ours,)))
    return rules
