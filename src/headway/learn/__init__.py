"""Training: from a task and a recipe to a run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headway.lazy_imports import lazy_exports

if TYPE_CHECKING:
    from headway.learn.interrupts import UserInterrupt
    from headway.learn.optim import AdamWConfig, MuonConfig, OptimConfig, SGDConfig
    from headway.learn.recipe import Recipe, TaskConfig, TrainConfig, read_recipe, write_recipe
    from headway.learn.run import Run, open_recipe, open_run
    from headway.learn.schedule import (
        ConstantConfig,
        CosineConfig,
        HalvingConfig,
        InverseSqrtConfig,
        ScheduleConfig,
        WSDConfig,
        noam_peak,
    )
    from headway.learn.task import FULL_SHARD, Batch, Loss, Shard, Task, measure_of, unit_of
    from headway.learn.trainer import Trainer

__all__ = [
    "FULL_SHARD",
    "AdamWConfig",
    "Batch",
    "ConstantConfig",
    "CosineConfig",
    "HalvingConfig",
    "InverseSqrtConfig",
    "Loss",
    "MuonConfig",
    "OptimConfig",
    "Recipe",
    "Run",
    "SGDConfig",
    "ScheduleConfig",
    "Shard",
    "Task",
    "TaskConfig",
    "TrainConfig",
    "Trainer",
    "UserInterrupt",
    "WSDConfig",
    "measure_of",
    "noam_peak",
    "open_recipe",
    "open_run",
    "read_recipe",
    "unit_of",
    "write_recipe",
]
lazy_exports(
    __name__,
    {
        ".interrupts": ("UserInterrupt",),
        ".optim": ("AdamWConfig", "MuonConfig", "OptimConfig", "SGDConfig"),
        ".recipe": ("Recipe", "TaskConfig", "TrainConfig", "read_recipe", "write_recipe"),
        ".run": ("Run", "open_recipe", "open_run"),
        ".schedule": (
            "ConstantConfig",
            "CosineConfig",
            "HalvingConfig",
            "InverseSqrtConfig",
            "ScheduleConfig",
            "WSDConfig",
            "noam_peak",
        ),
        ".task": ("Batch", "Loss", "Shard", "Task", "FULL_SHARD", "measure_of", "unit_of"),
        ".trainer": ("Trainer",),
    },
)
