"""Agents that learn online in an environment: proximal policy optimisation (Schulman et al. 2017)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headway.lazy_imports import lazy_exports

if TYPE_CHECKING:
    from headway.domains.agents.agent_policy import AgentPolicy

__all__ = ["RECIPES", "TASKS", "VERBS", "AgentPolicy"]
RECIPES = ("ppo",)
TASKS = {"ppo": "task"}
VERBS = {"act": "is_agent", "policy": "is_agent", "rollout": "is_agent"}
lazy_exports(__name__, {".agent_policy": ("AgentPolicy",)})
