"""The server's application: what it answers, what it refuses, and that a stream is the answer in parts."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from chat_models import TEMPLATE, echo_model
from serve_models import Script, asking, events, ready, stories
from served import Resident
from starlette.testclient import TestClient

import headway as hw
from headway.generate import Limits, Sampling
from headway.nn.kernels import deterministic
from headway.serve.app import ENDPOINTS, create_app
from headway.serve.fingerprint import fingerprint
from headway.serve.interfaces import CLIENT_KEY, ApiKey, ServerSettings
from headway.serve.openapi import openapi

COMPLETE, CHAT = "/v1/completions", "/v1/chat/completions"
ONCE = {"model": "stories", "prompt": "Once upon a time", "temperature": 0}


@pytest.fixture(scope="module")
def server(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    echo = echo_model(tmp_path_factory.mktemp("echo"))
    with asking(ready(stories(data_dir), "stories"), ready(echo, "echo")) as client:
        yield client


def said(*texts: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(texts)]


def test_a_completion_is_what_the_model_writes_alone(server: TestClient, data_dir: Path) -> None:
    model = hw.load(stories(data_dir), "cpu", backend="torch")
    alone = model.complete(ONCE["prompt"], Sampling(temperature=0), Limits(12))
    found = server.post(COMPLETE, json={**ONCE, "max_tokens": 12, "logprobs": 0}).json()
    [choice] = found["choices"]
    assert (choice["text"], choice["finish_reason"]) == (alone.text, "length")
    assert choice["logprobs"]["token_logprobs"] == pytest.approx(alone.logprobs)
    assert "".join(choice["logprobs"]["tokens"]) == alone.text
    assert choice["logprobs"]["text_offset"][:2] == [0, len(choice["logprobs"]["tokens"][0])]
    used = {"prompt_tokens": 5, "completion_tokens": 12, "total_tokens": 17}
    assert found["usage"] == {**used, "prompt_tokens_details": {"cached_tokens": 0}}


@pytest.mark.parametrize(
    ("asked", "choices"),
    [
        ({"max_tokens": 6, "temperature": 1.0, "seed": 3, "top_p": 0.9, "n": 3}, 3),
        ({"max_tokens": 16, "stop": [" park", ". She", "girl named"], "n": 2, "logprobs": 0}, 2),
        ({"max_tokens": 4, "prompt": ["Once upon", "The dog"], "n": 2, "seed": 1, "temperature": 0.7}, 4),
        ({"max_tokens": 5, "prompt": [1, 403, 407]}, 1),
        ({"max_tokens": 3, "prompt": [[1, 403, 407], [1, 410]], "top_k": 4, "min_p": 0.1, "seed": 5}, 2),
    ],
)
def test_a_stream_is_the_same_answer_in_parts(server: TestClient, asked: dict[str, Any], choices: int) -> None:
    whole = server.post(COMPLETE, json={**ONCE, **asked}).json()
    parts = events(server.post(COMPLETE, json={**ONCE, **asked, "stream": True}).text)
    assert [choice["index"] for choice in whole["choices"]] == list(range(choices))
    for choice in whole["choices"]:
        own = [part["choices"][0] for part in parts if part["choices"][0]["index"] == choice["index"]]
        assert "".join(part["text"] for part in own) == choice["text"]
        assert [part["finish_reason"] for part in own] == [None] * (len(own) - 1) + [choice["finish_reason"]]
        for name, values in (choice["logprobs"] or {}).items():
            assert [each for part in own if part["logprobs"] for each in part["logprobs"][name]] == values


def test_stop_strings_are_never_part_of_the_text(server: TestClient) -> None:
    free = server.post(COMPLETE, json={**ONCE, "max_tokens": 9}).json()["choices"][0]["text"]
    stopped = server.post(COMPLETE, json={**ONCE, "max_tokens": 9, "stop": ["irl nam"]}).json()["choices"][0]
    assert (stopped["text"], stopped["finish_reason"]) == (free.partition("irl nam")[0], "stop")


def test_usage_comes_at_the_end_of_a_stream_where_it_is_asked_for(server: TestClient) -> None:
    asked = {**ONCE, "max_tokens": 3, "stream": True, "stream_options": {"include_usage": True}}
    *parts, last = events(server.post(COMPLETE, json=asked).text)
    assert (last["choices"], last["usage"]["completion_tokens"]) == ([], 3)
    assert [part["usage"] for part in parts] == [None] * 3
    plain = events(server.post(COMPLETE, json={**ONCE, "max_tokens": 2, "stream": True}).text)
    assert not any("usage" in part for part in plain)


def test_an_answer_by_the_models_template(server: TestClient) -> None:
    asked = {"model": "echo", "messages": said("Hi", "abc", "Ho"), "temperature": 0, "n": 2, "logprobs": True}
    whole = server.post(CHAT, json=asked).json()
    assert [choice["message"]["content"] for choice in whole["choices"]] == ["abc", "abc"]
    assert {choice["finish_reason"] for choice in whole["choices"]} == {"stop"}
    assert [bytes(token["bytes"]) for token in whole["choices"][0]["logprobs"]["content"]] == [b"a", b"b", b"c"]
    assert whole["usage"]["prompt_tokens"] == 14
    assert whole["usage"]["completion_tokens"] == 6
    parts = events(server.post(CHAT, json={**asked, "stream": True}).text)
    for place in (0, 1):
        own = [part["choices"][0] for part in parts if part["choices"][0]["index"] == place]
        assert own[0]["delta"] == {"role": "assistant", "content": ""}
        assert "".join(part["delta"].get("content", "") for part in own) == "abc"
        assert own[-1] == {"index": place, "delta": {}, "logprobs": None, "finish_reason": "stop"}


def test_a_fingerprint_says_when_bits_may_differ(
    server: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {"model": "echo", "max_tokens": 2}
    for path, more in ((CHAT, {"messages": said("Hi")}), (COMPLETE, {"prompt": "Hi"})):
        whole = server.post(path, json={**asked, **more}).json()["system_fingerprint"]
        parts = events(server.post(path, json={**asked, **more, "stream": True}).text)
        assert {part["system_fingerprint"] for part in parts} == {whole}
        assert re.fullmatch("hw-[0-9a-f]{8}", whole)
    folder = echo_model(tmp_path / "echo")

    def now(place: Path = folder, **options: Any) -> str:
        return fingerprint(hw.load(place, "cpu", **{"backend": "torch", **options}))

    assert now() == now() == whole
    found = [
        whole,
        now(echo_model(tmp_path / "long", context=49)),
        now(echo_model(tmp_path / "other", template=TEMPLATE + "\n")),
        now(weights="int8"),
        now(backend="cpu"),
        now(backend="cpu", cache="int8"),
    ]
    monkeypatch.setattr("headway.serve.fingerprint.INSTRUCTION_SET", "another")
    found.append(now(backend="cpu"))
    model = hw.load(folder, "cpu", backend="torch")
    model.module.get_parameter("embed.table").data[0, 0] += 1e-7
    found.append(fingerprint(model))
    with deterministic():
        found.append(now())
    assert len(set(found)) == len(found)


def test_an_answer_that_has_begun_goes_on(server: TestClient) -> None:
    begun = {"model": "echo", "messages": said("Hi", "a"), "continue_final_message": True, "temperature": 0}
    for asked in (begun, {**begun, "add_generation_prompt": False}):
        found = server.post(CHAT, json=asked).json()
        assert found["choices"][0]["message"]["content"] == "bc"  # what is new alone
        assert found["usage"]["prompt_tokens"] == len("|Hi||a")  # marks are a token each
    parts = events(server.post(CHAT, json={**begun, "stream": True}).text)
    assert "".join(part["choices"][0]["delta"].get("content", "") for part in parts) == "bc"
    closed = {**begun, "continue_final_message": False, "add_generation_prompt": False}
    assert server.post(CHAT, json=closed).json()["usage"]["prompt_tokens"] == len("|Hi||a|")
    for extra in ({}, {"add_generation_prompt": True}):
        opened = server.post(CHAT, json={**begun, "continue_final_message": False, **extra}).json()
        assert opened["usage"]["prompt_tokens"] == len("|Hi||a||")
    template = {"model": "echo", "messages": said("Hi", "a")}
    told = server.post("/apply-template", json={**template, "continue_final_message": True}).json()
    assert told["prompt"] == "<|user|>Hi<|stop|><|assistant|>a"
    assert len(told["tokens"]) == len("|Hi||a")


def test_texts_in_parts_and_the_role_of_developers(server: TestClient) -> None:
    parts = [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]
    asked = {"model": "echo", "temperature": 0}
    one = server.post(CHAT, json={**asked, "messages": [{"role": "user", "content": parts}]}).json()
    two = server.post(CHAT, json={**asked, "messages": said("Hi")}).json()
    assert one["usage"] == two["usage"]
    refused = server.post(CHAT, json={**asked, "messages": [{"role": "developer", "content": "x"}, *said("Hi")]})
    assert "there is no system here" in refused.json()["error"]["message"]  # as this template has it


def test_tokens_and_back(server: TestClient) -> None:
    ids = server.post("/tokenize", json={"model": "stories", "content": "Once upon a time"}).json()["tokens"]
    assert server.post("/detokenize", json={"model": "stories", "tokens": ids}).json() == {
        "content": "Once upon a time"
    }
    framed = server.post("/tokenize", json={"model": "stories", "content": "Once upon a time", "add_special": True})
    assert framed.json()["tokens"] == [1, *ids]


HOSTILE: list[tuple[bytes, int, str]] = [
    (b"", 400, "is not JSON"),
    (b"{", 400, "is not JSON"),
    (b"\xff\xfe", 400, "is not JSON"),
    (b"null", 400, "Expected `object`"),
    (b"[" * 100_000, 400, "more than 64 levels"),
    (b'{"prompt":' * 100_000, 400, "more than 64 levels"),
    (b'{"prompt": "' + b"[" * 100_000 + b'"}', 400, "exceeds|has .* tokens"),  # brackets of a text are none
    (b'{"prompt": "x", "temperature": NaN}', 400, "is not JSON"),
    (b'{"prompt": "x", "temperature": 1e999}', 400, "out of range"),
    (b'{"prompt": "x", "seed": ' + b"9" * 5000 + b"}", 400, "seed|integer|range"),
    (b'{"prompt": "\\ud800"}', 400, "is not JSON"),
    (b'{"prompt": "' + b"x" * (9 << 20) + b'"}', 413, "but the limit is 8,388,608"),
]


@pytest.mark.parametrize(("raw", "status", "why"), HOSTILE)
def test_hostile_bodies_are_refused_in_one_line(server: TestClient, raw: bytes, status: int, why: str) -> None:
    raw = raw.replace(b'{"prompt"', b'{"model": "stories", "prompt"', 1) if len(raw) < 200_000 else raw
    found = server.post(COMPLETE, content=raw, headers={"Content-Type": "application/json"})
    assert found.status_code == status
    refusal_of(found.json(), why)


def refusal_of(body: dict[str, Any], why: str) -> dict[str, Any]:
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert re.search(why, body["error"]["message"])
    assert "\n" not in body["error"]["message"]
    assert "Traceback" not in body["error"]["message"]
    return body["error"]


WRONG: list[tuple[dict[str, Any], int, str, str | None]] = [
    ({"model": "nobody"}, 404, "there is no model 'nobody'", "model"),
    ({"model": ""}, 404, "no model is named; choose from: stories, echo", "model"),
    ({"best_of": 2}, 400, "best_of is 2, but answers are not ranked; generate them with n", "best_of"),
    ({"max_token": 2}, 400, "unknown field 'max_token'; use .*max_tokens", "max_token"),
    ({"stream_options": {"usage": True}}, 400, "unknown field 'usage'", "stream_options.usage"),
    ({"prompt": {}}, 400, "Expected", "prompt"),
    ({"prompt": []}, 400, "is an empty list", "prompt"),
    ({"prompt": ["a", 1]}, 400, "mixes strings and ids", "prompt"),
    ({"prompt": [True]}, 400, "Expected", "prompt[0]"),
    ({"prompt": [[]]}, 400, "cannot continue an empty prompt", None),
    ({"prompt": [512]}, 400, "contains id 512, but this model has ids 0 to 511", None),
    ({"prompt": ["x"] * 65}, 400, "65 sequences, but the limit is 64", "prompt"),
    ({"prompt": "word " * 600}, 400, "the context of 512 must also fit an answer", "prompt"),
    ({"n": 10**9}, 400, "n is 1000000000; use an integer from 1 to 16", "n"),
    ({"n": 0}, 400, ">= 1", "n"),
    ({"temperature": -1}, 400, ">= 0", "temperature"),
    ({"temperature": "hot"}, 400, "Expected `float", "temperature"),
    ({"top_p": 0}, 400, "top_p is 0", None),
    ({"max_tokens": 1.5}, 400, "Expected `int", "max_tokens"),
    ({"stop": [""]}, 400, "empty string", None),
    ({"stop": ["x"] * 17}, 400, "17 strings, but the limit is 16", "stop"),
    ({"stop": "x" * 1001}, 400, "more than 1,000 characters", "stop"),
    ({"logprobs": 21}, 400, "<= 20", "logprobs"),
    ({"logit_bias": {"x": 1}}, 400, "has the token 'x'", "logit_bias"),
    ({"logit_bias": {"512": 1}}, 400, "use ids from 0 to 511", "logit_bias"),
    ({"logit_bias": {"1": 101}}, 400, "-100 to 100", "logit_bias"),
    ({"presence_penalty": 3}, 400, "<= 2", "presence_penalty"),
]


@pytest.mark.parametrize(("asked", "status", "why", "param"), WRONG)
def test_what_cannot_be_is_refused_by_name(
    server: TestClient, asked: dict[str, Any], status: int, why: str, param: str | None
) -> None:
    for stream in (False, True):  # a stream is refused with a status too
        found = server.post(COMPLETE, json={**ONCE, "max_tokens": 2, **asked, "stream": stream})
        assert found.status_code == status, found.text
        assert refusal_of(found.json(), why)["param"] == param


WRONG_CHATS: list[tuple[dict[str, Any], str]] = [
    ({"messages": []}, "messages is empty"),
    ({"messages": [{"role": "king", "content": "x"}]}, "Invalid enum value 'king'"),
    ({"messages": [{"role": "user"}]}, r"messages\[0\] has no content"),
    *(
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, part]}]}, rf"content\[1\] {why}")
        for part, why in (
            ({"type": "image_url", "image_url": {"url": "data:,"}}, ".* convert it with /v1/caption"),
            ({"image_url": {"url": "http://a.example/"}, "type": "image_url"}, "is of type 'image_url'"),
            ({"type": "input_audio", "input_audio": {}}, ".* convert it with /v1/audio/transcriptions"),
            ({"type": "file", "text": "x"}, "is of type 'file', but chats accept only text; send parts of type text"),
            ({"type": "text"}, "is not a text part"),
            ({"type": "text", "text": 3}, "is not a text part"),
            ({"type": 7, "text": "x"}, "is not a text part"),
            ({"text": "x"}, "is not a text part"),
            ({"type": "text", "text": "x", "cache_control": {}}, "has the field 'cache_control'"),
        )
    ),
    ({"messages": [{"role": "user", "content": ["a"]}]}, "Expected `object`, got `str`"),
    ({"messages": [{"role": "system", "content": "x"}]}, "there is no system here"),
    ({"messages": said("x" * 60)}, "the prompt has 63 tokens, but the context of 48"),
    ({"messages": said(*["Hello you"] * 9)}, "but the context of 48"),  # no turn is left out
    ({"model": "stories"}, "stories has no chat template"),
    ({"top_logprobs": 2}, "top_logprobs needs logprobs"),
    ({"max_tokens": 2, "max_completion_tokens": 2}, "are the same"),
    ({"tool_choice": "required"}, "there are no tools"),
    ({"functions": [{"name": "f"}]}, "functions is .*, but functions are passed as tools; use tools"),
    ({"continue_final_message": True}, "the last message has the role 'user'"),
    (
        {"continue_final_message": True, "messages": said("Hi", "")},
        "cannot continue the last message because it is empty",
    ),
    ({"continue_final_message": True, "add_generation_prompt": True, "messages": said("Hi", "a")}, "cannot both be"),
    ({"continue_final_message": "yes"}, "Expected `bool`, got `str` at continue_final_message"),
    ({"add_generation_prompt": 1}, "Expected `bool | null`, got `int` at add_generation_prompt"),
]


@pytest.mark.parametrize(("asked", "why"), WRONG_CHATS)
def test_what_no_conversation_can_be_is_refused(server: TestClient, asked: dict[str, Any], why: str) -> None:
    found = server.post(CHAT, json={"model": "echo", "messages": said("Hi"), **asked})
    assert found.status_code == 400
    told = refusal_of(found.json(), why)["message"]
    assert "/" not in told or "/v1" in told or "/docs" in told  # no path of the server's machine


@pytest.mark.parametrize(
    ("headers", "status", "why"),
    [
        ({"Content-Type": "text/plain"}, 415, "send application/json"),
        ({"Content-Type": "application/json; charset=utf-16"}, 415, "send UTF-8"),
        ({"Content-Encoding": "gzip"}, 415, "is compressed"),
        ({"Host": "evil.example"}, 403, "is not allowed"),
        ({"Host": "localhost.evil.example"}, 403, "is not allowed"),
        ({"Origin": "https://evil.example"}, 403, "the web page 'https://evil.example' may not use"),
        ({"Origin": "null"}, 403, "may not use"),
        ({"Content-Length": "99999999999999999999"}, 413, "but the limit is"),
    ],
)
def test_headers_that_let_nobody_in(server: TestClient, headers: dict[str, str], status: int, why: str) -> None:
    found = server.post(COMPLETE, content=json.dumps(ONCE), headers={"Content-Type": "application/json", **headers})
    assert found.status_code == status
    refusal_of(found.json(), why)


def test_json_without_a_type_is_taken_where_no_web_page_asks(server: TestClient) -> None:
    """As litellm asks for ollama's paths."""
    body = json.dumps(ONCE).encode()
    assert "content-type" not in server.build_request("POST", COMPLETE, content=body).headers
    assert server.post(COMPLETE, content=body).status_code == 200
    found = server.post(COMPLETE, content=body, headers={"Origin": "http://localhost"})
    assert found.status_code == 415
    refusal_of(found.json(), "the Content-Type header is missing")


def test_other_names_and_web_pages_that_are_allowed(data_dir: Path) -> None:
    page = "https://page.example"
    with asking(ready(stories(data_dir), "s"), hosts=("api.example",), origins=(page,)) as client:
        headers = {"Host": "API.example:8000", "Origin": page}
        found = client.post(COMPLETE, json={"prompt": "x", "max_tokens": 1}, headers=headers)
        assert found.status_code == 200
        assert found.headers["Access-Control-Allow-Origin"] == page
        asked = {"Origin": page, "Access-Control-Request-Method": "POST"}
        assert client.options(COMPLETE, headers=asked).status_code == 204
        for name in ("127.0.0.1:8000", "[::1]:8000", "app.localhost"):
            assert client.get("/v1/nothing", headers={"Host": name}).status_code == 404
        assert client.get("/docs", headers={"Host": "0.0.0.0"}).status_code == 403


def test_keys(data_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    keys = (ApiKey("first-key"), ApiKey("second-key", 0))
    with asking(ready(stories(data_dir), "s"), keys=keys) as client, caplog.at_level(logging.INFO, "headway.access"):

        def ask(header: str | None) -> Any:
            given = {} if header is None else {"Authorization": header}
            return client.post(COMPLETE, json={"prompt": "secret words", "max_tokens": 2}, headers=given)

        for header in (None, "Bearer", "Bearer wrong", "Basic first-key", "first-key"):
            found = ask(header)
            assert (found.status_code, found.headers["WWW-Authenticate"]) == (401, "Bearer")
            refusal_of(found.json(), "Authorization: Bearer KEY")
        assert ask("Bearer first-key").status_code == 200
        busy = ask("bearer second-key")
        assert (busy.status_code, busy.headers["Retry-After"]) == (429, "1")
        assert client.get("/metrics").status_code == 401
        assert client.get("/health").status_code == client.get("/ready").status_code == 200
    lines = [json.loads(record.message) for record in caplog.records if record.name == "headway.access"]
    assert [line["status"] for line in lines][-5:] == [200, 429, 401, 200, 200]
    assert lines[5]["key"] == "key-1"
    assert lines[5]["completion_tokens"] == 2
    assert not any(secret in caplog.text for secret in ("first-key", "secret words"))


def test_paths_and_methods_that_are_not_had(server: TestClient) -> None:
    found = server.post("/v1/completion", json=ONCE)
    assert found.status_code == 404
    refusal_of(found.json(), "did you mean '/v1/completions'")
    found = server.get(COMPLETE)
    assert (found.status_code, found.headers["Allow"]) == (405, "POST")
    refusal_of(found.json(), "use POST")


def test_what_is_counted_and_how_it_lives(server: TestClient) -> None:
    def number(name: str) -> float:
        lines = server.get("/metrics").text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(name))

    written = 'headway_written_tokens_total{model="stories"}'
    before = number(written)
    server.post(COMPLETE, json={**ONCE, "max_tokens": 7})
    assert number(written) == before + 7
    assert number('headway_first_token_seconds_count{model="stories"}') > 0
    assert number('headway_scheduler_waiting{model="stories"}') == 0
    health = server.get("/health").json()
    assert health == {
        "status": "ok",
        "models": {name: {"working": False, "still": 0.0} for name in ("stories", "echo")},
    }
    assert server.get("/ready").json() == {"status": "ready"}


def test_the_document_is_made_of_the_structs(server: TestClient) -> None:
    document = server.get("/openapi.json").json()
    assert document == json.loads(json.dumps(openapi(ENDPOINTS)))
    body = document["components"]["schemas"]["ChatBody"]
    assert body["additionalProperties"] is False
    assert {"messages", "tools", "response_format"} <= set(body["properties"])
    stream = document["paths"][CHAT]["post"]["responses"]["200"]["content"]["text/event-stream"]["schema"]
    said, last = stream["properties"]["data"]["anyOf"]
    assert said["contentSchema"] == {"$ref": "#/components/schemas/ChatAnswerPart"}
    assert last == {"const": "[DONE]"}
    page = server.get("/docs")
    assert "max_completion_tokens" in page.text
    assert "default-src 'none'" in page.headers["Content-Security-Policy"]
    assert not any(mark in page.text for mark in ("<script", "src=", "http://", "https://"))


def test_the_likeliest_tokens(data_dir: Path) -> None:
    with asking(ready(stories(data_dir), "s", Script())) as client:
        told = client.post(COMPLETE, json={"prompt": [403, 407], "logprobs": 2}).json()["choices"][0]["logprobs"]
        assert told["tokens"] == [" Once", " upon"]
        assert told["token_logprobs"] == [-1.0, -1.0]
        assert [list(each.values()) for each in told["top_logprobs"]] == [[-1.0, -2.0]] * 2
        assert [next(iter(each)) for each in told["top_logprobs"]] == told["tokens"]


def test_a_queue_that_is_full(data_dir: Path) -> None:
    with asking(ready(stories(data_dir), "s", Script())) as client:
        full = client.post(COMPLETE, json={"prompt": [[403]] * 5})
        assert (full.status_code, full.headers["Retry-After"]) == (429, "1")
        assert refusal_of(full.json(), "4 requests wait")["code"] == "queue_full"


def test_a_fault_of_the_engine_is_no_end(data_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    with asking(ready(stories(data_dir), "s", Script(fails_at=3))) as client:
        failed = client.post(COMPLETE, json={"prompt": [5, 6, 7, 8], "stream": True})
        first, second, error, _ = failed.text.split("\n\n")
        assert "choices" in first
        assert "choices" in second
        refusal_of(json.loads(error.removeprefix("data: ")), r"the server failed \(ZeroDivisionError\)")
        assert "a fault of the engine" in caplog.text  # where its owner sees it
        assert client.post(COMPLETE, json={"prompt": [5, 6]}).status_code == 200


def test_time_is_limited(data_dir: Path) -> None:
    with asking(ready(stories(data_dir), "s", Script(wait=0.1)), request_seconds=0.35) as client:
        late = client.post(COMPLETE, json={"prompt": [5] * 50})
        assert late.status_code == 408
        assert refusal_of(late.json(), "longer than 0.35 s")["code"] == "timeout"
        *_, last, _ = client.post(COMPLETE, json={"prompt": [5] * 50, "stream": True}).text.split("\n\n")
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "timeout"
        ends = time.monotonic() + 4  # before all of the prompt is said
        while client.get("/health").json()["models"]["s"]["working"]:  # until the step under way has ended
            assert time.monotonic() < ends


class Reader:
    """Who asks, as a connection knows it."""

    def __init__(self) -> None:
        self.on_disconnect: Callable[[], None] | None = None
        self.disconnected = self.full = False

    def abort(self) -> None:
        self.disconnected = True


def test_a_body_that_comes_too_slowly_and_a_client_that_reads_nothing(data_dir: Path) -> None:
    """As the server of HTTP says it: messages that do not come, and a way back that takes nothing."""
    model = ready(stories(data_dir), "s", Script())
    app = create_app(Resident([model]), ServerSettings(receive_seconds=0.1, stalled_seconds=0.1))
    client = Reader()
    headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
    scope = {
        "type": "http",
        "method": "POST",
        "path": COMPLETE,
        "query_string": b"",
        "headers": headers,
        "state": {CLIENT_KEY: client},
    }

    async def ask(messages: list[dict[str, Any]], room: int) -> list[dict[str, Any]]:
        sent: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            if not messages:
                await asyncio.sleep(60)
            return messages.pop(0)

        async def send(message: Any) -> None:
            if len(sent) == room:
                await asyncio.sleep(60)
            sent.append(message)
            client.full = len(sent) == room

        await asyncio.wait_for(app(dict(scope), receive, send), 5)
        return sent

    async def both() -> None:
        start, _ = await ask([{"type": "http.request", "body": b"{", "more_body": True}], 9)
        assert start["status"] == 408
        assert not client.disconnected
        body = json.dumps({"prompt": [5] * 50, "stream": True}).encode()
        sent = await ask([{"type": "http.request", "body": body, "more_body": False}], 4)
        assert sent[0]["status"] == 200
        assert len(sent) == 4
        assert client.disconnected
        await asyncio.sleep(0.05)
        assert model.loop is not None
        assert not model.loop.working
        await model.loop.close(1)

    asyncio.run(both())


TOOLS_TEMPLATE = "{# with tools it writes <tool_call> #}{{ messages[-1].content }}"  # and the script says it again
SHOUT = {"type": "function", "function": {"name": "shout", "parameters": {"type": "object", "properties": {}}}}
CALL = '<tool_call>\n{"name": "shout", "arguments": {"what": "b"}}\n</tool_call>'


def test_calls_of_tools(tmp_path: Path) -> None:
    folder = echo_model(tmp_path / "caller", context=400, template=TOOLS_TEMPLATE)
    codec = hw.load(folder, "cpu").codec
    with asking(ready(folder, "caller", Script(spell=lambda id: codec.decode([id])))) as client:
        asked = {"messages": said(f"a{CALL}{CALL}"), "temperature": 0, "tools": [SHOUT], "n": 2}
        whole = client.post(CHAT, json=asked).json()
        function = {"name": "shout", "arguments": '{"what": "b"}'}
        for choice in whole["choices"]:
            assert choice["finish_reason"] == "tool_calls"
            assert choice["message"]["content"] == "a"
            calls = choice["message"]["tool_calls"]
            assert [call["function"] for call in calls] == [function] * 2
            assert len({call["id"] for call in calls}) == 2
        parts = events(client.post(CHAT, json={**asked, "stream": True, "n": 1}).text)
        deltas = [part["choices"][0]["delta"] for part in parts]
        assert "".join(delta.get("content", "") for delta in deltas) == "a"
        calls = [call for delta in deltas for call in delta.get("tool_calls", [])]
        begun = {"name": "shout", "arguments": ""}
        assert [(call["index"], call["type"], call["function"]) for call in calls if "id" in call] == [
            (0, "function", begun),
            (1, "function", begun),
        ]
        arguments = "".join(call["function"]["arguments"] for call in calls)  # in pieces; see test_serve_calls
        assert arguments == function["arguments"] * 2
        assert parts[-1]["choices"][0]["finish_reason"] == "tool_calls"
        called = {key: whole["choices"][0]["message"][key] for key in ("role", "content", "tool_calls")}
        told = [*said("Hi"), called, {"role": "tool", "tool_call_id": calls[0]["id"], "content": "loud"}]
        assert client.post(CHAT, json={**asked, "messages": told}).json()["choices"][0]["message"]["content"] == "loud"
        free = client.post(CHAT, json={**asked, "tool_choice": "none"}).json()["choices"][0]["message"]
        assert free["content"] == f"a{CALL}{CALL}"  # text, where nothing may be called
        told[1]["tool_calls"][0]["function"]["arguments"] = "["
        refused = client.post(CHAT, json={**asked, "messages": told})
        assert refused.status_code == 400
        refusal_of(refused.json(), "with arguments")


def test_what_a_schema_says_in_vain_is_listed_in_a_header(server: TestClient) -> None:
    schema = {"type": "integer", "maximum": 9, "minimum": 0, "maxLenght": 3, "x-mine": 1}
    form = {"type": "json_schema", "json_schema": {"name": "one", "schema": schema}}
    asked = {**ONCE, "max_tokens": 4, "response_format": form}
    for stream in (False, True):
        answer = server.post(COMPLETE, json={**asked, "stream": stream})
        assert answer.headers["x-headway-ignored"] == "maxLenght, x-mine"
    assert "x-headway-ignored" not in server.post(COMPLETE, json={**ONCE, "max_tokens": 1}).headers
