"""Reinforcement learning by sequences: return-to-go, state and action of each step (Chen et al. 2021)."""

from headway.domains.trajectories.recipes import RECIPES
from headway.domains.trajectories.use import rollout

__all__ = ["RECIPES", "rollout"]
