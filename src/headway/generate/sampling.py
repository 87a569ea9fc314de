"""Samples the next token of sequences from their logits.

Filters are thresholds: equally probable tokens are kept or dropped together, and their order does not matter. If the
compiled engine computes the logits, it also samples (`engine/sampling_kernels.py`); on a CPU, it samples for torch
models with large vocabularies, too. This module samples the same tokens with torch, with all rows in the same tensors,
which suits an accelerator.
"""

from __future__ import annotations

import hashlib
import math
import secrets
from collections.abc import Iterable, Mapping, Sequence
from copy import copy, deepcopy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from headway.data.shuffling import GOLDEN_GAMMA, splitmix64
from headway.errors import ConfigError, UserError
from headway.generate.sequences import Event
from headway.io.arguments import check_fields, format_value

if TYPE_CHECKING:
    from headway.engine.pool import Pool
    from headway.generate.compiled_sampling import CompiledSampler

_LARGE_VOCAB = 1 << 14  # vocabulary size from which compiled code samples on a CPU, even from torch logits
_AHEAD = 64  # uniform numbers generated at once; generating one takes nearly as long
_NUCLEUS = 256  # tokens sorted first for top_p: a nucleus is rarely larger, and sorting the whole vocabulary is slow
_MIN_TEMPERATURE, _MAX_TEMPERATURE = 1e-30, 1e30  # temperatures beyond these make no difference, and would overflow


def argmax(logits: Float[Tensor, "B C"]) -> Int[Tensor, "B"]:
    """The most probable token in each row; the first one if several are equal."""
    if logits.device.type != "cpu":
        return logits.max(dim=-1).indices
    return torch.from_numpy(logits.numpy().argmax(-1))  # ten times as fast as torch's


def sample(logits: Float[Tensor, "B C"], filters: Sampling, uniform: Float[Tensor, "B"]) -> Int[Tensor, "B"]:
    """Sample a token per row, by inverting the cumulative distribution at `uniform`, numbers in [0, 1).

    Rows with a NaN or +inf have no distribution, so their token is arbitrary. A token with weight 0 is never sampled,
    because the target stays below the total.
    """
    cumulative = weigh(logits, filters).cumsum(-1)
    total = cumulative[:, -1:]
    target = torch.minimum(uniform[:, None] * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cumulative, target, right=True)[:, 0].clamp_(max=logits.shape[-1] - 1)


def weigh(logits: Float[Tensor, "B C"], filters: Sampling) -> Float[Tensor, "B C"]:
    """Unnormalised probabilities, 0 for tokens that the filters drop."""
    logits = logits / min(max(filters.temperature, _MIN_TEMPERATURE), _MAX_TEMPERATURE)
    if filters.top_k is not None and filters.top_k < logits.shape[-1]:
        threshold = logits.topk(filters.top_k).values[:, -1:]
        logits = logits.masked_fill(logits < threshold, -math.inf)
    if filters.min_p > 0:
        threshold = logits.amax(-1, keepdim=True) + math.log(filters.min_p)
        logits = logits.masked_fill(logits < threshold, -math.inf)
    weights = logits.softmax(-1)
    if filters.top_p < 1:
        weights = weights.masked_fill(weights < _nucleus(weights, filters.top_p), 0.0)
    return weights


def _nucleus(weights: Float[Tensor, "B C"], top_p: float) -> Float[Tensor, "B 1"]:
    """The smallest weight in each row's nucleus."""
    vocab_size = weights.shape[-1]
    count = min(_NUCLEUS, vocab_size)
    while True:
        largest = weights.topk(count).values
        inside = largest.cumsum(-1) - largest < top_p
        if count == vocab_size or not bool(inside[:, -1].any()):
            return largest.gather(1, (inside.sum(-1, keepdim=True) - 1).clamp_(min=0))  # NaN: no nucleus
        count = vocab_size


@dataclass(frozen=True)
class Sampling:
    """How tokens are sampled. Settings apply in this order: repetition penalty, presence and frequency penalty, logit
    bias, temperature, top_k, min_p, top_p.

    temperature: 0 always selects the most probable token.
    top_k: keep the k most probable tokens, and any tied with the last of them.
    min_p: keep tokens at least this fraction as probable as the most probable one.
    top_p: keep the fewest most probable tokens that together reach this probability (Holtzman et al. 2020).
    repetition_penalty: values above 1 make tokens in the prompt and the output less probable (Keskar et al. 2019).
    seed: None uses a new random seed for each call.
    presence_penalty: subtracted once from the logit of each token in the output, -2 to 2; the prompt does not count.
    frequency_penalty: subtracted once per occurrence of the token in the output, -2 to 2.
    logit_bias: added to the logits of individual ids, -100 to 100; values near -100 exclude a token, values near 100
        force it.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] | None = field(default=None, hash=False)

    def __post_init__(self) -> None:
        check_fields(self)
        _check(0 <= self.temperature < math.inf, "temperature", self.temperature, "0 (greedy) or more")
        _check(self.top_k is None or self.top_k >= 1, "top_k", self.top_k, "an integer of at least 1, or None")
        _check(0 < self.top_p <= 1, "top_p", self.top_p, "a number above 0 and up to 1")
        _check(0 <= self.min_p <= 1, "min_p", self.min_p, "a number from 0 to 1")
        valid = 0 < self.repetition_penalty < math.inf
        _check(valid, "repetition_penalty", self.repetition_penalty, "a number above 0; 1 changes nothing")
        for name in ("presence_penalty", "frequency_penalty"):
            _check(
                -2 <= getattr(self, name) <= 2, name, getattr(self, name), "a number from -2 to 2; 0 changes nothing"
            )
        for token, bias in (self.logit_bias or {}).items():
            is_id = isinstance(token, int) and not isinstance(token, bool) and token >= 0
            _check(is_id, "an id of logit_bias", format_value(token), "an integer of at least 0")
            is_bias = isinstance(bias, (int, float)) and not isinstance(bias, bool) and -100 <= bias <= 100
            _check(is_bias, f"the logit_bias of {token}", format_value(bias), "a number from -100 to 100")

    @property
    def adjusts(self) -> bool:
        """Whether anything changes the logits before the temperature does."""
        penalties = self.repetition_penalty != 1.0 or self.presence_penalty != 0.0 or self.frequency_penalty != 0.0
        return penalties or bool(self.logit_bias)

    def check_vocab_size(self, vocab_size: int) -> None:
        """Raise UserError for a bias on an id that is not below `vocab_size`."""
        largest = max(self.logit_bias or (), default=0)
        if largest >= vocab_size:
            raise UserError(
                f"logit_bias contains id {largest}, but this model has ids 0 to {vocab_size - 1}; use one of these"
            )


def _check(valid: bool, name: str, value: object, wanted: str) -> None:
    if not valid:
        raise ConfigError(f"{name} is {value}; use {wanted}")


GREEDY = Sampling(temperature=0.0)


class Rule(Protocol):
    """A constraint on one sequence's tokens."""

    def fill(self, mask: np.ndarray) -> None:
        """Set the bits for tokens that are allowed next, int32 [ceil(C / 32)], lowest bit first."""
        ...

    def take(self, token: int) -> None:
        """Advance past the sampled token, which was allowed; also called for an end token."""
        ...


class Tally:
    """The tokens that penalties apply to, and how often each occurs in the output."""

    def __init__(self, prompt: Iterable[int] = ()) -> None:
        """Prompt tokens start with a count of 0."""
        self._index = {token: index for index, token in enumerate(dict.fromkeys(prompt))}
        self.tokens = np.fromiter(self._index, np.int32, len(self._index))
        self.times = np.zeros(len(self._index), np.int32)

    def __len__(self) -> int:
        return len(self._index)

    def add(self, token: int) -> None:
        """Count one more occurrence."""
        index = self._index.setdefault(token, len(self._index))
        if index == len(self.tokens):
            self.tokens, self.times = (
                np.append(old, np.zeros(index + 8, np.int32)) for old in (self.tokens, self.times)
            )
        self.tokens[index] = token
        self.times[index] += 1


class Sampler:
    """Samples one sequence token by token: with compiled code (`compiled_sampling`) or with torch, which agree up to
    rounding.

    A sample is a pure function of (seed, key, step), so it does not depend on the other sequences in a step.
    """

    def __init__(
        self, sampling: Sampling, key: int, prompt: Sequence[int] = (), rule: Rule | None = None, top: int = 0
    ) -> None:
        """`key` has 63 bits (see `row_keys`). The repetition penalty counts the tokens in `prompt`. `top` is how many
        of the most probable tokens to report with each sampled one. Only compiled code follows a `rule`.
        """
        self.sampling, self.rule, self.top, self.step = sampling, rule, top, 0
        seed = secrets.randbits(63) if sampling.seed is None else sampling.seed
        self._keys = splitmix64((np.array([key], np.uint64) ^ np.uint64(seed % (1 << 64))) - np.uint64(GOLDEN_GAMMA))
        self._uniforms: list[float] = []
        repeats = sampling.repetition_penalty != 1.0
        counts = repeats or sampling.presence_penalty or sampling.frequency_penalty
        self.tally = Tally(prompt if repeats else ()) if counts else None
        self.compiled: CompiledSampler | None = None  # once compiled code has sampled

    def take(self, token: int) -> None:
        """Continue after this token. Raises UserError if the rule fails."""
        self.step += 1
        if self.tally is not None:
            self.tally.add(token)
        if self.rule is not None:
            self.rule.take(token)

    def uniform(self) -> float:
        """The 24-bit number in [0, 1) for the next token."""
        offset = self.step % _AHEAD
        if offset == 0 or not self._uniforms:
            steps = np.arange(self.step - offset, self.step - offset + _AHEAD, dtype=np.uint64)
            bits = splitmix64(self._keys + np.uint64(GOLDEN_GAMMA) * steps) >> np.uint64(40)
            self._uniforms = (bits.astype(np.float32) * np.float32(2.0**-24)).tolist()
        return self._uniforms[offset]

    def after(self, tokens: Sequence[int]) -> Sampler:
        """A sampler for the position after these tokens, without the rule; this one stays as it is."""
        ahead = copy(self)
        ahead.tally, ahead.rule, ahead.compiled = deepcopy(self.tally), None, None
        ahead._uniforms = list(self._uniforms)
        for token in tokens:
            ahead.take(token)
        return ahead


def sample_rows(
    logits: Float[Tensor, "N C"], rows: Sequence[int], samplers: Sequence[Sampler], pool: Pool | None = None
) -> list[Event]:
    """Sample the next token of each sequence from its row of the logits. `pool` contains the threads of the engine that
    computed the logits; they then also sample. Without it, the samplers must have equal settings.
    """
    if pool is None and (logits.device.type != "cpu" or logits.shape[1] < _LARGE_VOCAB):
        if len(rows) != len(logits) or any(row != index for index, row in enumerate(rows)):
            logits = logits[list(rows)]
        return _sample_with_torch(logits.float(), samplers)
    from headway.generate.compiled_sampling import StepSampling  # imports LLVM, which torch does not need

    sampling = StepSampling(samplers, rows, logits.shape[1])
    sampling.batch.run(logits.float(), pool)
    return sampling.events()


def _sample_with_torch(logits: Float[Tensor, "B C"], samplers: Sequence[Sampler]) -> list[Event]:
    settings = samplers[0].sampling
    adjusted = _adjusted(logits, settings, [sampler.tally for sampler in samplers])
    if settings.temperature == 0:
        chosen = argmax(adjusted)
    else:
        uniform = torch.tensor([sampler.uniform() for sampler in samplers])
        chosen = sample(adjusted, settings, uniform.to(logits.device))
    logprobs = logits.log_softmax(-1)  # row by row: the result does not depend on the shape of the batch
    # One transfer; a double holds any id exactly.
    tokens, values = torch.stack([chosen.double(), logprobs.gather(1, chosen[:, None])[:, 0].double()]).tolist()
    events = [Event(id=int(token), logprob=logprob) for token, logprob in zip(tokens, values)]
    for row, sampler in enumerate(samplers):
        if sampler.top:
            best = logprobs[row].topk(sampler.top)
            events[row].top = list(zip(best.indices.tolist(), best.values.tolist()))
    return events


def _adjusted(
    logits: Float[Tensor, "B C"], sampling: Sampling, tallies: Sequence[Tally | None]
) -> Float[Tensor, "B C"]:
    """The logits after penalties and biases. Without any, this is the input itself. The logits may cover only the first
    part of the vocabulary.
    """
    if not sampling.adjusts:
        return logits
    device, vocab_size = logits.device, logits.shape[1]
    counted = [
        (row, tally.tokens[: len(tally)], tally.times[: len(tally)]) for row, tally in enumerate(tallies) if tally
    ]
    if counted:
        rows = np.concatenate([np.full(len(tokens), row) for row, tokens, _ in counted])
        tokens, times = (np.concatenate([part[n] for part in counted]) for n in (1, 2))
        known = tokens < vocab_size
        index = tuple(torch.from_numpy(part[known].astype(np.int64)).to(device) for part in (rows, tokens))
        values, counts = logits[index], torch.from_numpy(times[known].astype(np.float32)).to(device)
        if sampling.repetition_penalty != 1.0:
            penalty = sampling.repetition_penalty
            values = torch.where(values > 0, values / penalty, values * penalty)
        values = values - sampling.presence_penalty * (counts > 0) - sampling.frequency_penalty * counts
        logits = logits.index_put(index, values)
    biases = {token: bias for token, bias in (sampling.logit_bias or {}).items() if token < vocab_size}
    if biases:
        bias = torch.zeros(vocab_size, device=device)
        bias[list(biases)] = torch.tensor(list(biases.values()), device=device)
        logits = logits + bias
    return logits


def row_keys(prompts: Sequence[Sequence[int]], sources: Sequence[Sequence[int] | Tensor] | None = None) -> list[int]:
    """A key per row, computed from its prompt and how often the same prompt occurred earlier in the batch.

    So a prompt gets the same samples alone and in a batch, while equal prompts in one batch get different ones.
    """
    counts: dict[bytes, int] = {}
    keys = []
    for index, prompt in enumerate(prompts):
        parts = [prompt] if sources is None else [prompt, sources[index]]
        content = b"|".join(
            part.detach().cpu().float().numpy().tobytes()
            if isinstance(part, Tensor)
            else " ".join(map(str, part)).encode()
            for part in parts
        )
        count = counts[content] = counts.get(content, -1) + 1
        digest = hashlib.blake2b(content, digest_size=8, salt=count.to_bytes(8, "little")).digest()
        keys.append(int.from_bytes(digest, "little") >> 1)
    return keys
