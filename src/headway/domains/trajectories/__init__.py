"""Reinforcement learning by sequences: return-to-go, state and action of each step (Chen et al. 2021)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headway.lazily import lazily

if TYPE_CHECKING:
    from headway.domains.trajectories.use import rollout

__all__ = ["RECIPES", "TASKS", "rollout"]
RECIPES = ("trajectories", "cartpole", "pendulum", "hopper")
TASKS = {"trajectories": "task"}
lazily(__name__, {".use": ("rollout",)})
