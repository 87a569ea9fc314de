"""Files that crash the library which decodes them end one request each: not the server, and nobody else's."""

from __future__ import annotations

import base64
import io
import sys
from collections.abc import Iterator
from pathlib import Path
from queue import LifoQueue

import numpy as np
import pytest
import soundfile
from PIL import Image

from headway.domains.audio import FileSound
from headway.errors import UserError
from headway.io.helper import Helper
from headway.serve import media

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="has no limits for processes")
BAD = {
    b"crashes": "crashes its decoder; encode it again",
    b"takes long": "takes more than 60 s to decode; send a smaller one",
    b"grows": "needs too much memory to decode; send a smaller one",
}


@pytest.fixture(autouse=True)
def decoder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Helper]:
    """A process whose library has faults."""
    helper = Helper("crashing_decoder", media._MEMORY)
    idle: LifoQueue[Helper] = LifoQueue()
    idle.put(helper)
    monkeypatch.setattr(media, "_idle_helpers", idle)
    monkeypatch.setattr(media, "_sound_helper", helper)
    monkeypatch.setattr(media, "_CPU_SECONDS", 0.1)
    yield helper
    helper.stop()


def url(kind: str, data: bytes) -> str:
    return f"data:{kind}/any;base64,{base64.b64encode(data).decode()}"


def picture(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def sound(samples: np.ndarray, rate: int = 16000, kind: str = "WAV") -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=kind)
    return file.getvalue()


@pytest.mark.parametrize("bad", BAD)
def test_a_bad_file_ends_one_request(bad: bytes) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (30, 20, 3), np.uint8)
    with pytest.raises(UserError, match=f"input 1 {BAD[bad]}"):
        media.image_of(url("image", bad), "input 1")
    with pytest.raises(UserError, match=f"item 2 {BAD[bad]}"):
        media.sound_of(url("audio", bad), "item 2")
    assert (media.image_of(url("image", picture(pixels)), "input 1") == pixels).all()


def test_the_pixels_and_samples_are_those_without_a_helper(tmp_path: Path) -> None:
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, (700_000, 2)).astype(np.float32)
    for kind in ("WAV", "FLAC"):
        data = sound(samples, 44100, kind)
        (tmp_path / kind).write_bytes(data)
        here = np.concatenate([block.numpy() for block in FileSound(tmp_path / kind).blocks()])
        assert (media.sound_of(url("audio", data), "it") == here).all()
    pixels = media.image_of(url("image", picture(np.zeros((3, 4), np.uint8))), "it")
    assert pixels.shape == (3, 4, 3)
    assert pixels.flags.writeable


def test_errors_name_what_the_client_sent() -> None:
    with pytest.raises(UserError, match=r"^input 3 is truncated or corrupt"):
        media.image_of(url("image", picture(np.zeros((99, 99), np.uint8))[:60]), "input 3")
    with pytest.raises(UserError, match=r"^item 1 is not a readable audio file"):
        media.sound_of(url("audio", b"nothing"), "item 1")


def test_a_sound_is_read_on_after_another_one_has_crashed_the_process(tmp_path: Path, decoder: Helper) -> None:
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, 1_000_000).astype(np.float32)
    (tmp_path / "good").write_bytes(sound(samples))
    (tmp_path / "bad").write_bytes(b"crashes")
    blocks = media.client_sound(tmp_path / "good").blocks()
    read = [next(blocks), next(blocks)]
    with pytest.raises(UserError, match="crashes its decoder"):
        media.client_sound(tmp_path / "bad")
    decoder.stop()
    read += list(blocks)
    here = FileSound(tmp_path / "good").blocks()
    assert all((block == other).all() for block, other in zip(read, here, strict=True))


def test_files_read_in_turn_do_not_mix(tmp_path: Path) -> None:
    names = ("a", "b")
    for seed, name in enumerate(names):
        data = np.random.default_rng(seed).uniform(-0.5, 0.5, 600_000).astype(np.float32)
        (tmp_path / name).write_bytes(sound(data))
    together = zip(*(media.client_sound(tmp_path / name).blocks() for name in names), strict=True)
    for number, pair in enumerate(together):
        for name, block in zip(names, pair):
            assert (block == list(FileSound(tmp_path / name).blocks())[number]).all()
