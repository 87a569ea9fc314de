"""Clients that others wrote, against a live `headway serve` on loopback: the openai package, waiting and asynchronous,
at every endpoint that it has a word for, and those of clients_frameworks.py and clients_protocols.py. A client's answer
in parts must be its whole answer.

    python benchmarks/clients.py [CLIENT ...]

The server has stories260K with a chat template that tells of tools, all-MiniLM-L6-v2, Whisper tiny.en, and the models
of clients_models.py. What was found of other clients stays in the results.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
from collections.abc import AsyncIterator
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import openai

import headway as hw
from clients_checks import CITY, FIXED, MESSAGES, PROMPT, SAID, SOUND, Checks, Running, joined
from clients_models import caller, ranker
from live import MINILM, Options, Servers, models_beside, owner
from measure import RESULTS, data_folder, write

TEMPLATE = (
    "{{ bos_token }}{% if tools %}{% for tool in tools %}{{ tool.function.name }} {% endfor %}<tool_call>{% endif %}"
    "{% for message in messages %}{{ message.content }}\n{% endfor %}"
)
MODELS = {"stories", "minilm", "whisper", "caller", "ranker"}


async def listed(parts: AsyncIterator[Any]) -> list[Any]:
    return [part async for part in parts]


def waiting(checks: Checks, client: openai.OpenAI) -> None:
    """The openai package, one request after the other."""

    def models() -> None:
        names = {model.id for model in client.models.list()}
        assert names == MODELS, names
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
        assert {model.id async for model in client.models.list()} == MODELS
        sound = ("a.wav", (data_folder() / SOUND).read_bytes())
        assert (await client.audio.transcriptions.create(model="whisper", file=sound)).text == SAID
        await client.close()

    checks.check("openai: asynchronous", lambda: asyncio.run(all_of_it()))


def package(checks: Checks, running: Running) -> None:
    own: dict[str, Any] = {"base_url": running.url, "api_key": running.key, "max_retries": 0, "timeout": 100}
    waiting(checks, openai.OpenAI(**own))
    at_once(checks, openai.AsyncOpenAI(**own))


class Client(NamedTuple):
    """The packages of a client, and the function that checks it, in a module that is imported where it is asked for."""

    packages: tuple[str, ...]
    module: str
    function: str


LLAMA_INDEX = ("llama-index-llms-openai-like", "llama-index-embeddings-openai-like")
CLIENTS = {
    "openai": Client(("openai",), "clients", "package"),
    "langchain": Client(("langchain-openai",), "clients_frameworks", "langchain"),
    "litellm": Client(("litellm",), "clients_frameworks", "lite"),
    "llama-index": Client(LLAMA_INDEX, "clients_frameworks", "llama_index"),
    "instructor": Client(("instructor",), "clients_frameworks", "instructing"),
    "pydantic-ai": Client(("pydantic-ai-slim",), "clients_frameworks", "agents"),
    "lm-eval": Client(("lm-eval",), "clients_frameworks", "harness"),
    "openai-responses": Client(("openai",), "clients_protocols", "responses"),
    "ollama": Client(("ollama",), "clients_protocols", "ollama_package"),
    "cohere": Client(("cohere",), "clients_protocols", "cohere_package"),
    "jina": Client(("httpx",), "clients_protocols", "jina"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("clients", nargs="*", choices=[*CLIENTS, []], metavar="CLIENT")
    names = parser.parse_args().clients or list(CLIENTS)
    place = RESULTS / "clients.json"
    before = json.loads(place.read_text()) if place.exists() else {"packages": {}, "checks": {}}
    checks = Checks({name: each for name, each in before["checks"].items() if name.partition(":")[0] not in names})
    with tempfile.TemporaryDirectory() as folder:
        beside = models_beside(Path(folder))
        caller(beside / "caller", TEMPLATE)
        ranker(beside / "ranker")
        servers = Servers(Path(folder))
        try:
            started = servers.of(Options("stories", TEMPLATE, 512, ("--models", str(beside)), None), "stories")
            running = Running(f"http://127.0.0.1:{started.port}/v1", owner(0), started.model, beside)
            for name in names:
                _, module, function = CLIENTS[name]
                getattr(import_module(module), function)(checks, running)
        finally:
            servers.close()
    own = {package: version(package) for name in names for package in CLIENTS[name].packages}
    write("clients", {"packages": {**before["packages"], **own}, "checks": dict(sorted(checks.found.items()))})
    sys.exit(any(each != "ok" for each in checks.found.values()))


if __name__ == "__main__":
    main()
