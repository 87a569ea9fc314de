"""The page at /, which asks by the API as a stranger's would not be let; and what a model reads, told to who asks."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chat_models import echo_model
from serve_models import asking, ready, stories
from starlette.testclient import TestClient

import headway as hw
from headway.serve.interfaces import ApiKey

KEY = {"Authorization": "Bearer a-key"}


@pytest.fixture(scope="module")
def echo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return echo_model(tmp_path_factory.mktemp("page") / "echo")


@pytest.fixture(scope="module")
def client(data_dir: Path, echo: Path) -> Iterator[TestClient]:
    models = ready(stories(data_dir), "stories"), ready(echo, "echo")
    with asking(*models, keys=(ApiKey("a-key"),)) as client:
        yield client


def test_a_page_whose_own_script_alone_runs(client: TestClient) -> None:
    page = client.get("/")
    policy = page.headers["Content-Security-Policy"]
    for tag in ("script", "style"):
        inside = re.findall(f"<{tag}>(.*?)</{tag}>", page.text, re.DOTALL)
        digests = [base64.b64encode(hashlib.sha256(each.encode()).digest()).decode() for each in inside]
        assert f"{tag}-src " + " ".join(f"'sha256-{digest}'" for digest in digests) + ";" in policy
        assert page.text.count(f"<{tag}") == len(inside) > 0
    assert len(page.content) < 400_000
    assert page.text.index("Loading …") < page.text.index("<script>")  # shown before a script has run
    assert policy.startswith("default-src 'none';")
    assert "unsafe" not in policy
    assert "connect-src 'self'" in policy
    # Nothing is read from elsewhere, no handler stands in the text, and no text of a model becomes markup.
    forbidden = (" src=", 'style="', "innerHTML", "insertAdjacent", "document.write", "eval(", "http://", "https://")
    assert [each for each in forbidden if each in page.text.replace("http://www.w3.org/2000/svg", "")] == []
    assert not re.search(r'\son[a-z]+="', page.text)


def test_no_two_scripts_declare_the_same_global_name(client: TestClient) -> None:
    """The scripts share one scope, in which a second `const` would stop a whole script."""
    names = re.findall(r"^(?:async )?(?:const|let|class|function)\*? (\w+)", client.get("/").text, re.MULTILINE)
    assert len(names) > 50
    assert sorted(names) == sorted(set(names))


def test_pages_are_shown_before_a_key_is_typed_in(client: TestClient) -> None:
    for path in ("/", "/docs", "/openapi.json"):
        assert client.get(path).status_code == 200
        assert client.get(path, headers={"Host": "stranger.example"}).status_code == 403
    assert client.get("/v1/models").status_code == 401
    assert client.post("/", headers=KEY).status_code == 405


def test_the_servers_own_page_may_ask_and_no_other(client: TestClient) -> None:
    def status(origin: str, host: str = "localhost:8000") -> int:
        heads = {**KEY, "Origin": origin, "Host": host}
        return client.post("/tokenize", json={"model": "stories", "content": "a"}, headers=heads).status_code

    assert status("http://localhost:8000") == 200
    assert status("http://[::1]:8000", "[::1]:8000") == 200
    for other in ("http://localhost:8001", "http://localhost", "null", "", "localhost:8000", "http://stranger.example"):
        assert status(other) == 403
    assert status("http://stranger.example", "stranger.example") == 403  # a name that leads here is not enough


def test_what_tokens_spell(client: TestClient) -> None:
    text = "Once \u5abd \U0001f917"
    asked = {"model": "stories", "content": text, "with_pieces": True}
    found = client.post("/tokenize", json=asked, headers=KEY).json()["tokens"]
    plain = client.post("/tokenize", json={**asked, "with_pieces": False}, headers=KEY).json()["tokens"]
    assert [each["id"] for each in found] == plain
    spelt = b"".join(each.encode() if isinstance(each, str) else bytes(each) for each in (t["piece"] for t in found))
    assert spelt.decode().lstrip() == text
    assert any(isinstance(each["piece"], list) for each in found)  # bytes that are a part of a character


def test_what_a_chat_reads(client: TestClient, echo: Path) -> None:
    talk, messages = hw.load(echo).talk, [{"role": "user", "content": "Hi <|stop|>"}]

    def asked(**more: object) -> Any:
        return client.post("/apply-template", json={"model": "echo", "messages": messages, **more}, headers=KEY)

    found = asked().json()
    assert found["prompt"] == "<|user|>Hi <|stop|><|stop|><|assistant|>"
    assert found["tokens"] == talk.template.prompt(talk.codec, messages)
    assert found["tokens"].count(talk.codec.token_id("<|stop|>")) == 1  # what a user writes is no mark
    whole = asked(add_generation_prompt=False).json()
    assert found["prompt"] == whole["prompt"] + "<|assistant|>"
    assert found["tokens"] == [*whole["tokens"], talk.codec.token_id("<|assistant|>")]
    chat = {"model": "echo", "messages": messages, "max_tokens": 1}
    used = client.post("/v1/chat/completions", json=chat, headers=KEY).json()["usage"]["prompt_tokens"]
    assert used == len(found["tokens"])


def test_what_else_a_template_reads(tmp_path: Path) -> None:
    template = "{% for m in messages %}{{ m.content }}{% endfor %}{% if thinks %}<|user|>{% endif %}{{ level }}"
    with asking(ready(echo_model(tmp_path / "echo", template=template), "echo")) as client:

        def read(**values: Any) -> Any:
            asked = {"messages": [{"role": "user", "content": "Hi"}], "chat_template_kwargs": values}
            found = client.post("/apply-template", json=asked).json()
            chat = client.post("/v1/chat/completions", json={**asked, "max_tokens": 1}).json()
            if "error" in found:
                assert found["error"]["message"] == chat["error"]["message"]
                return found["error"]["message"]
            assert chat["usage"]["prompt_tokens"] == len(found["tokens"])
            return found["prompt"]

        assert read() == "Hi"
        assert read(thinks=True, level=2.5) == "Hi<|user|>2.5"
        assert read(thinks=False, level="28 Nov 2026") == "Hi28 Nov 2026"
        for name in ("messages", "bos_token", "tools", "not a name"):
            assert f"variable {name!r} is reserved" in read(**{name: "x"})
        assert "use up to 64 letters" in read(level="<|user|>")  # else a stranger's text would be a mark
        assert "use up to 64 letters" in read(level="x" * 65)


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ({"model": "stories", "messages": [{"role": "user", "content": "a"}]}, "has no chat template"),
        ({"model": "echo", "messages": []}, "messages is empty"),
        ({"model": "echo", "messages": [{"role": "system", "content": "x"}]}, "there is no system here"),
        ({"model": "echo", "messages": [{"role": "user"}]}, "has no content"),
        ({"model": "echo", "messages": [{"role": "user", "content": "a"}], "tools": [{}]}, "tool"),
    ],
)
def test_what_no_chat_reads(client: TestClient, echo: Path, body: dict[str, object], why: str) -> None:
    found = client.post("/apply-template", json=body, headers=KEY)
    message = found.json()["error"]["message"]
    assert found.status_code == 400
    assert why in message
    assert str(echo) not in message
