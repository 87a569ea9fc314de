"""ollama's API: by its own package, by lines of JSON, and by what it is asked for that is not served."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chat_models import SPECIAL, echo_model
from pydantic import BaseModel
from serve_models import Script, asking, ready, stories
from served import Resident
from serving import server
from starlette.testclient import TestClient

import headway as hw
from headway.codecs import train_codec
from headway.errors import UserError
from headway.formats.usage import Usage
from headway.serve.interfaces import ApiKey, ServerSettings

ollama = pytest.importorskip("ollama", reason="the package ollama is in the extra test")

ECHO = "{# tools <tool_call> #}{{ messages[-1].content }}"
SHOWN = (
    "{# <tool_call> #}{% for m in messages %}{{ m.role }}:{{ m.content }}{% for c in m.tool_calls or () %}{{ c.id }}="
    "{{ c.function.name }}{{ c.function.arguments | tojson }}{% endfor %}{{ m.name }}{{ m.tool_call_id }}|{% endfor %}"
    "{% for t in tools or () %}{{ t.function.name }};{% endfor %}"
)
THINKS = "{% if enable_thinking is defined %}{{ enable_thinking }}{% endif %}{# <think> #}{{ messages[-1].content }}"
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Ulm"}}\n</tool_call>'
MARKS = ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>")


def weather(city: str) -> str:
    """The weather.

    Args:
        city: where
    """
    return city


def parrot(folder: Path, template: str | None, name: str) -> Any:
    """What it is asked is what it answers, a byte a step."""
    path = echo_model(folder, context=900)
    Usage(template=template).save(path)
    spelling = train_codec("byte", ["any"], special=SPECIAL)
    return ready(path, name, Script(spell=lambda id: spelling.decode([id])))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, data_dir: Path, minilm: Path) -> list[Any]:
    make = tmp_path_factory.mktemp
    return [
        parrot(make("parrot"), ECHO, "parrot"),
        parrot(make("shown"), SHOWN, "shown"),
        parrot(make("thinks"), THINKS, "thinks"),
        ready(stories(data_dir), "stories"),
        ready(echo_model(make("abc")), "abc"),
        ready(minilm, "minilm"),
    ]


@pytest.fixture(scope="module")
def url(models: list[Any]) -> Iterator[str]:
    with server(Resident(models), ServerSettings(log=False)) as found:
        yield found


@contextmanager
def asked(url: str, **more: Any) -> Iterator[Any]:
    """The package's client of a server."""
    client = ollama.Client(url, **more)
    try:
        yield client
    finally:
        client._client.close()


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[Any]:
    with asked(url) as found:
        yield found


@pytest.fixture(scope="module")
def http(models: list[Any]) -> Iterator[TestClient]:
    with asking(*models) as found:
        yield found


def said(content: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": content}]


def test_the_package_chats(client: Any) -> None:
    whole = client.chat("parrot:latest", said("Good day"), options={"num_ctx": 2048, "temperature": 0.5})
    assert (whole.message.role, whole.message.content) == ("assistant", "Good day")
    assert (whole.model, whole.done, whole.done_reason) == ("parrot:latest", True, "stop")
    assert (whole.prompt_eval_count, whole.eval_count) == (8, 8)
    assert whole.total_duration >= whole.load_duration + whole.prompt_eval_duration + whole.eval_duration > 0
    parts = list(client.chat("parrot", said("Good day"), stream=True))
    assert [part.message.content for part in parts] == [*"Good day", ""]
    assert [part.done for part in parts] == [False] * 8 + [True]
    assert parts[-1].eval_count == 8


@pytest.mark.parametrize("stream", [False, True])
def test_the_package_calls_tools(client: Any, stream: bool) -> None:
    """Calls come whole, with their arguments as objects, and are read again when they are sent back."""
    found = client.chat("parrot", said(f"I look. {CALL}{CALL}"), tools=[weather], stream=stream)
    messages = [part.message for part in found] if stream else [found.message]
    calls = [call for message in messages for call in message.tool_calls or ()]
    assert "".join(message.content for message in messages) == "I look."
    assert [(call.function.name, call.function.arguments) for call in calls] == [("weather", {"city": "Ulm"})] * 2
    told: list[Any] = [*said("?"), {"role": "assistant", "content": "", "tool_calls": calls}]
    told += [{"role": "tool", "content": text, "tool_name": "weather"} for text in ("hot", "cold")]
    read = client.chat("shown", told, tools=[weather]).message.content
    call = 'weather{"city": "Ulm"}'
    assert read == (
        f"user:?|assistant:call01000={call}call01001={call}|tool:hotweathercall01000|tool:coldweathercall01001|weather;"
    )


def test_arguments_are_as_they_were_written(http: TestClient) -> None:
    """Whole numbers of any size too."""
    call = f'<tool_call>{{"name": "weather", "arguments": {{"n": {10**30}}}}}</tool_call>'
    tools = [{"type": "function", "function": {"name": "weather"}}]
    body = {"model": "parrot", "messages": said(call), "tools": tools, "stream": False}
    answer = http.post("/api/chat", json=body).json()
    [called] = answer["message"]["tool_calls"]
    assert called["function"]["arguments"] == {"n": 10**30}
    again = [{"role": "assistant", "content": "", "tool_calls": [called]}, {"role": "tool", "content": "hot"}]
    assert http.post("/api/chat", json={**body, "messages": again}).json()["message"]["content"] == "hot"


def test_the_package_generates(client: Any, models: list[Any], data_dir: Path) -> None:
    """A prompt of a model with a chat template is a message; raw ones, and those of others, are continued."""
    assert client.generate("shown", "x", system="s").response == "system:s|user:x|"
    assert client.generate("shown", "x", raw=True).response == "x"
    wanted = models[3].model.generate("Once upon", max_new_tokens=20, temperature=0.0)
    options = {"num_predict": 20, "temperature": 0}
    whole = client.generate("stories", "Once upon", options=options)
    assert (whole.response, whole.done_reason, whole.eval_count) == (wanted, "length", 20)
    assert "".join(p.response for p in client.generate("stories", "Once upon", options=options, stream=True)) == wanted
    long = client.generate("stories", "Once", options={"temperature": 0, "stop": "big"})  # no limit but the context
    assert long.eval_count > 16
    options = {"num_predict": 3, "temperature": 0, "stop": ["b"]}
    assert client.generate("abc", "x", options=options).response == "a"


def test_settings_are_those_of_headway(client: Any, models: list[Any]) -> None:
    mine = {"temperature": 0.9, "top_k": 9, "top_p": 0.8, "min_p": 0.05, "seed": 3, "repetition_penalty": 1.2}
    theirs = {**mine, "repeat_penalty": 1.2, "num_predict": 12, "repeat_last_n": -1, "mirostat": 0, "typical_p": 1.0}
    del theirs["repetition_penalty"]
    wanted = models[3].model.generate("Once upon", max_new_tokens=12, **mine)
    assert client.generate("stories", "Once upon", options=theirs).response == wanted


def test_log_probabilities(client: Any) -> None:
    found = client.chat("parrot", said("ab"), logprobs=True, top_logprobs=2)
    assert [(each.token, each.logprob) for each in found.logprobs] == [("a", -1.0), ("b", -1.0)]
    assert [[other.token for other in each.top_logprobs] for each in found.logprobs] == [["a", "b"], ["b", "c"]]
    parts = [part for part in client.chat("parrot", said("ab"), logprobs=True, stream=True) if part.logprobs]
    assert [part.message.content for part in parts] == ["a", "b"]


def test_thoughts_are_told_apart(client: Any) -> None:
    text = "<think>\nHm, <b>\n\n</think>\n\nYes <think>."
    found = client.chat("thinks", said(text)).message
    assert (found.thinking, found.content) == ("Hm, <b>", "Yes <think>.")
    parts = [part.message for part in client.chat("thinks", said(text), stream=True)]
    assert "".join(part.thinking or "" for part in parts) == "Hm, <b>"
    assert "".join(part.content for part in parts) == "Yes <think>."
    assert client.chat("thinks", said("!"), think=False).message.content == "False!"
    assert client.generate("thinks", text, think="low").response == "True" + text
    with pytest.raises(ollama.ResponseError, match="parrot is not a reasoning model; leave think out"):
        client.chat("parrot", said("x"), think=True)


class City(BaseModel):
    city: str


def test_formats_are_held_to(client: Any, http: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    forms: list[Any] = []
    monkeypatch.setattr("headway.serve.generation.rule_for", lambda codec, form, ends: forms.append(form))
    found = client.chat("parrot", said('{"city": "Ulm"}'), format=City.model_json_schema())
    assert City.model_validate_json(found.message.content) == City(city="Ulm")
    client.generate("parrot", "{}", format="json")
    client.generate("parrot", "{}", format="")
    assert forms[0]["json_schema"]["schema"] == City.model_json_schema()
    assert forms[1:] == [{"type": "json_object"}]


def test_the_package_makes_vectors(client: Any, minilm: Path) -> None:
    model = hw.load(minilm, "cpu")
    found = client.embed("minilm", ["one", "two"])
    assert np.allclose(np.array(found.embeddings), model.embed(["one", "two"]).numpy(), atol=1e-6)
    assert found.prompt_eval_count == 6
    assert np.allclose(client.embeddings("minilm:latest", "one").embedding, found.embeddings[0], atol=1e-6)
    long = "word " * 900
    assert len(client.embed("minilm", long).embeddings) == 1
    with pytest.raises(ollama.ResponseError, match="reads at most 256"):
        client.embed("minilm", long, truncate=False)
    assert client.embed("minilm", []).embeddings == []


def test_the_package_asks_for_models(client: Any, models: list[Any]) -> None:
    names = [each.model for each in client.list().models]
    assert names == ["parrot", "shown", "thinks", "stories", "abc", "minilm"]
    listed = client.list().models[3]
    assert (listed.size, listed.details.parameter_size, len(listed.digest)) == (4 * 260_032, "260.0K", 64)
    assert {each.model for each in client.ps().models} == set(names) - {"minilm"}
    found = client.show("parrot:latest")
    assert found.capabilities == ["completion", "tools"]
    assert (found.template, found.modelinfo["headway.context_length"]) == (ECHO, 900)
    assert client.show("thinks").capabilities == ["completion", "thinking"]
    assert client.show("minilm").capabilities == ["embedding"]
    assert client.chat("parrot").done_reason == "load"
    assert client.generate("parrot").done_reason == "load"


def test_the_version_is_one_that_clients_know(http: TestClient) -> None:
    found = http.get("/api/version").json()
    assert found["headway"] == hw.__version__
    assert [int(part) for part in found["version"].split(".")] >= [0, 12, 0]


def test_models_are_not_changed(client: Any, tmp_path: Path) -> None:
    told = "models are chosen when headway serve starts"
    calls = [
        lambda: client.pull("llama"),
        lambda: list(client.pull("llama", stream=True)),
        lambda: client.push("llama"),
        lambda: client.create("mine", from_="parrot"),
        lambda: client.copy("parrot", "mine"),
        lambda: client.delete("parrot"),
    ]
    for call in calls:
        with pytest.raises(ollama.ResponseError, match=told) as error:
            call()
        assert error.value.status_code == 400
    file = tmp_path / "adapter"
    file.write_bytes(b"x" * 300_000)
    with pytest.raises(ollama.ResponseError, match=told):
        client.create_blob(file)


@pytest.mark.parametrize(
    ("path", "body", "told"),
    [
        ("chat", {"model": "nobody"}, "there is no model 'nobody'"),
        ("chat", {"messages": [{"role": "user", "content": "x", "images": ["aGk="]}]}, "with /v1/caption"),
        ("chat", {"messages": said("x"), "options": {"tempreature": 1}}, "'tempreature'"),
        ("chat", {"messages": said("x"), "options": {"mirostat": 2}}, "options.mirostat is 2"),
        ("chat", {"messages": said("x"), "options": {"typical_p": 0.5, "tfs_z": 1}}, "options.typical_p is 0.5, but"),
        ("chat", {"messages": said("x"), "options": {"repeat_penalty": 1.1, "repeat_last_n": 64}}, "send -1"),
        ("chat", {"messages": said("x"), "options": {"temperature": -1}}, "options.temperature"),
        ("chat", {"messages": said("x"), "format": "yaml"}, 'send "json" or a JSON schema'),
        ("chat", {"messages": said("x" * 901)}, "the context of 900"),
        ("chat", {"messages": said("x"), "tools": [{"function": {"name": "a b"}}]}, "has the name 'a b'"),
        ("generate", {"prompt": "x", "suffix": "y"}, "does not support infilling"),
        ("generate", {"prompt": "x", "template": "{{ .Prompt }}"}, "send a formatted prompt with raw"),
        ("generate", {"prompt": "x", "context": [1]}, "/api/chat"),
        ("generate", {"prompt": "x", "images": ["aGk="]}, "/v1/caption"),
        ("generate", {"model": "stories", "prompt": "x", "system": "y"}, "gets only the prompt"),
        ("embed", {"model": "minilm", "input": ["x", " "]}, "text 2 of 2 is empty"),
        ("show", {"model": "nobody"}, "there is no model 'nobody'"),
    ],
)
def test_errors_are_strings(http: TestClient, path: str, body: dict[str, Any], told: str) -> None:
    answer = http.post(f"/api/{path}", json={"model": "parrot", **body})
    assert answer.status_code == (404 if "no model" in told else 400)
    assert list(answer.json()) == ["error"]
    assert told in answer.json()["error"]


def test_text_between_two_texts(tmp_path: Path) -> None:
    """By the tokens that the tokenizer of a code model has for that."""
    path = echo_model(tmp_path, context=900, template=None)
    codec = train_codec("byte", ["any"], special=(*MARKS, "<|endoftext|>"))  # as many as before
    codec.save(path)
    script = Script(spell=lambda id: codec.decode([id]) or f"[{id}]")
    ids = [codec.token_id(mark) for mark in MARKS]
    with server(Resident([ready(path, "coder", script)]), ServerSettings(log=False)) as url, asked(url) as client:
        found = client.generate("coder", "def f(", suffix=")").response
        assert "insert" in client.show("coder").capabilities
    assert found == f"[{ids[0]}]def f([{ids[1]}])[{ids[2]}]"


def test_an_error_in_a_stream_is_its_last_line(tmp_path: Path) -> None:
    class Failing(Script):
        def step(self) -> Any:
            if self.steps == 2:
                raise UserError("the mask is too complex; simplify it")
            return super().step()

    path = echo_model(tmp_path, context=900)
    Usage(template=ECHO).save(path)
    with asking(ready(path, "failing", Failing())) as client:
        answer = client.post("/api/chat", json={"model": "failing", "messages": said("abcdef")})
    assert answer.headers["content-type"] == "application/x-ndjson"
    lines = [json.loads(line) for line in answer.text.splitlines()]
    assert lines[-1] == {"error": "the mask is too complex; simplify it"}
    assert [line["message"]["content"] for line in lines[:-1]] == ["a", "b"]


def test_a_key_is_asked_for(models: list[Any]) -> None:
    with server(Resident(models), ServerSettings(log=False, keys=(ApiKey("secret"),))) as url:
        with (
            asked(url) as client,
            pytest.raises(ollama.ResponseError, match="the API key is missing; send the header") as error,
        ):
            client.list()
        assert error.value.status_code == 401
        with asked(url, headers={"Authorization": "Bearer secret"}) as client:
            assert len(client.list().models) == 6
