"""The task as data, and the environments that it opens."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from headway.config import checked, register
from headway.domains.agents.codec import codec_of
from headway.domains.agents.task import Agents, check_model
from headway.environments import AT_ONCE, VARIABLE, Copies, check_stored
from headway.errors import ConfigError, UserError
from headway.train import Recipe, TaskConfig


@register("ppo")
@checked
@dataclass(frozen=True)
class PPOConfig(TaskConfig):
    """Learn in the environment `env`, or that of HEADWAY_ENV, by proximal policy optimisation (Schulman et al. 2017).

    Again and again the policy does `steps` steps in each of so many `copies` of it, and learns from these in `epochs`
    readings. Rewards after t steps count by `discount`^t; `trace` is the lambda of generalised advantage estimation.
    `clip` bounds how far the probability of an action may go in a period, `value_clip` a value (none: it is not bound).
    `value` and `entropy` weigh the error of values and the entropy. Actions that are numbers begin with the standard
    deviation `std`, of the 1 that their bounds are from their middle. `scale_rewards` divides rewards by the standard
    deviation of returns.

    The policy sees the last `context` states. An episode ends after `horizon` steps, none where the environment has a
    limit itself; either is a limit of time, after which the value of the state still counts. `episodes` are played at
    each evaluation, in which the most probable action is done, or with `draw` one is drawn as in training.
    """

    env: str | None = None  # an environment of gymnasium's, by its name
    copies: int = 16  # of the environment, side by side
    steps: int = 256  # of each copy in a period
    epochs: int = 8  # readings of a period
    discount: float = 0.995  # what a reward counts a step later
    trace: float = 0.95
    clip: float = 0.2
    value_clip: float | None = None  # how far a value may go in a period
    value: float = 0.5  # weight of the error of values
    entropy: float = 0.01  # weight of the entropy of actions
    std: float = 1.0  # of actions that are numbers, at the start
    scale_rewards: bool = True
    context: int = 1  # states that the policy sees
    horizon: int | None = None  # steps after which an episode is cut
    episodes: int = 16
    draw: bool = False  # whether actions are drawn where a policy is judged

    makes_data: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name in ("copies", "steps", "epochs", "context", "episodes"):
            if getattr(self, name) < 1:
                raise ConfigError(f"task.{name} is {getattr(self, name)}; give 1 or more")
        if self.horizon is not None and self.horizon < 1:
            raise ConfigError(f"task.horizon is {self.horizon}; give 1 step or more, or none")
        for name in ("discount", "trace"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"task.{name} is {getattr(self, name)}; give a number from 0 to 1")
        if not self.clip > 0 or (self.value_clip is not None and not self.value_clip > 0):
            raise ConfigError(f"task.clip is {self.clip}, task.value_clip {self.value_clip}; give numbers above 0")
        if not self.std > 0:
            raise ConfigError(f"task.std is {self.std}; give a standard deviation above 0")
        if min(self.value, self.entropy) < 0:
            raise ConfigError(f"task.value is {self.value}, task.entropy {self.entropy}; give 0 or more")

    def open(self, recipe: Recipe, data: Sequence[Path] | None, workspace: Path) -> Agents:
        """Raises UserError for an environment that there is not, or that no agent of ours can learn in."""
        if recipe.data:
            raise UserError(
                f"an agent learns from its environment alone, and data are given ({recipe.data[0]}); "
                "leave --data out, or learn from episodes by the recipe trajectories"
            )
        check_model(recipe.model)
        rows = self._rows(recipe)
        name = os.environ.get(VARIABLE) or (check_stored(self.env) if self.env is not None else "")
        if not name:
            raise UserError(
                f"no environment is named; set task.env=CartPole-v1 or another of gymnasium's, or "
                f"{VARIABLE}=module:Name for one of your own"
            )
        with ExitStack() as stack:
            copies = stack.enter_context(Copies(name, self.copies))
            codec = codec_of(copies, self.context, self.horizon, self.draw)
            judged = stack.enter_context(Copies(name, min(AT_ONCE, self.episodes)))
            stack.pop_all()  # they stay open but where this raises
        return Agents(self, codec, copies, judged, rows, recipe.train.seed)

    def _rows(self, recipe: Recipe) -> int:
        """Steps of a batch. ConfigError for what does not divide those that are learnt from at a time."""
        rows, whole = recipe.train.rows(1), self.copies * self.steps
        if whole % rows:
            raise ConfigError(
                f"batches of {rows} do not divide the {whole:,} steps of {self.copies} copies x {self.steps}; set "
                f"train.batch_size to a divisor such as {max(d for d in range(1, rows + 1) if whole % d == 0)}"
            )
        return rows
