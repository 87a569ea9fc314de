"""How a published model is used, stored next to its weights: special tokens, labels, chat template, origin."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from torch import Tensor

from headway.config import from_dict, to_dict
from headway.errors import UserError
from headway.io.durable import read_json, write_json

FILE = "usage.json"
ProblemType = Literal["single_label_classification", "multi_label_classification", "regression"]
THRESHOLDS = "thresholds"  # in headway's exports: the probability from which each of several labels is predicted
PROBLEM = "problem_type"  # a published model's setting for the meaning of its classifier outputs
CROSS_ENCODER = "sentence_transformers"  # a published cross-encoder's settings, such as the activation of its score
_OLD_ACTIVATION = "sbert_ce_default_activation_function"  # the name of that setting until 2025


@dataclass(frozen=True)
class SentenceUsage:
    """How a sentence encoder takes texts: `prompts` by name, which come before a text, and the one to use by default.

    `max_length` is the maximum number of tokens, `lowercase` whether texts are lower-cased first, and `include_prompt`
    whether the tokens of the prompt are pooled. `similarity` names the function that compares the vectors.
    """

    prompts: dict[str, str] = field(default_factory=dict)
    default_prompt: str | None = None
    similarity: str | None = None
    max_length: int | None = None
    lowercase: bool = False
    include_prompt: bool = True


@dataclass(frozen=True)
class Usage:
    """How a model that was trained elsewhere is meant to be used.

    `family` and `settings` (its original config.json) allow exporting it again, as does `generation`, its
    generation_config.json. `begin` is the BOS id put before a prompt, `ends` are the EOS ids. A decoder starts with
    `decoder_start`, then the `forced` ids if there are any; `suppressed` ids are never generated. `labels` name the
    classes of a "classes" head, in order, and `counts` are the training samples per class. `thresholds` are the
    probabilities from which each label of a multi-label model is predicted. `template` is a jinja2 chat template.
    Lowercasing and other changes of text belong to the tokenizer. `processor` is its preprocessor_config.json: how
    images become inputs. `sentence` is how a sentence encoder takes texts.
    """

    family: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    begin: int | None = None
    ends: tuple[int, ...] = ()
    pad: int | None = None
    mask: int | None = None
    decoder_start: int | None = None
    forced: tuple[int, ...] = ()
    suppressed: tuple[int, ...] = ()
    labels: tuple[str, ...] = ()
    thresholds: tuple[float, ...] = ()
    counts: tuple[int, ...] = ()
    template: str | None = None
    generation: dict[str, Any] = field(default_factory=dict)
    processor: dict[str, Any] = field(default_factory=dict)
    sentence: SentenceUsage = SentenceUsage()

    def save(self, directory: Path) -> None:
        write_json(directory / FILE, to_dict(self))

    def to_train(self) -> Usage:
        """Return the usage of a model that is trained from this one: it sees texts of its whole context, unchanged, and
        its scores are the sigmoid of its outputs.
        """
        activations = (CROSS_ENCODER, _OLD_ACTIVATION)
        settings = {name: value for name, value in self.settings.items() if name not in activations}
        return replace(self, settings=settings, sentence=replace(self.sentence, max_length=None, default_prompt=None))

    @property
    def problem(self) -> ProblemType | None:
        """What the outputs of a classifier mean; None if unknown. UserError for an unknown problem_type."""
        problem = self.settings.get(PROBLEM)
        if problem is not None and problem not in get_args(ProblemType):
            known = ", ".join(get_args(ProblemType))
            raise UserError(f"{PROBLEM} is {problem!r:.80}, which is not supported; it may be {known}")
        return problem

    @property
    def decisions(self) -> dict[str, float]:
        """The probability from which each label of a multi-label model is predicted; empty for other models."""
        if self.problem != "multi_label_classification":
            return {}
        return dict(zip(self.labels, self.thresholds or (0.5,) * len(self.labels)))

    @property
    def relevance_activation(self) -> Literal["sigmoid", "identity"]:
        """What turns a cross-encoder's output into its score; sigmoid unless its settings name another. UserError for
        an unknown one.
        """
        settings = self.settings.get(CROSS_ENCODER)
        name = (settings.get("activation_fn") if isinstance(settings, dict) else None) or self.settings.get(
            _OLD_ACTIVATION, "Sigmoid"
        )
        activation = str(name).rpartition(".")[2].lower()
        if activation not in ("sigmoid", "identity"):
            raise UserError(
                f"the activation of the score is {name!r:.80}, which is not supported; use Sigmoid or Identity"
            )
        return activation  # type: ignore[return-value]

    def with_problem_type(self, problem: ProblemType, labels: tuple[str, ...] = ()) -> Usage:
        """Return the usage of a model that was trained on this kind of problem."""
        settings = {name: value for name, value in self.settings.items() if name != THRESHOLDS}
        return replace(self, labels=labels, thresholds=(), counts=(), settings={**settings, PROBLEM: problem})


def named_scores(logits: Tensor, usage: Usage) -> list[dict[str, float]]:
    """Return class probabilities from a head's logits, [N, C], sorted in descending order.

    A multi-label model has an independent probability per class. Regression outputs are returned unchanged, and so is
    the output of a head that has only one, as "value".
    """
    logits = logits.float()
    if usage.problem == "multi_label_classification":
        logits = logits.sigmoid()
    elif usage.problem != "regression" and logits.shape[-1] > 1:
        logits = logits.softmax(-1)
    is_single = logits.shape[-1] == 1 and usage.problem != "multi_label_classification"
    return [{"value": row[0]} if is_single else name_scores(row, usage.labels) for row in logits.tolist()]


def read_usage(directory: Path) -> Usage:
    """Read the usage saved next to a model; the default if there is no such file."""
    path = directory / FILE
    return from_dict(Usage, read_json(path), str(path)) if path.is_file() else Usage()


def name_scores(values: Sequence[float], labels: Sequence[str]) -> dict[str, float]:
    """Return a head's values by class name, in descending order. UserError if names are missing."""
    names = list(labels) or [f"LABEL_{number}" for number in range(len(values))]
    if len(names) != len(values):
        raise UserError(f"the model outputs {len(values)} classes but {len(names)} have names; name them all")
    return dict(sorted(zip(names, values), key=lambda pair: -pair[1]))
