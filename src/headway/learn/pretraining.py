"""Pre-training: the stage on unlabelled data before a recipe's own training, and whether a gain is expected."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from jaxtyping import Float

from headway.errors import UserError
from headway.formats.out_of_distribution import SampleStatistics
from headway.learn.examples import spread_evenly
from headway.learn.formatting import format_number
from headway.learn.plan.plans import tuning_epochs
from headway.learn.plan.scale import Scale, Settings
from headway.learn.recipe import Recipe
from headway.learn.task import Task

_MIN_LABELLED_SHARE, _MAX_LABELLED_SHARE = 0.15, 0.3  # of the minutes for training on the labels
_EPOCHS = 10.0  # epochs of the first stage that epochs over the labelled samples are compared with
# No gain is expected beyond these limits: unlabelled per labelled samples, labelled samples, share that is similar.
# For banking77, that share is 98 % with its own questions, which help, and 55 % with Shakespeare, who does not.
_MIN_RATIO, _MAX_LABELLED, _MIN_SIMILAR = 2.0, 5000, 0.6

T = TypeVar("T")


class UnlabelledData(NamedTuple):
    """What the stage learns from: `rows` of unlabelled and labelled training samples without duplicates, the numbers of
    unlabelled and labelled samples, and what a sample is called. `similar` is the share of the labelled samples, or of
    their parts, that is like the unlabelled ones (None: unknown), `measure` describes that share, and `difference` why
    it may be small. `finding` is a measured result by which no gain is expected for this kind of data at all.
    """

    rows: Sequence[Mapping[str, Any]]
    unlabelled: int
    labelled: int
    noun: str
    similar: float | None
    measure: str
    difference: str
    finding: str | None = None

    @property
    def share(self) -> float:
        """The share of the minutes for the stage on unlabelled data. Few labelled samples are learned soon."""
        labelled = self.labelled * tuning_epochs(self.labelled)
        labelled_share = labelled / (labelled + _EPOCHS * (self.unlabelled + self.labelled))
        return 1 - min(max(labelled_share, _MIN_LABELLED_SHARE), _MAX_LABELLED_SHARE)

    @property
    def doubt(self) -> str | None:
        """Why no gain is expected; None if one is."""
        if self.similar is not None and self.similar < _MIN_SIMILAR:
            return f"only {self.similar:.0%} {self.measure}, {self.difference}"
        if self.unlabelled < _MIN_RATIO * self.labelled:
            return f"{self.unlabelled:,} unlabelled {self.noun} are few compared with {self.labelled:,} labelled ones"
        if self.labelled > _MAX_LABELLED:
            return f"{self.labelled:,} labelled {self.noun} are enough to learn from without pre-training"
        return self.finding


@dataclass(frozen=True)
class Pretraining:
    """How a recipe is pre-trained.

    stage: the recipe that trains the model on unlabelled data, for a recipe's model.
    settings: the settings of that stage for a recipe with its `tuning`.
    tuning: settings of a recipe when it starts from that stage, unless the user sets them.
    read: the unlabelled data at the paths, and the training samples of the recipe's task. Raises UserError for data
        that cannot be read.
    """

    stage: Callable[[Recipe], str]
    settings: Callable[[Recipe], Settings]
    tuning: Callable[[Recipe], Settings]
    read: Callable[[Recipe, Task, Sequence[Path]], UnlabelledData]


def similar_share(
    unlabelled: Sequence[T], labelled: Sequence[T], measure: Callable[[T], Float[np.ndarray, "F"]], limit: int
) -> float | None:
    """The share of the labelled samples whose statistics, by `measure`, are not outliers among those of the unlabelled
    ones, from at most `limit` of each; None for too few unlabelled ones. Unreadable samples are left out.
    """
    statistics = []
    for samples in (unlabelled, labelled):
        measured = []
        for row in spread_evenly(np.arange(len(samples)), limit).tolist():
            with suppress(UserError):  # the stage reports it
                measured.append(measure(samples[row]))
        statistics.append(np.stack(measured) if measured else np.zeros((0, 1)))
    fitted = SampleStatistics.fit(statistics[0])
    if fitted is None or not len(statistics[1]):
        return None
    return 1 - float(fitted.find_outliers(statistics[1]).mean())


def labelled_settings(recipe: Recipe, scales: Mapping[str, Scale]) -> Settings:
    """The settings of the task that suit the labelled data, if the recipe has a scale and is thus for any data."""
    if recipe.name not in scales:
        return {}
    paths = recipe.files(list(map(Path, recipe.data)))
    settings = scales[recipe.name].data_settings(recipe, paths, 1.0).settings
    return {name: value for name, value in settings.items() if name.startswith("task.")}


def describe_stages(stage: str, data: UnlabelledData, minutes: float) -> tuple[str, str]:
    """How the stages share the minutes, and whether a gain is expected, for people."""
    first, noun = data.share * minutes, data.noun
    plan = (
        f"pre-training ({stage}) takes {format_number(first)} of {format_number(minutes)} minutes on "
        f"{data.unlabelled:,} unlabelled and {data.labelled:,} labelled {noun}; training on the labels has the rest"
    )
    if data.doubt is not None:
        return plan, f"no gain from pre-training is expected: {data.doubt}"
    ratio = data.unlabelled / max(1, data.labelled)
    likeness = "" if data.similar is None else f", and {data.similar:.0%} {data.measure}"
    return plan, (
        f"a gain from pre-training is expected: {format_number(ratio)} times as many unlabelled as labelled {noun}"
        f"{likeness}"
    )
