"""The folder of machine code, which no other user can write to."""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryFile

from llvmlite import binding

from headway.engine.processor import CPU_FEATURES, HAS_MATRIX_UNIT, INSTRUCTIONS, WIDE
from headway.errors import logger

_LOG = logger(__name__)
_OTHERS_WRITE = 0o022  # write permission for the group and for others


def code_folder(name: str) -> Path | None:
    """The folder `name` in NUMBA_CACHE_DIR, the package's own cache, ~/.cache/headway or the system's temporary folder:
    the first that is writable, but not by other users. None if there is none.

    Code in this folder gets executed. A folder that other users can write to, or could replace, is skipped with a
    warning.
    """
    exposed = None
    for base in _bases():
        folder = base / name
        try:
            reason = exposure(folder)  # of the part that exists
            if reason is None:
                before = os.umask(_OTHERS_WRITE)  # others get no write access, whatever the umask
                try:
                    folder.mkdir(parents=True, exist_ok=True)
                finally:
                    os.umask(before)
                if before & _OTHERS_WRITE != _OTHERS_WRITE and folder.stat().st_uid == os.getuid():
                    folder.chmod(0o700)  # others cannot reach files created in it
                reason = exposure(folder)
            if reason is not None:
                exposed = exposed or reason
                continue
            with TemporaryFile(dir=folder):
                pass
        except OSError:
            continue
        if exposed:
            _LOG.warning("%s, so compiled code is cached in %s; use chmod go-w and chown", exposed, base)
        return folder
    if exposed:
        _LOG.warning("%s, so compiled code is not cached; use chmod go-w and chown", exposed)
    return None


def _bases() -> Iterator[Path]:
    if os.environ.get("NUMBA_CACHE_DIR"):
        yield Path(os.environ["NUMBA_CACHE_DIR"])
    yield Path(__file__).parent / "__pycache__"
    yield Path(os.path.expanduser("~")) / ".cache" / "headway"
    if hasattr(os, "getuid"):
        yield Path(tempfile.gettempdir()) / f"headway-{os.getuid()}"


def exposure(folder: Path) -> str | None:
    """Why other users could change a folder's content, or replace the folder; None if they cannot."""
    if not hasattr(os, "getuid"):
        return None
    folder = Path(os.path.abspath(folder))
    real = folder.resolve()
    for path in dict.fromkeys((folder, *folder.parents, real, *real.parents)):
        if not os.path.lexists(path):
            continue
        status = path.lstat()
        # In a sticky folder such as /tmp, others can only change their own files; a link has no permissions.
        sticky = path not in (folder, real) and bool(status.st_mode & stat.S_ISVTX)
        if not _is_ours(status, sticky or stat.S_ISLNK(status.st_mode)):
            return f"other users can write to {path}"
    if not folder.exists() or not folder.stat().st_mode & 0o011:
        return None  # nobody else can reach its content
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            status = os.lstat(os.path.join(parent, name))
            if stat.S_ISLNK(status.st_mode) or not _is_ours(status):
                return f"other users can write to {os.path.join(parent, name)}"
    return None


def _is_ours(status: os.stat_result, by_owner: bool = False) -> bool:
    """Whether only this user and root can write; `by_owner` if the owner alone decides."""
    if status.st_uid not in (0, os.getuid()):
        return False
    if by_owner or not status.st_mode & _OTHERS_WRITE:
        return True
    if status.st_mode & stat.S_IWOTH:
        return False
    import grp  # not on Windows
    import pwd

    try:
        name, group = pwd.getpwuid(os.getuid()).pw_name, grp.getgrgid(status.st_gid)
    except KeyError:
        return False
    return group.gr_name == name and set(group.gr_mem) <= {name}  # many systems create one per user


def _code_version() -> str:
    """Depends on the source of the engine, the compiler and the processor, so outdated code is never found."""
    processor = (binding.get_host_cpu_name(), CPU_FEATURES, INSTRUCTIONS, WIDE, HAS_MATRIX_UNIT)
    overrides = [os.environ.get(f"NUMBA_CPU_{name}") for name in ("NAME", "FEATURES")]
    versions = [metadata.version(package) for package in ("numba", "llvmlite")]
    digest = hashlib.sha256(repr((processor, overrides, versions)).encode())
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


CACHE = code_folder(f"engine-{_code_version()}")  # of this source on this machine
