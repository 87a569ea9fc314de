"""How the next token of a sequence is sampled: settings, penalties, and random numbers."""

from __future__ import annotations

import hashlib
import math
import secrets
from collections.abc import Iterable, Mapping, Sequence
from copy import copy, deepcopy
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from jaxtyping import Bool, Int
from torch import Tensor

from headway.data.shuffling import GOLDEN_GAMMA, splitmix64
from headway.errors import ConfigError, UserError
from headway.io.arguments import check_fields, format_value

_AHEAD = 64  # uniform numbers generated at once; generating one takes nearly as long


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


def bit_mask(mask: Bool[np.ndarray, "C"]) -> Int[np.ndarray, "W"]:
    """One bit per token, lowest first, in int32."""
    padded = np.zeros(-(-len(mask) // 32) * 32, bool)
    padded[: len(mask)] = mask
    return np.packbits(padded, bitorder="little").view(np.int32)


def token_mask(ids: Iterable[int], vocab_size: int) -> Int[np.ndarray, "W"]:
    """The bits of these tokens."""
    mask = np.zeros(vocab_size, bool)
    mask[[id for id in ids if id < vocab_size]] = True
    return bit_mask(mask)


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
    """The state of sampling one sequence token by token: with compiled code (`compiled_sampling`) or with torch
    (`torch_sampling`), which agree up to rounding.

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
        self.compiled: Any = None  # a CompiledSampler, once compiled code has sampled

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
