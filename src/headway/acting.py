"""What a model does that acts: it plays episodes in environments, moves robots, and plays chess."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from headway.domains import robotics, trajectories
from headway.errors import UserError
from headway.given import typed
from headway.loaded import Loaded
from headway.models import Act, Transformer

if TYPE_CHECKING:
    from headway.domains.chess.player import Player


class Acts(Loaded):
    """Episodes of models of trajectories and of robots, and players of chess."""

    @typed
    def policy(self, task: str | None = None, seed: int = 0) -> robotics.Policy:
        """A robot's policy: reset(), select_action(observation), predict_action_chunk(observation).

        `task` says what it does, for one of several tasks whose observations do not say; a diffusion draws by `seed`.
        """
        return robotics.policy(self.module, self.directory, task, seed)

    @typed
    def player(self, search: str | None = None) -> Player:
        """Who plays chess by this model: by its "policy", its "value" of what each move leads to, or a tree search,
        "puct"; None takes the strongest that the model allows. Needs the extra `chess`.
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
        """Episodes that a model plays in an environment. One of trajectories: the mean of their returns with its
        interval, in `results` for each return that is asked for, and of the first one beside them. A robot's policy:
        how often each task succeeds in `results`, and beside them in all.

        `env` is an id of gymnasium's, metaworld/NAME or module:Name of your own, for a robot also several; None is
        where the run was judged. Episode i starts from `seed` + i. `render` is a video of the first episode.
        `target_return` and `draw` are for models of trajectories: `draw` draws choices by their probabilities, or takes
        the most probable (None: as the run says). `execute` and `ensemble` are for robots: how many actions of a chunk
        are done before the next is said, and the m of temporal ensembling (None: none; "run": as the run says).
        Raises UserError for what does not fit.
        """
        if episodes < 1 or (seed is not None and seed < 0):
            raise UserError(f"{episodes} episodes from seed {seed} cannot be played; give 1 or more, and 0 or more")
        targets = [target_return] if isinstance(target_return, (int, float)) else list(target_return)
        film = None if render is None else Path(render)
        names = [env] if isinstance(env, str) else list(env or ())
        if isinstance(self.module, Act):
            if targets or draw is not None:
                raise UserError(f"{self.directory} is a robot's policy, which is asked for no return and draws nothing")
            return robotics.rollout(self.module, self.directory, names, episodes, seed, film, execute, ensemble)
        if execute is not None or ensemble != "run":
            raise UserError(f"{self.directory} says one action at a time; leave execute and ensemble out")
        if len(names) > 1:
            raise UserError(f"{self.directory} plays in one environment, and {len(names)} are named; name one")
        module = cast(Transformer, self.module)
        return trajectories.rollout(
            module, self.directory, names[0] if names else None, episodes, targets, seed, film, draw
        )
