"""Models that think before they answer: what is thinking, how long it may be, and what holds the answer after it."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chat_models import SPECIAL, TEMPLATE, echo_model
from serve_models import Script, asking, events, ready
from starlette.testclient import TestClient

import headway as hw
from headway.codecs import TokenizerCodec, train_codec
from headway.codecs.thinking_format import ThinkingFormat, thinking_format
from headway.errors import UserError
from headway.generate import Limits, Request, Sampling, Scheduler
from headway.generate.sampling import token_mask
from headway.generate.sequences import AnswerReader
from headway.generate.thinking import ThinkingRule, answer_reader, thinking_rule
from headway.serve.structured_outputs import rule_for
from headway.serve.tools import Toolbox

CHAT = "/v1/chat/completions"
MARKERS = (*SPECIAL, "[THINK]", "[/THINK]")
HARMONY = (*SPECIAL, "<|start|>", "<|channel|>", "<|constrain|>", "<|message|>", "<|end|>", "<|call|>", "<|return|>")
# As Qwen 3's: the model opens its thinking, and the template ends it if it is turned off.
QWEN = TEMPLATE[: TEMPLATE.rindex("{%")] + (
    "<|assistant|>{% if enable_thinking is defined and not enable_thinking %}{{ '<think>\\n\\n</think>\\n\\n' }}"
    "{% endif %}{% endif %}"
)
R1 = TEMPLATE[: TEMPLATE.rindex("{%")] + "<|assistant|>{{ '<think>\\n' }}{% endif %}"  # as DeepSeek R1's: it is opened
MAGISTRAL = TEMPLATE + "{# [THINK][/THINK] #}"
OSS = (
    "{% for m in messages %}{% if m.tool_calls %}<|start|>assistant to=functions.{{ m.tool_calls[0].function.name }}"
    "<|channel|>commentary json<|message|>{{ m.tool_calls[0].function.arguments | tojson }}<|call|>{% else %}"
    "<|start|>{{ m.role }}{% if m.role == 'assistant' %}<|channel|>final{% endif %}<|message|>{{ m.content }}<|end|>"
    "{% endif %}{% endfor %}{{ tools }}{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)
CITY = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": CITY}}


@pytest.fixture(scope="module")
def codec() -> TokenizerCodec:
    return train_codec("byte", ["any"], special=(*MARKERS, *HARMONY[len(SPECIAL) :]))


def read(reader: AnswerReader, pieces: Sequence[tuple[str, int | None]]) -> tuple[str, str]:
    """The answer and the thinking in the pieces of an output."""
    answer = thinking = ""
    for place, (text, token) in enumerate(pieces):
        answer += reader.push(text, token, place + 1 == len(pieces))
        thinking += reader.reasoning
    return answer, thinking


@pytest.mark.parametrize(
    ("state", "text", "wanted"),
    [
        ("before", "  <think> a </think> b ", ("b ", "a")),
        ("before", "plain <think> a", ("plain <think> a", "")),
        ("before", " <th", (" <th", "")),
        ("before", "<think></think>b", ("b", "")),
        ("before", "<think>a<think>b</think>c</think>d", ("c</think>d", "a<think>b")),
        ("before", "</think>b", ("</think>b", "")),
        ("thinking", "\na </thin> </think>\nb</think>", ("b</think>", "a </thin>")),
        ("thinking", "a </th", ("", "a </th")),
        ("thinking", "a " + "</thin" * 1000 + "</think>" * 1000, ("</think>" * 999, "a " + "</thin" * 1000)),
        ("answer", "<think>a</think>b", ("<think>a</think>b", "")),
    ],
)
def test_thinking_is_separated_in_any_pieces(
    codec: TokenizerCodec, state: str, text: str, wanted: tuple[str, str]
) -> None:
    thinking = ThinkingFormat(codec, "<think>", "</think>")
    for size in [*range(1, min(len(text), 24)), len(text)]:
        pieces = [(text[start : start + size], None) for start in range(0, len(text), size)]
        assert read(answer_reader(thinking, state), pieces) == wanted


def test_a_marker_that_is_a_token_is_not_a_text(codec: TokenizerCodec) -> None:
    thinking = thinking_format(codec, MAGISTRAL)
    assert thinking is not None
    opening, closing = (codec.token_id(name) for name in ("[THINK]", "[/THINK]"))
    pieces = [("", opening), ("a [/THINK] b [THINK]", None), ("", closing), ("[/THINK] c", None)]
    assert read(answer_reader(thinking, "before"), pieces) == ("[/THINK] c", "a [/THINK] b [THINK]")
    assert read(answer_reader(thinking, "before"), [("[THINK] a [/THINK]", None)]) == ("[THINK] a [/THINK]", "")
    other = codec.token_id("<|user|>")
    assert read(answer_reader(thinking, "before"), [("", other), ("", opening), ("a", None)]) == ("a", "")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Yes.", ("Yes.", "Hm.")),
        ("<|channel|>final<|message|>Yes.", ("Yes.", "")),
        (
            "<|channel|>commentary<|message|>First.<|end|><|start|>assistant<|channel|>final<|message|>!",
            ("First.!", ""),
        ),
        ("<|channel|>analysis<|message|>Hm.", ("", "Hm.")),
        ("No header", ("No header", "")),
        ("x" * 300, ("x" * 300, "")),
        ("<|channel|>analysis", ("", "")),
        ("<|message|><|message|>a<|end|><|end|><|start|><|start|>", ("a", "")),
    ],
)
def test_channels_are_separated(codec: TokenizerCodec, text: str, wanted: tuple[str, str]) -> None:
    thinking = thinking_format(codec, OSS)
    assert thinking is not None
    assert thinking.channels
    stream, pieces = codec.stream(), []
    for token in thinking.ids(text):
        pieces.append((stream.push(token), token))
    pieces.append(("", None))
    assert read(answer_reader(thinking, "before"), pieces) == wanted


def test_formats_are_found_in_templates_and_tokens(codec: TokenizerCodec) -> None:
    plain = train_codec("byte", ["any"], special=SPECIAL)
    assert thinking_format(plain, TEMPLATE) is None
    found = [thinking_format(plain, template) for template in (QWEN, R1, "{# <seed:think> #}", MAGISTRAL)]
    assert [each and each.opening for each in found] == ["<think>", "<think>", "<seed:think>", "[THINK]"]
    assert [each and each.separator for each in found] == ["\n\n", "", "", ""]
    assert [each and each.state_after("<|assistant|><think>\n") for each in found[:1]] == ["thinking"]
    by_token = thinking_format(codec, TEMPLATE)
    assert by_token is not None
    assert by_token.ids("[/THINK]") == (codec.token_id("[/THINK]"),)


def allowed(rule: ThinkingRule, codec: TokenizerCodec) -> set[int]:
    mask = np.zeros(-(-codec.vocab_size // 32), np.int32)
    rule.fill(mask)
    return set(np.unpackbits(mask.view(np.uint8), bitorder="little").nonzero()[0].tolist())


def follow(rule: ThinkingRule, codec: TokenizerCodec, ids: Any) -> None:
    for token in ids:
        assert token in allowed(rule, codec), codec.decode([token])
        rule.take(token)


@pytest.mark.parametrize("budget", [None, 0, 1, 5, 10**9])
@pytest.mark.parametrize("template", [MAGISTRAL, QWEN, OSS])
def test_an_answer_follows_its_form_after_free_thinking(
    codec: TokenizerCodec, template: str, budget: int | None
) -> None:
    plain = train_codec("byte", ["any"], special=SPECIAL) if template == QWEN else codec
    thinking = thinking_format(plain, template)
    assert thinking is not None
    stop = plain.token_id("<|stop|>")
    assert stop is not None
    make = rule_for(plain, {"type": "regex", "regex": "[0-9]{2}"}, [stop])
    assert make is not None
    header = "<|start|>assistant<|channel|>final<|message|>" if thinking.channels else ""
    mask = token_mask([stop, plain.eos_id or 0], plain.vocab_size)
    rule = ThinkingRule(thinking, "before", make, budget, mask, make.token_texts, header)
    follow(rule, plain, thinking.ids(thinking.opening))
    thoughts = plain.encode("Hm, {no}")
    for token in thoughts[:budget]:
        free = allowed(rule, plain)
        assert len(free) >= plain.vocab_size - 2
        assert stop not in free
        rule.take(token)
    if budget is None or budget > len(thoughts):
        follow(rule, plain, thinking.ids(thinking.closing))
    else:
        assert len(allowed(rule, plain)) == 1
        follow(rule, plain, thinking.ids(thinking.closing))
    lead = header if thinking.channels else thinking.separator
    for token in thinking.ids(lead):
        assert allowed(rule, plain) == {token}
        rule.take(token)
    assert allowed(rule, plain) == {plain.encode(digit)[0] for digit in "0123456789"}
    follow(rule, plain, plain.encode("42"))
    assert stop in allowed(rule, plain)
    # Without thinking, and held to the form at once.
    direct = ThinkingRule(thinking, "before", make, budget, mask, make.token_texts, header)
    start = thinking.ids("<|channel|>final<|message|>") if thinking.channels else ()
    follow(direct, plain, [*start, *plain.encode("42"), stop])


def test_a_token_cannot_end_the_thinking_and_start_the_answer() -> None:
    codec = train_codec("bpe", ["k>{ k>{ k>{ k>{ k>{"], 262, special=SPECIAL)
    [joined] = [token for token in range(codec.vocab_size) if codec.decode([token]) in (">{", "k>{")][-1:]
    thinking = thinking_format(codec, R1)
    assert thinking is not None
    make = rule_for(codec, {"type": "json_object"}, [])
    assert make is not None
    rule = ThinkingRule(thinking, "thinking", make, None, token_mask([], codec.vocab_size), make.token_texts)
    assert joined in allowed(rule, codec)
    text = codec.decode([joined])
    follow(rule, codec, codec.encode("</thin" if text == "k>{" else "</think"))
    assert joined not in allowed(rule, codec)
    follow(rule, codec, codec.encode("k>" if text == "k>{" else ">"))
    assert codec.encode("{")[0] in allowed(rule, codec)


THOUGHT = ("[THINK]", "why not", "[/THINK]", "Yes.")
CLOCK = {"name": "clock", "parameters": {"type": "object", "properties": {}, "additionalProperties": False}}
HERMES = "{% if tools %}{{ tools }}{# <tool_call> #}{% endif %}" + MAGISTRAL


class Says(Script):
    """A model that says the same, whatever it is asked."""

    def __init__(self, codec: TokenizerCodec, ids: tuple[int, ...]) -> None:
        super().__init__(spell=lambda token: codec.decode([token]))
        self.ids = ids

    def submit(self, request: Request) -> int:
        return super().submit(replace(request, prompt=self.ids))


@pytest.fixture(scope="module")
def thinker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return echo_model(tmp_path_factory.mktemp("thinks"), 600, HERMES, THOUGHT, MARKERS)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, thinker: Path) -> Iterator[TestClient]:
    folder = tmp_path_factory.mktemp("served")
    opened = R1.replace("<think>", "[THINK]").replace("\\n", "")
    models = [
        ready(thinker, "thinks"),
        ready(echo_model(folder / "opened", 200, opened, THOUGHT, MARKERS), "opened"),
        ready(echo_model(folder / "plain", 200), "plain"),
    ]
    with asking(*models) as client:
        yield client


def ask(server: TestClient, model: str = "thinks", **more: Any) -> Any:
    body = {"model": model, "messages": [{"role": "user", "content": "[THINK] a </think>"}], "temperature": 0, **more}
    found = server.post(CHAT, json=body)
    assert found.status_code == 200, found.text
    return found.json()


def heard(server: TestClient, **more: Any) -> list[tuple[str, str, Any]]:
    """The answer, the thinking and the reason of each choice, whole and in a stream."""
    whole, n = ask(server, **more), more.get("n", 1)
    found = [
        (c["message"]["content"], c["message"].get("reasoning_content", ""), c["finish_reason"])
        for c in whole["choices"]
    ]
    body = {"model": "thinks", "messages": [{"role": "user", "content": "?"}], "temperature": 0, "stream": True, **more}
    parts = [["", "", None] for _ in range(n)]
    for event in events(server.post(CHAT, json=body).text):
        for choice in event["choices"]:
            part, delta = parts[choice["index"]], choice["delta"]
            part[0] += delta.get("content", "")
            part[1] += delta.get("reasoning_content", "")
            part[2] = choice["finish_reason"] or part[2]
    assert [tuple(part) for part in parts] == found
    return found


@pytest.mark.parametrize("model", ["thinks", "opened"])
def test_thinking_is_a_part_of_its_own(server: TestClient, model: str) -> None:
    assert heard(server, model=model, n=3) == [("Yes.", "why not", "stop")] * 3
    usage = ask(server, model)["usage"]
    assert usage["completion_tokens_details"] == {"reasoning_tokens": 7}
    assert usage["completion_tokens"] == (12 if model == "opened" else 13)
    for budget, thought in ((3, "why"), (7, "why not"), (10**9, "why not"), (-1, "why not"), (0, "")):
        assert heard(server, model=model, thinking_token_budget=budget) == [("Yes.", thought, "stop")]
        used = ask(server, model, thinking_token_budget=budget)["usage"]["completion_tokens_details"]
        assert used == {"reasoning_tokens": len(thought)}
    assert heard(server, model=model, reasoning_effort="none") == [("Yes.", "", "stop")]
    assert heard(server, model=model, include_reasoning=False) == [("Yes.", "", "stop")]
    assert heard(server, model=model, max_tokens=5)[0][::2] == ("", "length")
    assert heard(server, model=model, stop=["no", "s"]) == [("Ye", "why not", "stop")]


def test_forms_and_tools_hold_the_answer_alone(server: TestClient) -> None:
    form = {"type": "regex", "regex": "[0-9]{2}"}
    tools = [{"type": "function", "function": CLOCK}]
    for model in ("thinks", "opened"):
        for budget in (0, 2, None):
            thought = "why not"[:budget]
            [(answer, found, reason)] = heard(server, model=model, response_format=form, thinking_token_budget=budget)
            assert (len(answer), answer.isdecimal(), found, reason) == (2, True, thought, "stop")
    for choice, form in (
        ("required", {"type": "json_object"}),
        ({"type": "function", "function": {"name": "clock"}}, None),
    ):
        found = ask(server, tools=tools, tool_choice=choice, parallel_tool_calls=False, response_format=form)
        [choice] = found["choices"]
        assert choice["finish_reason"] == "tool_calls"
        assert choice["message"]["reasoning_content"] == "why not"
        [call] = choice["message"]["tool_calls"]
        assert (call["function"]["name"], json.loads(call["function"]["arguments"])) == ("clock", {})


def test_thinking_about_a_call_is_no_call(tmp_path: Path) -> None:
    path = echo_model(tmp_path, 900, HERMES, special=MARKERS)
    codec = hw.load(path, "cpu", backend="torch").codec
    assert isinstance(codec, TokenizerCodec)
    thinking = thinking_format(codec, HERMES)
    assert thinking is not None
    call = '<tool_call>\n{"name": "weather", "arguments": {"city": "Ulm"}}\n</tool_call>'
    ids = {
        "thought": thinking.ids(f"[THINK]{call}[/THINK]No."),
        "made": thinking.ids(f"[THINK]{call}[/THINK]\n\n{call}"),
        "cut": thinking.ids(f"[THINK]{call}"),
    }
    with asking(*(ready(path, name, Says(codec, said)) for name, said in ids.items())) as client:
        body = {"messages": [{"role": "user", "content": "?"}], "tools": [WEATHER]}
        found = {name: client.post(CHAT, json={**body, "model": name}).json()["choices"][0] for name in ids}
        assert {choice["message"]["reasoning_content"] for choice in found.values()} == {call}
        assert [choice["finish_reason"] for choice in found.values()] == ["stop", "tool_calls", "stop"]
        assert [choice["message"]["content"] for choice in found.values()] == ["No.", None, ""]


def test_the_server_has_a_budget_of_its_own(thinker: Path) -> None:
    with asking(ready(thinker, "thinks"), thinking_token_budget=2) as client:
        assert heard(client) == [("Yes.", "wh", "stop")]
        assert heard(client, thinking_token_budget=4) == [("Yes.", "why", "stop")]
        assert heard(client, thinking_token_budget=-1) == [("Yes.", "why not", "stop")]


def test_tokens_of_thinking_have_log_probabilities(server: TestClient) -> None:
    [choice] = ask(server, logprobs=True, top_logprobs=1, return_token_ids=True)["choices"]
    tokens = [token["token"] for token in choice["logprobs"]["content"]]
    assert tokens == ["[THINK]", *"why not", "[/THINK]", *"Yes."]
    assert len(choice["token_ids"]) == len(tokens)


def test_a_message_is_continued_where_it_ends(server: TestClient) -> None:
    def more(content: str) -> tuple[str, str]:
        messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": content}]
        [choice] = ask(server, messages=messages, continue_final_message=True)["choices"]
        return choice["message"]["content"], choice["message"].get("reasoning_content", "")

    assert more("Y") == ("es.", "")
    assert more("[THINK]w") == ("Yes.", "hy not")  # a text here, which is thinking all the same
    assert more("[THINK]w[/THINK]Y") == ("es.", "")


def test_models_that_do_not_think_are_as_before(server: TestClient) -> None:
    assert heard(server, model="plain", thinking_token_budget=0) == [("abc", "", "stop")]
    found = ask(server, "plain")
    assert set(found["usage"]) == {"prompt_tokens", "completion_tokens", "total_tokens", "prompt_tokens_details"}
    assert set(found["choices"][0]["message"]) == {"content", "role", "refusal"}
    for budget, problem in ((5, "this model does not think; leave it out"), (-2, "thinking_token_budget is -2")):
        body = {"model": "plain", "messages": [{"role": "user", "content": "?"}], "thinking_token_budget": budget}
        answer = server.post(CHAT, json=body)
        assert answer.status_code == 400
        assert problem in answer.json()["error"]["message"]
    body = {"model": "thinks", "messages": [{"role": "user", "content": "?"}], "thinking_token_budget": 2}
    answer = server.post(CHAT, json={**body, "allowed_token_ids": [65]}).json()
    assert "which ends the thinking; add it" in answer["error"]["message"]
    body = {"model": "thinks", "messages": [{"role": "user", "content": "?"}], "reasoning_effort": "none"}
    assert server.post(CHAT, json={**body, "thinking_token_budget": 4}).status_code == 400


def test_the_template_gets_earlier_thinking(tmp_path: Path) -> None:
    template = "{% for m in messages %}({{ m.role }} {{ m.content }} {{ m.reasoning_content }}){% endfor %}"
    with asking(ready(echo_model(tmp_path, 200, template), "model")) as client:
        messages = [
            {"role": "user", "content": "a", "reasoning_content": None},
            {"role": "assistant", "content": "b", "reasoning_content": "c"},
            {"role": "assistant", "content": "b", "reasoning": "d"},
        ]
        found = client.post("/apply-template", json={"messages": messages}).json()
        assert found["prompt"] == "(user a )(assistant b c)(assistant b d)"


def test_other_protocols_separate_thinking_too(server: TestClient) -> None:
    body = {"model": "thinks", "input": "?", "temperature": 0}
    found = server.post("/v1/responses", json={**body, "thinking_token_budget": 3}).json()
    assert [(item["type"], item["content"][0]["text"]) for item in found["output"]] == [
        ("reasoning", "why"),
        ("message", "Yes."),
    ]
    assert found["usage"]["output_tokens_details"] == {"reasoning_tokens": 3}
    assert found["status"] == "completed"
    cut = server.post("/v1/responses", json={**body, "max_output_tokens": 4}).json()
    assert ([item["type"] for item in cut["output"]], cut["status"]) == (["reasoning"], "incomplete")
    again = {**body, "input": [{"role": "user", "content": "?"}, *found["output"], {"role": "user", "content": "?"}]}
    assert server.post("/v1/responses", json=again).json()["status"] == "completed"
    lines = server.post("/v1/responses", json={**body, "stream": True}).text.split("\n\n")
    streamed = [json.loads(line.partition("data: ")[2]) for line in lines if line]
    deltas = [event["delta"] for event in streamed if event["type"] == "response.reasoning_text.delta"]
    assert "".join(deltas) == "why not"
    assert streamed[-1]["response"]["output"][0]["content"] == [{"text": "why not", "type": "reasoning_text"}]
    ollama = {"model": "thinks", "messages": [{"role": "user", "content": "?"}], "stream": False}
    ollama |= {"options": {"temperature": 0}}
    message = server.post("/api/chat", json=ollama).json()["message"]
    assert (message["thinking"], message["content"]) == ("why not", "Yes.")
    message = server.post("/api/chat", json={**ollama, "think": False}).json()["message"]
    assert (message.get("thinking"), message["content"]) == (None, "Yes.")
    form = {"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"], "additionalProperties": False}
    message = server.post("/api/chat", json={**ollama, "format": form}).json()["message"]
    assert (message["thinking"], json.loads(message["content"])) == ("why not", {"a": 1})


def test_messages_to_tools_are_calls(tmp_path: Path) -> None:
    """As gpt-oss writes them: a message on the channel commentary, to a function."""
    path = echo_model(tmp_path, 400, OSS, special=HARMONY)
    codec = hw.load(path, "cpu", backend="torch").codec
    assert isinstance(codec, TokenizerCodec)
    thinking = thinking_format(codec, OSS)
    assert thinking is not None
    head = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>commentary to=functions."
    text = "<|channel|>commentary to=functions.weather"
    cases = {
        "call": f'{head}weather <|constrain|>json<|message|>{{"city": "Ulm"}}',
        "role": '<|start|>assistant to=functions.weather<|channel|>commentary json<|message|>{"city": "Ulm"}',
        "other": f"{head}wheather <|constrain|>json<|message|>{{}}",
        "text": "<|channel|>final<|message|>",
    }
    said = {name: thinking.ids(case) for name, case in cases.items()}
    said["text"] = (*said["text"], *codec.encode(text))
    models = [ready(path, name, Says(codec, ids)) for name, ids in said.items()]
    with asking(*models) as client:
        body = {"messages": [{"role": "user", "content": "?"}], "tools": [WEATHER]}
        for name in ("call", "role"):
            [choice] = client.post(CHAT, json={**body, "model": name}).json()["choices"]
            assert choice["finish_reason"] == "tool_calls"
            assert choice["message"]["content"] is None
            assert choice["message"].get("reasoning_content") == ("Hm." if name == "call" else None)
            [call] = choice["message"]["tool_calls"]
            assert call["function"] == {"name": "weather", "arguments": '{"city": "Ulm"}'}
            parts = [
                part["function"]["arguments"]
                for event in events(client.post(CHAT, json={**body, "model": name, "stream": True}).text)
                for part in event["choices"][0]["delta"].get("tool_calls", [])
            ]
            assert "".join(parts) == '{"city": "Ulm"}'
            assert len(parts) > 2
        for name, content in (("other", "wheather"), ("text", text)):
            [choice] = client.post(CHAT, json={**body, "model": name}).json()["choices"]
            assert choice["finish_reason"] == "stop"
            assert content in choice["message"]["content"]
            assert "tool_calls" not in choice["message"]


def test_local_models_think_within_a_budget(thinker: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = hw.load(thinker, "cpu", backend="torch")
    assert model.chat("?", temperature=0) == "Yes."
    assert model.chat("?", temperature=0, max_new_tokens=4) == ""
    assert model.chat("?", temperature=0, max_new_tokens=8, thinking_token_budget=2) == "Yes."
    talk = model.talk
    prompt = talk.encode_prompt([{"role": "user", "content": "?"}], Limits(50))
    found = list(talk.stream_answer(prompt, Sampling(0), Limits(50), 3))
    assert "".join(event.reasoning for event in found) == "why"
    assert "".join(event.text for event in found) == "Yes."
    with pytest.raises(UserError, match="thinking_token_budget is -7"):
        model.chat("?", thinking_token_budget=-7)


def test_torch_reads_long_prompts_whole(tmp_path: Path) -> None:
    model = hw.load(echo_model(tmp_path, 400), "cpu", backend="torch")
    scheduler = Scheduler(model.open_session().model, model.codec, step_tokens=128)
    start = model.talk.codec.token_id("<|assistant|>")
    assert start is not None
    scheduler.submit(Request([*[5] * 200, start], Sampling(0), Limits(3), n=2))
    found = [event for _ in range(4) for event in scheduler.step()]
    assert "".join(event.text for event in found) == "aabbcc"


@pytest.mark.parametrize("temperature", [0, 1])
def test_every_backend_gives_the_same_tokens(tmp_path: Path, temperature: float) -> None:
    """One row, rows that share steps, and guessed tokens, on the engine and with torch."""
    path = echo_model(tmp_path, 200, HERMES, THOUGHT, MARKERS)
    found = []
    for backend in ("torch", "cpu"):
        model = hw.load(path, "cpu", backend=backend)
        conversation, codec = model.talk, model.codec
        thinking, prompt = (
            conversation.thinking,
            conversation.encode_prompt([{"role": "user", "content": "?"}], Limits(9)),
        )
        assert thinking is not None
        stop_ids = conversation.with_turn_end(Limits()).all_stop_ids(codec)
        make = rule_for(codec, {"type": "regex", "regex": "[a-z]{3,9}[0-9]{2}"}, stop_ids)
        assert make is not None
        rule = thinking_rule(thinking, prompt.state, make, 4, stop_ids, codec.vocab_size, make.token_texts)
        limits = Limits(40, stop_ids=tuple(stop_ids))
        for n, draft in ((1, False), (3, False), (1, True)):
            session = model.open_session()
            scheduler = Scheduler(session.model, codec, 4, draft=session.model if draft and backend == "cpu" else None)
            reader = partial(answer_reader, thinking, prompt.state)
            scheduler.submit(Request(prompt.ids, Sampling(temperature, seed=7), limits, n, rule, reader=reader))
            parts: dict[int, list[Any]] = {i: [[], "", ""] for i in range(n)}
            while stepped := scheduler.step():
                for event in stepped:
                    assert event.error is None
                    parts[event.sequence][0] += [] if event.id is None else [event.id]
                    parts[event.sequence][1] += event.text
                    parts[event.sequence][2] += event.reasoning
            found.append(parts[0])
            assert all(re.fullmatch("[a-z]{3,9}[0-9]{2}", part[1]) for part in parts.values())
            assert all(0 < len(part[2]) <= 4 for part in parts.values()) or temperature
    assert all(each == found[0] for each in found)


def test_gemmas_label_is_not_part_of_its_thinking() -> None:
    codec = train_codec("byte", ["any"], special=(*SPECIAL, "<|channel>", "<channel|>"))
    thinking = thinking_format(codec, TEMPLATE)
    assert thinking is not None
    opening, closing = (codec.token_id(name) for name in ("<|channel>", "<channel|>"))
    for text, wanted in (("thought\nHm.", "Hm."), ("thorn", "thorn"), ("thou", "thou"), ("", "")):
        for size in range(1, 6):
            pieces = [(text[start : start + size], None) for start in range(0, len(text), size)]
            found = read(answer_reader(thinking, "before"), [("", opening), *pieces, ("", closing), ("Yes.", None)])
            assert found == ("Yes.", wanted)
    assert thinking.state_after("<|channel>thought\n<channel|>") == "answer"
    assert read(answer_reader(thinking, "thinking"), [("\nthought", None), ("", closing)]) == ("", "thought")


def test_a_required_call_of_gpt_oss_comes_after_its_thinking(codec: TokenizerCodec) -> None:
    """What a model that knows nothing generates, whose thinking is cut off."""
    schema = {**CITY, "properties": {"city": {"enum": ["Ulm", "Bonn"]}}, "additionalProperties": False}
    tools = Toolbox(
        codec, OSS, [{"type": "function", "function": {"name": "weather", "parameters": schema}}], "required"
    )
    thinking, call_end = thinking_format(codec, OSS), codec.token_id("<|call|>")
    assert thinking is not None
    assert call_end is not None
    make = tools.rule([call_end])
    assert make is not None
    mask, thoughtful = token_mask([call_end, codec.eos_id or 0], codec.vocab_size), 0
    for seed in range(20):
        draw = random.Random(seed)
        rule = ThinkingRule(thinking, "before", make, 6, mask, make.token_texts, "<|start|>assistant")
        reader, calls, stream = answer_reader(thinking, "before"), tools.reader(), codec.stream()
        assert calls is not None
        parts, thought, token = [], "", -1
        while token != call_end:
            options = allowed(rule, codec)
            token = call_end if call_end in options else draw.choice(sorted(options))
            rule.take(token)
            if token != call_end:
                text = reader.push(stream.push(token), token)
                thought += reader.reasoning
                parts += calls.push(text, token, reader.recipient)
        parts += calls.flush()
        [call] = [part for part in parts if not isinstance(part, str)]
        assert not any(isinstance(part, str) for part in parts)
        assert json.loads(call.arguments)["city"] in ("Ulm", "Bonn")
        thoughtful += bool(thought)
    assert thoughtful > 0


def test_a_line_break_may_come_before_the_thinking(codec: TokenizerCodec) -> None:
    plain = train_codec("byte", ["any"], special=SPECIAL)
    thinking = thinking_format(plain, TEMPLATE + "{# \\n<think> #}")  # as GLM 4.5's
    assert thinking is not None
    make = rule_for(plain, {"type": "choice", "choice": ["yes"]}, [])
    assert make is not None
    rule = ThinkingRule(thinking, "before", make, 2, token_mask([], plain.vocab_size), make.token_texts)
    first = {plain.encode(text)[0] for text in ("\n", "<", "y")}
    assert allowed(rule, plain) == first
    follow(rule, plain, plain.encode("\n<think>ab</think>yes"))
