"""headway's verbs over HTTP: the arguments of a model's method as JSON, and its result. Also /v1/models.

An argument that is a local file in Python is a data: URL here. Requests for one verb with the same settings share a
call of the model.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import asdict, is_dataclass
from functools import partial
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta
from torch import Tensor

from headway.app.model import Model
from headway.app.predictors import predictor
from headway.errors import UserError
from headway.nn.models import kinds
from headway.serve.errors import StatusError
from headway.serve.frame import Context, Endpoint, Known, Reads
from headway.serve.media import image_of, sound_of

_MOST = 2048  # maximum items of a request
_SERVED = (
    "generate",
    "chat",
    "embed",
    "rerank",
    "transcribe",
    "classify",
    "tag",
    "fill",
    "translate",
    "caption",
    "match",
    "score",
)
Beam = Annotated[int, Meta(ge=1, le=32)]
Penalty = Annotated[float, Meta(ge=0, le=10)]
Best = Annotated[int, Meta(ge=1, le=32)]
Top = Annotated[int, Meta(ge=1, le=1000)]
Texts = str | list[str]


class ClassifyBody(msgspec.Struct, forbid_unknown_fields=True):
    """`items` are a text, texts, or text pairs as lists of two; or images or audio as data: URLs."""

    items: str | list[str | list[str]]
    model: str = ""
    truncate: bool = False


class TagBody(msgspec.Struct, forbid_unknown_fields=True):
    """`texts` are a text or several; each may be a list of its words."""

    texts: str | list[str | list[str]]
    model: str = ""
    truncate: bool = False


class FillBody(msgspec.Struct, forbid_unknown_fields=True):
    text: Texts
    model: str = ""
    top: Top = 5


class TranslateBody(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """The default settings are those of the model's evaluation; with a temperature it samples instead of searching."""

    lines: Texts
    model: str = ""
    beam: Beam | None = None
    length_penalty: Penalty | None = None
    n_best: Best | None = None
    temperature: Annotated[float, Meta(ge=0)] | None = None
    seed: int | None = None
    scores: bool = False


class CaptionBody(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """`images` are data: URLs."""

    images: Texts
    model: str = ""
    beam: Beam = 4
    length_penalty: Penalty = 0.6
    n_best: Best | None = None


class MatchBody(msgspec.Struct, forbid_unknown_fields=True):
    """`images` are data: URLs."""

    images: Texts
    texts: Texts
    model: str = ""
    templates: Texts = []
    truncate: bool = False


class ScoreBody(msgspec.Struct, forbid_unknown_fields=True):
    texts: Texts
    model: str = ""
    sources: Texts | None = None


class VerbAnswer(msgspec.Struct):
    """The result of the method with this name: for one item if one was sent, otherwise a list with one per item."""

    result: Any
    model: str


class ClassifyAnswer(VerbAnswer, kw_only=True):
    """`thresholds` are the probabilities from which each label is predicted, if a text can have several labels."""

    thresholds: dict[str, float] | msgspec.UnsetType = msgspec.UNSET


class ServedModel(msgspec.Struct):
    """A model, its tasks (`verbs`), its kinds of input (`reads`), and its context length in tokens."""

    id: str
    created: int
    kind: str
    verbs: list[str]
    reads: list[Reads]
    context: int | None
    parameters: int
    object: str = "model"
    owned_by: str = "headway"


class ModelList(msgspec.Struct):
    data: list[ServedModel]
    object: str = "list"


async def models(body: None, context: Context) -> ModelList:
    """All models, loaded or not."""
    return ModelList([_told(name, known) for name, known in context.served.listed().items()])


async def model(body: None, context: Context) -> ServedModel:
    """One model."""
    return _told(context.path["name"], context.served.known(context.path["name"]))


def _told(name: str, known: Known) -> ServedModel:
    can = [verb for verb in known.verbs if verb in _SERVED or f"/v1/{verb}" in _PATHS]
    return ServedModel(name, known.changed, known.kind, can, known.reads, known.context, known.parameters)


async def classify(body: ClassifyBody, context: Context) -> ClassifyAnswer:
    """The probability of each label, or the predicted number as "value"."""
    thresholds: dict[str, float] = {}

    def read(model: Model, item: str | list[str], name: str) -> Any:
        thresholds.update(model.usage.decisions)
        if kinds.is_vision_classifier(model.module):
            return image_of(item, name)
        if kinds.is_audio_classifier(model.module):
            return sound_of(item, name)
        if isinstance(item, list) and len(item) != 2:
            raise UserError(f"{name} is a list of {len(item)}; send a text, or a pair of texts as a list of two")
        return tuple(item) if isinstance(item, list) else item

    found = await _each("classify", body.items, read, {"truncate": body.truncate}, body.model, context)
    return ClassifyAnswer(found.result, found.model, thresholds=thresholds or msgspec.UNSET)


async def tag(body: TagBody, context: Context) -> VerbAnswer:
    """The tag of each word, and the entities that the tags form."""
    return await _each("tag", body.texts, _as_it_is, {"truncate": body.truncate}, body.model, context)


async def fill(body: FillBody, context: Context) -> VerbAnswer:
    """The most probable tokens for each mask."""
    return await _each("fill", body.text, _as_it_is, {"top": body.top}, body.model, context)


async def translate(body: TranslateBody, context: Context) -> VerbAnswer:
    """The translation of each line."""
    names = ("beam", "length_penalty", "n_best", "temperature", "seed", "scores")
    how = {name: getattr(body, name) for name in names}
    return await _each("translate", body.lines, _as_it_is, how, body.model, context)


async def caption(body: CaptionBody, context: Context) -> VerbAnswer:
    """The caption of each image."""
    read = lambda model, item, name: image_of(item, name)  # noqa: E731
    how = {"beam": body.beam, "length_penalty": body.length_penalty, "n_best": body.n_best}
    return await _each("caption", body.images, read, how, body.model, context)


async def match(body: MatchBody, context: Context) -> VerbAnswer:
    """How well images and texts match."""
    async with context.served.using(body.model) as ready:
        predictor(ready.model, "match")
        texts, templates = body.texts, body.templates
        given = [body.images] if isinstance(body.images, str) else body.images
        pixels = await asyncio.to_thread(lambda: [image_of(item, f"image {n}") for n, item in enumerate(given, 1)])
        images = pixels[0] if isinstance(body.images, str) else pixels
        found = await ready.batcher.run(lambda: ready.model.match(images, texts, templates, body.truncate))
    return VerbAnswer(plain(found), ready.name)


async def score(body: ScoreBody, context: Context) -> VerbAnswer:
    """The log probability of each token."""
    async with context.served.using(body.model) as ready:
        found = await ready.batcher.run(lambda: ready.model.score(body.texts, body.sources))  # type: ignore[arg-type]
    return VerbAnswer(found, ready.name)


def _as_it_is(model: Model, item: Any, name: str) -> Any:
    return item


async def _each(
    verb: str,
    given: str | Sequence[Any],
    read: Callable[[Model, Any, str], Any],
    settings: dict[str, Any],
    name: str,
    context: Context,
) -> VerbAnswer:
    """The result of a verb for each item, which `convert` prepares first."""
    items = [given] if isinstance(given, str) else given
    if not 1 <= len(items) <= _MOST:
        raise StatusError(400, f"the request has {len(items):,} items; send 1 to {_MOST:,}")
    async with context.served.using(name) as ready:
        predictor(ready.model, verb)  # UserError for a model that has no such verb
        read_one = partial(read, ready.model)
        asked = await asyncio.to_thread(lambda: [read_one(item, f"item {n}") for n, item in enumerate(items, 1)])
        kind = (verb, *settings.items())
        answers = await ready.batcher.ask(lambda some: getattr(ready.model, verb)(some, **settings), kind, asked)
    found = list(map(plain, answers))
    return VerbAnswer(found[0] if isinstance(given, str) else found, ready.name)


def plain(value: Any) -> Any:
    """A result as JSON values: dataclasses and named tuples as objects, arrays as lists."""
    if isinstance(value, (Tensor, np.ndarray)):
        return value.tolist()
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, dict):
        return {name: plain(part) for name, part in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return plain(value._asdict())  # type: ignore[attr-defined]
    return [plain(part) for part in value] if isinstance(value, (list, tuple)) else value


ENDPOINTS = (
    Endpoint("GET", "/v1/models", models, "the models and their tasks", None, ModelList),
    Endpoint("GET", "/v1/models/{name:path}", model, "one model", None, ServedModel),
    Endpoint("POST", "/v1/classify", classify, "the probability of each label", ClassifyBody, ClassifyAnswer),
    Endpoint("POST", "/v1/tag", tag, "the tag of each word", TagBody, VerbAnswer),
    Endpoint("POST", "/v1/fill", fill, "the most probable tokens for each mask", FillBody, VerbAnswer),
    Endpoint("POST", "/v1/translate", translate, "the translation of each line", TranslateBody, VerbAnswer),
    Endpoint("POST", "/v1/caption", caption, "the caption of each image", CaptionBody, VerbAnswer),
    Endpoint("POST", "/v1/match", match, "how well images and texts match", MatchBody, VerbAnswer),
    Endpoint("POST", "/v1/score", score, "the log probability of each token", ScoreBody, VerbAnswer),
)
_PATHS = {endpoint.path for endpoint in ENDPOINTS}
