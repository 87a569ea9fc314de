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
from typing import Any

from headway import domains
from headway.app.verb_table import RUN_VERBS, VERBS
from headway.errors import UserError
from headway.formats.usage import Usage
from headway.io.arguments import api_boundary
from headway.nn.models import ModelConfig, kinds
from headway.predict.model_handle import ModelHandle

_MAX_VERBS = 4  # verbs listed in a message
_INTROSPECTION = {"score", "attention", "lens", "logits", "evaluate"}  # not useful as alternatives to other verbs
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
    if model.recipe is not None and name in RUN_VERBS:
        return getattr(import_module(RUN_VERBS[name]), name)
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
        is_run_verb = is_run and name in RUN_VERBS
        is_supported = is_run_verb or any(getattr(kinds, predicate.predicate)(model) for predicate in predicates)
        if entry.variant_of is None and is_supported and (name != "chat" or usage.template is not None):
            supported.append(name)
    return supported
