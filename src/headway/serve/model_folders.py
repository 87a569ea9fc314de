"""Folders of models that a server watches. It imports no torch, so a command can check its paths at once."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from headway.errors import UserError
from headway.io.files import FileStates, current_states
from headway.io.hub import HUB_PREFIX

_FILE_SUFFIXES = (".gguf", ".bin")  # models in a single file
_RUN, _RUN_MODELS = "run.json", ("model.safetensors", "quantized.safetensors")  # a run may not have a model yet
_MARKERS = (*_RUN_MODELS, "config.json", "model.bin")  # files by which a folder is a model
_DESCRIBING = (*_MARKERS, "recipe.json", "tokenizer.json", "usage.json")  # files on which a model's summary depends
_MAX_MODELS = 1000  # models per folder


def public_name(path: str | Path) -> str:
    """The public name of a model: the last part of its path, or its name on a hub."""
    if str(path).startswith(HUB_PREFIX):
        return str(path).removeprefix(HUB_PREFIX)
    absolute_path = Path(os.path.abspath(path))  # not resolved: a link keeps its own name
    return absolute_path.stem if absolute_path.suffix in _FILE_SUFFIXES else absolute_path.name


def is_model(path: Path) -> bool:
    """Whether a path looks like a model by the names of its files. A run is one as soon as it has saved a model."""
    if os.path.isfile(path):  # false for what cannot be reached, too
        return path.suffix in _FILE_SUFFIXES
    markers = _RUN_MODELS if os.path.isfile(path / _RUN) else _MARKERS
    return any(os.path.isfile(path / name) for name in markers)


def find_models(path: Path) -> list[Path]:
    """A model's own path, or the paths of the models in a folder, in alphabetical order; none if it does not exist.
    UserError for a folder with too many, and for one that cannot be read.
    """
    if is_model(path):
        return [path]
    try:
        models = sorted(child for child in path.iterdir() if child.name[0] != "." and is_model(child))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); correct its permissions") from None
    if len(models) > _MAX_MODELS:
        raise UserError(f"{path} has {len(models):,} models, more than {_MAX_MODELS:,}; pass models one by one")
    return models


def find_all(folders: Sequence[Path]) -> dict[Path, FileStates]:
    """The models of all folders, with the states of the files on which their summaries depend."""
    paths = (Path(os.path.abspath(path)) for folder in folders for path in find_models(folder))
    return {path: _model_states(path) for path in paths}


def _model_states(path: Path) -> FileStates:
    if os.path.isfile(path):
        return current_states([str(path)])
    states = current_states(str(path / name) for name in _DESCRIBING)
    if not os.path.isfile(
        path / _RUN
    ):  # other files of a published model may still arrive; a run's change all the time
        states |= current_states([str(path)])
    return states
