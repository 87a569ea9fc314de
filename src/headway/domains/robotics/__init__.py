"""Robots that learn from demonstrations: chunks of actions from states and cameras (Zhao et al. 2023)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headway.lazily import lazily

if TYPE_CHECKING:
    from headway.domains.robotics.policy import Policy
    from headway.domains.robotics.use import acts_in_chunks, policy, rollout

__all__ = ["RECIPES", "TASKS", "Policy", "acts_in_chunks", "policy", "rollout"]
RECIPES = ("robotics", "metaworld")
TASKS = {"robotics": "task"}
lazily(__name__, {".policy": ("Policy",), ".use": ("acts_in_chunks", "policy", "rollout")})
