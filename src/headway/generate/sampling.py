"""Samples the next token for each row from its logits.

Filters are thresholds: equally probable tokens are kept or dropped together, and their order does not matter. If the
compiled engine computes the logits, it also samples (`engine/sampling_kernels.py`); on a CPU, it samples for torch
models with large vocabularies, too. This module samples the same tokens with torch, with all rows in the same tensors,
which suits an accelerator.
"""

from __future__ import annotations

import hashlib
import math
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from headway.arguments import check_fields, format_value
from headway.data.shuffling import GOLDEN_GAMMA, splitmix64
from headway.errors import ConfigError, UserError

if TYPE_CHECKING:
    from headway.engine.pool import Pool
    from headway.generate.sampling_table import SamplingTable

_LARGE_VOCAB = 1 << 14  # vocabulary size from which compiled code samples on a CPU, even from torch logits
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


def uniforms(keys: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """A 24-bit number in [0, 1) per row, from its key (as in `Sampler.keys`) and its step; both uint64 [B]."""
    bits = splitmix64(keys + np.uint64(GOLDEN_GAMMA) * steps) >> np.uint64(40)
    return bits.astype(np.float32) * np.float32(2.0**-24)


class _PenaltyCounts(NamedTuple):
    """What the penalties count in each row; None if no penalty needs it."""

    present: Bool[Tensor, "B C"] | None  # tokens in the prompt and the output
    counts: Float[Tensor, "B C"] | None  # occurrences in the output


class Sampler:
    """Samples tokens for the rows in one batch.

    A sample is a pure function of (seed, the row's key, step), so it is the same in any batch and in any row.
    """

    def __init__(
        self,
        sampling: Sampling,
        keys: Sequence[int],
        prompts: Sequence[Sequence[int]],
        vocab_size: int,
        device: torch.device | str = "cpu",
        pool: Pool | None = None,
    ) -> None:
        """`keys` are 63-bit integers, one per row (see `row_keys`). `prompts` are the tokens that the repetition
        penalty counts. `pool` contains the threads of the engine that computes the logits; they then also sample.
        """
        self.sampling = sampling
        seed = secrets.randbits(63) if sampling.seed is None else sampling.seed
        self.keys = splitmix64((np.array(keys, np.uint64) ^ np.uint64(seed % (1 << 64))) - np.uint64(GOLDEN_GAMMA))
        self.pool, self.table = pool, None
        present = counts = self._bias = None
        self._counted = _PenaltyCounts(present, counts)
        if pool is not None or (torch.device(device).type == "cpu" and vocab_size >= _LARGE_VOCAB):
            from headway.generate.sampling_table import SamplingTable  # imports LLVM, which torch does not need

            self.table = SamplingTable(sampling, prompts)
            return
        if sampling.repetition_penalty != 1.0:
            present = torch.zeros(len(keys), vocab_size, dtype=torch.bool, device=device)
            for row, prompt in zip(present, prompts):
                row[torch.tensor(prompt, dtype=torch.long, device=device)] = True
        if sampling.presence_penalty or sampling.frequency_penalty:
            counts = torch.zeros(len(keys), vocab_size, device=device)
        if sampling.logit_bias:
            self._bias = torch.zeros(vocab_size, device=device)
            for token, bias in sampling.logit_bias.items():
                self._bias[token] = bias
        self._counted = _PenaltyCounts(present, counts)

    def pick(self, logits: Float[Tensor, "B C"], step: int) -> tuple[Int[Tensor, "B"], Float[Tensor, "B"]]:
        """The next token for each row, and its log probability without penalties at temperature 1."""
        logits = logits.float()
        if self.table is not None:
            chosen, logprobs = self._by_table(self.table, logits, step)
            self.add(chosen)
            return chosen, logprobs
        chosen = self._choose(self._adjusted(logits), step)
        self.add(chosen)
        # log_softmax works row by row; a sum over a row would depend on the shape of the batch.
        return chosen, logits.log_softmax(-1).gather(1, chosen[:, None])[:, 0]

    def sample_ahead(self, logits: Float[Tensor, "1 C"], step: int, after: Sequence[int] = ()) -> int:
        """What `pick` would sample from these logits for the only row at a later step, after the tokens `after`. The
        logits may cover a smaller vocabulary. Nothing is changed.
        """
        if self.table is not None:
            return int(self._by_table(self.table.after(after), logits.float(), step)[0][0])
        now = self._counted
        if self.sampling.adjusts and after:
            self._counted = _PenaltyCounts(*(None if part is None else part.clone() for part in now))
            self.add(torch.tensor([after], device=logits.device))
        adjusted, self._counted = self._adjusted(logits.float()), now
        return int(self._choose(adjusted, step)[0])

    def add(self, tokens: Int[Tensor, "B"] | Int[Tensor, "B N"]) -> None:
        """Count the tokens that each row has generated."""
        if self.table is not None:
            self.table.add(tokens.tolist())
            return
        tokens = tokens.view(len(tokens), -1)
        if self._counted.present is not None:
            self._counted.present.scatter_(1, tokens, True)
        if self._counted.counts is not None:
            self._counted.counts.scatter_add_(1, tokens, torch.ones(tokens.shape, device=tokens.device))

    def _by_table(
        self, table: SamplingTable, logits: Float[Tensor, "B C"], step: int
    ) -> tuple[Int[Tensor, "B"], Float[Tensor, "B"]]:
        uniform = uniforms(self.keys, np.full(len(self.keys), step, np.uint64))
        chosen = table.sample(logits, uniform, self.pool)
        return torch.from_numpy(chosen.tokens), torch.from_numpy(chosen.logprobs).float()

    def _adjusted(self, logits: Float[Tensor, "B C"]) -> Float[Tensor, "B C"]:
        """Logits for the vocabulary, or for its first ids, after penalties and bias. If there are neither, this is the
        input itself.
        """
        sampling, vocab_size = self.sampling, logits.shape[-1]
        if self._counted.present is not None:
            indices = self._counted.present[:, :vocab_size].nonzero(as_tuple=True)
            penalised, penalty = logits[indices], sampling.repetition_penalty
            logits = logits.index_put(indices, torch.where(penalised > 0, penalised / penalty, penalised * penalty))
        if self._counted.counts is not None:
            counts = self._counted.counts[:, :vocab_size]
            logits = logits - sampling.presence_penalty * (counts > 0) - sampling.frequency_penalty * counts
        return logits if self._bias is None else logits + self._bias[:vocab_size]

    def _choose(self, logits: Float[Tensor, "B C"], step: int) -> Int[Tensor, "B"]:
        if self.sampling.temperature == 0:
            return argmax(logits)
        uniform = uniforms(self.keys, np.full(len(self.keys), step, np.uint64))
        return sample(logits, self.sampling, torch.from_numpy(uniform).to(logits.device))

    def select(self, rows: Int[Tensor, "R"]) -> None:
        """Continue with these rows only."""
        self.keys = self.keys[rows.numpy(force=True)]
        if self.table is not None:
            self.table = self.table.select(rows.tolist())
        self._counted = _PenaltyCounts(*(None if part is None else part[rows] for part in self._counted))


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
