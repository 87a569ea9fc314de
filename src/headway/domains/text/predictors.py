"""Language models in use: completions of prompts, streamed or complete, token scores and attention maps."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from headway import given
from headway.attending import Attention, check_text, of_first, symbols_of
from headway.codecs.tokenizer import framed
from headway.domains import text as texts
from headway.evaluation import evaluate_published
from headway.generate import Completion, Limits, Sampling, Session, score_ids
from headway.given import typed
from headway.handle import Handle
from headway.in_memory import Data
from headway.nn.models import attention_maps

Texts = Iterable[str]
_SAMPLING, _LIMITS = Sampling(), Limits()


def generate(
    model: Handle,
    prompt: str | Texts,
    max_new_tokens: int = 100,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    stop: str | Texts = (),
    seed: int | None = None,
) -> str | list[str]:
    sampling = Sampling(temperature, top_k, top_p, min_p, repetition_penalty, seed)
    asked = given.texts(prompt, "prompt")
    found = complete(model, asked.items, sampling, Limits(max_new_tokens, _stops(stop)))
    return asked.answer([completion.text for completion in found])


def stream(
    model: Handle,
    prompt: str,
    max_new_tokens: int = 100,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    stop: str | Texts = (),
    seed: int | None = None,
) -> Iterator[str]:
    sampling = Sampling(temperature, top_k, top_p, min_p, repetition_penalty, seed)
    return continuations(model, prompt, sampling, Limits(max_new_tokens, _stops(stop)))


@typed
def continuations(model: Handle, prompt: str, sampling: Sampling, limits: Limits) -> Iterator[str]:
    [prompt] = given.texts(prompt, "prompt").items
    ids = prompt_ids(model, prompt)
    model.meet([prompt], [ids])
    return model.open_session().stream(ids, sampling, _limits(model, limits))


@typed
def complete(
    model: Handle, prompts: str | Texts, sampling: Sampling = _SAMPLING, limits: Limits = _LIMITS
) -> Any:  # a Completion, or a list of them
    asked, session = given.texts(prompts, "prompt"), model.open_session()
    rows = [prompt_ids(model, prompt) for prompt in asked.items]
    model.meet(asked.items, rows)
    found: list[Completion] = session.generate(rows, sampling, _limits(model, limits)) if rows else []
    return asked.answer(found)


def generate_ids(
    model: Handle,
    ids: Iterable[int] | Iterable[Iterable[int]],
    max_new_tokens: int = 100,
    temperature: float = 1.0,
    ignore_end: bool = False,
    seed: int | None = None,
) -> list[int] | list[list[int]]:
    limits = _limits(model, Limits(max_new_tokens, ignore_end=ignore_end))
    asked, sampling, session = given.rows_of_ids(ids), Sampling(temperature, seed=seed), model.open_session()
    found = session.generate(asked.items, sampling, limits) if asked.items else []
    return asked.answer([completion.ids for completion in found])


def session(model: Handle) -> Session:
    return model.open_session()


def prompt_ids(model: Handle, text: str) -> list[int]:
    if model.recipe is None:
        ids = framed(model.codec, text)
        return ids[:-1] if len(ids) > 1 and ids[-1] == model.codec.end else ids
    ids = model.codec.encode(text)
    task = model.recipe.task
    crops = isinstance(task, texts.LanguageConfig) and task.crops
    return ids if model.codec.begin is None or (crops and ids) else [model.codec.begin, *ids]


@torch.inference_mode()
def logits(model: Handle, ids: Any, source: Any = None) -> Float[Tensor, "B T C"]:
    return model.module.logits(given.id_rows(ids, "ids", model.device))


def score(model: Handle, texts: str | Texts, sources: str | Texts | None = None) -> list[float] | list[list[float]]:
    asked = given.texts(texts)
    return asked.answer(score_ids(model.module, [prompt_ids(model, text) for text in asked.items]))


@typed
def attention(model: Handle, text: str, target: str | None = None) -> Attention:
    check_text(text)
    ids = prompt_ids(model, text)
    maps = attention_maps(model.module, lambda: model.module(torch.tensor([ids], device=model.device)))
    return Attention(of_first(maps), symbols_of(model.codec, ids), [])


@typed
def evaluate(
    model: Handle,
    data: Data | None = None,
    split: str | None = None,
    limit: int | None = None,
    stride: int | None = None,
) -> dict[str, Any]:
    task_of = lambda paths: texts.language_task(model.module, model.codec, paths)  # noqa: E731
    return evaluate_published(model, task_of, "text", data, split, limit, stride)


def _limits(model: Handle, limits: Limits) -> Limits:
    """Add the stop ids of a published model to those of its tokenizer."""
    if limits.ignore_end or not model.usage.ends:
        return limits
    return replace(limits, stop_ids=(*limits.stop_ids, *model.usage.ends))


def _stops(stop: str | Texts) -> tuple[str, ...]:
    return tuple(given.texts(stop, "stop").items)
