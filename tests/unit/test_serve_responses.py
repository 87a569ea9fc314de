"""OpenAI's Responses API: by its own package, by its types, and by what it is asked for that is not served."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from chat_models import SPECIAL, echo_model
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import BaseModel, TypeAdapter
from serve_models import Script, asking, ready
from served import Resident
from serving import server
from starlette.testclient import TestClient

from headway.codecs import train_codec
from headway.errors import UserError
from headway.formats.usage import Usage
from headway.serve.interfaces import ServerSettings

PATH = "/v1/responses"
ECHO = "{# tools <tool_call> #}{{ messages[-1].content }}"
# Everything that the model reads, so that tests see it.
SHOWN = (
    "{# <tool_call> #}{% for t in tools or () %}T{{ t.function.name }};{% endfor %}{% for m in messages %}{{ m.role }}:"
    "{{ m.content }}{% for c in m.tool_calls or () %}{{ c.id }}={{ c.function.name }}{{ c.function.arguments | tojson "
    "}}{% endfor %}{{ m.tool_call_id }}|{% endfor %}"
)
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Ulm"}}\n</tool_call>'
WEATHER: dict[str, Any] = {
    "type": "function",
    "name": "weather",
    "description": "The weather.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    "strict": None,
}
EVENTS: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)


def parrot(folder: Path, template: str, name: str) -> Any:
    """What it is asked is what it answers, a byte a step."""
    path = echo_model(folder, context=900)
    Usage(template=template).save(path)
    spelling = train_codec("byte", ["any"], special=SPECIAL)
    return ready(path, name, Script(spell=lambda id: spelling.decode([id])))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    make = tmp_path_factory.mktemp
    abc = ready(echo_model(make("abc")), "abc")
    return [parrot(make("parrot"), ECHO, "parrot"), parrot(make("shown"), SHOWN, "shown"), abc]


@pytest.fixture(scope="module")
def client(models: list[Any]) -> Iterator[TestClient]:
    with asking(*models) as found:
        yield found


@pytest.fixture(scope="module")
def sdk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    make = tmp_path_factory.mktemp
    served = [parrot(make("parrot"), ECHO, "parrot"), ready(echo_model(make("abc")), "abc")]
    with (
        server(Resident(served), ServerSettings(log=False)) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as found,
    ):
        yield found


def parts(client: TestClient, **body: Any) -> list[dict[str, Any]]:
    """The events of a stream, each of which is one of OpenAI's types and has its own name and number."""
    answer = client.post(PATH, json={"stream": True, **body})
    assert answer.headers["content-type"].startswith("text/event-stream")
    found = []
    for number, event in enumerate(answer.text.split("\n\n")[:-1]):
        name, data = event.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
        assert found[-1]["sequence_number"] == number
        if found[-1]["type"] != "error":
            EVENTS.validate_python(found[-1], strict=False)
    return found


def asked(client: TestClient, model: str, given: Any, **more: Any) -> dict[str, Any]:
    answer = client.post(PATH, json={"model": model, "input": given, **more})
    assert answer.status_code == 200, answer.text
    return Response.model_validate(answer.json(), strict=False).to_dict(mode="json", exclude_unset=False)


def test_a_text_is_answered(client: TestClient) -> None:
    found = asked(client, "parrot", "Good day", temperature=0.5, metadata={"a": "b"}, user="me")
    assert found["status"] == "completed"
    assert [item["content"][0]["text"] for item in found["output"]] == ["Good day"]
    assert (found["temperature"], found["metadata"], found["user"], found["store"]) == (0.5, {"a": "b"}, "me", False)
    usage = found["usage"]
    assert (usage["input_tokens"], usage["output_tokens"], usage["total_tokens"]) == (8, 8, 16)


def test_items_are_read_as_messages(client: TestClient) -> None:
    """What a client sends back of an answer, null fields and all, is read; calls of one turn are one message."""
    first = asked(client, "parrot", f"I look.{CALL}{CALL}", tools=[WEATHER])
    one, two = (item["call_id"] for item in first["output"][1:])
    given = [
        {"role": "developer", "content": "Be kind."},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hot?"}]},
        *first["output"],
        {"type": "function_call_output", "call_id": one, "output": "hot"},
        {"type": "function_call_output", "call_id": two, "output": [{"type": "input_text", "text": "cold"}]},
    ]
    text = asked(client, "shown", given, instructions="Answer.")["output"][0]["content"][0]["text"]
    call = 'weather{"city": "Ulm"}'
    assert text == (
        f"system:Answer.\n\nBe kind.|user:Hot?|assistant:I look.{one}={call}{two}={call}|tool:hot{one}|tool:cold{two}|"
    )


def test_a_stream_has_the_events_of_the_api_in_their_order(client: TestClient) -> None:
    text = f"So: {CALL}{CALL} Done."
    found = parts(client, model="parrot", input=text, tools=[WEATHER])
    kinds = [event["type"].removeprefix("response.") for event in found]
    squeezed = [kind for place, kind in enumerate(kinds) if kind != kinds[place - 1] or place == 0]
    message = ["output_item.added", "content_part.added", "output_text.delta", "output_text.done"]
    message += ["content_part.done", "output_item.done"]
    call = ["output_item.added", "function_call_arguments.delta", "function_call_arguments.done", "output_item.done"]
    assert squeezed == ["created", "in_progress", *message, *call, *call, *message, "completed"]
    assert kinds.count("function_call_arguments.delta") > 20
    whole = client.post(PATH, json={"model": "parrot", "input": text, "tools": [WEATHER]}).json()
    last = found[-1]["response"]
    plain = lambda items: [[item.get("content"), item.get("name"), item.get("arguments")] for item in items]  # noqa: E731
    assert [item["type"] for item in last["output"]] == ["message", "function_call", "function_call", "message"]
    assert plain(last["output"]) == plain(whole["output"])
    for index, item in enumerate(last["output"]):
        own = [event for event in found if event.get("output_index") == index]
        deltas = "".join(event["delta"] for event in own if "delta" in event)
        assert deltas == (item["arguments"] if item["type"] == "function_call" else item["content"][0]["text"])
        assert {event["item_id"] for event in own if "item_id" in event} == {item["id"]}
        assert own[0]["item"]["status"] == "in_progress"
        assert own[-1]["item"] == item


def test_a_call_that_breaks_off_is_incomplete(client: TestClient) -> None:
    found = parts(client, model="parrot", input=CALL[:50], tools=[WEATHER])
    assert [item["status"] for item in found[-1]["response"]["output"]] == ["incomplete"]


def test_an_answer_that_reaches_its_limit_is_incomplete(client: TestClient) -> None:
    whole = asked(client, "abc", "x", temperature=0, max_output_tokens=2)
    last = parts(client, model="abc", input="x", temperature=0, max_output_tokens=2)[-1]
    assert last["type"] == "response.incomplete"
    for found in (whole, last["response"]):
        assert (found["status"], found["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
        assert [item["status"] for item in found["output"]] == ["incomplete"]
        assert found["output"][0]["content"][0]["text"] == "ab"


def test_log_probabilities_are_those_of_chats(client: TestClient) -> None:
    more: dict[str, Any] = {"model": "parrot"}
    chat = {**more, "messages": [{"role": "user", "content": "xyz"}], "logprobs": True, "top_logprobs": 2}
    wanted = client.post("/v1/chat/completions", json=chat).json()["choices"][0]["logprobs"]["content"]
    asking_for = {"include": ["message.output_text.logprobs"], "top_logprobs": 2}
    found = asked(client, "parrot", "xyz", **asking_for)["output"][0]["content"][0]["logprobs"]
    assert found == wanted
    events = parts(client, input="xyz", **more, **asking_for)
    assert [token for event in events if "delta" in event for token in event["logprobs"]] == wanted
    assert events[-1]["response"]["output"][0]["content"][0]["logprobs"] == wanted


@pytest.mark.parametrize(
    ("more", "param", "told"),
    [
        ({"store": True}, "store", "the server stores no responses; leave it out, and send the earlier items"),
        ({"previous_response_id": "resp_1"}, "previous_response_id", 'is "resp_1", but the server stores no responses'),
        ({"conversation": {"id": "x"}}, "conversation", "send the earlier items in input"),
        ({"prompt": {"id": "x"}}, "prompt", "send instructions and input"),
        ({"max_tool_calls": 1}, "max_tool_calls", "tools are called by the client"),
        ({"service_tier": "flex"}, "service_tier", "there is one tier"),
        ({"prompt_cache_key": 1}, "prompt_cache_key", "it must be a str"),
        ({"stream_options": {"include_obfuscation": True}}, "stream_options.include_obfuscation", "set it to false"),
        ({"background": True}, "background", "background responses are not supported"),
        ({"truncation": "auto"}, "truncation", "shorten input"),
        ({"reasoning": {"effort": "high"}}, "reasoning.effort", "reasoning_effort is 'high', which the chat"),
        ({"reasoning": {"summary": "detailed"}}, "reasoning.summary", "reasoning is not summarised"),
        ({"thinking_token_budget": -2}, None, "thinking_token_budget is -2"),
        ({"thinking_token_budget": 5}, None, "this model does not think"),
        ({"reasoning": "high"}, "reasoning", "Expected `object | null`"),
        ({"include": ["file_search_call.results"]}, "include", "use message.output_text.logprobs"),
        ({"text": {"verbosity": "low"}}, "text.verbosity", "ask for it in instructions"),
        ({"text": {"form": {}}}, "text.form", "unknown field 'form' at text.form"),
        ({"text": {"format": "json"}}, "text.format", "Expected `object | null`"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, None, "no schema"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type", '"web_search", but only functions are supported'),
        ({"tool_choice": "required"}, "tool_choice", "there are no tools"),
        ({"max_output_tokens": 0}, "max_output_tokens", ">= 1"),
        ({"input": []}, "input", "is empty"),
        ({"input": [{"type": "reasoning", "content": [1]}]}, "input[0].content[0]", "only text is supported"),
        ({"input": [{"type": "web_search_call"}]}, "input[0]", "message, reasoning, function_call and"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0]", "stores no responses"),
        ({"input": [{"role": "critic", "content": ""}]}, "input[0].role", "use user, assistant"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0]", "/v1/caption"),
        ({"input": [{"type": "function_call_output", "call_id": "1", "output": ""}]}, "input[0].call_id", "send its"),
        ({"input": "x" * 1000}, "input", "the context of 900"),
        ({"inputs": "x"}, "inputs", "unknown field 'inputs'"),
    ],
)
def test_what_is_not_served_is_refused_by_name(client: TestClient, more: Any, param: str | None, told: str) -> None:
    answer = client.post(PATH, json={"model": "parrot", "input": "x", **more})
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, param)
    assert told in error["message"]


def test_what_asks_for_nothing_is_taken(client: TestClient) -> None:
    nothing: dict[str, Any] = dict.fromkeys(
        ("store", "previous_response_id", "conversation", "background", "prompt", "truncation", "service_tier")
    )
    nothing |= dict.fromkeys(("reasoning", "max_tool_calls", "stream", "tools", "tool_choice", "text", "include"))
    assert asked(client, "parrot", "x", **nothing)["output"][0]["content"][0]["text"] == "x"
    nothing = {"store": False, "background": False, "truncation": "disabled", "service_tier": "auto", "tools": []}
    nothing |= {"text": {"format": {"type": "text"}, "verbosity": "medium"}}
    nothing |= {"reasoning": {"effort": "none", "summary": None}, "prompt_cache_key": "x", "safety_identifier": "x"}
    nothing |= {"include": ["reasoning.encrypted_content"], "stream_options": {"include_obfuscation": False}}
    assert asked(client, "parrot", "x", **nothing)["output"][0]["content"][0]["text"] == "x"


def test_an_error_in_a_stream_is_an_event_and_raised_by_the_package(tmp_path: Path) -> None:
    class Failing(Script):
        def step(self) -> Any:
            if self.steps == 2:
                raise UserError("the mask is too complex; simplify it")
            return super().step()

    path = echo_model(tmp_path, context=900)
    Usage(template=ECHO).save(path)
    served = ready(path, "failing", Failing())
    with asking(served) as client:
        found = parts(client, input="abcdef")
    assert (found[-1]["type"], found[-1]["message"]) == ("error", "the mask is too complex; simplify it")
    served = ready(path, "failing", Failing())
    with (
        server(Resident([served]), ServerSettings(log=False)) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as sdk,
        pytest.raises(openai.APIError, match="too complex"),
    ):
        list(sdk.responses.create(model="failing", input="abcdef", stream=True))


class City(BaseModel):
    city: str


def test_the_openai_package_creates(sdk: openai.OpenAI) -> None:
    found = sdk.responses.create(model="parrot", input=f"Yes. {CALL}", tools=[WEATHER])  # type: ignore[list-item]
    assert found.output_text == "Yes."
    call = found.output[1]
    assert call.type == "function_call"
    assert (call.name, json.loads(call.arguments)) == ("weather", {"city": "Ulm"})
    again: Any = [{"role": "user", "content": "?"}, *found.output]
    again += [{"type": "function_call_output", "call_id": call.call_id, "output": "hot"}]
    assert sdk.responses.create(model="parrot", input=again, tools=[WEATHER]).output_text == "hot"  # type: ignore[list-item]
    with pytest.raises(openai.BadRequestError, match="stores no responses"):
        sdk.responses.create(model="parrot", input="x", previous_response_id=found.id)


def test_the_openai_package_streams(sdk: openai.OpenAI) -> None:
    tools: Any = [{**WEATHER, "strict": False}]
    with sdk.responses.stream(model="parrot", input=f"Yes. {CALL}", tools=tools) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    assert kinds.count("response.function_call_arguments.delta") > 10
    assert final.output_text == "Yes."


def test_the_openai_package_parses(sdk: openai.OpenAI) -> None:
    found = sdk.responses.parse(model="parrot", input='{"city": "Ulm"}', text_format=City)
    assert found.output_parsed == City(city="Ulm")
