"""Drafts of killed processes are removed by the next one that writes there, those of living processes never."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from headway.io.durable import clean, temporary_path

_BEGIN = """
import sys
from pathlib import Path
from headway.io.durable import temporary_path
for name in ("run.json", "out"):
    draft = temporary_path(Path(sys.argv[1]) / name)
    draft.mkdir() if name == "out" else draft.touch()
    (draft / "weights").touch() if name == "out" else None
print(draft, flush=True)
sys.stdin.read()
"""


def begin(folder: Path) -> subprocess.Popen[str]:
    """A process that is in the middle of writing a file and a folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", _BEGIN, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    process.stdout.readline()
    return process


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_writes_is_not(tmp_path: Path) -> None:
    killed, living = begin(tmp_path), begin(tmp_path)
    try:
        assert len(list(tmp_path.iterdir())) == 4
        killed.kill()
        killed.wait()
        temporary_path(tmp_path / "another.json")
        left = sorted(path.name for path in tmp_path.iterdir())
        assert len(left) == 2
        assert all(f".{living.pid}-" in name for name in left)
    finally:
        for process in (killed, living):
            process.kill()
            process.communicate()


def test_drafts_of_another_machine_are_removed_when_they_are_old(tmp_path: Path) -> None:
    new, old = tmp_path / ".a.7-00000000.draft", tmp_path / ".b.7-00000000.draft"
    for folder in (new, old):
        folder.mkdir()
        (folder / "weights").touch()
    earlier = tmp_path / ".c.99.removed"  # of a version whose names do not say which machine
    earlier.touch()
    for path in (old / "weights", old, earlier):
        os.utime(path, (1e9, 1e9))
    clean(tmp_path)
    assert list(tmp_path.iterdir()) == [new]


def test_only_drafts_are_removed_and_links_are_not_followed(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "text.txt").write_text("mine")
    link = temporary_path(tmp_path / "a").with_name(
        temporary_path(tmp_path / "a").name.replace(str(os.getpid()), "999999999")
    )
    link.symlink_to(kept, target_is_directory=True)
    others = [".a.draft", "a.7.draft", ".a.7.draft.txt~", ".hidden"]
    for name in others:
        (tmp_path / name).touch()
    clean(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*others, "kept"])
    assert (kept / "text.txt").read_text() == "mine"


def test_every_name_that_a_file_can_have_has_a_draft(tmp_path: Path) -> None:
    names = ["z" * 254 + end for end in "ab"] + ["\U0001f600" * 63, "a.json"]
    found = [temporary_path(tmp_path / name) for name in names]
    assert len(set(found)) == len(names)
    for path in found:
        path.touch()
