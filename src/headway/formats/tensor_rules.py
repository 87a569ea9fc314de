"""A published checkpoint format as a two-way table: which of its tensors make up each of headway's, and which settings
of its config.json are accounted for, so that none is silently ignored.

Every key that a family's class in transformers reads is read here (`Settings.used`, or a default of the family),
changes no output (`IGNORED`, `Family.ignored`), or is limited to certain values (`FIXED`, `Family.fixed`). Any other
key is unknown to both programs and is reported.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from headway.errors import UserError, logger
from headway.formats.settings import Settings
from headway.nn.models import BlockConfig, ModelConfig, StackConfig

T = TypeVar("T")


def expect(part: Any, kind: type[T]) -> T:
    """Return `part` if it is of the kind that a family can express, otherwise raise UserError."""
    if not isinstance(part, kind):
        found, expected = (getattr(cls, "kind", cls.__name__) for cls in (type(part), kind))
        raise UserError(f"the model has {found!r} where this family has {expected!r}; choose another family")
    return part


def expand(text: str) -> list[str]:
    """Return the strings that a string with choices in braces stands for: "{q,k}_proj" is q_proj and k_proj."""
    before, brace, rest = text.partition("{")
    choices, _, after = rest.partition("}")
    return [before + part + after for part in choices.split(",")] if brace else [text]


class TensorTransform(Protocol):
    """How tensors in a file become one of headway's, and back, bit for bit.

    `slices` returns the slices of headway's tensor in order, as views if possible, so that no number is copied twice.
    `sizes` are the rows of the slices that headway's tensor fuses (query, key, value; gate, up).
    """

    def slices(self, parts: Sequence[Tensor]) -> list[Tensor]: ...

    def split(self, tensor: Tensor, sizes: Sequence[int]) -> list[Tensor]: ...


class StackedRows:
    """One tensor as it is, or several as consecutive slices."""

    def slices(self, parts: Sequence[Tensor]) -> list[Tensor]:
        return list(parts)

    def split(self, tensor: Tensor, sizes: Sequence[int]) -> list[Tensor]:
        return list(tensor.split(list(sizes)))


_ROWS = StackedRows()  # stateless


class Unsplit:
    """One tensor that the file stores exactly as headway does: fused (Phi-3's qkv), or a scalar."""

    def slices(self, parts: Sequence[Tensor]) -> list[Tensor]:
        return list(parts)

    def split(self, tensor: Tensor, sizes: Sequence[int]) -> list[Tensor]:
        return [tensor]


class SwappedHalves:
    """One tensor of two equal parts in the other order (GTE's up and gate)."""

    def slices(self, parts: Sequence[Tensor]) -> list[Tensor]:
        return list(parts[0].chunk(2)[::-1])

    def split(self, tensor: Tensor, sizes: Sequence[int]) -> list[Tensor]:
        return [torch.cat(tensor.chunk(2)[::-1])]


class Transposed:
    """One matrix whose rows are the inputs (GPT-2's Conv1D)."""

    def slices(self, parts: Sequence[Tensor]) -> list[Tensor]:
        return [parts[0].T]

    def split(self, tensor: Tensor, sizes: Sequence[int]) -> list[Tensor]:
        return [tensor.T]


class SingleRow:
    """A vector that the file stores as a matrix of one row (BART's logits bias), or a scalar as a vector
    (SigLIP's scale).
    """

    def slices(self, parts: Sequence[Tensor]) -> list[Tensor]:
        return [parts[0].squeeze(0)]

    def split(self, tensor: Tensor, sizes: Sequence[int]) -> list[Tensor]:
        return [tensor[None]]


class RowVector:
    """A one-row matrix that the file stores as a vector (CLIP's class token)."""

    def slices(self, parts: Sequence[Tensor]) -> list[Tensor]:
        return [parts[0][None]]

    def split(self, tensor: Tensor, sizes: Sequence[int]) -> list[Tensor]:
        return [tensor.squeeze(0)]


@dataclass(frozen=True)
class FlattenedRows:
    """A matrix whose rows have another `shape` in the file (a convolution)."""

    shape: tuple[int, ...]

    def slices(self, parts: Sequence[Tensor]) -> list[Tensor]:
        return [parts[0].flatten(1)]

    def split(self, tensor: Tensor, sizes: Sequence[int]) -> list[Tensor]:
        return [tensor.unflatten(1, self.shape)]


class VocabularyRows:
    """A matrix whose rows are separate tensors [1, 1, D] in the file (class and distillation token)."""

    def slices(self, parts: Sequence[Tensor]) -> list[Tensor]:
        return [part.squeeze(0) for part in parts]

    def split(self, tensor: Tensor, sizes: Sequence[int]) -> list[Tensor]:
        return [row[None] for row in tensor.split(1)]


@dataclass(frozen=True)
class PerHead:
    """One tensor whose `parts` slices alternate per head (GPT-NeoX: query, key and value of each head)."""

    heads: int
    parts: int = 3

    def slices(self, parts: Sequence[Tensor]) -> list[Tensor]:
        return [self._swap(parts[0], self.heads, self.parts)]

    def split(self, tensor: Tensor, sizes: Sequence[int]) -> list[Tensor]:
        return [self._swap(tensor, self.parts, self.heads)]

    def _swap(self, tensor: Tensor, outer: int, inner: int) -> Tensor:
        return tensor.unflatten(0, (outer, inner, -1)).transpose(0, 1).flatten(0, 2)


@dataclass(frozen=True)
class Interleaved:
    """Rows whose rotary pairs are adjacent in the file (llama2.c, GGUF, GLM) and in two halves here.

    `heads` is the number of heads per part, 0 for a part without rotation (values). Only the first `fraction` of a
    head's rows is rotated.
    """

    heads: tuple[int, ...]
    fraction: float = 1.0

    def slices(self, parts: Sequence[Tensor]) -> list[Tensor]:
        return [self._by_head(part, count, (-1, 2)) for part, count in zip(parts, self.heads)]

    def split(self, tensor: Tensor, sizes: Sequence[int]) -> list[Tensor]:
        return [self._by_head(part, count, (2, -1)) for part, count in zip(tensor.split(list(sizes)), self.heads)]

    def _by_head(self, part: Tensor, heads: int, shape: tuple[int, int]) -> Tensor:
        if not heads:
            return part
        by_head = part.unflatten(0, (heads, -1))
        size = by_head.shape[1]
        rotated, rest = by_head.split([int(size * self.fraction), size - int(size * self.fraction)], dim=1)
        pairs = rotated.unflatten(1, shape).transpose(1, 2).flatten(1, 2)
        return (torch.cat([pairs, rest], dim=1) if rest.shape[1] else pairs).flatten(0, 1)


class InterleavedWeights:
    """`Interleaved` for the weights [H, K] of a norm of queries or keys (Cohere)."""

    def slices(self, parts: Sequence[Tensor]) -> list[Tensor]:
        return [parts[0].unflatten(1, (-1, 2)).transpose(1, 2).flatten(1)]

    def split(self, tensor: Tensor, sizes: Sequence[int]) -> list[Tensor]:
        return [tensor.unflatten(1, (2, -1)).transpose(1, 2).flatten(1)]


class InterleavedGate:
    """The gate and the other half of a gated layer, whose units alternate in the file; a matrix is transposed
    (gpt-oss).
    """

    def slices(self, parts: Sequence[Tensor]) -> list[Tensor]:
        return [parts[0].T[::2], parts[0].T[1::2]] if parts[0].dim() == 2 else [parts[0][::2], parts[0][1::2]]

    def split(self, tensor: Tensor, sizes: Sequence[int]) -> list[Tensor]:
        rows = tensor.unflatten(0, (2, -1)).transpose(0, 1).flatten(0, 1)
        return [rows.T if rows.dim() == 2 else rows]


@dataclass(frozen=True)
class TensorRule:
    """`sources` (names in the file) make `target` (a name in the model's state).

    With `is_copy`, the source repeats a tied tensor: it is neither read nor written.
    """

    target: str
    sources: tuple[str, ...]
    transform: TensorTransform = _ROWS
    is_copy: bool = False


def rule(target: str, *sources: str, transform: TensorTransform = _ROWS) -> TensorRule:
    """A rule for `target`. A source such as "{q,k,v}_proj" stands for several."""
    return TensorRule(target, tuple(name for source in sources for name in expand(source)), transform)


def tied_copy(target: str, source: str) -> TensorRule:
    """A rule for a file tensor that repeats `target`, which another rule makes."""
    return TensorRule(target, (source,), is_copy=True)


def linear(target: str, *sources: str, bias: bool = True, transform: TensorTransform = _ROWS) -> list[TensorRule]:
    """Rules for the weight of a layer and, with `bias`, its bias under the same names."""
    suffixes = (".weight", ".bias") if bias else (".weight",)
    return [rule(target + suffix, *(name + suffix for name in sources), transform=transform) for suffix in suffixes]


def linears(names: Mapping[str, str], bias: bool = True) -> list[TensorRule]:
    """`linear` for several layers: names in the file by names in the model."""
    return [tensor_rule for target, source in names.items() for tensor_rule in linear(target, source, bias=bias)]


def vocabulary(config: Any, table: str, source: str, head: str = "heads.vocabulary") -> TensorRule:
    """A rule for the head's own weight or, if it is tied to `table`, for a copy that some files store."""
    untied = config.tie in ("none", "embeddings")
    return rule(f"{head}.project.weight", source) if untied else tied_copy(table, source)


def prefixed(rules: Iterable[TensorRule], target: str, source: str) -> list[TensorRule]:
    """Return `rules` with these beginnings of their names."""
    return [
        replace(part, target=target + part.target, sources=tuple(source + name for name in part.sources))
        for part in rules
    ]


def block_rules(
    stack: StackConfig, source: str, make: Callable[[BlockConfig], Iterable[TensorRule]], target: str = "stack"
) -> list[TensorRule]:
    """Return the rules of all blocks. `make` returns those of one, whose names start with `source`, in which "{}" is
    the block's index.
    """
    return [
        tensor_rule
        for i, block in enumerate(stack.blocks)
        for tensor_rule in prefixed(make(block), f"{target}.blocks.{i}.", source.format(i))
    ]


@dataclass(frozen=True)
class ChannelsLast:
    """A convolution's kernels [D, C, taps, taps] in the file, whose rows are [taps, taps, C], flattened, here."""

    taps: int
    channels: int

    def slices(self, parts: Sequence[Tensor]) -> list[Tensor]:
        return [parts[0].movedim(1, -1).flatten(1)]

    def split(self, tensor: Tensor, sizes: Sequence[int]) -> list[Tensor]:
        return [tensor.unflatten(1, (self.taps, self.taps, self.channels)).movedim(-1, 1)]


@dataclass(frozen=True)
class Fused:
    """A tensor in the file that consists of several rules' tensors, equal parts in order: `stored_name` in its name
    replaces each of `parts` in theirs. Exports write it the same way.
    """

    stored_name: str
    parts: tuple[str, ...]

    def names(self, name: str) -> list[str]:
        """Return the names of the rules' tensors that the tensor of this name contains."""
        return [name.replace(self.stored_name, part) for part in self.parts]


@dataclass(frozen=True)
class ProcessorFiles:
    """Files next to the weights that describe preprocessing.

    `read(directory, settings, weights)` returns their content, which `Usage.processor` stores; `write(directory,
    settings, processor)` writes them and returns the settings for config.json. Both raise UserError if something is
    missing.
    """

    read: Callable[[Path, Settings, Any], dict[str, Any]]
    write: Callable[[Path, dict[str, Any], Mapping[str, Any]], dict[str, Any]]


@dataclass(frozen=True)
class Stacked:
    """A tensor of the file that stacks many of the rules' tensors: items along its first axis, and their parts along
    the second.

    `pattern` is a regular expression for its name; `names` are replacements that give the names of an item's parts,
    with `{}` for the item's index (the experts of Mixtral, stacked in newer files). `dims` is 3 for matrices and 2 for
    vectors. Exports write the stack if `written` is the end of its name.
    """

    pattern: str
    names: tuple[str, ...]
    written: str = ""
    dims: int = 3


@dataclass(frozen=True)
class Family:
    """A published model family: its settings and tensors as two-way tables.

    `read` turns its config.json, with the tensor names of the file, into headway's configuration; `write` does the
    reverse, including "model_type" and "architectures". An export checks that `read(write(config))` is `config`, so
    `write` may ignore what it cannot express. `rules` returns the tensors of a configuration. `renames` are pairs of a
    regular expression and its replacement that turn older names, or names without a prefix, into the names of the
    rules; `stacked` are tensors of other files of the family that contain several of the rules' tensors each; `skipped`
    are expressions for tensors that are not weights (masks, position ids). `older` are superseded names of
    settings, which exports omit. `fused` are tensors of the file that contain several of the rules' tensors;
    `processor_files` reads and writes the files next to the weights if they differ from those of transformers.

    `fixed` are settings that the family's class in transformers uses and that must be null or one of these values here;
    `ignored` are those that change no output, even if other families fix them. `aliases` are
    common names for settings of the family; `towers` are settings with the nested settings of a part.
    """

    name: str
    read: Callable[[Settings, Collection[str]], ModelConfig]
    write: Callable[[Any], dict[str, Any]]
    rules: Callable[[Any], list[TensorRule]]
    renames: tuple[tuple[str, str], ...] = ()
    skipped: tuple[str, ...] = ()
    defaults: Mapping[str, Any] = field(default_factory=dict)  # values for keys that a config.json omits
    stacked: tuple[Stacked, ...] = ()
    older: tuple[str, ...] = ()
    fused: tuple[Fused, ...] = ()
    processor_files: ProcessorFiles | None = None
    fixed: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    ignored: Collection[str] = ()
    aliases: Mapping[str, str] = field(default_factory=dict)
    towers: tuple[str, ...] = ()


_LOG = logger(__name__)
_MAX_REPORTED = 8  # unknown settings listed in a warning

IGNORED = frozenset(
    """
    architectures auto_map model_type name_or_path _name_or_path _commit_hash transformers_version tokenizer_class
    tokenizer_name finetuning_task task_specific_params transformers.js_config unsloth_version unsloth_fixed
    sentence_transformers sbert_ce_default_activation_function is_original_qwen3_reranker

    dtype torch_dtype use_bfloat16 fp16 bf16 fusion_config attn_implementation _attn_implementation
    _attn_implementation_autoset _experts_implementation experts_implementation reorder_and_upcast_attn

    return_dict output_attentions output_hidden_states output_past output_router_logits output_scores torchscript
    return_dict_in_generate use_cache use_return_dict cache_implementation chunk_size_feed_forward
    tie_last_hidden_states pretraining_tp deterministic_flash_attn

    initializer_range initializer_factor initializer_cutoff_factor init_std gradient_checkpointing dropout
    attention_dropout attention_probs_dropout_prob activation_dropout hidden_dropout hidden_dropout_prob
    classifier_dropout classif_dropout resid_pdrop embd_pdrop attn_pdrop qa_dropout seq_classif_dropout layerdrop
    encoder_layerdrop decoder_layerdrop router_jitter_noise router_aux_loss_coef loss_type label_smoothing
    tf_legacy_loss keys_to_ignore_at_inference

    id2label label2id num_labels _num_labels function_to_apply bos_token_id eos_token_id pad_token_id sep_token_id
    cls_token_id mask_token_id unk_token_id decoder_start_token_id prefix max_sequence_length model_max_length
    is_encoder_decoder is_decoder thresholds

    bad_words_ids begin_suppress_tokens suppress_tokens do_sample early_stopping diversity_penalty epsilon_cutoff
    encoder_no_repeat_ngram_size encoder_repetition_penalty eta_cutoff exponential_decay_length_penalty
    forced_bos_token_id forced_eos_token_id forced_decoder_ids force_bos_token_to_be_generated length_penalty
    max_length min_length max_new_tokens no_repeat_ngram_size num_beams num_beam_groups num_return_sequences
    remove_invalid_values repetition_penalty temperature top_k top_p typical_p assistant_confidence_threshold
    assistant_lookbehind num_assistant_tokens num_assistant_tokens_schedule target_lookbehind
    """.split()  # noqa: SIM905
)

# Settings that transformers uses in every family, and the supported values; null is always supported.
FIXED: Mapping[str, tuple[Any, ...]] = {
    "is_causal": (True,),
    "per_layer_config": ({},),
    "pruned_heads": ({},),
    "quantization_config": ({},),
    "compression_config": ({},),
    "transformers_weights": (),
    "sub_configs": ({},),
    "problem_type": ("single_label_classification", "multi_label_classification", "regression"),
}


def check_fixed(family: Family, settings: Settings) -> None:
    """Raise UserError for a setting with an unsupported value."""
    for part in _sections(family, settings):
        for name, values in {**FIXED, **family.fixed}.items():
            if name not in family.ignored:
                part.require(name, *values)


def known_keys(family: Family) -> set[str]:
    """Return the settings that are accounted for before any is read."""
    return {*IGNORED, *FIXED, *family.fixed, *family.ignored, *family.defaults, *family.older, *family.aliases}


def report_unknown(family: Family, settings: Settings) -> None:
    """Log one line for settings that neither program knows, except for LeRobot's files, which have no model_type."""
    if "model_type" not in settings:
        return
    known = known_keys(family)
    unknown = sorted(
        part.path + name
        for part in _sections(family, settings)
        for name, value in part.values.items()
        if name not in known and part.path + name not in settings.used and value is not None
    )
    if unknown:
        more = f" and {len(unknown) - _MAX_REPORTED} more" if len(unknown) > _MAX_REPORTED else ""
        _LOG.warning(
            f"{settings.source} has settings that are unknown for {family.name} models: "
            f"{', '.join(unknown[:_MAX_REPORTED])}{more}; they are ignored, as in transformers"
        )


def with_aliases(family: Family, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return `values` with common names of settings replaced by the family's names: as in transformers, the common name
    takes precedence.
    """
    common = {canonical: values[name] for name, canonical in family.aliases.items() if values.get(name) is not None}
    return {**{name: value for name, value in values.items() if name not in family.aliases}, **common}


def _sections(family: Family, settings: Settings) -> Iterator[Settings]:
    yield settings
    for name in family.towers:
        yield settings.part(name)
