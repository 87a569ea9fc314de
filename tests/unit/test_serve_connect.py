"""`hw.connect` and `--server`: what a server says is what the same model says here."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest
import soundfile
import torch
import whisper_models
from serving import server

import headway as hw
from headway.app.cli.main import main
from headway.errors import UserError
from headway.serve.engine_loop import open_engine_loop
from headway.serve.interfaces import ApiKey, ServerSettings
from headway.serve.models import LoadOptions, ServedModels

KEY = "a-secret"
STORIES, WHISPER = "stories260K", "whisper"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, data_dir: Path, minilm: Path, whisper: Path) -> Path:
    place = tmp_path_factory.mktemp("models")
    for name, target in (("minilm", minilm), (WHISPER, whisper)):
        (place / name).symlink_to(target)
    for name in ("stories260K.bin", "tok512.bin"):
        (place / name).symlink_to(data_dir / "weights" / name)
    (place / "drawn").mkdir()
    whisper_models.folder(place / "drawn")
    return place


@pytest.fixture(scope="module")
def url(folder: Path) -> Iterator[str]:
    options = LoadOptions(device="cpu", backend="torch")
    models = ServedModels([], [folder], options, open_engine_loop)
    with server(models, ServerSettings(keys=(ApiKey(KEY),), log=False)) as url:
        yield url


@pytest.fixture
def stories(data_dir: Path) -> hw.Model:
    return hw.load(data_dir / "weights/stories260K.bin", backend="torch")


def test_texts_are_those_of_the_model_here(url: str, stories: hw.Model) -> None:
    remote = hw.connect(url, KEY, STORIES)
    assert (remote.kind, remote.context, remote.parameters) == ("a language model", 512, 260_032)
    assert remote.reads == stories.reads == ["texts"]
    assert set(remote.verbs) <= set(stories.verbs)
    wanted = stories.generate("Once upon", 12, temperature=0)
    assert remote.generate("Once upon", 12, temperature=0) == wanted
    pieces = list(remote.stream("Once upon", 12, temperature=0))
    assert len(pieces) > 3
    assert "".join(pieces) == wanted
    drawn = stories.generate(["Lily", "Tom"], 8, temperature=0.9, top_k=20, seed=7)
    assert remote.generate(["Lily", "Tom"], 8, temperature=0.9, top_k=20, seed=7) == drawn
    assert remote.generate("Once", 40, temperature=0, stop="was") == stories.generate(
        "Once", 40, temperature=0, stop="was"
    )
    assert remote.score("Once upon a time") == pytest.approx(stories.score("Once upon a time"))
    assert remote.generate([]) == []
    with pytest.raises(UserError, match="stories260K has no chat template"):
        remote.chat("Hello")


def test_vectors_are_those_of_the_model_here(url: str, minilm: Path) -> None:
    here, remote = hw.load(minilm), hw.connect(url, KEY, "minilm")
    texts = ["A man is playing a guitar.", "The stock market fell today."]
    found = remote.embed(texts)
    torch.testing.assert_close(found, here.embed(texts), rtol=0, atol=1e-6)
    assert found.shape == (2, 384)
    assert remote.embed(texts[0]).shape == (384,)
    assert remote.embed([]).shape[0] == 0
    with pytest.raises(UserError, match="text 2 of 2 is empty"):
        remote.embed(["a", " "])
    with pytest.raises(UserError, match=r"^minilm is a text model .* cannot translate"):
        remote.translate("Hallo")


def test_a_transcript_is_that_of_the_model_here(url: str, folder: Path, tmp_path: Path) -> None:
    sound, cut = tmp_path / "noise.wav", tmp_path / "cut.wav"
    soundfile.write(sound, whisper_models.noise(16000).numpy(), 16000)
    cut.write_bytes(sound.read_bytes()[:9000])
    here, remote = hw.load(folder / "drawn", backend="torch"), hw.connect(url, KEY, "drawn")
    for task in ("transcribe", "translate"):
        wanted = here.transcribe(sound, "de", task, prompt="Names: Li", words=True, vad=True)
        assert remote.transcribe(sound, "de", task, prompt="Names: Li", words=True) == wanted
    with pytest.raises(UserError, match=r"^cut.wav ends after \d+ of \d+ bytes of audio"):
        remote.transcribe(cut)
    with pytest.raises(UserError, match="this model has no language 'xx'"):
        remote.transcribe(sound, "xx")
    with pytest.raises(UserError, match=r"nothing\.wav cannot be read"):
        remote.transcribe("nothing.wav")


def test_transcripts_of_several_clients_at_once(url: str, folder: Path, tmp_path: Path) -> None:
    sounds = [tmp_path / f"{seed}.wav" for seed in range(3)]
    for seed, sound in enumerate(sounds):
        soundfile.write(sound, whisper_models.noise(8000 + 6000 * seed, seed).numpy(), 16000)
    here, remote = hw.load(folder / "drawn", backend="torch"), hw.connect(url, KEY, "drawn")
    wanted = [here.transcribe(sound, "de", vad=True) for sound in sounds]
    with ThreadPoolExecutor(len(sounds)) as clients:
        assert list(clients.map(lambda sound: remote.transcribe(sound, "de"), sounds)) == wanted


def test_what_cannot_be_connected_to_is_one_line(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for args, message in (
        (
            ("http://127.0.0.1:9",),
            "does not answer (Connection refused); check the URL, or start the server with headway serve",
        ),
        (("ftp://x",), "'ftp://x' is not the URL of a server"),
        (("http://x:99999999",), "is not a URL"),
        (("http://a@b",), "is not the URL of a server"),
        ((url,), "key"),
        ((url, "wrong"), "key"),
        ((url, "a\nb"), "characters that are not allowed in a header"),
        ((url, KEY), "has 4 models; pass the name of one"),
        ((url, KEY, "minim"), "did you mean 'minilm'"),
    ):
        with pytest.raises(UserError) as error:
            hw.connect(*args)
        assert message in str(error.value)
        assert "\n" not in str(error.value)
    monkeypatch.setenv("HEADWAY_API_KEY", KEY)
    assert hw.connect(f"{url}/v1/", model="minilm").name == "minilm"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"not JSON", "does not speak headway's API"),
        (b"[" * 100_000, "does not speak headway's API"),
        (b'{"data": 1}', "does not speak headway's API"),
        (b'{"data": [{"id": "m"}]}', "does not speak headway's API"),
    ],
)
def test_what_answers_otherwise_is_no_server_of_ours(body: bytes, message: str) -> None:
    class Other(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None: ...

    other = HTTPServer(("127.0.0.1", 0), Other)
    Thread(target=other.handle_request, daemon=True).start()
    with pytest.raises(UserError, match=message):
        hw.connect(f"http://127.0.0.1:{other.server_port}")
    other.server_close()


def command(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: str, given: str = ""
) -> tuple[int, str, str]:
    monkeypatch.setenv("HEADWAY_API_KEY", KEY)
    monkeypatch.setattr(sys, "stdin", io.StringIO(given))
    code = main(words)
    said = capsys.readouterr()
    return code, said.out, said.err


def test_commands_ask_a_server(
    url: str,
    stories: hw.Model,
    data_dir: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    at = ("--server", url)
    prompt = ("generate", STORIES, "--prompt", "Once upon", "--max-new-tokens", "8", "--temperature", "0", *at)
    wanted = stories.generate("Once upon", 8, temperature=0)
    assert command(capsys, monkeypatch, *prompt)[:2] == (0, f"Once upon{wanted}\n")
    assert json.loads(command(capsys, monkeypatch, *prompt, "--json")[1]) == {"prompt": "Once upon", "text": wanted}
    code, out, _ = command(capsys, monkeypatch, "embed", "minilm", *at, given="one\ntwo\n")
    assert (code, [len(json.loads(line)) for line in out.splitlines()]) == (0, [384, 384])
    sound = str(data_dir / "speech/pocketsphinx/cards-001.wav")
    assert command(capsys, monkeypatch, "transcribe", WHISPER, sound, *at)[:2] == (0, "10 of clubs.\n")
    for words, message in (
        (("transcribe", WHISPER, sound, "--beam", "2", *at), "--server does not support --beam"),
        (("embed", "minilm", "--threads", "1", *at), "--threads is set when the server starts"),
        (("embed", "nothing", *at), "has no model 'nothing'"),
        (("embed", STORIES, "--server", "http://127.0.0.1:9"), "does not answer"),
    ):
        code, out, err = command(capsys, monkeypatch, *words, given="one\n")
        assert (code, out) == (2, "")
        assert message in err
    code, _, err = command(capsys, monkeypatch, "chat", STORIES, *at, given="Hello\n")
    assert "has no chat template" in err
