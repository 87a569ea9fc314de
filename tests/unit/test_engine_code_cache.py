"""Compiled code is kept where no other user can write, and nowhere else."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from headway.engine import code_cache
from headway.engine.code_cache import code_folder, exposure

NAME = "engine-0123"


@pytest.fixture
def bases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Two folders that come in question, in this order."""
    found = [tmp_path / "first", tmp_path / "second"]
    monkeypatch.setattr(code_cache, "_bases", lambda: iter(found))
    return found


def test_the_first_folder_is_made_and_taken_again(bases: list[Path], caplog: pytest.LogCaptureFixture) -> None:
    assert code_folder(NAME) == code_folder(NAME) == bases[0] / NAME
    assert not caplog.records


@pytest.mark.parametrize("part", ["first", f"first/{NAME}", f"first/{NAME}/a.object", "first/above"])
def test_a_folder_that_others_can_write_to_is_not_used(
    part: str, bases: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    if part == "first/above":  # a parent
        bases[0] = bases[0] / "above" / "below"
    (bases[0] / NAME).mkdir(parents=True)
    (bases[0] / NAME / "a.object").touch()
    place = bases[1].parent / part
    place.chmod(0o777 if place.is_dir() else 0o666)
    with caplog.at_level(logging.WARNING):
        assert code_folder(NAME) == bases[1] / NAME
    (record,) = caplog.records
    assert record.getMessage().startswith(f"other users can write to {place}, so compiled code is cached in {bases[1]}")


def test_code_is_not_kept_where_every_folder_is_open(bases: list[Path], caplog: pytest.LogCaptureFixture) -> None:
    bases[0].parent.chmod(0o777)
    with caplog.at_level(logging.WARNING):
        assert code_folder(NAME) is None
    assert "so compiled code is not cached" in caplog.text
    assert not bases[0].exists()


def test_a_private_folder_in_a_sticky_one_is_used(bases: list[Path]) -> None:
    bases[0].mkdir(mode=0o700)
    bases[0].parent.chmod(0o1777)
    assert code_folder(NAME) == bases[0] / NAME


@pytest.mark.skipif(os.name != "posix" or os.getuid() != 0, reason="only root can give files to others")
def test_a_folder_file_or_link_of_another_user_is_not_used(bases: list[Path]) -> None:
    folder = bases[0] / NAME
    folder.mkdir(parents=True)
    (folder / "a.object").touch()
    assert exposure(folder) is None
    os.chown(folder / "a.object", 4321, -1)
    assert exposure(folder) == f"other users can write to {folder / 'a.object'}"
    os.chown(folder, 4321, -1)
    assert exposure(folder) == f"other users can write to {folder}"
    link = bases[1]
    link.symlink_to(bases[0].parent / "third")
    (bases[0].parent / "third").mkdir()
    assert exposure(link) is None
    os.chown(link, 4321, -1, follow_symlinks=False)
    assert exposure(link) == f"other users can write to {link}"


def test_files_made_under_a_lax_mask_are_out_of_reach(bases: list[Path]) -> None:
    before = os.umask(0)
    try:
        folder = code_folder(NAME)
        assert folder is not None
        (folder / "a.object").touch()
        assert folder.stat().st_mode & 0o777 == 0o700
        assert code_folder(NAME) == folder
    finally:
        os.umask(before)
