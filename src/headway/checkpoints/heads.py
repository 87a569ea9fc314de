"""The heads that published encoders come with: which a file has, and how its config.json calls them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Literal

from headway.checkpoints.rules import Rule, linear
from headway.checkpoints.settings import Settings
from headway.errors import UserError
from headway.models import DistilledHeadConfig, HeadConfig, PooledHeadConfig

POOLER = PooledHeadConfig(dense=True, activation="tanh")  # Devlin et al. 2019: the first token through a dense layer


def classifier(settings: Settings, names: Collection[str], weight: str) -> Literal["classes", "tags"] | None:
    """Whether the file's classifier, the tensor `weight`, speaks of whole texts or of each token; None without one."""
    if weight not in names:
        return None
    kind = settings.architecture
    if kind.endswith("ForSequenceClassification"):
        return "classes"
    if kind.endswith("ForTokenClassification"):
        return "tags"
    raise UserError(
        f"{settings.source}: architectures is {kind!r}, whose classifier is not known; "
        "it may be a ...ForSequenceClassification or a ...ForTokenClassification"
    )


def outputs(settings: Settings) -> int:
    """How many classes (or numbers) a classifier gives."""
    labels = settings.part("id2label").values
    return len(labels) or settings.get("num_labels", int, 2)


def labels(heads: Mapping[str, HeadConfig]) -> dict[str, Any]:
    """The settings that say how many classes there are, by the names they have before anyone named them."""
    head = heads.get("classes") or heads.get("tags")
    if not isinstance(head, (PooledHeadConfig, DistilledHeadConfig)) or not head.outputs:
        return {}
    names = [f"LABEL_{i}" for i in range(head.outputs)]
    return {"id2label": {str(i): name for i, name in enumerate(names)}, "label2id": dict(zip(names, range(len(names))))}


def architecture(stem: str, heads: Mapping[str, HeadConfig]) -> list[str]:
    """The class of transformers that has these heads."""
    if "vocabulary" in heads:
        return [f"{stem}ForPreTraining" if "next" in heads else f"{stem}ForMaskedLM"]
    endings = {
        "classes": "ForSequenceClassification",
        "tags": "ForTokenClassification",
        "next": "ForNextSentencePrediction",
    }
    return [stem + next((ending for name, ending in endings.items() if name in heads), "Model")]


def pooler(heads: Mapping[str, HeadConfig], theirs: str, outputs: Mapping[str, str]) -> list[Rule]:
    """The dense layer of whichever head the file's pooler belongs to, and the maps to `outputs` after it."""
    found = []
    for name in ("pooled", "next", "classes"):
        head = heads.get(name)
        if isinstance(head, PooledHeadConfig) and head.dense:
            found += linear(f"heads.{name}.dense", theirs)
    for name, theirs_out in outputs.items():
        if name in heads:
            found += linear(f"heads.{name}.project", theirs_out)
    return found
