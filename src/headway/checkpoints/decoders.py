"""What all published decoders share: the head that their class has, under one name of tensors for each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from headway.checkpoints.heads import labels, outputs
from headway.checkpoints.rules import Rule, rule, vocabulary
from headway.checkpoints.settings import Settings
from headway.errors import UserError
from headway.models import HeadConfig, PooledHeadConfig, TransformerConfig, VocabularyHeadConfig

CLASSES = "heads.classes.project.weight"


@dataclass(frozen=True)
class Classes:
    """The published classes of a family: with a vocabulary head, with a head for labels, and with neither."""

    vocabulary: str
    labels: str
    base: str

    @staticmethod
    def of(stem: str) -> Classes:
        """As most are called."""
        return Classes(f"{stem}ForCausalLM", f"{stem}ForSequenceClassification", f"{stem}Model")


class Heads(NamedTuple):
    """What a TransformerConfig says of its outputs."""

    heads: dict[str, HeadConfig]
    tie: Literal["none", "head"]


def read_heads(settings: Settings, soft_cap: float | None = None) -> Heads:
    """The head of the class that the file was saved from.

    A tied vocabulary is there even where a base model was saved, for it costs nothing. Labels are told from a row's
    last token. `soft_cap` is the vocabulary's. UserError for classes with other heads.
    """
    name, head = settings.architecture, VocabularyHeadConfig(soft_cap=soft_cap)
    if name.endswith("ForSequenceClassification"):
        return Heads({"classes": PooledHeadConfig(outputs(settings), "last", bias=False)}, "none")
    if name and not name.endswith(("ForCausalLM", "LMHeadModel", "Model")):
        raise UserError(
            f"{settings.source}: the head of {name} is not supported; "
            "give a model for generation (ForCausalLM), for labels (ForSequenceClassification) or without a head"
        )
    if settings.get("tie_word_embeddings", bool):
        return Heads({"vocabulary": head}, "head")
    if name.endswith("Model") and not name.endswith("LMHeadModel"):
        return Heads({}, "none")
    return Heads({"vocabulary": head}, "none")


def write_heads(config: TransformerConfig, classes: Classes) -> dict[str, Any]:
    """`read_heads` the other way: which class can load the model.

    The marks are none where nothing is known of them, and not those of the family's first model.
    """
    marks = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    if "classes" in config.heads:
        return {"architectures": [classes.labels], **labels(config.heads), **marks}
    name = classes.vocabulary if config.heads else classes.base
    return {"architectures": [name], "tie_word_embeddings": config.tie == "head", **marks}


def head_rules(config: TransformerConfig, theirs: str = "lm_head.weight") -> list[Rule]:
    """The tensors of the head; `theirs` is the vocabulary's, which is the embedding's where they are tied."""
    if "classes" in config.heads:
        return [rule(CLASSES, "score.weight")]
    return [vocabulary(config, "embed.table", theirs)] if config.heads else []
