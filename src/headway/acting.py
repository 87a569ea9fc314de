"""What a model does that acts: it plays episodes in environments, moves robots, and plays chess."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from headway.domains import agents, robotics, trajectories
from headway.errors import UserError
from headway.given import typed
from headway.loaded import Loaded
from headway.models import RobotPolicy, Transformer

if TYPE_CHECKING:
    from headway.domains.chess.player import Player


class Acts(Loaded):
    """Episodes of agents, of models of trajectories and of robots, and players of chess."""

    @typed
    def policy(self, task: str | None = None, seed: int = 0) -> robotics.Policy | agents.AgentPolicy:
        """The policy of an agent or a robot, with `reset()`, `select_action(observation)` and, for a robot,
        `predict_action_chunk(observation)`.

        task: which of several tasks a robot does, where the observations do not say.
        seed: of the noise that a diffusion policy draws, and of the actions that an agent samples.

        Raises UserError for a model that is no policy of either kind.
        """
        if agents.is_agent(self.module):
            if task is not None:
                raise UserError(f"{self.directory} is an agent of one environment; leave task out")
            return agents.policy(self.module, self.directory, seed)
        return robotics.policy(self.module, self.directory, self.usage, task, seed)

    @typed
    def player(self, search: str | None = None) -> Player:
        """A chess player that chooses moves by the model's "policy", by the "value" of the position after each move, or
        by a tree search ("puct"). None takes the strongest that the model allows. Needs the extra `chess`.
        """
        from headway.domains.chess.judge import judge_of
        from headway.domains.chess.player import Player

        return Player(judge_of(self.module, self.recipe, str(self.directory)), search)

    @typed
    def rollout(
        self,
        env: str | Sequence[str] | None = None,
        episodes: int = 10,
        target_return: float | Sequence[float] = (),
        seed: int | None = None,
        render: str | Path | None = None,
        draw: bool | None = None,
        execute: int | None = None,
        ensemble: float | Literal["run"] | None = "run",
    ) -> dict[str, Any]:
        """Play episodes in an environment. Returns the mean return with its interval for an agent or a model of
        trajectories, and the success rate for a robot's policy; `results` has them for each target return or task.

        env: an id of gymnasium, metaworld/NAME, or module:Name of your own; several for a robot; None is the
        environment in which the run was evaluated.
        episodes: how many; episode i starts from seed `seed` + i.
        render: the path of a video of the first episode.
        target_return: the return to ask for, for models of trajectories.
        draw: whether actions are sampled, or the most probable is taken (None: as in the run); for agents, and for the
        discrete actions of models of trajectories.
        execute, ensemble: for robots: how many actions of a chunk are carried out before the next is predicted, and the
        coefficient of temporal ensembling (None: no ensembling; "run": as in the run).

        Raises UserError for a model that acts in no environment, and for arguments of the other kind of model.
        """
        if episodes < 1 or (seed is not None and seed < 0):
            raise UserError(f"{episodes} episodes from seed {seed} cannot be played; give 1 or more, and 0 or more")
        targets = [target_return] if isinstance(target_return, (int, float)) else list(target_return)
        film = None if render is None else Path(render)
        names = [env] if isinstance(env, str) else list(env or ())
        if isinstance(self.module, RobotPolicy):
            if targets or draw is not None:
                raise UserError(f"{self.directory} is a robot's policy, which is asked for no return and draws nothing")
            return robotics.rollout(
                self.module, self.directory, self.usage, names, episodes, seed, film, execute, ensemble
            )
        if execute is not None or ensemble != "run":
            raise UserError(f"{self.directory} says one action at a time; leave execute and ensemble out")
        if len(names) > 1:
            raise UserError(f"{self.directory} plays in one environment, and {len(names)} are named; name one")
        module = cast(Transformer, self.module)
        if agents.is_agent(module):
            if targets:
                raise UserError(f"{self.directory} is an agent that is asked for no return; leave target_return out")
            return agents.rollout(module, self.directory, names[0] if names else None, episodes, seed, film, draw)
        return trajectories.rollout(
            module, self.directory, names[0] if names else None, episodes, targets, seed, film, draw
        )
