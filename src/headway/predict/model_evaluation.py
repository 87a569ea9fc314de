"""Evaluate a model on its run's data or on other data."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Any

from headway.errors import UserError, nearest
from headway.io.arguments import check_types
from headway.io.hub import HUB_PREFIX, hub_confirmed
from headway.io.remote import remote_url
from headway.learn import Task
from headway.learn.objectives.targets import GroupedConfig
from headway.learn.recipe import open_task, path_list
from headway.learn.resume import differences, fingerprint
from headway.learn.run import RunDirectory
from headway.predict.in_memory_data import Data, data_paths
from headway.predict.model_handle import ModelHandle


@check_types
def evaluate(
    model: ModelHandle,
    data: Data | None = None,
    split: str | None = None,
    limit: int | None = None,
    stride: int | None = None,
) -> dict[str, Any]:
    """The metrics of the model's domain on the run's own data, or on `data` (whatever `train` takes).

    split: "train", "validation", "test" or "all"; by default all of `data`, otherwise the run's test split (the
    validation split if there is no test split). For images and audio with a named test split, that split of
    `data` is the default, otherwise its validation split. "split" in the result names the split used.
    limit: maximum number of samples.
    stride: language models: evaluate in overlapping windows that advance by N tokens.

    A published model can be evaluated on `data` as a language model, or as an image and text model. For a run,
    "note" in the result explains how the data differs from the training data, if it does.
    Raises UserError for a split that does not exist, and for data that the model cannot take.
    """
    return scores_and_task(model, data, split, limit, stride)[0]


def scores_and_task(
    model: ModelHandle, data: Data | None, split: str | None, limit: int | None, stride: int | None
) -> tuple[dict[str, Any], Task]:
    """`evaluate`, together with the task."""
    recipe = model.recipe
    assert recipe is not None  # the verb is listed for runs only
    if data is None:
        check_hub_data(recipe.data, str(model.directory))
    if data is not None and split is None and isinstance(recipe.task, GroupedConfig):
        # Other data are evaluated without splits of their own, so they need no groups.
        recipe = replace(recipe, task=replace(recipe.task, group=None))
    with data_paths(data, recipe.domain) as paths:
        task = open_task(recipe, model.directory, paths)
        evaluated_split = split or (task.final_split if data is None else task.examples.default_split)
        status = RunDirectory(model.directory).read_status()
        data_difference = differences(status.get("data"), fingerprint(task))
        note = {} if data_difference is None else {"note": f"the run was trained on other data: {data_difference}"}
        if data is None and evaluated_split == "validation" and status.get("refitted"):
            note = {"note": "the head was also fitted to the validation samples; evaluate the test split"}
        scores = _evaluate_split(model, task, evaluated_split, limit, stride)
        remark = task.objective.remark(model.module, task.examples)
        return {**scores, **({"remark": remark} if remark else {}), **note}, task


def evaluate_published(
    domain: str, task_of: Callable[[ModelHandle, list[Path]], Task]
) -> Callable[..., dict[str, Any]]:
    """`evaluate` for models without a recipe: `task_of` makes a domain's task from the model and data paths."""

    @check_types
    @wraps(evaluate)
    def evaluate_on_data(
        model: ModelHandle,
        data: Data | None = None,
        split: str | None = None,
        limit: int | None = None,
        stride: int | None = None,
    ) -> dict[str, Any]:
        with data_paths(data, domain) as paths:
            if paths is None:
                raise UserError(f"{model.directory} has no recipe that names evaluation data; pass data=... (--data)")
            task = task_of(model, [Path(path) for path in path_list(paths)])
            return _evaluate_split(model, task, split or task.examples.default_split, limit, stride)

    return evaluate_on_data


def check_hub_data(data: Collection[str], source: str) -> None:
    """UserError for hub data, or data behind a URL, that only the recipe at `source` names, because the recipe may be
    untrusted. A resumed run continues to use them.
    """
    name = next((name for name in data if name.startswith(HUB_PREFIX) or remote_url(name)), None)
    if name is not None and not hub_confirmed():
        raise UserError(
            f"{source} names the remote data {name}, which is downloaded only if you request it; pass --data {name} "
            "(data=...), or set HEADWAY_HUB=1 to allow remote data in recipes"
        )


def _evaluate_split(
    model: ModelHandle, task: Task, split: str, limit: int | None, stride: int | None
) -> dict[str, Any]:
    if split not in task.examples.split_names:
        raise UserError(f"there is no split {split!r}; {nearest(split, task.examples.split_names)}")
    if stride is None:
        return {"split": split, **task.evaluate(model.module, split, limit)}
    return {
        "split": split,
        "stride": stride,
        **task.objective.evaluate_strided(model.module, task.examples, split, stride, limit),
    }
