"""What is asked and answered, as the OpenAI API has it: fields that are not here are refused by name."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

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


class StreamOptions(msgspec.Struct, forbid_unknown_fields=True):
    """`include_usage` asks for one more event, with the numbers of tokens, at the end of a stream."""

    include_usage: bool = False


class WritingBody(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """What every request for a text can say. `top_k`, `min_p`, `repetition_penalty` and `ignore_end` are headway's own,
    as `generate` has them. `user` changes nothing.
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


class CompletionBody(WritingBody, kw_only=True):
    """Of /v1/completions: continues a text, or each of several, or tokens."""

    prompt: str | list[str | int | list[int]]
    logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None  # of how many of the likeliest tokens


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


class CalledFunction(msgspec.Struct, forbid_unknown_fields=True):
    """A function, and its arguments as JSON in a text."""

    name: str
    arguments: str = ""


class CalledTool(msgspec.Struct, forbid_unknown_fields=True):
    """A call of a tool."""

    id: str
    function: CalledFunction
    type: Literal["function"] = "function"


class ChatMessage(msgspec.Struct, forbid_unknown_fields=True):
    """A turn. The role `developer` is read as `system`."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[_Part] | None = None
    name: str | UnsetType = UNSET
    tool_calls: list[CalledTool] | None = None
    tool_call_id: str | UnsetType = UNSET
    refusal: str | None = None


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
    """Of each token of a completion: itself, its log probability, the likeliest ones, and where its text begins."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class CompletionChoice(msgspec.Struct):
    """One continuation, or what is new of it."""

    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: Finish | None


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


class ChatAnswer(msgspec.Struct):
    """Answers to a conversation."""

    id: str
    created: int
    model: str
    system_fingerprint: str  # another one: the same request may give other bits
    choices: list[ChatChoice]
    usage: TokensUsed
    object: Literal["chat.completion"] = "chat.completion"


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


class ChatAnswerPart(msgspec.Struct):
    """An event of a stream of answers."""

    id: str
    created: int
    model: str
    system_fingerprint: str  # another one: the same request may give other bits
    choices: list[ChatChoicePart]
    usage: TokensUsed | UnsetType | None = UNSET
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
