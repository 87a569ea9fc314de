"""The table of predictors: what each model can do, and who does it.

A verb is a method of `headway.app.model.Model`. A domain names in its package the verbs that it serves and, for each,
which question of `headway.nn.models.kinds` is true of the models that it serves it for; its module `predictors`, which
is imported when a verb is asked for of such a model, has a function of the verb's name that takes the model and the
method's arguments.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from importlib import import_module
from typing import Any, Concatenate, NamedTuple, ParamSpec, TypeVar

from headway import domains
from headway.errors import UserError
from headway.formats.usage import Usage
from headway.given import border
from headway.handle import Handle
from headway.nn.models import ModelConfig, kinds

P = ParamSpec("P")
R = TypeVar("R")
M = TypeVar("M", bound=Handle)

_OF_RUNS = {"evaluate": "headway.evaluation"}  # what every run can do, whatever its domain
_MOST = 4  # verbs that a message names


class Verb(NamedTuple):
    """What a verb does, and what to do where a model cannot: both said in an error. `form_of` is the verb that it is
    another form of.
    """

    does: str
    remedy: str
    form_of: str | None = None


_GENERATE = Verb("continue a prompt", "take a language model, such as a GPT")
_CHAT = Verb("hold a conversation", "take a language model, such as a run of the recipe instruct")
_TRANSCRIBE = Verb("transcribe sounds", "take a model that can, such as a Whisper")
VERBS = {
    "generate": _GENERATE,
    "chat": _CHAT,
    "translate": Verb("translate", "take an encoder-decoder, such as a run of the recipe translation"),
    "transcribe": _TRANSCRIBE,
    "caption": Verb("write captions", "take a run of the recipe caption"),
    "fill": Verb("fill in masks", "take a masked language model, such as a BERT"),
    "classify": Verb("classify", "fine-tune one: headway train classification|vision|audio --from MODEL --data FILE"),
    "rerank": Verb(
        "rank documents", "take a cross-encoder, such as a BERT with one label, or fine-tune one: headway train pairs"
    ),
    "tag": Verb("tag words", "fine-tune one: headway train tagging --from MODEL --data FILE"),
    "match": Verb("match images and texts", "take a CLIP or SigLIP"),
    "embed": Verb("make vectors", "take an encoder, such as a BERT, a ViT or a CLIP"),
    "look": Verb("read images", "take a model that can, such as a ViT"),
    "rollout": Verb("play episodes", "take a run of the recipes ppo, trajectories, cartpole or robotics"),
    "policy": Verb("act as a policy", "take a run of the recipes ppo, robotics or metaworld"),
    "player": Verb("play chess", "train one: headway train chess --data games.pgn"),
    "forecast": Verb("forecast time series", "take a run of the recipe forecast"),
    "score": Verb("score texts", "take a language model or an encoder-decoder"),
    "attention": Verb("show its attention to a text", "take a model of texts"),
    "logits": Verb("give logits of symbols", "take a model with a head over its vocabulary"),
    "evaluate": Verb("be measured without a recipe", "fine-tune it with --from and evaluate that run"),
    "stream": _GENERATE._replace(form_of="generate"),
    "complete": _GENERATE._replace(form_of="generate"),
    "continuations": _GENERATE._replace(form_of="generate"),
    "generate_ids": _GENERATE._replace(form_of="generate"),
    "session": _GENERATE._replace(form_of="generate"),
    "prompt_ids": Verb("read a prompt", "take a model of texts", "generate"),
    "chat_stream": _CHAT._replace(form_of="chat"),
    "talk": _CHAT._replace(form_of="chat"),
    "transcriber": _TRANSCRIBE._replace(form_of="transcribe"),
}
_LOOKS_INSIDE = {"score", "attention", "logits", "evaluate"}  # which is no remedy where something else was wanted
_INSTEAD = (  # where another verb comes to the same
    ("classify", kinds.is_two_tower, "give the names of the classes to match, as texts"),
    ("look", kinds.is_text, "use attention"),
)


def verb(method: Callable[Concatenate[M, P], R]) -> Callable[Concatenate[M, P], R]:
    """A method of a model that the predictor of its name answers."""

    @wraps(method)
    def call(model: M, *args: P.args, **kwargs: P.kwargs) -> R:
        with border():
            return predictor(model, method.__name__)(model, *args, **kwargs)

    return call


def predictor(model: Handle, name: str) -> Callable[..., Any]:
    """What serves a verb for a model; its domain is imported now. UserError for a model that has no such verb."""
    if model.recipe is not None and name in _OF_RUNS:
        return getattr(import_module(_OF_RUNS[name]), name)
    for serves in domains.verbs()[name]:
        if getattr(kinds, serves.question)(model.module):
            return getattr(import_module(serves.module), name)
    raise _refusal(model, name)


def verbs(model: ModelConfig, usage: Usage, run: bool) -> list[str]:
    """The verbs of a model: of a configuration, how it is used, and whether it is a run. Forms of them are left out."""
    found = []
    for name, known in VERBS.items():
        serving = domains.verbs()[name]
        of_run = run and name in _OF_RUNS
        served = of_run or any(getattr(kinds, each.question)(model) for each in serving)
        if known.form_of is None and served and (name != "chat" or usage.template is not None):
            found.append(name)
    return found


def _refusal(model: Handle, name: str) -> UserError:
    """What the model is, what it can do instead, and what has this verb."""
    config, asked = model.module.config, VERBS[name]
    known = verbs(config, model.usage, model.recipe is not None)
    others = [each for each in known if each not in _LOOKS_INSIDE][:_MOST] or known[:_MOST]
    remedy = next((said for verb, question, said in _INSTEAD if verb == name and question(config)), None)
    if remedy is None:
        remedy = f"use {_either(others)} with it, or {asked.remedy}" if others else asked.remedy
    return UserError(f"{model.directory} is {kinds.kind_of(config)}, which cannot {asked.does}; {remedy}")


def _either(names: list[str]) -> str:
    return " or ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
