"""Vectors of texts and images: /v1/embeddings of the OpenAI API."""

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

_MOST = 2048  # inputs of a request, as OpenAI's service takes
_AT_ONCE = 1 << 12  # characters, which are sooner read than handed to a thread of their own
_PADDING, _FEW = 0.05, 64  # the most of a part, and tokens of it that cost less than another part
_LITTLE_ENDIAN = np.dtype("<f4")


class EmbeddingBody(msgspec.Struct, forbid_unknown_fields=True):
    """Texts, or ids of the model's own tokenizer without its marks; images, as data: URLs, where the model reads them.
    `truncate` cuts texts that are longer than the model reads, which are refused otherwise; `user` changes nothing.
    `dimensions` are fewer than the model has only where it was trained for that.
    """

    input: str | list[str | int | list[int]]
    model: str = ""
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[int, Meta(ge=1)] | None = None
    truncate: bool = False
    user: str | None = None

    NEUTRAL: ClassVar[Neutrals] = {
        "add_special_tokens": Neutral((True,), "special tokens belong to what the model reads; leave it out"),
        "truncate_prompt_tokens": Neutral((), "texts are cut where the model's context ends; use truncate"),
        "priority": Neutral((0,), "API keys are served in turns; leave it out"),
        "normalize": Neutral((True,), "vectors have unit length; leave it out"),
    }


class InputVector(msgspec.Struct):
    """The vector of one input, of unit length: numbers, or their 32 bits, the lowest byte first, in base64."""

    index: int
    embedding: list[float] | str
    object: str = "embedding"


class ReadTokens(msgspec.Struct):
    """Tokens that the model read, its marks included; 0 for images."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingAnswer(msgspec.Struct):
    data: list[InputVector]
    model: str
    usage: ReadTokens
    object: str = "list"


class _Vector(NamedTuple):
    """The vector of an input, and how many tokens were read of it."""

    vector: np.ndarray
    tokens: int


async def embed(body: EmbeddingBody, context: Context) -> EmbeddingAnswer:
    """The vector of each input."""
    items = _items(body.input)
    async with context.served.using(body.model) as ready:
        model = ready.model
        predictor(model, "embed")  # UserError for a model that makes none
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
                rows = cast(list[Any], items)  # which the model's thread reads, with those of others
            else:
                rows = reading() if short else await asyncio.to_thread(reading)
            found = await ready.batcher.ask(partial(_read, model, body.truncate), ("texts", body.truncate), rows)
            if None in found:
                reading()  # says which it is, and what is wrong with it
            vectors, counts = zip(*found)
            tokens = sum(counts)
    context.noted["prompt_tokens"] = tokens
    if body.dimensions not in (None, _width(model)):
        vectors = [_shortened(vector, body.dimensions) for vector in vectors]
    said = [vector.tolist() if body.encoding_format == "float" else _packed(vector) for vector in vectors]
    data = [InputVector(index, vector) for index, vector in enumerate(said)]
    return EmbeddingAnswer(data, ready.name, ReadTokens(tokens, tokens))


def _items(given: str | Sequence[str | int | list[int]]) -> list[str | list[int]]:
    """The inputs: one text, one row of ids, or several of one kind. UserError for anything else."""
    if isinstance(given, str):
        return [given]
    if given and all(isinstance(item, int) for item in given):
        return [list(given)]  # type: ignore[list-item]
    if not 1 <= len(given) <= _MOST:
        raise StatusError(400, f"input has {len(given):,} items; give 1 to {_MOST:,}", "input")
    if len({type(item) for item in given}) > 1 or isinstance(given[0], int):
        raise StatusError(400, "input mixes texts and ids; give one text, texts, ids, or rows of ids", "input")
    return list(given)  # type: ignore[arg-type]


def _are_images(items: Sequence[str | list[int]]) -> bool:
    return all(isinstance(item, str) and item.startswith("data:image/") for item in items)


def _images(model: Model, items: Sequence[str | list[int]]) -> list[np.ndarray]:
    return [image_of(item, f"input {number}") for number, item in enumerate(items, 1)]


def _rows(model: Model, items: Sequence[str | list[int]], truncate: bool) -> list[np.ndarray]:
    """What the model reads of each text. UserErrors: an empty one, one too long, unknown ids."""
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
        raise UserError("this model compares images with texts, and reads no ids; give texts")
    symbols = model.codec.size
    for number, row in enumerate(ids, 1):
        if not row or not all(0 <= each < symbols for each in row):
            raise StatusError(
                400, f"input {number} is not of ids from 0 to {symbols - 1}; there are no others", "input"
            )
    return framed(frame_for(model.codec, module.config), ids, None, Limit(module.config.context, truncate))


def _read(model: Model, truncate: bool, items: Sequence[str | np.ndarray]) -> list[_Vector | None]:
    """The vectors of texts, or of what the model reads of them; None for a text that it cannot read."""
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
    """What is read of each, texts all at once. One that cannot be read is None, and no matter of the others."""
    texts = [item for item in items if isinstance(item, str)]
    try:
        read = iter(_rows(model, texts, truncate) if texts else ())
    except UserError:
        if len(items) == 1:
            return [None]
        return [row for item in items for row in _rows_of_each(model, truncate, [item])]
    return [next(read) if isinstance(item, str) else item for item in items]


def _alike(lengths: np.ndarray) -> list[np.ndarray]:
    """Numbers of rows of nearly equal lengths, so that little of what is computed is padding."""
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
    """StatusError 400 where a model was not trained so that the beginnings of its vectors are vectors as well (Kusupati
    et al. 2022, Matryoshka representations): its configuration says so by these names, as for vLLM.
    """
    width, settings = _width(ready.model), object_or_empty(ready.model.directory / "config.json")
    sizes, told = settings.get("matryoshka_dimensions"), ""
    if isinstance(sizes, list) and sizes:
        if wanted in sizes and wanted <= width:
            return
        told = f", and was trained for {', '.join(map(str, sizes))}; choose one of these"
    elif settings.get("is_matryoshka") is True:
        if wanted <= width:
            return
        told = "; ask for fewer"
    told = told or ", and its configuration names no shorter ones (matryoshka_dimensions); leave dimensions out"
    raise StatusError(400, f"a vector of {ready.name} has {width} dimensions{told}"[:500], "dimensions")


def _shortened(vector: np.ndarray, dimensions: int) -> np.ndarray:
    """The first numbers of a vector, of unit length again."""
    short = vector[:dimensions]
    return short / max(float(np.linalg.norm(short)), float(np.finfo(np.float32).tiny))


def _packed(vector: np.ndarray) -> str:
    return base64.b64encode(vector.astype(_LITTLE_ENDIAN).tobytes()).decode()


ENDPOINTS = (Endpoint("POST", "/v1/embeddings", embed, "the vector of each input", EmbeddingBody, EmbeddingAnswer),)
