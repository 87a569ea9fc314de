"""headway's verbs over HTTP: the arguments of a model's method as JSON, and its result. Also /v1/models.

The arguments and their defaults are those of the verb's predictor; an input that is a local file in Python is a data:
URL here. Requests for one verb with the same settings share a model call.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from dataclasses import asdict, is_dataclass
from functools import partial
from inspect import Parameter
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import msgspec
import numpy as np
from msgspec import Meta
from torch import Tensor

from headway.app.model import Model
from headway.app.predictors import predictor, signature
from headway.app.starters import STARTERS, models_folder
from headway.app.verb_table import REMOTE_VERBS
from headway.domains.forecast.predictors import continue_history, read_history
from headway.domains.vision.predictors import describe_outliers
from headway.errors import UserError
from headway.learn.run import RunDirectory
from headway.nn.models import kinds
from headway.serve.body_reader import check_count
from headway.serve.generation import text_codec
from headway.serve.http_errors import StatusError
from headway.serve.interfaces import Context, Endpoint, InputKind, ModelSummary
from headway.serve.media import image_of, sound_of, table_files

Strings = str | list[str]
_StringsOrLists = str | list[str | list[str]]


class ServedVerb(NamedTuple):
    """A verb with an endpoint: its summary, remarks on its fields, and the JSON type of its first argument. Each item
    of that argument has its own result, so requests can share a call, unless `is_joint`. Numbers of the result are
    rounded to `digits` decimal places, and a text may have `max_tokens`.
    """

    summary: str
    remarks: str | None = None
    inputs: Any = Strings
    is_joint: bool = False
    digits: int | None = None
    max_tokens: int | None = None


_VERBS = {
    "answer": ServedVerb(
        "the answer to a question from each context",
        "`question` is a string; `context` is one or several strings.",
        str,
        is_joint=True,
    ),
    "classify": ServedVerb(
        "the probability of each label",
        "`items` are one or several strings, text pairs (lists of two), or images or audio as data: URLs. With "
        "`labels`, a model for natural language inference chooses from them.",
        _StringsOrLists,
    ),
    "tag": ServedVerb(
        "the tag of each word", "`texts` are one or several strings; each may also be a list of words.", _StringsOrLists
    ),
    "fill": ServedVerb("the most probable tokens for each mask"),
    "translate": ServedVerb(
        "the translation of each line",
        "The default settings are those of the model's evaluation; with a temperature it samples instead of searching.",
    ),
    "caption": ServedVerb("the caption of each image", "`images` are data: URLs."),
    "match": ServedVerb("how well images and texts match", "`images` are data: URLs.", is_joint=True),
    "look": ServedVerb(
        "where a model looks in each image",
        "`images` are data: URLs. A result has the `pixels` that the model sees and the `weights` of its patches.",
    ),
    "forecast": ServedVerb(
        "quantiles of the values that follow time series",
        "`data` are one or several tables: CSV, JSON lines, or data: URLs of .csv, .tsv, .jsonl or .xlsx files; null "
        "stands for the data that the model was trained on.",
    ),
    "score": ServedVerb("the log probability of each token", is_joint=True),
    "attention": ServedVerb(
        "how strongly each token attends to each other token, by layer and head",
        "`text` has at most 256 tokens. A map is a list of heads of rows, one per query, with 4 decimal places.",
        str,
        is_joint=True,
        digits=4,
        max_tokens=256,
    ),
    "lens": ServedVerb(
        "what the model would predict if it ended after each layer",
        "`text` has at most 256 tokens. With `neighbours`, each token has its nearest ones by output embedding.",
        str,
        is_joint=True,
        max_tokens=256,
    ),
}
_JSON_TYPES: dict[str, Any] = {
    **{"bool": bool, "int": int, "float": float, "str": str},
    **{"str | Texts": Strings, "Iterable[str]": list[str]},
}
_LIMITS = {  # of settings that cost time
    "beam": Meta(ge=1, le=32),
    "length_penalty": Meta(ge=0, le=10),
    "n_best": Meta(ge=1, le=32),
    "neighbours": Meta(ge=0, le=100),
    "steps": Meta(ge=1, le=10_000),
    "temperature": Meta(ge=0),
    "top": Meta(ge=1, le=1000),
}
_MAX_WEIGHTS = 2_000_000  # attention weights per answer, which are about 10 MB


_MAX_FORECASTS = 100_000  # series times steps per request


class VerbAnswer(msgspec.Struct):
    """The result of the method with this name: for one item if one was sent, otherwise a list with one per item."""

    result: Any
    model: str


class ClassifyAnswer(VerbAnswer, kw_only=True):
    """`thresholds` are the probabilities from which each label is predicted, if a text can have several labels.
    `unexpected` has an item per image: in which way it is unlike those in training, or null.
    """

    thresholds: dict[str, float] | msgspec.UnsetType = msgspec.UNSET
    unexpected: list[str | None] | msgspec.UnsetType = msgspec.UNSET


class ServedModel(msgspec.Struct):
    """A model, its tasks (`verbs`), its kinds of input (`reads`), and its context length in tokens. `is_run`: headway
    trained it; `is_training`: a process of this machine still does; `is_starter`: it was made by `headway models make`,
    for its `purpose`. `examples` are text inputs, mostly from the held-out samples of its run, `languages` the codes of
    those that it transcribes, if there are several.
    """

    id: str
    created: int
    kind: str
    verbs: list[str]
    reads: list[InputKind]
    context: int | None
    parameters: int
    is_run: bool
    is_training: bool
    is_starter: bool
    purpose: str
    examples: list[str]
    languages: Sequence[str]
    object: str = "model"
    owned_by: str = "headway"


class BodyLimits(msgspec.Struct):
    """Maximum bytes of a JSON body, where base64 makes a file a third larger, and of a form with files."""

    body_bytes: int
    form_bytes: int


class ModelList(msgspec.Struct):
    """The models. While the engine is compiled in the background, `preparing` are the seconds since that began."""

    data: list[ServedModel]
    limits: BodyLimits
    preparing: float | None
    object: str = "list"


async def list_models(body: None, context: Context) -> ModelList:
    """All models, loaded or not, also those that are new in the folders."""
    await context.served.refresh()
    limits = BodyLimits(context.settings.body_bytes, context.settings.form_bytes)
    listed = dict(context.served.listed())
    models = await asyncio.to_thread(lambda: [_served_model(name, known) for name, known in listed.items()])
    return ModelList(models, limits, context.served.preparing())


async def get_model(body: None, context: Context) -> ServedModel:
    """One model."""
    return _served_model(context.path["name"], context.served.summary(context.path["name"]))


def _served_model(name: str, summary: ModelSummary) -> ServedModel:
    tasks = [verb for verb in summary.verbs if verb in REMOTE_VERBS or verb == "transcribe"]
    facts = name, summary.modified, summary.kind, tasks, summary.inputs, summary.context, summary.parameters
    is_training = summary.is_run and summary.path is not None and RunDirectory(summary.path).trainer() is not None
    is_starter = summary.path is not None and summary.path.parent == Path(os.path.abspath(models_folder()))
    made = STARTERS.get(summary.path.name) if is_starter and summary.path is not None else None
    examples = [*(() if made is None else made.beginnings), *summary.examples]
    kinds_of_model = summary.is_run, is_training, is_starter, "" if made is None else made.purpose
    return ServedModel(*facts, *kinds_of_model, examples, summary.languages)


def _body_type(verb: str) -> type[msgspec.Struct]:
    """The arguments of a verb as the fields of a JSON body, and the model's name."""
    fields: list[Any] = []
    for parameter in list(signature(verb).parameters.values())[1:]:
        annotation = parameter.annotation.removesuffix(" | None")
        kind: Any = _JSON_TYPES[annotation] if fields else _VERBS[verb].inputs
        if parameter.name in _LIMITS:
            kind = Annotated[kind, _LIMITS[parameter.name]]
        if annotation != parameter.annotation:
            kind = kind | None
        default = [] if parameter.default == () else parameter.default
        fields.append((parameter.name, kind) if default is Parameter.empty else (parameter.name, kind, default))
    remarks = _VERBS[verb].remarks
    return msgspec.defstruct(
        f"{verb.capitalize()}Body",
        [*fields, ("model", str, "")],
        namespace={} if remarks is None else {"__doc__": remarks},
        forbid_unknown_fields=True,
        kw_only=True,
    )


async def _run_verb(verb: str, body: msgspec.Struct, context: Context) -> VerbAnswer:
    """The result of a verb for its inputs."""
    settings = msgspec.structs.asdict(body)
    model_name, argument = settings.pop("model"), next(iter(settings))
    inputs, is_joint = settings.pop(argument), _VERBS[verb].is_joint
    is_single = isinstance(inputs, str)
    items: list[Any] = [inputs] if is_single else inputs
    if not is_joint:
        check_count(items, "the request")
    for name, value in settings.items():
        if isinstance(value, list) and value:
            check_count(value, name)
    noun = "image" if is_joint else "item"
    async with context.served.using(model_name) as ready:
        predictor(ready.model, verb)  # UserError for a model without this verb
        run = getattr(ready.model, verb)
        converted = await asyncio.to_thread(
            lambda: [_convert(ready.model, argument, item, f"{noun} {n}") for n, item in enumerate(items, 1)]
        )
        if is_joint:
            call = lambda: run(converted[0] if is_single else converted, **settings)  # noqa: E731
            if (limit := _VERBS[verb].max_tokens) is not None:
                encode = text_codec(ready.model).encode
                for text in (inputs, settings.get("target") or ""):
                    if (count := len(await asyncio.to_thread(encode, text))) > limit:
                        message = f"the text has {count:,} tokens, and the limit is {limit}; shorten it"
                        raise StatusError(400, message, "text")
            answer = await ready.batcher.run(call)
            result = await asyncio.to_thread(_compact, answer, _VERBS[verb].digits)
        else:
            kind = (verb, *((name, tuple(v) if isinstance(v, list) else v) for name, v in settings.items()))
            has_images = verb == "classify" and kinds.is_vision_classifier(ready.model.module)
            describe = partial(describe_outliers, ready.model) if has_images else lambda batch: [None] * len(batch)
            call = lambda batch: list(zip(run(batch, **settings), describe(batch)))  # noqa: E731
            results, unexpected = zip(*await ready.batcher.submit(call, kind, converted))
            result = plain(results[0] if is_single else results)
            if verb == "classify":
                differences = list(unexpected) if has_images else msgspec.UNSET
                thresholds = ready.model.thresholds or msgspec.UNSET
                return ClassifyAnswer(result, ready.name, thresholds=thresholds, unexpected=differences)
    return VerbAnswer(result, ready.name)


async def _forecast(body: Any, context: Context) -> VerbAnswer:
    """The forecast for each series."""
    tables = [body.data] if isinstance(body.data, str) else body.data
    if tables is not None:
        check_count(tables, "data", "data")
    async with context.served.using(body.model) as ready:
        predictor(ready.model, "forecast")  # UserError for a model without this verb

        def read_and_continue() -> list[Any]:  # in the model's thread, one request after the other
            with table_files(tables or ()) as paths:
                try:
                    history = read_history(ready.model, None if tables is None else paths)
                except UserError:
                    if tables is not None:
                        raise
                    fact = "the server cannot read the data that this model was trained on"  # hides their path
                    raise UserError(f"{fact}; send data") from None
            steps = body.steps or history.codec.horizon
            if len(history.series) * steps > _MAX_FORECASTS:
                fact = f"{len(history.series):,} series with {steps:,} steps are more than {_MAX_FORECASTS:,} values"
                raise UserError(f"{fact}; send fewer series, or ask for fewer steps")
            return continue_history(ready.model, history, steps)

        result = await ready.batcher.run(read_and_continue)
    return VerbAnswer(plain(result), ready.name)


def _convert(model: Model, argument: str, item: Any, name: str) -> Any:
    """An input as the method takes it; `name` is for messages."""
    if argument == "images" or (argument == "items" and kinds.is_vision_classifier(model.module)):
        return image_of(item, name)
    if argument == "items" and kinds.is_audio_classifier(model.module):
        return sound_of(item, name)
    if argument == "items" and isinstance(item, list):
        if len(item) != 2:
            raise UserError(f"{name} is a list of {len(item)}; send a string, or a text pair as a list of two strings")
        return tuple(item)
    return item


def _compact(answer: Any, digits: int | None) -> Any:
    """A result as JSON values, with rounded maps. StatusError 400 if those are too many."""
    if digits is None:
        return plain(answer)
    size = sum(weights.numel() for weights in answer.maps.values())
    if size > _MAX_WEIGHTS:
        raise StatusError(
            400, f"the attention has {size:,} weights, and the limit is {_MAX_WEIGHTS:,}; shorten the text", "text"
        )
    maps = {name: weights.double().round(decimals=digits) for name, weights in answer.maps.items()}
    return plain(answer._replace(maps=maps))


def plain(value: Any) -> Any:
    """A result as JSON values: dataclasses and named tuples as objects, arrays as lists."""
    if isinstance(value, (str, int, float)):
        return value
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
    *(
        Endpoint(
            "POST",
            f"/v1/{verb}",
            _forecast if verb == "forecast" else partial(_run_verb, verb),
            served.summary,
            _body_type(verb),
            ClassifyAnswer if verb == "classify" else VerbAnswer,
        )
        for verb, served in _VERBS.items()
    ),
)
