"""What quantising costs: the divergence of each number format and layer on given texts, and a format for each layer."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from headway.app.runs import open_recipe
from headway.data.corpus import iter_chunks, text_sources
from headway.domains.text.predictors import prompt_ids
from headway.engine import Format
from headway.engine.packed_weights import PackedTensor, pack, packed_bytes
from headway.errors import UserError
from headway.formats.deferred import computed, deferred_weights
from headway.formats.native import QUANTISED, parameter_of, quantisable, quantised_formats, replace_parameters
from headway.formats.open import OpenedModel, open_model
from headway.io.machine_memory import free_bytes
from headway.learn.run import RunDirectory
from headway.metrics import perplexity
from headway.nn.models import ModelConfig, outline
from headway.nn.models.kinds import is_causal, is_text, kind_of
from headway.predict.model_handle import ModelHandle

FORMATS: tuple[Format, ...] = ("int4", "int8", "fp32")  # by size
_QUANTISED: tuple[Format, ...] = ("int8", "int4")
_MAX_TOKENS, _ROW_TOKENS = 4096, 512  # of the texts, and of a row
_MAX_OUTPUTS, _BATCH_TOKENS = 1 << 27, 2048  # numbers that the outputs for all tokens may have; tokens in a batch
_MAX_BITS = 32  # of a weight in fp32
_HEADROOM = 1.5  # memory for the original, a quantised copy and outputs, relative to the original
_BLOCK = re.compile(r"(.*\bblocks\.\d+)\.")


class FormatCost(NamedTuple):
    """The cost of one number format: bits per weight of the matrices, scales included; loss in nats per token and
    perplexity (None unless the model predicts the next token); mean divergence from the original outputs.
    """

    weights: str
    bits_per_weight: float
    loss: float | None
    perplexity: float | None
    divergence: float


class LayerCost(NamedTuple):
    """A layer, its weights in matrices, and the divergence if only this layer has a number format, by format."""

    layer: str
    weights: int
    divergence: dict[str, float]


class QuantizationReport(NamedTuple):
    """The costs on `tokens` tokens. `measure` describes the divergence; `formats` starts with the original."""

    tokens: int
    measure: str
    formats: list[FormatCost]
    layers: list[LayerCost]


def layers_of(model: nn.Module) -> dict[str, dict[str, Tensor]]:
    """The quantisable matrices by layer and name. A layer is a block, or the module of an embedding or head."""
    layers: dict[str, dict[str, Tensor]] = {}
    for name, matrix in quantisable(model).items():
        block = _BLOCK.match(name)
        layers.setdefault(block[1] if block else name.rpartition(".")[0], {})[name] = matrix
    return layers


def layer_formats(folder: Path, config: ModelConfig) -> dict[str, str]:
    """The number format of each layer's matrices in a folder with quantised weights; empty for any other folder."""
    if not (folder / QUANTISED).is_file():
        return {}
    stored = quantised_formats(folder)
    return {
        layer: "/".join(sorted({stored.get(name, "fp32") for name in matrices}))
        for layer, matrices in layers_of(outline(config)).items()
    }


class FormatSizes:
    """The bytes of each layer in each number format, with scales and padding."""

    def __init__(self, layers: Mapping[str, Mapping[str, Tensor]]) -> None:
        self.weights = {layer: sum(map(Tensor.numel, matrices.values())) for layer, matrices in layers.items()}
        self.bytes = {
            layer: {dtype: sum(packed_bytes(matrix, dtype) for matrix in matrices.values()) for dtype in FORMATS}
            for layer, matrices in layers.items()
        }

    def bits(self, formats: Mapping[str, Format]) -> float:
        """Mean bits per weight for a format per layer."""
        size = sum(self.bytes[layer][dtype] for layer, dtype in formats.items())
        return 8 * size / sum(self.weights.values())

    def check_bits(self, bits: float) -> None:
        """Raise UserError for fewer bits than int4 needs, or more than fp32."""
        low = self.bits(dict.fromkeys(self.bytes, FORMATS[0]))
        if not low <= bits <= _MAX_BITS:
            raise UserError(
                f"{bits:g} bits per weight are not possible: this model has {low:.2f} with all layers in int4 and "
                f"{_MAX_BITS} with all in fp32; choose a number between them"
            )

    def choose(self, costs: Sequence[LayerCost], bits: float) -> dict[str, Format]:
        """Return a format per layer whose mean is at most `bits` per weight.

        All layers start in int4. The step to a larger format that removes the most divergence per byte is taken again
        and again, as long as one fits. Equal costs give equal choices.
        """
        chosen: dict[str, Format] = dict.fromkeys(self.bytes, FORMATS[0])
        divergences = {cost.layer: {**cost.divergence, "fp32": 0.0} for cost in costs}
        spare = (bits - self.bits(chosen)) * sum(self.weights.values()) / 8  # bytes
        while True:
            steps: list[tuple[float, str, Format, int]] = []
            for layer, sizes in self.bytes.items():
                now = chosen[layer]
                for dtype in FORMATS[FORMATS.index(now) + 1 :]:
                    gain, size = divergences[layer][now] - divergences[layer][dtype], sizes[dtype] - sizes[now]
                    if gain > 0 and size <= spare:
                        steps.append((gain / size, layer, dtype, size))
            if not steps:
                return chosen
            _, layer, dtype, size = max(steps, key=lambda step: step[0])
            chosen[layer] = dtype
            spare -= size


def weight_errors(layers: Mapping[str, Mapping[str, Tensor]]) -> list[LayerCost]:
    """The costs without texts: the squared error of each matrix relative to its squares, summed over a layer."""
    costs = []
    for layer, matrices in layers.items():
        errors: dict[str, float] = dict.fromkeys(_QUANTISED, 0.0)
        for name, matrix in matrices.items():
            values = computed(matrix.detach()).float()
            total = values.square().sum().item() or 1.0
            for dtype in _QUANTISED:
                rounded = computed(PackedTensor(pack(values, dtype, name)))
                errors[dtype] += (rounded - values).square().sum().item() / total
        costs.append(LayerCost(layer, sum(map(Tensor.numel, matrices.values())), errors))
    return costs


def measure(opened: OpenedModel, source: Path, texts: Path) -> QuantizationReport:
    """The costs of a model, which was opened with deferred weights, on texts. It is loaded in fp32 if it fits into
    memory. Raises UserError for a model that does not read texts in one stack, and for texts without tokens.
    """
    if not is_text(opened.model):
        raise UserError(f"{source} is {kind_of(opened.model)}, which does not read texts in one stack; remove --report")
    recipe = open_recipe(source) if RunDirectory(source).exists() else None
    ids = read_rows(ModelHandle(opened, source, recipe), texts)
    needed, free = 4 * sum(tensor.numel() for tensor in opened.model.parameters()), free_bytes(torch.device("cpu"))
    is_small = free is None or _HEADROOM * needed < free
    with nullcontext() if is_small else deferred_weights():
        module = open_model(source).model
    return report_costs(module, ids)


def read_rows(model: ModelHandle, path: Path) -> Int[Tensor, "N T"]:
    """The first tokens of texts in rows of at most 512, at most 4096 in total, or fewer with a large vocabulary.
    UserError for texts with fewer than two tokens.
    """
    config, ids = model.module.config, list[int]()
    length = min(_ROW_TOKENS, config.context or _ROW_TOKENS)
    limit = min(_MAX_TOKENS, max(length, _MAX_OUTPUTS // max(config.vocab_size, config.width)))
    for chunk in chain.from_iterable(map(iter_chunks, text_sources([path]))):
        if chunk.text.strip():
            ids += prompt_ids(model, chunk.text)
        if len(ids) >= limit:
            break
    length = min(length, len(ids))
    if length < 2:
        raise UserError(f"{path} has no text of two tokens; pass a file with text to --report")
    count = min(limit, len(ids)) // length
    return torch.tensor(ids[: count * length]).view(count, length)


def report_costs(module: nn.Module, ids: Int[Tensor, "N T"]) -> QuantizationReport:
    """Compare the model with itself in int8 and int4, as a whole and one layer at a time."""
    layers, original = layers_of(module), _outputs(module, ids)
    has_vocabulary = "vocabulary" in module.heads  # type: ignore[operator]
    divergence = partial(_kl_divergence if has_vocabulary else _relative_difference, original)
    sizes, names = FormatSizes(layers), quantisable(module)
    costs = []
    for dtype in reversed(FORMATS):
        with quantised_matrices(module, {} if dtype == "fp32" else dict.fromkeys(names, dtype)):
            outputs = _outputs(module, ids)
        loss, likelihood = None, None
        if is_causal(module):
            loss = -outputs[:, :-1].gather(2, ids[:, 1:, None]).double().mean().item()
            likelihood = perplexity(loss, 1)
        bits = sizes.bits(dict.fromkeys(layers, dtype))
        costs.append(FormatCost(dtype, bits, loss, likelihood, divergence(outputs)))
    layer_costs = []
    for layer, matrices in layers.items():
        divergences: dict[str, float] = {}
        for dtype in _QUANTISED:
            with quantised_matrices(module, dict.fromkeys(matrices, dtype)):
                divergences[dtype] = divergence(_outputs(module, ids))
        layer_costs.append(LayerCost(layer, sizes.weights[layer], divergences))
    description = (
        "KL divergence of the predicted tokens in nats per token"
        if has_vocabulary
        else "squared difference of the vectors relative to their squares"
    )
    return QuantizationReport(ids.numel(), description, costs, layer_costs)


@contextmanager
def quantised_matrices(model: nn.Module, formats: Mapping[str, Format]) -> Iterator[None]:
    """In this context, some matrices of a model are quantised."""
    matrices = quantisable(model)
    packed = {name: parameter_of(PackedTensor(pack(matrices[name], dtype, name))) for name, dtype in formats.items()}
    replace_parameters(model, {id(matrices[name]): parameter for name, parameter in packed.items()})
    try:
        yield
    finally:
        replace_parameters(model, {id(parameter): matrices[name] for name, parameter in packed.items()})


@torch.no_grad()
def _outputs(model: Any, ids: Int[Tensor, "N T"]) -> Float[Tensor, "N T C"]:
    """Log probabilities of tokens, or the vectors of a model without a vocabulary."""
    outputs = []
    for rows in ids.split(max(1, _BATCH_TOKENS // ids.shape[1])):
        x = model(rows).x
        if "vocabulary" in model.heads:
            x = model.heads["vocabulary"](x).float().log_softmax(-1)
        outputs.append(x)
    return torch.cat(outputs)


def _kl_divergence(original: Float[Tensor, "N T C"], outputs: Float[Tensor, "N T C"]) -> float:
    rows = [(p.exp() * (p - q)).sum(-1).double().mean() for p, q in zip(original, outputs)]
    return torch.stack(rows).mean().clamp(min=0.0).item()


def _relative_difference(original: Float[Tensor, "N T D"], outputs: Float[Tensor, "N T D"]) -> float:
    difference = original - outputs
    return (difference.square().sum() / original.square().sum()).item()
