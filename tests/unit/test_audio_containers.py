"""Sounds in containers, and folders of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from sound_files import tone, write
from whisper_models import folder

from headway.app.cli.main import main
from headway.domains.audio import FileSound, read_sound
from headway.domains.audio.sound_files import ArraySound, open_sounds
from headway.errors import UserError
from headway.io import sounds

av = pytest.importorskip("av")

RATE = 48000
QUICK = ["--backend", "torch", "--beam", "1", "--temperature", "0", "--language", "en"]


def made(place: Path, codec: str = "aac", seconds: float = 1.5, film: bool = False) -> np.ndarray:
    """A file of a tone in two channels, in a film of 3 s if asked for; the tone, which is of `codec` within."""
    samples = tone(440, seconds, rate=RATE)
    with av.open(str(place), "w") as container:
        stream = container.add_stream(codec, rate=RATE, layout="stereo")
        if film:
            pictures = container.add_stream("mpeg4", rate=10)
            pictures.width, pictures.height, pictures.pix_fmt = 32, 32, "yuv420p"
            for _ in range(30):
                container.mux(pictures.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), "rgb24")))
            container.mux(pictures.encode())
        frame = av.AudioFrame.from_ndarray(np.stack([samples] * 2), format="fltp", layout="stereo")
        frame.sample_rate = RATE
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return samples


@pytest.mark.parametrize(
    ("name", "codec", "film"),
    [
        ("a.m4a", "aac", False), ("a.mp4", "aac", True), ("a.mov", "aac", False), ("a.aac", "aac", False),
        ("a.mkv", "aac", True), ("a.webm", "libopus", False), ("a.opus", "libopus", False),
        ("a.avi", "aac", False), ("no-suffix", "", False),
    ],
)  # fmt: skip
def test_containers(tmp_path: Path, name: str, codec: str, film: bool) -> None:
    samples = made(tmp_path / (name if codec else "a.m4a"), codec or "aac", film=film)
    if not codec:
        (tmp_path / "a.m4a").rename(tmp_path / name)
    opened = FileSound(tmp_path / name, RATE)
    assert opened.seconds == pytest.approx(1.5, abs=0.1)
    found = read_sound(tmp_path / name, RATE).numpy()
    assert len(found) == pytest.approx(len(samples), abs=0.1 * RATE)
    shift = (
        np.argmax(np.correlate(found[: 12 * 1024], samples[4096:8192], "valid")) - 4096
    )  # what an encoder puts before
    assert abs(shift) < 4096
    assert np.corrcoef(found[shift + 8192 : shift + 50000], samples[8192:50000])[0, 1] > 0.99
    assert len(read_sound(tmp_path / name)) == pytest.approx(len(found) / 3, abs=1)


def test_damage_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made(tmp_path / "a.m4a")
    made(tmp_path / "a.mkv", seconds=4.0)
    (tmp_path / "a.flac").write_bytes(b"fLaC" + bytes(100))
    write(tmp_path / "a.wav", tone(440))
    for name in ("a.m4a", "a.mkv"):
        raw = (tmp_path / name).read_bytes()
        (tmp_path / f"cut-{name}").write_bytes(raw[: len(raw) // 2])
        (tmp_path / f"bad-{name}").write_bytes(raw[: len(raw) // 2] + b"\xaa" * 2000 + raw[len(raw) // 2 + 2000 :])
    (tmp_path / "text.mp4").write_text("no sound")
    (tmp_path / "none.m4a").write_bytes(b"")
    (tmp_path / "list.m3u8").write_text("#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\na.aac\n#EXT-X-ENDLIST\n")
    with av.open(str(tmp_path / "mute.mp4"), "w") as film:
        stream = film.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        film.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), "rgb24")))
        film.mux(stream.encode())
    for name, message in (
        ("cut-a.m4a", "not a readable audio file"),
        ("bad-a.m4a", "not a readable audio file"),
        ("cut-a.mkv", r"ends after \d\.\d of 4\.\d s; download the file again"),
        ("bad-a.mkv", "."),
        ("text.mp4", "not a readable audio file"),
        ("none.m4a", "not a readable audio file"),
        ("a.flac", "not a readable audio file"),
        ("list.m3u8", "not a readable audio file"),
        ("mute.mp4", "mute.mp4 has no audio stream"),
    ):
        with pytest.raises(UserError, match=message) as told:
            read_sound(tmp_path / name)
        assert len(str(told.value).splitlines()) == 1
    monkeypatch.setattr(sounds, "MAX_SECONDS", 1)
    for name in ("a.m4a", "a.mkv"):
        with pytest.raises(UserError, match="is longer than"):
            FileSound(tmp_path / name)
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(UserError, match="other formats need the package av; run pip install"):
        FileSound(tmp_path / "a.m4a")
    assert FileSound(tmp_path / "a.wav").seconds == pytest.approx(0.3)


def test_a_folder_is_transcribed_file_by_file(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    place, data, out = str(folder(tmp_path / "model")), tmp_path / "data", tmp_path / "out"
    write(data / "b.wav", tone(440))
    write(data / "a" / "b.flac", tone(440))
    made(data / "a" / "c.m4a")
    (data / "a" / "bad.mp3").write_text("no sound")
    (data / "a" / "notes.txt").write_text("none of it")
    (data / ".b.wav").write_text("no sound, and hidden")
    assert (
        main(["transcribe", place, str(data), *QUICK, "--no-vad", "--format", "srt", "--out", str(out), "--json"]) == 2
    )
    shown = capsys.readouterr()
    told = json.loads(shown.out.splitlines()[-1])
    assert [Path(one["file"]).relative_to(data).as_posix() for one in told["results"]] == [
        "a/b.flac",
        "a/c.m4a",
        "b.wav",
    ]
    assert [Path(one["file"]).name for one in told["errors"]] == ["bad.mp3"]
    assert "bad.mp3 is not a readable audio file" in shown.err.splitlines()[-1]
    assert sorted(p.relative_to(out).as_posix() for p in out.rglob("*.srt")) == ["a/b.srt", "a/c.srt", "b.srt"]
    (tmp_path / "empty").mkdir()
    for given, message in (
        ([tmp_path / "empty"], "contains no audio files"),
        ([data, "--format", "vtt"], "cannot share stdout"),
    ):
        assert main(["transcribe", place, *map(str, given), *QUICK]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("suffix", ["wav", "flac", "m4a"])
def test_channels_that_cancel_are_told(suffix: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    wave = tone(440, 1.0, rate=16000)
    quiet = np.zeros((8000, 2), np.float32)  # which decides nothing
    both = np.concatenate([quiet, np.stack([0.5 * wave, -0.5 * wave], 1)])
    path = tmp_path / f"a.{suffix}"
    if suffix == "m4a":
        with av.open(str(path), "w") as container:
            stream = container.add_stream("aac", rate=16000, layout="stereo")
            stream.bit_rate = 320_000
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(both.T), format="fltp", layout="stereo")
            frame.sample_rate = 16000
            container.mux(stream.encode(frame))
            container.mux(stream.encode())
    else:
        write(path, both, 16000)
    heard = read_sound(path).numpy()
    assert heard[-8000:].std() == pytest.approx(0.5 * wave[-8000:].std(), rel=0.05)
    assert caplog.text.count("its channels cancel each other out, so only the loudest is used") == 1
    caplog.clear()
    write(path.with_suffix(".wav"), np.stack([wave, 0.1 * wave[::-1]], 1), 16000)
    assert read_sound(path.with_suffix(".wav")).numpy()[-8000:].std() == pytest.approx(0.5 * wave.std(), rel=0.1)
    assert not caplog.text
    assert next(ArraySound(both).blocks())[-8000:].std() == pytest.approx(0.5 * wave.std(), rel=0.05)
    assert "the audio: its channels cancel" in caplog.text


def test_a_set_reports_channels_that_cancel_each_other(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    wave = tone(440, 0.3)
    files = [write(tmp_path / "a.wav", np.stack([wave, -wave], 1)), write(tmp_path / "b.wav", wave)]
    for _ in range(2):  # decoded, and from the cache
        caplog.clear()
        sounds = open_sounds(files)
        assert caplog.text.count("the channels of 1 of 2 recordings cancel each other") == 1
        assert str(files[0]) in caplog.text
    assert sounds.remarks
    assert float(sounds[0].std()) == pytest.approx(float(sounds[1].std()), rel=0.1)
