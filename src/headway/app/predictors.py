"""The table of verbs: what each model supports, and which domain implements it.

A verb is a method of `headway.app.model.Model`. Each domain package lists the verbs it implements and, for each
verb, the predicate of `headway.nn.models.kinds` that selects its models. The domain's module `predictors`, imported on
first use, has a function with the verb's name that takes the model and the method's arguments.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from importlib import import_module
from typing import Any, Concatenate, NamedTuple, ParamSpec, TypeVar

from headway import domains
from headway.arguments import api_boundary
from headway.errors import UserError
from headway.formats.usage import Usage
from headway.model_handle import ModelHandle
from headway.nn.models import ModelConfig, kinds

P = ParamSpec("P")
R = TypeVar("R")
M = TypeVar("M", bound=ModelHandle)

_RUN_VERBS = {"evaluate": "headway.model_evaluation"}  # verbs of every run, whatever its domain
_MAX_VERBS = 4  # verbs listed in a message


class Verb(NamedTuple):
    """The description of a verb for error messages, and the remedy for a model that does not support it. A variant
    of another verb has that verb's name as `variant_of`.
    """

    description: str
    remedy: str
    variant_of: str | None = None


_GENERATE = Verb("continue a prompt", "use a language model, such as GPT-2")
_CHAT = Verb("hold a conversation", "use a language model, such as a run of the instruct recipe")
_TRANSCRIBE = Verb("transcribe audio", "use a speech model, such as Whisper")
VERBS = {
    "generate": _GENERATE,
    "chat": _CHAT,
    "translate": Verb("translate", "use an encoder-decoder, such as a run of the translation recipe"),
    "transcribe": _TRANSCRIBE,
    "caption": Verb("write captions", "use a run of the caption recipe"),
    "fill": Verb("fill in masks", "use a masked language model, such as BERT"),
    "classify": Verb("classify", "fine-tune one: headway train classification|vision|audio --from MODEL --data FILE"),
    "rerank": Verb(
        "rank documents", "use a cross-encoder, such as BERT with one label, or fine-tune one: headway train pairs"
    ),
    "tag": Verb("tag words", "fine-tune one: headway train tagging --from MODEL --data FILE"),
    "match": Verb("match images and text", "use a CLIP or SigLIP model"),
    "embed": Verb("make embeddings", "use an encoder, such as BERT, ViT or CLIP"),
    "look": Verb("show its attention to an image", "use an image model, such as ViT"),
    "rollout": Verb("play episodes", "use a run of the recipes ppo, trajectories, cartpole or robotics"),
    "policy": Verb("act as a policy", "use a run of the recipes ppo, robotics or metaworld"),
    "player": Verb("play chess", "train one: headway train chess --data games.pgn"),
    "forecast": Verb("forecast time series", "use a run of the forecast recipe"),
    "score": Verb("score text", "use a language model or an encoder-decoder"),
    "attention": Verb("show its attention to text", "use a text model"),
    "logits": Verb("return logits of tokens", "use a model with a head over its vocabulary"),
    "evaluate": Verb("be evaluated without a recipe", "fine-tune it with --from and evaluate that run"),
    "stream": _GENERATE._replace(variant_of="generate"),
    "complete": _GENERATE._replace(variant_of="generate"),
    "continuations": _GENERATE._replace(variant_of="generate"),
    "generate_ids": _GENERATE._replace(variant_of="generate"),
    "session": _GENERATE._replace(variant_of="generate"),
    "prompt_ids": Verb("encode a prompt", "use a text model", "generate"),
    "chat_stream": _CHAT._replace(variant_of="chat"),
    "talk": _CHAT._replace(variant_of="chat"),
    "transcriber": _TRANSCRIBE._replace(variant_of="transcribe"),
}
_INTROSPECTION = {"score", "attention", "logits", "evaluate"}  # not useful as alternatives to other verbs
_ALTERNATIVES = (  # better alternatives for some models
    ("classify", kinds.is_two_tower, "pass the class names as texts to match"),
    ("look", kinds.is_text, "use attention"),
)


def verb(method: Callable[Concatenate[M, P], R]) -> Callable[Concatenate[M, P], R]:
    """Decorate a model's method so that it calls the predictor of the same name."""

    @wraps(method)
    def call(model: M, *args: P.args, **kwargs: P.kwargs) -> R:
        with api_boundary():
            return predictor(model, method.__name__)(model, *args, **kwargs)

    return call


def predictor(model: ModelHandle, name: str) -> Callable[..., Any]:
    """The function that implements a verb for a model; imports its domain. Raises UserError for unsupported verbs."""
    if model.recipe is not None and name in _RUN_VERBS:
        return getattr(import_module(_RUN_VERBS[name]), name)
    for predicate in domains.verbs()[name]:
        if getattr(kinds, predicate.predicate)(model.module):
            return getattr(import_module(predicate.module), name)
    raise _unsupported_error(model, name)


def verbs(model: ModelConfig, usage: Usage, is_run: bool) -> list[str]:
    """The verbs of a model, by its configuration, usage and whether it is a run; without variants."""
    supported = []
    for name, entry in VERBS.items():
        predicates = domains.verbs()[name]
        is_run_verb = is_run and name in _RUN_VERBS
        is_supported = is_run_verb or any(getattr(kinds, predicate.predicate)(model) for predicate in predicates)
        if entry.variant_of is None and is_supported and (name != "chat" or usage.template is not None):
            supported.append(name)
    return supported


def _unsupported_error(model: ModelHandle, name: str) -> UserError:
    """The error for an unsupported verb: the kind of model, and alternatives."""
    config, entry = model.module.config, VERBS[name]
    known = verbs(config, model.usage, model.recipe is not None)
    other_verbs = [other_verb for other_verb in known if other_verb not in _INTROSPECTION][:_MAX_VERBS] or known[
        :_MAX_VERBS
    ]
    remedy = next(
        (alternative for verb, question, alternative in _ALTERNATIVES if verb == name and question(config)), None
    )
    if remedy is None:
        remedy = f"use {_join_with_or(other_verbs)} with it, or {entry.remedy}" if other_verbs else entry.remedy
    return UserError(f"{model.directory} is {kinds.kind_of(config)}, which cannot {entry.description}; {remedy}")


def _join_with_or(names: list[str]) -> str:
    return " or ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
