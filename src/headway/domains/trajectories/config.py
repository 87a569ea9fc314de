"""The task as data, and what it makes of files: episodes, their scales, where they are judged."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from headway.config import checked, register
from headway.data import SplitConfig, sides_of
from headway.data.episodes import Episodes, joined
from headway.data.recordings import read_episodes
from headway.domains.trajectories.codec import FILE, TrajectoryCodec, fitted, read_codec
from headway.domains.trajectories.rollout import check_fits, check_known
from headway.domains.trajectories.task import Trajectories, nothing_left
from headway.environments import AT_ONCE, VARIABLE, Copies, Mixture, Recorder, check_stored
from headway.errors import ConfigError, UserError
from headway.models import ModelConfig, TrajectoryEmbedConfig, TransformerConfig
from headway.train import Recipe, TaskConfig

_LOG = logging.getLogger(__name__)


@register("trajectories")
@checked
@dataclass(frozen=True)
class TrajectoriesConfig(TaskConfig):
    """Say the actions of episodes from the states and, with `condition`, the returns that were still to come.

    Windows have `context` steps. Without `condition` this is behaviour cloning; `best` is the share of training
    episodes that are learnt from, those of the highest returns. `states` and `returns` weigh the squared errors of the
    next state and return-to-go, of which a model of trajectories learns (0: not said). Returns are divided by `scale`,
    none for the largest of the training data.

    Where an environment is known (`env`, or what the data say, or HEADWAY_ENV), `episodes` are played there at each
    evaluation, asked for the return `target`, none for the best of the training data; with 0 held-out episodes judge
    alone. `draw` draws choices by their probabilities, as the paper does for Atari, in place of the most probable.
    `random` episodes of a policy of chance are recorded there and added to the data, though not to its split "all".
    Episodes that are equal never stand on two sides of the `split`.
    """

    context: int = 20  # steps of a window
    condition: bool = True  # whether returns-to-go are read; without, behaviour cloning
    best: float = 1.0  # share of training episodes that are learnt from, the best
    states: float = 0.0  # weight of the loss of the next state
    returns: float = 0.0  # weight of the loss of the next return-to-go
    scale: float | None = None  # what returns are divided by; none: the largest of the training data
    env: str | None = None  # environment; none: what the data say
    episodes: int = 10  # played at each evaluation; 0: none
    target: float | None = None  # return that is asked for; none: the best of the training data
    draw: bool = False  # draw choices by their probabilities
    random: int = 0  # episodes of a random policy that are added to the data
    split: SplitConfig = SplitConfig(validation=0.1, test=0.1)  # what is held out

    def __post_init__(self) -> None:
        if self.context < 1 or min(self.episodes, self.random) < 0 or min(self.states, self.returns) < 0:
            raise ConfigError(
                f"task.context is {self.context}, task.episodes {self.episodes}, task.random {self.random}, "
                f"task.states {self.states} and task.returns {self.returns}; give 1 step or more, nothing below 0"
            )
        if not 0 < self.best <= 1:
            raise ConfigError(f"task.best is {self.best}; give a share of the episodes above 0, and at most 1")
        if self.scale is not None and not self.scale > 0:
            raise ConfigError(f"task.scale is {self.scale}; give a number above 0, or none")
        if self.returns and not self.condition:
            raise ConfigError(
                f"task.returns is {self.returns} without task.condition; set it to 0, or condition to true"
            )

    def open(self, recipe: Recipe, data: Sequence[Path] | None, workspace: Path) -> Trajectories:
        """Raises UserError for data that cannot be read, and for environments that are not there or do not fit."""
        model = check_model(recipe.model)
        rows = recipe.train.rows(self.context)
        known = read_codec(workspace) if (workspace / FILE).is_file() else None
        episodes = read_episodes(recipe.files(data))
        given = len(episodes)
        name = self._environment(episodes)
        copies = self._copies(name)
        if self.random:
            episodes = self._with_random(episodes, copies)
        sides = sides_of(episodes.keys(), episodes.named, self.split)
        if known is None and not len(sides["train"]):
            raise nothing_left(episodes)
        sides["train"] = self._best(episodes, sides["train"])
        codec = self._codec(episodes, sides["train"], name, copies, known)
        check_known(codec, episodes)
        if copies is not None:
            check_fits(codec, copies)
        _check_spaces(model, codec, recipe.start is not None)
        return Trajectories(self, episodes, given, sides, codec, copies, rows, recipe.train.seed)

    def _environment(self, episodes: Episodes) -> str:
        """The name of the environment in which the model is judged; "" where none is known."""
        given = os.environ.get(VARIABLE)
        if given:
            return given
        if self.env is not None:
            return check_stored(self.env)
        if ":" not in episodes.environment:
            return episodes.environment
        if self.episodes:
            _LOG.warning(
                "the data were recorded in %s, code that they may not ask for: models are judged by held-out episodes; "
                "set %s=%s to have them play there",
                episodes.environment,
                VARIABLE,
                episodes.environment,
            )
        return ""

    def _copies(self, name: str) -> Copies | None:
        if not name or not (self.episodes or self.random):
            return None
        try:
            return Copies(name, max(1, min(AT_ONCE, self.episodes)))
        except UserError as error:
            raise UserError(f"{error}; or set task.episodes=0 to judge by held-out episodes alone") from error

    def _with_random(self, episodes: Episodes, copies: Copies | None) -> Episodes:
        if copies is None:
            raise ConfigError(
                f"task.random is {self.random}, and no environment is known; set task.env, or random to 0"
            )
        recorder = Recorder(copies, [Mixture(None, 1.0)], seed=0, horizon=None)
        recorder.run(self.random, at_once=1)
        return joined([episodes, recorder.episodes()], ["the data", f"the environment {copies.name!r}"])

    def _best(self, episodes: Episodes, training: np.ndarray) -> np.ndarray:
        count = max(1, round(self.best * len(training)))
        order = np.argsort(-episodes.returns[training], kind="stable")[:count]
        return np.sort(training[order])

    def _codec(
        self,
        episodes: Episodes,
        training: np.ndarray,
        name: str,
        copies: Copies | None,
        known: TrajectoryCodec | None,
    ) -> TrajectoryCodec:
        """The one that is `known`, of the run or of the model that it starts from; else one of the training data."""
        if known is not None:
            target = known.target if self.target is None else self.target
            return replace(known, target=target, context=self.context, environment=name, draw=self.draw)
        choices = copies.spaces.choices if copies is not None else None
        return fitted(
            episodes,
            training,
            self.context,
            scale=self.scale,
            target=self.target,
            choices=choices,
            environment=name,
            draw=self.draw,
        )


def check_model(model: ModelConfig) -> TransformerConfig:
    """Raises ConfigError for a model that reads no trajectories, or sees what is still to come."""
    if not isinstance(model, TransformerConfig) or not isinstance(model.embed, TrajectoryEmbedConfig):
        raise ConfigError(
            f"this task needs a model whose embed is trajectories, and this {type(model).__name__} has another; "
            "take that of the recipe, or decision-hopper"
        )
    if not model.stack.causal:
        raise ConfigError("this model sees later steps, which an agent does not know yet; choose causal mixers")
    return model


def _check_spaces(model: TransformerConfig, codec: TrajectoryCodec, started: bool) -> None:
    """ConfigError for a model that reads numbers where the data have images, or the reverse; and for one that is
    `started` from whose weights are for other states or actions than the data's. Others get the data's sizes.
    """
    embed = model.embed
    assert isinstance(embed, TrajectoryEmbedConfig)
    shape, wanted = codec.seen, embed.states.shape
    if len(wanted) != len(shape):
        kind = '{"kind": "patches", "patch": [8, 8]}' if codec.image else "numbers"
        raise ConfigError(
            f"the model reads states by {embed.states.kind}, and the data have {_by(shape)}; "  # type: ignore[attr-defined]
            f"set model.embed.states='{kind}'"
        )
    if not started:
        return
    if wanted != shape:
        raise ConfigError(
            f"the model that is started from reads states of {_by(wanted)}, and the data have {_by(shape)}; "
            "give episodes of the environment that it knows"
        )
    if (embed.actions, embed.discrete) != (codec.actions, codec.choices is not None):
        own, theirs = (
            f"{count} {'choices' if discrete else 'numbers'}"
            for count, discrete in ((embed.actions, embed.discrete), (codec.actions, codec.choices is not None))
        )
        raise ConfigError(
            f"the model that is started from takes actions of {own}, and the data have {theirs}; give episodes of the "
            "environment that it knows"
        )


def _by(shape: Sequence[int]) -> str:
    return f"{' x '.join(map(str, shape))} numbers"
