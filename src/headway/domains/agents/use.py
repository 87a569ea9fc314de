"""A trained agent in an environment."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from torch import nn

from headway.data.video import check_film
from headway.domains.agents.acting import AgentPolicy, play
from headway.domains.agents.codec import FILE, AgentCodec, check_fits, read_codec
from headway.environments import AT_ONCE, Copies, check_stored, start_of, worth
from headway.environments.film import filming
from headway.errors import UserError
from headway.models import StatesEmbedConfig, Transformer


def is_agent(model: nn.Module) -> bool:
    """Whether a model is a policy that reads states."""
    return isinstance(getattr(model.config, "embed", None), StatesEmbedConfig)


def policy(model: nn.Module, directory: Path, seed: int = 0) -> AgentPolicy:
    """The policy of a run: reset(), select_action(observation)."""
    return AgentPolicy(cast(Transformer, model), _codec(model, directory), seed)


def rollout(
    model: nn.Module,
    directory: Path,
    env: str | None = None,
    episodes: int = 10,
    seed: int | None = None,
    render: Path | None = None,
    draw: bool | None = None,
) -> dict[str, Any]:
    """Episodes that an agent plays: the mean of their returns with its interval, and each in `results`.

    `env` is named by the user: an id of gymnasium's or module:Name; None is where the run learnt. Episode i starts from
    `seed` + i (None: the seeds of the test). `render` is a video of the first one. `draw` draws actions as in training,
    or does not (None: as the run says). Raises UserError, before any work, for an environment that does not fit.
    """
    codec = _codec(model, directory)
    codec = codec if draw is None else replace(codec, draw=draw)
    name = env or check_stored(codec.environment)
    if render is not None:
        check_film(render)
    start = start_of(seed)
    with Copies(name, min(AT_ONCE, episodes), drawn=render is not None) as copies:
        check_fits(codec, copies.spaces, name)
        with filming(render, copies.frame_rate) as watch:
            found = play(cast(Transformer, model), codec, copies, range(start, start + episodes), watch)
    scores = worth(found, name)
    results = [{**scores, "returns": found.returns.tolist()}]
    return {"environment": name, "seed": start, **scores, "results": results, "render": render}


def _codec(model: nn.Module, directory: Path) -> AgentCodec:
    """The one beside a model. UserError for one of other states than the model's."""
    codec, embed = read_codec(directory), cast(StatesEmbedConfig, cast(Any, model.config).embed)
    if embed.states.size != codec.states:
        raise UserError(
            f"{directory} has a model of {embed.states.size} numbers, and its {FILE} is of {codec.states}; put the one "
            "of its run there"
        )
    return codec
