"""Reinforcement learning as sequence modelling: return-to-go, state and action of each step (Chen et al. 2021)."""

from __future__ import annotations

__all__ = ["RECIPES", "TASKS", "VERBS"]
RECIPES = ("trajectories", "cartpole", "pendulum", "hopper")
TASKS = {"trajectories": "task"}
VERBS = {"act": "is_trajectories", "rollout": "is_trajectories"}
