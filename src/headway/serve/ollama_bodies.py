"""What is asked and answered in ollama's API: fields that are not here are refused by name."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from headway.serve.bodies import ToldToken
from headway.serve.neutral import Neutral, Neutrals

Share = Annotated[float, Meta(ge=0, le=1)]
Image = str  # in base64
_SAMPLING = "that way of sampling is not known here; leave it out"


class Options(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Settings of a text. Those from `numa` on are chosen where the server is started, and change nothing."""

    num_predict: int | None = None  # below 0: no limit but the context's
    temperature: Annotated[float, Meta(ge=0)] | None = None
    top_k: int | None = None  # below 1: all tokens
    top_p: Share | None = None
    min_p: Share | None = None
    seed: int | None = None  # below 0: another one each time
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
        "typical_p": Neutral((1, 1.0), _SAMPLING),
        "tfs_z": Neutral((1, 1.0), _SAMPLING),
        "mirostat": Neutral((0,), _SAMPLING),
    }


class ModelBody(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """What all requests for answers say. `keep_alive` changes nothing: the server is started with --keep-alive."""

    model: str
    options: Options | None = None
    keep_alive: float | str | None = None


class TextBody(ModelBody, kw_only=True):
    """What all requests for texts say. They are streams unless `stream` is false. `format` is "json" or a schema."""

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
    """A call of a tool."""

    function: CallFunction
    id: str | UnsetType = UNSET
    type: str | UnsetType = UNSET


class OllamaMessage(msgspec.Struct, forbid_unknown_fields=True):
    """A turn. What an assistant thought before is not read."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str | None = None
    thinking: str | None = None
    images: list[Image] | None = None
    tool_calls: list[MessageCall] | None = None
    tool_name: str | None = None
    tool_call_id: str | None = None


class OllamaChatBody(TextBody, kw_only=True):
    """Of /api/chat. Without messages the model is loaded."""

    messages: list[OllamaMessage] | None = None
    tools: list[dict[str, Any]] | None = None


class GenerateBody(TextBody, kw_only=True):
    """Of /api/generate. The prompt is a user's message where the model has a chat template, unless it is `raw`. With a
    `suffix` the text between both is generated. Without a prompt the model is loaded.
    """

    prompt: str | None = None
    suffix: str | None = None
    system: str | None = None
    raw: bool | None = None
    images: list[Image] | None = None
    template: str | None = None
    context: list[int] | None = None


class EmbedBody(ModelBody, kw_only=True):
    """Of /api/embed. Texts that are too long are cut unless `truncate` is false."""

    input: str | list[str]
    truncate: bool | None = None
    dimensions: Annotated[int, Meta(ge=1)] | None = None


class EmbeddingsBody(ModelBody, kw_only=True):
    """Of /api/embeddings, the older form: one text."""

    prompt: str


class ShowBody(msgspec.Struct, forbid_unknown_fields=True):
    """Of /api/show. `name` is the older name of `model`; `verbose` changes nothing."""

    model: str = ""
    name: str = ""
    verbose: bool | None = None


class LineMessage(msgspec.Struct):
    """What the assistant says, or what is new of it. Each call comes whole."""

    content: str
    thinking: str | UnsetType = UNSET
    tool_calls: list[MessageCall] | UnsetType = UNSET
    role: Literal["assistant"] = "assistant"


class OllamaLine(msgspec.Struct, kw_only=True):
    """An answer, or a line of one: with `message` of a chat, with `response` of a prompt. The last one is `done` and
    has the numbers of tokens, and durations in nanoseconds.
    """

    model: str
    created_at: str
    message: LineMessage | UnsetType = UNSET
    response: str | UnsetType = UNSET
    thinking: str | UnsetType = UNSET
    logprobs: list[ToldToken] | UnsetType = UNSET
    done: bool = False
    done_reason: Literal["stop", "length", "load"] | UnsetType = UNSET
    total_duration: int | UnsetType = UNSET
    load_duration: int | UnsetType = UNSET
    prompt_eval_count: int | UnsetType = UNSET
    prompt_eval_duration: int | UnsetType = UNSET
    eval_count: int | UnsetType = UNSET
    eval_duration: int | UnsetType = UNSET


class EmbedAnswer(msgspec.Struct):
    """A vector of unit length for each input."""

    model: str
    embeddings: list[Any]
    total_duration: int
    load_duration: int
    prompt_eval_count: int


class EmbeddingsAnswer(msgspec.Struct):
    """The vector of the prompt, of unit length."""

    embedding: Any


class Details(msgspec.Struct):
    """What ollama says of a model. What is not known is empty."""

    parameter_size: str
    family: str = ""
    families: list[str] = []
    format: str = ""
    parent_model: str = ""
    quantization_level: str = ""


class ListedModel(msgspec.Struct):
    """A model that can be asked for. `size` is that of its weights in fp32; `digest` changes with its size and time."""

    name: str
    model: str
    modified_at: str
    size: int
    digest: str
    details: Details


class ModelsAnswer(msgspec.Struct):
    models: list[ListedModel]


class RunningModel(ListedModel):
    """A model that is loaded, and writes."""

    expires_at: str
    size_vram: int
    context_length: int


class RunningAnswer(msgspec.Struct):
    models: list[RunningModel]


class ShowAnswer(msgspec.Struct):
    """What a model is, and what it can do."""

    details: Details
    model_info: dict[str, Any]
    capabilities: list[str]
    modified_at: str
    template: str
    parameters: str = ""
    license: str = ""
    modelfile: str = ""


class OllamaVersion(msgspec.Struct):
    """The version of ollama's API that is served, and headway's own."""

    version: str
    headway: str
