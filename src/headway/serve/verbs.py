"""headway's verbs over HTTP: the arguments of a model's method as JSON, and its result. Also /v1/models.

An argument that is a local file in Python is a data: URL here. Requests for one verb with the same settings share a
model call.
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
from headway.serve.http_errors import StatusError
from headway.serve.interfaces import Context, Endpoint, InputKind, ModelSummary
from headway.serve.media import image_of, sound_of

_MAX_ITEMS = 2048  # items per request
_SERVED_VERBS = (
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
NumBest = Annotated[int, Meta(ge=1, le=32)]
Top = Annotated[int, Meta(ge=1, le=1000)]
Strings = str | list[str]


class ClassifyBody(msgspec.Struct, forbid_unknown_fields=True):
    """`items` are one or several strings, text pairs (lists of two), or images or audio as data: URLs."""

    items: str | list[str | list[str]]
    model: str = ""
    truncate: bool = False


class TagBody(msgspec.Struct, forbid_unknown_fields=True):
    """`texts` are one or several strings; each may also be a list of words."""

    texts: str | list[str | list[str]]
    model: str = ""
    truncate: bool = False


class FillBody(msgspec.Struct, forbid_unknown_fields=True):
    text: Strings
    model: str = ""
    top: Top = 5


class TranslateBody(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """The default settings are those of the model's evaluation; with a temperature it samples instead of searching."""

    lines: Strings
    model: str = ""
    beam: Beam | None = None
    length_penalty: Penalty | None = None
    n_best: NumBest | None = None
    temperature: Annotated[float, Meta(ge=0)] | None = None
    seed: int | None = None
    scores: bool = False


class CaptionBody(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """`images` are data: URLs."""

    images: Strings
    model: str = ""
    beam: Beam = 4
    length_penalty: Penalty = 0.6
    n_best: NumBest | None = None


class MatchBody(msgspec.Struct, forbid_unknown_fields=True):
    """`images` are data: URLs."""

    images: Strings
    texts: Strings
    model: str = ""
    templates: Strings = []
    truncate: bool = False


class ScoreBody(msgspec.Struct, forbid_unknown_fields=True):
    texts: Strings
    model: str = ""
    sources: Strings | None = None


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
    reads: list[InputKind]
    context: int | None
    parameters: int
    object: str = "model"
    owned_by: str = "headway"


class ModelList(msgspec.Struct):
    data: list[ServedModel]
    object: str = "list"


async def list_models(body: None, context: Context) -> ModelList:
    """All models, loaded or not."""
    return ModelList([_served_model(name, known) for name, known in context.served.listed().items()])


async def get_model(body: None, context: Context) -> ServedModel:
    """One model."""
    return _served_model(context.path["name"], context.served.summary(context.path["name"]))


def _served_model(name: str, summary: ModelSummary) -> ServedModel:
    tasks = [verb for verb in summary.verbs if verb in _SERVED_VERBS or f"/v1/{verb}" in _PATHS]
    return ServedModel(name, summary.modified, summary.kind, tasks, summary.inputs, summary.context, summary.parameters)


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
            raise UserError(f"{name} is a list of {len(item)}; send a string, or a text pair as a list of two strings")
        return tuple(item) if isinstance(item, list) else item

    answer = await _run_verb("classify", body.items, read, {"truncate": body.truncate}, body.model, context)
    return ClassifyAnswer(answer.result, answer.model, thresholds=thresholds or msgspec.UNSET)


async def tag(body: TagBody, context: Context) -> VerbAnswer:
    """The tag of each word, and the entities that the tags form."""
    return await _run_verb("tag", body.texts, _unchanged, {"truncate": body.truncate}, body.model, context)


async def fill(body: FillBody, context: Context) -> VerbAnswer:
    """The most probable tokens for each mask."""
    return await _run_verb("fill", body.text, _unchanged, {"top": body.top}, body.model, context)


async def translate(body: TranslateBody, context: Context) -> VerbAnswer:
    """The translation of each line."""
    names = ("beam", "length_penalty", "n_best", "temperature", "seed", "scores")
    settings = {name: getattr(body, name) for name in names}
    return await _run_verb("translate", body.lines, _unchanged, settings, body.model, context)


async def caption(body: CaptionBody, context: Context) -> VerbAnswer:
    """The caption of each image."""
    read = lambda model, item, name: image_of(item, name)  # noqa: E731
    settings = {"beam": body.beam, "length_penalty": body.length_penalty, "n_best": body.n_best}
    return await _run_verb("caption", body.images, read, settings, body.model, context)


async def match(body: MatchBody, context: Context) -> VerbAnswer:
    """How well images and texts match."""
    async with context.served.using(body.model) as ready:
        predictor(ready.model, "match")
        texts, templates = body.texts, body.templates
        image_urls = [body.images] if isinstance(body.images, str) else body.images
        pixels = await asyncio.to_thread(lambda: [image_of(item, f"image {n}") for n, item in enumerate(image_urls, 1)])
        images = pixels[0] if isinstance(body.images, str) else pixels
        similarities = await ready.batcher.run(lambda: ready.model.match(images, texts, templates, body.truncate))
    return VerbAnswer(plain(similarities), ready.name)


async def score(body: ScoreBody, context: Context) -> VerbAnswer:
    """The log probability of each token."""
    async with context.served.using(body.model) as ready:
        scores = await ready.batcher.run(lambda: ready.model.score(body.texts, body.sources))  # type: ignore[arg-type]
    return VerbAnswer(scores, ready.name)


def _unchanged(model: Model, item: Any, name: str) -> Any:
    return item


async def _run_verb(
    verb: str,
    inputs: str | Sequence[Any],
    convert: Callable[[Model, Any, str], Any],
    settings: dict[str, Any],
    name: str,
    context: Context,
) -> VerbAnswer:
    """The result of a verb for each item, which `convert` prepares first."""
    items = [inputs] if isinstance(inputs, str) else inputs
    if not 1 <= len(items) <= _MAX_ITEMS:
        raise StatusError(400, f"the request has {len(items):,} items; send 1 to {_MAX_ITEMS:,}")
    async with context.served.using(name) as ready:
        predictor(ready.model, verb)  # UserError for a model without this verb
        convert_item = partial(convert, ready.model)
        converted = await asyncio.to_thread(
            lambda: [convert_item(item, f"item {n}") for n, item in enumerate(items, 1)]
        )
        kind = (verb, *settings.items())
        answers = await ready.batcher.submit(
            lambda batch: getattr(ready.model, verb)(batch, **settings), kind, converted
        )
    results = list(map(plain, answers))
    return VerbAnswer(results[0] if isinstance(inputs, str) else results, ready.name)


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
    Endpoint("GET", "/v1/models", list_models, "the models and their tasks", None, ModelList),
    Endpoint("GET", "/v1/models/{name:path}", get_model, "one model", None, ServedModel),
    Endpoint("POST", "/v1/classify", classify, "the probability of each label", ClassifyBody, ClassifyAnswer),
    Endpoint("POST", "/v1/tag", tag, "the tag of each word", TagBody, VerbAnswer),
    Endpoint("POST", "/v1/fill", fill, "the most probable tokens for each mask", FillBody, VerbAnswer),
    Endpoint("POST", "/v1/translate", translate, "the translation of each line", TranslateBody, VerbAnswer),
    Endpoint("POST", "/v1/caption", caption, "the caption of each image", CaptionBody, VerbAnswer),
    Endpoint("POST", "/v1/match", match, "how well images and texts match", MatchBody, VerbAnswer),
    Endpoint("POST", "/v1/score", score, "the log probability of each token", ScoreBody, VerbAnswer),
)
_PATHS = {endpoint.path for endpoint in ENDPOINTS}
