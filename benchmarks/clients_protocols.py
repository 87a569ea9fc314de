"""Clients of other protocols: the openai package's Responses API, ollama's package, Cohere's package, and what clients
of Jina's service send.
"""

from __future__ import annotations

import asyncio
from typing import Any, Literal

import cohere
import httpx
import ollama
import openai
from cohere.errors import BadRequestError, UnauthorizedError
from pydantic import BaseModel, ConfigDict

import headway as hw
from clients_checks import CITY, MESSAGES, PROMPT, Checks, Running
from clients_models import DOCUMENTS, QUERY
from live import MINILM

CALL: dict[str, Any] = {"type": "function", "name": "weather", "parameters": CITY, "strict": True}


class City(BaseModel):
    """A city."""

    model_config = ConfigDict(extra="forbid")  # a model that knows no JSON would add fields without end
    city: Literal["Ulm", "Oslo"]


def weather(city: str) -> str:
    """The weather of a city.

    Args:
        city: its name
    """
    return f"It is fine in {city}."


def chat_of(running: Running, settings: dict[str, Any]) -> str:
    """The same answer by /v1/chat/completions."""
    with openai.OpenAI(base_url=running.url, api_key=running.key, max_retries=0) as client:
        found = client.chat.completions.create(model="stories", messages=MESSAGES, **settings)  # type: ignore[arg-type]
    return found.choices[0].message.content or ""


def raised(kind: type[Exception], *calls: Any) -> None:
    for call in calls:
        try:
            call()
        except kind:
            continue
        raise AssertionError(f"{kind.__name__} was not raised")


def responses(checks: Checks, running: Running) -> None:
    """The openai package's Responses API."""
    own: dict[str, Any] = {"base_url": running.url, "api_key": running.key, "max_retries": 0, "timeout": 100}
    client = openai.OpenAI(**own)
    asked: dict[str, Any] = {"model": "stories", "input": PROMPT, "temperature": 0.8, "extra_body": {"seed": 7}}
    short, long = {**asked, "max_output_tokens": 24}, {**asked, "max_output_tokens": 300}

    def create() -> None:
        whole = client.responses.create(**short)
        assert whole.output_text == chat_of(running, {"temperature": 0.8, "seed": 7, "max_tokens": 24})
        assert (whole.status, whole.usage and whole.usage.output_tokens) == ("incomplete", 24), whole
        again = [{"role": "user", "content": PROMPT}, *whole.output, {"role": "user", "content": PROMPT}]
        assert client.responses.create(**{**short, "input": again, "store": False}).output_text

    def stream() -> None:
        whole = client.responses.create(**short).output_text
        events = list(client.responses.create(**short, stream=True))
        assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == whole
        assert [event.sequence_number for event in events] == list(range(len(events)))
        with client.responses.stream(**short) as parts:
            events = list(parts)  # older versions of the package have a final response of completed ones alone
        assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == whole
        assert events[-1].type == "response.incomplete"
        assert events[-1].response.output_text == whole

    def parse() -> None:
        found = client.responses.parse(**long, text_format=City).output_parsed
        assert found is not None
        assert found.city in ("Ulm", "Oslo")
        with client.responses.stream(**long, text_format=City) as parts:
            assert parts.get_final_response().output_parsed == found

    def tools() -> None:
        calling = {**long, "tools": [CALL], "tool_choice": "required", "parallel_tool_calls": False}
        [call] = client.responses.create(**calling).output
        assert call.type == "function_call"
        assert City.model_validate_json(call.arguments)
        with client.responses.stream(**calling) as parts:
            pieces = [event for event in parts if event.type == "response.function_call_arguments.delta"]
        [streamed] = parts.get_final_response().output
        assert "".join(event.delta for event in pieces) == call.arguments == streamed.arguments
        output = {"type": "function_call_output", "call_id": call.call_id, "output": "fine"}
        turns = [{"role": "user", "content": PROMPT}, call, output]
        assert client.responses.create(**{**short, "input": turns, "tools": [CALL]}).output

    def asynchronous() -> None:
        async def all_of_it() -> None:
            async with openai.AsyncOpenAI(**own) as many:
                found = await asyncio.gather(*(many.responses.create(**short) for _ in range(4)))
                assert len({each.output_text for each in found}) == 1
                parts = [event async for event in await many.responses.create(**short, stream=True)]
            assert parts[-1].response.output_text == found[0].output_text

        asyncio.run(all_of_it())

    def refusals() -> None:
        raised(
            openai.BadRequestError,
            lambda: client.responses.create(**short, previous_response_id="resp_1"),
            lambda: client.responses.create(**short, tools=[{"type": "web_search"}]),
            lambda: client.responses.create(**{**short, "input": "word " * 900}),
        )
        raised(openai.NotFoundError, lambda: client.responses.create(**{**short, "model": "nothing"}))

    for work in (create, stream, parse, tools, asynchronous, refusals):
        checks.check(f"openai-responses: {work.__name__}", work)
    client.close()


def ollama_package(checks: Checks, running: Running) -> None:
    own: dict[str, Any] = {"host": running.url.removesuffix("/v1"), "timeout": 100}
    own["headers"] = {"Authorization": f"Bearer {running.key}"}
    client = ollama.Client(**own)
    options: dict[str, Any] = {"temperature": 0.8, "seed": 7, "num_predict": 24}
    asked: dict[str, Any] = {"model": "stories", "messages": MESSAGES, "options": options}

    def chat() -> None:
        whole = client.chat(**asked)
        assert whole.message.content == chat_of(running, {"temperature": 0.8, "seed": 7, "max_tokens": 24})
        assert (whole.done_reason, whole.eval_count) == ("length", 24)
        assert client.chat(**{**asked, "messages": [*MESSAGES, whole.message, *MESSAGES]}).message.content

    def stream() -> None:
        parts = list(client.chat(**asked, stream=True))
        whole = client.chat(**asked)
        assert "".join(part.message.content or "" for part in parts) == whole.message.content
        assert (parts[-1].eval_count, parts[-1].prompt_eval_count) == (24, whole.prompt_eval_count)
        text: dict[str, Any] = {"model": "stories", "prompt": PROMPT, "options": options}
        whole = client.generate(**text)
        assert "".join(part.response for part in client.generate(**text, stream=True)) == whole.response

    def tools() -> None:
        calling: dict[str, Any] = {"model": "caller", "messages": MESSAGES, "tools": [weather]}
        calling["options"] = {"temperature": 0, "num_predict": 150}
        found = client.chat(**calling).message
        call = (found.tool_calls or [])[0].function
        assert (call.name, call.arguments) == ("weather", {"city": "Ulm"})
        calls = [call for part in client.chat(**calling, stream=True) for call in part.message.tool_calls or ()]
        assert calls == list(found.tool_calls or ())
        answer = {"role": "tool", "tool_name": call.name, "content": weather(**call.arguments)}
        assert client.chat(**{**calling, "messages": [*MESSAGES, found, answer]}).message.tool_calls

    def schema() -> None:
        long = {**asked, "options": {**options, "num_predict": 300}, "format": City.model_json_schema()}
        assert City.model_validate_json(client.chat(**long).message.content or "")
        parts = client.chat(**long, stream=True)
        assert City.model_validate_json("".join(part.message.content or "" for part in parts))

    def embed() -> None:
        texts = ["a text", "another"]
        found = client.embed("minilm", texts)
        wanted = hw.load(MINILM).embed(texts)
        assert all(abs(a - b) < 1e-5 for row, own in zip(found.embeddings, wanted) for a, b in zip(row, own))
        assert client.embeddings("minilm", texts[0]).embedding == found.embeddings[0]

    def models() -> None:
        names = {each.model for each in client.list().models}
        assert {"stories", "minilm", "caller"} <= names, names
        assert client.show("stories").capabilities == ["completion", "tools"]
        assert client.show("minilm:latest").capabilities == ["embedding"]
        assert "stories" in {each.model for each in client.ps().models}

    def asynchronous() -> None:
        async def all_of_it() -> None:
            many = ollama.AsyncClient(**own)
            found = await asyncio.gather(*(many.chat(**asked) for _ in range(4)))
            assert len({each.message.content for each in found}) == 1
            parts = [part.message.content async for part in await many.chat(**asked, stream=True)]
            assert "".join(parts) == found[0].message.content

        asyncio.run(all_of_it())

    def refusals() -> None:
        wrong = ollama.Client(own["host"], headers={"Authorization": "Bearer wrong"})
        raised(
            ollama.ResponseError,
            lambda: client.chat("nothing", MESSAGES),
            lambda: client.chat("stories", [{"role": "user", "content": "word " * 900}]),
            lambda: client.pull("llama3"),
            wrong.list,
        )

    for work in (chat, stream, tools, schema, embed, models, asynchronous, refusals):
        checks.check(f"ollama: {work.__name__}", work)


def cohere_package(checks: Checks, running: Running) -> None:
    root = running.url.removesuffix("/v1")
    asked: dict[str, Any] = {"model": "ranker", "query": QUERY, "documents": DOCUMENTS}
    client = cohere.ClientV2(running.key, base_url=root)
    wanted = hw.load(running.beside / "ranker").rerank(QUERY, DOCUMENTS)

    def same(results: Any, count: int = len(DOCUMENTS)) -> None:
        assert [each.index for each in results] == [each.index for each in wanted[:count]], results
        assert all(abs(each.relevance_score - own.score) < 1e-5 for each, own in zip(results, wanted)), results

    def rerank() -> None:
        same(client.rerank(**asked).results)
        same(client.rerank(**asked, top_n=2).results, 2)

    def first_version() -> None:
        found = cohere.Client(running.key, base_url=root).rerank(**asked, top_n=3, return_documents=True).results
        same(found, 3)
        assert [each.document and each.document.text for each in found] == [each.document for each in wanted[:3]]

    def asynchronous() -> None:
        async def all_of_it() -> None:
            many = cohere.AsyncClientV2(running.key, base_url=root)
            for each in await asyncio.gather(*(many.rerank(**asked) for _ in range(4))):
                same(each.results)

        asyncio.run(all_of_it())

    def refusals() -> None:
        raised(
            BadRequestError,
            lambda: client.rerank(**{**asked, "documents": []}),
            lambda: client.rerank(**{**asked, "model": "minilm"}),
        )
        raised(UnauthorizedError, lambda: cohere.ClientV2("wrong", base_url=root).rerank(**asked))

    for work in (rerank, first_version, asynchronous, refusals):
        checks.check(f"cohere: {work.__name__}", work)


def jina(checks: Checks, running: Running) -> None:
    """Requests as Jina's service documents them, by httpx."""
    wanted = hw.load(running.beside / "ranker").rerank(QUERY, DOCUMENTS, top_n=3)

    def rerank() -> None:
        body = {"model": "ranker", "query": QUERY, "top_n": 3, "return_documents": True, "documents": DOCUMENTS}
        heads = {"Authorization": f"Bearer {running.key}"}
        for documents in (DOCUMENTS, [{"text": text} for text in DOCUMENTS]):
            found = httpx.post(f"{running.url}/rerank", json={**body, "documents": documents}, headers=heads)
            results = found.raise_for_status().json()["results"]
            assert [(each["index"], each["document"]["text"]) for each in results] == [
                (each.index, each.document) for each in wanted
            ]
            assert all(abs(each["relevance_score"] - own.score) < 1e-5 for each, own in zip(results, wanted))
            assert found.json()["usage"]["total_tokens"] > 0

    checks.check("jina: rerank", rerank)
