"""Calls of tools: what is read of what models write, in pieces of any size, and what models are held to."""

from __future__ import annotations

import json
import random
import re
from typing import Any

import numpy as np
import pytest

from headway.codecs import TokenizerCodec, train_codec
from headway.codecs.chat_template import ChatTemplate
from headway.errors import UserError
from headway.serve.tool_calls import ToolCall, ToolCallParser
from headway.serve.tools import Toolbox, arranged_messages, format_of, template_messages

HERMES = "{% if tools %}{{ tools }}<tool_call>{% endif %}"
LLAMA = '{% if tools %}{{ tools }}{"name": , "parameters": }<|python_tag|>{% endif %}'
MISTRAL = "{% if tools %}{{ tools }}[TOOL_CALLS]{% endif %}"
# As the published templates write an earlier call, without what stands around it.
DEVSTRAL = (
    "{% if tools %}[AVAILABLE_TOOLS]{{ tools | tojson }}[/AVAILABLE_TOOLS]{% endif %}{% for c in message.tool_calls %}"
    "{{- '[TOOL_CALLS]' + c.function.name + '[ARGS]' + c.function.arguments | tojson }}{% endfor %}"
)
SMALL = DEVSTRAL.replace("'[ARGS]'", "'[CALL_ID]' + c.id + '[ARGS]'")
CODER = (
    "{% if tools %}{{ tools }}{% endif %}{% for c in message.tool_calls %}{{- '\\n<tool_call>\\n<function=' + c.name + "
    "'>\\n' }}{% for name, value in c.arguments | items %}{{- '<parameter=' + name + '>\\n' }}{{ value }}"
    "{{- '\\n</parameter>\\n' }}{% endfor %}{{- '</function>\\n</tool_call>' }}{% endfor %}"
)
V3 = (
    "{% for tool in message['tool_calls'] %}{{'<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>' + tool['type'] + "
    "'<｜tool▁sep｜>' + tool['function']['name'] + '\\n' + '```json' + '\\n' + tool['function']['arguments'] + '\\n' + "
    "'```' + '<｜tool▁call▁end｜>'}}{% endfor %}{{'<｜tool▁calls▁end｜>'}}"
)
V31 = (
    "{% for tool in message['tool_calls'] %}{{'<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>'+ tool['function']['name']"
    " + '<｜tool▁sep｜>' + tool['function']['arguments'] + '<｜tool▁call▁end｜>'}}{% endfor %}"
    "{{'<｜tool▁calls▁end｜>'}}"
)
# As the published templates write an earlier call.
GLM45 = (
    "{% if tools %}{{ tools }}{% endif %}{% for c in m.tool_calls %}{{ '\\n<tool_call>' + c.name }}"
    "{% for k, v in c.arguments.items() %}<arg_key>{{ k }}</arg_key>\n<arg_value>{{ v }}</arg_value>{% endfor %}"
    "</tool_call>{% endfor %}"
)
GLM4 = "{% if tools %}{{ tools }}{% endif %}{% if role == 'observation' %}<|observation|>{% endif %}{{ metadata }}"
FUNCTION_GEMMA = "{% if tools %}{{ tools }}{% endif %}<start_function_call>call:{{ name }}<end_function_call>"
GEMMA4 = "{% if tools %}{{ tools }}{% endif %}<|tool_call>call:{{ name }}<tool_call|>"
GEMMA3 = "{% if tools %}Call them in ```tool_code blocks: {{ tools }}{% endif %}"
GRANITE = "{% if tools %}{{ tools }}{% endif %}<|tool_call|>{{ calls | tojson }}"
PHI4 = "{% if tools %}{{ tools }}{% endif %}<|tool_call|>{{ calls | tojson }}<|/tool_call|>"
COMMAND = '{% if tools %}{{ tools }}{% endif %}Action: ```json [{"tool_name": 1}]```'
COMMAND_A = '{% if tools %}{{ tools }}{% endif %}<|START_ACTION|>[{"tool_name": 1}]<|END_ACTION|>'
OSS = "{% if tools %}{{ tools }}{% endif %}<|start|>assistant to=functions.x<|channel|>commentary json<|message|>"
CITY = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 9}, "days": {"type": "integer", "minimum": 1, "maximum": 5}},
    "required": ["city"],
    "additionalProperties": False,
}
WEATHER = {"type": "function", "function": {"name": "weather", "description": "The weather.", "parameters": CITY}}
CLOCK = {"type": "function", "function": {"name": "clock"}}
TOOLS = [WEATHER, CLOCK]


@pytest.fixture(scope="module")
def codec() -> TokenizerCodec:
    return train_codec("byte", ["any"], special=("<|end|>", "[TOOL_CALLS]", "<|python_tag|>", "<|endoftext|>"))


def read(reader: ToolCallParser, symbols: list[tuple[str, int | None]]) -> tuple[str, list[tuple[str, Any]]]:
    """The text and the calls of an answer."""
    parts = [part for text, symbol in symbols for part in reader.push(text, symbol)] + reader.flush()
    said = "".join(part for part in parts if isinstance(part, str))
    return said, [(part.name, json.loads(part.arguments)) for part in parts if isinstance(part, ToolCall)]


def cut(text: str, seed: int, marks: dict[str, int]) -> list[tuple[str, int | None]]:
    """A text in pieces, as symbols complete them; marks are special symbols, which show none, where they come first."""
    draw, found, marks = random.Random(seed), [], dict(marks)
    while text:
        mark = next((mark for mark in marks if text.startswith(mark)), None)
        if mark is not None:
            found.append(("", marks.pop(mark)))
            text = text[len(mark) :]
            continue
        length = min([draw.randint(0, 7), *(text.find(mark) for mark in marks if mark in text)])
        found.append((text[:length], None))
        text = text[length:]
    return found


CALL = '{"name": "weather", "arguments": {"city": "Ulm"}}'
ULM = ("weather", {"city": "Ulm"})
TRAP = 'a </tool_call> <tool_call> [TOOL_CALLS] "quoted" \\ {'
NOW = ("clock", {})
ARGUED = json.dumps({"city": f"{TRAP} [ARGS] <｜tool▁call▁end｜> <｜tool▁sep｜>"}, ensure_ascii=False)
TRAPS = ("weather", json.loads(ARGUED))
CODED = "<tool_call>\n<function=weather>\n<parameter=city>\n{}\n</parameter>\n</function>\n</tool_call>"
TAGS = "a </parameter> or\n</parameter>\n and </function> </tool_call> and <parameter=days>\n"
DAYS = "<parameter=days>\n3\n</parameter>\n"
BARE = "<function=weather>\n<parameter=city>\nUlm\n</parameter>\n</function>"
LAST = '{"arguments": {"city": "Ulm"}, "name": "weather"}'
FOR_DAYS = ("weather", {"city": "Ulm", "days": 3})
BEGIN, END = "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>", "<｜tool▁call▁end｜><｜tool▁calls▁end｜>"
NEXT, FENCED = "<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>", "function<｜tool▁sep｜>clock\n```json\n{}\n```"
GLM_CITY = "<arg_key>city</arg_key>\n<arg_value>{}</arg_value>\n"
GLM_DAYS = "<arg_key>days</arg_key>\n<arg_value>3</arg_value>\n"
GLM_TAGS = "a </arg_value> <arg_value> {\n"
BRACES = "{city:<escape>Ulm<escape>,days:3}"
NESTED = ("weather", {"city": [{"a": True, "b": ""}, -1500.0]})
COHERE = '{"tool_call_id": "0", "tool_name": "weather", "parameters": {"city": "Ulm"}}'
TRAPPED = json.dumps({"name": "weather", "arguments": {"city": TRAP}})


@pytest.mark.parametrize(
    ("template", "text", "said", "calls"),
    [
        (HERMES, f"<tool_call>\n{CALL}\n</tool_call>", "", [ULM]),
        (HERMES, f"Let me see.\n<tool_call>{CALL}</tool_call>\n", "Let me see.", [ULM]),
        (HERMES, f"<tool_call>\n{CALL}\n</tool_call>\n<tool_call>\n{CALL}\n</tool_call>", "", [ULM, ULM]),
        (HERMES, f"<tool_call>{TRAPPED}</tool_call> so", " so", [("weather", {"city": TRAP})]),
        (HERMES, f"<tool_call>{CALL}", "", [ULM]),
        (HERMES, f"<tool_call>{CALL}</tool_", "", [ULM]),
        (HERMES, " a <tool b <tool_call c\n ", " a <tool b <tool_call c\n ", []),
        (HERMES, f"<tool_call>{CALL[:-1]}", f"<tool_call>{CALL[:-1]}", []),
        (HERMES, f"x\n<tool_call>{CALL} y</tool_call>", f"x\n<tool_call>{CALL} y</tool_call>", []),
        (HERMES, f"<tool_call> no <tool_call>{CALL}</tool_call>", "<tool_call> no", [ULM]),
        (HERMES, f"<tool_call>{CALL.replace('weather', 'wheather')}</tool_call>", None, []),
        (HERMES, '<tool_call>{"name": "weather", "arguments": "Ulm"}</tool_call>', None, []),
        (HERMES, '<tool_call>{"name": "weather"}</tool_call>', None, []),
        (HERMES, '<tool_call>{"a": 1}</tool_call>', None, []),
        (HERMES, "<tool_call>" + '{"name": ' + "[" * 5000, None, []),
        (MISTRAL, f"[TOOL_CALLS] [{CALL}, {CALL}]", "", [ULM, ULM]),
        (MISTRAL, f"I see [TOOL_CALLS][{TRAPPED}]", "I see", [("weather", {"city": TRAP})]),
        (MISTRAL, f"[TOOL_CALLS] [{CALL}, 1]", f" [{CALL}, 1]", []),
        (MISTRAL, f"[TOOL_CALLS] [{CALL}, ", f" [{CALL}, ", []),
        (MISTRAL, "a [1] b", "a [1] b", []),
        (LLAMA, '{"name": "weather", "parameters": {"city": "Ulm"}}', "", [ULM]),
        (LLAMA, '<|python_tag|>{"type": "function", "name": "weather", "parameters": {"city": "Ulm"}}', "", [ULM]),
        (LLAMA, '{"name": "clock", "parameters": {}}; {"name": "clock", "parameters": {}}', "", [("clock", {})] * 2),
        (LLAMA, ' {"answer": 42} and more ', ' {"answer": 42} and more ', []),
        (LLAMA, 'Yes: {"name": "clock", "parameters": {}}', "Yes:", [NOW]),
        # What models slip into, as vLLM's tests list it.
        (HERMES, f"<tool_call>{CALL.replace('arguments', 'parameters')}</tool_call>", "", [ULM]),
        (HERMES, '<tool_call>{"name": "weather", "arguments": "{\\"city\\": \\"Ulm\\",}"}</tool_call>', "", [ULM]),
        (HERMES, '<tool_call>{"name": "weather", "arguments": {"city": "Ulm", } ,\n}</tool_call>', "", [ULM]),
        (HERMES, f"<tool_call>\n{CALL}\n<tool_call>\n{CALL}\n", "", [ULM, ULM]),
        (HERMES, '<tool_call>{"name": "clock", "arguments": {,}}</tool_call>', None, []),
        (HERMES, '<tool_call>{"name": "clock", "arguments": {}, "parameters": {}}</tool_call>', None, []),
        (LLAMA, f"{CALL}", "", [ULM]),
        (LLAMA, f"Here: {CALL}; {CALL} Is that all?", "Here: Is that all?", [ULM, ULM]),
        (LLAMA, f"{CALL}\n{CALL},{CALL}", "", [ULM] * 3),
        (LLAMA, f"{CALL} I used {{weather}} with {{'x': 1}}.", " I used {weather} with {'x': 1}.", [ULM]),
        (LLAMA, f'{CALL} The arguments were {{"city": "Ulm"}}', ' The arguments were {"city": "Ulm"}', [ULM]),
        (LLAMA, f"Hm.<|python_tag|>{CALL}", "Hm.", [ULM]),
        (LLAMA, '{"name": "clock", "parameters": {now}}', None, []),
        (LLAMA, '{"name": "clock"}', None, []),
        (LLAMA, '{"parameters": {}}', None, []),
        # Ordinary texts, of which none is a call.
        (LLAMA, f"Call it as `{CALL}`, or:\n```json\n{CALL}\n```\nDone.", None, []),
        (LLAMA, f'The list [{CALL}, {CALL}] and ("x": {CALL})'.replace("\\", ""), None, []),
        (LLAMA, 'As in {"tools": {"name": "clock", "parameters": {}}}', None, []),
        (LLAMA, "f(x) = {x, {name}} and {", None, []),
        (LLAMA, 'Yes: {"name": "Ann", "parameters": {}} {"name": "clock", "age": 3}', None, []),
        (MISTRAL, f"[TOOL_CALLS]{CALL}", "", [ULM]),
        (MISTRAL, '[TOOL_CALLS]weather{"city": "Ulm"} so', " so", [ULM]),
        (MISTRAL, '[TOOL_CALLS]weather[ARGS]{"city": "Ulm",}', "", [ULM]),
        (MISTRAL, f"[TOOL_CALLS] [{LAST}, {CALL},]\nextra", "\nextra", [ULM, ULM]),
        (MISTRAL, "[TOOL_CALLS]clock", "clock", []),
        (DEVSTRAL, f"hi{{hi[TOOL_CALLS] [{CALL}]", "hi{hi", [ULM]),
        (SMALL, '[TOOL_CALLS]weather{"city": "Ulm"}', "", [ULM]),
        (CODER, CODED.format("Ulm").replace("<tool_call>\n", ""), "", [ULM]),
        (CODER, f"So: {BARE}\n{BARE} and", "So: and", [ULM, ULM]),
        (CODER, f"<tool_call>{BARE}{CODED.format('Ulm')}", "", [ULM, ULM]),
        (CODER, f"<tool_call>\n{BARE}\n", "", [ULM]),
        (CODER, f"<tool_call><function=weather>\n<parameter=city>\nUlm\n{DAYS}</function></tool_call>", "", [FOR_DAYS]),
        (CODER, "<function=wheather>\n</function> and <function=", None, []),
        (CODER, "<function=weather\n</function>", None, []),
        (LLAMA, '<|python_tag|>brave.call("x")', 'brave.call("x")', []),
        (DEVSTRAL, '[TOOL_CALLS]weather[ARGS]{"city": "Ulm"}', "", [ULM]),
        (DEVSTRAL, f"I see[TOOL_CALLS]weather[ARGS]{ARGUED}", "I see", [TRAPS]),
        (DEVSTRAL, '[TOOL_CALLS]weather[ARGS]{"city": ', 'weather[ARGS]{"city": ', []),
        (DEVSTRAL, "[TOOL_CALLS]wheather[ARGS]{} so", "wheather[ARGS]{} so", []),
        (SMALL, '[TOOL_CALLS]weather[CALL_ID]a1B2c3D4e[ARGS]{"city": "Ulm"}', "", [ULM]),
        (CODER, CODED.format("Ulm"), "", [ULM]),
        (CODER, f"So:\n{CODED.format(TAGS)}\n{CODED.format('Ulm')}", "So:", [("weather", {"city": TAGS}), ULM]),
        (CODER, f"<tool_call>\n<function=weather>\n{DAYS}</function>\n</tool_call>", "", [("weather", {"days": 3})]),
        (CODER, "<tool_call>\n<function=clock>\n</function>\n", "", [NOW]),
        (CODER, "<tool_call>\n<function=clock>\nnow</function></tool_call>", None, []),
        (CODER, "<tool_call> the <function= mark", None, []),
        (V3, f"Yes.{BEGIN}function<｜tool▁sep｜>clock\n```json\n{{}}\n```{END}", "Yes.", [NOW]),
        (V3, f"{BEGIN}function<｜tool▁sep｜>weather\n```json\n{ARGUED}\n```{NEXT}{FENCED}{END}", "", [TRAPS, NOW]),
        (V31, f"{BEGIN}weather<｜tool▁sep｜>{ARGUED}{NEXT}clock<｜tool▁sep｜>{{}}{END}", "", [TRAPS, NOW]),
        (V31, "<｜tool▁call▁begin｜>weather<｜tool▁sep｜>[1]", None, []),
        (GLM45, f"<tool_call>weather\n{GLM_CITY.format('Ulm')}</tool_call>", "", [ULM]),
        (GLM45, f"So:\n<tool_call>weather\n{GLM_CITY.format('Ulm')}{GLM_DAYS}</tool_call>", "So:", [FOR_DAYS]),
        (GLM45, f"<tool_call>clock\n</tool_call>\n<tool_call>weather{GLM_CITY.format('Ulm')}", "", [NOW, ULM]),
        (GLM45, f"<tool_call>weather{GLM_CITY.format(GLM_TAGS)}</tool_call>", "", [("weather", {"city": GLM_TAGS})]),
        (GLM45, "<tool_call>wheather\n</tool_call>", None, []),
        (GLM45, "<tool_call>weather\nUlm</tool_call>", None, []),
        (GLM4, 'weather\n{"city": "Ulm"}', "", [ULM]),
        (GLM4, "\nclock\n{}", "", [NOW]),
        (GLM4, "weather\nis fine", None, []),
        (GLM4, "clocks are round", None, []),
        (GLM4, 'the clock\n{"a": 1}', None, []),
        (FUNCTION_GEMMA, f"<start_function_call>call:weather{BRACES}<end_function_call>", "", [FOR_DAYS]),
        (FUNCTION_GEMMA, "<start_function_call>call:clock{}<end_function_call>", "", [NOW]),
        (
            FUNCTION_GEMMA,
            "<start_function_call>call:weather{city:<escape>a}, {b<escape>}",
            "",
            [("weather", {"city": "a}, {b"})],
        ),
        (FUNCTION_GEMMA, "<start_function_call>call:weather{city:<escape>Ulm}<end_function_call>", None, []),
        (FUNCTION_GEMMA, "<start_function_call>call:wheather{}<end_function_call>", None, []),
        (GEMMA4, '<|tool_call>call:weather{city:<|"|>Ulm<|"|>,days:3}<tool_call|>', "", [FOR_DAYS]),
        (GEMMA4, '<|tool_call>call:weather{city:[{a:true,b:<|"|><|"|>}, -1.5e3]}<tool_call|>', "", [NESTED]),
        (GEMMA3, '```tool_code\nweather(city="Ulm", days=3)\n```', "", [FOR_DAYS]),
        (GEMMA3, "Now.\n```tool_code\nweather(city=')\\'')\n```\nDone.", "Now.\nDone.", [("weather", {"city": ")'"})]),
        (GEMMA3, "```tool_code\nweather(city=[{'a': true, 'b': ''}, -1.5e3])\n```", "", [NESTED]),
        (GEMMA3, "```tool_code\nclock()\n```", "", [NOW]),
        (GEMMA3, "```tool_code\nweather(city=open('x'))\n```", None, []),
        (GEMMA3, "```tool_code\nweather('Ulm')\n```", None, []),
        (GEMMA3, "```tool_code\nweather(**{'city': 1})\n```", None, []),
        (GEMMA3, "```tool_code\nprint(1)\n```", None, []),
        (GEMMA3, "```tool_code\nclock(" + "[" * 3000 + "]" * 3000 + ")\n```", None, []),
        (GRANITE, f"<|tool_call|>[{CALL}, {CALL}]", "", [ULM, ULM]),
        (PHI4, f"<|tool_call|>[{CALL}]<|/tool_call|>", "", [ULM]),
        (COMMAND, f"Plan.\nAction: ```json\n[\n    {COHERE}\n]```", "Plan.", [ULM]),
        (COMMAND_A, f"<|START_ACTION|>[\n    {COHERE}\n]<|END_ACTION|>", "", [ULM]),
    ],
)
def test_calls_are_read_in_any_pieces(
    codec: TokenizerCodec, template: str, text: str, said: str | None, calls: list[Any]
) -> None:
    tools = Toolbox(codec, template, TOOLS)
    marks = {mark: codec.token_id(mark) or 0 for mark in ("[TOOL_CALLS]", "<|python_tag|>") if mark in template}
    for seed in range(20):
        reader = tools.reader()
        assert reader is not None
        assert read(reader, cut(text, seed, marks)) == (text if said is None else said, calls)


def test_each_call_of_mistrals_may_have_its_mark(codec: TokenizerCodec) -> None:
    mark = codec.token_id("[TOOL_CALLS]") or 0
    reader = Toolbox(codec, MISTRAL, TOOLS).reader()
    assert reader is not None
    symbols = [
        ("", mark),
        ('weather{"city": "Ulm"}', None),
        ("", mark),
        ("clock{}", None),
        ("", mark),
        (f"[{CALL}]", None),
    ]
    assert read(reader, symbols) == ("", [ULM, NOW, ULM])


def test_an_answer_that_is_held_to_a_rule_makes_no_slips(codec: TokenizerCodec) -> None:
    """Arguments of a strict tool are held to its schema, and those in the middle of a text were not."""
    strict = [{**WEATHER, "function": {**WEATHER["function"], "strict": True}}]  # type: ignore[dict-item]
    reader = Toolbox(codec, LLAMA, strict).reader()
    assert reader is not None
    assert read(reader, [(f"Yes: {CALL}", None)]) == (f"Yes: {CALL}", [])


def test_values_of_coders_are_of_the_types_that_the_schema_allows(codec: TokenizerCodec) -> None:
    null, place = {"type": "null"}, {"$ref": "#/$defs/Place"}
    kinds: dict[str, Any] = {
        "count": {"anyOf": [{"type": "integer"}, null], "default": 5},
        "name": {"anyOf": [{"type": "string"}, null]},
        "none": {"type": ["string", "null"]},
        "either": {"anyOf": [{"type": "string"}, {"type": "integer"}]},
        "many": {"oneOf": [{"type": "array"}, null]},
        "place": place,
        "places": {"anyOf": [place, null]},
        "sure": {"type": ["boolean", "integer"]},
        "odd": {"type": "integer"},
        "loop": {"$ref": "#/$defs/Loop"},
        "other": {},
    }
    given = {"count": "5", "name": "5", "none": "null", "either": "5", "many": '["a",]', "place": '{"x": 1}'}
    given |= {"places": '{"x": 1}', "sure": "True", "odd": "five", "loop": "5", "other": "5"}
    wanted = {**given, "count": 5, "none": None, "many": ["a"], "place": {"x": 1}, "places": {"x": 1}, "sure": True}
    schema = {
        "type": "object",
        "properties": kinds,
        "$defs": {"Place": {"type": "object"}, "Loop": {"$ref": "#/$defs/Loop"}},
    }
    tool = {"type": "function", "function": {"name": "f", "parameters": schema}}
    reader = Toolbox(codec, CODER, [tool]).reader()
    assert reader is not None
    values = "".join(f"<parameter={name}>\n{value}\n</parameter>\n" for name, value in given.items())
    text = f"<tool_call>\n<function=f>\n{values}</function>\n</tool_call>"
    assert read(reader, [(text, None)]) == ("", [("f", wanted)])


def test_marks_that_are_special_symbols_are_so_alone() -> None:
    """Several calls, and the same marks as texts, which are data."""
    special = ("[TOOL_CALLS]", "[ARGS]", "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>")
    codec = train_codec("byte", ["any"], special=("<|end|>", *special))
    for template, calls in (
        (DEVSTRAL, [["[TOOL_CALLS]", "weather", "[ARGS]", ARGUED], ["[TOOL_CALLS]", "clock", "[ARGS]", "{}"]]),
        (
            V31,
            [[special[2], name, special[3], said, special[4]] for name, said in (("weather", ARGUED), ("clock", "{}"))],
        ),
        (V3, [[special[2], "function", special[3], "clock\n```json\n{}\n```", special[4]]]),
    ):
        tools = Toolbox(codec, template, TOOLS)
        reader = tools.reader()
        assert reader is not None
        pieces = ["The [TOOL_CALLS] and <｜tool▁call▁begin｜>.", *(part for call in calls for part in call)]
        symbols = [("", codec.token_id(part)) if part in special else (part, None) for part in pieces]
        wanted = [TRAPS, NOW][-len(calls) :]
        assert read(reader, symbols) == ("The [TOOL_CALLS] and <｜tool▁call▁begin｜>.", wanted)


def test_no_more_is_held_back_than_may_be_a_mark(codec: TokenizerCodec) -> None:
    reader = Toolbox(codec, HERMES, TOOLS).reader()
    assert reader is not None
    assert reader.push("Hello <") == ["Hello"]
    assert reader.push("b") == [" <b"]
    assert reader.push(" <tool_call") == []
    assert reader.push("s>") == [" <tool_calls>"]
    assert reader.push("<tool_call>x") == ["<tool_call>", "x"]  # no object: at once


def test_one_call_where_more_are_not_wanted(codec: TokenizerCodec) -> None:
    reader = Toolbox(codec, HERMES, TOOLS, parallel=False).reader()
    assert reader is not None
    assert [type(part) for part in reader.push(f"<tool_call>{CALL}</tool_call>")] == [ToolCall]
    assert reader.full
    assert reader.push(f"<tool_call>{CALL}</tool_call>") == [f"<tool_call>{CALL}</tool_call>"]


def walk(codec: TokenizerCodec, tools: Toolbox, seed: int) -> list[int] | None:
    """Random symbols that the rule allows, until one ends; None where none did."""
    draw, ids = random.Random(seed), []
    make = tools.rule()
    assert make is not None
    rule, mask = make(), np.zeros(-(-codec.vocab_size // 32), np.int32)
    for _ in range(500):
        rule.fill(mask)
        allowed = np.unpackbits(mask.view(np.uint8), bitorder="little").nonzero()[0]
        symbol = codec.eos_id if codec.eos_id in allowed and draw.random() < 0.5 else int(draw.choice(allowed))
        rule.take(symbol)
        if symbol == codec.eos_id:
            return ids
        ids.append(symbol)
    return None


NEW = [CODER, GLM45, GLM4, FUNCTION_GEMMA, GEMMA4, GEMMA3, GRANITE, PHI4, COMMAND, COMMAND_A]


@pytest.mark.parametrize("template", [HERMES, LLAMA, MISTRAL, DEVSTRAL, SMALL, V3, V31, *NEW])
@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
def test_a_call_that_is_required_comes(codec: TokenizerCodec, template: str, choice: Any) -> None:
    """What a model that knows nothing writes is a call that is read, with arguments of their schema."""
    tools = Toolbox(codec, template, TOOLS if choice != "required" else [WEATHER], choice)
    ended = 0
    for seed in range(12):
        ids = walk(codec, tools, seed)
        if ids is None:
            continue
        ended += 1
        reader = tools.reader()
        assert reader is not None
        stream = codec.stream()
        said, calls = read(reader, [(stream.push(symbol), symbol) for symbol in ids])
        assert said == ""
        assert calls
        for name, arguments in calls:
            assert name == "weather"
            assert {"city"} <= set(arguments) <= {"city", "days"}
            assert len(arguments["city"]) <= 9
            assert arguments.get("days", 1) in range(1, 6)
    assert ended >= 6


def allowed_to_end(codec: TokenizerCodec, tools: Toolbox, text: str) -> bool:
    make = tools.rule()
    assert make is not None
    rule, mask = make(), np.zeros(-(-codec.vocab_size // 32), np.int32)
    special = {mark: codec.token_id(mark) for mark in ("[TOOL_CALLS]", "<|python_tag|>")}
    try:
        for piece, symbol in cut(text, 0, {mark: i for mark, i in special.items() if i is not None}):
            for i in [symbol] if symbol is not None else codec.encode(piece):
                rule.take(i)
        rule.fill(mask)
    except UserError:
        return False
    end = codec.eos_id or 0
    return bool(mask[end // 32] >> end % 32 & 1)


@pytest.mark.parametrize(
    ("template", "before", "after", "key"),
    [
        (HERMES, "<tool_call>\n", "\n</tool_call>", "arguments"),
        (MISTRAL, "[TOOL_CALLS] [", "]", "arguments"),
        (LLAMA, "<|python_tag|>", "", "parameters"),
    ],
)
def test_strict_tools_are_held_to_where_a_call_is_free(
    codec: TokenizerCodec, template: str, before: str, after: str, key: str
) -> None:
    strict = {"type": "function", "function": {**WEATHER["function"], "strict": True}}  # type: ignore[dict-item]
    tools = Toolbox(codec, template, [strict])
    good, bad = (f'{before}{{"name": "weather", "{key}": {{"city": {city}}}}}{after}' for city in ('"Ulm"', "3"))
    assert allowed_to_end(codec, tools, "It rains.")
    assert allowed_to_end(codec, tools, good)
    assert not allowed_to_end(codec, tools, bad)
    assert not allowed_to_end(codec, tools, good[: len(good) - len(after) - 1])


@pytest.fixture(scope="module")
def tagged() -> TokenizerCodec:
    """A tokenizer in which the tags of new formats are special symbols."""
    tags = re.findall(r"</?(?:tool_call|arg_key|arg_value)>", " ".join(["<tool_call></tool_call>", GLM_CITY]))
    tags += ["<start_function_call>", "<end_function_call>", "<escape>", "<|tool_call|>", "<|/tool_call|>"]
    tags += ["<|START_ACTION|>", "<|END_ACTION|>", "<|assistant|>"]
    return train_codec("byte", ["any"], special=("<|end|>", *dict.fromkeys(tags), "<|endoftext|>"))


@pytest.mark.parametrize("template", [HERMES, GLM45, GLM4, FUNCTION_GEMMA, GRANITE, PHI4, COMMAND_A])
def test_tags_of_new_formats_may_be_special_symbols(tagged: TokenizerCodec, template: str) -> None:
    tools, ended = Toolbox(tagged, template, [WEATHER], "required"), 0
    for seed in range(12):
        ids = walk(tagged, tools, seed)
        reader, stream = tools.reader(), tagged.stream()
        assert reader is not None
        if ids is not None:
            said, calls = read(reader, [(stream.push(symbol), symbol) for symbol in ids])
            assert (said, {name for name, _ in calls}) == ("", {"weather"})
            assert all(len(arguments["city"]) <= 9 for _, arguments in calls)
            ended += 1
    assert ended >= 6


def test_a_later_call_of_glm_4_has_its_mark(tagged: TokenizerCodec) -> None:
    reader, mark = Toolbox(tagged, GLM4, TOOLS).reader(), tagged.token_id("<|assistant|>")
    assert reader is not None
    symbols = [("\nLet me see.", None), ("", mark), ('weather\n{"city": "Ulm"}', None), ("", mark), ("clock\n{}", None)]
    assert read(reader, symbols) == ("\nLet me see.", [ULM, NOW])


@pytest.mark.parametrize("template", NEW)
def test_strict_tools_of_all_formats_are_held_to(codec: TokenizerCodec, template: str) -> None:
    tool = {"type": "function", "function": {**WEATHER["function"], "strict": True}}  # type: ignore[dict-item]
    tools = Toolbox(codec, template, [tool])
    assert allowed_to_end(codec, tools, "It rains.")
    free = Toolbox(
        codec, template, [{"type": "function", "function": {**tool["function"], "strict": None}}], "required"
    )
    ids = next(ids for seed in range(50) if (ids := walk(codec, free, seed)) is not None)
    call = codec.decode(ids)
    assert "weather" in call
    assert allowed_to_end(codec, tools, call)
    assert not allowed_to_end(codec, Toolbox(codec, template, [tool], "required"), call.replace("weather", "wheather"))


@pytest.mark.parametrize("template", [CODER, GLM45, FUNCTION_GEMMA])
def test_plain_arguments_are_held_to_what_can_be_enforced(codec: TokenizerCodec, template: str) -> None:
    for member in ({"type": "string", "pattern": "a"}, {"type": "string", "format": "date"}, {"enum": ["a", 1]}):
        tool = {
            "type": "function",
            "function": {"name": "f", "parameters": {"type": "object", "properties": {"x": member}}},
        }
        with pytest.raises(UserError, match=r"'x', has .* cannot be enforced in this model's calls"):
            Toolbox(codec, template, [tool], "required").rule()
    odd = {"type": "object", "minProperties": 1}
    with pytest.raises(UserError, match="has 'minProperties'"):
        Toolbox(
            codec, template, [{"type": "function", "function": {"name": "f", "parameters": odd}}], "required"
        ).rule()


def test_free_and_forbidden_calls_have_no_rule(codec: TokenizerCodec) -> None:
    assert Toolbox(codec, HERMES, TOOLS).rule() is None
    none = Toolbox(codec, "no template", TOOLS, "none")
    assert (none.template_tools, none.rule(), none.reader()) == (None, None, None)


@pytest.mark.parametrize(
    ("tools", "choice", "said"),
    [
        ([], "auto", "send a list of 1 to 128"),
        ("weather", "auto", "send a list"),
        ([{"type": "retrieval"}], "auto", "tool 0 is not a function"),
        ([{"type": "function", "function": {"name": "a b"}}], "auto", "has the name 'a b'"),
        ([{"type": "function", "function": {"name": "a", "returns": {}}}], "auto", "the unknown field 'returns'"),
        ([{"type": "function", "function": {"name": "a", "parameters": {"type": "string"}}}], "auto", "not an object"),
        ([CLOCK, CLOCK], "auto", "two tools have the name 'clock'"),
        (TOOLS, "sometimes", "tool_choice is 'sometimes'"),
        (TOOLS, {"type": "allowed_tools"}, "use none, auto, required"),
        (TOOLS, {"type": "function", "function": {"name": "wether"}}, "did you mean 'weather'"),
    ],
)
def test_what_is_no_tool_is_refused(codec: TokenizerCodec, tools: Any, choice: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        Toolbox(codec, HERMES, tools, choice)


def test_a_schema_that_cannot_be_held_to_is_refused_by_the_tool(codec: TokenizerCodec) -> None:
    schema = {"type": "object", "properties": {"a": {"not": {"multipleOf": 3}}}}
    tool = {"type": "function", "function": {"name": "odd", "parameters": schema}}
    with pytest.raises(UserError, match="the tool 'odd' has a 'not'"):
        Toolbox(codec, HERMES, [tool], "required").rule()


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ messages }}", "does not support tools"),
        ("{{ tools }}", "in a format that is not supported"),
    ],
)
def test_other_formats_are_refused_by_name(codec: TokenizerCodec, template: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        format_of(codec, template)


def test_a_conversation_with_calls_goes_through_a_template(codec: TokenizerCodec) -> None:
    """As Qwen's templates write them: arguments are objects there, and texts in OpenAI's API."""
    template = ChatTemplate(
        "{% for t in tools %}{{ t | tojson }}\n{% endfor %}{% for m in messages %}{{ m.role }}: {{ m.content }}"
        '{% for c in m.tool_calls or [] %}<tool_call>\n{"name": "{{ c.function.name }}", "arguments": '
        "{{ c.function.arguments | tojson }}}\n</tool_call>{% endfor %}\n{% endfor %}"
    )
    call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Ulm"}'}}
    answer = {"role": "assistant", "content": None, "tool_calls": [call]}
    result = {"role": "tool", "tool_call_id": "call_1", "content": "rain"}
    text = template.render(template_messages([answer, result]), tools=Toolbox(codec, HERMES, TOOLS).template_tools)
    assert f"assistant: <tool_call>\n{CALL}\n</tool_call>tool: rain" in text
    assert '"name": "clock"' in text
    with pytest.raises(UserError, match="message 0 has a call with arguments"):
        template_messages([{**answer, "tool_calls": [{**call, "function": {"name": "weather", "arguments": "{"}}]}])


def test_earlier_calls_are_arranged_as_templates_read_them() -> None:
    def call(number: int) -> dict[str, Any]:
        return {"id": f"{number}", "type": "function", "function": {"name": f"f{number}", "arguments": {"x": number}}}

    question = {"role": "user", "content": "?"}
    both = {"role": "assistant", "content": "", "reasoning_content": "Hm.", "tool_calls": [call(1), call(2)]}
    outputs = [{"role": "tool", "tool_call_id": f"{number}", "content": f"o{number}"} for number in (1, 2)]
    answer = {"role": "assistant", "content": "!"}
    messages = [question, both, *outputs, answer]
    assert arranged_messages(messages, HERMES) == messages
    [_, first, second, third, fourth, _] = arranged_messages(messages, f"{OSS}{{{{ message.thinking }}}}")
    assert (first["tool_calls"], first["thinking"], third["tool_calls"]) == ([call(1)], "Hm.", [call(2)])
    assert [second, fourth] == outputs
    plain = [{key: value for key, value in message.items() if key != "reasoning_content"} for message in messages]
    assert arranged_messages(plain, GLM4) == [
        question,
        {"role": "assistant", "content": '{"x": 1}', "metadata": "f1"},
        {"role": "assistant", "content": '{"x": 2}', "metadata": "f2"},
        {"role": "observation", "tool_call_id": "1", "content": "o1"},
        {"role": "observation", "tool_call_id": "2", "content": "o2"},
        answer,
    ]
    spoken = {**both, "content": "Let me see."}
    assert "thinking" not in arranged_messages([spoken], f"{OSS}{{{{ message.thinking }}}}")[0]
    # What follows no call stays where it is.
    alone = [question, {"role": "tool", "content": "o"}, answer]
    assert arranged_messages(alone, OSS) == alone
