"""Inference with text encoder-decoders: translations, logits, target scores and attention maps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from headway.codecs.tokenizer import encode_with_special_tokens
from headway.domains.translation.task import Codecs, PairsConfig, PairSpecialTokens, source_ids
from headway.errors import UserError
from headway.generate import Sampling, SearchConfig, score_targets, translate_ids
from headway.io import arguments
from headway.io.arguments import check_types
from headway.layout import Layout
from headway.nn.mixers import ConditionalGRU, CrossAttention
from headway.nn.models import attention_maps
from headway.predict.attention_maps import Attention, check_text, first_row_maps, token_texts
from headway.predict.model_handle import ModelHandle

Texts = Iterable[str]
Scored = list[tuple[str, float]]


@check_types
def translate(
    model: ModelHandle,
    lines: str | Texts,
    beam: int | None = None,
    length_penalty: float | None = None,
    n_best: int | None = None,
    temperature: float | None = None,
    seed: int | None = None,
    scores: bool = False,
) -> str | list[str] | list[list[str]] | Scored | list[Scored]:
    """Translate a line, or each of several; with `n_best`, return a list of the best translations per line.

    beam: beams per line; 1 is greedy (default: as in the run's evaluation, or 4).
    length_penalty: length penalty, GNMT's alpha (default: as in the run's evaluation, or 0.6).
    temperature: sample at this temperature instead of beam search.
    seed: the seed of the samples.
    scores: return (text, score) pairs: the log probability divided by the length penalty, or for samples the mean
    log probability per token.

    Raises UserError for a model that is not a text encoder-decoder.
    """
    request, sampling, count = arguments.text_inputs(lines, "line"), None, 1 if n_best is None else n_best
    if temperature is None:  # settings that are not requested are as in the run's evaluation
        task = None if model.recipe is None else model.recipe.task
        defaults = task if isinstance(task, PairsConfig) else SearchConfig()
        width = max(defaults.beam, count) if beam is None else beam
        search = SearchConfig(width, defaults.length_penalty if length_penalty is None else length_penalty, count)
    elif beam is not None:
        raise UserError(f"beam is {beam} and temperature {temperature:g}; use beam search or sampling, not both")
    else:
        search, sampling = SearchConfig(count, n_best=count), Sampling(temperature, seed=seed)
    translations: list[Scored] = []
    if request.items:
        translator = _translator(model)
        rows = translator.to_source_ids(request.items)
        sources = [ids if line.strip() else [] for line, ids in zip(request.items, rows)]  # empty for an empty line
        if model.recipe is not None:
            model.check_texts(request.items, sources)
        hypotheses = translate_ids(
            model.generator,
            sources,
            bos=translator.bos,
            eos=translator.eos,
            config=search,
            prefixes=[translator.forced if source else () for source in sources],
            suppressed=translator.suppressed,
            sampling=sampling,
        )
        decode = translator.codecs.target.decode
        translations = [[(decode(best.ids), best.score) for best in line_hypotheses] for line_hypotheses in hypotheses]
    if scores:
        return request.unwrap(translations)
    texts = [[text for text, _ in line_translations] for line_translations in translations]
    return request.unwrap([line_texts[0] for line_texts in texts] if n_best is None else texts)


@torch.inference_mode()
def logits(model: ModelHandle, ids: Any, source: Any = None) -> Float[Tensor, "B T C"]:
    rows = arguments.id_tensor(ids, "ids", model.device)
    if source is None:
        raise UserError(f"{model.directory} is an encoder-decoder, which needs a source; pass source=...")
    source_rows = arguments.id_tensor(source, "source", model.device)
    layouts = [Layout.full(*ids.shape, device=model.device) for ids in (source_rows, rows)]
    return model.module.heads["vocabulary"](model.module(source_rows, layouts[0], rows, layouts[1]).x)


def score(
    model: ModelHandle, texts: str | Texts, sources: str | Texts | None = None
) -> list[float] | list[list[float]]:
    request = arguments.text_inputs(texts)
    if sources is None:
        raise UserError(f"{model.directory} is an encoder-decoder, which scores targets; pass their sources=...")
    source_lines = arguments.text_inputs(sources, "source").items
    if len(source_lines) != len(request.items):
        raise UserError(
            f"there are {len(request.items)} targets but {len(source_lines)} sources; pass one source per target"
        )
    if not source_lines:
        return request.unwrap([])
    translator = _translator(model)
    ids, rows = translator.codecs.target.encode_batch(list(request.items)), translator.to_source_ids(source_lines)
    return request.unwrap(score_targets(model.module, rows, ids, bos=translator.bos, eos=translator.eos))


@check_types
def attention(model: ModelHandle, text: str, target: str | None = None) -> Attention:
    check_text(text)
    translator, module = _translator(model), model.module
    codecs = translator.codecs
    target_text: Any = translate(model, text) if target is None else target
    source = translator.to_source_ids([text])[0]
    decoder = [translator.bos, *codecs.target.encode(target_text)]
    inputs = [torch.tensor([ids], device=model.device) for ids in (source, decoder)]
    layouts = [Layout.full(*ids.shape, device=model.device) for ids in inputs]
    maps = attention_maps(module, lambda: module(inputs[0], layouts[0], inputs[1], layouts[1]))
    cross_mixers = (ConditionalGRU, CrossAttention)
    across = tuple(name for name in maps if isinstance(module.get_submodule(name), cross_mixers))
    names = token_texts(codecs.target, decoder), token_texts(codecs.source, source)
    return Attention(first_row_maps(maps), *names, across)


class _Translator(NamedTuple):
    """`to_source_ids` converts lines to encoder input. A target is between `bos` and `eos`; its first ids are `forced`,
    and `suppressed` ids never occur in it.
    """

    codecs: Codecs
    to_source_ids: Callable[[Sequence[str]], list[list[int]]]
    bos: int
    eos: int
    forced: tuple[int, ...] = ()
    suppressed: tuple[int, ...] = ()


def _translator(model: ModelHandle) -> _Translator:
    if model.recipe is None:
        # With a published model's settings, whose tokenizer adds special tokens to the source.
        codec, usage = model.codec, model.usage
        start = usage.decoder_start if usage.decoder_start is not None else codec.bos_id
        if start is None or not usage.ends:
            raise UserError("this model has no decoder_start_token_id or eos_token_id; add them to its config.json")
        suppressed = tuple(token for token in usage.suppressed if token not in usage.ends)
        to_source_ids = lambda texts: [encode_with_special_tokens(codec, text) for text in texts]  # noqa: E731
        return _Translator(Codecs(codec, codec), to_source_ids, start, usage.ends[0], usage.forced, suppressed)
    task = model.recipe.task
    if not isinstance(task, PairsConfig):
        raise UserError(f"{model.directory} was trained as {type(task).__name__}; choose a run trained on pairs")
    codecs = task.codecs(model.directory)
    special_tokens = PairSpecialTokens.of(codecs)
    to_source_ids = lambda texts: source_ids(texts, codecs.source, task)  # noqa: E731
    return _Translator(codecs, to_source_ids, special_tokens.bos, special_tokens.eos)
