"""Calls of tools in a stream: their arguments come as they are written, and are those that come whole."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import openai
import pytest
from chat_models import SPECIAL, echo_model
from serve_models import Script, asking, events, ready
from served import Resident
from serving import server
from test_serve_tools import (
    BARE,
    CALL,
    CODED,
    CODER,
    DEVSTRAL,
    HERMES,
    LLAMA,
    MISTRAL,
    SMALL,
    TOOLS,
    V3,
    V31,
    WEATHER,
    cut,
)

from headway.codecs import TokenizerCodec, train_codec
from headway.formats.usage import Usage
from headway.serve.incremental_json import IncrementalObject, without_trailing_commas
from headway.serve.interfaces import ReadyModel, ServerSettings
from headway.serve.tool_calls import Arguments, Part, ToolCall
from headway.serve.tools import Toolbox

CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def codec() -> TokenizerCodec:
    return train_codec("byte", ["any"], special=("<|end|>", "[TOOL_CALLS]", "<|python_tag|>", "<|endoftext|>"))


OBJECTS = [
    '{"a": [1, -0, 2.50e+10, 1E9, 0.5], "b": {"c": null, "": [[], {}]}, "d": true,"e":false }',
    '\n{ "tr\\"ap" : "}] \\\\ \\u00e9 \\n / é 😀 {" , "x":[ "a" , 12 ] }',
    "{}",
    '{"a":{"a":[{"a":-1.0e-3}]}}',
]


def followed(text: str, draw: random.Random) -> IncrementalObject:
    found, place, held = IncrementalObject(), 0, ""
    while len(held) < len(text):
        held += text[len(held) : len(held) + draw.randint(1, 9)]
        place = found.advance(held, place)
        if found.ended or found.failed:
            break
        assert place == len(held) or held[place] == ","  # which is one too many, or not
    return found


def is_object(text: str) -> bool:
    def strange(_: str) -> None:
        raise ValueError

    try:
        return isinstance(json.loads(without_trailing_commas(text), parse_constant=strange), dict)
    except ValueError:
        return False


def test_an_object_is_followed_as_far_as_it_is_one() -> None:
    draw = random.Random(1)
    wrong = 0
    for text in OBJECTS:
        assert followed(text, draw).ended
        for stop in range(len(text)):
            begun = followed(text[:stop], draw)
            assert not begun.ended
            assert not begun.failed
        for _ in range(1500):
            place = draw.randrange(len(text))
            more = draw.choice(['"', "\\", "{", "}", "[", "]", ",", ":", "0", "1", "-", ".", "e", "t", " ", "\n", ""])
            other = text[:place] + more + text[place + draw.randint(0, 1) :]
            found = IncrementalObject()
            stop = found.advance(other, 0)
            assert is_object(other) == (found.ended and not other[stop:].strip())
            wrong += found.failed
            if found.failed:  # nothing that could follow mends it
                assert not any(is_object(other[: stop + 1] + rest) for rest in ("}", '"}', "]}", "1}", ":1}"))
    assert wrong > 1000


def in_pieces(reader_of: Any, symbols: list[tuple[str, int | None]]) -> tuple[str, list[tuple[str, str]], bool]:
    """What is said, the calls, and whether one of them is broken."""
    reader = reader_of(streams=True)
    parts: list[Part] = [part for text, symbol in symbols for part in reader.push(text, symbol)] + reader.flush()
    calls: list[tuple[str, str]] = []
    for part in parts:
        if isinstance(part, ToolCall):
            calls.append((part.name, part.arguments))
        elif isinstance(part, Arguments):
            assert part.text
            calls[-1] = calls[-1][0], calls[-1][1] + part.text
    assert reader.broken or reader.calls == len(calls)
    return "".join(part for part in parts if isinstance(part, str)), calls, reader.broken


def whole(reader_of: Any, symbols: list[tuple[str, int | None]]) -> tuple[str, list[tuple[str, str]], bool]:
    reader = reader_of()
    parts = [part for text, symbol in symbols for part in reader.push(text, symbol)] + reader.flush()
    calls = [(part.name, part.arguments) for part in parts if isinstance(part, ToolCall)]
    return "".join(part for part in parts if isinstance(part, str)), calls, False


ARGUED = '{"city": "a </tool_call> [TOOL_CALLS] [ARGS] <｜tool▁call▁end｜> \\"q\\" \\\\ {\\u00e9", "days": 3 }'
FULL = f'{{"id": "a1B2c3D4e", "type": "function", "name": "weather", "arguments": {ARGUED}}}'
LAST = f'{{"arguments": {ARGUED}, "name": "weather"}}'
COMMAS = '{"city": "Ulm, , ]", "days": [1, 2 , ], "x": {"y": "\\"," ,\n} , }'
SLIPPED = f'{{"name": "weather", "parameters": {COMMAS} ,}}'
LISTED = f'[{FULL}, {{"name": "clock", "arguments": {{}}, "id": "x"}}, {LAST}, {CALL}]'
OF_LLAMA = '{"name": "clock", "parameters": {}}'
BEGIN, END = "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>", "<｜tool▁call▁end｜><｜tool▁calls▁end｜>"
NEXT = "<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>"


@pytest.mark.parametrize(
    ("template", "text", "count"),
    [
        (HERMES, f"Well. <tool_call>\n{FULL}\n</tool_call>\n<tool_call>{CALL}</tool_call>", 2),
        (HERMES, f"<tool_call>{LAST}</tool_call> so", 1),
        (HERMES, f"<tool_call>\n{FULL}\n</tool_", 1),
        (MISTRAL, f"[TOOL_CALLS] {LISTED}", 4),
        (LLAMA, f'{OF_LLAMA}; {{"name": "weather", "parameters": {ARGUED}}}', 2),
        (LLAMA, f"<|python_tag|>{OF_LLAMA}", 1),
        (DEVSTRAL, f"I[TOOL_CALLS]weather[ARGS]{ARGUED}", 1),
        (SMALL, f"[TOOL_CALLS]weather[CALL_ID]a1B2c3D4e[ARGS] {ARGUED}", 1),
        (V3, f"{BEGIN}function<｜tool▁sep｜>weather\n```json\n{ARGUED}\n```{END}", 1),
        (V31, f"{BEGIN}weather<｜tool▁sep｜>{ARGUED}{NEXT}clock<｜tool▁sep｜>{{}}{END}", 2),
        (CODER, CODED.format("Ulm"), 1),
        (HERMES, f"<tool_call>{SLIPPED}<tool_call>\n{SLIPPED}", 2),
        (HERMES, '<tool_call>{"name": "clock", "arguments": "{\\"n\\": [1,]}"}</tool_call>', 1),
        (LLAMA, f"Look: {SLIPPED}, {SLIPPED}; and `{SLIPPED}` {{1}}", 2),
        (MISTRAL, f"[TOOL_CALLS]{SLIPPED} so", 1),
        (MISTRAL, f"[TOOL_CALLS] [{SLIPPED}, {SLIPPED} ,] so", 2),
        (MISTRAL, f"[TOOL_CALLS]weather{COMMAS} so", 1),
        (CODER, f"Well, {BARE}{BARE}", 2),
        (HERMES, "<tool_call>{}</tool_call>", 0),
        (HERMES, f"<tool_call>{CALL.replace('weather', 'wheather')}</tool_call>", 0),
    ],
)
def test_arguments_in_pieces_are_those_that_come_whole(
    codec: TokenizerCodec, template: str, text: str, count: int
) -> None:
    tools = Toolbox(codec, template, TOOLS)
    marks = {mark: codec.token_id(mark) or 0 for mark in ("[TOOL_CALLS]", "<|python_tag|>") if mark in template}
    for seed in range(20):
        symbols = cut(text, seed, marks)
        found = in_pieces(tools.reader, symbols)
        assert found == whole(tools.reader, symbols)
        assert len(found[1]) == count


FRAGMENTS = (
    CALL,
    SLIPPED,
    COMMAS,
    BARE,
    CODED.format("Ulm"),
    "weather",
    "clock",
    "text",
    "<tool_call>",
    "</tool_call>",
)
FRAGMENTS += (
    "[TOOL_CALLS]",
    "<|python_tag|>",
    "[ARGS]",
    "[CALL_ID]a1B2c3D4e",
    "<function=",
    "</function>",
    "</parameter>",
)
FRAGMENTS += (
    '{"name": "clock", ',
    '"arguments": ',
    '"parameters": {"n": 1,}',
    "```",
    "<parameter=days>\n",
    *'{}[]",;:\\` \n',
)


def test_whatever_is_written_pieces_and_whole_agree(codec: TokenizerCodec) -> None:
    """And neither hangs on how a text is cut, unless a call broke off that was handed over."""
    draw, calls = random.Random(3), 0
    boxes = {template: Toolbox(codec, template, TOOLS) for template in (HERMES, LLAMA, MISTRAL, DEVSTRAL, SMALL, CODER)}
    for _ in range(300):
        template = draw.choice(list(boxes))
        text = "".join(draw.choice(FRAGMENTS) for _ in range(draw.randint(1, 9)))
        marks = {mark: codec.token_id(mark) or 0 for mark in ("[TOOL_CALLS]", "<|python_tag|>") if mark in template}
        found = [whole(boxes[template].reader, cut(text, seed, marks)) for seed in range(3)]
        assert found[0] == found[1] == found[2]
        pieces = in_pieces(boxes[template].reader, cut(text, 4, marks))
        assert pieces[2] or pieces == found[0]
        calls += len(found[0][1])
    assert calls > 10


def test_an_id_that_the_model_gives_is_kept(codec: TokenizerCodec) -> None:
    for template, text in ((HERMES, f"<tool_call>{FULL}"), (SMALL, "[TOOL_CALLS]weather[CALL_ID]a1B2c3D4e[ARGS]{")):
        reader = Toolbox(codec, template, TOOLS).reader(streams=True)
        assert reader is not None
        marks = {"[TOOL_CALLS]": codec.token_id("[TOOL_CALLS]") or 0} if template == SMALL else {}
        found = [part for piece, symbol in cut(text, 1, marks) for part in reader.push(piece, symbol)]
        assert [part.id for part in found if isinstance(part, ToolCall)] == ["a1B2c3D4e"]


def test_a_piece_is_handed_over_at_once(codec: TokenizerCodec) -> None:
    """Nothing of a call is held back once its arguments have begun, but commas, which may be one too many."""
    reader = Toolbox(codec, HERMES, TOOLS).reader(streams=True)
    assert reader is not None
    assert reader.push('<tool_call>\n{"name": "weather", "arguments": ') == []
    first, brace = reader.push("{")
    assert isinstance(first, ToolCall)
    assert (first.name, first.arguments, brace) == ("weather", "", Arguments("{"))
    waiting = ""
    for character in ARGUED[1:]:
        new, waiting = waiting + character, ""
        if new in (",", ", "):
            waiting, new = new, ""
        assert reader.push(character) == ([Arguments(new)] if new else [])
    assert reader.push("}\n</tool_call>") == []
    assert (reader.calls, reader.broken) == (1, False)


@pytest.mark.parametrize(
    ("template", "text", "said", "calls"),
    [  # the text ends
        (HERMES, '<tool_call>{"name": "weather", "arguments": {"city": "Ul', "", ['{"city": "Ul']),
        (HERMES, '<tool_call>{"name": "weather", "arguments": {"city": "Ulm"} ', "", ['{"city": "Ulm"}']),
        (MISTRAL, f'[TOOL_CALLS] [{CALL}, {{"name": "clock", "arguments": {{', "", ['{"city": "Ulm"}', "{"]),
        (DEVSTRAL, '[TOOL_CALLS]weather[ARGS]{"city": "\\u00', "", ['{"city": "\\u00']),
        (V31, '<｜tool▁call▁begin｜>weather<｜tool▁sep｜>{"days": 1', "", ['{"days": 1']),
        # what comes is no JSON, or no call
        (HERMES, '<tool_call>{"name": "weather", "arguments": {"city": Ulm}}</tool_call>', None, ['{"city": ']),
        (HERMES, f"x <tool_call>{CALL[:-1]}, 1}}</tool_call> y", "x, 1}</tool_call> y", ['{"city": "Ulm"}']),
        (HERMES, f"<tool_call>{CALL} and</tool_call>", "} and</tool_call>", ['{"city": "Ulm"}']),
        (HERMES, '<tool_call>{"name": "clock", "arguments": {"n": 1e999}}</tool_call>', None, ['{"n": 1e999}']),
        (MISTRAL, f"[TOOL_CALLS] [{CALL}, 1] so", "}, 1] so", ['{"city": "Ulm"}']),
        (LLAMA, '{"name": "clock", "parameters": {}, "more": 1} so', ', "more": 1} so', ["{}"]),
    ],
)
def test_a_call_that_breaks_stays_a_part(
    codec: TokenizerCodec, template: str, text: str, said: str | None, calls: list[str]
) -> None:
    """Whole, it is text; in pieces, what was handed over cannot be taken back."""
    tools = Toolbox(codec, template, TOOLS)
    marks = {mark: codec.token_id(mark) or 0 for mark in ("[TOOL_CALLS]", "<|python_tag|>") if mark in template}
    rest = text[text.index(calls[-1]) + len(calls[-1]) :] if said is None else said
    for seed in range(20):
        symbols = cut(text, seed, marks)
        found, told, broken = in_pieces(tools.reader, symbols)
        assert (found, [arguments for _, arguments in told], broken) == (rest, calls, True)
        assert whole(tools.reader, symbols)[1] == []


def test_a_name_that_is_said_again_behind_the_arguments(codec: TokenizerCodec) -> None:
    text = f'<tool_call>{CALL[:-1]}, "name": "clock"}}</tool_call>'
    tools = Toolbox(codec, HERMES, TOOLS)
    assert whole(tools.reader, [(text, None)]) == ("", [("clock", '{"city": "Ulm"}')], False)
    rest = ', "name": "clock"}</tool_call>'
    assert in_pieces(tools.reader, cut(text, 1, {})) == (rest, [("weather", '{"city": "Ulm"}')], True)


def test_after_a_broken_call_others_are_read(codec: TokenizerCodec) -> None:
    text = f'<tool_call>{{"name": "clock", "arguments": {{now}}}}</tool_call> or <tool_call>{CALL}</tool_call>'
    tools = Toolbox(codec, HERMES, TOOLS)
    for seed in range(20):
        said, calls, broken = in_pieces(tools.reader, cut(text, seed, {}))
        assert (said, calls) == ("now}}</tool_call> or", [("clock", "{"), ("weather", '{"city": "Ulm"}')])
        assert broken


def test_a_list_that_may_hold_one_call_is_judged_whole(codec: TokenizerCodec) -> None:
    tools = Toolbox(codec, MISTRAL, TOOLS, parallel=False)
    marks = {"[TOOL_CALLS]": codec.token_id("[TOOL_CALLS]") or 0}
    for text in (f"[TOOL_CALLS] [{CALL}, {CALL}]", f"[TOOL_CALLS] [{CALL}]"):
        assert in_pieces(tools.reader, cut(text, 1, marks)) == whole(tools.reader, cut(text, 1, marks))


TEMPLATE = "{# tools <tool_call> #}{{ messages[-1].content }}"


@pytest.fixture
def parrot(tmp_path: Path) -> ReadyModel:
    """What it is asked is what it answers, a byte a step."""
    folder = echo_model(tmp_path, context=900)
    Usage(template=TEMPLATE).save(folder)
    spelling = train_codec("byte", ["any"], special=SPECIAL)
    return ready(folder, "parrot", Script(spell=lambda id: spelling.decode([id])))


def asked(text: str, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], "tools": TOOLS, **more}


def test_a_stream_of_calls(parrot: ReadyModel) -> None:
    text = f"Look: <tool_call>\n{FULL.replace('é', 'e')}\n</tool_call><tool_call>{CALL}</tool_call>".replace("▁", "_")
    text = text.encode("ascii", "ignore").decode()
    with asking(parrot) as client:
        alone = client.post(CHAT, json=asked(text)).json()["choices"][0]
        told = [part["choices"][0] for part in events(client.post(CHAT, json=asked(text, stream=True)).text)]
    new = [call for part in told for call in part["delta"].get("tool_calls", ())]
    firsts = [call for call in new if "id" in call]
    assert [(call["index"], call["type"], call["function"]) for call in firsts] == [
        (0, "function", {"arguments": "", "name": "weather"}),
        (1, "function", {"arguments": "", "name": "weather"}),
    ]
    assert all(call.keys() == {"index", "function"} for call in new if call not in firsts)
    assert all(call["function"].keys() == {"arguments"} for call in new if call not in firsts)
    for index, call in enumerate(alone["message"]["tool_calls"]):
        pieces = [each["function"]["arguments"] for each in new if each["index"] == index]
        assert len(pieces) > 10
        assert "".join(pieces) == call["function"]["arguments"]
    assert "".join(part["delta"].get("content", "") for part in told) == alone["message"]["content"] == "Look:"
    assert told[-1]["finish_reason"] == alone["finish_reason"] == "tool_calls"


def test_how_a_stream_with_a_broken_call_ends(parrot: ReadyModel) -> None:
    text = f'<tool_call>{CALL}</tool_call><tool_call>{{"name": "weather", "arguments": {{"city": "Ul'
    with asking(parrot) as client:
        told = [part["choices"][0] for part in events(client.post(CHAT, json=asked(text, stream=True)).text)]
        alone = client.post(CHAT, json=asked(text)).json()["choices"][0]
    assert told[-1]["finish_reason"] == "stop"
    assert alone["finish_reason"] == "tool_calls"
    assert len(alone["message"]["tool_calls"]) == 1
    assert alone["message"]["content"] == text[text.rindex("<tool_call>") :]


def test_the_openai_package_puts_calls_together(parrot: ReadyModel) -> None:
    text = f'Yes. <tool_call>\n{CALL[:-2]}, "days": 3}}}}\n</tool_call><tool_call>{CALL}</tool_call>'
    given: Any = {"model": "parrot", "messages": [{"role": "user", "content": text}]}
    strict: Any = [{**WEATHER, "function": {**WEATHER["function"], "strict": True}}]  # type: ignore[dict-item]
    with (
        server(Resident([parrot]), ServerSettings(log=False)) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
    ):
        with client.chat.completions.stream(**given, tools=strict) as stream:
            kinds = [event.type for event in stream]
            message = stream.get_final_completion().choices[0].message
        wanted = client.chat.completions.create(**given, tools=TOOLS).choices[0].message
    assert kinds.count("tool_calls.function.arguments.delta") > 20
    assert kinds.count("tool_calls.function.arguments.done") == 2
    assert message.content == wanted.content == "Yes."
    assert message.tool_calls is not None
    assert wanted.tool_calls is not None
    for found, call in zip(message.tool_calls, wanted.tool_calls, strict=True):
        assert (found.function.name, found.function.arguments) == (call.function.name, call.function.arguments)
        assert found.id.startswith("call_")
    assert message.tool_calls[0].function.parsed_arguments == {"city": "Ulm", "days": 3}
