"""Sequences of many askers in one step of the engine: they join and leave, and none depends on the others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from headway.codecs import Codec
from headway.engine import Engine
from headway.errors import UserError
from headway.generate.prompts import Ids
from headway.generate.sampling import Sampling
from headway.generate.session import FinishReason, Limits


class FullError(UserError):
    """Too many requests wait."""


class Rule(Protocol):
    """What one sequence may go on with."""

    def fill(self, mask: np.ndarray) -> None:
        """Set the bits of the symbols that may come next, int32 [ceil(C / 32)], the lowest bit first."""
        ...

    def take(self, symbol: int) -> None:
        """The symbol that was chosen, one of those; an end symbol too."""
        ...


@dataclass(frozen=True)
class Request:
    """A prompt and what is wanted of it: `copies` continuations, drawn as `Session` would draw those of so many equal
    prompts.
    """

    prompt: Ids
    sampling: Sampling = Sampling()
    limits: Limits = Limits()
    copies: int = 1
    rule: Callable[[], Rule] | None = None  # makes one for each copy
    top: int = 0  # of how many of the likeliest symbols log probabilities are told with each symbol
    owner: str = ""  # prefixes are shared among the requests of one owner, and time fairly between owners


class Said(NamedTuple):
    """What one step said of one copy of a request. `id` is None where the copy ended without a new symbol; `reason` is
    given with the last.
    """

    ticket: int
    copy: int
    id: int | None
    text: str  # certain now; never ends within a character, and holds no part of a stop string
    logprob: float  # of the symbol, in nats, under the model as it is
    top: list[tuple[int, float]]  # the likeliest symbols and their log probabilities, likeliest first
    reason: FinishReason | None


class Scheduler:
    """Shares an engine among requests. `submit`, `cancel` and `state` may be called from any thread; `step` by one."""

    def __init__(
        self,
        engine: Engine,
        codec: Codec | None = None,
        slots: int = 64,
        waiting: int = 256,
        cache_memory: int | None = None,
        step_tokens: int = 128,
    ) -> None:
        """At most `slots` sequences are under way and `waiting` requests in the queue; keys and values take at most
        `cache_memory` bytes; a step reads at most `step_tokens` symbols of prompts.
        """
        raise NotImplementedError

    def submit(self, request: Request) -> int:
        """A number for the request. UserError for one that cannot be; FullError where too many wait."""
        raise NotImplementedError

    def cancel(self, ticket: int) -> None:
        """Forget a request; its blocks are free at the next step."""
        raise NotImplementedError

    def step(self) -> list[Said]:
        """One step of the engine. Nothing where no request is under way."""
        raise NotImplementedError

    def state(self) -> Any:
        """Counts of what is under way, a NamedTuple."""
        raise NotImplementedError
