"""Embeddings for text and images: the OpenAI API's /v1/embeddings."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, cast

import msgspec
import numpy as np
from msgspec import Meta

from headway.app.model import Model
from headway.app.predictors import predictor
from headway.codecs.tokenizer_files import object_or_empty
from headway.domains.image_text import pair_inference as towers
from headway.domains.understanding import predictors as encoders
from headway.errors import UserError
from headway.learn.token_rows import TokenRows, concatenate_rows, frame_rows
from headway.nn.models import TwoTower, kinds
from headway.serve.body_reader import Neutral, Neutrals, check_count
from headway.serve.http_errors import StatusError
from headway.serve.interfaces import Context, Endpoint, ReadyModel
from headway.serve.media import image_of

_INLINE_CHARACTERS = 1 << 12  # below this, tokenizing is faster than handing the text to a thread
_MAX_PADDING, _FREE_PADDING = 0.05, 64  # maximum share of a batch, and padding tokens that cost less than another batch
_LITTLE_ENDIAN = np.dtype("<f4")


class EmbeddingBody(msgspec.Struct, forbid_unknown_fields=True):
    """`input` is text, or ids from the model's tokenizer without special tokens, or images as data: URLs. `truncate`
    cuts text to the model's context; otherwise longer text is rejected. `prompt` names a prompt of the model to put
    before each text, such as query or document. `user` has no effect. `dimensions` may be smaller than the model's only
    if it was trained for that.
    """

    input: str | list[str | int | list[int]]
    model: str = ""
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[int, Meta(ge=1)] | None = None
    truncate: bool = False
    prompt: str | None = None
    user: str | None = None

    NEUTRAL: ClassVar[Neutrals] = {
        "add_special_tokens": Neutral((True,), "special tokens are always added; leave it out"),
        "truncate_prompt_tokens": Neutral((), "text is only cut to the model's context; use truncate"),
        "priority": Neutral((0,), "requests are scheduled fairly between API keys; leave it out"),
        "normalize": Neutral((True,), "embeddings have the length that the model's modules give them; leave it out"),
    }


class InputVector(msgspec.Struct):
    """The embedding of one input: floats, or little-endian float32 in base64."""

    index: int
    embedding: list[float] | str
    object: str = "embedding"


class InputUsage(msgspec.Struct):
    """Number of input tokens, including special tokens; 0 for images."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingAnswer(msgspec.Struct):
    data: list[InputVector]
    model: str
    usage: InputUsage
    object: str = "list"


class _Vector(NamedTuple):
    """The embedding of an input, and its number of tokens."""

    vector: np.ndarray
    tokens: int


async def embed(body: EmbeddingBody, context: Context) -> EmbeddingAnswer:
    """The embedding of each input."""
    items = _items(body.input)
    async with context.served.using(body.model) as ready:
        model = ready.model
        predictor(model, "embed")  # UserError for a model without embeddings
        encoders.sentence_prompt(model, body.prompt)  # UserError for an unknown one
        prompt = body.prompt or model.usage.sentence.default_prompt
        if prompt is not None and not all(isinstance(item, str) for item in items):
            raise StatusError(400, "a prompt comes before text, but the input has ids; send strings", "prompt")
        if body.dimensions not in (None, _width(model)):
            await asyncio.to_thread(_check_dimensions, body.dimensions, ready)
        are_images = all(isinstance(item, str) and item.startswith("data:image/") for item in items)
        if kinds.is_vision(model.module) or are_images:
            decode = lambda: [image_of(item, f"input {number}") for number, item in enumerate(items, 1)]  # noqa: E731
            images = await asyncio.to_thread(decode)
            vectors = await ready.batcher.submit(lambda images: list(model.embed(images).numpy()), "images", images)
            tokens = 0
        else:
            encode_items = partial(_encode, model, items, body.truncate, body.prompt)
            is_short = sum(map(len, items)) <= _INLINE_CHARACTERS
            if is_short and isinstance(items[0], str):
                rows = cast(list[Any], items)  # tokenized in the model's thread, with other requests
            else:
                rows = encode_items() if is_short else await asyncio.to_thread(encode_items)
            settings = body.truncate, body.prompt
            embedded = await ready.batcher.submit(partial(_embed_rows, model, *settings), ("texts", *settings), rows)
            if None in embedded:
                encode_items()  # raises an error that names the wrong input
            vectors, counts = zip(*embedded)
            tokens = sum(counts)
    context.log_fields["prompt_tokens"] = tokens
    if body.dimensions not in (None, _width(model)):
        vectors = [vector[: body.dimensions] for vector in vectors]
        smallest = float(np.finfo(np.float32).tiny)
        vectors = [vector / max(float(np.linalg.norm(vector)), smallest) for vector in vectors]
    if body.encoding_format == "float":
        encoded = [vector.tolist() for vector in vectors]
    else:
        encoded = [base64.b64encode(vector.astype(_LITTLE_ENDIAN).tobytes()).decode() for vector in vectors]
    data = [InputVector(index, vector) for index, vector in enumerate(encoded)]
    return EmbeddingAnswer(data, ready.name, InputUsage(tokens, tokens))


def _items(inputs: str | Sequence[str | int | list[int]]) -> list[str | list[int]]:
    """The inputs: one text, one list of ids, or several of one kind. UserError for anything else."""
    if isinstance(inputs, str):
        return [inputs]
    if inputs and all(isinstance(item, int) for item in inputs):
        return [list(inputs)]  # type: ignore[list-item]
    check_count(inputs, "input", "input")
    if len({type(item) for item in inputs}) > 1 or isinstance(inputs[0], int):
        raise StatusError(400, "input mixes strings and ids; send a string, strings, ids, or lists of ids", "input")
    return list(inputs)  # type: ignore[arg-type]


def _encode(model: Model, items: Sequence[str | list[int]], truncate: bool, prompt: str | None) -> list[np.ndarray]:
    """The token ids of each input. UserError for an empty or too long text, an unknown prompt, and unknown ids."""
    module: Any = model.module
    strings = [item for item in items if isinstance(item, str)]
    ids = [item for item in items if not isinstance(item, str)]
    if strings and isinstance(module, TwoTower):
        towers.check_texts(strings)
        rows = towers.text_rows(model.codec, strings, module.config, truncate)
    elif strings:
        rows = encoders.sentence_rows(model, strings, truncate, encoders.sentence_prompt(model, prompt))
    elif isinstance(module, TwoTower):
        raise UserError("this image-text model does not accept token ids; send strings")
    else:
        vocab_size = model.codec.vocab_size
        for number, row in enumerate(ids, 1):
            if not row or not all(0 <= id < vocab_size for id in row):
                raise StatusError(
                    400, f"input {number} is empty or has unknown ids; send ids from 0 to {vocab_size - 1}", "input"
                )
        rows = frame_rows(encoders.text_frame(model), ids, None, encoders.sentence_limit(model, truncate))
    return np.split(rows.ids, rows.offsets[1:-1])


def _embed_rows(
    model: Model, truncate: bool, prompt: str | None, items: Sequence[str | np.ndarray]
) -> list[_Vector | None]:
    """The embeddings of texts, or of their token ids; None for an invalid text."""
    module: Any = model.module
    rows = _encode_each(model, truncate, prompt, items)
    valid_indices = [index for index, row in enumerate(rows) if row is not None]
    embedded: list[_Vector | None] = [None] * len(rows)
    # Groups of rows with nearly equal lengths avoid padding.
    lengths = np.array([len(rows[index]) for index in valid_indices], int)
    order = np.argsort(lengths, kind="stable")
    edges = [0]
    for stop in range(1, len(order)):
        group_lengths = lengths[order[edges[-1] : stop + 1]]
        padding = len(group_lengths) * group_lengths[-1] - group_lengths.sum()
        if padding > max(_FREE_PADDING, _MAX_PADDING * group_lengths.sum()):
            edges.append(stop)
    for group in np.split(order, edges[1:]) if valid_indices else ():
        batch = TokenRows(*concatenate_rows([rows[valid_indices[i]] for i in group]))
        if isinstance(module, TwoTower):
            vectors = towers.text_vectors(module, batch, np.arange(len(group)))
        else:
            vectors = encoders.embed_rows(module, batch, encoders.sentence_prompt(model, prompt).skip)
        for i, vector in zip(group, vectors.numpy()):
            embedded[valid_indices[i]] = _Vector(vector, len(rows[valid_indices[i]]))
    return embedded


def _encode_each(model: Model, truncate: bool, prompt: str | None, items: Sequence[str | np.ndarray]) -> list[Any]:
    """The token ids of each item, texts all at once. An invalid text is None and does not affect the others."""
    strings = [item for item in items if isinstance(item, str)]
    try:
        encoded = iter(_encode(model, strings, truncate, prompt) if strings else ())
    except UserError:
        if len(items) == 1:
            return [None]
        return [row for item in items for row in _encode_each(model, truncate, prompt, [item])]
    return [next(encoded) if isinstance(item, str) else item for item in items]


def _width(model: Model) -> int:
    module: Any = model.module
    if isinstance(module, TwoTower):
        return module.width
    return module.heads["embedding"].size if "embedding" in module.heads else module.config.width


def _check_dimensions(wanted: int, ready: ReadyModel) -> None:
    """StatusError 400 for a model that was not trained for shorter embeddings (Kusupati et al. 2022, Matryoshka
    representations). The names in its configuration are those that vLLM reads.
    """
    width, settings = _width(ready.model), object_or_empty(ready.model.directory / "config.json")
    sizes, reason = settings.get("matryoshka_dimensions"), ""
    if isinstance(sizes, list) and sizes:
        if wanted in sizes and wanted <= width:
            return
        reason = f", and it was trained for {', '.join(map(str, sizes))}; choose one of these"
    elif settings.get("is_matryoshka") is True:
        if wanted <= width:
            return
        reason = "; request fewer"
    reason = reason or ", and its configuration has no shorter ones (matryoshka_dimensions); leave dimensions out"
    raise StatusError(400, f"an embedding of {ready.name} has {width} dimensions{reason}"[:500], "dimensions")


ENDPOINTS = (Endpoint("POST", "/v1/embeddings", embed, "the embedding of each input", EmbeddingBody, EmbeddingAnswer),)
