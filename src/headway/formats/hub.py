"""Published models by their name on a hub, through the optional package `huggingface_hub`."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

from headway.errors import UserError

_NAME = re.compile(r"[\w.-]+/[\w.-]+")
# Never a pickle, and no code: what a folder in the published format consists of.
_WANTED = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "*.spm"]


def find_folder(name: str | Path) -> Path:
    """A path that exists, as it is; else the folder of the model `owner/name`, downloaded once."""
    place = Path(name)
    if place.exists() or not _NAME.fullmatch(str(name)):
        return place
    try:
        hub = importlib.import_module("huggingface_hub")
    except ImportError:
        raise UserError(
            f"there is no file or folder {name}; if it is a model on a hub, pip install 'headway[hub]' to fetch it"
        ) from None
    try:
        return Path(hub.snapshot_download(str(name), allow_patterns=_WANTED))
    except Exception as error:  # the library raises many kinds: no network, no such name, no permission
        reason = " ".join(str(error).split("\n")[0].split())
        raise UserError(f"there is no folder {name}, and no hub gave it ({reason}); check the name") from None
