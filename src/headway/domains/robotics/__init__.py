"""Robots that learn from demonstrations: chunks of actions from states and cameras (Zhao et al. 2023)."""

from headway.domains.robotics.policy import Policy
from headway.domains.robotics.recipes import RECIPES
from headway.domains.robotics.use import acts_in_chunks, policy, rollout

__all__ = ["RECIPES", "Policy", "acts_in_chunks", "policy", "rollout"]
