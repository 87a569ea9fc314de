"""Containers of sounds and videos: what FFmpeg may open, and that nobody else calls it."""

from __future__ import annotations

import ast
import os
import re
from pathlib import Path

import numpy as np
import pytest
from lerobot_data import SIZE, pictures

import headway
from headway.data.video import VideoWriter, read_frames
from headway.domains.audio import read_sound
from headway.errors import UserError

av = pytest.importorskip("av", reason="av is not installed: pip install 'headway[rl]'")

# Formats of FFmpeg that name other files, hosts or numbered pictures.
LISTS = {
    "ffconcat": "ffconcat version 1.0\nfile other.mp4\n",
    "HLS": "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\nother.mp4\n#EXT-X-ENDLIST\n",
    "SDP": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n",
    "DASH": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"><Period><AdaptationSet>'
    '<Representation id="0"><BaseURL>other.mp4</BaseURL></Representation></AdaptationSet></Period></MPD>',
    "IMF": '<?xml version="1.0"?><CompositionPlaylist xmlns="http://www.smpte-ra.org/schemas/2067-3/2016"/>',
}


@pytest.fixture
def film(tmp_path: Path) -> Path:
    with VideoWriter(tmp_path / "other.mp4", 10.0) as video:
        for frame in pictures(3):
            video.add(frame)
    return tmp_path / "other.mp4"


def frames_of(path: Path) -> int:
    return sum(1 for _ in read_frames(path, np.arange(3), 10.0, SIZE))


@pytest.mark.parametrize("kind", LISTS)
def test_lists_of_other_files_are_not_followed(kind: str, film: Path) -> None:
    assert frames_of(film) == 3
    for name in ("front.mp4", "front.sdp", "front.m3u8"):
        (film.parent / name).write_text(LISTS[kind])
        with pytest.raises(UserError, match=f"{name} is damaged or not a video"):
            frames_of(film.parent / name)
        with pytest.raises(UserError, match=f"{name} is not a readable audio file"):
            read_sound(film.parent / name)


def test_names_are_not_protocols_or_patterns(film: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(film.parent)
    content = film.read_bytes()
    for name in ("concat:other.mp4|other.mp4", "tcp:127.0.0.1.mp4", "a%03d.mp4", "*.mp4"):
        Path(name).write_bytes(content)
        assert frames_of(Path(name)) == 3, name
    picture = av.VideoFrame.from_ndarray(pictures(1)[0]).to_image()
    picture.save("001.png")
    Path("%03d.png").write_bytes(Path("001.png").read_bytes())
    for name in ("%03d.png", "001.png"):
        with pytest.raises(UserError, match="is damaged or not a video"):
            frames_of(Path(name))


def test_pipes_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "front.mp4")
    (tmp_path / "zero.mp4").symlink_to("/dev/zero")
    for name in ("front.mp4", "zero.mp4"):
        with pytest.raises(UserError, match="there is no video"):
            frames_of(tmp_path / name)
        with pytest.raises(UserError, match="is not a file"):
            read_sound(tmp_path / name)


def test_what_is_at_the_draft_of_a_video_is_not_written_to(film: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(film.parent)
    Path("valuable").write_text("kept")
    Path(".part.link.mp4").symlink_to("valuable")
    os.mkfifo(".part.pipe.mp4")
    for name in ("link.mp4", "pipe.mp4", "tcp:127.0.0.1.mp4"):
        with VideoWriter(Path(name), 10.0) as video:
            for frame in pictures(3):
                video.add(frame)
        assert frames_of(Path(name)) == 3
    assert Path("valuable").read_text() == "kept"


def opens_containers(source: str) -> bool:
    """Whether a module imports av by itself, or calls `open` on it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import) and any(each.name.split(".")[0] == "av" for each in node.names):
            return True
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "av":
            return True
        if not isinstance(node, ast.Call):
            continue
        function, first = node.func, node.args[0] if node.args else None
        name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
        if name in ("import_module", "__import__") and isinstance(first, ast.Constant) and first.value == "av":
            return True
        if isinstance(function, ast.Attribute) and name == "open":
            owner = function.value
            called = owner.func if isinstance(owner, ast.Call) else owner
            if isinstance(called, ast.Name) and called.id in ("av", "packaged_av"):
                return True
    return False


def test_all_containers_are_opened_in_one_module() -> None:
    root = Path(headway.__file__).parent
    sources = {str(path.relative_to(root)): path.read_text(encoding="utf-8") for path in root.rglob("*.py")}
    near = {name: text for name, text in sources.items() if re.search(r"\bav\b|packaged_av", text)}
    assert [name for name, text in near.items() if opens_containers(text)] == ["io/containers.py"]
    for call in ("import av", "from av import open", "av.open(p)", "packaged_av().open(p, 'w')", "import_module('av')"):
        assert opens_containers(call), call
    assert not opens_containers("have.open(p)\nimport avro")
