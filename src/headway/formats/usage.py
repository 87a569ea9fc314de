"""What a published model says about its use, beside its weights: marks, labels, chat template, origin."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from torch import Tensor

from headway.config import from_dict, to_dict
from headway.errors import UserError
from headway.formats.durable import read_json, write_json

FILE = "usage.json"
ProblemType = Literal["single_label_classification", "multi_label_classification", "regression"]
THRESHOLDS = "thresholds"  # of our exports: the probability from which on each of several labels is predicted
PROBLEM = "problem_type"  # the setting of a published model that says what its classifier's outputs mean


@dataclass(frozen=True)
class Usage:
    """How a model that was trained elsewhere wants to be used.

    `family` and `settings` (its config.json as it was) let it be exported again, as does `generation`, its
    generation_config.json. `begin` is put before a prompt, any of `ends` ends a text. A decoder starts with
    `decoder_start`, then `forced` ids if there are; `suppressed` ids are never written. `labels` name the classes
    of a "classes" head, in order, and `counts` are the training samples of each. `thresholds` are the probabilities
    from which on each of several labels at once is predicted. `template` is a jinja2 chat template. `lowercase` and
    other changes of text are the tokenizer's own. `processor` is its preprocessor_config.json: how images become its
    inputs.
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

    def save(self, directory: Path) -> None:
        write_json(directory / FILE, to_dict(self))

    @property
    def problem(self) -> ProblemType | None:
        """What the outputs of a classifier mean; None if nothing says it. UserError for an unknown problem_type."""
        found = self.settings.get(PROBLEM)
        if found is not None and found not in get_args(ProblemType):
            known = ", ".join(get_args(ProblemType))
            raise UserError(f"{PROBLEM} is {found!r:.80}, which is not supported; it may be {known}")
        return found

    @property
    def decisions(self) -> dict[str, float]:
        """The probability from which on each label is predicted, of a model that predicts several labels at once; of
        others nothing.
        """
        if self.problem != "multi_label_classification":
            return {}
        return dict(zip(self.labels, self.thresholds or (0.5,) * len(self.labels)))

    def for_problem(self, problem: ProblemType, labels: tuple[str, ...] = ()) -> Usage:
        """The usage of a model that was trained on this kind of problem."""
        settings = {name: value for name, value in self.settings.items() if name != THRESHOLDS}
        return replace(self, labels=labels, thresholds=(), counts=(), settings={**settings, PROBLEM: problem})


def named_scores(logits: Tensor, usage: Usage) -> list[dict[str, float]]:
    """What a head's logits, [N, C], say of the classes: probabilities, the greatest first.

    Each class has a probability of its own if the model was trained for several labels at once. Outputs of a regression
    are returned as they are, and so is the output of a head that has only one, as "value".
    """
    logits = logits.float()
    if usage.problem == "multi_label_classification":
        logits = logits.sigmoid()
    elif usage.problem != "regression" and logits.shape[-1] > 1:
        logits = logits.softmax(-1)
    one = logits.shape[-1] == 1 and usage.problem != "multi_label_classification"
    return [{"value": row[0]} if one else named(row, usage.labels) for row in logits.tolist()]


def read_usage(directory: Path) -> Usage:
    """What was saved beside a model; nothing is said where there is no such file."""
    path = directory / FILE
    return from_dict(Usage, read_json(path), str(path)) if path.is_file() else Usage()


def named(values: Sequence[float], labels: Sequence[str]) -> dict[str, float]:
    """What a head says of each class, by the classes' names, the greatest first; UserError where names are missing."""
    names = list(labels) or [f"LABEL_{number}" for number in range(len(values))]
    if len(names) != len(values):
        raise UserError(f"the model gives {len(values)} classes and {len(names)} have names; name them all")
    return dict(sorted(zip(names, values), key=lambda pair: -pair[1]))
