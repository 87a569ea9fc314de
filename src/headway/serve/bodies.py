"""OpenAI API requests and answers. Unknown fields are rejected by name; `NEUTRAL` lists more fields that are
accepted with values that have no effect.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from headway.serve.body_reader import Neutral, Neutrals

_Probability = Annotated[float, Meta(ge=0, le=1)]
_Penalty = Annotated[float, Meta(ge=-2, le=2)]
_Count = Annotated[int, Meta(ge=1)]
# A text part of a message. Parts of other types are rejected later, where the error can give a reason.
_TEXT = {"type": {"const": "text"}, "text": {"type": "string"}}
_TextPart = Annotated[
    dict[str, Any],
    Meta(extra_json_schema={"properties": _TEXT, "required": list(_TEXT), "additionalProperties": False}),
]
FinishReason = Literal["stop", "length", "tool_calls"]


_NOT_STORED = "the server stores nothing; leave it out"
HINT = Neutral(kind=str)  # for caching and abuse detection in hosted services; no answer depends on it


class StreamOptions(msgspec.Struct, forbid_unknown_fields=True):
    """`include_usage` adds an event with token counts to the end of a stream; with `continuous_usage_stats` every event
    has them.
    """

    include_usage: bool = False
    continuous_usage_stats: bool = False
    NEUTRAL: ClassVar[Neutrals] = {"include_obfuscation": Neutral((False,), "events are not padded; set it to false")}


class GenerationBody(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Fields of all requests that generate text. `top_k`, `min_p`, `repetition_penalty` and `ignore_end` are headway's
    own, as in `generate`. `user` has no effect. The fields from `ignore_eos` on are vLLM's.
    """

    model: str = ""  # optional if the server has one model
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: _Count | None = None
    max_tokens: _Count | None = None
    temperature: Annotated[float, Meta(ge=0)] | None = None
    top_p: _Probability | None = None
    top_k: _Count | None = None
    min_p: _Probability | None = None
    repetition_penalty: Annotated[float, Meta(gt=0)] | None = None
    presence_penalty: _Penalty | None = None
    frequency_penalty: _Penalty | None = None
    logit_bias: dict[str, float] | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    ignore_end: bool = False
    response_format: dict[str, Any] | None = None
    user: str | None = None
    ignore_eos: bool = False  # alias of ignore_end
    min_tokens: Annotated[int, Meta(ge=0)] = 0  # tokens to generate before an end token may occur
    stop_token_ids: list[int] | None = None
    allowed_token_ids: list[int] | None = None
    truncate_prompt_tokens: Annotated[int, Meta(ge=-1)] | None = None  # -1: as many as fit into the context
    truncation_side: Literal["left", "right"] = "left"  # side from which tokens are dropped
    prompt_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None  # number of top tokens per position
    return_token_ids: bool = False
    return_tokens_as_token_ids: bool = False  # name the tokens of logprobs "token_id:42"
    structured_outputs: dict[str, Any] | None = None  # vLLM's version of response_format

    NEUTRAL: ClassVar[Neutrals] = {
        "store": Neutral((False,), _NOT_STORED),
        "metadata": Neutral(({},), _NOT_STORED),
        "service_tier": Neutral(("auto", "default"), "there is one tier; leave it out"),
        "safety_identifier": HINT,
        "prompt_cache_key": HINT,
        "prompt_cache_retention": HINT,
        "best_of": Neutral((), "answers are not ranked; generate them with n and choose among them", "n"),
        "top_k": Neutral((0, -1)),
        "use_beam_search": Neutral((False,), "beam search is not supported; leave it out"),
        "length_penalty": Neutral((1, 1.0), "beam search is not supported; leave it out"),
        "early_stopping": Neutral((False,), "beam search is not supported; leave it out"),
        "bad_words": Neutral(([],), "words cannot be excluded; exclude tokens with logit_bias"),
        "logprob_token_ids": Neutral(([],), "only the top tokens are reported; pass top_logprobs"),
        "skip_special_tokens": Neutral((True,), "the output text never contains special tokens; pass return_token_ids"),
        "spaces_between_special_tokens": Neutral((True,), "the output has no special tokens; pass return_token_ids"),
        "include_stop_str_in_output": Neutral((False,), "the stop string is not part of the output; append it"),
        "no_stop_trim": Neutral((False,), "the stop string is not part of the output; append it"),
        "return_hidden_states": Neutral((False,), "hidden states are not returned; ask /v1/embeddings for vectors"),
        "separate_reasoning": Neutral((True,), "thinking is always separate, in reasoning_content; leave it out"),
        "stream_reasoning": Neutral((True,), "thinking is streamed as it is generated; leave it out"),
        "priority": Neutral((0,), "requests are scheduled fairly between API keys; leave it out"),
        "documents": Neutral(([],), "documents are not supported; put them into the prompt"),
        "vllm_xargs": Neutral(({},), "vLLM extensions are not supported; leave it out"),
    }


class CompletionBody(GenerationBody, kw_only=True):
    """A request to /v1/completions, which continues strings or lists of token ids. With `echo` the answer starts
    with the prompt; `max_tokens` may then be 0.
    """

    prompt: str | list[str | int | list[int]]
    max_tokens: Annotated[int, Meta(ge=0)] | None = None
    logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None  # number of top tokens per position
    echo: bool = False
    add_special_tokens: bool = True  # whether a text prompt gets the model's special tokens

    NEUTRAL: ClassVar[Neutrals] = {
        **GenerationBody.NEUTRAL,
        "suffix": Neutral(("",), "infilling is not supported; put the suffix into the prompt"),
    }


class ChatBody(GenerationBody, kw_only=True):
    """A request to /v1/chat/completions for the next answer in a conversation."""

    messages: list[ChatMessage]
    max_completion_tokens: _Count | None = None  # the newer name of max_tokens
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    chat_template_kwargs: dict[str, bool | int | float | str] | None = None  # more variables for the chat template
    add_generation_prompt: bool | None = None  # whether to start an answer (default: unless the last message continues)
    continue_final_message: bool = False  # whether to continue the assistant's last message
    reasoning_effort: str | None = None  # for chat templates that use it; "none" is also thinking_token_budget 0
    thinking_token_budget: int | None = None  # vLLM's: maximum tokens of thinking; 0 turns it off, -1: no limit
    include_reasoning: bool = True  # vLLM's: whether the answer has reasoning_content

    NEUTRAL: ClassVar[Neutrals] = {
        **GenerationBody.NEUTRAL,
        "modalities": Neutral((["text"],), 'answers are text only; pass ["text"]'),
        "audio": Neutral((), "answers are text only; leave it out"),
        "prediction": Neutral((), "predicted outputs are not supported; leave it out"),
        "web_search_options": Neutral((), "web search is not supported; leave it out"),
        "verbosity": Neutral(("medium",), "models have no verbosity setting; ask for it in a message"),
        "functions": Neutral(([],), "functions are passed as tools; use tools"),
        "function_call": Neutral(("none", "auto"), "functions are passed as tools; use tool_choice"),
        "echo": Neutral((False,), "answers do not repeat messages; leave it out"),
        "add_special_tokens": Neutral((False,), "the chat template adds special tokens; leave it out"),
        "chat_template": Neutral((), "the model's own chat template is used; leave it out"),
    }


class CalledFunction(msgspec.Struct, forbid_unknown_fields=True):
    """A function, and its arguments as a JSON string."""

    name: str
    arguments: str = ""


class CalledTool(msgspec.Struct, forbid_unknown_fields=True):
    """A tool call."""

    id: str
    function: CalledFunction
    type: Literal["function"] = "function"
    NEUTRAL: ClassVar[Neutrals] = {"index": Neutral(kind=int)}  # clients that assemble a stream keep it


class ChatMessage(msgspec.Struct, forbid_unknown_fields=True):
    """A message of a conversation. The role `developer` is treated as `system`."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[_TextPart] | None = None
    name: str | UnsetType = UNSET
    tool_calls: list[CalledTool] | None = None
    tool_call_id: str | UnsetType = UNSET
    refusal: str | None = None
    reasoning_content: str | None = None  # of an earlier answer; the chat template decides whether the model reads it
    reasoning: str | None = None  # the same, as other servers name it
    NEUTRAL: ClassVar[Neutrals] = {  # what the openai package, LangChain, and litellm return with an answer
        "annotations": Neutral(([],), "messages are text only; leave it out"),
        "audio": Neutral((), "messages are text only; leave it out"),
        "function_call": Neutral((), "functions are passed as tools; use tool_calls"),
        "images": Neutral(([],), "messages are text only; leave it out"),
        "provider_specific_fields": Neutral(({},), "messages have no other fields; leave it out"),
    }


class PromptTokens(msgspec.Struct):
    """How many prompt tokens were cached by earlier requests with the same key, and so were not computed."""

    cached_tokens: int


class CompletionTokens(msgspec.Struct):
    """How many tokens of the output are thinking, without the markers around it."""

    reasoning_tokens: int


class TokensUsed(msgspec.Struct):
    """Token counts: the prompts (each counted once), the output, and their sum. Models that think have the last
    field.
    """

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokens
    completion_tokens_details: CompletionTokens | UnsetType = UNSET


class TopLogprob(msgspec.Struct):
    """A token as text and as bytes, which may be only part of a character, and its log probability in nats."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    """A generated token, and the top tokens at its position."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(msgspec.Struct):
    """Log probabilities of an answer's tokens."""

    content: list[TokenLogprob]


class TextLogprobs(msgspec.Struct):
    """For each token in a completion: its text, its log probability, those of the top tokens (and itself), and
    the offset where its text starts. The first token of a prompt has no log probability.
    """

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class PromptToken(msgspec.Struct):
    """A token of a prompt or an alternative to it: its log probability, its rank (1 for the top one), and its text."""

    logprob: float
    rank: int
    decoded_token: str


# Per token of a prompt: the token itself and the top tokens, by id. None for the first token.
PromptLogprobs = list[dict[str, PromptToken] | None]


class CompletionChoice(msgspec.Struct):
    """One continuation, or its new part. The fields from `prompt_logprobs` on are present only if requested."""

    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: FinishReason | None
    prompt_logprobs: PromptLogprobs | UnsetType | None = UNSET
    prompt_token_ids: list[int] | UnsetType | None = UNSET
    token_ids: list[int] | UnsetType | None = UNSET


class CompletionAnswer(msgspec.Struct):
    """Continuations; in a stream, each event is one of these with the new part."""

    id: str
    created: int
    model: str
    system_fingerprint: str  # if it changes, the same request may give different bits
    choices: list[CompletionChoice]
    usage: TokensUsed | UnsetType | None = UNSET
    object: Literal["text_completion"] = "text_completion"


class AnswerMessage(msgspec.Struct):
    """The assistant's message, its tool calls, and the thinking before it."""

    content: str | None
    tool_calls: list[CalledTool] | UnsetType = UNSET
    role: Literal["assistant"] = "assistant"
    refusal: None = None
    reasoning_content: str | UnsetType = UNSET


class ChatChoice(msgspec.Struct):
    """One answer."""

    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason
    token_ids: list[int] | None = None


class ChatAnswer(msgspec.Struct):
    """Answers in a conversation."""

    id: str
    created: int
    model: str
    system_fingerprint: str  # if it changes, the same request may give different bits
    choices: list[ChatChoice]
    usage: TokensUsed
    object: Literal["chat.completion"] = "chat.completion"
    prompt_logprobs: PromptLogprobs | None = None
    prompt_token_ids: list[int] | None = None


class CalledFunctionPart(msgspec.Struct):
    """The new part of a called function: its name once, and its arguments in chunks."""

    arguments: str
    name: str | UnsetType = UNSET


class CalledToolPart(msgspec.Struct):
    """The new part of the tool call at `index`. The first part has `id`, `type` and the name."""

    index: int
    function: CalledFunctionPart
    id: str | UnsetType = UNSET
    type: Literal["function"] | UnsetType = UNSET


class AnswerPart(msgspec.Struct, omit_defaults=True):
    """The new part of a message."""

    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType = UNSET
    tool_calls: list[CalledToolPart] | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET


class ChatChoicePart(msgspec.Struct):
    """The new part of one answer."""

    index: int
    delta: AnswerPart
    logprobs: ChatLogprobs | None = None
    finish_reason: FinishReason | None = None
    token_ids: list[int] | UnsetType = UNSET


class ChatAnswerPart(msgspec.Struct):
    """An event in a stream of answers."""

    id: str
    created: int
    model: str
    system_fingerprint: str  # if it changes, the same request may give different bits
    choices: list[ChatChoicePart]
    usage: TokensUsed | UnsetType | None = UNSET
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    prompt_token_ids: list[int] | UnsetType = UNSET
