"""Models by where they lie: a path here, or a name on a hub, through the optional package `huggingface_hub`.

A name is looked for on the hub only where that is asked for, by the prefix hf: or by HEADWAY_HUB=1, so that a path that
is mistyped does not bring the model of whoever owns that name there.
"""

from __future__ import annotations

import importlib
import re
from pathlib import Path

from headway.errors import UserError
from headway.received import HUB, hub_confirmed, place_of, unconfirmed

_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")
# Never a pickle, and no code: what a folder in the published format consists of.
_WANTED = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "*.spm"]


def find_folder(name: str | Path) -> Path:
    """A path that exists, as it is; else the folder of the model `hf:owner/name`, downloaded once.

    UserError for a name without the prefix, unless the setting HEADWAY_HUB=1 confirms it, and for a path that no model
    can lie at.
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
    """`find_folder` for what a recipe or run names, which may be a stranger's: of a hub only what was fetched before,
    unless HEADWAY_HUB=1 confirms that more is.
    """
    if place_of(name).exists() or not name.startswith(HUB) or hub_confirmed():
        return find_folder(name)
    return _fetched(name, local=True)


def _fetched(name: str, local: bool = False) -> Path:
    """The folder of a model of a hub; a `local` one is only looked for here."""
    bare = name.removeprefix(HUB)
    if not _NAME.fullmatch(bare):
        raise UserError(f"{name} is no name of a hub; write {HUB}owner/name")
    try:
        hub = importlib.import_module("huggingface_hub")
    except ImportError:
        raise UserError(
            f"there is no file or folder {name}; if it is a model on a hub, pip install 'headway[hub]' to fetch it"
        ) from None
    try:
        return Path(hub.snapshot_download(bare, allow_patterns=_WANTED, local_files_only=local))
    except Exception as error:  # the library raises many kinds: no network, no such name, no permission
        if local:
            raise UserError(
                f"a recipe names {name}, which was not fetched before; set HEADWAY_HUB=1 to let it be fetched"
            ) from None
        reason = " ".join(str(error).split("\n")[0].split())
        raise UserError(f"there is no folder {name}, and no hub gave it ({reason}); check the name") from None
