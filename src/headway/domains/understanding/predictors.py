"""Inference with encoders: labels, tags, relevance, answers and embeddings of texts."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from headway.codecs.tokenizer import SequenceTemplate, TokenizerCodec, encode_with_special_tokens, tokenize_words
from headway.domains.understanding.answers import Answer, ContextWindows
from headway.domains.understanding.pair_inputs import PairInputs
from headway.domains.understanding.tagging import WordTokenRows, word_tags
from headway.errors import UserError, nearest
from headway.formats.usage import name_scores, named_scores
from headway.generate.prompts import device_of
from headway.io import arguments
from headway.io.arguments import check_types
from headway.learn.token_rows import (
    MAX_BATCH_TOKENS,
    Inputs,
    LengthLimit,
    TokenRows,
    compute_in_batches,
    frame_for,
    frame_rows,
)
from headway.metrics import EntitySpan, entity_spans
from headway.nn.models import PooledHeadConfig, Transformer, evaluation_mode, kinds
from headway.nn.models.pooled import PooledHead, pool
from headway.predict.model_handle import ModelHandle

Labels = dict[str, float]
Text = str | tuple[str, str]
Texts = Iterable[str]

_WORD = re.compile(r"\w+(?:['’\-]\w+)*|[^\w\s]")  # splits text as the CoNLL corpora do


class TaggedWords(NamedTuple):
    """The words of a text with their tags, and the entities (spans of words) that the tags encode."""

    words: list[str]
    tags: list[str]
    entities: list[EntitySpan]


class RankedDocument(NamedTuple):
    """A document with its index in the request and its relevance to the query."""

    index: int
    score: float
    document: str


@check_types
def classify(
    model: ModelHandle,
    items: Text | Iterable[Text],
    truncate: bool = False,
    labels: Iterable[str] | None = None,
    hypothesis: str = "This example is {}.",
    multiple: bool = False,
) -> Labels | list[Labels]:
    """The probability of each label, most probable first, for a text, a text pair (a tuple), an image or an audio
    clip, or for each of several. A regression model returns its prediction as "value". A multi-label model
    predicts the labels whose probability reaches their `thresholds`.

    Images are files or pixels, uint8 [height, width, 3] or [height, width]. Audio is a file or samples at 16 kHz,
    [N].

    truncate: truncate text that is too long for the model, and use the middle of audio that is too long; otherwise
    both are errors.
    labels: choose from these labels instead of the model's classes. The model must have a class "entailment", as
    models for natural language inference have.
    hypothesis: sentence that a text entails if a label, which replaces {}, is right.
    multiple: several labels may be right, so each has an independent probability.

    Raises UserError for a model without classes.
    """
    request = arguments.text_or_pair_inputs(items)
    _check_texts(model, request.items)
    if labels is not None:
        chosen = arguments.text_inputs(labels, "label").items
        return request.unwrap(_choose_labels(model, request.items, chosen, hypothesis, multiple, truncate))
    rows = text_rows(model, request.items, truncate)
    scores: dict[int, Labels] = {}
    for indices, logits in _batched_outputs(model.module, kinds.predicting_head(model.module) or "classes", rows):
        scores.update(zip(indices.tolist(), named_scores(logits, model.usage)))
    return request.unwrap([scores[row] for row in range(len(request.items))])


def _choose_labels(
    model: ModelHandle, texts: Sequence[Text], labels: list[str], hypothesis: str, multiple: bool, truncate: bool
) -> list[Labels]:
    """The probability of each label by entailment (Yin et al. 2019): the softmax over the labels of the logit for
    entailment or, for `multiple` labels, of each label over entailment and contradiction.
    """
    classes = [name.lower() for name in model.usage.labels]
    entailed, contradicted = (
        next((index for index, name in enumerate(classes) if name.startswith(stem)), None)
        for stem in ("entail", "contradict")
    )
    if entailed is None or (contradicted is None and len(classes) != 2):
        raise UserError(
            f"{model.directory} has no class entailment and contradiction (its classes: {', '.join(classes)[:100]}), "
            "so you cannot choose the labels; use a model for natural language inference (MNLI), or remove the labels"
        )
    if not labels or not all(label.strip() for label in labels):
        raise UserError("the labels are empty; pass at least one label, such as politics, sports")
    if len(set(labels)) < len(labels):
        raise UserError(f"the label {next(x for x in labels if labels.count(x) > 1)!r} is repeated; remove one of them")
    if "{}" not in hypothesis:
        raise UserError(f'the hypothesis {hypothesis!r:.80} has no {{}} for the label; write one such as "It is {{}}."')
    if pair := next((text for text in texts if not isinstance(text, str)), None):
        raise UserError(f"{pair!r:.80} is a text pair; pass single texts with labels")
    if not texts:
        return []
    hypotheses = model.codec.encode_batch([hypothesis.replace("{}", label) for label in labels])
    premises, config = model.codec.encode_batch(cast(list[str], texts)), model.module.config
    frame, limit = text_frame(model), LengthLimit(config.context, truncate)
    pairs = [(premise, other) for premise in premises for other in hypotheses]
    if truncate and config.context is not None:  # only the text, so that all hypotheses stay complete
        free = config.context - frame.num_special_tokens(2)
        pairs = [(premise[: max(0, free - len(other))], other) for premise, other in pairs]
    first, second = [premise for premise, _ in pairs], [other for _, other in pairs]
    rows = frame_rows(frame, first, second, limit, lambda row: f"text {row // len(labels) + 1} with its label")
    head = kinds.predicting_head(model.module) or "classes"
    compute = lambda part: model.module.output(head, *part)  # noqa: E731
    logits = compute_in_batches(model.module, rows, np.arange(len(rows)), compute).unflatten(0, (len(texts), -1))
    if multiple or len(labels) == 1:
        other = 1 - entailed if contradicted is None else contradicted
        shares = logits[..., [entailed, other]].softmax(-1)[..., 0]
    else:
        shares = logits[..., entailed].softmax(-1)
    return [name_scores(row, labels) for row in shares.tolist()]


@check_types
def rerank(
    model: ModelHandle,
    query: str,
    documents: Texts,
    top_n: int | None = None,
    truncate: bool = False,
    instruction: str | None = None,
) -> list[RankedDocument]:
    """Rank documents by their relevance to a query with a cross-encoder or a reranking language model: at most `top_n`,
    most relevant first. Scores are from 0 to 1: the sigmoid of the output, or the output itself if the model's
    settings name Identity as the activation.

    truncate: truncate inputs that are too long for the model, the longer text first; otherwise they are errors.
    instruction: what makes a document relevant, for models whose prompt contains it, such as Qwen3-Reranker.

    Raises UserError for a model that does not have exactly one output.
    """
    items = arguments.text_inputs([documents] if isinstance(documents, str) else documents, "document").items
    if top_n is not None and top_n < 1:
        raise UserError(f"top_n is {top_n}; use an integer of at least 1, or None for all")
    _check_texts(model, [query, *items])
    rows = pair_rows(model, [(query, document) for document in items], truncate, instruction)
    ranked = map(RankedDocument, range(len(items)), relevance(model, rows), items)
    return sorted(ranked, key=lambda document: -document.score)[:top_n]  # ties keep their order


@check_types
def answer(
    model: ModelHandle,
    question: str,
    context: str | Texts,
    window: int = 384,
    stride: int | None = None,
    max_tokens: int = 15,
    allow_none: bool = False,
) -> Answer | list[Answer]:
    """Answer a question with a part of a context, or of each of several: its text, its characters from `start` to
    before `end`, and its score.

    window: number of tokens of the question and a part of a long context that the model reads at once.
    stride: number of tokens that successive parts share (default: half the window, at most 128).
    max_tokens: maximum number of tokens of an answer.
    allow_none: return an empty answer if the score for no answer is higher, as models for SQuAD 2 are trained to.
    """
    request = arguments.text_inputs(context, "context")
    settings = {"window": window, "max_tokens": max_tokens, **({} if stride is None else {"stride": stride})}
    for name, value in settings.items():
        if value < (name != "stride"):
            raise UserError(f"{name} is {value}; use an integer of at least {int(name != 'stride')}")
    if not question.strip():
        raise UserError("the question is empty; pass a question")
    for number, text in enumerate(request.items, 1):
        if not text.strip():
            raise UserError(f"context {number} of {len(request.items)} is empty; fill it in or remove it")
    if not isinstance(model.codec, TokenizerCodec):
        raise UserError(f"a {type(model.codec).__name__} has no positions of tokens; use a tokenizer.json")
    _check_texts(model, [question, *request.items])
    windows = ContextWindows(model.codec, model.module.config, question, request.items, window, stride)
    for indices, logits in _batched_outputs(model.module, "span", windows.rows):
        for index, row in zip(indices.tolist(), logits.float().cpu().numpy()):
            windows.add_span(index, row, max_tokens)
    return request.unwrap(windows.answers(allow_none))


@check_types
def tag(
    model: ModelHandle, texts: str | Iterable[str | Texts], truncate: bool = False
) -> TaggedWords | list[TaggedWords]:
    """The words, tags and entities of a text, or of each of several. Texts in a list may be lists of words.

    truncate: truncate text that is too long for the model.
    """
    request, codec, config = arguments.text_or_word_inputs(texts), model.codec, model.module.config
    _check_texts(model, request.items)
    sentences = [_WORD.findall(text) if isinstance(text, str) else text for text in request.items]
    if not isinstance(codec, TokenizerCodec):
        raise UserError(f"a {type(codec).__name__} has no word boundaries; use a tokenizer.json")
    limit = LengthLimit(config.context, truncate)
    word_rows = WordTokenRows(tokenize_words(codec, sentences), frame_for(codec, config), limit)
    tagged: dict[int, TaggedWords] = {}
    for indices, logits in _batched_outputs(model.module, "tags", word_rows.rows):
        names = list(model.usage.labels) or [f"LABEL_{index}" for index in range(logits.shape[-1])]
        if len(names) != logits.shape[-1]:
            raise UserError(f"the model has {logits.shape[-1]} tags but {len(names)} tag names; name all tags")
        for row, best in zip(indices.tolist(), logits.argmax(-1).cpu().numpy()):
            words = sentences[row]
            tags = word_tags(best, word_rows.positions[row, : len(words)], names)
            tagged[row] = TaggedWords(words, tags, entity_spans(tags))
    return request.unwrap([tagged[row] for row in range(len(sentences))])


@check_types
def embed(
    model: ModelHandle, items: str | Texts, truncate: bool = False, prompt: str | None = None
) -> Float[Tensor, "D"] | Float[Tensor, "N D"]:
    """A vector for a text or an image, Float[D], or for each of several, Float[N, D]. It has unit length, unless the
    model is a sentence encoder whose modules do not normalise.

    A model with a joint space for images and texts takes both; a string that is an image path stands
    for the image.

    truncate: truncate text that is too long for the model.
    prompt: name of a prompt of the model to put before each text, such as query or document.
    """
    request = arguments.text_inputs(items)
    before = sentence_prompt(model, prompt)
    rows = sentence_rows(model, request.items, truncate, before)
    return request.unwrap(embed_rows(model.module, rows, before.skip))


class SentencePrompt(NamedTuple):
    """The text before each input of a sentence encoder, and how many tokens at the start are not pooled."""

    text: str = ""
    skip: int = 0


def sentence_prompt(model: ModelHandle, name: str | None) -> SentencePrompt:
    """The prompt with this name, or the model's default. UserError for an unknown name."""
    sentence = model.usage.sentence
    if name is not None and name not in sentence.prompts:
        remedy = nearest(name, sentence.prompts) if sentence.prompts else "it has no prompts, so leave the prompt out"
        raise UserError(f"{model.directory} has no prompt {name!r:.80}; {remedy}")
    text = sentence.prompts.get(name or sentence.default_prompt or "", "")
    if not text or sentence.include_prompt:
        return SentencePrompt(text)
    prompt_ids = model.codec.encode((text.lower() if sentence.lowercase else text).strip())
    return SentencePrompt(text, len(text_frame(model).before) + len(prompt_ids))


def text_frame(model: ModelHandle) -> SequenceTemplate:
    """The special tokens around texts: none for a published model whose tokenizer adds none."""
    frame = frame_for(model.codec, model.module.config)
    is_published = model.recipe is None and model.usage.family != ""
    if is_published and encode_with_special_tokens(model.codec, "a") == model.codec.encode("a"):
        return frame._replace(before=(), between=(), after=())
    return frame


def sentence_limit(model: ModelHandle, truncate: bool) -> LengthLimit:
    """The maximum length of a sentence encoder's rows: that of its settings, if it is below the model's context."""
    limits = [limit for limit in (model.module.config.context, model.usage.sentence.max_length) if limit is not None]
    return LengthLimit(min(limits, default=None), truncate)


def sentence_rows(model: ModelHandle, texts: Sequence[str], truncate: bool, prompt: SentencePrompt) -> TokenRows:
    """Inputs of a sentence encoder, as sentence-transformers makes them. UserError for text that is empty or too
    long.
    """
    check_not_empty(texts)
    if "embedding" in model.module.heads:
        texts = [(prompt.text + text).strip() for text in texts]
    if model.usage.sentence.lowercase:
        texts = [text.lower() for text in texts]
    ids = model.codec.encode_batch(texts)
    return frame_rows(text_frame(model), ids, None, sentence_limit(model, truncate))


def embed_rows(model: Transformer, rows: TokenRows, skip: int = 0) -> Float[Tensor, "N D"]:
    """An embedding for each row: the output of the head "embedding", otherwise the normalised mean over its tokens;
    means leave out the first `skip` tokens. Rows of similar lengths are computed together.
    """
    head = cast(PooledHead, model.heads["embedding"]) if "embedding" in model.config.heads else None
    embeddings = torch.empty(len(rows), model.config.width if head is None else head.size)
    for indices, inputs in _batches(model, rows):
        encoded = model(*inputs)
        if head is None:
            vectors = F.normalize(pool(encoded.x, encoded.layout, "mean"), dim=-1)
        else:
            vectors = head(encoded.x, encoded.layout, skip)
        embeddings[torch.from_numpy(indices)] = vectors.float().cpu()
    return embeddings


def relevance(model: ModelHandle, rows: TokenRows) -> list[float]:
    """The score of each pair of texts: the single output of a cross-encoder, before scale and shift, after the
    activation of its settings.
    """
    scores = torch.zeros(len(rows))
    name = kinds.predicting_head(model.module) or "classes"
    head, activation = cast(PooledHeadConfig, model.module.config.heads[name]), model.usage.relevance_activation
    for indices, outputs in _batched_outputs(model.module, name, rows):
        values = (outputs[:, 0].float() - head.shift) / head.scale
        scores[torch.from_numpy(indices)] = (values.sigmoid() if activation == "sigmoid" else values).cpu()
    return scores.tolist()


def pair_rows(
    model: ModelHandle, pairs: Sequence[tuple[str, str]], truncate: bool, instruction: str | None = None
) -> TokenRows:
    """Cross-encoder inputs for queries and documents. UserError for an empty query or document, or a pair that is too
    long.
    """
    for number, (query, document) in enumerate(pairs, 1):
        if not query.strip():
            raise UserError("the query is empty; pass the text to rank the documents by")
        if not document.strip():
            raise UserError(f"document {number} of {len(pairs)} is empty; fill it in or remove it")
    inputs = PairInputs(model.codec, model.module.config, model.usage, text_frame(model), instruction)
    queries, documents = [query for query, _ in pairs], [document for _, document in pairs]
    return inputs.rows(queries, documents, truncate, lambda row: f"document {row + 1} of {len(pairs)}")


def check_not_empty(texts: Sequence[Text]) -> None:
    """UserError for text that is empty."""
    for number, text in enumerate(texts):
        if any(not part.strip() for part in ([text] if isinstance(text, str) else text)):
            raise UserError(f"text {number + 1} of {len(texts)} is empty; fill it in or remove it")


def text_rows(model: ModelHandle, texts: Sequence[Text], truncate: bool) -> TokenRows:
    """Model inputs for texts or text pairs. UserError for text that is empty or too long."""
    check_not_empty(texts)
    paired = [isinstance(text, tuple) for text in texts]
    if any(paired) and not all(paired):
        raise UserError(f"{sum(paired)} of {len(texts)} inputs are text pairs; pass only pairs or only single texts")
    frame, codec, limit = text_frame(model), model.codec, LengthLimit(model.module.config.context, truncate)
    if not any(paired):
        return frame_rows(frame, codec.encode_batch(cast(list[str], list(texts))), None, limit)
    first, second = (codec.encode_batch(list(column)) for column in zip(*cast(list[tuple[str, str]], texts)))
    return frame_rows(frame, first, second, limit)


def _batches(model: Transformer, rows: TokenRows) -> Iterator[tuple[np.ndarray, Inputs]]:
    """The rows in batches of similar lengths, without dropout or gradients while a batch is computed."""
    if len(rows) == 0:
        return
    with evaluation_mode(model), torch.inference_mode():
        for indices in rows.plan(np.arange(len(rows)), MAX_BATCH_TOKENS).in_order():
            yield indices, rows.inputs(indices).to(device_of(model))


def _batched_outputs(model: Transformer, head: str, rows: TokenRows) -> Iterator[tuple[np.ndarray, Tensor]]:
    """A head's outputs for the rows, in batches of similar lengths."""
    for indices, inputs in _batches(model, rows):
        yield indices, model.output(head, *inputs)


def _check_texts(model: ModelHandle, items: Sequence[Any]) -> None:
    if model.recipe is not None:
        strings = [item if isinstance(item, str) else " ".join(item) for item in items]
        model.check_texts(strings, model.codec.encode_batch(strings))
