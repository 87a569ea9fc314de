"""Inference with language models: completions, streamed or complete, token scores and attention maps."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from headway import arguments
from headway.arguments import check_types
from headway.attention_maps import Attention, check_text, first_row_maps, token_texts
from headway.codecs.tokenizer import encode_with_special_tokens
from headway.domains import text as texts
from headway.generate import Completion, Limits, Sampling, Session, score_ids
from headway.in_memory_data import Data
from headway.model_evaluation import evaluate_published
from headway.model_handle import ModelHandle
from headway.nn.models import attention_maps

Strings = Iterable[str]
_SAMPLING, _LIMITS = Sampling(), Limits()


def generate(
    model: ModelHandle,
    prompt: str | Strings,
    max_new_tokens: int = 100,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    stop: str | Strings = (),
    seed: int | None = None,
) -> str | list[str]:
    sampling = Sampling(temperature, top_k, top_p, min_p, repetition_penalty, seed)
    request = arguments.text_inputs(prompt, "prompt")
    completions = complete(model, request.items, sampling, Limits(max_new_tokens, _stop_strings(stop)))
    return request.unwrap([completion.text for completion in completions])


def stream(
    model: ModelHandle,
    prompt: str,
    max_new_tokens: int = 100,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    stop: str | Strings = (),
    seed: int | None = None,
) -> Iterator[str]:
    sampling = Sampling(temperature, top_k, top_p, min_p, repetition_penalty, seed)
    return continuations(model, prompt, sampling, Limits(max_new_tokens, _stop_strings(stop)))


@check_types
def continuations(model: ModelHandle, prompt: str, sampling: Sampling, limits: Limits) -> Iterator[str]:
    [prompt] = arguments.text_inputs(prompt, "prompt").items
    ids = prompt_ids(model, prompt)
    model.check_texts([prompt], [ids])
    return model.open_session().stream(ids, sampling, _limits(model, limits))


@check_types
def complete(
    model: ModelHandle, prompts: str | Strings, sampling: Sampling = _SAMPLING, limits: Limits = _LIMITS
) -> Any:  # a Completion, or a list of them
    request, session = arguments.text_inputs(prompts, "prompt"), model.open_session()
    rows = [prompt_ids(model, prompt) for prompt in request.items]
    model.check_texts(request.items, rows)
    completions: list[Completion] = session.generate(rows, sampling, _limits(model, limits)) if rows else []
    return request.unwrap(completions)


def generate_ids(
    model: ModelHandle,
    ids: Iterable[int] | Iterable[Iterable[int]],
    max_new_tokens: int = 100,
    temperature: float = 1.0,
    ignore_end: bool = False,
    seed: int | None = None,
) -> list[int] | list[list[int]]:
    limits = _limits(model, Limits(max_new_tokens, ignore_end=ignore_end))
    request, sampling, session = arguments.id_row_inputs(ids), Sampling(temperature, seed=seed), model.open_session()
    completions = session.generate(request.items, sampling, limits) if request.items else []
    return request.unwrap([completion.ids for completion in completions])


def session(model: ModelHandle) -> Session:
    return model.open_session()


def prompt_ids(model: ModelHandle, text: str) -> list[int]:
    if model.recipe is None:
        ids = encode_with_special_tokens(model.codec, text)
        return ids[:-1] if len(ids) > 1 and ids[-1] == model.codec.eos_id else ids
    ids = model.codec.encode(text)
    task = model.recipe.task
    crops = isinstance(task, texts.LanguageConfig) and task.random_crops
    return ids if model.codec.bos_id is None or (crops and ids) else [model.codec.bos_id, *ids]


@torch.inference_mode()
def logits(model: ModelHandle, ids: Any, source: Any = None) -> Float[Tensor, "B T C"]:
    return model.module.logits(arguments.id_tensor(ids, "ids", model.device))


def score(
    model: ModelHandle, texts: str | Strings, sources: str | Strings | None = None
) -> list[float] | list[list[float]]:
    request = arguments.text_inputs(texts)
    return request.unwrap(score_ids(model.module, [prompt_ids(model, text) for text in request.items]))


@check_types
def attention(model: ModelHandle, text: str, target: str | None = None) -> Attention:
    check_text(text)
    ids = prompt_ids(model, text)
    maps = attention_maps(model.module, lambda: model.module(torch.tensor([ids], device=model.device)))
    return Attention(first_row_maps(maps), token_texts(model.codec, ids), [])


@check_types
def evaluate(
    model: ModelHandle,
    data: Data | None = None,
    split: str | None = None,
    limit: int | None = None,
    stride: int | None = None,
) -> dict[str, Any]:
    task_of = lambda paths: texts.language_task(model.module, model.codec, paths)  # noqa: E731
    return evaluate_published(model, task_of, "text", data, split, limit, stride)


def _limits(model: ModelHandle, limits: Limits) -> Limits:
    """Add a published model's stop ids to those of its tokenizer."""
    if limits.ignore_end or not model.usage.ends:
        return limits
    return replace(limits, stop_ids=(*limits.stop_ids, *model.usage.ends))


def _stop_strings(stop: str | Strings) -> tuple[str, ...]:
    return tuple(arguments.text_inputs(stop, "stop").items)
