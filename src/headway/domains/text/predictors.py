"""Inference with language models: completions, streamed or complete, token scores and attention maps."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from headway.codecs.mask_tokens import masked_ids
from headway.codecs.tokenizer import encode_with_special_tokens
from headway.domains import text as language
from headway.errors import UserError
from headway.generate import Completion, Limits, Sampling, Session, score_ids
from headway.io import arguments
from headway.io.arguments import check_types
from headway.nn.models import attention_maps, kinds
from headway.predict.attention_maps import Attention, first_row_maps, token_texts
from headway.predict.logit_lens import Lens, check_request, read_lens
from headway.predict.model_evaluation import evaluate_published
from headway.predict.model_handle import ModelHandle

Texts = Iterable[str]
_SAMPLING, _LIMITS = Sampling(), Limits()


def generate(
    model: ModelHandle,
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
    """Continue a prompt, or each of several prompts.

    max_new_tokens: maximum number of new tokens.
    temperature: sampling temperature; 0 is greedy.
    top_k: sample only from the K most probable tokens.
    top_p: sample from the most probable tokens with total probability P.
    min_p: drop tokens less probable than P times the most probable one.
    repetition_penalty: penalty on repeated tokens; 1 turns it off.
    stop: stop before this string.
    seed: the seed of the sampled tokens.

    Raises UserError for a model that does not generate text, and for a prompt that is too long.
    """
    sampling = Sampling(temperature, top_k, top_p, min_p, repetition_penalty, seed)
    request = arguments.text_inputs(prompt, "prompt")
    completions: Any = complete(model, request.items, sampling, Limits(max_new_tokens, _stop_strings(stop)))
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
    stop: str | Texts = (),
    seed: int | None = None,
) -> Iterator[str]:
    """Stream the continuation of a prompt in chunks; a chunk never ends within a character. Takes the arguments
    of `generate`.
    """
    sampling = Sampling(temperature, top_k, top_p, min_p, repetition_penalty, seed)
    return continuations(model, prompt, sampling, Limits(max_new_tokens, _stop_strings(stop)))


@check_types
def continuations(model: ModelHandle, prompt: str, sampling: Sampling, limits: Limits) -> Iterator[str]:
    """`stream`, with the settings as objects."""
    [prompt] = arguments.text_inputs(prompt, "prompt").items
    ids = prompt_ids(model, prompt)
    model.check_texts([prompt], [ids])
    return model.open_session().stream(ids, sampling, _limits(model, limits))


@check_types
def complete(
    model: ModelHandle, prompts: str | Texts, sampling: Sampling = _SAMPLING, limits: Limits = _LIMITS
) -> Completion | list[Completion]:
    """Continue a prompt, or each of several; a Completion has text, ids, log probabilities and speed."""
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
    """The ids generated after a prompt's ids, or after each of several, without the eos token. With `ignore_end`
    there are always `max_new_tokens` of them.
    """
    limits = _limits(model, Limits(max_new_tokens, ignore_end=ignore_end))
    request, sampling, session = arguments.id_row_inputs(ids), Sampling(temperature, seed=seed), model.open_session()
    completions = session.generate(request.items, sampling, limits) if request.items else []
    return request.unwrap([completion.ids for completion in completions])


def session(model: ModelHandle) -> Session:
    return model.open_session()


def prompt_ids(model: ModelHandle, text: str) -> list[int]:
    """The ids of a prompt, after the bos token if the model was trained or published with one."""
    if model.recipe is None:
        ids = encode_with_special_tokens(model.codec, text)
        return ids[:-1] if len(ids) > 1 and ids[-1] == model.codec.eos_id else ids
    ids = model.codec.encode(text)
    task = model.recipe.task
    crops = isinstance(task, language.LanguageConfig) and task.random_crops
    return ids if model.codec.bos_id is None or (crops and ids) else [model.codec.bos_id, *ids]


@torch.inference_mode()
def logits(model: ModelHandle, ids: Any, source: Any = None) -> Float[Tensor, "B T C"]:
    """Logits after each token, Float[B, T, C], for `ids` Int[B, T]. An encoder-decoder also needs the ids of the
    `source`, Int[B, S].
    """
    return model.module.logits(arguments.id_tensor(ids, "ids", model.device))


def score(
    model: ModelHandle, texts: str | Texts, sources: str | Texts | None = None
) -> list[float] | list[list[float]]:
    """The log probability of each token of a text, or of each of several, in nats.

    A language model with a bos token also scores the first token. An encoder-decoder scores the tokens of a target
    and its eos token, given the source. Raises UserError for an encoder-decoder without `sources`.
    """
    request = arguments.text_inputs(texts)
    return request.unwrap(score_ids(model.module, [prompt_ids(model, text) for text in request.items]))


@check_types
def attention(model: ModelHandle, text: str, target: str | None = None) -> Attention:
    """The attention weights over `text`; for an encoder-decoder also over `target` or its own translation.

    target: target text for a translation model (default: its own translation).
    """
    ids = _text_ids(model, text)
    maps = attention_maps(model.module, lambda: model.module(torch.tensor([ids], device=model.device)))
    return Attention(first_row_maps(maps), token_texts(model.codec, ids), [])


@check_types
def lens(model: ModelHandle, text: str, top: int = 5, neighbours: int = 0, target: str | None = None) -> Lens:
    """What the model would predict at each token of `text` if its stack ended after each layer: the final norm and the
    head are applied to the layer's features (nostalgebraist 2020). The last layer is the model's own prediction.

    top: number of tokens per layer and position, most probable first; 100 at most.
    neighbours: number of nearest tokens by output embedding for each token of the text; 100 at most.
    target: target text for a translation model (default: its own translation), to whose tokens the predictions belong.

    Raises UserError for a model without a vocabulary, and for text that is empty or has more than 256 tokens.
    """
    check_request(top, neighbours)
    mask = getattr(model.codec, "mask", None)
    masked = None if kinds.is_causal(model.module) else -1 if mask is None else mask
    return read_lens(model, model.module, model.module, _text_ids(model, text), model.codec, top, neighbours, masked)


evaluate = evaluate_published("text", lambda model, paths: language.language_task(model.module, model.codec, paths))


def _text_ids(model: ModelHandle, text: str) -> list[int]:
    """The ids of a complete text, in which a masked model's mask may be written [MASK]. UserError for an empty text, or
    one that exceeds the context.
    """
    if not text.strip():
        raise UserError("the text is empty; pass at least one word")
    has_masks = kinds.is_masked(model.module) and getattr(model.codec, "mask", None) is not None
    ids = masked_ids(model.codec, text) if has_masks else prompt_ids(model, text)
    if model.context is not None and len(ids) > model.context:
        raise UserError(f"the text has {len(ids):,} tokens, but the model takes at most {model.context:,}; shorten it")
    return ids


def _limits(model: ModelHandle, limits: Limits) -> Limits:
    """Add a published model's stop ids to those of its tokenizer."""
    if limits.ignore_end or not model.usage.ends:
        return limits
    return replace(limits, stop_ids=(*limits.stop_ids, *model.usage.ends))


def _stop_strings(stop: str | Texts) -> tuple[str, ...]:
    return tuple(arguments.text_inputs(stop, "stop").items)
