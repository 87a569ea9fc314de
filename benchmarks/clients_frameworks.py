"""Frameworks that ask servers of the OpenAI API: LangChain, litellm, LlamaIndex, instructor, pydantic-ai, and
lm-evaluation-harness.
"""

from __future__ import annotations

import asyncio
import json
import os
from typing import Any, Literal

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else it asks the internet for prices when it is imported
import instructor
import litellm
import openai
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.embeddings.openai_like import OpenAILikeEmbedding
from llama_index.llms.openai_like import OpenAILike
from lm_eval.api.instance import Instance
from lm_eval.models.openai_completions import LocalChatCompletion, LocalCompletionsAPI
from pydantic import BaseModel, ConfigDict
from pydantic_ai import Agent, NativeOutput
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider

import headway as hw
from clients_checks import CITY, FIXED, MESSAGES, PROMPT, SAID, SOUND, Checks, Running, joined
from clients_models import DOCUMENTS, QUERY
from headway.app.harness import HarnessModel
from live import MINILM
from measure import data_folder


class Weather(BaseModel):
    """The weather of a city."""

    model_config = ConfigDict(extra="forbid")  # a model that knows no JSON would add fields without end
    city: Literal["Ulm", "Oslo"]


@tool
def weather(city: Literal["Ulm", "Oslo"]) -> str:
    """The weather of a city."""
    return f"It is fine in {city}."


def langchain(checks: Checks, running: Running) -> None:
    url, key = running.url, running.key
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

    def forms() -> None:
        model = ChatOpenAI(**{**own, "max_tokens": 300})
        for method in ("json_schema", "function_calling"):
            assert model.with_structured_output(Weather, method=method).invoke(PROMPT).city in ("Ulm", "Oslo")

    def history() -> None:
        model = ChatOpenAI(**{**own, "max_tokens": 8}).bind_tools([weather])
        calls = [{"name": "weather", "args": {"city": "Ulm"}, "id": "1"}]
        turns = [HumanMessage(PROMPT), AIMessage("", tool_calls=calls), ToolMessage("fine", tool_call_id="1")]
        assert model.invoke(turns).usage_metadata["output_tokens"] == 8

    def responses() -> None:
        there: dict[str, Any] = {**own, "use_responses_api": True, "extra_body": {"seed": own["seed"]}}
        del there["seed"]  # which the openai package does not know here
        model, long = ChatOpenAI(**there), ChatOpenAI(**{**there, "max_tokens": 300})
        whole = model.invoke(PROMPT).text
        assert whole == ChatOpenAI(**own).invoke(PROMPT).text
        assert "".join(part.text for part in model.stream(PROMPT)) == whole
        assert long.with_structured_output(Weather, method="json_schema").invoke(PROMPT).city in ("Ulm", "Oslo")
        choice: dict[str, Any] = {"tool_choice": "weather", "strict": True, "parallel_tool_calls": False}
        called = long.bind_tools([weather], **choice).invoke(PROMPT)
        [call] = called.tool_calls
        assert model.invoke([HumanMessage(PROMPT), called, ToolMessage("fine", tool_call_id=call["id"])]).content

    for work in (chat, tools, forms, history, responses, vectors):
        checks.check(f"langchain: {work.__name__}", work)


def lite(checks: Checks, running: Running) -> None:
    """litellm, by its way to servers of the OpenAI API."""
    url, key = running.url, running.key
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

    def forms() -> None:
        found: Any = litellm.completion(**{**asked, "max_tokens": 300}, response_format=Weather)
        assert Weather.model_validate_json(found.choices[0].message.content)

    def history() -> None:
        message = litellm.completion(**asked).choices[0].message  # type: ignore[union-attr]
        turns = [*MESSAGES, message, message.model_dump(), *MESSAGES]
        assert litellm.completion(**{**asked, "messages": turns}).choices[0].message.content  # type: ignore[union-attr]

    def sounds() -> None:
        with (data_folder() / SOUND).open("rb") as file:
            found: Any = litellm.transcription("openai/whisper", file, **own)
        assert found.text == SAID

    def responses() -> None:
        found: Any = litellm.responses(model="openai/stories", input=PROMPT, max_output_tokens=24, **own)
        assert found.output[0].content[0].text
        *_, last = litellm.responses(model="openai/stories", input=PROMPT, max_output_tokens=24, stream=True, **own)
        assert last.response.output[0].content[0].text

    def ollama() -> None:
        """By its way to servers of ollama's API."""
        root, heads = url.removesuffix("/v1"), {"Authorization": f"Bearer {key}"}
        there: dict[str, Any] = {"messages": MESSAGES, "api_base": root, "extra_headers": heads, **FIXED}
        whole: Any = litellm.completion("ollama_chat/stories", **there)
        wanted: Any = litellm.completion(**asked)
        assert whole.choices[0].message.content == wanted.choices[0].message.content
        parts = iter(litellm.completion("ollama_chat/stories", **there, stream=True))
        assert joined(parts, True) == whole.choices[0].message.content
        there["max_tokens"] = 300
        formed: Any = litellm.completion("ollama_chat/stories", **there, response_format=Weather)
        assert Weather.model_validate_json(formed.choices[0].message.content)
        function = {"type": "function", "function": {"name": "weather", "parameters": CITY}}
        calling: Any = litellm.completion("ollama_chat/caller", **{**there, "temperature": 0}, tools=[function])
        assert json.loads(calling.choices[0].message.tool_calls[0].function.arguments) == {"city": "Ulm"}
        vectors: Any = litellm.embedding("ollama/minilm", ["a text"], api_base=root, extra_headers=heads)
        assert len(vectors.data[0]["embedding"]) == 384

    def ranks() -> None:
        """By its ways to Cohere's and Jina's services, and to vLLM."""
        wanted = hw.load(running.beside / "ranker").rerank(QUERY, DOCUMENTS, top_n=2)
        root = url.removesuffix("/v1")
        for service, base in (("cohere", f"{root}/v2/rerank"), ("jina_ai", root), ("hosted_vllm", url)):
            found: Any = litellm.rerank(
                model=f"{service}/ranker", query=QUERY, documents=DOCUMENTS, top_n=2, api_base=base, api_key=key
            )
            assert [each["index"] for each in found.results] == [each.index for each in wanted], service
            assert abs(found.results[0]["relevance_score"] - wanted[0].score) < 1e-5, service

    for work in (chat, tools, forms, history, texts, vectors, sounds, responses, ollama, ranks, refusals):
        checks.check(f"litellm: {work.__name__}", work)


def llama_index(checks: Checks, running: Running) -> None:
    own: dict[str, Any] = {"api_base": running.url, "api_key": running.key, "max_retries": 0, "timeout": 100}
    asked: dict[str, Any] = {"model": "stories", "temperature": 0.8, "context_window": 512, **own}
    asked |= {"additional_kwargs": {"seed": 7}}
    turns = [ChatMessage(role="user", content=PROMPT)]

    def chat() -> None:
        model = OpenAILike(**asked, max_tokens=24, is_chat_model=True)
        whole = model.chat(turns)
        assert [part.delta or "" for part in model.stream_chat(turns)]
        assert "".join(part.delta or "" for part in model.stream_chat(turns)) == whole.message.content
        assert model.chat([*turns, whole.message, *turns]).message.content
        assert asyncio.run(model.achat(turns)).message.content == whole.message.content

    def texts() -> None:
        model = OpenAILike(**asked, max_tokens=24, is_chat_model=False)
        whole = model.complete(PROMPT).text
        assert whole
        assert "".join(part.delta or "" for part in model.stream_complete(PROMPT)) == whole

    def tools() -> None:
        model = OpenAILike(**asked, max_tokens=300, is_chat_model=True, is_function_calling_model=True)
        function = FunctionTool.from_defaults(
            weather.func, name="weather", description="The weather of a city.", fn_schema=Weather
        )
        found = model.chat_with_tools([function], user_msg=PROMPT, tool_required=True, allow_parallel_tool_calls=False)
        [call] = model.get_tool_calls_from_response(found)
        assert call.tool_name == "weather"
        *_, last = model.stream_chat_with_tools([function], user_msg=PROMPT, tool_required=True)
        assert model.get_tool_calls_from_response(last)[0].tool_kwargs["city"] in ("Ulm", "Oslo")

    def forms() -> None:
        model = OpenAILike(**asked, max_tokens=300, is_chat_model=True, is_function_calling_model=True)
        assert model.as_structured_llm(Weather).chat(turns).raw.city in ("Ulm", "Oslo")

    def vectors() -> None:
        model = OpenAILikeEmbedding(model_name="minilm", **own)
        found = [*model.get_text_embedding_batch(["a text", "another"]), model.get_query_embedding("a text")]
        wanted = hw.load(MINILM).embed(["a text", "another", "a text"])
        assert all(abs(a - b) < 1e-5 for row, own in zip(found, wanted) for a, b in zip(row, own))

    for work in (chat, texts, tools, forms, vectors):
        checks.check(f"llama-index: {work.__name__}", work)


def instructing(checks: Checks, running: Running) -> None:
    own: dict[str, Any] = {"base_url": running.url, "api_key": running.key, "max_retries": 0, "timeout": 100}
    asked: dict[str, Any] = {"model": "stories", "messages": MESSAGES, "max_tokens": 300, "seed": 7}

    def mode(name: str) -> None:
        client = instructor.from_openai(openai.OpenAI(**own), mode=getattr(instructor.Mode, name))
        assert client.chat.completions.create(**asked, response_model=Weather, max_retries=1).city in ("Ulm", "Oslo")
        *_, last = client.chat.completions.create_partial(**asked, response_model=Weather)
        assert last.city in ("Ulm", "Oslo")

    def responses() -> None:
        client = instructor.from_openai(openai.OpenAI(**own), mode=instructor.Mode.RESPONSES_TOOLS)
        more: dict[str, Any] = {"model": "stories", "input": PROMPT, "max_output_tokens": 300, "max_retries": 1}
        assert client.responses.create(**more, response_model=Weather).city in ("Ulm", "Oslo")

    checks.check("instructor: responses_tools", responses)
    for name in ("TOOLS", "TOOLS_STRICT", "JSON_SCHEMA"):
        checks.check(f"instructor: {name.lower()}", lambda name=name: mode(name))


def agents(checks: Checks, running: Running) -> None:
    """pydantic-ai."""
    provider = OpenAIProvider(base_url=running.url, api_key=running.key)
    model = OpenAIChatModel("stories", provider=provider)
    settings: Any = {"temperature": 0.8, "seed": 7, "max_tokens": 24}

    def chat() -> None:
        agent = Agent(model, model_settings=settings)
        first = agent.run_sync(PROMPT)
        assert agent.run_sync(PROMPT, message_history=first.all_messages()).output

        async def streamed() -> str:
            async with agent.run_stream(PROMPT) as parts:
                return "".join([part async for part in parts.stream_text(delta=True)])

        assert asyncio.run(streamed()) == first.output

    def tools() -> None:
        called: list[str] = []
        agent = Agent(model, output_type=Weather, model_settings={**settings, "max_tokens": 200})

        @agent.tool_plain
        def wind(city: Literal["Ulm", "Oslo"]) -> str:
            """The wind of a city."""
            called.append(city)
            return "none"

        for seed in range(9):
            own = {**settings, "max_tokens": 200, "seed": seed, "temperature": 2.0}
            found = agent.run_sync(PROMPT, model_settings=own)
            assert found.output.city in ("Ulm", "Oslo")
        assert called

    def forms() -> None:
        agent = Agent(model, output_type=NativeOutput(Weather), model_settings={**settings, "max_tokens": 200})
        assert agent.run_sync(PROMPT).output.city in ("Ulm", "Oslo")

    def responses() -> None:
        there, more = OpenAIResponsesModel("stories", provider=provider), {**settings, "max_tokens": 200}
        agent = Agent(there, model_settings={"max_tokens": 24})
        first = agent.run_sync(PROMPT)
        assert agent.run_sync(PROMPT, message_history=first.all_messages()).output
        for kind in (Weather, NativeOutput(Weather)):
            found: Any = Agent(there, output_type=kind, model_settings=more).run_sync(PROMPT)
            assert found.output.city in ("Ulm", "Oslo")

    for work in (chat, tools, forms, responses):
        checks.check(f"pydantic-ai: {work.__name__}", work)


def harness(checks: Checks, running: Running) -> None:
    """lm-evaluation-harness: what it asks over HTTP is what it gets of the model itself."""
    os.environ["OPENAI_API_KEY"] = running.key
    common = {"model": "stories", "tokenizer": str(running.model), "max_length": 512, "num_concurrent": 1}
    here = HarnessModel(running.model)

    def asked(kind: str, *arguments: Any) -> list[Instance]:
        return [Instance(kind, {}, each, number) for number, each in enumerate(arguments)]

    def likelihoods() -> None:
        model = LocalCompletionsAPI(f"{running.url}/completions", batch_size=4, add_bos_token=True, **common)
        pairs = [("Once upon a time", " there was"), ("Lily saw a", " big red ball"), ("The dog", " xyz"), ("A", " b")]
        wanted = here.loglikelihood(asked("loglikelihood", *pairs))
        found = model.loglikelihood(asked("loglikelihood", *pairs))
        for (score, greedy), (other, own) in zip(found, wanted):
            assert abs(score - other) < 1e-3, (found, wanted)
            assert greedy == own, (found, wanted)

    def rolling() -> None:
        model = LocalCompletionsAPI(f"{running.url}/completions", batch_size=1, **common)
        texts = [("Once upon a time there was a girl.",), ("The dog saw a cat. " * 60,)]
        found = model.loglikelihood_rolling(asked("loglikelihood_rolling", *texts))
        wanted = here.loglikelihood_rolling(asked("loglikelihood_rolling", *texts))
        assert all(abs(a - b) < 1e-3 * abs(b) for a, b in zip(found, wanted)), (found, wanted)

    def generations() -> None:
        model = LocalCompletionsAPI(f"{running.url}/completions", batch_size=1, add_bos_token=True, **common)
        pairs = [(PROMPT, {"until": ["."], "max_gen_toks": 24}), ("The dog", {"until": ["\n"], "max_gen_toks": 12})]
        found = model.generate_until(asked("generate_until", *pairs))
        wanted = here.generate_until(asked("generate_until", *pairs))
        assert found == wanted, (found, wanted)

    def chats() -> None:
        model = LocalChatCompletion(
            base_url=f"{running.url}/chat/completions",
            num_concurrent=1,
            batch_size=1,
            model="stories",
            tokenizer_backend=None,
        )
        turns = model.apply_chat_template([{"role": "user", "content": PROMPT}])
        [found] = model.generate_until(asked("generate_until", (turns, {"until": ["."], "max_gen_toks": 24})))
        assert found

    for work in (likelihoods, rolling, generations, chats):
        checks.check(f"lm-eval: {work.__name__}", work)
