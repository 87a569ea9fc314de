"""The entry of headway among the applications of a Linux desktop, by the Desktop Entry Specification 1.5."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from headway.errors import UserError
from headway.io.durable import write_text

_ICON = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 64 64">
<rect width="64" height="64" rx="14" fill="#1f57b5"/>
<g fill="none" stroke="#fff" stroke-width="4" stroke-linecap="round" stroke-linejoin="round">
<path d="M16 46 L32 18 M32 46 L32 18 M48 46 L32 18" opacity=".55"/>
<path d="M24 26 L32 18 L40 26"/>
</g>
<g fill="#fff"><circle cx="16" cy="46" r="5"/><circle cx="32" cy="46" r="5"/><circle cx="48" cy="46" r="5"/></g>
</svg>
"""
_VARIABLES = ("HEADWAY_CACHE", "HEADWAY_DATA")  # a desktop does not read the settings of a shell


def write_shortcut(options: Sequence[str], paths: Sequence[Path]) -> Path:
    """Write a .desktop file that runs `headway open` with these arguments, and its icon; return its path. UserError on
    other systems, and for arguments that such a file cannot contain.
    """
    if sys.platform != "linux":
        raise UserError("--shortcut writes a .desktop file, which is for Linux; docs/guides/open.md has other systems")
    setting = os.environ.get("XDG_DATA_HOME", "")
    try:
        data = Path(setting) if os.path.isabs(setting) else Path.home() / ".local" / "share"
    except RuntimeError as error:
        raise UserError(f"there is no home folder ({error}); set XDG_DATA_HOME to a folder") from None
    variables = [f"{name}={os.path.abspath(os.environ[name])}" for name in _VARIABLES if os.environ.get(name)]
    command = [*(["env", *variables] if variables else []), sys.executable, "-m", "headway", "open"]
    icon, entry = data / "icons/hicolor/scalable/apps/headway.svg", data / "applications/headway.desktop"
    lines = {
        "Type": "Application",
        "Version": "1.5",
        "Name": "headway",
        "Comment": "Use and train models on this computer",
        "Exec": " ".join(map(_quote, [*command, *options, *map(str, paths)])),
        "Icon": _escape(str(icon)),
        "Terminal": "false",
        "Categories": "Science;ArtificialIntelligence;",
    }
    write_text(icon, _ICON)
    write_text(entry, "[Desktop Entry]\n" + "".join(f"{name}={value}\n" for name, value in lines.items()))
    return entry


def _quote(argument: str) -> str:
    """An argument of Exec: reserved characters in double quotes, some with a backslash, and % twice."""
    if not argument.isprintable():
        raise UserError(f"{argument!r} contains characters that a .desktop file cannot; rename it, or leave it out")
    if not re.fullmatch(r"[\w./:=+,@-]+", argument):
        argument = '"' + re.sub(r'(["`$\\])', r"\\\1", argument) + '"'
    return _escape(argument.replace("%", "%%"))


def _escape(text: str) -> str:
    """A string value, in which a backslash begins an escape."""
    return text.replace("\\", "\\\\")
