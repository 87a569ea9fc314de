"""How an agent of a user's episodes is fitted to their amount and to the time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from headway.data.recordings import outline
from headway.domains.trajectories.windows import Trajectories
from headway.learn import Recipe, Task
from headway.learn.scale import Scale, Settings, Settled, Shapes

_SHAPES = (
    (32, 1, 1), (48, 2, 2), (64, 2, 2), (96, 2, 3), (128, 3, 4), (192, 3, 6), (256, 4, 8), (384, 4, 6), (512, 6, 8),
)  # fmt: skip
_CONTEXT = 20  # steps, of which shorter episodes do not have so many
_PLAYED = (4, 32)  # the fewest and the most episodes of an evaluation
_FEW, _MANY = 2, 50  # episodes that are held out of each side, at the least and at the most


@dataclass(frozen=True)
class EpisodesScale(Scale):
    """Batches are counted by timesteps, each of which is foretold in every window that it stands in; more minutes let
    more episodes be played.
    """

    least: int = 320
    most: int = 20480
    unit: str = "timestep"
    shapes: Shapes = _SHAPES

    def settle(self, recipe: Recipe, paths: Sequence[Path], minutes: float) -> Settled:
        lengths = outline(paths)
        context = max(1, min(_CONTEXT, max(lengths)))
        few, many = _PLAYED
        played = min(many, max(few, round(few * math.sqrt(minutes))))
        count = len(lengths)
        share = round(min(0.2, max(_FEW / count, min(0.1, _MANY / count))), 6)
        reason = (
            f"windows of {context} steps for {count:,} episodes of {sum(lengths):,} steps; {played} episodes "
            "are played at an evaluation, where the environment is known"
        )
        settings = {"task.context": context, "task.episodes": played}
        return Settled({**settings, "task.split.validation": share, "task.split.test": share}, reason)

    def amount(self, task: Task) -> int:
        examples = cast(Trajectories, cast(Task, task).examples)
        return int(examples.episodes.lengths[examples.splits.rows("train")].sum())

    def regularised(self, recipe: Recipe, epochs: float, crowd: float) -> Settings:
        return {"model.dropout": 0.0 if epochs < 100 else 0.1}


SCALES = {"trajectories": EpisodesScale()}
