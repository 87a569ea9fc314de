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
# owner/name, then optionally @REVISION (a branch, tag or commit) and :FORMAT (the number format of a .gguf file).
_HUB_NAME = re.compile(r"(\w[\w.-]*/\w[\w.-]*)(?:@(\w[\w./-]*))?(?::(\w[\w.-]*))?")
# The files to download for a model in the published format; never code, and files of torch.save only without others.
_SETTINGS = ["*.json", "*.txt", "*.model", "*.jinja", "*.spm", "*_Dense*/*.bin"]
_WEIGHTS = (["*.safetensors"], ["pytorch_model*.bin"])
_PART = re.compile(r"-(\d{5})-of-\d{5}$")


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
    """Return an existing path unchanged, otherwise the folder of the model `hf:owner/name[@REVISION]`, or the .gguf
    file of `hf:owner/name:FORMAT`, downloaded once.

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
    """Return the folder of a hub model, or its .gguf file if `name` has a FORMAT; with `local`, only if it was
    downloaded before. An interrupted download resumes.
    """
    match = _HUB_NAME.fullmatch(name.removeprefix(HUB_PREFIX))
    if not match:
        raise UserError(
            f"{name} is not a hub name; write {HUB_PREFIX}owner/name, {HUB_PREFIX}owner/name@revision, or "
            f"{HUB_PREFIX}owner/name:Q4_K_M for a .gguf file"
        )
    repository, revision, number_format = match.groups()
    try:
        hub = importlib.import_module("huggingface_hub")
    except ImportError:
        raise UserError(
            f"there is no file or folder {name}; if it is a model on a hub, pip install 'headway[hub]' to download it"
        ) from None

    def fetched(patterns: list[str]) -> Path:
        options = {"revision": revision, "allow_patterns": patterns, "local_files_only": local}
        return Path(hub.snapshot_download(repository, **options))

    try:
        if number_format:
            spellings = {number_format, number_format.lower(), number_format.upper()}
            return _gguf_file(fetched([f"*{spelling}*.gguf" for spelling in sorted(spellings)]), name, number_format)
        for weights in _WEIGHTS:
            folder = fetched([*_SETTINGS, *weights])
            if any(file for pattern in weights for file in folder.glob(pattern)):
                return folder
        return folder
    except UserError:
        raise
    except Exception as error:  # many kinds: no network, unknown name or revision, no permission
        if local:
            raise UserError(
                f"a recipe names {name}, which was not downloaded before; set HEADWAY_HUB=1 to allow the download"
            ) from None
        reason = " ".join(str(error).split("\n")[0].split())
        raise UserError(f"there is no folder {name}, and the hub failed ({reason}); check the name") from None


def _gguf_file(folder: Path, name: str, number_format: str) -> Path:
    """The .gguf file with a number format, or the first of several parts. Image encoders (mmproj) are ignored."""
    wanted = number_format.lower()
    files = [path for path in sorted(folder.rglob("*.gguf")) if not path.name.startswith("mmproj")]
    files = [path for path in files if wanted in path.name.lower()]
    ends = tuple(f"{mark}{wanted}" for mark in ".-_")
    found = [path for path in files if _PART.sub("", path.stem).lower().endswith(ends) or path.stem.lower() == wanted]
    models = {_PART.sub("", str(path.with_suffix(""))) for path in found}
    if len(models) != 1:
        listed = ", ".join(path.name for path in (found or files)[:8]) or "no such file"
        raise UserError(f"{name} should name one .gguf file, but the hub has {listed}; write the end of its name")
    return found[0]
