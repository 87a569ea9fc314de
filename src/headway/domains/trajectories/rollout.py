"""Episodes that a model plays, and what they are worth."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from headway.data.episodes import Episodes, described
from headway.domains.trajectories.acting import Actor
from headway.domains.trajectories.codec import TrajectoryCodec
from headway.environments import Copies, Returns, played
from headway.environments.film import Watch
from headway.errors import UserError
from headway.generate.prompts import evaluating
from headway.models import Transformer


def check_fits(codec: TrajectoryCodec, copies: Copies) -> None:
    """UserError for an environment whose states or actions are not those of the model."""
    spaces = copies.spaces
    if codec.choices != spaces.choices or (codec.choices is None and len(codec.reach) != spaces.numbers):
        raise UserError(
            f"the environment {copies.name!r} takes actions of {spaces.told}, and this model says {codec.told}; "
            "choose an environment that fits (--env), or train on episodes of this one"
        )
    if codec.shape != spaces.shape:
        seen, wanted = (described(np.empty((1, *shape))) for shape in (spaces.shape, codec.shape))
        raise UserError(
            f"the environment {copies.name!r} shows states of {seen}, and this model reads {wanted}; choose an "
            "environment that fits (--env), or train on episodes of this one"
        )


def check_known(codec: TrajectoryCodec, episodes: Episodes) -> None:
    """UserError for episodes whose states or actions are not those that the codec scales."""
    shape, choices = tuple(episodes.states.shape[1:]), codec.choices
    if shape != codec.shape:
        seen, wanted = (described(np.empty((1, *each))) for each in (shape, codec.shape))
        raise UserError(
            f"the data have states of {seen}, and this model reads {wanted}; give episodes of its environment"
        )
    largest = int(episodes.actions.max()) if episodes.discrete else -1
    fits = largest < (choices or 0) if episodes.discrete else episodes.actions.shape[1] == len(codec.reach)
    if not fits:
        told = f"the choice {largest}" if episodes.discrete else f"{episodes.actions.shape[1]} numbers"
        own = codec.told if choices is None else f"{codec.told}, from 0 on"
        raise UserError(f"the data have actions of {told}, and there are {own}; give episodes of one environment")


def play(
    model: Transformer,
    codec: TrajectoryCodec,
    copies: Copies,
    target: float,
    seeds: Sequence[int],
    watch: Watch | None = None,
) -> Returns:
    """An episode from each seed, asked for the return `target`; `watch` sees each step of the first one."""
    with evaluating(model):
        return played(lambda some: Actor(model, codec, [target] * len(some), some), copies, seeds, watch)
