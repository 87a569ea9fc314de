"""Rewards that can be checked: a number for an answer to a prompt, by name or by the user's own function."""

from __future__ import annotations

import os
from typing import NamedTuple

from headway.errors import UserError, nearest

REWARD_VARIABLE = "HEADWAY_REWARD"  # a user-defined reward as module:name; files may not name one


class BuiltInReward(NamedTuple):
    """A reward as `module:name` of its function, and of the function that checks a prompt's row before any work."""

    function: str
    check: str


REWARDS = {
    "exact": BuiltInReward("headway.rewards.strings:exact", "headway.rewards.strings:check_answer"),
    "regex": BuiltInReward("headway.rewards.strings:regex", "headway.rewards.strings:check_pattern"),
    "arithmetic": BuiltInReward("headway.rewards.arithmetic:arithmetic", "headway.rewards.arithmetic:check_problem"),
    "json-schema": BuiltInReward("headway.rewards.schemas:valid_json", "headway.rewards.schemas:check_row"),
    "legal-move": BuiltInReward("headway.rewards.moves:legal_move", "headway.rewards.moves:check_position"),
    "checkmate": BuiltInReward("headway.rewards.moves:checkmate", "headway.rewards.moves:check_position"),
}
CONFIRMED: set[str] = set()  # what the user, not a file, has named in this process, so that its code may run


def reward_function(name: str | None) -> str:
    """The reward's function as `module:name`. UserError for an unknown name, and for code that only a file names."""
    known = ", ".join(REWARDS)
    if name is None:
        raise UserError(f"no reward is set; pass --reward with one of {known}, or module:function for your own")
    if name in REWARDS:
        return REWARDS[name].function
    if ":" not in name:
        raise UserError(f"there is no reward {name!r}; {nearest(name, [*REWARDS, 'module:function'])}")
    if name not in CONFIRMED and os.environ.get(REWARD_VARIABLE) != name:
        raise UserError(
            f"the recipe names the reward {name!r}, which would run its own code; allow it with --reward {name}, or "
            f"with {REWARD_VARIABLE}={name}"
        )
    return name
