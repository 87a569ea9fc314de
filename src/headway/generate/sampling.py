"""Choosing the next symbol of each row from its logits."""

from __future__ import annotations

import hashlib
import math
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from headway.errors import ConfigError
from headway.generate.filters import draw
from headway.given import check_fields

_GOLDEN, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB  # splitmix64's constants


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. The settings apply in this order: repetition penalty, temperature, top_k, min_p, top_p.

    temperature: 0 always takes the most probable token.
    top_k: keep the k most probable tokens, and those as probable as the last of them.
    min_p: keep tokens at least this fraction as probable as the most probable one.
    top_p: keep the fewest most probable tokens that together reach this probability (Holtzman et al. 2020).
    repetition_penalty: above 1 it makes tokens of the prompt and of the text so far less probable (Keskar et al. 2019).
    seed: None draws a new seed for each call.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        _check(0 <= self.temperature < math.inf, "temperature", self.temperature, "0 (the likeliest) or more")
        _check(self.top_k is None or self.top_k >= 1, "top_k", self.top_k, "a whole number from 1 on, or none")
        _check(0 < self.top_p <= 1, "top_p", self.top_p, "a number above 0 and up to 1")
        _check(0 <= self.min_p <= 1, "min_p", self.min_p, "a number from 0 to 1")
        good = 0 < self.repetition_penalty < math.inf
        _check(good, "repetition_penalty", self.repetition_penalty, "a number above 0; 1 changes nothing")


def _check(truth: bool, name: str, value: object, wanted: str) -> None:
    if not truth:
        raise ConfigError(f"{name} is {value}; give {wanted}")


GREEDY = Sampling(temperature=0.0)


class Sampler:
    """Draws for the rows of one batch.

    A draw is a pure function of (seed, the row's own key, step): it is the same in any batch and at any place in it.
    """

    def __init__(
        self,
        sampling: Sampling,
        keys: Sequence[int],
        prompts: Sequence[Sequence[int]],
        symbols: int,
        device: torch.device | str = "cpu",
    ) -> None:
        """`keys` are 63-bit numbers, one a row (see `row_keys`); `prompts` are what counts as repeated."""
        self.sampling = sampling
        seed = secrets.randbits(63) if sampling.seed is None else sampling.seed
        self._keys = _mix(torch.tensor(keys, device=device) ^ _signed(seed))
        self._seen: Bool[Tensor, "B C"] | None = None
        if sampling.repetition_penalty != 1.0:
            self._seen = torch.zeros(len(keys), symbols, dtype=torch.bool, device=device)
            for row, prompt in zip(self._seen, prompts):
                row[torch.tensor(prompt, dtype=torch.long, device=device)] = True

    def pick(self, logits: Float[Tensor, "B C"], step: int) -> tuple[Int[Tensor, "B"], Float[Tensor, "B"]]:
        """The next symbol of each row, and its log probability under the model as it is (no penalty, temperature 1)."""
        logits = logits.float()
        chosen = self._choose(logits, step, self._seen)
        if self._seen is not None:
            self._seen.scatter_(1, chosen[:, None], True)
        # log_softmax works row by row; a sum over a row would depend on the shape of the batch.
        return chosen, logits.log_softmax(-1).gather(1, chosen[:, None])[:, 0]

    def foresee(self, logits: Float[Tensor, "1 C"], step: int, after: Sequence[int] = ()) -> int:
        """What `pick` would draw for the only row at a later step, once it has drawn `after`, from these logits; they
        may be of fewer symbols. Changes nothing.
        """
        seen = self._seen
        if seen is not None:
            seen = seen[:, : logits.shape[-1]].clone()
            seen[0, list(after)] = True
        return int(self._choose(logits.float(), step, seen)[0])

    def _choose(self, logits: Float[Tensor, "B C"], step: int, seen: Bool[Tensor, "B C"] | None) -> Int[Tensor, "B"]:
        adjusted = logits if seen is None else self._penalised(logits, seen)
        if self.sampling.temperature == 0:
            return adjusted.max(dim=-1).indices
        return draw(adjusted, self.sampling, self._uniform(step))

    def select(self, rows: Int[Tensor, "R"]) -> None:
        """Go on with these rows only."""
        self._keys = self._keys[rows]
        self._seen = None if self._seen is None else self._seen[rows]

    def _penalised(self, logits: Tensor, seen: Tensor) -> Tensor:
        penalty, places = self.sampling.repetition_penalty, seen.nonzero(as_tuple=True)
        found = logits[places]
        return logits.index_put(places, torch.where(found > 0, found / penalty, found * penalty))

    def _uniform(self, step: int) -> Float[Tensor, "B"]:
        """One number of 24 bits in [0, 1) a row."""
        return _shift(_mix(self._keys + _signed(_GOLDEN * (step + 1))), 40).float() * 2.0**-24


def row_keys(prompts: Sequence[Sequence[int]], sources: Sequence[Sequence[int] | Tensor] | None = None) -> list[int]:
    """A key for each row, by what it starts from and how often that came before in the batch.

    So a prompt draws the same symbols alone and in a batch, and equal prompts of one batch draw different ones.
    """
    counts: dict[bytes, int] = {}
    keys = []
    for index, prompt in enumerate(prompts):
        parts = [prompt] if sources is None else [prompt, sources[index]]
        content = b"|".join(map(_content, parts))
        count = counts[content] = counts.get(content, -1) + 1
        digest = hashlib.blake2b(content, digest_size=8, salt=count.to_bytes(8, "little")).digest()
        keys.append(int.from_bytes(digest, "little") >> 1)
    return keys


def _content(part: Sequence[int] | Tensor) -> bytes:
    """What tells one prompt or source from another."""
    if isinstance(part, Tensor):
        return part.detach().cpu().float().numpy().tobytes()
    return " ".join(map(str, part)).encode()


def _signed(value: int) -> int:
    """The 64 low bits of `value` as int64 holds them."""
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value


def _shift(x: Int[Tensor, "B"], bits: int) -> Int[Tensor, "B"]:
    """A shift to the right that brings in zeros; torch's own brings in the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Int[Tensor, "B"]) -> Int[Tensor, "B"]:
    """splitmix64 (Steele et al. 2014): a bijection of 64 bits in which every input bit moves every output bit."""
    x = (x ^ _shift(x, 30)) * _signed(_FIRST)
    x = (x ^ _shift(x, 27)) * _signed(_SECOND)
    return x ^ _shift(x, 31)
