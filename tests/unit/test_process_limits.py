"""A process that may open too few files, or have too little memory, says so."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from headway import domains
from headway.app.cli import main as cli
from headway.errors import UserError
from headway.io.durable import read_json

MESSAGE = "too many files are open (the limit is {}); raise the limit, for example: ulimit -n 1024"


@contextmanager
def no_more_files() -> Iterator[int]:
    """The limit is what is open already."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.open(os.devnull, os.O_RDONLY)
    os.close(free)  # the lowest number that is free
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, before[1]))
    try:
        yield free
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_recipes_that_cannot_be_listed_are_not_unknown(capsys: pytest.CaptureFixture[str]) -> None:
    caches = (domains.recipe_domains, domains._domains)
    for found in caches:
        found.cache_clear()
    try:
        with no_more_files() as limit, pytest.raises(OSError, match="Too many open files") as caught:
            domains.recipe("text")
        assert caught.value.errno == errno.EMFILE
        with no_more_files() as limit:
            code = cli.main(["show", "text"])
        assert code == cli.USER_ERROR
        assert capsys.readouterr().err == f"headway: {MESSAGE.format(limit)}\n"
    finally:
        for found in caches:
            found.cache_clear()
    assert domains.recipe("text").name == "text"


def test_what_came_of_too_few_files_is_named_as_such(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.json"
    path.write_text("{}")

    def read(*_: object) -> None:
        with no_more_files():
            read_json(path)

    def load(*_: object) -> None:
        raise ImportError("liba.so: cannot open shared object file: Too many open files")

    for failing in (read, load):
        monkeypatch.setattr(cli, "_dispatch", failing)
        assert cli.main(["show", "text"]) == cli.USER_ERROR
        assert capsys.readouterr().err.startswith("headway: too many files are open (the limit is ")
    with no_more_files(), pytest.raises(UserError, match=r"a\.json cannot be read: Too many open files"):
        read_json(path)


def test_too_little_memory_is_one_line_before_torch_is_loaded(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (400 << 20, resource.RLIM_INFINITY))
    assert cli.main(["show", "gpt2"]) == cli.USER_ERROR
    message = "the memory limit of a process is 419 MB, which is too little for torch; raise it to 1,074 MB or more"
    assert capsys.readouterr().err == f"headway: {message}, for example: ulimit -v 1048576\n"
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert cli.main(["show", "gpt2"]) == cli.DONE
