"""Audio and video containers, opened by FFmpeg: only formats that store all of their data in one file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from headway.errors import UserError
from headway.io.files import open_file

# Playlists (HLS, DASH, ffconcat), session descriptions and image sequences are excluded: they refer to other files and
# hosts, which FFmpeg would open.
_FORMATS = "mov,matroska,webm,ogg,mp3,aac,flac,wav,w64,aiff,avi,asf,flv,mpeg,mpegts,amr,caf,ac3,ape,wv,tta,dsf,au"
_OPTIONS = {"format_whitelist": _FORMATS, "protocol_whitelist": "file"}


def import_av(message: str = "videos need the package av; run pip install 'headway[rl]'") -> Any:
    """The package av; a UserError with the message `missing` if it is not installed."""
    try:
        import av
    except ImportError as error:
        raise UserError(message) from error
    return av


def open_container(path: Path) -> Any:
    """Open a container for reading. UserError if it is not a regular file; PyAV's own errors for unknown formats."""
    open_file(path).close()  # FFmpeg would wait for the other end of a named pipe
    # FFmpeg never takes an absolute path for a protocol, unlike the name "tcp:host.mp4".
    return import_av().open(str(path.absolute()), options=_OPTIONS, metadata_errors="ignore")


def create_container(path: Path) -> Any:
    """Open a container for writing, in the format of its extension. An existing file at `path` is removed first, so
    that no link is followed and no pipe blocks.
    """
    path.unlink(missing_ok=True)
    return import_av().open(str(path.absolute()), "w", options={"protocol_whitelist": "file"})
