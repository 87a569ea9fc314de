"""Agents that learn online, from an environment alone: proximal policy optimisation (Schulman et al. 2017)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headway.lazily import lazily

if TYPE_CHECKING:
    from headway.domains.agents.acting import AgentPolicy
    from headway.domains.agents.use import is_agent, policy, rollout

__all__ = ["RECIPES", "TASKS", "AgentPolicy", "is_agent", "policy", "rollout"]
RECIPES = ("ppo",)
TASKS = {"ppo": "task"}
lazily(__name__, {".acting": ("AgentPolicy",), ".use": ("is_agent", "policy", "rollout")})
