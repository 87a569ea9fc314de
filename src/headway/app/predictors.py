"""The table of verbs: what each model supports, and which domain implements it.

A verb is a method of `headway.app.model.Model`. Each domain package lists the verbs it implements and, for each
verb, the predicate of `headway.nn.models.kinds` that selects its models. The domain's module `predictors`, imported on
first use, has a function with the verb's name that takes the model and the method's arguments.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Iterator
from functools import cache
from importlib import import_module
from inspect import Parameter, Signature
from typing import Any, NamedTuple

from headway import domains
from headway.arguments import api_boundary
from headway.errors import UserError
from headway.formats.usage import Usage
from headway.model_handle import ModelHandle
from headway.nn.models import ModelConfig, kinds

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
ATTRIBUTES = ("session", "talk")  # verbs that are attributes of `Model`, not methods
REMOTE_VERBS = {"generate", "stream", "chat", "classify", "embed", "rerank", "tag", "fill", "translate", "caption"}
REMOTE_VERBS |= {"match", "score"}  # verbs that a server runs with the arguments that they have here
_INTROSPECTION = {"score", "attention", "logits", "evaluate"}  # not useful as alternatives to other verbs
_ALTERNATIVES = (  # better alternatives for some models
    ("classify", kinds.is_two_tower, "pass the class names as texts to match"),
    ("look", kinds.is_text, "use attention"),
)


def predictors(verb: str) -> Iterator[Callable[..., Any]]:
    """The functions that implement a verb, each imported when it is needed. They have the same arguments, and one has
    the verb's docstring.
    """
    for provider in domains.verbs()[verb]:
        yield getattr(import_module(provider.module), verb)


@cache
def signature(verb: str) -> Signature:
    """The signature of a verb as a method. Annotations in which its predictors differ are joined."""
    signatures = [inspect.signature(function) for function in predictors(verb)]

    def join(annotations: list[Any]) -> str:  # those of another package may be missing
        different = dict.fromkeys(annotation for annotation in annotations if isinstance(annotation, str))
        return " | ".join(dict.fromkeys(part for annotation in different for part in alternatives(annotation)))

    parameters = [Parameter("self", Parameter.POSITIONAL_OR_KEYWORD)]
    for name, parameter in list(signatures[0].parameters.items())[1:]:
        versions = [version.parameters[name] for version in signatures if name in version.parameters]
        parameters.append(parameter.replace(annotation=join([version.annotation for version in versions])))
    return Signature(parameters, return_annotation=join([version.return_annotation for version in signatures]))


def alternatives(annotation: str) -> list[str]:
    """The members of a union, in order; None is last."""
    node, parts = ast.parse(annotation, mode="eval").body, []
    while isinstance(node, ast.BinOp):
        parts.insert(0, ast.unparse(node.right))
        node = node.left
    return sorted([ast.unparse(node), *parts], key=lambda part: part == "None")


def predict(model: ModelHandle, verb: str, *args: Any, **kwargs: Any) -> Any:
    """The result of a verb, computed by the predictor for this model."""
    with api_boundary():
        return predictor(model, verb)(model, *args, **kwargs)


def predictor(model: ModelHandle, name: str) -> Callable[..., Any]:
    """The function that implements a verb for a model; imports its domain. Raises UserError for unsupported verbs."""
    if model.recipe is not None and name in _RUN_VERBS:
        return getattr(import_module(_RUN_VERBS[name]), name)
    for provider in domains.verbs()[name]:
        if getattr(kinds, provider.predicate)(model.module):
            return getattr(import_module(provider.module), name)
    config, entry = model.module.config, VERBS[name]
    known = verbs(config, model.usage, model.recipe is not None)
    alternatives = [verb for verb in known if verb not in _INTROSPECTION][:_MAX_VERBS] or known[:_MAX_VERBS]
    remedy = entry.remedy
    if alternatives:
        others = " or ".join(filter(None, [", ".join(alternatives[:-1]), alternatives[-1]]))
        remedy = f"use {others} with it, or {entry.remedy}"
    for verb, is_kind, better in _ALTERNATIVES:
        if verb == name and is_kind(config):
            remedy = better
    raise UserError(f"{model.directory} is {kinds.kind_of(config)}, which cannot {entry.description}; {remedy}")


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
