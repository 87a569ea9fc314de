"""Find a model by a local path, or by its name on a hub through the optional package `huggingface_hub`.

A name is looked up on the hub only on request, by the prefix hf: or by HEADWAY_HUB=1, so that a mistyped path does not
download the model of whoever owns that name there.
"""

from __future__ import annotations

import importlib
import os
import re
from pathlib import Path

from headway.errors import UserError
from headway.io.files import user_path

HUB_PREFIX, _HUB_VARIABLE = "hf:", "HEADWAY_HUB"  # prefix of hub names; the variable that allows names without it
_HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")
# The files to download for a model in the published format; never pickles or code.
_FILE_PATTERNS = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "*.spm"]


def hub_confirmed() -> bool:
    """Whether HEADWAY_HUB=1 allows hub names without their prefix."""
    return os.environ.get(_HUB_VARIABLE) == "1"


def hub_name_error(name: str | Path, noun: str) -> UserError:
    """The error for a name that is not a local path but may name a `noun` on the hub."""
    return UserError(
        f"there is no file or folder {name}; check the path, or write {HUB_PREFIX}{name} for the {noun} with that name "
        f"on the Hugging Face hub ({_HUB_VARIABLE}=1 allows it without {HUB_PREFIX})"
    )


def find_folder(name: str | Path) -> Path:
    """Return an existing path unchanged, otherwise the folder of the model `hf:owner/name`, downloaded once.

    UserError for a name without the prefix, unless HEADWAY_HUB=1 is set, and for a path that cannot be a model.
    """
    path, has_prefix = user_path(name), str(name).startswith(HUB_PREFIX)
    if path.exists():
        return path
    if not has_prefix and not _HUB_NAME.fullmatch(str(name)):
        return path
    if not has_prefix and not hub_confirmed():
        raise hub_name_error(name, "model")
    return _download(str(name))


def named_folder(name: str) -> Path:
    """Like `find_folder`, for names in a recipe or run, which may come from a stranger: uses only models that were
    downloaded before, unless HEADWAY_HUB=1 is set.
    """
    if user_path(name).exists() or not name.startswith(HUB_PREFIX) or hub_confirmed():
        return find_folder(name)
    return _download(name, local=True)


def _download(name: str, local: bool = False) -> Path:
    """Return the folder of a hub model; with `local`, only if it was downloaded before."""
    repo_id = name.removeprefix(HUB_PREFIX)
    if not _HUB_NAME.fullmatch(repo_id):
        raise UserError(f"{name} is not a hub name; write {HUB_PREFIX}owner/name")
    try:
        hub = importlib.import_module("huggingface_hub")
    except ImportError:
        raise UserError(
            f"there is no file or folder {name}; if it is a model on a hub, pip install 'headway[hub]' to download it"
        ) from None
    try:
        return Path(hub.snapshot_download(repo_id, allow_patterns=_FILE_PATTERNS, local_files_only=local))
    except Exception as error:  # many kinds: no network, unknown name, no permission
        if local:
            raise UserError(
                f"a recipe names {name}, which was not downloaded before; set HEADWAY_HUB=1 to allow the download"
            ) from None
        reason = " ".join(str(error).split("\n")[0].split())
        raise UserError(f"there is no folder {name}, and the hub failed ({reason}); check the name") from None
