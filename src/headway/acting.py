"""What a model does that acts: it plays episodes in environments, and chess."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from headway.domains import trajectories
from headway.loaded import Loaded
from headway.models import Transformer

if TYPE_CHECKING:
    from headway.domains.chess.player import Player


class Acts(Loaded):
    """Episodes of models of trajectories, and players of chess."""

    def player(self, search: str | None = None) -> Player:
        """Who plays chess by this model: by its "policy", its "value" of what each move leads to, or a tree search,
        "puct"; None takes the strongest that the model allows. Needs the extra `chess`.
        """
        from headway.domains.chess.judge import judge_of
        from headway.domains.chess.player import Player

        return Player(judge_of(self.module, self.recipe, str(self.directory)), search)

    def rollout(
        self,
        env: str | None = None,
        episodes: int = 10,
        target_return: float | Sequence[float] = (),
        seed: int | None = None,
        render: str | Path | None = None,
        draw: bool | None = None,
    ) -> dict[str, Any]:
        """Episodes that a model of trajectories plays in an environment, and the mean of their returns with its
        interval: in all `results`, one for each return that is asked for, and of the first one beside them.

        `env` is an id of gymnasium's or module:Name of your own; None is where the run was judged. Episode i starts
        from `seed` + i. `render` is a video of the first episode. `draw` draws choices by their probabilities, or takes
        the most probable (None: as the run says). Raises UserError for what does not fit.
        """
        targets = [target_return] if isinstance(target_return, (int, float)) else list(target_return)
        film = None if render is None else Path(render)
        module = cast(Transformer, self.module)
        return trajectories.rollout(module, self.directory, env, episodes, targets, seed, film, draw)
