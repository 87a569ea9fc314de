"""Embeddings of texts and images: /v1/embeddings of the OpenAI API."""

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
from headway.codecs.files import object_or_empty
from headway.domains.image_text import use as towers
from headway.domains.understanding import use as encoders
from headway.errors import UserError
from headway.learn.rows import FramedRows, Limit, flat, frame_for, framed
from headway.nn.models import TwoTower, kinds
from headway.serve.errors import StatusError
from headway.serve.frame import Context, Endpoint, Ready
from headway.serve.media import image_of
from headway.serve.neutral import Neutral, Neutrals

_MOST = 2048  # maximum inputs of a request, as in OpenAI's service
_AT_ONCE = 1 << 12  # characters that are tokenized faster than handed to a thread
_PADDING, _FEW = 0.05, 64  # maximum share of a batch, and tokens of it that cost less than another batch
_LITTLE_ENDIAN = np.dtype("<f4")


class EmbeddingBody(msgspec.Struct, forbid_unknown_fields=True):
    """`input` is texts, or ids of the model's tokenizer without special tokens, or images as data: URLs. `truncate`
    cuts texts to the model's context; longer ones are refused otherwise. `user` has no effect. `dimensions` may be
    smaller than the model's only if it was trained for that.
    """

    input: str | list[str | int | list[int]]
    model: str = ""
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[int, Meta(ge=1)] | None = None
    truncate: bool = False
    user: str | None = None

    NEUTRAL: ClassVar[Neutrals] = {
        "add_special_tokens": Neutral((True,), "special tokens are always added; leave it out"),
        "truncate_prompt_tokens": Neutral((), "texts are only cut to the model's context; use truncate"),
        "priority": Neutral((0,), "requests are scheduled fairly between API keys; leave it out"),
        "normalize": Neutral((True,), "embeddings always have unit length; leave it out"),
    }


class InputVector(msgspec.Struct):
    """The unit-length embedding of one input: floats, or little-endian float32 in base64."""

    index: int
    embedding: list[float] | str
    object: str = "embedding"


class ReadTokens(msgspec.Struct):
    """Number of input tokens, special tokens included; 0 for images."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingAnswer(msgspec.Struct):
    data: list[InputVector]
    model: str
    usage: ReadTokens
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
        if body.dimensions not in (None, _width(model)):
            await asyncio.to_thread(_check_dimensions, body.dimensions, ready)
        if kinds.is_vision(model.module) or _are_images(items):
            images = await asyncio.to_thread(_images, model, items)
            vectors = await ready.batcher.ask(partial(_seen, model), "images", images)
            tokens = 0
        else:
            reading = partial(_rows, model, items, body.truncate)
            short = sum(map(len, items)) <= _AT_ONCE
            if short and isinstance(items[0], str):
                rows = cast(list[Any], items)  # tokenized in the model's thread, with other requests
            else:
                rows = reading() if short else await asyncio.to_thread(reading)
            found = await ready.batcher.ask(partial(_read, model, body.truncate), ("texts", body.truncate), rows)
            if None in found:
                reading()  # raises an error that names the wrong input
            vectors, counts = zip(*found)
            tokens = sum(counts)
    context.noted["prompt_tokens"] = tokens
    if body.dimensions not in (None, _width(model)):
        vectors = [_shortened(vector, body.dimensions) for vector in vectors]
    said = [vector.tolist() if body.encoding_format == "float" else _packed(vector) for vector in vectors]
    data = [InputVector(index, vector) for index, vector in enumerate(said)]
    return EmbeddingAnswer(data, ready.name, ReadTokens(tokens, tokens))


def _items(given: str | Sequence[str | int | list[int]]) -> list[str | list[int]]:
    """The inputs: one text, one list of ids, or several of one kind. UserError for anything else."""
    if isinstance(given, str):
        return [given]
    if given and all(isinstance(item, int) for item in given):
        return [list(given)]  # type: ignore[list-item]
    if not 1 <= len(given) <= _MOST:
        raise StatusError(400, f"input has {len(given):,} items; send 1 to {_MOST:,}", "input")
    if len({type(item) for item in given}) > 1 or isinstance(given[0], int):
        raise StatusError(400, "input mixes strings and ids; send a string, strings, ids, or lists of ids", "input")
    return list(given)  # type: ignore[arg-type]


def _are_images(items: Sequence[str | list[int]]) -> bool:
    return all(isinstance(item, str) and item.startswith("data:image/") for item in items)


def _images(model: Model, items: Sequence[str | list[int]]) -> list[np.ndarray]:
    return [image_of(item, f"input {number}") for number, item in enumerate(items, 1)]


def _rows(model: Model, items: Sequence[str | list[int]], truncate: bool) -> list[np.ndarray]:
    """The token ids of each input. UserError for an empty or too long text, and for unknown ids."""
    texts = [item for item in items if isinstance(item, str)]
    rows = _of_texts(model, texts, truncate) if texts else _of_ids(model, items, truncate)  # type: ignore[arg-type]
    return np.split(rows.ids, rows.offsets[1:-1])


def _of_texts(model: Model, texts: Sequence[str], truncate: bool) -> FramedRows:
    module: Any = model.module
    if isinstance(module, TwoTower):
        towers.check_texts(texts)
        return towers.text_rows(model.codec, texts, module.config, truncate)
    return encoders.text_rows(module, model.codec, texts, truncate)


def _of_ids(model: Model, ids: Sequence[list[int]], truncate: bool) -> FramedRows:
    module: Any = model.module
    if isinstance(module, TwoTower):
        raise UserError("this image-text model does not accept token ids; send strings")
    symbols = model.codec.size
    for number, row in enumerate(ids, 1):
        if not row or not all(0 <= each < symbols for each in row):
            raise StatusError(
                400, f"input {number} is empty or has unknown ids; send ids from 0 to {symbols - 1}", "input"
            )
    return framed(frame_for(model.codec, module.config), ids, None, Limit(module.config.context, truncate))


def _read(model: Model, truncate: bool, items: Sequence[str | np.ndarray]) -> list[_Vector | None]:
    """The embeddings of texts, or of their token ids; None for an invalid text."""
    module: Any = model.module
    rows = _rows_of_each(model, truncate, items)
    places = [place for place, row in enumerate(rows) if row is not None]
    found: list[_Vector | None] = [None] * len(rows)
    for part in _alike(np.array([len(rows[place]) for place in places])) if places else ():
        together = FramedRows(*flat([rows[places[number]] for number in part]))
        if isinstance(module, TwoTower):
            vectors = towers.text_vectors(module, together, np.arange(len(part)))
        else:
            vectors = encoders.embed_rows(module, together)
        for number, vector in zip(part, vectors.numpy()):
            found[places[number]] = _Vector(vector, len(rows[places[number]]))
    return found


def _rows_of_each(model: Model, truncate: bool, items: Sequence[str | np.ndarray]) -> list[Any]:
    """The token ids of each item, texts all at once. An invalid text is None and does not affect the others."""
    texts = [item for item in items if isinstance(item, str)]
    try:
        read = iter(_rows(model, texts, truncate) if texts else ())
    except UserError:
        if len(items) == 1:
            return [None]
        return [row for item in items for row in _rows_of_each(model, truncate, [item])]
    return [next(read) if isinstance(item, str) else item for item in items]


def _alike(lengths: np.ndarray) -> list[np.ndarray]:
    """Groups of row indices with nearly equal lengths, to avoid padding."""
    order = np.argsort(lengths, kind="stable")
    edges = [0]
    for stop in range(1, len(order)):
        inside = lengths[order[edges[-1] : stop + 1]]
        padding = len(inside) * inside[-1] - inside.sum()
        if padding > max(_FEW, _PADDING * inside.sum()):
            edges.append(stop)
    return np.split(order, edges[1:])


def _seen(model: Model, images: list[np.ndarray]) -> list[np.ndarray]:
    return list(model.embed(images).numpy())


def _width(model: Model) -> int:
    module: Any = model.module
    return module.width if isinstance(module, TwoTower) else module.config.width


def _check_dimensions(wanted: int, ready: Ready) -> None:
    """StatusError 400 for a model that was not trained for shorter embeddings (Kusupati et al. 2022, Matryoshka
    representations). The names in its configuration are those that vLLM reads.
    """
    width, settings = _width(ready.model), object_or_empty(ready.model.directory / "config.json")
    sizes, told = settings.get("matryoshka_dimensions"), ""
    if isinstance(sizes, list) and sizes:
        if wanted in sizes and wanted <= width:
            return
        told = f", and it was trained for {', '.join(map(str, sizes))}; choose one of these"
    elif settings.get("is_matryoshka") is True:
        if wanted <= width:
            return
        told = "; request fewer"
    told = told or ", and its configuration has no shorter ones (matryoshka_dimensions); leave dimensions out"
    raise StatusError(400, f"an embedding of {ready.name} has {width} dimensions{told}"[:500], "dimensions")


def _shortened(vector: np.ndarray, dimensions: int) -> np.ndarray:
    """The first values of a vector, scaled to unit length."""
    short = vector[:dimensions]
    return short / max(float(np.linalg.norm(short)), float(np.finfo(np.float32).tiny))


def _packed(vector: np.ndarray) -> str:
    return base64.b64encode(vector.astype(_LITTLE_ENDIAN).tobytes()).decode()


ENDPOINTS = (Endpoint("POST", "/v1/embeddings", embed, "the embedding of each input", EmbeddingBody, EmbeddingAnswer),)
