"""Requests and answers in the form of the OpenAI API. Unknown fields are refused by name; `NEUTRAL` lists those that
are accepted as long as they ask for nothing.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from headway.serve.neutral import Neutral, Neutrals

_Share = Annotated[float, Meta(ge=0, le=1)]
_Penalty = Annotated[float, Meta(ge=-2, le=2)]
_Count = Annotated[int, Meta(ge=1)]
# A part of what is said. Others have other fields, by which none could be told what is wrong with it.
_TEXT = {"type": {"const": "text"}, "text": {"type": "string"}}
_Part = Annotated[
    dict[str, Any],
    Meta(extra_json_schema={"properties": _TEXT, "required": list(_TEXT), "additionalProperties": False}),
]
Finish = Literal["stop", "length", "tool_calls"]


_STORED = "nothing is stored here; leave it out"
HINT = Neutral(kind=str)  # for caches and abuse detection of a hosted service; no answer depends on it


class StreamOptions(msgspec.Struct, forbid_unknown_fields=True):
    """`include_usage` asks for one more event, with the numbers of tokens, at the end of a stream; with
    `continuous_usage_stats` every event has them.
    """

    include_usage: bool = False
    continuous_usage_stats: bool = False
    NEUTRAL: ClassVar[Neutrals] = {"include_obfuscation": Neutral((False,), "events are not padded; set it to false")}


class WritingBody(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """What every request for a text can set. `top_k`, `min_p`, `repetition_penalty` and `ignore_end` are headway's own,
    as `generate` has them. `user` changes nothing. From `ignore_eos` on the names are vLLM's.
    """

    model: str = ""  # may be left out where the server has one model
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: _Count | None = None
    max_tokens: _Count | None = None
    temperature: Annotated[float, Meta(ge=0)] | None = None
    top_p: _Share | None = None
    top_k: _Count | None = None
    min_p: _Share | None = None
    repetition_penalty: Annotated[float, Meta(gt=0)] | None = None
    presence_penalty: _Penalty | None = None
    frequency_penalty: _Penalty | None = None
    logit_bias: dict[str, float] | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    ignore_end: bool = False
    response_format: dict[str, Any] | None = None
    user: str | None = None
    ignore_eos: bool = False  # another name of ignore_end
    min_tokens: Annotated[int, Meta(ge=0)] = 0  # before which no end token comes
    stop_token_ids: list[int] | None = None
    allowed_token_ids: list[int] | None = None
    truncate_prompt_tokens: Annotated[int, Meta(ge=-1)] | None = None  # -1: as many as the context has room for
    truncation_side: Literal["left", "right"] = "left"  # from which tokens are dropped
    prompt_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None  # of how many of the likeliest tokens
    return_token_ids: bool = False
    return_tokens_as_token_ids: bool = False  # tokens of logprobs as "token_id:42"
    structured_outputs: dict[str, Any] | None = None  # response_format in vLLM's form

    NEUTRAL: ClassVar[Neutrals] = {
        "store": Neutral((False,), _STORED),
        "metadata": Neutral(({},), _STORED),
        "service_tier": Neutral(("auto", "default"), "there is one tier; leave it out"),
        "safety_identifier": HINT,
        "prompt_cache_key": HINT,
        "prompt_cache_retention": HINT,
        "best_of": Neutral((), "answers are not ranked; generate them with n and choose among them", "n"),
        "top_k": Neutral((0, -1)),
        "use_beam_search": Neutral((False,), "texts are sampled; leave it out"),
        "length_penalty": Neutral((1, 1.0), "there is no beam search; leave it out"),
        "early_stopping": Neutral((False,), "there is no beam search; leave it out"),
        "bad_words": Neutral(([],), "words are not excluded; pass logit_bias for tokens"),
        "logprob_token_ids": Neutral(([],), "log probabilities are of the likeliest tokens; pass top_logprobs"),
        "skip_special_tokens": Neutral((True,), "texts have no special tokens; pass return_token_ids"),
        "spaces_between_special_tokens": Neutral((True,), "texts have no special tokens; pass return_token_ids"),
        "include_stop_str_in_output": Neutral((False,), "a text ends before its stop string; append it yourself"),
        "priority": Neutral((0,), "API keys are served in turns; leave it out"),
        "documents": Neutral(([],), "documents are not read; put them into the prompt"),
        "vllm_xargs": Neutral(({},), "there are no extensions of vLLM; leave it out"),
    }


class CompletionBody(WritingBody, kw_only=True):
    """Of /v1/completions: continues a text, or each of several, or tokens. With `echo` the answer begins with the
    prompt; `max_tokens` may then be 0.
    """

    prompt: str | list[str | int | list[int]]
    max_tokens: Annotated[int, Meta(ge=0)] | None = None
    logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None  # of how many of the likeliest tokens
    echo: bool = False
    add_special_tokens: bool = True  # whether a prompt's text begins as the model was trained to read it

    NEUTRAL: ClassVar[Neutrals] = {
        **WritingBody.NEUTRAL,
        "suffix": Neutral(("",), "gaps are not filled; put the suffix into the prompt"),
    }


class ChatBody(WritingBody, kw_only=True):
    """Of /v1/chat/completions: the next answer in a conversation."""

    messages: list[ChatMessage]
    max_completion_tokens: _Count | None = None  # the newer name of max_tokens
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    chat_template_kwargs: dict[str, bool | int | float | str] | None = None  # what else the template reads
    add_generation_prompt: bool | None = None  # whether an answer is begun; it is, unless the last message goes on
    continue_final_message: bool = False  # whether the last message goes on, which is the assistant's
    reasoning_effort: str | None = None  # for templates that read it; "none" for those that read enable_thinking

    NEUTRAL: ClassVar[Neutrals] = {
        **WritingBody.NEUTRAL,
        "modalities": Neutral((["text"],), 'answers are texts; pass ["text"]'),
        "audio": Neutral((), "answers are texts; leave it out"),
        "prediction": Neutral((), "answers are not predicted by clients; leave it out"),
        "web_search_options": Neutral((), "nothing is searched for on the web; leave it out"),
        "verbosity": Neutral(("medium",), "models have no verbosity; write it into a message"),
        "functions": Neutral(([],), "functions are passed as tools; use tools"),
        "function_call": Neutral(("none", "auto"), "functions are passed as tools; use tool_choice"),
        "echo": Neutral((False,), "answers do not repeat messages; leave it out"),
        "include_reasoning": Neutral((True,), "reasoning is a part of the answer; leave it out"),
        "add_special_tokens": Neutral((False,), "the chat template adds special tokens; leave it out"),
        "chat_template": Neutral((), "a model has its own chat template; leave it out"),
    }


class CalledFunction(msgspec.Struct, forbid_unknown_fields=True):
    """A function, and its arguments as JSON in a text."""

    name: str
    arguments: str = ""


class CalledTool(msgspec.Struct, forbid_unknown_fields=True):
    """A call of a tool."""

    id: str
    function: CalledFunction
    type: Literal["function"] = "function"
    NEUTRAL: ClassVar[Neutrals] = {"index": Neutral(kind=int)}  # which clients keep that put a stream together


class ChatMessage(msgspec.Struct, forbid_unknown_fields=True):
    """A turn. The role `developer` is read as `system`."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[_Part] | None = None
    name: str | UnsetType = UNSET
    tool_calls: list[CalledTool] | None = None
    tool_call_id: str | UnsetType = UNSET
    refusal: str | None = None
    NEUTRAL: ClassVar[Neutrals] = {  # what the openai package, LangChain, and litellm return with an answer
        "annotations": Neutral(([],), "messages are texts; leave it out"),
        "audio": Neutral((), "messages are texts; leave it out"),
        "function_call": Neutral((), "functions are passed as tools; use tool_calls"),
        "reasoning": Neutral(("",), "reasoning is a part of the content; leave it out"),
        "reasoning_content": Neutral(("",), "reasoning is a part of the content; leave it out"),
        "images": Neutral(([],), "messages are texts; leave it out"),
        "provider_specific_fields": Neutral(({},), "messages have no other fields; leave it out"),
    }


class PromptTokens(msgspec.Struct):
    """Of the tokens of prompts: how many were known from earlier requests of the same key, and so were not read."""

    cached_tokens: int


class TokensUsed(msgspec.Struct):
    """Numbers of tokens: of prompts, each counted once, of what was written, and both."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokens


class LikelyToken(msgspec.Struct):
    """A token as text and as bytes, which may be a part of a character, and its log probability in nats."""

    token: str
    logprob: float
    bytes: list[int]


class ToldToken(LikelyToken):
    """A token that was written, and the likeliest ones in its place."""

    top_logprobs: list[LikelyToken]


class ChatLogprobs(msgspec.Struct):
    """Of each token of an answer."""

    content: list[ToldToken]


class TextLogprobs(msgspec.Struct):
    """Of each token of a completion: itself, its log probability, itself and the likeliest ones with theirs, and where
    its text begins. The first token of a prompt has no log probability.
    """

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class PromptToken(msgspec.Struct):
    """A token that a prompt has or might have had: its log probability, its rank, 1 for the likeliest, and its text."""

    logprob: float
    rank: int
    decoded_token: str


# Of each token of a prompt, by ids: the token itself and the likeliest ones. Of the first there is nothing.
PromptLogprobs = list[dict[str, PromptToken] | None]


class CompletionChoice(msgspec.Struct):
    """One continuation, or what is new of it. From `prompt_logprobs` on it has what was asked for alone."""

    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: Finish | None
    prompt_logprobs: PromptLogprobs | UnsetType | None = UNSET
    prompt_token_ids: list[int] | UnsetType | None = UNSET
    token_ids: list[int] | UnsetType | None = UNSET


class CompletionAnswer(msgspec.Struct):
    """Continuations; in a stream each event is one of these, with what is new."""

    id: str
    created: int
    model: str
    system_fingerprint: str  # another one: the same request may give other bits
    choices: list[CompletionChoice]
    usage: TokensUsed | UnsetType | None = UNSET
    object: Literal["text_completion"] = "text_completion"


class AnswerMessage(msgspec.Struct):
    """What the assistant says, and the tools that it calls."""

    content: str | None
    tool_calls: list[CalledTool] | UnsetType = UNSET
    role: Literal["assistant"] = "assistant"
    refusal: None = None


class ChatChoice(msgspec.Struct):
    """One answer."""

    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: Finish
    token_ids: list[int] | None = None


class ChatAnswer(msgspec.Struct):
    """Answers to a conversation."""

    id: str
    created: int
    model: str
    system_fingerprint: str  # another one: the same request may give other bits
    choices: list[ChatChoice]
    usage: TokensUsed
    object: Literal["chat.completion"] = "chat.completion"
    prompt_logprobs: PromptLogprobs | None = None
    prompt_token_ids: list[int] | None = None


class CalledFunctionPart(msgspec.Struct):
    """What is new of a function that is called: its name once, and its arguments piece by piece."""

    arguments: str
    name: str | UnsetType = UNSET


class CalledToolPart(msgspec.Struct):
    """What is new of the call at `index` of an answer. The first of its parts has `id`, `type` and the name."""

    index: int
    function: CalledFunctionPart
    id: str | UnsetType = UNSET
    type: Literal["function"] | UnsetType = UNSET


class AnswerPart(msgspec.Struct, omit_defaults=True):
    """What is new of an answer."""

    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType = UNSET
    tool_calls: list[CalledToolPart] | UnsetType = UNSET


class ChatChoicePart(msgspec.Struct):
    """What is new of one answer."""

    index: int
    delta: AnswerPart
    logprobs: ChatLogprobs | None = None
    finish_reason: Finish | None = None
    token_ids: list[int] | UnsetType = UNSET


class ChatAnswerPart(msgspec.Struct):
    """An event of a stream of answers."""

    id: str
    created: int
    model: str
    system_fingerprint: str  # another one: the same request may give other bits
    choices: list[ChatChoicePart]
    usage: TokensUsed | UnsetType | None = UNSET
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    prompt_token_ids: list[int] | UnsetType = UNSET
