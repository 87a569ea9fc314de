"""Agents that learn online, from an environment alone: proximal policy optimisation (Schulman et al. 2017)."""

from headway.domains.agents.acting import AgentPolicy
from headway.domains.agents.recipes import RECIPES
from headway.domains.agents.use import is_agent, policy, rollout

__all__ = ["RECIPES", "AgentPolicy", "is_agent", "policy", "rollout"]
