"""Text encoder-decoders in use: translations, logits and scores of targets, and attention maps."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from headway import given
from headway.attending import Attention, check_text, of_first, symbols_of
from headway.domains.translation.config import PairsConfig
from headway.domains.translation.translator import Translator
from headway.errors import UserError
from headway.generate import Sampling, SearchConfig
from headway.given import typed
from headway.handle import Handle
from headway.layout import Layout
from headway.nn.mixers import ConditionalGRU, CrossAttention
from headway.nn.models import attention_maps

Texts = Iterable[str]


@typed
def translate(
    model: Handle,
    lines: str | Texts,
    beam: int | None = None,
    length_penalty: float | None = None,
    n_best: int | None = None,
    temperature: float | None = None,
    seed: int | None = None,
    scores: bool = False,
) -> Any:
    asked, sampling, count = given.texts(lines, "line"), None, 1 if n_best is None else n_best
    if temperature is None:
        search = _search(model, beam, length_penalty, count)
    elif beam is not None:
        raise UserError(f"beam is {beam} and temperature {temperature:g}; use beam search or sampling, not both")
    else:
        search, sampling = SearchConfig(count, n_best=count), Sampling(temperature, seed=seed)
    found = _translator(model).translate(asked.items, search, sampling) if asked.items else []
    if scores:
        return asked.answer(found)
    texts = [[text for text, _ in some] for some in found]
    return asked.answer([some[0] for some in texts] if n_best is None else texts)


def _search(model: Handle, beam: int | None, length_penalty: float | None, count: int) -> SearchConfig:
    """The requested search, with open settings as in a run's evaluation."""
    task: Any = SearchConfig() if model.recipe is None else model.recipe.task
    own = task if isinstance(task, (PairsConfig, SearchConfig)) else SearchConfig()
    width = max(own.beam, count) if beam is None else beam
    return SearchConfig(width, own.length_penalty if length_penalty is None else length_penalty, count)


@torch.inference_mode()
def logits(model: Handle, ids: Any, source: Any = None) -> Float[Tensor, "B T C"]:
    rows = given.id_rows(ids, "ids", model.device)
    if source is None:
        raise UserError(f"{model.directory} is an encoder-decoder, which needs a source; pass source=...")
    read = given.id_rows(source, "source", model.device)
    layouts = [Layout.full(*some.shape, device=model.device) for some in (read, rows)]
    return model.module.heads["vocabulary"](model.module(read, layouts[0], rows, layouts[1]).x)


def score(model: Handle, texts: str | Texts, sources: str | Texts | None = None) -> list[float] | list[list[float]]:
    asked = given.texts(texts)
    if sources is None:
        raise UserError(f"{model.directory} is an encoder-decoder, which scores targets; pass their sources=...")
    read = given.texts(sources, "source").items
    if len(read) != len(asked.items):
        raise UserError(f"there are {len(asked.items)} targets and {len(read)} sources; pass one source per target")
    return asked.answer(_translator(model).score(asked.items, read) if read else [])


@typed
def attention(model: Handle, text: str, target: str | None = None) -> Attention:
    check_text(text)
    translator, module = _translator(model), model.module
    codecs = translator.codecs
    written: Any = translate(model, text) if target is None else target
    source = translator.read([text])[0]
    decoder = [translator.begin, *codecs.target.encode(written)]
    both = [torch.tensor([ids], device=model.device) for ids in (source, decoder)]
    layouts = [Layout.full(*ids.shape, device=model.device) for ids in both]
    maps = attention_maps(module, lambda: module(both[0], layouts[0], both[1], layouts[1]))
    readers = (ConditionalGRU, CrossAttention)
    across = tuple(name for name in maps if isinstance(module.get_submodule(name), readers))
    names = symbols_of(codecs.target, decoder), symbols_of(codecs.source, source)
    return Attention(of_first(maps), *names, across)


def _translator(model: Handle) -> Translator:
    if model.recipe is None:
        return Translator.of_published(model.module, model.codec, model.usage, model.generator)
    if not isinstance(model.recipe.task, PairsConfig):
        raise UserError(f"{model.directory} was trained as {type(model.recipe.task).__name__}; choose a run on pairs")
    return Translator.of_run(model.module, model.recipe.task, model.directory, model.generator, model.meet)
