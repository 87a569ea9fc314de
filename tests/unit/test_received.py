"""Files that others sent: plain ones alone, expanded within limits."""

from __future__ import annotations

import ast
import bz2
import gzip
import io
import lzma
import os
import tarfile
import zipfile
from pathlib import Path

import pytest

import headway
from headway.data.input_files import File, archive_members, read_blocks, read_lines
from headway.errors import UserError
from headway.io import files
from headway.io.files import ReadLimits, check_in_memory, expand, open_file, read_limits, user_path
from headway.io.hub import find_folder, named_folder


def test_what_is_no_plain_file_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    for name in ("pipe", "zero", "."):
        with pytest.raises(UserError, match="is not a regular file"):
            open_file(tmp_path / name)
    for name in ("pipe", "zero"):
        for look in (user_path, find_folder, named_folder):
            with pytest.raises(UserError, match="is a pipe or a device, not a regular file"):
                look(str(tmp_path / name))
    with pytest.raises(UserError, match="cannot be read"):
        open_file(tmp_path / "none")


@pytest.mark.parametrize(
    ("given", "said"),
    [("~nobody-here/a", "unknown user name"), ("a\0b", "file name"), ("x" * 5000, "name too long")],
)
def test_a_path_that_no_file_has_is_refused(given: str, said: str) -> None:
    for look in (user_path, find_folder, named_folder):
        with pytest.raises(UserError, match=f"(?i){said}"):
            look(given)


def test_a_home_is_written_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model").mkdir()
    assert find_folder("~/model") == user_path("~/model") == tmp_path / "model"
    assert user_path("~/none/a") == tmp_path / "none" / "a"


def test_limits_are_set_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_limits() == ReadLimits()
    monkeypatch.setenv("HEADWAY_LIMIT_RATIO", "2000")
    assert read_limits() == ReadLimits(ratio=2000)
    for wrong in ("", "x", "0", "-1", "1" * 30):
        monkeypatch.setenv("HEADWAY_LIMIT_RATIO", wrong)
        with pytest.raises(UserError, match="HEADWAY_LIMIT_RATIO is"):
            read_limits()


def test_an_expansion_is_refused_by_its_ratio_unless_that_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = gzip.compress(bytes(66 << 20), 6)
    with pytest.raises(UserError, match="HEADWAY_LIMIT_RATIO=250 allows"):
        sum(map(len, expand(io.BytesIO(packed), ".gz", len(packed), "a")))
    monkeypatch.setenv("HEADWAY_LIMIT_RATIO", "2000")
    assert sum(map(len, expand(io.BytesIO(packed), ".gz", len(packed), "a"))) == 66 << 20


def test_what_is_held_at_once_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    check_in_memory("a", 1 << 30, 1 << 32)
    monkeypatch.setenv("HEADWAY_LIMIT_WHOLE", "1000")
    with pytest.raises(UserError, match="HEADWAY_LIMIT_WHOLE=1000"):
        check_in_memory("a", 1 << 30, 1001)


def test_a_long_line_is_refused_by_its_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text("short\n" + "x" * (3 << 20) + "\nshort\n")
    assert [len(line) for line in read_lines(File(tmp_path / "a.txt"))] == [5, 3 << 20, 5]
    monkeypatch.setenv("HEADWAY_LIMIT_LINE", "1000000")
    with pytest.raises(UserError, match="HEADWAY_LIMIT_LINE=1000000"):
        list(read_lines(File(tmp_path / "a.txt")))


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_members_are_counted_and_read_in_any_order(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / f"a.{kind}"
    texts = {f"{number}.txt": f"text {number}\n".encode() for number in range(30)}
    if kind == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_BZIP2) as archive:
            for name, text in texts.items():
                archive.writestr(name, text)
    else:
        with tarfile.open(path, "w:gz") as packed:
            for name, text in texts.items():
                entry = tarfile.TarInfo(name)
                entry.size = len(text)
                packed.addfile(entry, io.BytesIO(text))
    found = archive_members(path)
    assert {file.name: b"".join(read_blocks(file)) for file in reversed(found)} == texts
    both = zip(*(read_blocks(file) for file in found[:2]))
    assert [*both] == [(texts["0.txt"], texts["1.txt"])]
    os.utime(path, (1, 1))  # another archive, as far as one can tell
    monkeypatch.setenv("HEADWAY_LIMIT_MEMBERS", "29")
    with pytest.raises(UserError, match="HEADWAY_LIMIT_MEMBERS=29"):
        archive_members(path)


_ROOMS = ("io", "data", "codecs", "formats", "domains")
_OWN = {  # what the same program wrote: the cache's notes, and labels that it goes on with
    "data/delimited.py": {"read_sheet"},  # the bytes of a workbook, which were read through `received`
    "data/array_store.py": {"column_digest", "read_info"},
    "io/cpu_quota.py": {"cpu_quota"},  # the kernel's limit of this group of processes
    "io/durable.py": {"machine_id", "process_start"},  # the kernel's id of this boot, and its table of processes
    "io/files.py": {"open_file"},
    "io/machine_memory.py": {"_text"},  # the kernel's figures of memory
    "formats/torch_file.py": {"_read_zip"},  # the names in an archive that open_file has opened
    "domains/chess/engines.py": {"_resume_labels"},
}
_ARCHIVES = {"ZipFile", "TarFile", "GzipFile", "LZMAFile", "BZ2File"}


def _opens(call: ast.Call) -> bool:
    """Whether a call opens a path for reading, as far as it can be told from how it is written."""
    function = call.func
    if isinstance(function, ast.Name):
        mode = call.args[1] if len(call.args) > 1 else None
        return function.id == "open" and (not isinstance(mode, ast.Constant) or str(mode.value).startswith("r"))
    if not isinstance(function, ast.Attribute):
        return False
    first = call.args[0] if call.args else None
    if function.attr == "open":
        return isinstance(first, ast.Constant) and str(first.value).startswith("r")
    return (function.attr in ("read_text", "read_bytes") and first is None) or function.attr in _ARCHIVES


def _openers(source: str) -> set[str]:
    """The functions that open a path for reading."""
    if "open" not in source and "read_" not in source and "File" not in source:
        return set()
    functions = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)]
    calls = ((function.name, node) for function in functions for node in ast.walk(function))
    return {name for name, node in calls if isinstance(node, ast.Call) and _opens(node)}


def test_readers_open_what_they_are_given_through_received() -> None:
    root = Path(headway.__file__).parent
    found: dict[str, set[str]] = {}
    for room in _ROOMS:
        for path in sorted((root / room).rglob("*.py")):
            name = str(path.relative_to(root))
            if (openers := _openers(path.read_text())) and name != "io/archives.py":
                found[name] = openers
    assert found == _OWN
    assert _openers("def f(p):\n open(p)\ndef g(p):\n p.open('rb')\ndef h(p):\n p.read_text()") == {"f", "g", "h"}


def test_millions_of_blank_lines_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n" + "\n" * 3_000_000 + "two\n")
    assert sum(bool(line) for line in read_lines(File(tmp_path / "a.txt"))) == 2
    (tmp_path / "a.txt").write_text("one\n" + "\n" * 8_000_000 + "two\n")
    with pytest.raises(UserError, match="over 4,000,000 consecutive blank lines; remove them"):
        list(read_lines(File(tmp_path / "a.txt")))


EMPTY = {
    ".gz": gzip.compress(b"", mtime=0),
    ".bz2": bz2.compress(b""),
    ".xz": lzma.compress(b""),
    ".zst": b"\x28\xb5\x2f\xfd\x20\x00\x01\x00\x00",
}


@pytest.mark.parametrize("suffix", EMPTY)
def test_frames_that_hold_nothing_are_counted(suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if suffix == ".zst":
        pytest.importorskip("zstandard", reason="zstandard is not installed: pip install 'headway[data]'")
    monkeypatch.setattr(files, "_FREE_FRAMES", 50)
    read = lambda packed: b"".join(expand(io.BytesIO(packed), suffix, len(packed), "a"))  # noqa: E731
    assert read(EMPTY[suffix] * 50) == b""
    with pytest.raises(UserError, match="a has 51 compressed frames in its first 0 bytes; compress it again as one"):
        read(EMPTY[suffix] * 60)
    full = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}.get(suffix)
    if full is not None:
        assert read(full(b"x" * 100) * 200) == b"x" * 20_000


@pytest.mark.parametrize("kind", ["gz", "bz2", "xz"])
def test_damage_of_compressed_streams_is_told(kind: str, tmp_path: Path) -> None:
    packed = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}[kind](os.urandom(5000))
    bent = packed[:2000] + bytes(200) + packed[2200:]
    for content in (packed[:3000], packed[:-3], bent, *([packed + b"garbage"] if kind == "gz" else [])):
        (tmp_path / f"a.txt.{kind}").write_bytes(content)
        with pytest.raises(UserError, match="is damaged"):
            list(read_blocks(File(tmp_path / f"a.txt.{kind}")))
    for content in (packed + bytes(600), packed + packed, *([packed + b"garbage"] if kind != "gz" else [])):
        (tmp_path / f"a.txt.{kind}").write_bytes(content)
        assert sum(map(len, read_blocks(File(tmp_path / f"a.txt.{kind}")))) == 5000 * content.count(packed)


def test_frames_of_an_archive_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_FREE_FRAMES", 50)
    with tarfile.open(tmp_path / "b.tar", "w") as packed:
        entry = tarfile.TarInfo("a.txt")
        entry.size = 4
        packed.addfile(entry, io.BytesIO(b"text"))
    for suffix, empty in EMPTY.items():
        if suffix == ".zst":
            continue
        (tmp_path / f"a.tar{suffix}").write_bytes(empty * 60)
        with pytest.raises(UserError, match="51 compressed frames"):
            archive_members(tmp_path / f"a.tar{suffix}")
