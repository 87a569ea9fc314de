"""Fields of requests: those that ask for nothing, those of vLLM, and what is said of a prompt."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import openai
import pytest
from chat_models import TEMPLATE, echo_model
from serve_models import asking, events, ready, stories
from starlette.testclient import TestClient

import headway as hw
from headway.serve.batcher import Batcher
from headway.serve.bodies import ChatBody, ChatMessage, CompletionBody, StreamOptions
from headway.serve.embeddings import EmbeddingBody
from headway.serve.engine_loop import open_engine_loop
from headway.serve.fingerprint import fingerprint
from headway.serve.interfaces import ReadyModel
from headway.serve.ollama_bodies import Options
from headway.serve.responses import ResponseBody, ResponseText

COMPLETE, CHAT = "/v1/completions", "/v1/chat/completions"
PROMPT = "Once upon a time there was a girl"
CALLING = TEMPLATE.replace(
    "{{ m.content }}", "{{ m.content }}{% for t in tools or [] %}<tool_call>{{ t.function.name }}{% endfor %}"
)


def compiled(path: Path, name: str) -> ReadyModel:
    model = hw.load(path, "cpu", backend="cpu")
    return ReadyModel(name, model, open_engine_loop(model, name, slots=4), Batcher(name), fingerprint(model))


@pytest.fixture(scope="module")
def model(data_dir: Path) -> hw.Model:
    return hw.load(stories(data_dir), "cpu", backend="torch")


@pytest.fixture(scope="module")
def server(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """stories260K on the engine and by torch, and a model that holds conversations."""
    echo = echo_model(tmp_path_factory.mktemp("echo"), context=160, template=CALLING)
    served = compiled(stories(data_dir), "stories"), ready(stories(data_dir), "torch"), compiled(echo, "echo")
    with asking(*served) as client:
        yield client


def completion(server: TestClient, **fields: Any) -> dict[str, Any]:
    body = {"model": "stories", "prompt": PROMPT, "temperature": 0, "max_tokens": 6, **fields}
    found = server.post(COMPLETE, json=body)
    assert found.status_code == 200, found.text
    return found.json()


def refused(server: TestClient, path: str, **fields: Any) -> dict[str, Any]:
    body = {"model": "stories", "prompt": PROMPT} if path == COMPLETE else {"model": "echo", "messages": HELLO}
    found = server.post(path, json={**body, **fields})
    assert found.status_code == 400, found.text
    return found.json()["error"]


HELLO = [{"role": "user", "content": "Hi"}]
BARE = {"type": "function", "function": {"name": "bare"}}
NOTHING: list[tuple[str, dict[str, Any]]] = [
    *((path, fields) for path in (COMPLETE, CHAT) for fields in (
        {"store": False}, {"metadata": {}}, {"service_tier": "auto"}, {"service_tier": "default"}, {"echo": False},
        {"n": 2, "best_of": 2}, {"best_of": 1}, {"best_of": None}, {"prompt_cache_key": "any"},
        {"safety_identifier": "any"}, {"top_k": -1}, {"top_k": 0}, {"min_p": 0}, {"repetition_penalty": 1},
        {"stream": None}, {"presence_penalty": None, "top_p": None}, {"ignore_end": None}, {"use_beam_search": False},
        {"skip_special_tokens": True}, {"min_tokens": 0}, {"stop": []}, {"logit_bias": {}}, {"unknown": None},
    )),
    (COMPLETE, {"suffix": None}), (COMPLETE, {"suffix": ""}), (COMPLETE, {"logprobs": None}),
    *((CHAT, fields) for fields in (
        {"modalities": ["text"]}, {"audio": None}, {"functions": []}, {"function_call": "none"}, {"tools": []},
        {"parallel_tool_calls": True}, {"reasoning_effort": "none"}, {"verbosity": "medium"}, {"prediction": None},
        {"web_search_options": None}, {"response_format": {"type": "text"}}, {"continue_final_message": None},
    )),
]  # fmt: skip


def answer(server: TestClient, path: str, **fields: Any) -> dict[str, Any]:
    body = {"model": "stories", "prompt": PROMPT} if path == COMPLETE else {"model": "echo", "messages": HELLO}
    found = server.post(path, json={**body, "max_tokens": 3, "temperature": 0, **fields})
    assert found.status_code == 200, found.text
    return found.json()["choices"][0]


@pytest.fixture(scope="module")
def plain(server: TestClient) -> dict[str, Any]:
    """The answers to requests without further fields, by path."""
    return {path: answer(server, path) for path in (COMPLETE, CHAT)}


@pytest.mark.parametrize(("path", "fields"), NOTHING)
def test_what_asks_for_nothing_changes_nothing(
    server: TestClient, plain: dict[str, Any], path: str, fields: dict[str, Any]
) -> None:
    assert answer(server, path, **fields) == plain[path]


MORE: list[tuple[str, dict[str, Any], str]] = [
    *((path, fields, why) for path in (COMPLETE, CHAT) for fields, why in (
        ({"store": True}, "store is true, but the server stores nothing; leave it out"),
        ({"store": 0}, "store is 0, but"),
        ({"metadata": {"a": "b"}}, 'metadata is {"a":"b"}, but the server stores nothing'),
        ({"service_tier": "flex"}, 'service_tier is "flex", but there is one tier; leave it out'),
        ({"n": 2, "best_of": 3}, "best_of is 3, but answers are not ranked; generate them with n"),
        ({"use_beam_search": True}, "use_beam_search is true, but beam search is not supported"),
        ({"bad_words": ["x"]}, "bad_words is"),
        ({"prompt_cache_key": 3}, "prompt_cache_key is 3, but it must be a str"),
        ({"unknown": 0}, "unknown field 'unknown'"),
        ({"top_k": -2}, "Expected `int` >= 1 at top_k"),
        ({"stream_options": {"include_usage": True}}, "stream_options needs stream; set stream to true"),
        ({"stream": True, "stream_options": {"include_obfuscation": True}}, "stream_options.include_obfuscation is"),
        ({"stop_token_ids": [99999]}, "stop_token_ids has the id 99999; use ids from 0 to"),
        ({"stop_token_ids": [1] * 1025}, "stop_token_ids has 1,025 ids"),
        ({"allowed_token_ids": []}, "allowed_token_ids is empty"),
        ({"allowed_token_ids": [-1]}, "allowed_token_ids has the id -1"),
        ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens is 0"),
        ({"min_tokens": 3, "max_tokens": 2}, "min_tokens is 3, but max_tokens is 2"),
        ({"prompt_logprobs": -1}, "Expected `int` >= 0 at prompt_logprobs"),
        ({"prompt_logprobs": 1, "stream": True}, "prompt_logprobs cannot be streamed"),
        ({"structured_outputs": {"grammar": "x"}}, "structured_outputs has grammar; use one of json, json_object"),
        ({"structured_outputs": {"json": {}, "regex": "x"}}, "structured_outputs has json, regex"),
        ({"structured_outputs": {}}, "structured_outputs has nothing"),
        ({"structured_outputs": {"regex": "a"}, "response_format": {"type": "text"}}, "are both set"),
    )),
    (COMPLETE, {"suffix": "end"}, 'suffix is "end", but infilling is not supported'),
    (COMPLETE, {"max_tokens": 0}, "max_tokens is 0 without echo, which returns nothing; set echo to true"),
    *((CHAT, fields, why) for fields, why in (
        ({"modalities": ["text", "audio"]}, "modalities is"),
        ({"audio": {"voice": "x"}}, "audio is"),
        ({"tools": [BARE], "tool_choice": {}}, "tool_choice is {}; use none"),
        ({"reasoning_effort": "high"}, "reasoning_effort is 'high', which the chat template does not use"),
        ({"messages": [{**HELLO[0], "audio": {"id": "x"}}]}, 'messages[0].audio is {"id":"x"}, but messages are text'),
        ({"messages": [{**HELLO[0], "field": 1}]}, "unknown field 'field' at messages[0].field"),
    )),
]  # fmt: skip


@pytest.mark.parametrize(("path", "fields", "why"), MORE)
def test_what_asks_for_more_is_refused_by_name(server: TestClient, path: str, fields: dict[str, Any], why: str) -> None:
    error = refused(server, path, **fields)
    assert why in error["message"]
    assert error["message"].isprintable()


def test_every_neutral_field_is_in_the_document_and_has_a_reason(server: TestClient) -> None:
    schemas = server.get("/openapi.json").json()["components"]["schemas"]
    structs = (CompletionBody, ChatBody, ChatMessage, StreamOptions, EmbeddingBody, ResponseBody, ResponseText, Options)
    for struct in structs:
        own = {field.encode_name for field in msgspec.structs.fields(struct)}
        for name, neutral in struct.NEUTRAL.items():
            assert name in schemas[struct.__name__]["properties"]
            assert (neutral.reason is None) == (name in own or neutral.kind is not None)


def test_an_answer_of_the_openai_package_is_a_message(server: TestClient) -> None:
    """As the SDK returns it, with all of its nulls."""
    client = openai.OpenAI(api_key="none", base_url="http://localhost/v1", http_client=server)  # type: ignore[arg-type]
    first = client.chat.completions.create(model="echo", messages=HELLO, max_tokens=9).choices[0].message  # type: ignore[arg-type]
    dumped = {**first.model_dump(), "reasoning_content": None}
    assert {"refusal", "annotations", "audio", "function_call", "tool_calls"} <= set(dumped)
    for message in (first, dumped):
        more: Any = [*HELLO, message, *HELLO]
        assert (
            client.chat.completions.create(model="echo", messages=more, temperature=0).choices[0].message.content
            == "abc"
        )


def test_log_probabilities_always_have_the_sampled_token(server: TestClient) -> None:
    for count in (0, 1, 4):
        told = completion(server, logprobs=count, temperature=2, seed=1)["choices"][0]["logprobs"]
        for token, logprob, top in zip(told["tokens"], told["token_logprobs"], told["top_logprobs"]):
            assert next(iter(top.items())) == (token, logprob)
            assert max(count, 1) <= len(top) <= count + 1


def test_more_answers_than_sequences_wait(server: TestClient) -> None:
    found = completion(server, n=7, temperature=1.5, seed=5)
    assert len(found["choices"]) == 7
    assert len({choice["text"] for choice in found["choices"]}) > 4
    first = completion(server, n=2, temperature=1.5, seed=5)
    assert [choice["text"] for choice in found["choices"][:2]] == [choice["text"] for choice in first["choices"]]


@pytest.mark.parametrize("name", ["stories", "torch"])
def test_echo_is_what_score_says(server: TestClient, model: hw.Model, name: str) -> None:
    """As lm-evaluation-harness asks: the log probabilities of the prompt's tokens."""
    wanted, ids = model.score(PROMPT), model.prompt_ids(PROMPT)
    for tokens, prompt in ((0, PROMPT), (0, ids), (1, ids)):
        [choice] = completion(server, model=name, prompt=prompt, echo=True, logprobs=1, max_tokens=tokens)["choices"]
        told = choice["logprobs"]
        assert choice["text"].startswith(PROMPT)
        assert (choice["text"] == PROMPT) == (tokens == 0)
        assert told["token_logprobs"][0] is told["top_logprobs"][0] is None
        assert len(told["tokens"]) == len(ids) + tokens
        scores = told["token_logprobs"][1 : len(ids)]
        if name == "torch":
            assert scores == wanted, "bit for bit"
        assert scores == pytest.approx(wanted, abs=1e-5)
        for token, offset in list(zip(told["tokens"], told["text_offset"]))[2:]:
            assert choice["text"][offset:].startswith(token)
    assert choice["finish_reason"] == "length"


def test_the_likeliest_tokens_are_those_of_the_engine_where_torch_generates(server: TestClient) -> None:
    asked = {"logprobs": 3, "n": 2, "max_tokens": 7, "stop": [" girl nam"], "temperature": 0}
    ours, torchs = (completion(server, model=name, **asked)["choices"] for name in ("stories", "torch"))
    for mine, other in zip(ours, torchs, strict=True):
        assert mine["text"] == other["text"]
        for top, others in zip(mine["logprobs"]["top_logprobs"], other["logprobs"]["top_logprobs"], strict=True):
            assert list(top) == list(others)
            assert list(top.values()) == pytest.approx(list(others.values()), abs=1e-4)


def test_a_prompt_is_scored_as_its_tokens_were_generated(server: TestClient) -> None:
    """Bit for bit, also next to other prompts and in a stream."""
    whole = completion(server, logprobs=3, return_token_ids=True, max_tokens=20)["choices"][0]
    ids = whole["prompt_token_ids"] + whole["token_ids"]
    asked = {"prompt": [[1, 403, 407], ids], "echo": True, "logprobs": 3, "max_tokens": 2}
    second = completion(server, **asked)["choices"][1]
    assert (
        second["logprobs"]["token_logprobs"][len(whole["prompt_token_ids"]) : -2] == whole["logprobs"]["token_logprobs"]
    )
    body = {"model": "stories", "temperature": 0, "stream": True, **asked}
    parts = [part["choices"][0] for part in events(server.post(COMPLETE, json=body).text)]
    own = [part for part in parts if part["index"] == 1]
    assert "".join(part["text"] for part in own) == second["text"]
    for name, values in second["logprobs"].items():
        assert [each for part in own if part["logprobs"] for each in part["logprobs"][name]] == values


def test_prompt_logprobs_in_vllms_form(server: TestClient, model: hw.Model) -> None:
    [choice] = completion(server, prompt_logprobs=2)["choices"]
    ids = model.prompt_ids(PROMPT)
    first, *others = choice["prompt_logprobs"]
    assert first is None
    for id, each, wanted in zip(ids[1:], others, model.score(PROMPT), strict=True):
        assert each[str(id)]["logprob"] == pytest.approx(wanted, abs=1e-5)
        assert {1, 2} <= {told["rank"] for told in each.values()} | {each[str(id)]["rank"]}
        assert 2 <= len(each) <= 3
    assert completion(server)["choices"][0]["prompt_logprobs"] is None
    chat = server.post(CHAT, json={"model": "echo", "messages": HELLO, "prompt_logprobs": 0, "return_token_ids": True})
    assert len(chat.json()["prompt_logprobs"]) == len(chat.json()["prompt_token_ids"])
    assert all(len(each) == 1 for each in chat.json()["prompt_logprobs"][1:])


def test_tokens_by_their_ids(server: TestClient) -> None:
    [choice] = completion(server, logprobs=1, return_token_ids=True, return_tokens_as_token_ids=True)["choices"]
    assert choice["logprobs"]["tokens"] == [f"token_id:{id}" for id in choice["token_ids"]]
    body = {"model": "echo", "messages": HELLO, "temperature": 0}
    body |= {"return_token_ids": True, "return_tokens_as_token_ids": True}
    whole = server.post(CHAT, json={**body, "logprobs": True}).json()
    told = [each["token"] for each in whole["choices"][0]["logprobs"]["content"]]
    assert told == [f"token_id:{id}" for id in whole["choices"][0]["token_ids"]]
    parts = events(server.post(CHAT, json={**body, "stream": True}).text)
    assert parts[0]["prompt_token_ids"] == whole["prompt_token_ids"]
    streamed = [id for part in parts for id in part["choices"][0].get("token_ids", [])]
    assert streamed == whole["choices"][0]["token_ids"]


def test_prompts_are_truncated_from_either_side(server: TestClient, model: hw.Model) -> None:
    ids = model.prompt_ids(PROMPT)
    for side, wanted in (("left", ids[-3:]), ("right", ids[:3])):
        asked = {"truncate_prompt_tokens": 3, "truncation_side": side, "return_token_ids": True, "echo": True}
        [choice] = completion(server, **asked)["choices"]
        assert choice["prompt_token_ids"] == wanted
        assert choice["text"].startswith(model.codec.decode(wanted))
    long = completion(server, prompt=[403] * 700, truncate_prompt_tokens=-1)
    assert long["usage"]["prompt_tokens"] == model.context - 6  # type: ignore[operator]
    chat = {"messages": HELLO, "truncate_prompt_tokens": 2, "return_token_ids": True}
    assert len(server.post(CHAT, json={"model": "echo", **chat}).json()["prompt_token_ids"]) == 2


def test_a_text_ends_neither_too_early_nor_by_other_tokens(server: TestClient, model: hw.Model) -> None:
    free = completion(server, return_token_ids=True)["choices"][0]["token_ids"]
    stopped = completion(server, stop_token_ids=[free[2]], return_token_ids=True)["choices"][0]
    assert (stopped["token_ids"], stopped["finish_reason"]) == (free[:2], "stop")
    later = completion(server, stop_token_ids=[free[2]], min_tokens=4, return_token_ids=True)["choices"][0]
    assert len(later["token_ids"]) >= 4
    assert free[2] not in later["token_ids"][:4]
    only = completion(server, allowed_token_ids=[403, 407], return_token_ids=True, max_tokens=20)
    assert set(only["choices"][0]["token_ids"]) <= {403, 407}
    assert only["choices"][0]["finish_reason"] == "length"
    for name in ("ignore_eos", "ignore_end"):
        asked = {"model": "echo", "messages": HELLO, "max_tokens": 6, "temperature": 0}
        assert server.post(CHAT, json=asked).json()["choices"][0]["finish_reason"] == "stop"
        assert server.post(CHAT, json={**asked, name: True}).status_code == 200
    plain = completion(server, add_special_tokens=False, return_token_ids=True)["choices"][0]
    assert plain["prompt_token_ids"] == model.codec.encode(PROMPT)


def test_structured_outputs_are_forms(server: TestClient) -> None:
    wanted = {"choice": ["red", "blue"]}, {"regex": "[0-9]{3}"}, {"json": {"const": 7}}
    for outputs, possible in zip(wanted, ("red|blue", "[0-9]{3}", "7")):
        text = completion(server, structured_outputs=outputs, max_tokens=30)["choices"][0]["text"]
        assert re.fullmatch(possible, text)
    assert completion(server, structured_outputs={"json_object": True, "regex": None})["choices"][0]["text"][0] == "{"


@pytest.mark.parametrize("path", [COMPLETE, CHAT])
def test_usage_in_every_event(server: TestClient, path: str) -> None:
    body = {"model": "stories", "prompt": PROMPT} if path == COMPLETE else {"model": "echo", "messages": HELLO}
    options = {"include_usage": True, "continuous_usage_stats": True}
    parts = events(server.post(path, json={**body, "max_tokens": 4, "stream": True, "stream_options": options}).text)
    counts = [part["usage"]["completion_tokens"] for part in parts]
    assert counts == sorted(counts)
    assert counts[0] == (path == COMPLETE), "an event with nothing but a role has no token"
    assert parts[-1]["choices"] == []


def test_an_effort_of_reasoning_goes_to_the_template(tmp_path: Path) -> None:
    reads = TEMPLATE.replace("{%- if add", "{{ reasoning_effort }}{%- if add")
    thinks = TEMPLATE.replace("{%- if add", "{{ 'on' if enable_thinking | default(true) else 'off' }}{%- if add")
    served = [
        compiled(echo_model(tmp_path / name, template=text), name)
        for name, text in (("reads", reads), ("thinks", thinks))
    ]
    with asking(*served) as server:

        def tokens(name: str, **fields: Any) -> int:
            asked = {"model": name, "messages": HELLO, "max_tokens": 1, **fields}
            return server.post(CHAT, json=asked).json()["usage"]["prompt_tokens"]

        assert tokens("reads", reasoning_effort="high") - tokens("reads") == len("high")
        assert tokens("thinks", reasoning_effort="none") - tokens("thinks") == len("off") - len("on")


TOOLS = [
    BARE,
    {"type": "function", "function": {"name": "null", "description": None, "parameters": None, "strict": None}},
]


def test_tools_without_a_description_work_with_every_template() -> None:
    from headway.codecs import train_codec
    from headway.codecs.chat_template import ChatTemplate
    from headway.serve.tools import Toolbox

    codec = train_codec("byte", ["any"])
    for part in (
        "{{ t.function.name + ': ' + t.function.description }}{{ t.function.parameters.properties | length }}",
        "{{ t['function']['description'] | trim }}{% for p in t['function']['parameters']['properties'] %}{% endfor %}",
        "{{ t | tojson }}",
    ):
        template = "{% for t in tools %}<tool_call>" + part + "{% endfor %}"
        told = Toolbox(codec, template, TOOLS).template_tools
        assert told is not None
        text = ChatTemplate(template).render([{"role": "user", "content": "x"}], tools=told)
        assert "None" not in text
        assert "null" not in text.replace('"null"', "").replace("null:", "").replace("<tool_call>null", "")


def test_a_call_without_arguments_goes_back_as_it_came(server: TestClient) -> None:
    call = {"id": "a", "type": "function", "index": 0, "function": {"name": "f", "arguments": ""}}
    turns = [*HELLO, {"role": "assistant", "content": None, "tool_calls": [call]}]
    turns.append({"role": "tool", "tool_call_id": "a", "content": "done", "name": None})
    found = server.post(CHAT, json={"model": "echo", "messages": turns, "temperature": 0})
    assert found.json()["choices"][0]["message"]["content"] == "abc"


def test_a_form_is_of_texts_and_not_of_calls(server: TestClient) -> None:
    """As instructor asks by the Responses API."""
    city = {"type": "object", "properties": {"city": {"enum": ["Ulm"]}}, "required": ["city"]}
    city["additionalProperties"] = False
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "array", "maxItems": 0}}}
    function: dict[str, Any] = {"name": "weather", "parameters": city}
    tool = {"type": "function", "function": function}
    asked = {"model": "echo", "messages": HELLO, "response_format": form, "tools": [tool], "parallel_tool_calls": False}
    found = server.post(CHAT, json={**asked, "tool_choice": "required", "seed": 1, "max_tokens": 100}).json()
    [call] = found["choices"][0]["message"]["tool_calls"]
    assert json.loads(call["function"]["arguments"]) == {"city": "Ulm"}
    function["strict"] = True
    assert "a tool is strict and response_format is set" in refused(server, CHAT, **asked)["message"]
