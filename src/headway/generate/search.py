"""Beam search over many sequences at once."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from headway.errors import ConfigError, UserError
from headway.generate.prompts import (
    Ids,
    batches,
    check_ids,
    check_not_nan,
    check_prompts,
    check_sources,
    context_of,
    device_of,
    make_prompt,
)
from headway.generate.sampling import Sampler, Sampling, row_keys
from headway.generate.stepper import DecodingCoroutine, NextTokens, run_coroutine
from headway.generate.torch_sampling import sample_rows
from headway.io.arguments import check_fields
from headway.nn.models import GenerationProgress, Generative, Prompt, evaluation_mode

if TYPE_CHECKING:
    from headway.engine.pool import Pool

_COMPACT_SHARE = 0.25  # share of sentences that must be done before their rows are removed
_CHUNK = 64  # columns per chunk, whose maximum is compared before its elements


_MAX_PENALTY = 20  # length penalty; at 10, twice the length counts a thousand times
MAX_BEAM = 1024  # maximum beam width, because all hypotheses are computed at once


def check_beam(name: str, value: int) -> None:
    """Raise ConfigError for a beam width that is out of range; `name` is the setting's name."""
    if not 1 <= value <= MAX_BEAM:
        raise ConfigError(f"{name} is {value:,}; use 1 to {MAX_BEAM:,}")


@dataclass(frozen=True)
class SearchConfig:
    """Beam search: keep `beam` hypotheses per sentence (1 is greedy), and return the `n_best` best.

    A hypothesis of n tokens, including eos, scores log p / ((c + n) / (c + 1))^length_penalty, where c is
    `length_offset` (Wu et al. 2016, equation 14, with c = 5 and without coverage). With an offset of 0 and a penalty of
    1, this is the mean over tokens. A hypothesis has at most `most_extra + most_ratio * source length` tokens.
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
            raise ConfigError(
                f"n_best is {self.n_best}, but beam is {self.beam}; use 1 to {self.beam}, or a wider beam"
            )
        if not 0 <= self.length_penalty <= _MAX_PENALTY:
            raise ConfigError(f"length_penalty is {self.length_penalty}; use 0 (no penalty) to {_MAX_PENALTY}")
        if not 0 <= self.length_offset < math.inf:
            raise ConfigError(f"length_offset is {self.length_offset}; use 0 or more, such as 5")
        if self.most_ratio < 0 or self.most_extra < 1:
            raise ConfigError(
                f"most_ratio={self.most_ratio} and most_extra={self.most_extra} allow no tokens; "
                "use a ratio of 0 or more and at least 1 extra token"
            )

    def limit(self, source: int) -> int:
        """The maximum number of tokens for a source of this length."""
        return self.most_extra + int(self.most_ratio * source)

    def normalised_score(self, log_probability: Any, length: Any) -> Any:
        """The score of a hypothesis, or of a tensor of hypotheses."""
        return log_probability / ((self.length_offset + length) / (self.length_offset + 1)) ** self.length_penalty


class Hypothesis(NamedTuple):
    """A continuation without its eos token. `finished` is False if the length limit cut it off."""

    ids: list[int]
    score: float  # the ranking criterion
    log_probability: float  # in nats, including eos
    finished: bool


class Constraint(Protocol):
    """Restricts the next token of a hypothesis, given its tokens so far."""

    def __call__(self, logits: Float[Tensor, "R C"], history: Int[Tensor, "R T"]) -> None:
        """Change each row's logits in place, before the softmax; -inf forbids a token."""
        ...


@torch.inference_mode()
def beam_search(
    model: Generative,
    prompt: Prompt,
    limits: Sequence[int],
    eos: int,
    config: SearchConfig = SearchConfig(),
    suppressed: Sequence[int] = (),
) -> list[list[Hypothesis]]:
    """The `n_best` continuations of each prompt, best first, with finished ones before those cut off.

    `limits` are the maximum numbers of tokens per prompt. `suppressed` tokens are never generated; the probabilities of
    the other tokens are not renormalised. A finished hypothesis keeps its slot in the beam, so fewer are extended after
    it. A sentence is done when none of those can beat its `n_best` best.
    """
    if len(limits) != prompt.layout.batch or min(limits) < 1:
        raise UserError(
            f"limits {list(limits)} do not match {prompt.layout.batch} prompts; pass one limit of at least 1 per prompt"
        )
    check_ids("suppressed token", [suppressed], model.config.vocab_size)
    capacity, context = int((prompt.layout.lengths.cpu() + torch.tensor(limits)).max()), context_of(model)
    if context is not None and capacity > context:
        raise UserError(
            f"a prompt and its limit add up to {capacity} tokens, but the context is {context}; lower the limit"
        )
    pool = getattr(model, "pool", None)  # the engine's threads, if any, also find the top k
    with evaluation_mode(model):
        started = model.start(prompt, capacity)
        return run_coroutine(model, search_steps(*started, limits, eos, config, suppressed, pool=pool))


def search_steps(
    logits: Float[Tensor, "M C"],
    decoding: Any,
    limits: Sequence[int],
    eos: int,
    config: SearchConfig = SearchConfig(),
    suppressed: Sequence[int] = (),
    rule: Constraint | None = None,
    pool: Pool | None = None,
) -> DecodingCoroutine[list[list[Hypothesis]]]:
    """`beam_search` as a coroutine, starting from a decoding state with capacity for the `limits`; calls `rule` at
    every step. `pool` contains the threads of the engine that computes the logits.

    The logits are overwritten. With a beam of 1, so are the decoding state's positions from here on.
    """
    search = _Search(limits, eos, config, suppressed, logits.device, rule, pool)
    if config.beam > 1:
        rows = torch.arange(len(limits), device=logits.device).repeat_interleave(config.beam)
        logits, decoding = logits[rows], decoding.select(rows)
    while True:
        tokens, decoding = search.advance(logits, decoding)
        if not search.active:
            ranked = (sorted(h, key=lambda x: (x.finished, x.score), reverse=True) for h in search.hypotheses)
            return [hypotheses[: config.n_best] for hypotheses in ranked]
        logits, decoding = yield NextTokens(tokens, decoding)


class _Search:
    """The beams for M sentences, W each. Model row m W + w is beam w of sentence m, in no particular order within the
    sentence.
    """

    def __init__(
        self,
        limits: Sequence[int],
        eos: int,
        config: SearchConfig,
        suppressed: Sequence[int],
        device: torch.device,
        rule: Constraint | None = None,
        pool: Pool | None = None,
    ) -> None:
        self.config, self.eos, self.rule, self.pool = config, eos, rule, pool
        self.suppressed = torch.tensor(suppressed, dtype=torch.long, device=device)
        self.length = 0
        count, beam = len(limits), config.beam
        self.hypotheses: list[list[Hypothesis]] = [[] for _ in limits]
        self.active = list(range(count))
        self.limits = torch.tensor(limits, device=device)
        self.totals = torch.full((count, beam), -math.inf, device=device)  # log p of each beam so far
        self._before = torch.ones(beam, beam, dtype=torch.bool, device=device).tril(-1)  # which beams precede each
        self.totals[:, 0] = 0.0  # all beams are equal at first, so one suffices
        self.history = torch.zeros(count * beam, max(limits), dtype=torch.long, device=device)
        self.finished = torch.zeros(count, dtype=torch.long, device=device)  # number of finished hypotheses
        self.best = torch.full((count, config.n_best), -math.inf, device=device)  # their scores
        self.done = torch.zeros(count, dtype=torch.bool, device=device)

    def advance(
        self, logits: Float[Tensor, "MW C"], decoding: GenerationProgress
    ) -> tuple[Int[Tensor, "MW"], GenerationProgress]:
        """Extend every hypothesis by a token; return the model's next input tokens for the remaining sentences."""
        self.length += 1
        logits = logits.float()
        if self.rule is not None:
            self.rule(logits, self.history[:, : self.length - 1])
        totals, parents, tokens = self._candidates(logits)
        is_eos = tokens == self.eos
        ending = is_eos & (totals != -math.inf) & ~self.done[:, None]
        if bool(ending.any()):
            scores = self.config.normalised_score(totals, self.length).masked_fill(~ending, -math.inf)
            self.best = torch.cat([self.best, scores], 1).topk(self.config.n_best).values
            self.finished += ending.sum(1)
            rows, beams = ending.nonzero(as_tuple=True)
            parent_rows = rows * self.config.beam + parents[rows, beams]
            self._note(rows, parent_rows, totals[rows, beams], self.length - 1, True)
        self.totals, order = totals.masked_fill(is_eos, -math.inf).sort(dim=1, descending=True, stable=True)
        tokens = self._rearrange(parents.gather(1, order), tokens.gather(1, order), decoding)
        return self._compact(tokens, decoding)

    def _candidates(self, logits: Float[Tensor, "MW C"]) -> tuple[Tensor, Tensor, Tensor]:
        """Each sentence's best continuations, best first: log p, beam and token, each [M, W]. Overwrites the logits.

        Finished hypotheses use up slots; continuations beyond the remaining ones have log p -inf and are not extended.
        """
        beam, per_beam = self.config.beam, min(self.config.beam, logits.shape[-1])
        if self.pool is not None:
            from headway.engine.sampling_batch import find_top_k  # imports LLVM, which torch does not need

            ids, logprobs = find_top_k(logits.numpy(), per_beam, self.suppressed.tolist(), self.pool)
            values, tokens = torch.from_numpy(logprobs), torch.from_numpy(ids).long()
        else:
            torch.log_softmax(logits, -1, out=logits)  # in place: allocating as much again is slow
            if len(self.suppressed):
                logits.index_fill_(1, self.suppressed, -math.inf)
            values, tokens = largest(logits, per_beam)
        sums = (values.view(-1, beam, per_beam) + self.totals[:, :, None]).flatten(1)
        totals, which = sums.topk(beam)
        slots = torch.arange(beam, device=logits.device)
        totals = totals.masked_fill(slots >= beam - self.finished[:, None], -math.inf)
        return totals, which // per_beam, tokens.view(-1, beam * per_beam).gather(1, which)

    def _note(self, sentences: Tensor, beams: Tensor, totals: Tensor, length: int, finished: bool) -> None:
        histories = self.history[beams, :length].tolist()
        for sentence, ids, total in zip(sentences.tolist(), histories, totals.tolist()):
            check_not_nan(total)
            score = self.config.normalised_score(total, self.length)
            self.hypotheses[self.active[sentence]].append(Hypothesis(ids, score, total, finished))

    def _rearrange(
        self, parents: Tensor, tokens: Int[Tensor, "M W"], decoding: GenerationProgress
    ) -> Int[Tensor, "M W"]:
        """Move hypotheses so that each stays on its parent's row if it can; return the tokens in their new order.

        Because caches are large, only the rows for second and further children are copied, over rows without children.
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
            tokens = torch.empty_like(tokens).scatter_(1, moved, tokens)
            self.totals = torch.empty_like(self.totals).scatter_(1, moved, self.totals)
            decoding.assign(target, source)
            self.history[target] = self.history[source]
        self.history[:, self.length - 1] = tokens.flatten()
        return tokens

    def _compact(
        self, tokens: Int[Tensor, "M W"], decoding: GenerationProgress
    ) -> tuple[Int[Tensor, "MW"], GenerationProgress]:
        """Close sentences that are done; once there are many, remove their rows."""
        cut = ~self.done & (self.length >= self.limits)
        ceiling = self.config.normalised_score(self.totals.amax(1), self.limits)
        self.done = self.done | cut | (self.best[:, -1] >= ceiling)  # also if no beam is left: -inf on both sides
        if bool(cut.any()):
            # Sentences at their limit with too few finished hypotheses also return unfinished ones.
            short = cut & (self.finished < self.config.n_best)
            rows, beams = (short[:, None] & (self.totals != -math.inf)).nonzero(as_tuple=True)
            self._note(rows, rows * self.config.beam + beams, self.totals[rows, beams], self.length, False)
        if not bool(self.done.any()):
            return tokens.flatten(), decoding
        share = _COMPACT_SHARE if tokens.device.type == "cpu" else 1  # a GPU replays steps of one size
        if int(self.done.sum()) < share * len(self.active):
            # Their rows are padding until they are removed: nothing is written, and positions stay in range.
            idle = self.done.repeat_interleave(self.config.beam)
            return tokens.flatten(), decoding.at(decoding.positions.masked_fill(idle, -1))
        remaining = (~self.done).nonzero()[:, 0]
        rows = (
            remaining[:, None] * self.config.beam + torch.arange(self.config.beam, device=remaining.device)
        ).flatten()
        self.active = [self.active[i] for i in remaining.tolist()]
        self.limits, self.totals, self.finished = (
            self.limits[remaining],
            self.totals[remaining],
            self.finished[remaining],
        )
        self.best, self.done, self.history = self.best[remaining], self.done[remaining], self.history[rows]
        if not self.active:
            return tokens.flatten(), decoding
        return tokens[remaining].flatten(), decoding.select(rows, remaining)


def largest(x: Float[Tensor, "R C"], count: int) -> tuple[Float[Tensor, "R K"], Int[Tensor, "R K"]]:
    """`x.topk(count)`, but faster for a few values out of many: the largest are in the chunks with the largest
    maxima.
    """
    rows, columns = x.shape
    chunks = columns // _CHUNK
    if chunks <= 2 * count:
        values, indices = x.topk(count)
        return values, indices
    chunked = x[:, : chunks * _CHUNK].view(rows, chunks, _CHUNK)
    best = chunked.amax(-1).topk(count).indices
    inside = chunked.gather(1, best[:, :, None].expand(-1, -1, _CHUNK)).flatten(1)
    steps = torch.arange(_CHUNK, device=x.device)
    where = (best[:, :, None] * _CHUNK + steps).flatten(1)
    tail = torch.arange(chunks * _CHUNK, columns, device=x.device).expand(rows, -1)
    values, indices = torch.cat([inside, x[:, chunks * _CHUNK :]], 1).topk(count)
    return values, torch.cat([where, tail], 1).gather(1, indices)


_SEARCH = SearchConfig()


def translate_ids(
    model: Generative,
    sources: Sequence[Ids],
    *,
    bos: int,
    eos: int,
    config: SearchConfig = _SEARCH,
    prefixes: Sequence[Ids] | None = None,
    suppressed: Ids = (),
    batch_tokens: int = 16384,
    sampling: Sampling | None = None,
) -> list[list[Hypothesis]]:
    """The `n_best` translations of each source, best first, without `bos` and `eos`. With `sampling`, they are samples
    instead, scored by the mean log p per token.

    `bos` is the token that decoding starts with, whatever it means elsewhere (in Marian, padding). Each translation
    starts with its prefix, which counts towards the ids and the length limit but not the score. `suppressed` tokens are
    never generated. Sources are used as they are, so add the special tokens that the model was trained with. An empty
    source has one empty translation. `batch_tokens` limits the positions in memory at once, over all beams.
    """
    forced = [()] * len(sources) if prefixes is None else prefixes
    if len(forced) != len(sources):
        raise UserError(f"{len(forced)} prefixes do not match {len(sources)} sources; pass one prefix per source")
    context = context_of(model)
    prompts = [[bos, *prefix] for prefix in forced]
    check_sources(model, sources)
    check_prompts(model, prompts)
    check_ids("suppressed token", [suppressed], model.config.vocab_size)
    limits = [max(1, config.limit(len(source)) - len(prefix)) for source, prefix in zip(sources, forced)]
    if context is not None:
        limits = [min(limit, context - len(prompt)) for limit, prompt in zip(limits, prompts)]
    results = [[Hypothesis(list(prefix), 0.0, 0.0, True)] for prefix in forced]
    nonempty = [i for i, source in enumerate(sources) if len(source)]
    sizes = [len(sources[i]) + config.beam * (len(prompts[i]) + limits[i]) for i in nonempty]
    forbidden = torch.tensor(list(suppressed), dtype=torch.long, device=device_of(model))

    def forbid_suppressed(logits: Float[Tensor, "R C"], history: Int[Tensor, "R T"]) -> None:
        logits.index_fill_(1, forbidden, -math.inf)

    for batch in batches(sizes, batch_tokens):
        chosen = [nonempty[i] for i in batch]
        if sampling is None:
            prompt = make_prompt([prompts[i] for i in chosen], [sources[i] for i in chosen], device_of(model))
            translations = beam_search(model, prompt, [limits[i] for i in chosen], eos, config, suppressed)
        else:
            with torch.inference_mode(), evaluation_mode(model):
                translations = []
                for i in chosen:
                    prompt = make_prompt([prompts[i]], [sources[i]], device_of(model))
                    logits, decoding = model.start(prompt, len(prompts[i]) + limits[i])
                    steps = sample_steps(
                        logits.float(), decoding, config.n_best, limits[i], (eos,), sampling, forbid_suppressed
                    )
                    translations.append(run_coroutine(model, steps))
        for i, hypotheses in zip(chosen, translations):
            results[i] = [h._replace(ids=[*forced[i], *h.ids]) for h in hypotheses]
    return results


def sample_steps(
    logits: Float[Tensor, "1 C"],
    decoding: Any,
    count: int,
    limit: int,
    eos_ids: Collection[int],
    sampling: Sampling,
    rule: Constraint,
) -> DecodingCoroutine[list[Hypothesis]]:
    """Sample `count` continuations of at most `limit` tokens from a decoding state, in decreasing order of score.

    Scores are the mean log p per token, including the end token, at temperature 1 and under the rule.
    """
    rows = torch.zeros(count, dtype=torch.long, device=logits.device)
    logits, decoding = logits[rows], decoding.select(rows)
    samplers = [Sampler(sampling, key) for key in row_keys([()] * count)]
    history = torch.zeros(count, limit, dtype=torch.long, device=logits.device)
    finished: list[Hypothesis | None] = [None] * count
    totals = [0.0] * count
    for step in range(limit):
        rule(logits, history[:, :step])
        events = sample_rows(logits, range(count), samplers)
        chosen = torch.tensor([event.id for event in events], device=logits.device)
        history[:, step] = chosen
        for row, event in enumerate(events):
            samplers[row].take(cast(int, event.id))
            if finished[row] is not None:
                continue
            check_not_nan(event.logprob)
            totals[row] += event.logprob
            if event.id in eos_ids:
                finished[row] = _hypothesis(history[row, :step], totals[row], True)
        if all(finished) or step + 1 == limit:
            break
        logits, decoding = yield NextTokens(chosen, decoding)
    hypotheses = [
        hypothesis or _hypothesis(history[row, : step + 1], totals[row], False)
        for row, hypothesis in enumerate(finished)
    ]
    return sorted(hypotheses, key=lambda hypothesis: -hypothesis.score)


def _hypothesis(ids: Tensor, total: float, finished: bool) -> Hypothesis:
    return Hypothesis(ids.tolist(), total / (len(ids) + finished), total, finished)
