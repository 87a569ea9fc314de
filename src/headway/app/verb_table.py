"""The verbs that models have, and their arguments as the source of their predictors declares and explains them. Imports
no torch, because the client of a server and the help of a command need none.
"""

from __future__ import annotations

import ast
import inspect
import re
from functools import cache
from importlib.util import find_spec
from inspect import Parameter, Signature
from pathlib import Path
from typing import NamedTuple

from headway import domains


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
        "rank documents",
        "use a cross-encoder, such as bge-reranker, or fine-tune one: headway train reranking --from MODEL",
    ),
    "answer": Verb("answer questions from a text", "use a model for question answering, such as BERT for SQuAD"),
    "tag": Verb("tag words", "fine-tune one: headway train tagging --from MODEL --data FILE"),
    "match": Verb("match images and text", "use a CLIP or SigLIP model"),
    "embed": Verb("make embeddings", "use an encoder, such as BERT, ViT or CLIP"),
    "look": Verb("show its attention to an image", "use an image model, such as ViT"),
    "rollout": Verb("play episodes", "use a run of the recipes ppo, trajectories, cartpole or robotics"),
    "act": Verb("choose an action", "use a run of the recipes ppo, trajectories, cartpole or robotics"),
    "policy": Verb("act as a policy", "use a run of the recipes ppo, robotics or metaworld"),
    "move": Verb("play a move of chess", "train one: headway train chess --data games.pgn"),
    "player": Verb("play chess", "train one: headway train chess --data games.pgn"),
    "forecast": Verb("forecast time series", "use a run of the forecast recipe"),
    "score": Verb("score text", "use a language model or an encoder-decoder"),
    "attention": Verb("show its attention to text", "use a text model with attention layers"),
    "lens": Verb("show what its layers predict", "use a language model, such as GPT-2 or BERT"),
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
REMOTE_VERBS = {
    "generate",
    "stream",
    "chat",
    "classify",
    "embed",
    "rerank",
    "answer",
    "tag",
    "fill",
    "translate",
    "caption",
}
# Verbs that a server runs with the arguments that they have here.
REMOTE_VERBS |= {"attention", "lens", "match", "score", "look", "forecast", "move", "act"}
RUN_VERBS = {"evaluate": "headway.predict.model_evaluation"}  # verbs of every run, whatever its domain
_EXPLANATION = re.compile(r"^(\w+(?:, \w+)*): (.+(?:\n(?!\w+(?:, \w+)*: ).+)*)", re.MULTILINE)  # of a docstring


class Declaration(NamedTuple):
    """The arguments of a verb as a method, with annotations as text, and the docstring's explanations by name."""

    signature: Signature
    explanations: dict[str, str]


@cache  # a client binds the arguments of every request
def declaration(verb: str) -> Declaration:
    """The arguments of a verb, from the source of the first of its predictors that has a docstring."""
    modules = [provider.module for provider in domains.verbs()[verb]]
    declared = Declaration(Signature(), {})
    for module in [*modules, RUN_VERBS[verb]] if verb in RUN_VERBS else modules:
        spec = find_spec(module)
        assert spec is not None
        assert spec.origin is not None
        for node in ast.parse(Path(spec.origin).read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and node.name == verb:
                arguments = node.args.args
                defaults = [Parameter.empty] * (len(arguments) - len(node.args.defaults))
                defaults += [ast.literal_eval(default) for default in node.args.defaults]
                kind, parameters = Parameter.POSITIONAL_OR_KEYWORD, []
                for argument, default in zip(arguments, defaults):
                    annotation = "" if argument.annotation is None else ast.unparse(argument.annotation)
                    parameters.append(Parameter(argument.arg, kind, default=default, annotation=annotation))
                explanations = {
                    name: " ".join(text.split()).removesuffix(".")
                    for names, text in _EXPLANATION.findall(inspect.cleandoc(ast.get_docstring(node) or ""))
                    for name in names.split(", ")
                }
                declared = Declaration(Signature(parameters), explanations)
        if declared.explanations:
            break
    return declared
