"""What a model would predict if its stack ended after each layer: the logit lens (nostalgebraist 2020)."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from headway.codecs import Codec
from headway.codecs.mask_tokens import token_pieces
from headway.errors import UserError
from headway.io.summary_card import SummaryCard, summary_repr
from headway.nn.kernels import recording
from headway.nn.mixers.recurrence import Recurrence
from headway.nn.models import Stack, evaluation_mode
from headway.predict.model_handle import ModelHandle

TEMPERATURES = tuple(step / 20 for step in range(1, 41))  # 0.05 to 2
_MAX_TOKENS, _MAX_TOP = 256, 100  # tokens of a text, and predictions or neighbours of each
_MAX_LOGITS = 50  # most probable next tokens whose logits are returned
_MAX_LOGITS_EACH = 10  # and those of each position
_MAX_SAMPLE, _ITERATIONS = 2048, 16  # rows, and steps, that find the directions that all token vectors share
_MAX_LOGITS_IN_ALL = 1 << 20  # tokens times vocabulary, for which each position has its distribution


class LensToken(NamedTuple):
    """A token: its text, with the spaces that belong to it, and its id."""

    text: str
    id: int


class ScoredToken(NamedTuple):
    """A token with a probability, a logit, or a cosine from -1 to 1."""

    text: str
    id: int
    score: float


class LensLayer(NamedTuple):
    """One layer at T positions.

    predictions: the most probable tokens of each position with their probabilities; empty if the layer is not as wide
    as the head's input.
    changes: of a recurrent layer, how much each token changes its state h: |h(t) - h(t-1)| / (|h(t)| + |h(t-1)|), from
    0 (not at all) to 1; otherwise empty.
    """

    predictions: list[list[ScoredToken]]
    changes: list[float]


class NextLogits(NamedTuple):
    """A distribution at any of `temperatures`: the probability of a token with logit l at temperatures[i] is
    exp(l / temperatures[i] - log_totals[i]).

    position: index of the token after which, or for a masked model at which, the model predicts.
    candidates: the most probable tokens with their logits.
    log_totals: log of the sum of exp(l / temperature) over the whole vocabulary.
    entropy: of the distribution at temperature 1, in nats.
    """

    position: int
    candidates: list[ScoredToken]
    temperatures: list[float]
    log_totals: list[float]
    entropy: float


@summary_repr
class Lens(NamedTuple):
    """What each layer of a model would predict at each token of a text.

    tokens: T tokens of the text; for an encoder-decoder those of the target.
    layers: L layers, from the first to the last, whose predictions are the model's own.
    next: the distribution after the last token, or at a masked model's first mask.
    each: the distributions at all T positions; empty if T times the vocabulary is more than 4,194,304.
    neighbours: of each token, those with the nearest output embeddings, with their cosines. Output embeddings are the
    rows of the last layer's weights, which are the embedding table if both are tied. The mean and the first principal
    directions, which all rows share, are removed before (Mu and Viswanath 2018, "All-but-the-Top").
    chance: cosine that the nearest of as many random vectors would reach; 0 without neighbours.
    masked: whether position t predicts token t, as in a masked language model, and not token t + 1.
    """

    tokens: list[LensToken]
    layers: list[LensLayer]
    next: NextLogits
    each: list[NextLogits]
    neighbours: list[list[ScoredToken]]
    chance: float
    masked: bool

    def card(self) -> SummaryCard:
        """A summary: the number of tokens and layers, and the most probable prediction of each layer at each token."""
        rows = []
        for position, token in enumerate(self.tokens):
            best = [layer.predictions[position][0] if layer.predictions else None for layer in self.layers]
            cells = [None if token is None else f"{token.text.strip() or '␣'} {token.score:.0%}" for token in best]
            rows.append(
                {"token": token.text, **{f"layer {number}": cell for number, cell in enumerate(cells, 1)}},
            )
        return SummaryCard("Lens", {"tokens": len(self.tokens), "layers": len(self.layers)}, rows)


class VectorStatistics(NamedTuple):
    """What the C rows of a table of token vectors share: their mean and their first principal directions.

    norms: of the rows without both. deviation: standard deviation of the cosine of two independent vectors with the
    covariance of these rows.
    """

    mean: Float[Tensor, "D"]
    directions: Float[Tensor, "D N"]
    norms: Float[Tensor, "C"]
    deviation: float


def check_request(top: int, neighbours: int) -> None:
    """Raise UserError for numbers out of range."""
    if not 1 <= top <= _MAX_TOP:
        raise UserError(f"top is {top}; use 1 to {_MAX_TOP}")
    if not 0 <= neighbours <= _MAX_TOP:
        raise UserError(f"neighbours is {neighbours}; use 0 to {_MAX_TOP}")


def read_lens(
    handle: ModelHandle,
    model: nn.Module,
    run: Callable[[Any], Any],
    ids: Sequence[int],
    codec: Codec,
    top: int,
    neighbours: int,
    mask: int | None = None,
) -> Lens:
    """The lens over the tokens `ids` of a model with `stack` and `heads`, a part of that of `handle`, which stores the
    statistics of its token vectors for later requests; `run` takes the ids [1, T] and runs
    the model. `mask` is the id of a masked model's mask, -1 if it has none; None for a model that predicts next tokens.
    UserError for too many tokens.
    """
    if len(ids) > _MAX_TOKENS:
        raise UserError(f"the text has {len(ids):,} tokens, and the lens shows at most {_MAX_TOKENS}; shorten it")
    stack, head = (getattr(model, name) for name in ("stack", "heads"))
    pieces, num_tokens = token_pieces(codec), min(codec.vocab_size, model.config.vocab_size)  # type: ignore[union-attr]

    def scored(values: Tensor, count: int) -> list[list[ScoredToken]]:
        """The tokens with the largest values of each row, float [N, C]."""
        best = values[:, :num_tokens].topk(min(count, num_tokens))
        rows = zip(best.indices.tolist(), best.values.tolist())
        return [[ScoredToken(pieces(token), token, score) for token, score in zip(*row)] for row in rows]

    row = torch.tensor([ids], device=next(model.parameters()).device)
    position = len(ids) - 1
    if mask is not None:
        position = ids.index(mask) if mask in ids else max(0, position - (ids[-1] == codec.eos_id))
    layers, logits = [], torch.empty(0)
    with evaluation_mode(model), torch.inference_mode():
        for features, changes in _layers(stack, lambda: run(row)):
            if features.shape[-1] == stack.width:
                logits = head["vocabulary"](stack.norm(features))[0]
                layers.append(LensLayer(scored(logits.softmax(-1), top), changes))
            else:
                layers.append(LensLayer([], changes))
        following, each = _distributions(logits, position, scored)
        table = head["vocabulary"].weight[:num_tokens].float() if neighbours else None
        nearest, chance = [], 0.0
        if table is not None:
            handle.vector_statistics = handle.vector_statistics or vector_statistics(table)
            nearest, chance = _neighbours(table, handle.vector_statistics, row[0], neighbours, scored)
    tokens = [LensToken(pieces(token), token) for token in ids]
    return Lens(tokens, layers, following, each, nearest, chance, mask is not None)


def _distributions(
    logits: Float[Tensor, "T C"], position: int, scored: Callable[[Tensor, int], list[list[ScoredToken]]]
) -> tuple[NextLogits, list[NextLogits]]:
    """The distribution at a position, with more candidates, and those at all positions, unless these are too many."""

    def distributions(rows: Tensor, count: int) -> list[NextLogits]:
        totals = torch.stack([(rows / temperature).logsumexp(-1) for temperature in TEMPERATURES], -1).tolist()
        entropies = torch.special.entr(rows.softmax(-1)).sum(-1).tolist()
        facts = enumerate(zip(scored(rows, count), totals, entropies))
        return [NextLogits(t, best, list(TEMPERATURES), total, entropy) for t, (best, total, entropy) in facts]

    [following] = distributions(logits[[position]].double(), _MAX_LOGITS)
    is_small = logits.numel() <= _MAX_LOGITS_IN_ALL
    each = distributions(logits.float(), _MAX_LOGITS_EACH) if is_small else []
    return following._replace(position=position), each


def _layers(stack: Stack, run: Callable[[], Any]) -> list[tuple[Float[Tensor, "1 T D"], list[float]]]:
    """The features after each block that `run()` computes, and the changes of its state if it is a recurrence."""
    features: list[Tensor] = []
    states: dict[int, Tensor] = {}
    hooks, thread = [], threading.get_ident()  # another thread may generate with the same modules

    def record(index: int | None, x: Tensor) -> None:
        if threading.get_ident() == thread and index is not None:
            states[index] = x
        elif threading.get_ident() == thread:
            features.append(x)

    for block in dict.fromkeys(stack.blocks):  # blocks may be shared
        hooks.append(block.register_forward_hook(lambda _, __, output: record(None, output.x)))
        if isinstance(block.mixer, Recurrence):
            hooks.append(block.mixer.out.register_forward_pre_hook(lambda _, inputs: record(len(features), inputs[0])))
    try:
        # A compiled stack skips its blocks, except while attention is recorded.
        with nullcontext() if stack.program is None else recording(lambda weights: None):
            run()
    finally:
        for hook in hooks:
            hook.remove()
    changes: dict[int, list[float]] = {}
    for index, (h,) in states.items():
        before = torch.cat([torch.zeros_like(h[:1]), h[:-1]])  # the state before the first token is 0
        total = h.norm(dim=-1) + before.norm(dim=-1)
        changes[index] = ((h - before).norm(dim=-1) / total.clamp(min=1e-9)).tolist()
    return [(x, changes.get(index, [])) for index, x in enumerate(features)]


def _neighbours(
    table: Float[Tensor, "C D"],
    statistics: VectorStatistics,
    ids: Tensor,
    count: int,
    scored: Callable[[Tensor, int], list[list[ScoredToken]]],
) -> tuple[list[list[ScoredToken]], float]:
    """The nearest other tokens of each token, by the cosine of their vectors without what all share, and the cosine
    that chance would reach: the largest of n normal numbers is about sqrt(2 ln n) standard deviations above 0.
    """
    mean, directions, norms, deviation = statistics
    tokens, index = ids.unique(return_inverse=True)
    rows = table[tokens] - mean
    for _ in range(2):  # once leaves rounding errors, by which the directions of the table would count
        rows -= rows @ directions @ directions.T
    # The rows have no part in the directions, so removing these from the table, too, would change no product.
    cosines = (rows @ table.T - (rows @ mean)[:, None]) / norms[tokens, None] / norms
    cosines[torch.arange(len(tokens)), tokens] = -torch.inf  # not the token itself
    chance = deviation * math.sqrt(2 * math.log(max(2, len(tokens) * (len(table) - 1))))
    nearest = scored(cosines, min(count, len(table) - 1))
    return [nearest[number] for number in index.tolist()], min(1.0, chance)


def vector_statistics(table: Float[Tensor, "C D"]) -> VectorStatistics:
    """The mean of the rows, their first D/100 principal directions (Mu and Viswanath 2018, algorithm 1), and the
    norms of the rows without both.

    All rows share a few directions: for example, one that makes tokens improbable which training never saw. Subspace
    iteration finds them in a sample of the rows.
    """
    mean = table.mean(0)
    rows = table - mean
    step = max(1, len(rows) // _MAX_SAMPLE)
    sample = rows[::step].contiguous()
    start = torch.randn(rows.shape[1], max(1, rows.shape[1] // 100), generator=torch.Generator().manual_seed(0))
    directions = torch.linalg.qr(start.to(rows.device)).Q
    for _ in range(_ITERATIONS):
        directions = torch.linalg.qr(sample.T @ (sample @ directions)).Q
    rows = torch.addmm(rows, rows @ directions, directions.T, alpha=-1)
    products = rows[::step] @ rows[::step].T
    squares = products.diagonal()
    num_pairs = max(1, len(sample) * (len(sample) - 1))
    mean_square = (products.square().sum() - squares.square().sum()) / num_pairs  # of different rows
    deviation = float(mean_square.clamp(min=0).sqrt() / squares.mean().clamp(min=1e-12))
    return VectorStatistics(mean, directions, rows.norm(dim=-1).clamp(min=1e-12), deviation)
