"""Find recipes by name, apply the user's settings and data, and open their tasks; list all recipes and presets."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from headway import domains
from headway.app.runs import read_recipe
from headway.config import override
from headway.domains import recipe as find_recipe
from headway.domains import recipe_domains, scale_of
from headway.errors import ConfigError, UserError, nearest
from headway.formats.deferred import deferred_weights
from headway.formats.native import QUANTISED, quantised_config
from headway.formats.open import open_config, open_usage
from headway.formats.usage import Usage, read_usage
from headway.io.files import user_path
from headway.io.hub import HUB_PREFIX, find_folder
from headway.learn import Recipe
from headway.learn.adapters import LoRAConfig
from headway.learn.fine_tuning import open_start
from headway.learn.plan.plans import tuning_optimizer
from headway.learn.plan.scale import shape_of
from headway.learn.recipe import path_list
from headway.learn.run import PRETRAINING, RunDirectory
from headway.nn.models import ModelConfig, describe
from headway.nn.models.presets import PRESETS, preset
from headway.predict.in_memory_data import Paths
from headway.predict.model_evaluation import check_hub_data
from headway.rewards import CONFIRMED

_VOCABULARY_SETTINGS = ("task.codec", "task.size", "task.tokenizer")
TOKENIZER_SETTINGS = (*_VOCABULARY_SETTINGS, "task.lowercase")


def configure_recipe(
    recipe: str | Path | Recipe,
    data: Paths | None,
    settings: Mapping[str, Any] | None,
    seed: int | None,
    start: str | Path | None = None,
    lora: int | None = None,
) -> Recipe:
    """The recipe with the user's settings, seed and data, so that it is enough to reproduce the run.

    With a `start`, its model replaces the recipe's before the settings apply. The setting `model` may be the name or
    path of a preset, recipe or run, whose architecture is then used with new weights. `lora` is the rank of an
    adapter. With a `start`, a generic recipe requested by name gets the learning rates for fine-tuning.
    """
    configured = load_recipe(recipe)
    if isinstance(reward := (settings or {}).get("task.reward"), str):
        CONFIRMED.add(reward)
    for argument in (start, *(settings or {}).values()):
        if isinstance(argument, str) and argument.startswith(HUB_PREFIX):
            find_folder(argument)  # download what the user named now; later the recipe finds it locally
    if start is not None:
        find_folder(start)
        with deferred_weights():  # only its configuration is needed
            opened = open_start(_absolute(start), part=configured.task.start_part)
        if opened.codec is not None and hasattr(configured.task, "codec"):
            _check_tokenizer(start, settings or {})
        configured = replace(configured, start=_absolute(start), model=opened.model.config)
    if lora is not None:
        lora_config = configured.adapter if isinstance(configured.adapter, LoRAConfig) else LoRAConfig()
        configured = replace(configured, adapter=replace(lora_config, rank=lora))
    scale = scale_of(recipe) if isinstance(recipe, str) else None
    if start is not None and scale is not None:
        rates = tuning_optimizer(shape_of(configured.model)[0], configured.adapter, scale.tuning_lr_factor)
        configured = override(configured, {**scale.start_settings, **rates})
    configured = _apply_settings(configured, settings or {})
    if seed is not None:
        configured = override(configured, {"train.seed": seed})
    if data is not None:
        configured = replace(configured, data=tuple(_absolute(path) for path in path_list(data)))
    elif isinstance(recipe, (str, Path)) and _is_recipe_file(recipe):
        check_hub_data(configured.data, str(recipe))
    _check_vocabulary(configured, settings or {})
    if not configured.data and not configured.task.generates_data and not isinstance(recipe, Recipe):
        raise UserError(f"recipe {configured.name!r} has no data; pass your own with --data (data=...)")
    return configured


def _apply_settings(recipe: Recipe, settings: Mapping[str, Any]) -> Recipe:
    """`override`, but `model` may also be the name or path of a preset, recipe or run."""
    model = settings.get("model")
    if not isinstance(model, str):
        return override(recipe, settings)
    other_settings = {key: value for key, value in settings.items() if key != "model"}
    return override(replace(recipe, model=find_model_config(model)), other_settings)


def _check_tokenizer(start: str | Path, settings: Mapping[str, Any]) -> None:
    """Raise ConfigError for settings of a tokenizer other than those that the run `start` was trained with."""
    run = RunDirectory(Path(start))
    own = vars(read_recipe(run.recipe).task) if run.recipe.is_file() else {}
    known = {"lowercase": False, **own}  # a task without that setting keeps the case
    given = [key for key in TOKENIZER_SETTINGS if key in settings]
    # The start itself names its own tokenizer, too.
    changed = [key for key in given if settings[key] not in (known.get(key.removeprefix("task."), ...), str(start))]
    if changed:
        raise ConfigError(f"{start} is trained further with its own tokenizer; remove {' and '.join(changed)}")


def _check_vocabulary(recipe: Recipe, settings: Mapping[str, Any]) -> None:
    """Raise ConfigError for settings of a tokenizer if the data were prepared with one, which the task takes."""
    changed = {key.removeprefix("task."): value for key, value in settings.items() if key in _VOCABULARY_SETTINGS}
    if not changed:
        return
    from headway.data.prepared.shard_reader import PreparedData, is_prepared

    for data in map(PreparedData, filter(is_prepared, map(Path, recipe.data))):
        details = data.index.details
        for name, value in changed.items():
            if "fingerprint" in details and value not in (details.get(name), details.get("vocab_size")):
                raise ConfigError(
                    f"task.{name} was decided when {data.name} was prepared; remove the setting, or prepare the data "
                    "again"
                )


def load_recipe(recipe: str | Path | Recipe) -> Recipe:
    """A recipe by its name or the path of its recipe.json."""
    if isinstance(recipe, Recipe):
        return recipe
    return read_recipe(Path(recipe)) if _is_recipe_file(recipe) else find_recipe(str(recipe))


def _is_recipe_file(recipe: str | Path) -> bool:
    return Path(recipe).suffix == ".json" and str(recipe) not in recipe_domains()


def load_recorded_recipe(
    directory: Path,
    name: str,
    data: Paths | None,
    settings: Mapping[str, Any] | None,
    seed: int | None,
    start: str | Path | None = None,
    lora: int | None = None,
) -> Recipe:
    """The recipe of an existing run. Settings that the user repeats must be the same; the trainer checks that.

    The start is not opened: a run that has started no longer needs it.
    """
    recorded_recipe = read_recipe(RunDirectory(directory).recipe)
    if recorded_recipe.name != name:
        raise UserError(
            f"{directory} is a run of recipe {recorded_recipe.name!r}, not {name!r}; choose another with --run"
        )
    for key in ("steps", "evaluate_every"):  # the trainer would accept these if the minutes had determined them
        wanted, recorded_value = (settings or {}).get(f"train.{key}"), getattr(recorded_recipe.train, key)
        if wanted is not None and wanted != recorded_value:
            raise UserError(
                f"{directory} was started with train.{key} {recorded_value}, not {wanted}; remove the setting to resume"
            )
    if (directory / PRETRAINING).is_dir():
        settings = second_stage_settings(settings or {})
    if start is not None and os.path.abspath(start) != recorded_recipe.start:
        recorded_recipe = replace(recorded_recipe, start=_absolute(start))
    return configure_recipe(
        recorded_recipe, data, _applicable_settings(recorded_recipe, load_recipe(name), settings or {}), seed, lora=lora
    )


def second_stage_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that apply after a first stage: the model is that of the first stage, apart from its dropout."""
    return {key: value for key, value in settings.items() if key == "model.dropout" or not sets_model(key)}


def sets_model(setting: str) -> bool:
    return setting.partition(".")[0] == "model"


def _applicable_settings(recipe: Recipe, original: Recipe, settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """The settings that still apply to a recipe made from `original`: in `model.heads=2 model.mixer=lstm`, the second
    setting replaces the mixer that the first one set. Raises ConfigError if they never applied together.
    """
    try:
        _apply_settings(recipe, settings)
    except ConfigError:
        _apply_settings(original, settings)
        applicable = {}
        for key, value in settings.items():
            with suppress(ConfigError):
                _apply_settings(recipe, {key: value})
                applicable[key] = value
        return applicable
    return settings


def _absolute(path: str | Path) -> str:
    """The absolute path; unchanged for anything that is not a local path, such as the name of a data set."""
    return os.path.abspath(path) if os.path.exists(path) or os.path.isabs(path) else str(path)


def find_model_config(name: str) -> ModelConfig:
    """The model of a recipe, a preset, a recipe.json, a run directory or a published model."""
    if name in PRESETS:
        return preset(name)
    if name in recipe_domains():
        return find_recipe(name).model
    path = user_path(name)
    if path.suffix == ".json":
        return read_recipe(path).model
    run_directory = RunDirectory(path)
    if run_directory.exists():
        run_directory.read_status()
        return read_recipe(run_directory.recipe).model
    published = find_folder(name)
    if (published / QUANTISED).is_file():
        return quantised_config(published)
    if published.exists():
        return open_config(published, needs_weights=False)
    raise UserError(f"{name!r} is not a recipe, preset, run or model; {nearest(name, [*recipe_domains(), *PRESETS])}")


def find_usage(name: str) -> tuple[Usage, bool]:
    """The usage of what `find_model_config` finds, as far as known without its weights, and whether it is a run."""
    path = user_path(name)
    if name in PRESETS or name in recipe_domains() or path.suffix == ".json":
        return Usage(), False
    if RunDirectory(path).exists():
        return read_usage(path), True
    published = find_folder(name)
    return read_usage(published) if (published / QUANTISED).is_file() else open_usage(published), False


def recipes() -> list[dict[str, Any]]:
    """The recipes as rows (dicts): name, domain, parameters, data, expected time and score, description."""
    return [
        {
            "name": recipe.name,
            "domain": recipe.domain,
            "parameters": describe(recipe.model)["parameters"],
            "data": ", ".join(recipe.data) or ("generated" if recipe.task.generates_data else "yours (--data)"),
            "makes_data": recipe.task.generates_data,
            "expected": recipe.expected,
            "description": recipe.description,
        }
        for recipe in domains.recipes().values()
    ]


def presets() -> list[dict[str, Any]]:
    """The presets of model architectures as rows (dicts): name and number of parameters."""
    return [{"name": name, "parameters": describe(make())["parameters"]} for name, make in PRESETS.items()]
