"""Endpoints beside texts: vectors, transcripts, classes and the other verbs, and what each of them refuses."""

from __future__ import annotations

import base64
import io
import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from queue import LifoQueue
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from sound_files import tone
from starlette.testclient import TestClient

import headway as hw
from headway.codecs import train_codec
from headway.config import override
from headway.domains.audio import Segment, Transcription, Word, read_sound
from headway.domains.translation.recipes import encoder_decoder
from headway.errors import UserError
from headway.formats.native import save_model
from headway.formats.published import save_published
from headway.formats.usage import Usage
from headway.io.helper import Helper
from headway.nn.models import PooledHeadConfig, VocabularyHeadConfig, build
from headway.nn.models.presets import preset, vit
from headway.serve import embeddings, media, transcriptions
from headway.serve.app import create_app
from headway.serve.engine_loop import open_engine_loop
from headway.serve.interfaces import ServerSettings
from headway.serve.media import image_of, sound_of
from headway.serve.models import LoadOptions, ServedModels

SIZES = {"width": 16, "depth": 1, "heads": 2, "context": 64}
PROCESSOR = {"image_processor_type": "ViTImageProcessor", "size": {"height": 8, "width": 8}, "resample": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, minilm: Path) -> Path:
    """An encoder with three heads and a model of images, as they are drawn, and one that was trained."""
    place = tmp_path_factory.mktemp("models")
    codec = train_codec("byte", iter(["a text"]))
    config: Any = override(preset("bert-base"), {**SIZES, "symbols": codec.vocab_size})
    heads = {"vocabulary": VocabularyHeadConfig(), "classes": PooledHeadConfig(2)}
    config = replace(config, heads={**config.heads, **heads, "tags": PooledHeadConfig(2, pool="tokens")})
    (place / "encoder").mkdir()
    save_model(build(config, seed=1), config, place / "encoder")
    codec.save(place / "encoder")
    seeing = vit(16, 2, 2, 4, classes=2, size=8)
    save_published(build(seeing, seed=1), seeing, place / "vit", Usage(labels=("cat", "dog"), processor=PROCESSOR))
    several = Usage(labels=("one", "other"), settings={"problem_type": "multi_label_classification"})
    (place / "several").mkdir()
    save_model(build(config, seed=1), config, place / "several")
    codec.save(place / "several")
    several.save(place / "several")
    (place / "minilm").symlink_to(minilm)
    return place


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[TestClient]:
    models = ServedModels([], [folder], LoadOptions(device="cpu", backend="torch"), open_engine_loop)
    with TestClient(create_app(models, ServerSettings(log=False)), base_url="http://127.0.0.1") as client:
        yield client


def asked(client: TestClient, path: str, **body: Any) -> Any:
    answer = client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def refused(client: TestClient, path: str, status: int = 400, **body: Any) -> str:
    answer = client.post(path, json=body)
    assert answer.status_code == status, answer.text
    message = answer.json()["error"]["message"]
    assert "\n" not in message
    return message


def png(seed: int = 0) -> tuple[np.ndarray, str]:
    pixels = np.random.default_rng(seed).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file := io.BytesIO(), "png")
    return pixels, f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def test_what_there_is(client: TestClient) -> None:
    found = {each["id"]: each for each in client.get("/v1/models").json()["data"]}
    assert found.keys() == {"encoder", "minilm", "several", "vit"}
    assert {"classify", "tag", "fill", "embed"} <= set(found["encoder"]["verbs"])
    assert (found["minilm"]["verbs"], found["minilm"]["context"]) == (["embed", "attention"], 512)
    assert (found["vit"]["reads"], found["encoder"]["reads"]) == (["images"], ["texts"])
    assert (found["vit"]["is_run"], found["vit"]["examples"]) == (False, [])
    assert client.get("/v1/models/vit").json() == found["vit"]
    assert client.get("/v1/models/a/b").status_code == 404


def test_vectors_of_texts_and_ids_in_both_encodings(client: TestClient, minilm: Path) -> None:
    model = hw.load(minilm)
    texts = ["A man is playing a guitar.", "The stock market fell today."]
    found = asked(client, "/v1/embeddings", model="minilm", input=texts, dimensions=384, user="me")
    vectors = torch.tensor([each["embedding"] for each in found["data"]])
    torch.testing.assert_close(vectors, model.embed(texts), rtol=0, atol=1e-6)
    ids = [model.codec.encode(text) for text in texts]
    assert found["usage"]["prompt_tokens"] == found["usage"]["total_tokens"] == sum(map(len, ids)) + 4  # marks
    packed = asked(client, "/v1/embeddings", model="minilm", input=ids, encoding_format="base64")
    raw = b"".join(base64.b64decode(each["embedding"]) for each in packed["data"])
    assert np.array_equal(np.frombuffer(raw, "<f4").reshape(2, 384), vectors.numpy())
    one = asked(client, "/v1/embeddings", model="minilm", input=ids[0])["data"]
    assert len(one) == 1
    torch.testing.assert_close(torch.tensor(one[0]["embedding"]), vectors[0], rtol=0, atol=1e-6)
    long = asked(client, "/v1/embeddings", model="minilm", input="so " * 600, truncate=True)
    assert long["usage"]["prompt_tokens"] == 256


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"input": []}, "input has 0 items; send 1 to 2,048"),
        ({"input": ["a"] * 2049}, "input has 2,049 items"),
        ({"input": ["a", 1]}, "input mixes strings and ids"),
        ({"input": [[1], "a"]}, "input mixes strings and ids"),
        ({"input": [[99_999_999]]}, "input 1 is empty or has unknown ids; send ids from 0 to 30521"),
        ({"input": [[1], []]}, "input 2 is empty"),
        ({"input": [True]}, "bool"),
        ({"input": ["a", " "]}, "text 2 of 2 is empty"),
        ({"input": "so " * 600}, "has 602 tokens, but the model reads at most 256"),
        (
            {"input": "a", "dimensions": 64},
            "its configuration has no shorter ones (matryoshka_dimensions)",
        ),
        ({"input": "a", "encoding_format": "int8"}, "encoding_format"),
        ({"input": "a", "best_of": 2}, "unknown field 'best_of'"),
        ({"input": "/etc/passwd", "model": "vit"}, "no files or URLs are opened"),
    ],
)
def test_inputs_that_cannot_be(client: TestClient, body: dict[str, Any], message: str) -> None:
    assert message in refused(client, "/v1/embeddings", **{"model": "minilm", **body})


def test_shorter_vectors_where_the_model_was_trained_for_them(minilm: Path, tmp_path: Path) -> None:
    settings = json.loads((minilm / "config.json").read_text())
    for name, more in (("any", {"is_matryoshka": True}), ("some", {"matryoshka_dimensions": [64, 128]})):
        shutil.copytree(minilm, tmp_path / name)
        (tmp_path / name / "config.json").write_text(json.dumps({**settings, **more}))
    models = ServedModels([], [tmp_path], LoadOptions(device="cpu", backend="torch"), open_engine_loop)
    with TestClient(create_app(models, ServerSettings(log=False)), base_url="http://127.0.0.1") as client:
        whole = torch.tensor(asked(client, "/v1/embeddings", model="any", input="a")["data"][0]["embedding"])
        for name, size in (("any", 5), ("any", 384), ("some", 64), ("some", 384)):
            found = asked(client, "/v1/embeddings", model=name, input="a", dimensions=size)["data"][0]["embedding"]
            wanted = whole[:size] / whole[:size].norm()
            torch.testing.assert_close(torch.tensor(found), wanted, rtol=0, atol=1e-6)
        for name, size, why in (("any", 385, "has 384 dimensions; request fewer"), ("some", 5, "trained for 64, 128")):
            answer = client.post("/v1/embeddings", json={"model": name, "input": "a", "dimensions": size})
            assert (answer.status_code, answer.json()["error"]["param"]) == (400, "dimensions")
            assert why in answer.json()["error"]["message"]


def test_a_text_that_cannot_be_read_is_no_matter_of_those_beside_it(client: TestClient, minilm: Path) -> None:
    texts = ["a", " ", "so " * 600, "the stock market", "a man"]
    together = embeddings._embed_rows(hw.load(minilm), False, None, texts)
    assert [vector is None for vector in together] == [False, True, True, False, False]

    def ask(text: str) -> Any:
        return client.post("/v1/embeddings", json={"model": "minilm", "input": text})

    with ThreadPoolExecutor(10) as clients:
        found = list(clients.map(ask, texts * 4))
    for answer, vector in zip(found, together * 4):
        assert answer.status_code == (400 if vector is None else 200)
        if vector is not None:
            told = answer.json()
            assert told["usage"]["prompt_tokens"] == vector.tokens
            np.testing.assert_allclose(told["data"][0]["embedding"], vector.vector, rtol=0, atol=1e-6)
    assert "is empty" in found[1].json()["error"]["message"]
    assert "reads at most 256" in found[2].json()["error"]["message"]


def test_verbs_say_what_the_model_says(client: TestClient, folder: Path) -> None:
    model = hw.load(folder / "encoder", backend="torch")
    found = asked(client, "/v1/classify", model="encoder", items=["a text", "another"])
    assert found == {"result": [pytest.approx(each, abs=1e-6) for each in model.classify(["a text", "another"])],
                     "model": "encoder"}  # fmt: skip
    assert asked(client, "/v1/classify", model="encoder", items="a text")["result"] == found["result"][0]
    several = asked(client, "/v1/classify", model="several", items="a text")["result"]
    assert several == pytest.approx(hw.load(folder / "several").classify("a text"), abs=1e-6)
    assert abs(sum(several.values()) - 1) > 0.01  # each label has a probability of its own
    [pair] = asked(client, "/v1/classify", model="encoder", items=[["a", "b"]])["result"]
    assert pair == pytest.approx(model.classify(("a", "b")), abs=1e-6)
    tagged = asked(client, "/v1/tag", model="encoder", texts=["one two", ["three"]])["result"]
    wanted = model.tag(["one two", ["three"]])
    assert [(each["words"], each["tags"]) for each in tagged] == [(each.words, each.tags) for each in wanted]
    assert "3 items" not in refused(client, "/v1/fill", model="encoder", text="no mask here")
    for path, body, message in (
        ("/v1/classify", {"items": []}, "the request has 0 items"),
        ("/v1/classify", {"items": [["a", "b", "c"]]}, "item 1 is a list of 3"),
        ("/v1/classify", {"items": ["a", ["a", "b"]]}, "pass only pairs or only single texts"),
        ("/v1/classify", {"items": ["x" * 100]}, "text 1 has"),
        ("/v1/translate", {"lines": "Hallo"}, "encoder is a masked language model, which cannot translate"),
        ("/v1/translate", {"lines": "Hallo", "beam": 1000}, "beam"),
        ("/v1/caption", {"images": png()[1]}, "cannot write captions"),
        ("/v1/match", {"images": png()[1], "texts": "a"}, "cannot match"),
        ("/v1/score", {"texts": "a"}, "cannot score"),
    ):
        said = refused(client, path, model="encoder", **body)
        assert message in said
        assert str(folder) not in said
    assert "no model 'encodr'" in refused(client, "/v1/classify", 404, model="encodr", items="a")
    assert "no model ''" in refused(client, "/v1/classify", 404, items="a")


def test_translations_share_calls_and_are_what_each_is_alone(tmp_path: Path) -> None:
    """On the engine, in int8: what torch computes of several lines may differ in its last bits from that of one."""
    codec = train_codec("byte", iter(["a text"]))
    config = encoder_decoder(width=64, depth=2, heads=2, hidden=128, vocab_size=codec.vocab_size, dropout=0.0)
    (tmp_path / "translator").mkdir()
    save_model(build(config, seed=1), config, tmp_path / "translator")
    codec.save(tmp_path / "translator")
    Usage(ends=(10,), decoder_start=0).save(tmp_path / "translator")
    lines = [f"{number} {'Katze ' * number}" for number in range(1, 9)]
    options = LoadOptions(device="cpu", backend="cpu", weights="int8")
    alone = hw.load(tmp_path / "translator", "cpu", "int8", backend="cpu")
    models = ServedModels([], [tmp_path], options, open_engine_loop)
    with TestClient(create_app(models, ServerSettings(log=False)), base_url="http://127.0.0.1") as client:
        ask = lambda line: asked(client, "/v1/translate", lines=line, n_best=3)["result"]  # noqa: E731
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(ask, lines))
    assert found == [alone.translate(line, n_best=3) for line in lines]
    assert len({tuple(each) for each in found}) > 1


def test_images_come_as_data_and_nothing_is_opened(client: TestClient, folder: Path, tmp_path: Path) -> None:
    model = hw.load(folder / "vit")
    pixels, url = png()
    assert np.array_equal(image_of(url, "it"), pixels)
    found = asked(client, "/v1/classify", model="vit", items=[url, png(1)[1]])["result"]
    for row, wanted in zip(found, model.classify([pixels, png(1)[0]])):
        assert row == pytest.approx(wanted, abs=1e-6)
    vector = asked(client, "/v1/embeddings", model="vit", input=url)
    torch.testing.assert_close(torch.tensor(vector["data"][0]["embedding"]), model.embed(pixels), rtol=0, atol=1e-6)
    Image.fromarray(pixels).save(tmp_path / "here.png")
    for given, message in (
        (str(tmp_path / "here.png"), "no files or URLs are opened"),
        ("http://127.0.0.1/cat.png", "no files or URLs are opened"),
        ("file:///etc/passwd", "no files or URLs are opened"),
        (url.replace("image/png", "text/plain"), "send data:image/"),
        (url.replace(";base64", ""), "send data:image/"),
        (url[:-40] + "!" * 40, "item 2 is not base64"),
        (url[: len(url) // 8 * 4 + 2], "item 2 is"),
        ("data:image/png;base64,AAAA", "item 2 is not a supported image"),
    ):
        assert message in refused(client, "/v1/classify", model="vit", items=[url, given])


def test_an_image_that_crashes_its_decoder_is_a_bad_request(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    helper, idle = Helper("crashing_decoder", media._MEMORY), LifoQueue[Helper]()
    idle.put(helper)
    monkeypatch.setattr(media, "_idle_helpers", idle)
    _, url = png()
    bad = f"data:image/png;base64,{base64.b64encode(b'crashes').decode()}"
    for _ in range(2):
        assert refused(client, "/v1/classify", model="vit", items=[url, bad]).startswith("item 2 crashes its decoder")
        assert len(asked(client, "/v1/classify", model="vit", items=[url])["result"]) == 1
    helper.stop()


def test_sounds_come_as_data_too(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "tone.wav", tone(440), 8000)
    raw = (tmp_path / "tone.wav").read_bytes()
    url = f"data:audio/wav;base64,{base64.b64encode(raw).decode()}"
    assert np.array_equal(sound_of(url, "it"), read_sound(tmp_path / "tone.wav").numpy())
    with pytest.raises(UserError, match=r"^item 3 is not a readable audio file"):
        sound_of(f"data:audio/wav;base64,{base64.b64encode(bytes(100)).decode()}", "item 3")


def test_words_are_told_without_their_space(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    words = (Word(" Hello", 0.0, 0.5, 0.9), Word(" there.", 0.5, 1.0, 0.8))
    segment = Segment(0.0, 1.0, " Hello there.", [1, 2], 0.0, -0.1, 1.0, 0.0, words)

    async def told(*_: Any) -> Transcription:
        return Transcription("Hello there.", "en", 1.0, [segment])

    monkeypatch.setattr(transcriptions, "_transcribe", told)
    for granularities in ("timestamp_granularities[]", "timestamp_granularities"):
        fields = {"response_format": "verbose_json", granularities: "word", "stream": "false", "prompt": ""}
        fields["chunking_strategy"] = "auto"
        found = client.post("/v1/audio/transcriptions", data=fields, files={"file": ("a.wav", b"RIFF")}).json()
        assert "segments" not in found
        assert [word["word"] for word in found["words"]] == ["Hello", "there."]
        assert "".join(word["text"] for word in found["words"]) == segment.text


FIELDS = b"".join(b'--a\r\nContent-Disposition: form-data; name="%d"\r\n\r\nx\r\n' % n for n in range(1001)) + b"--a--"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"response_format": "xml"}, "unknown response_format 'xml'"),
        ({"chunking_strategy": "server_vad"}, "chunking_strategy is 'server_vad', but audio is always split as"),
        ({"stream": "true"}, "stream is 'true', but transcripts are not streamed"),
        ({"best_of": "2"}, "unknown field 'best_of'"),
        ({"temperature": "NaN"}, "temperature is 'NaN'; use a number from 0 to 1"),
        ({"temperature": "hot"}, "temperature is 'hot'"),
        ({"timestamp_granularities[]": "word"}, "json has no word timestamps"),
        ({"timestamp_granularities[]": "letter"}, "use word or segment"),
        ({"prompt": ["a", "b"]}, "the field prompt must be one string"),
        ({}, "minilm is a text model"),
    ],
)
def test_forms_that_cannot_be(client: TestClient, fields: dict[str, Any], message: str) -> None:
    for path in ("/v1/audio/transcriptions", "/v1/audio/translations"):
        answer = client.post(path, data={"model": "minilm", **fields}, files={"file": ("a.wav", b"RIFF")})
        assert answer.status_code == 400
        assert message in answer.json()["error"]["message"]
    answer = client.post("/v1/audio/transcriptions", files={"model": (None, "minilm")})
    assert "the form has no file" in answer.json()["error"]["message"]
    heads = {"Content-Type": "multipart/form-data; boundary=a"}
    for raw in (b"x", b"--a\r\n[]--a--\r\n", b"--a\r\nContent-Disposition: form-data\r\n\r\nx\r\n--a--\r\n", FIELDS):
        answer = client.post("/v1/audio/transcriptions", content=raw, headers=heads)
        assert answer.status_code == 400
        assert "the body is not a form" in answer.json()["error"]["message"]


def test_the_document_has_all_of_it(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    assert {"/v1/embeddings", "/v1/audio/transcriptions", "/v1/models/{name}", "/v1/tag"} <= document["paths"].keys()
    form = document["paths"]["/v1/audio/transcriptions"]["post"]["requestBody"]["content"]["multipart/form-data"]
    assert form["schema"]["required"] == ["file"]
    assert {"language", "prompt", "response_format", "temperature"} <= form["schema"]["properties"].keys()
    assert client.get("/docs").status_code == 200
