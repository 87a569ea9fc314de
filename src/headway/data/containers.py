"""Sounds and videos in containers, opened by FFmpeg: only formats that hold all of their data in one file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from headway.errors import UserError
from headway.received import opened

# Left out are playlists (HLS, DASH, ffconcat), session descriptions and numbered pictures: they name other files and
# hosts, which FFmpeg would open.
_FORMATS = "mov,matroska,webm,ogg,mp3,aac,flac,wav,w64,aiff,avi,asf,flv,mpeg,mpegts,amr,caf,ac3,ape,wv,tta,dsf,au"
_OPTIONS = {"format_whitelist": _FORMATS, "protocol_whitelist": "file"}


def packaged_av(missing: str = "videos need the package av; pip install 'headway[rl]'") -> Any:
    """The package av; where it is not installed, a UserError with the message `missing`."""
    try:
        import av
    except ImportError as error:
        raise UserError(missing) from error
    return av


def open_container(path: Path) -> Any:
    """A container that is read. UserError for what is not a plain file; for other formats what PyAV raises."""
    opened(path).close()  # FFmpeg would wait for the other end of a named pipe
    # An absolute path is never taken for a protocol, as the name "tcp:host.mp4" would be.
    return packaged_av().open(str(path.absolute()), options=_OPTIONS, metadata_errors="ignore")


def create_container(path: Path) -> Any:
    """A container that is written, of the format that its name ends with. What is at `path` is removed first, so that
    no link is followed and no pipe waited for.
    """
    path.unlink(missing_ok=True)
    return packaged_av().open(str(path.absolute()), "w", options={"protocol_whitelist": "file"})
