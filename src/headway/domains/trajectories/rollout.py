"""Episodes that a model plays, and what they are worth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from headway.data.episodes import Episodes, described
from headway.domains.trajectories.acting import Actor
from headway.domains.trajectories.codec import TrajectoryCodec
from headway.environments import Copies, normalised
from headway.environments.film import Watch
from headway.errors import UserError
from headway.generate.prompts import evaluating
from headway.metrics import bootstrap_mean
from headway.models import TrajectoryEmbed, Transformer

AT_ONCE = 16  # episodes side by side


class Played(NamedTuple):
    """Returns and lengths of E episodes, by their number. `cut` counts those that the model's timesteps ended."""

    returns: np.ndarray
    lengths: np.ndarray
    cut: int


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
) -> Played:
    """An episode from each seed, asked for the return `target`; `watch` sees each step of the first one."""
    found: list[tuple[float, int, bool]] = []
    with evaluating(model):
        for start in range(0, len(seeds), AT_ONCE):
            some = seeds[start : start + AT_ONCE]
            found += _side_by_side(
                Actor(model, codec, [target] * len(some), some), copies, some, watch if not start else None
            )
    returns, lengths, cut = zip(*found)
    return Played(np.array(returns), np.array(lengths), sum(cut))


def _side_by_side(
    actor: Actor, copies: Copies, seeds: Sequence[int], watch: Watch | None
) -> list[tuple[float, int, bool]]:
    """Return and length of each episode, and whether it was cut off as the model knows no later timestep."""
    longest = actor_limit(actor)
    rows = np.arange(len(seeds))
    states = np.stack([copies.reset(row, seed) for row, seed in enumerate(seeds)])
    returns, lengths, cut = np.zeros(len(seeds)), np.zeros(len(seeds), int), np.zeros(len(seeds), bool)
    while len(rows):
        if watch is not None and rows[0] == 0:
            watch(copies.frame)
        actions = actor.act(states)
        if copies.spaces.choices is None:
            actions = np.clip(actions, copies.spaces.low, copies.spaces.high)
            actor.took(actions)
        steps = [copies.step(row, action) for row, action in zip(rows.tolist(), actions)]
        rewards = np.array([step.reward for step in steps])
        returns[rows] += rewards
        lengths[rows] += 1
        over = np.array([step.ended or step.cut for step in steps])
        cut[rows] = ~over & (lengths[rows] >= longest)
        actor.take(rewards)
        going = np.flatnonzero(~over & ~cut[rows])
        if len(going) < len(rows):
            actor.select(going)
        rows, states = rows[going], np.array([steps[place].state for place in going])
    return list(zip(returns.tolist(), lengths.tolist(), cut.tolist()))


def actor_limit(actor: Actor) -> int:
    """The most steps of an episode that the model has timesteps for."""
    embed: TrajectoryEmbed = actor.embed
    return embed.config.timesteps


def worth(played: Played, environment: str) -> dict[str, Any]:
    """The mean of the returns with its interval, where D4RL has bounds in their hundredths, and the mean length."""
    mean = float(played.returns.mean())
    scores: dict[str, Any] = {"return_mean": mean, "return_mean_interval": bootstrap_mean(played.returns)}
    hundredths = normalised(environment, mean)
    if hundredths is not None:
        scores["return_normalised"] = hundredths
    scores |= {"length_mean": float(played.lengths.mean()), "samples": len(played.returns)}
    if played.cut:
        scores["cut"] = played.cut
    return scores
