"""Ollama API requests and answers. Unknown fields are rejected by name."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from headway.serve.bodies import TokenLogprob
from headway.serve.body_reader import Neutral, Neutrals

Probability = Annotated[float, Meta(ge=0, le=1)]
Image = str  # in base64
_UNSUPPORTED_SAMPLING = "this sampling method is not supported; leave it out"


class Options(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Generation settings. Those from `numa` on have no effect, because they are chosen when the server starts."""

    num_predict: int | None = None  # below 0: limited only by the context
    temperature: Annotated[float, Meta(ge=0)] | None = None
    top_k: int | None = None  # below 1: all tokens
    top_p: Probability | None = None
    min_p: Probability | None = None
    seed: int | None = None  # below 0: a new one each time
    stop: str | list[str] | None = None
    repeat_penalty: Annotated[float, Meta(gt=0)] | None = None
    repeat_last_n: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    mirostat_tau: float | None = None
    mirostat_eta: float | None = None
    penalize_newline: bool | None = None
    numa: bool | None = None
    num_ctx: int | None = None
    num_batch: int | None = None
    num_gpu: int | None = None
    main_gpu: int | None = None
    num_thread: int | None = None
    num_keep: int | None = None
    low_vram: bool | None = None
    f16_kv: bool | None = None
    logits_all: bool | None = None
    vocab_only: bool | None = None
    use_mmap: bool | None = None
    use_mlock: bool | None = None
    embedding_only: bool | None = None

    NEUTRAL: ClassVar[Neutrals] = {
        "typical_p": Neutral((1, 1.0), _UNSUPPORTED_SAMPLING),
        "tfs_z": Neutral((1, 1.0), _UNSUPPORTED_SAMPLING),
        "mirostat": Neutral((0,), _UNSUPPORTED_SAMPLING),
    }


class ModelBody(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Fields of all requests to a model. `keep_alive` has no effect: start the server with --keep-alive."""

    model: str
    options: Options | None = None
    keep_alive: float | str | None = None


class TextBody(ModelBody, kw_only=True):
    """Fields of all requests that generate text. Answers are streamed unless `stream` is false. `format` is "json" or a
    schema.
    """

    stream: bool | None = None
    format: str | dict[str, Any] | None = None
    think: bool | str | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None


class CallFunction(msgspec.Struct, forbid_unknown_fields=True):
    """A function, and its arguments as an object."""

    name: str
    arguments: dict[str, Any] = {}
    index: int | UnsetType = UNSET
    description: str | UnsetType = UNSET


class MessageCall(msgspec.Struct, forbid_unknown_fields=True):
    """A tool call."""

    function: CallFunction
    id: str | UnsetType = UNSET
    type: str | UnsetType = UNSET


class OllamaMessage(msgspec.Struct, forbid_unknown_fields=True):
    """A message of a conversation. The chat template decides whether the model reads earlier `thinking`."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str | None = None
    thinking: str | None = None
    images: list[Image] | None = None
    tool_calls: list[MessageCall] | None = None
    tool_name: str | None = None
    tool_call_id: str | None = None


class OllamaChatBody(TextBody, kw_only=True):
    """A request to /api/chat. Without messages the model is only loaded."""

    messages: list[OllamaMessage] | None = None
    tools: list[dict[str, Any]] | None = None


class GenerateBody(TextBody, kw_only=True):
    """A request to /api/generate. If the model has a chat template, the prompt is a user message unless it is `raw`.
    With a `suffix`, the text in between is generated. Without a prompt the model is only loaded.
    """

    prompt: str | None = None
    suffix: str | None = None
    system: str | None = None
    raw: bool | None = None
    images: list[Image] | None = None
    template: str | None = None
    context: list[int] | None = None


class EmbedBody(ModelBody, kw_only=True):
    """A request to /api/embed. Text is cut to the model's context unless `truncate` is false."""

    input: str | list[str]
    truncate: bool | None = None
    dimensions: Annotated[int, Meta(ge=1)] | None = None


class EmbeddingsBody(ModelBody, kw_only=True):
    """A request to /api/embeddings, the older endpoint for a single text."""

    prompt: str


class ShowBody(msgspec.Struct, forbid_unknown_fields=True):
    """A request to /api/show. `name` is an alias of `model`; `verbose` has no effect."""

    model: str = ""
    name: str = ""
    verbose: bool | None = None


class LineMessage(msgspec.Struct):
    """The assistant's message, or its new part. Tool calls are never split."""

    content: str
    thinking: str | UnsetType = UNSET
    tool_calls: list[MessageCall] | UnsetType = UNSET
    role: Literal["assistant"] = "assistant"


class OllamaLine(msgspec.Struct, kw_only=True):
    """An answer, or a line of one: `message` for a chat, `response` for a prompt. The last line is `done` and has token
    counts, and durations in nanoseconds.
    """

    model: str
    created_at: str
    message: LineMessage | UnsetType = UNSET
    response: str | UnsetType = UNSET
    thinking: str | UnsetType = UNSET
    logprobs: list[TokenLogprob] | UnsetType = UNSET
    done: bool = False
    done_reason: Literal["stop", "length", "load"] | UnsetType = UNSET
    total_duration: int | UnsetType = UNSET
    load_duration: int | UnsetType = UNSET
    prompt_eval_count: int | UnsetType = UNSET
    prompt_eval_duration: int | UnsetType = UNSET
    eval_count: int | UnsetType = UNSET
    eval_duration: int | UnsetType = UNSET


class EmbedAnswer(msgspec.Struct):
    """The unit-length embedding of each input."""

    model: str
    embeddings: list[Any]
    total_duration: int
    load_duration: int
    prompt_eval_count: int


class EmbeddingsAnswer(msgspec.Struct):
    """The unit-length embedding of the prompt."""

    embedding: Any


class Details(msgspec.Struct):
    """Ollama's description of a model. Unknown values are empty."""

    parameter_size: str
    family: str = ""
    families: list[str] = []
    format: str = ""
    parent_model: str = ""
    quantization_level: str = ""


class ListedModel(msgspec.Struct):
    """A model. `size` is the size of its weights in fp32; `digest` changes with its size and modification time."""

    name: str
    model: str
    modified_at: str
    size: int
    digest: str
    details: Details


class ModelsAnswer(msgspec.Struct):
    models: list[ListedModel]


class RunningModel(ListedModel):
    """A loaded model that generates text."""

    expires_at: str
    size_vram: int
    context_length: int


class RunningAnswer(msgspec.Struct):
    models: list[RunningModel]


class ShowAnswer(msgspec.Struct):
    """The description of a model and its capabilities."""

    details: Details
    model_info: dict[str, Any]
    capabilities: list[str]
    modified_at: str
    template: str
    parameters: str = ""
    license: str = ""
    modelfile: str = ""


class OllamaVersion(msgspec.Struct):
    """The version of the Ollama API, and that of headway."""

    version: str
    headway: str
