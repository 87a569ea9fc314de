"""Robots that learn from demonstrations: chunks of actions from states and cameras (Zhao et al. 2023)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headway.lazy_imports import lazy_exports

if TYPE_CHECKING:
    from headway.domains.robotics.policy import RobotController

__all__ = ["RECIPES", "TASKS", "VERBS", "RobotController"]
RECIPES = ("robotics", "metaworld")
TASKS = {"robotics": "task"}
VERBS = {"act": "is_robot", "policy": "is_robot", "rollout": "is_robot"}
lazy_exports(__name__, {".policy": ("RobotController",)})
