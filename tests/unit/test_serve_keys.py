"""API keys of a file: added, revoked and broken while the server runs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from headway.errors import UserError
from headway.serve import api_keys
from headway.serve.api_keys import ApiKey, KeyFile, KeyRing, parse_keys


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(api_keys, "_CHECK_SECONDS", 0.0)
    path = tmp_path / "keys"
    path.write_text("first 2\n# a remark\nsecond\n")
    return path


def replace(path: Path, text: str | bytes) -> None:
    """As an editor does: by another file of this name."""
    other = path.with_suffix(".new")
    other.write_bytes(text if isinstance(text, bytes) else text.encode())
    os.replace(other, path)


def test_keys_come_and_go_and_keep_their_numbers(file: Path) -> None:
    ring = KeyRing([ApiKey("own")], [KeyFile(file)])
    assert [ring.find(secret) for secret in ("own", "first", "second", "third", "")] == [
        (ApiKey("own"), 1), (ApiKey("first", 2), 2), (ApiKey("second"), 3), None, None,
    ]  # fmt: skip
    replace(file, "third\nsecond 5\n")
    assert [ring.find(secret) for secret in ("own", "first", "second", "third")] == [
        (ApiKey("own"), 1), None, (ApiKey("second", 5), 3), (ApiKey("third"), 4),
    ]  # fmt: skip
    with file.open("a") as added:
        added.write("first\n")
    assert ring.find("first") == (ApiKey("first"), 2), "its number, and so its cache, were nobody else's meanwhile"


@pytest.mark.parametrize(
    ("broken", "why"),
    [
        ("", "contains no key"),
        ("# nothing\n", "contains no key"),
        ("new\nsome key of words\n", "not KEY, KEY N, KEY train"),
        (b"new\n\xff\n", "not UTF-8"),
        ("x" * (1 << 20) + "\n", "more than 1,048,576 bytes"),
        (None, "No such file"),
    ],
)
def test_a_broken_file_leaves_the_keys_and_one_line(
    file: Path, broken: str | bytes | None, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    ring = KeyRing([], [KeyFile(file)])
    if broken is None:
        file.unlink()
    else:
        replace(file, broken)
    for _ in range(3):
        assert ring.required
        assert ring.find("first") == (ApiKey("first", 2), 1)
        assert ring.find("new") is None
    [record] = caplog.records
    assert "the API keys are unchanged" in record.getMessage()
    assert why in record.getMessage()
    replace(file, "new\n")
    assert ring.find("first") is None
    assert ring.find("new") == (ApiKey("new"), 3)


def test_a_key_may_train_if_its_line_ends_with_train() -> None:
    lines = ("reader", "reader2 3", "trainer train  # of us", "trainer2\t2 train", "train", "train train")
    assert parse_keys(lines, "keys") == [
        ApiKey("reader"), ApiKey("reader2", 3), ApiKey("trainer", None, True), ApiKey("trainer2", 2, True),
        ApiKey("train"), ApiKey("train", None, True),
    ]  # fmt: skip
    for line in ("a train 2", "a 0 train", "a 1 2", "a trains", "a 1 train train"):
        with pytest.raises(UserError, match="not KEY, KEY N, KEY train or KEY N train"):
            parse_keys([line], "keys")


def test_a_file_is_looked_at_once_a_second(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api_keys, "_CHECK_SECONDS", 3600.0)
    ring = KeyRing([], [KeyFile(file)])
    replace(file, "third\n")
    assert ring.find("third") is None
    monkeypatch.setattr(ring, "_next", 0.0)
    assert ring.find("third") is not None


def test_a_pipe_is_read_once(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.write(write, b"first\n")
    os.close(write)
    piped = KeyFile(Path(f"/dev/fd/{read}"))
    os.close(read)
    assert piped.keys == [ApiKey("first")]
    assert not piped.refresh()


def test_a_file_that_cannot_be_read_ends_the_start(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        KeyFile(tmp_path / "none")
