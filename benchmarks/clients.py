"""Clients that others wrote, against a live `headway serve` on loopback: the openai package, waiting and asynchronous,
at every endpoint that it has a word for, langchain-openai and litellm. A client's answer in parts must be its whole
answer.

    python benchmarks/clients.py

The server has stories260K with a chat template that tells of tools, all-MiniLM-L6-v2 and Whisper tiny.en.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else it asks the internet for prices when it is imported
import litellm
import openai
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings

import headway as hw
from live import MINILM, Options, Servers, models_beside, owner
from measure import data_folder, write

TEMPLATE = (
    "{{ bos_token }}{% if tools %}{% for tool in tools %}{{ tool.function.name }} {% endfor %}<tool_call>{% endif %}"
    "{% for message in messages %}{{ message.content }}\n{% endfor %}"
)
PROMPT, MESSAGES = "Once upon a time", [{"role": "user", "content": "Once upon a time"}]
FIXED = {"temperature": 0.8, "seed": 7, "max_tokens": 24}
CITY = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": ["Ulm", "Oslo"]}},
    "required": ["city"],
    "additionalProperties": False,
}
SOUND = "speech/pocketsphinx/cards-001.wav"
SAID = "10 of clubs."


@tool
def weather(city: Literal["Ulm", "Oslo"]) -> str:
    """The weather of a city."""
    return f"It is fine in {city}."


class Checks:
    """What each client got."""

    def __init__(self) -> None:
        self.found: dict[str, str] = {}

    def check(self, name: str, work: Callable[[], Any]) -> None:
        try:
            work()
            self.found[name] = "ok"
        except Exception as error:  # of a client: it is a result
            self.found[name] = f"{type(error).__name__}: {error}"[:400]
        print(name, self.found[name], flush=True)


def joined(parts: Iterator[Any], chat: bool) -> str:
    choices = [choice for part in parts for choice in part.choices]
    return "".join((choice.delta.content if chat else choice.text) or "" for choice in choices)


async def listed(parts: AsyncIterator[Any]) -> list[Any]:
    return [part async for part in parts]


def waiting(checks: Checks, client: openai.OpenAI) -> None:
    """The openai package, one request after the other."""

    def models() -> None:
        names = {model.id for model in client.models.list()}
        assert names == {"stories", "minilm", "whisper"}, names
        assert client.models.retrieve("minilm").id == "minilm"

    def completions() -> None:
        asked: dict[str, Any] = {"model": "stories", "prompt": PROMPT, **FIXED}
        whole = client.completions.create(**asked, logprobs=2)
        assert whole.usage is not None
        assert whole.usage.completion_tokens == 24
        assert joined(client.completions.create(**asked, stream=True), False) == whole.choices[0].text
        many = client.completions.create(**{**asked, "prompt": [PROMPT, "Lily"]}, n=2)
        assert [choice.index for choice in many.choices] == [0, 1, 2, 3]

    def chats() -> None:
        asked: dict[str, Any] = {"model": "stories", "messages": MESSAGES, **FIXED}
        whole = client.chat.completions.create(**asked, logprobs=True, top_logprobs=3)
        assert joined(client.chat.completions.create(**asked, stream=True), True) == whole.choices[0].message.content
        parts = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
        assert parts[-1].usage == whole.usage
        with client.chat.completions.stream(**asked) as events:
            told = [event.delta for event in events if event.type == "content.delta"]
        assert "".join(told) == whole.choices[0].message.content

    def going_on() -> None:
        begun: Any = [*MESSAGES, {"role": "assistant", "content": "there was a big"}]
        asked: dict[str, Any] = {"model": "stories", "temperature": 0, "max_tokens": 8}
        more = {"continue_final_message": True, "add_generation_prompt": False}
        found = client.chat.completions.create(**asked, messages=begun, extra_body=more)
        plain = client.completions.create(**asked, prompt=f"{PROMPT}\nthere was a big")
        assert found.choices[0].message.content == plain.choices[0].text
        assert found.system_fingerprint == plain.system_fingerprint

    def tools() -> None:
        function: Any = {"name": "weather", "parameters": CITY, "strict": True}
        asked: dict[str, Any] = {
            "model": "stories", "messages": MESSAGES, "seed": 3, "max_tokens": 300, "tool_choice": "required",
            "tools": [{"type": "function", "function": function}], "parallel_tool_calls": False,
        }  # fmt: skip
        whole = client.chat.completions.create(**asked).choices[0]
        with client.chat.completions.stream(**asked) as events:
            pieces = [event for event in events if event.type == "tool_calls.function.arguments.delta"]
            joined = events.get_final_completion().choices[0]
        assert joined.finish_reason == whole.finish_reason == "tool_calls", whole
        assert [call.function.arguments for call in joined.message.tool_calls or ()] == [
            call.function.arguments for call in whole.message.tool_calls or ()
        ]
        assert len(pieces) > 3

    def forms() -> None:
        schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"], "maxProperties": 1}
        schema["additionalProperties"] = False
        form = {"type": "json_schema", "json_schema": {"name": "number", "schema": schema, "strict": True}}
        asked: dict[str, Any] = {"model": "stories", "messages": MESSAGES, "max_tokens": 200, "response_format": form}
        found = client.chat.completions.create(**asked, seed=1).choices[0].message.content
        assert isinstance(json.loads(found or "")["n"], int)

    def embeddings() -> None:
        texts = ["A man is playing a guitar.", "The stock market fell today."]
        wanted = hw.load(MINILM).embed(texts)
        for form in ("float", openai.omit):  # the package itself asks for base64
            found = client.embeddings.create(model="minilm", input=texts, encoding_format=form)
            assert all(abs(a - b) < 1e-5 for row, own in zip(found.data, wanted) for a, b in zip(row.embedding, own))

    def sounds() -> None:
        with (data_folder() / SOUND).open("rb") as file:
            assert client.audio.transcriptions.create(model="whisper", file=file).text == SAID
        with (data_folder() / SOUND).open("rb") as file:
            asked: dict[str, Any] = {"response_format": "verbose_json", "timestamp_granularities": ["word"]}
            found = client.audio.transcriptions.create(model="whisper", file=file, **asked)
            assert " ".join(word.word.strip() for word in found.words) == SAID, found.words

    def refusals() -> None:
        for wanted, ask in (
            (openai.NotFoundError, lambda: client.models.retrieve("nothing")),
            (openai.BadRequestError, lambda: client.completions.create(model="stories", prompt="word " * 900)),
            (openai.AuthenticationError, lambda: client.with_options(api_key="wrong").models.list()),
        ):
            try:
                ask()
            except wanted:
                continue
            raise AssertionError(f"{wanted.__name__} was not raised")

    for work in (models, completions, chats, going_on, tools, forms, embeddings, sounds, refusals):
        checks.check(f"openai: {work.__name__}", work)


def at_once(checks: Checks, client: openai.AsyncOpenAI) -> None:
    """The openai package, many requests at once."""

    async def all_of_it() -> None:
        asked: dict[str, Any] = {"model": "stories", "messages": MESSAGES, **FIXED}
        text: dict[str, Any] = {"model": "stories", "prompt": PROMPT, **FIXED}
        alone = (await client.chat.completions.create(**asked)).choices[0].message.content
        together = await asyncio.gather(*(client.chat.completions.create(**asked) for _ in range(8)))
        assert {each.choices[0].message.content for each in together} == {alone}
        assert joined(iter(await listed(await client.chat.completions.create(**asked, stream=True))), True) == alone
        whole = (await client.completions.create(**text)).choices[0].text
        assert joined(iter(await listed(await client.completions.create(**text, stream=True))), False) == whole
        vectors = await asyncio.gather(*(client.embeddings.create(model="minilm", input=f"text {n}") for n in range(4)))
        assert all(len(each.data[0].embedding) == 384 for each in vectors)
        assert len([model async for model in client.models.list()]) == 3
        sound = ("a.wav", (data_folder() / SOUND).read_bytes())
        assert (await client.audio.transcriptions.create(model="whisper", file=sound)).text == SAID
        await client.close()

    checks.check("openai, asynchronous", lambda: asyncio.run(all_of_it()))


def langchain(checks: Checks, url: str, key: str) -> None:
    own: dict[str, Any] = {"base_url": url, "api_key": key, "model": "stories", **FIXED}

    def chat() -> None:
        model = ChatOpenAI(**own)
        whole = model.invoke("Once upon a time").content
        assert whole
        assert "".join(str(part.content) for part in model.stream("Once upon a time")) == whole
        assert asyncio.run(model.ainvoke("Once upon a time")).content == whole

    def tools() -> None:
        model = ChatOpenAI(**{**own, "max_tokens": 300}).bind_tools(
            [weather], tool_choice="weather", strict=True, parallel_tool_calls=False
        )
        found = model.invoke("Once upon a time").tool_calls
        assert [call["name"] for call in found] == ["weather"], found
        whole, *more = model.stream("Once upon a time")
        for part in more:
            whole += part
        assert [call["args"] for call in whole.tool_calls] == [call["args"] for call in found]
        assert weather.invoke(found[0]["args"]).startswith("It is fine in")

    def vectors() -> None:
        asked: dict[str, Any] = {"base_url": url, "api_key": key, "model": "minilm"}
        found = OpenAIEmbeddings(**asked, check_embedding_ctx_length=False).embed_documents(["a text", "another"])
        wanted = hw.load(MINILM).embed(["a text", "another"])
        assert all(abs(a - b) < 1e-5 for row, own in zip(found, wanted) for a, b in zip(row, own))

    for work in (chat, tools, vectors):
        checks.check(f"langchain-openai: {work.__name__}", work)


def lite(checks: Checks, url: str, key: str) -> None:
    """litellm, by its way to servers of the OpenAI API."""
    litellm.suppress_debug_info = True  # which it prints for every name that is not in its list
    own: dict[str, Any] = {"api_base": url, "api_key": key}
    asked: dict[str, Any] = {"model": "openai/stories", "messages": MESSAGES, **own, **FIXED}

    def chat() -> None:
        whole: Any = litellm.completion(**asked)
        assert whole.choices[0].message.content
        assert whole.usage.completion_tokens == 24
        assert joined(iter(litellm.completion(**asked, stream=True)), True) == whole.choices[0].message.content
        again: Any = asyncio.run(litellm.acompletion(**asked))
        assert again.choices[0].message.content == whole.choices[0].message.content

    def tools() -> None:
        function = {"type": "function", "function": {"name": "weather", "parameters": CITY}}
        calling = {**asked, "max_tokens": 300, "tools": [function], "tool_choice": "required"}
        whole: Any = litellm.completion(**calling)
        parts = list(litellm.completion(**calling, stream=True))
        built: Any = litellm.stream_chunk_builder(parts)
        named = [(call.function.name, call.function.arguments) for call in whole.choices[0].message.tool_calls]
        assert named == [(call.function.name, call.function.arguments) for call in built.choices[0].message.tool_calls]
        assert json.loads(named[0][1])["city"] in ("Ulm", "Oslo")

    def texts() -> None:
        asked: dict[str, Any] = {"model": "text-completion-openai/stories", "prompt": PROMPT, **own, **FIXED}
        whole: Any = litellm.text_completion(**asked)
        assert joined(iter(litellm.text_completion(**asked, stream=True)), False) == whole.choices[0].text

    def vectors() -> None:
        found: Any = litellm.embedding("openai/minilm", ["a text", "another"], encoding_format="float", **own)
        wanted = hw.load(MINILM).embed(["a text", "another"])
        assert all(abs(a - b) < 1e-5 for row, own in zip(found.data, wanted) for a, b in zip(row["embedding"], own))

    def refusals() -> None:
        try:
            litellm.completion(**{**asked, "messages": [{"role": "user", "content": "word " * 900}]})
        except litellm.BadRequestError:
            return
        raise AssertionError("BadRequestError was not raised")

    for work in (chat, tools, texts, vectors, refusals):
        checks.check(f"litellm: {work.__name__}", work)


def main() -> None:
    checks = Checks()
    with tempfile.TemporaryDirectory() as folder:
        beside = models_beside(Path(folder))
        servers = Servers(Path(folder))
        try:
            running = servers.of(Options("stories", TEMPLATE, 512, ("--models", str(beside)), None), "stories")
            own: dict[str, Any] = {"base_url": f"http://127.0.0.1:{running.port}/v1", "api_key": owner(0)}
            waiting(checks, openai.OpenAI(**own, max_retries=0, timeout=100))
            at_once(checks, openai.AsyncOpenAI(**own, max_retries=0, timeout=100))
            langchain(checks, own["base_url"], own["api_key"])
            lite(checks, own["base_url"], own["api_key"])
        finally:
            servers.close()
    packages = {name: version(name) for name in ("openai", "langchain-openai", "litellm")}
    write("clients", {"packages": packages, "checks": checks.found})
    sys.exit(any(each != "ok" for each in checks.found.values()))


if __name__ == "__main__":
    main()
