"""Heads in published models: which ones a file has, and their names in config.json."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from copy import copy, deepcopy
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import nn

from headway.errors import UserError
from headway.formats.settings import Settings
from headway.formats.tensor_rules import TensorRule, linear, rule, vocabulary
from headway.nn.models import (
    DistilledHeadConfig,
    HeadConfig,
    ModelConfig,
    PooledHeadConfig,
    TransformerConfig,
    VocabularyHeadConfig,
)

POOLER = PooledHeadConfig(dense=True, activation="tanh")  # Devlin et al. 2019: the first token through a dense layer
SPAN, SPAN_TENSOR = PooledHeadConfig(2, pool="tokens"), "qa_outputs"  # whether an answer starts and ends at each token

ESM_FREQUENCIES = "esm.rotary_embeddings.inv_freq"  # rotary frequencies, which files of all of ESM's classes have

_HEAD_TENSORS = {  # names by which the families recognise heads, by the end of transformers' classes
    "ForPreTraining": (
        *("cls.predictions.bias", "cls.seq_relationship.weight", "bert.pooler.dense.weight"),
        *("discriminator_predictions.dense.weight", "predictions.bias", "sop_classifier.classifier.weight"),
    ),
    "ForMaskedLM": (
        *("cls.predictions.bias", "vocab_projector.bias", "lm_head.bias", "head.dense.weight"),
        *("generator_lm_head.bias", "predictions.bias", ESM_FREQUENCIES),
    ),
    "ForNextSentencePrediction": ("cls.seq_relationship.weight", "bert.pooler.dense.weight"),
    "ForSequenceClassification": (
        *("classifier.weight", "classifier.out_proj.weight", "head.dense.weight", "bert.pooler.dense.weight"),
        ESM_FREQUENCIES,
    ),
    "ForTokenClassification": ("classifier.weight", "head.dense.weight", ESM_FREQUENCIES),
    "ForQuestionAnswering": (f"{SPAN_TENSOR}.weight",),
    "ForImageClassificationWithTeacher": ("cls_classifier.weight",),
    "ForImageClassification": ("classifier.weight",),
    "M2M100ForConditionalGeneration": (),
    "ForConditionalGeneration": ("final_logits_bias", "lm_head.weight"),
    "MarianMTModel": ("final_logits_bias",),
    "Model": (
        *(f"{stem}.pooler.dense.weight" for stem in ("bert", "roberta", "mpnet", "vit", "deit", "esm")),
        *("albert.pooler.weight", ESM_FREQUENCIES),
    ),
}


def head_tensors(settings: Settings) -> tuple[str, ...]:
    """Return names of tensors that determine the heads, for a file of the class in `architectures`."""
    return next((names for end, names in _HEAD_TENSORS.items() if settings.architecture.endswith(end)), ())


def classifier(settings: Settings, names: Collection[str], weight: str) -> Literal["classes", "tags"] | None:
    """Whether the file's classifier, the tensor `weight`, labels whole texts or each token; None without one."""
    if weight not in names:
        return None
    kind = settings.architecture
    if kind.endswith("ForSequenceClassification"):
        return "classes"
    if kind.endswith("ForTokenClassification"):
        return "tags"
    raise UserError(
        f"{settings.source}: architectures is {kind!r}, whose classifier is unknown; "
        "it may be a ...ForSequenceClassification or a ...ForTokenClassification"
    )


def num_outputs(settings: Settings) -> int:
    """Return how many classes (or numbers) a classifier outputs."""
    labels = settings.part("id2label").values
    return len(labels) or settings.get("num_labels", int, 2)


def label_settings(heads: Mapping[str, HeadConfig]) -> dict[str, Any]:
    """Return the settings for the number of classes, with the default names of unnamed labels."""
    head = heads.get("classes") or heads.get("tags")
    if not isinstance(head, (PooledHeadConfig, DistilledHeadConfig)) or not head.outputs:
        return {}
    names = [f"LABEL_{i}" for i in range(head.outputs)]
    return {"id2label": {str(i): name for i, name in enumerate(names)}, "label2id": dict(zip(names, range(len(names))))}


def architecture(stem: str, heads: Mapping[str, HeadConfig]) -> list[str]:
    """Return the name of the transformers class that has these heads."""
    if "vocabulary" in heads:
        return [f"{stem}ForPreTraining" if "next" in heads else f"{stem}ForMaskedLM"]
    endings = {
        "classes": "ForSequenceClassification",
        "tags": "ForTokenClassification",
        "span": "ForQuestionAnswering",
        "next": "ForNextSentencePrediction",
        "replaced": "ForPreTraining",
    }
    return [stem + next((ending for name, ending in endings.items() if name in heads), "Model")]


def pooler(heads: Mapping[str, HeadConfig], source: str, outputs: Mapping[str, str]) -> list[TensorRule]:
    """Rules for the dense layer of the head that owns the file's pooler, and for the projections to `outputs`."""
    rules = []
    for name in ("pooled", "next", "classes"):
        head = heads.get(name)
        if isinstance(head, PooledHeadConfig) and head.dense:
            rules += linear(f"heads.{name}.dense", source)
    for name, output_source in outputs.items():
        if name in heads:
            rules += linear(f"heads.{name}.project", output_source)
    return rules


NUMBER = "number"  # the regression head; published models name it like the classification head


def to_classes_config(config: ModelConfig) -> ModelConfig:
    """`config` with a regression head as published models have it: a single class, neither scaled nor shifted."""
    head = config.heads.get(NUMBER) if isinstance(config, TransformerConfig) else None
    if not isinstance(config, TransformerConfig) or not isinstance(head, PooledHeadConfig):
        return config
    other_heads = {name: other_head for name, other_head in config.heads.items() if name != NUMBER}
    return replace(config, heads={**other_heads, "classes": replace(head, scale=1.0, shift=0.0)})


@torch.no_grad()
def to_classes_model(model: nn.Module) -> nn.Module:
    """Return `model` with the head of `to_classes_config`, whose weights include the scale and shift; other weights are
    shared. UserError for a head without a bias.
    """
    heads: Any = getattr(model, "heads", {})
    if NUMBER not in heads:
        return model
    config, clone = heads[NUMBER].config, copy(model)
    head = deepcopy(heads[NUMBER])
    if head.project.bias is None:
        raise UserError("the head has no bias, which a published regression needs; export to ONNX: --format onnx")
    head.project.weight.mul_(config.scale)
    head.project.bias.mul_(config.scale).add_(config.shift)
    head.config = replace(config, scale=1.0, shift=0.0)
    clone._modules = {**model._modules, "heads": nn.ModuleDict({"classes": head})}
    return clone


CLASSES, TOKENS = "heads.classes.project.weight", "ForTokenClassification"
_TAGGERS = {  # decoders that transformers has with a head for the class of each token
    "Apertus", "Arcee", "DeepseekV3", "Exaone4", "Gemma", "Gemma2", "Glm", "Glm4", "GptOss", "Helium", "Llama",
    "Ministral", "Mistral", "Mixtral", "Nemotron", "Persimmon", "Phi", "Phi3", "Qwen2", "Qwen2Moe", "Qwen3", "Qwen3Moe",
    "SeedOss", "SmolLM3", "StableLm", "Starcoder2",
}  # fmt: skip


@dataclass(frozen=True)
class PublishedClasses:
    """A family's class names: with a vocabulary head, with a head for labels, and without a head."""

    vocabulary: str
    labels: str
    base: str

    @staticmethod
    def of(stem: str) -> PublishedClasses:
        """The usual names."""
        return PublishedClasses(f"{stem}ForCausalLM", f"{stem}ForSequenceClassification", f"{stem}Model")


def read_heads(settings: Settings) -> dict[str, Any]:
    """Return the fields `heads` and `tie` of a configuration: the head of the class that the file was saved from.

    A tied vocabulary is present even if a base model was saved, because it costs nothing. Labels are predicted from the
    last token of a row, and tags from each token. UserError for classes with other heads.
    """
    name, vocabulary_head = settings.architecture, {"vocabulary": VocabularyHeadConfig()}
    if name.endswith("ForSequenceClassification"):
        return {"heads": {"classes": PooledHeadConfig(num_outputs(settings), "last", bias=False)}, "tie": "none"}
    if name.endswith(TOKENS) and name.removesuffix(TOKENS) in _TAGGERS:
        settings.require("token_classification_bias", True)
        return {"heads": {"tags": PooledHeadConfig(num_outputs(settings), "tokens")}, "tie": "none"}
    if name and not name.endswith(("ForCausalLM", "LMHeadModel", "Model")):
        raise UserError(
            f"{settings.source}: the head of {name} is not supported; "
            "use a model for generation (ForCausalLM), for labels (ForSequenceClassification) or without a head"
        )
    if settings.get("tie_word_embeddings", bool):
        return {"heads": vocabulary_head, "tie": "head"}
    is_base_model = name.endswith("Model") and not name.endswith("LMHeadModel")
    return {"heads": {} if is_base_model else vocabulary_head, "tie": "none"}


def write_heads(config: TransformerConfig, classes: PublishedClasses) -> dict[str, Any]:
    """Return the settings that name the class which can load the model; the reverse of `read_heads`.

    Unknown special tokens are null, not those of the family's first model.
    """
    special_tokens = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    if "classes" in config.heads:
        return {"architectures": [classes.labels], **label_settings(config.heads), **special_tokens}
    if "tags" in config.heads:
        return {
            "architectures": [classes.base.removesuffix("Model") + TOKENS],
            **label_settings(config.heads),
            **special_tokens,
        }
    name = classes.vocabulary if config.heads else classes.base
    return {"architectures": [name], "tie_word_embeddings": config.tie == "head", **special_tokens}


def head_rules(config: TransformerConfig, source: str = "lm_head.weight") -> list[TensorRule]:
    """Return the tensors of the head; `source` is the vocabulary's, or the embedding's if they are tied."""
    if "classes" in config.heads:
        return [rule(CLASSES, "score.weight")]
    if "tags" in config.heads:
        return linear("heads.tags.project", "score")
    return [vocabulary(config, "embed.table", source)] if config.heads else []
