"""Inference with text encoder-decoders: translations, logits, target scores and attention maps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from headway.codecs.languages import language_id, language_tokens
from headway.codecs.tokenizer import TokenizerCodec, encode_with_special_tokens
from headway.domains.translation.task import Codecs, PairsConfig, PairSpecialTokens, source_ids
from headway.errors import UserError
from headway.formats.usage import Usage
from headway.generate import Sampling, SearchConfig, score_targets, translate_ids
from headway.io import arguments
from headway.io.arguments import check_types
from headway.layout import Layout
from headway.nn.mixers import ConditionalGRU, CrossAttention
from headway.nn.models import attention_maps
from headway.predict.attention_maps import Attention, first_row_maps, token_texts
from headway.predict.logit_lens import Lens, check_request, read_lens
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
    source: str | None = None,
    target: str | None = None,
) -> str | list[str] | list[list[str]] | Scored | list[Scored]:
    """Translate a line, or each of several; with `n_best`, return a list of the best translations per line.

    beam: beams per line; 1 is greedy (default: as in the run's evaluation, or 4).
    length_penalty: length penalty, GNMT's alpha (default: as in the run's evaluation, or 0.6).
    temperature: sample at this temperature instead of beam search.
    seed: the seed of the samples.
    scores: return (text, score) pairs: the log probability divided by the length penalty, or for samples the mean
    log probability per token.
    source: language of the lines, such as en, for a model of several languages (default: the tokenizer's).
    target: language to translate into, such as de, for a model of several languages.

    Raises UserError for a model that is not a text encoder-decoder.
    """
    request, sampling, count = arguments.text_inputs(lines, "line"), None, 1 if n_best is None else n_best
    if temperature is None:  # settings that are not requested are as in the run's evaluation
        task = None if model.recipe is None else model.recipe.task
        defaults = task if isinstance(task, PairsConfig) else SearchConfig()
        width = max(defaults.beam, count) if beam is None else beam
        penalty = defaults.length_penalty if length_penalty is None else length_penalty
        ratio = defaults.max_ratio if isinstance(defaults, PairsConfig) else defaults.most_ratio
        search = SearchConfig(width, penalty, count, ratio)
    elif beam is not None:
        raise UserError(f"beam is {beam} and temperature {temperature:g}; use beam search or sampling, not both")
    else:
        search, sampling = SearchConfig(count, n_best=count), Sampling(temperature, seed=seed)
    translations: list[Scored] = []
    if request.items:
        translator = _with_languages(_translator(model), model.usage, source, target)
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
            prefixes=[translator.forced if ids else () for ids in sources],
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
    module, codecs, source, decoder = _read_pair(model, text, target)
    target_ids = torch.tensor([decoder], device=model.device)
    maps = attention_maps(module, lambda: _run(model, source, target_ids))
    cross_mixers = (ConditionalGRU, CrossAttention)
    across = tuple(name for name in maps if isinstance(module.get_submodule(name), cross_mixers))
    names = token_texts(codecs.target, decoder), token_texts(codecs.source, source)
    return Attention(first_row_maps(maps), *names, across)


@check_types
def lens(model: ModelHandle, text: str, top: int = 5, neighbours: int = 0, target: str | None = None) -> Lens:
    check_request(top, neighbours)
    module, codecs, source, decoder = _read_pair(model, text, target)
    return read_lens(
        model, module.decoder, lambda ids: _run(model, source, ids), decoder, codecs.target, top, neighbours
    )


def _read_pair(model: ModelHandle, text: str, target: str | None) -> tuple[Any, Codecs, list[int], list[int]]:
    """The module, its codecs, and the ids of a source and of its target, which is the model's own translation by
    default. UserError for an empty source, and for texts that exceed the context.
    """
    if not text.strip():
        raise UserError("the text is empty; pass at least one word")
    translator = _translator(model)
    target_text: Any = translate(model, text) if target is None else target
    source = translator.to_source_ids([text])[0]
    decoder = [translator.bos, *translator.codecs.target.encode(target_text)]
    if model.context is not None and len(decoder) > model.context:
        raise UserError(f"the target has {len(decoder):,} tokens, and the model takes {model.context:,}; shorten it")
    return model.module, translator.codecs, source, decoder


def _run(model: ModelHandle, source: list[int], target_ids: Int[Tensor, "1 T"]) -> Any:
    source_ids = torch.tensor([source], device=model.device)
    layouts = [Layout.full(*ids.shape, device=model.device) for ids in (source_ids, target_ids)]
    return model.module(source_ids, layouts[0], target_ids, layouts[1])


class _Translator(NamedTuple):
    """`to_source_ids` converts lines to encoder input. A target is between `bos` and `eos`; its first ids are `forced`,
    and `suppressed` ids never occur in it. `languages` are the ids of language tokens by code.
    """

    codecs: Codecs
    to_source_ids: Callable[[Sequence[str]], list[list[int]]]
    bos: int
    eos: int
    forced: tuple[int, ...] = ()
    suppressed: tuple[int, ...] = ()
    languages: Mapping[str, int] = {}


def _with_languages(translator: _Translator, usage: Usage, source: str | None, target: str | None) -> _Translator:
    """`translator` from one language to another. UserError if the model has no such languages, or needs a target."""
    languages, encode = translator.languages, translator.to_source_ids
    ids, forced_by_source = set(languages.values()), usage.family == "marian"
    if not languages or (forced_by_source and source is not None):
        for option, language in (("source", source), ("target", target)):
            if language is not None:
                raise UserError(f"this model has no {option} languages to choose from; remove {language!r:.40}")
        return translator
    if forced_by_source:  # the target's token precedes the source
        prefix = [] if target is None else [language_id(languages, target)]
        return translator._replace(to_source_ids=lambda texts: [[*prefix, *row] for row in encode(texts)])
    starts_with_language = usage.decoder_start is None or usage.decoder_start in ids  # mBART
    if target is not None:
        target_id = language_id(languages, target)
        change = {"bos": target_id, "forced": ()} if starts_with_language else {"forced": (target_id,)}
        translator = translator._replace(**change)
    elif not translator.forced and translator.bos not in ids:
        raise UserError(
            f"this model translates into {len(languages)} languages; choose one with target (--to): "
            f"{', '.join(languages)}"
        )
    if source is None:
        return translator
    source_id = language_id(languages, source)
    return translator._replace(
        to_source_ids=lambda texts: [[source_id if i in ids else i for i in row] for row in encode(texts)]
    )


def _translator(model: ModelHandle) -> _Translator:
    if model.recipe is None:
        # With a published model's settings, whose tokenizer adds special tokens to the source.
        codec, usage = model.codec, model.usage
        languages = language_tokens(codec.tokenizer) if isinstance(codec, TokenizerCodec) else {}
        starts = usage.decoder_start, usage.begin, codec.bos_id
        start = next((token for token in starts if token is not None), None)
        if start is None or not usage.ends:
            raise UserError("this model has no decoder_start_token_id or eos_token_id; add them to its config.json")
        suppressed = tuple(token for token in usage.suppressed if token not in usage.ends)
        to_source_ids = lambda texts: [encode_with_special_tokens(codec, text) for text in texts]  # noqa: E731
        return _Translator(
            Codecs(codec, codec), to_source_ids, start, usage.ends[0], usage.forced, suppressed, languages
        )
    task = model.recipe.task
    if not isinstance(task, PairsConfig):
        raise UserError(f"{model.directory} was trained as {type(task).__name__}; choose a run trained on pairs")
    codecs = task.codecs(model.directory)
    tokens, context = PairSpecialTokens.of(codecs, model.usage), model.module.config.encoder.context
    to_source_ids = lambda texts: source_ids(texts, codecs.source, task, tokens, context)  # noqa: E731
    return _Translator(codecs, to_source_ids, tokens.bos, tokens.eos, tokens.forced, tokens.suppressed)
