"""Which settings of a published config.json are accounted for, so that none is silently ignored.

Every key that a family's class in transformers reads is read here (`Settings.used`, or a default of the family),
changes no output (`IGNORED`, `Family.ignored`), or is limited to certain values (`FIXED`, `Family.fixed`). Any other
key is unknown to both programs and is reported.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from headway.errors import logger
from headway.formats.settings import Settings
from headway.formats.tensor_rules import Family

_LOG = logger(__name__)
_MAX_REPORTED = 8  # unknown settings listed in a warning

IGNORED = frozenset(
    """
    architectures auto_map model_type name_or_path _name_or_path _commit_hash transformers_version tokenizer_class
    tokenizer_name finetuning_task task_specific_params transformers.js_config unsloth_version unsloth_fixed

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


def unknown_keys(family: Family, settings: Settings) -> list[str]:
    """Return the settings that are still unaccounted for after `family` has read the file."""
    known = known_keys(family)
    unknown = [
        part.path + name
        for part in _sections(family, settings)
        for name, value in part.values.items()
        if name not in known and part.path + name not in settings.used and value is not None
    ]
    return sorted(unknown)


def report_unknown(family: Family, settings: Settings) -> None:
    """Log one line for settings that neither program knows, except for LeRobot's files, which have no model_type."""
    unknown = unknown_keys(family, settings) if "model_type" in settings else []
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
