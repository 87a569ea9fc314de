"""Find a model by a local path, or by its name on a hub through the optional package `huggingface_hub`.

A name is looked up on the hub only on request, by the prefix hf: or by HEADWAY_HUB=1, so that a mistyped path does not
download the model of whoever owns that name there.
"""

from __future__ import annotations

import importlib
import re
from pathlib import Path

from headway.errors import UserError
from headway.received import HUB, hub_confirmed, place_of, unconfirmed

_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")
# The files of a folder in the published format; never pickles or code.
_WANTED = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "*.spm"]


def find_folder(name: str | Path) -> Path:
    """Return an existing path unchanged, otherwise the folder of the model `hf:owner/name`, downloaded once.

    UserError for a name without the prefix, unless HEADWAY_HUB=1 is set, and for a path that cannot be a model.
    """
    place, asked = place_of(name), str(name).startswith(HUB)
    if place.exists():
        return place
    if not asked and not _NAME.fullmatch(str(name)):
        return place
    if not asked and not hub_confirmed():
        raise unconfirmed(name, "model")
    return _fetched(str(name))


def named_folder(name: str) -> Path:
    """Like `find_folder`, for names in a recipe or run, which may come from a stranger: uses only models that were
    downloaded before, unless HEADWAY_HUB=1 is set.
    """
    if place_of(name).exists() or not name.startswith(HUB) or hub_confirmed():
        return find_folder(name)
    return _fetched(name, local=True)


def _fetched(name: str, local: bool = False) -> Path:
    """Return the folder of a hub model; with `local`, only if it was downloaded before."""
    bare = name.removeprefix(HUB)
    if not _NAME.fullmatch(bare):
        raise UserError(f"{name} is not a hub name; write {HUB}owner/name")
    try:
        hub = importlib.import_module("huggingface_hub")
    except ImportError:
        raise UserError(
            f"there is no file or folder {name}; if it is a model on a hub, pip install 'headway[hub]' to download it"
        ) from None
    try:
        return Path(hub.snapshot_download(bare, allow_patterns=_WANTED, local_files_only=local))
    except Exception as error:  # many kinds: no network, unknown name, no permission
        if local:
            raise UserError(
                f"a recipe names {name}, which was not downloaded before; set HEADWAY_HUB=1 to allow the download"
            ) from None
        reason = " ".join(str(error).split("\n")[0].split())
        raise UserError(f"there is no folder {name}, and the hub failed ({reason}); check the name") from None
