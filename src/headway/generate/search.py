"""Beam search over many sequences at once."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from headway.errors import ConfigError, UserError
from headway.generate.courses import Course, Next, follow
from headway.generate.prompts import (
    Ids,
    batches,
    check_ids,
    check_number,
    check_prompts,
    check_sources,
    context_of,
    device_of,
    evaluating,
    make_prompt,
)
from headway.generate.sampling import Sampler, Sampling, row_keys
from headway.given import check_fields
from headway.nn.models import GenerationProgress, Generative, Prompt

if TYPE_CHECKING:
    from headway.engine.pool import Pool

_LEAVE = 0.25  # share of sentences that must be done before the others are compacted
_CHUNK = 64  # columns whose maximum is compared before their elements


_STEEPEST = 20  # length penalty; at 10, twice the length counts a thousand times
WIDEST = 1024  # beam width; all hypotheses are computed at once


def check_beam(name: str, value: int) -> None:
    """Raise ConfigError for a beam width that is out of range; `name` is the setting's name."""
    if not 1 <= value <= WIDEST:
        raise ConfigError(f"{name} is {value:,}; use 1 to {WIDEST:,}")


@dataclass(frozen=True)
class SearchConfig:
    """Beam search: `beam` hypotheses are kept for each sentence (1 is greedy), and the `n_best` best are returned.

    A hypothesis of n tokens, eos included, scores log p / ((c + n) / (c + 1))^length_penalty, where c is
    `length_offset` (Wu et al. 2016, equation 14, with c = 5 and without coverage); an offset of 0 with a penalty of 1
    is the mean over tokens. It has at most `most_extra + most_ratio * source length` tokens.
    """

    beam: int = 4
    length_penalty: float = 0.6
    n_best: int = 1
    most_ratio: float = 2.0
    most_extra: int = 10
    length_offset: float = 5.0

    def __post_init__(self) -> None:
        check_fields(self)
        check_beam("beam", self.beam)
        if not 1 <= self.n_best <= self.beam:
            raise ConfigError(f"n_best is {self.n_best} of a beam of {self.beam}; use 1 to {self.beam}, or widen it")
        if not 0 <= self.length_penalty <= _STEEPEST:
            raise ConfigError(f"length_penalty is {self.length_penalty}; use 0 (no penalty) to {_STEEPEST}")
        if not 0 <= self.length_offset < math.inf:
            raise ConfigError(f"length_offset is {self.length_offset}; use 0 or more, such as 5")
        if self.most_ratio < 0 or self.most_extra < 1:
            raise ConfigError(
                f"most_ratio {self.most_ratio} and most_extra {self.most_extra} allow no token; "
                "use a ratio of 0 or more and at least 1 extra token"
            )

    def limit(self, source: int) -> int:
        """The maximum number of tokens for a source of that length."""
        return self.most_extra + int(self.most_ratio * source)

    def worth(self, log_probability: Any, length: Any) -> Any:
        """The score of a hypothesis, or of tensors of them."""
        return log_probability / ((self.length_offset + length) / (self.length_offset + 1)) ** self.length_penalty


class Hypothesis(NamedTuple):
    """A continuation without its eos token. `finished` is False if the length limit cut it."""

    ids: list[int]
    score: float  # the ranking criterion
    log_probability: float  # in nats, eos included
    finished: bool


class Constraint(Protocol):
    """Restricts the next token of a hypothesis, given its tokens so far."""

    def __call__(self, logits: Float[Tensor, "R C"], history: Int[Tensor, "R T"]) -> None:
        """Change the logits of each row in place, before the softmax; -inf forbids a token."""
        ...


@torch.inference_mode()
def beam_search(
    model: Generative,
    prompt: Prompt,
    limits: Sequence[int],
    end: int,
    config: SearchConfig = SearchConfig(),
    suppressed: Sequence[int] = (),
) -> list[list[Hypothesis]]:
    """The `n_best` continuations of each prompt, best first, finished ones before cut ones.

    `limits` are the maximum numbers of tokens per prompt. `suppressed` tokens are never generated; the probabilities of
    the others are not renormalised. A finished hypothesis keeps its slot in the beam, so fewer are followed after it; a
    sentence is done when none of these can beat its `n_best` best.
    """
    if len(limits) != prompt.layout.batch or min(limits) < 1:
        raise UserError(f"limits {list(limits)} do not match {prompt.layout.batch} prompts; pass 1 or more per prompt")
    check_ids("suppressed token", [suppressed], model.config.symbols)
    capacity, context = int((prompt.layout.lengths.cpu() + torch.tensor(limits)).max()), context_of(model)
    if context is not None and capacity > context:
        raise UserError(
            f"a prompt and its limit add up to {capacity} tokens, over the context of {context}; lower the limit"
        )
    pool = getattr(model, "pool", None)  # an engine's threads, which then also find the top k
    with evaluating(model):
        started = model.start(prompt, capacity)
        return follow(model, searching(*started, limits, end, config, suppressed, pool=pool))


def searching(
    logits: Float[Tensor, "M C"],
    decoding: Any,
    limits: Sequence[int],
    end: int,
    config: SearchConfig = SearchConfig(),
    suppressed: Sequence[int] = (),
    rule: Constraint | None = None,
    pool: Pool | None = None,
) -> Course[list[list[Hypothesis]]]:
    """`beam_search` as a coroutine from a decoding state with capacity for the `limits`; calls `rule` at every step.
    `pool` has the threads of the engine that computes the logits.

    The logits are overwritten; with a beam of 1, so are the decoding state's positions from here on.
    """
    search = _Search(limits, end, config, suppressed, logits.device, rule, pool)
    if config.beam > 1:
        rows = torch.arange(len(limits), device=logits.device).repeat_interleave(config.beam)
        logits, decoding = logits[rows], decoding.select(rows)
    while True:
        symbols, decoding = search.advance(logits, decoding)
        if search.sentences == 0:
            return search.results()
        logits, decoding = yield Next(symbols, decoding)


class _Search:
    """The beams of M sentences, W each. Row m W + w of the model is beam w of sentence m, in no order within it."""

    def __init__(
        self,
        limits: Sequence[int],
        end: int,
        config: SearchConfig,
        suppressed: Sequence[int],
        device: torch.device,
        rule: Constraint | None = None,
        pool: Pool | None = None,
    ) -> None:
        self.config, self.end, self.rule, self.pool = config, end, rule, pool
        self.suppressed = torch.tensor(suppressed, dtype=torch.long, device=device)
        self.length = 0
        count, beam = len(limits), config.beam
        self.found: list[list[Hypothesis]] = [[] for _ in limits]
        self.numbers = list(range(count))
        self.limits = torch.tensor(limits, device=device)
        self.totals = torch.full((count, beam), -math.inf, device=device)  # log p of each beam so far
        self._before = torch.ones(beam, beam, dtype=torch.bool, device=device).tril(-1)  # which beams precede each
        self.totals[:, 0] = 0.0  # all beams are equal at first, so one suffices
        self.history = torch.zeros(count * beam, max(limits), dtype=torch.long, device=device)
        self.finished = torch.zeros(count, dtype=torch.long, device=device)  # how many hypotheses
        self.best = torch.full((count, config.n_best), -math.inf, device=device)  # their scores
        self.done = torch.zeros(count, dtype=torch.bool, device=device)

    @property
    def sentences(self) -> int:
        return len(self.numbers)

    def advance(
        self, logits: Float[Tensor, "MW C"], decoding: GenerationProgress
    ) -> tuple[Int[Tensor, "MW"], GenerationProgress]:
        """Extend every hypothesis by a token; return the next tokens for the model, of the remaining sentences."""
        self.length += 1
        logits = logits.float()
        if self.rule is not None:
            self.rule(logits, self.history[:, : self.length - 1])
        totals, parents, symbols = self._candidates(logits)
        ends = symbols == self.end
        ending = ends & (totals != -math.inf) & ~self.done[:, None]
        if bool(ending.any()):
            self._finish(ending, totals, parents)
        self.totals, kept = totals.masked_fill(ends, -math.inf).sort(dim=1, descending=True, stable=True)
        symbols = self._place(parents.gather(1, kept), symbols.gather(1, kept), decoding)
        return self._leave(symbols, decoding)

    def results(self) -> list[list[Hypothesis]]:
        ranked = (sorted(h, key=lambda x: (x.finished, x.score), reverse=True) for h in self.found)
        return [hypotheses[: self.config.n_best] for hypotheses in ranked]

    def _candidates(self, logits: Float[Tensor, "MW C"]) -> tuple[Tensor, Tensor, Tensor]:
        """The best continuations of each sentence, best first: log p, beam and token, each [M, W].

        Those beyond the slots that finished hypotheses leave have log p -inf and are not followed.
        """
        beam, each = self.config.beam, min(self.config.beam, logits.shape[-1])
        values, symbols = self._likeliest(logits, each)
        sums = (values.view(-1, beam, each) + self.totals[:, :, None]).flatten(1)
        totals, which = sums.topk(beam)
        places = torch.arange(beam, device=logits.device)
        totals = totals.masked_fill(places >= beam - self.finished[:, None], -math.inf)
        return totals, which // each, symbols.view(-1, beam * each).gather(1, which)

    def _likeliest(self, logits: Float[Tensor, "MW C"], count: int) -> tuple[Tensor, Tensor]:
        """Log probabilities and tokens of each row, most probable first. Overwrites the logits."""
        if self.pool is not None:
            from headway.engine.likeliest import find_likeliest  # imports LLVM, which torch does not need

            symbols, logprobs = find_likeliest(logits.numpy(), count, self.suppressed.tolist(), self.pool)
            return torch.from_numpy(logprobs), torch.from_numpy(symbols).long()
        torch.log_softmax(logits, -1, out=logits)  # in place: allocating as much again is slow
        if len(self.suppressed):
            logits.index_fill_(1, self.suppressed, -math.inf)
        return largest(logits, count)

    def _finish(self, ending: Bool[Tensor, "M W"], totals: Tensor, parents: Tensor) -> None:
        """Record the hypotheses that end here."""
        scores = self.config.worth(totals, self.length)
        self.best = torch.cat([self.best, scores.masked_fill(~ending, -math.inf)], 1).topk(self.config.n_best).values
        self.finished += ending.sum(1)
        rows, places = ending.nonzero(as_tuple=True)
        self._note(rows, rows * self.config.beam + parents[rows, places], totals[rows, places], self.length - 1, True)

    def _note(self, sentences: Tensor, beams: Tensor, totals: Tensor, length: int, finished: bool) -> None:
        histories = self.history[beams, :length].tolist()
        for sentence, ids, total in zip(sentences.tolist(), histories, totals.tolist()):
            check_number(total)
            score = self.config.worth(total, self.length)
            self.found[self.numbers[sentence]].append(Hypothesis(ids, score, total, finished))

    def _place(self, parents: Tensor, symbols: Int[Tensor, "M W"], decoding: GenerationProgress) -> Int[Tensor, "M W"]:
        """Move hypotheses so that each stays on its parent's row if it can; return the tokens in their new order.

        Caches are large: only the rows of second and further children are copied, over those without children.
        """
        beam = self.config.beam
        if beam > 1:
            same = parents[:, :, None] == parents[:, None, :]
            later = (same & self._before).any(-1)  # the parent has a better child, which keeps the row
            childless = torch.ones_like(later).scatter_(1, parents, False)
            sentence, child = later.nonzero(as_tuple=True)
            _, free = childless.nonzero(as_tuple=True)  # as many per sentence, in the same order
            moved = parents.clone()
            moved[sentence, child] = free
            source, target = sentence * beam + parents[sentence, child], sentence * beam + free
            followed = self.totals[sentence, child] != -math.inf
            source, target = source[followed], target[followed]
            symbols = torch.empty_like(symbols).scatter_(1, moved, symbols)
            self.totals = torch.empty_like(self.totals).scatter_(1, moved, self.totals)
            decoding.assign(target, source)
            self.history[target] = self.history[source]
        self.history[:, self.length - 1] = symbols.flatten()
        return symbols

    def _leave(
        self, symbols: Int[Tensor, "M W"], decoding: GenerationProgress
    ) -> tuple[Int[Tensor, "MW"], GenerationProgress]:
        """Close the sentences that are done; once there are many, remove their rows."""
        cut = ~self.done & (self.length >= self.limits)
        ceiling = self.config.worth(self.totals.amax(1), self.limits)
        self.done = self.done | cut | (self.best[:, -1] >= ceiling)  # also if no beam is left: -inf on both sides
        if bool(cut.any()):
            # Sentences at their limit with too few finished hypotheses keep the others as they are.
            short = cut & (self.finished < self.config.n_best)
            rows, beams = (short[:, None] & (self.totals != -math.inf)).nonzero(as_tuple=True)
            self._note(rows, rows * self.config.beam + beams, self.totals[rows, beams], self.length, False)
        if not bool(self.done.any()):
            return symbols.flatten(), decoding
        if int(self.done.sum()) < _LEAVE * self.sentences:
            # Their rows are padding until they are removed: nothing is written, and positions stay in range.
            idle = self.done.repeat_interleave(self.config.beam)
            return symbols.flatten(), decoding.at(decoding.positions.masked_fill(idle, -1))
        kept = (~self.done).nonzero()[:, 0]
        rows = (kept[:, None] * self.config.beam + torch.arange(self.config.beam, device=kept.device)).flatten()
        self.numbers = [self.numbers[i] for i in kept.tolist()]
        self.limits, self.totals, self.finished = self.limits[kept], self.totals[kept], self.finished[kept]
        self.best, self.done, self.history = self.best[kept], self.done[kept], self.history[rows]
        if not self.numbers:
            return symbols.flatten(), decoding
        return symbols[kept].flatten(), decoding.select(rows, kept)


def largest(x: Float[Tensor, "R C"], count: int) -> tuple[Float[Tensor, "R K"], Int[Tensor, "R K"]]:
    """`x.topk(count)`, faster for a few of many: the largest values are in the chunks with the largest maxima."""
    rows, columns = x.shape
    chunks = columns // _CHUNK
    if chunks <= 2 * count:
        values, places = x.topk(count)
        return values, places
    whole = x[:, : chunks * _CHUNK].view(rows, chunks, _CHUNK)
    best = whole.amax(-1).topk(count).indices
    inside = whole.gather(1, best[:, :, None].expand(-1, -1, _CHUNK)).flatten(1)
    steps = torch.arange(_CHUNK, device=x.device)
    where = (best[:, :, None] * _CHUNK + steps).flatten(1)
    rest = torch.arange(chunks * _CHUNK, columns, device=x.device).expand(rows, -1)
    values, places = torch.cat([inside, x[:, chunks * _CHUNK :]], 1).topk(count)
    return values, torch.cat([where, rest], 1).gather(1, places)


_SEARCH = SearchConfig()


def translate_ids(
    model: Generative,
    sources: Sequence[Ids],
    *,
    begin: int,
    end: int,
    config: SearchConfig = _SEARCH,
    prefixes: Sequence[Ids] | None = None,
    suppressed: Ids = (),
    batch_tokens: int = 16384,
    sampling: Sampling | None = None,
) -> list[list[Hypothesis]]:
    """The `n_best` translations of each source, best first, without `bos` and `eos`; with `sampling`, as many samples
    instead, whose scores are the mean log p per token.

    `bos` is the token that decoding starts with, whatever it means elsewhere (Marian: padding). Each translation starts
    with its prefix, which counts in the ids and the length limit but not in the score. `suppressed` tokens are never
    generated. Sources are used as they are: add the tokens that the model was trained with. An empty source has one
    empty translation. `batch_tokens` bounds the positions held at once, over all beams.
    """
    forced = [()] * len(sources) if prefixes is None else prefixes
    if len(forced) != len(sources):
        raise UserError(f"{len(forced)} prefixes do not match {len(sources)} sources; pass one prefix per source")
    context = context_of(model)
    prompts = [[begin, *prefix] for prefix in forced]
    check_sources(model, sources)
    check_prompts(model, prompts)
    check_ids("suppressed token", [suppressed], model.config.symbols)
    limits = [max(1, config.limit(len(source)) - len(prefix)) for source, prefix in zip(sources, forced)]
    if context is not None:
        limits = [min(limit, context - len(prompt)) for limit, prompt in zip(limits, prompts)]
    results = [[Hypothesis(list(prefix), 0.0, 0.0, True)] for prefix in forced]
    spoken = [i for i, source in enumerate(sources) if len(source)]
    sizes = [len(sources[i]) + config.beam * (len(prompts[i]) + limits[i]) for i in spoken]
    for batch in batches(sizes, batch_tokens):
        chosen = [spoken[i] for i in batch]
        if sampling is None:
            prompt = make_prompt([prompts[i] for i in chosen], [sources[i] for i in chosen], device_of(model))
            found = beam_search(model, prompt, [limits[i] for i in chosen], end, config, suppressed)
        else:
            found = [
                _sampled(model, prompts[i], sources[i], limits[i], end, config.n_best, suppressed, sampling)
                for i in chosen
            ]
        for i, hypotheses in zip(chosen, found):
            results[i] = [h._replace(ids=[*forced[i], *h.ids]) for h in hypotheses]
    return results


@torch.inference_mode()
def _sampled(
    model: Generative,
    prompt: Ids,
    source: Ids,
    limit: int,
    end: int,
    count: int,
    suppressed: Ids,
    sampling: Sampling,
) -> list[Hypothesis]:
    """`count` samples of the translation of one source."""
    forbidden = torch.tensor(list(suppressed), dtype=torch.long, device=device_of(model))

    def rule(logits: Float[Tensor, "R C"], history: Int[Tensor, "R T"]) -> None:
        logits.index_fill_(1, forbidden, -math.inf)

    with evaluating(model):
        logits, decoding = model.start(make_prompt([prompt], [source], device_of(model)), len(prompt) + limit)
        return follow(model, drawing(logits.float(), decoding, count, limit, (end,), sampling, rule))


def drawing(
    logits: Float[Tensor, "1 C"],
    decoding: Any,
    count: int,
    limit: int,
    ends: Collection[int],
    sampling: Sampling,
    rule: Constraint,
) -> Course[list[Hypothesis]]:
    """Sample `count` continuations of at most `limit` tokens from a decoding state, in decreasing order of score.

    Scores are the mean log p per token, the end token included, at temperature 1 and under the rule.
    """
    rows = torch.zeros(count, dtype=torch.long, device=logits.device)
    logits, decoding = logits[rows], decoding.select(rows)
    sampler = Sampler(sampling, row_keys([()] * count), [()] * count, logits.shape[-1], logits.device)
    history = torch.zeros(count, limit, dtype=torch.long, device=logits.device)
    found: list[Hypothesis | None] = [None] * count
    totals = [0.0] * count
    for step in range(limit):
        rule(logits, history[:, :step])
        chosen, logprobs = sampler.pick(logits, step)
        history[:, step] = chosen
        for row, (symbol, logprob) in enumerate(zip(chosen.tolist(), logprobs.tolist())):
            if found[row] is not None:
                continue
            check_number(logprob)
            totals[row] += logprob
            if symbol in ends:
                found[row] = _made(history[row, :step], totals[row], True)
        if all(found) or step + 1 == limit:
            break
        logits, decoding = yield Next(chosen, decoding)
    whole = [one or _made(history[row, : step + 1], totals[row], False) for row, one in enumerate(found)]
    return sorted(whole, key=lambda one: -one.score)


def _made(ids: Tensor, total: float, finished: bool) -> Hypothesis:
    return Hypothesis(ids.tolist(), total / (len(ids) + finished), total, finished)
