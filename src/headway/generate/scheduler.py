"""Continuous batching: sequences of many clients share engine steps, join and leave at any step, and do not affect each
other.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from headway.codecs import Codec
from headway.engine import Engine, Piece
from headway.engine.operations import BLOCK
from headway.errors import ConfigError, UserError
from headway.generate.choosing import Chooser, Chosen, Rule, StepChoice, choose, score_tokens
from headway.generate.prefixes import Prefixes
from headway.generate.prompts import Ids, check_ids, check_number, check_prompts, context_of
from headway.generate.sampling import Sampler, Sampling, row_keys
from headway.generate.score import TokenScore
from headway.generate.session import Continuation, FinishReason, Limits
from headway.generate.turns import Copy, FairQueue
from headway.given import check_fields
from headway.memory import free_bytes
from headway.nn.models import EncoderDecoder, Generative

_CHECKED = 16  # tokens of a step up to which guesses are added: more would slow down other sequences
_SHARE = 4  # the cache takes 1 / _SHARE of the free memory by default
_UNKNOWN = 1 << 30  # bytes for the cache if the system does not report free memory


class FullError(UserError):
    """The queue is full."""


@dataclass(frozen=True)
class Request:
    """A prompt and what to compute for it: `n` continuations, sampled as `Session` would sample those of `n` equal
    prompts, and with `prompt_top` the score of each prompt token. With `generates` False only the scores.
    """

    prompt: Ids
    sampling: Sampling = Sampling()
    limits: Limits = Limits()
    copies: int = 1
    rule: Callable[[], Rule] | None = None  # makes one per sample
    top: int = 0  # number of most probable tokens to report with each token
    owner: str = ""  # requests of one owner share prefixes; time is shared fairly between owners
    prompt_top: int | None = None  # number of most probable tokens per prompt score; None: no scores
    generates: bool = True

    def __post_init__(self) -> None:
        check_fields(self)
        if self.copies < 1:
            raise ConfigError(f"n is {self.copies}; use an integer of at least 1")
        for name, top in (("top", self.top), ("prompt_top", self.prompt_top or 0)):
            if top < 0:
                raise ConfigError(f"{name} is {top}; use an integer of at least 0")

    def check(self, model: Generative) -> None:
        """Raise UserError for a prompt that this model cannot process, or that leaves no position for new tokens."""
        prompt = self.prompt
        if not self.generates and len(prompt) > 1:  # the last token is only scored
            check_ids("prompt", [prompt], model.config.symbols)
            prompt = prompt[:-1]
        check_prompts(model, [prompt])


class Said(NamedTuple):
    """Output of one step for one sample of a request. `id` is None if the sample ended without a new token; the last
    output has a `reason`.
    """

    ticket: int
    copy: int
    id: int | None
    text: str  # final text; never ends within a character or contains part of a stop string
    logprob: float  # of the token, in nats, before temperature and penalties
    top: list[tuple[int, float]]  # the most probable tokens and their log probabilities, in decreasing order
    reason: FinishReason | None
    error: UserError | None = None  # why it ended if the model output NaN or its rule failed
    known: int = 0  # prompt tokens that were cached each time this sample started
    scores: Sequence[TokenScore] = ()  # of the prompt's tokens from the second on, in the first output


class SchedulerState(NamedTuple):
    """The current load, and counters since the start."""

    waiting: int  # samples, preempted ones included
    running: int  # samples
    blocks: int  # of keys and values in use, cached prefixes included
    most_blocks: int | None  # None if the model has no keys and values
    prefix_tokens: int  # cached when a sample started
    prompt_tokens: int  # processed
    written_tokens: int
    preemptions: int
    guessed: int
    accepted: int


class Scheduler:
    """Shares an engine among requests. `submit`, `cancel` and `state` may be called from any thread, `step` from one;
    nothing else may generate with the engine meanwhile.

    The output of a sample equals that of a `Session` with this model alone, bit for bit, whatever else runs. Prompts
    are processed in chunks between the steps of other sequences, with fair queueing between owners. Cached blocks of
    keys and values are reused. If blocks run short, cached prefixes are evicted first; then the youngest samples are
    preempted and processed again later. Prefixes are cached only if every token stays visible: not if all layers have
    windows or any layer has a recurrent state.
    """

    def __init__(
        self,
        engine: Engine,
        codec: Codec | None = None,
        slots: int = 64,
        waiting: int = 256,
        cache_memory: int | None = None,
        step_tokens: int = 128,
    ) -> None:
        """At most `slots` sequences run and `waiting` requests queue at once. Keys and values take at most
        `cache_memory` bytes (None: a quarter of the free memory). A step processes at most `step_tokens` prompt tokens.
        """
        numbers = {"slots": slots, "waiting": waiting, "cache_memory": cache_memory, "step_tokens": step_tokens}
        for name, number in numbers.items():
            if number is not None and number < 1:
                raise UserError(f"{name} is {number}; use an integer of at least 1")
        if isinstance(engine.model, EncoderDecoder):
            raise UserError("this model reads a source, but a Scheduler only continues prompts; use a Session")
        self._engine, self._codec, self._slots, self._most_waiting = engine, codec, slots, waiting
        self._step_tokens = step_tokens
        # A recurrent model processes a chunk token by token, and each token takes as long as a step of all rows.
        self._longest = step_tokens if engine.extends else max(1, step_tokens // _CHECKED)
        free = free_bytes(torch.device("cpu")) if cache_memory is None else None
        engine.limit_cache(cache_memory or (_UNKNOWN if free is None else free // _SHARE))
        [self._blank] = engine.open(count=1).rows  # the state in which every row starts
        self._store = self._blank.store
        whole = self._store.size > 0 and self._store.window is None and not len(self._blank.state)
        self._prefixes = Prefixes(self._store) if whole else None
        self._lock = threading.Lock()  # guards the queue and the tickets
        self._turns = FairQueue()
        self._running: list[Copy] = []
        self._ticket = 0
        self._unbegun: set[int] = set()  # requests without a started sample
        self._cancelled: set[int] = set()
        self._counts = dict.fromkeys(SchedulerState._fields, 0)

    def submit(self, request: Request) -> int:
        """Queue a request and return its ticket. Raises UserError for an invalid request, FullError if the queue is
        full.
        """
        symbols = self._engine.config.symbols
        request.check(self._engine)
        request.sampling.check_symbols(symbols)
        if (top := max(request.top, request.prompt_top or 0)) > symbols:
            raise UserError(f"top is {top}, over this model's vocabulary of {symbols}; use a smaller number")
        prompt, context = list(request.prompt), context_of(self._engine)
        copies = []
        for number, key in enumerate(row_keys([prompt] * request.copies)):
            said = Continuation(self._codec, prompt, request.limits, context)
            if number == 0:
                self._check_room(len(prompt), said.limit)
            rule = None if request.rule is None else request.rule()
            sampler = Sampler(request.sampling, [key], [prompt], symbols, pool=self._engine.pool)
            chooser = Chooser(sampler, rule, request.top, symbols)
            copies.append(Copy(number, request.owner, prompt, said, chooser, request.prompt_top, request.generates))
        with self._lock:
            if len(self._unbegun) >= self._most_waiting:
                raise FullError(f"the queue is full with {self._most_waiting} requests; retry later")
            self._ticket += 1
            self._unbegun.add(self._ticket)
            for copy in copies:
                copy.ticket = self._ticket
                self._turns.add(copy)
            return self._ticket

    def cancel(self, ticket: int) -> None:
        """Drop a request; its blocks are freed at the next step."""
        with self._lock:
            self._turns.drop({ticket})
            self._unbegun.discard(ticket)
            self._cancelled.add(ticket)

    def state(self) -> SchedulerState:
        """The state after the last step, with the current number of waiting samples."""
        with self._lock:
            return SchedulerState(**{**self._counts, "waiting": len(self._turns), "most_blocks": self._store.most})

    def step(self) -> list[Said]:
        """Run one step of the engine; return no outputs if no request is active."""
        with self._lock:
            for copy in [copy for copy in self._running if copy.ticket in self._cancelled]:
                self._close(copy)
            self._turns.drop(self._cancelled)  # they may have been preempted since
            self._cancelled.clear()
            self._admit()
        planned = self._plan()
        said = []
        if planned:
            choosing = _choosing(planned)
            choice = StepChoice([copy.chooser for copy, _ in choosing], [place for _, place in choosing])
            logits = self._engine.compute(list(planned.values()), choice.choosing)
            said = self._take(planned, logits, choosing, choice.found())
        with self._lock:
            for copy, piece in planned.items():
                self._turns.charge(copy.owner, len(piece.ids))
            self._turns.forget({copy.owner for copy in self._running})
            self._counts["running"], self._counts["blocks"] = len(self._running), self._store.held
        return said

    def _blocks(self, symbols: int) -> int:
        """The maximum number of blocks that a row of `tokens` tokens holds at once."""
        window, blocks = self._store.window, -(-symbols // BLOCK)
        return blocks if window is None else min(blocks, (window + self._step_tokens) // BLOCK + 2)

    def _check_room(self, prompt: int, new: int) -> None:
        most = self._store.most
        needed = self._blocks(prompt + new - 1) if self._store.size else 0
        if most is not None and needed > most:
            raise UserError(
                f"a prompt of {prompt} tokens and {new} new ones need {needed * self._store.size:,} bytes of keys and "
                f"values, over the cache's {most * self._store.size:,}; request fewer or enlarge the cache"
            )

    def _admit(self) -> None:
        """Start the next samples in fair order while there are slots and blocks for their prompts."""
        while len(self._running) < self._slots and (copy := self._turns.next()) is not None:
            leader = next((one for one in self._running if one.ticket == copy.ticket and one.reads_prompt), None)
            if leader is not None:
                leader.followers.append(copy)
            else:
                blocks: list[int] = []
                if self._prefixes is not None and not copy.scores_prompt:  # scores need the prompt's logits
                    blocks = self._prefixes.find(copy.owner, copy.ids)
                if not self._fits(copy, blocks):
                    return
                copy.row, copy.read = self._blank.fork(), len(blocks) * BLOCK
                copy.row.begin_with(blocks)
                copy.known = min(copy.known, copy.read)
                self._counts["prefix_tokens"] += copy.read
            self._turns.begin(copy)
            self._unbegun.discard(copy.ticket)
            self._running.append(copy)

    def _fits(self, copy: Copy, known: list[int]) -> bool:
        """Whether there are enough blocks for its prompt and for the running samples. A sample alone always fits."""
        at_work = [one for one in self._running if one.row is not None]
        if self._store.most is None or not self._store.size or not at_work:
            return True
        needed = self._blocks(len(copy.ids) + 1) - sum(not self._store.alone(block) for block in known)
        for one in at_work:
            held = sum(map(bool, one.row.blocks)) if one.row is not None else 0
            needed += max(0, self._blocks(len(one.ids) + 1) - held)
        left = self._store.left
        return needed <= left or (self._prefixes is not None and needed <= left + self._prefixes.loose())

    def _plan(self) -> dict[Copy, Piece]:
        """The chunks of the next step. If blocks are lacking, drop guesses, then evict prefixes, then preempt the
        youngest sample.
        """
        planned = self._pieces(guessing=self._engine.extends)
        if not self._engine.lacking(list(planned.values())):
            return planned
        planned = self._pieces(guessing=False)
        while lacking := self._engine.lacking(list(planned.values())):
            if self._prefixes is None or not self._prefixes.drop(lacking):
                youngest = max((copy for copy in self._running if copy.row is not None), key=lambda one: one.age)
                for copy in (youngest, *youngest.followers):
                    self._close(copy)
                    with self._lock:
                        self._turns.add(copy)
                youngest.followers = []
                self._counts["preemptions"] += 1
                planned = self._pieces(guessing=False)
        return planned

    def _pieces(self, guessing: bool) -> dict[Copy, Piece]:
        """One token per generating sample, and prompt tokens up to the limit of a step."""
        planned: dict[Copy, Piece] = {}
        budget = self._step_tokens
        for copy in self._turns.ordered(self._running):
            count = min(copy.unread, budget, self._longest) if copy.unread > 1 else 1
            if copy.row is not None and count:
                ids = copy.ids[copy.read : copy.read + count]
                wanted = count if copy.scores_prompt else int(count == copy.unread)
                planned[copy] = Piece(copy.row, copy.read, ids, wanted)
                budget -= count if copy.unread > 1 else 0
        room = _CHECKED - sum(len(piece.ids) for piece in planned.values())
        for copy, piece in planned.items():
            if guessing and room > 0 and copy.unread == 1 and copy.said.ids:
                most = min(copy.prudence.most(), copy.said.limit - len(copy.said.ids) - 1, room)
                guesses = copy.guesser.guess(most) if most else []
                planned[copy] = piece._replace(ids=[*piece.ids, *guesses], wanted=1 + len(guesses))
                room -= len(guesses)
        return planned

    def _take(
        self,
        planned: dict[Copy, Piece],
        logits: Float[Tensor, "N C"],
        choosing: list[tuple[Copy, int]],
        chosen: list[Chosen | UserError | None],
    ) -> list[Said]:
        """Turn the sampled tokens into outputs; where guesses were right, sample again from the following logits."""
        guesses: dict[Copy, list[int]] = {}  # guesses not checked yet
        self._score(planned, logits)
        for copy, piece in planned.items():
            count = min(len(piece.ids), copy.unread)
            self._counts["prompt_tokens"] += count if copy.reads_prompt else 0
            copy.read += count
            guesses[copy] = list(piece.ids[count:])
            if not copy.unread and copy.reads_prompt:
                self._share_prompt(copy)
        guessed = {copy: len(ids) for copy, ids in guesses.items()}
        said = []
        while choosing:
            going = []
            for (copy, place), choice in zip(choosing, chosen):
                said.append(self._say(copy, choice))
                left = guesses.get(copy)
                if left and said[-1].reason is None and left[0] == said[-1].id:
                    copy.read += 1
                    going.append((copy, place + 1))
                    del left[0]
            choosing = going
            if going:
                places = [place for _, place in going]
                chosen = choose(logits, places, [copy.chooser for copy, _ in going], self._engine.pool)
        for copy, count in guessed.items():
            right = count - len(guesses[copy])
            copy.prudence.judge(count, right)
            self._counts["guessed"] += count
            self._counts["accepted"] += right
        for copy in [copy for copy in self._running if copy.done]:
            self._close(copy)
        return said

    def _score(self, planned: dict[Copy, Piece], logits: Float[Tensor, "N C"]) -> None:
        """Score the prompt tokens of this step for requests that want scores."""
        place = 0
        for copy, piece in planned.items():
            if copy.prompt_top is not None and copy.scores_prompt:
                first = max(copy.read, len(copy.scores))  # tokens scored before a preemption are skipped
                ids = copy.ids[first + 1 : copy.read + 1 + len(piece.ids)]
                begin = place + first - copy.read
                if ids:
                    places = range(begin, begin + len(ids))
                    copy.scores += score_tokens(logits, places, ids, copy.prompt_top, self._engine.pool)
            place += piece.wanted

    def _share_prompt(self, copy: Copy) -> None:
        """Let the followers continue from its processed prompt, and cache the prompt."""
        assert copy.row is not None
        if self._prefixes is not None:
            self._prefixes.keep(copy.owner, copy.ids, copy.row)
        followers, copy.followers = copy.followers, []
        for follower in followers:
            follower.row, follower.read, follower.known = copy.row.fork(), copy.read, copy.known
            follower.scores = copy.scores

    def _say(self, copy: Copy, choice: Chosen | UserError | None) -> Said:
        scores, copy.scores = copy.scores, []
        try:
            for each in scores:
                check_number(each.logprob)
            if choice is None or not copy.generates:
                copy.done = True
                text, reason = copy.said.finish("", "stop" if copy.generates else "length")
                return Said(copy.ticket, copy.number, None, text, 0.0, [], reason, known=copy.known, scores=scores)
            if isinstance(choice, UserError):
                raise choice
            check_number(choice.logprob)
            copy.chooser.take(choice.id)
        except UserError as error:
            copy.done = True
            return Said(copy.ticket, copy.number, None, "", 0.0, [], "stop", error)
        symbol, text, reason = copy.said.push(choice.id)
        copy.done = reason is not None
        if symbol is None:
            return Said(copy.ticket, copy.number, None, text, 0.0, [], reason, known=copy.known, scores=scores)
        copy.guesser.add(symbol)
        self._counts["written_tokens"] += 1
        said = (copy.ticket, copy.number, symbol, text, choice.logprob, choice.top, reason)
        return Said(*said, known=copy.known, scores=scores)

    def _close(self, copy: Copy) -> None:
        """Stop running it; its processed tokens stay cached while there is memory."""
        self._running.remove(copy)
        if copy.row is not None:
            if self._prefixes is not None:
                self._prefixes.keep(copy.owner, copy.ids[: copy.read], copy.row)
            copy.row.close()
        copy.row, copy.read = None, 0


def _choosing(planned: dict[Copy, Piece]) -> list[tuple[Copy, int]]:
    """The samples to sample after a step, with the row of their logits: those whose prompt is then complete, with their
    followers, and those that generate.
    """
    found, place = [], 0
    for copy, piece in planned.items():
        guessed = len(piece.ids) - copy.unread
        if guessed >= 0:
            last = place + piece.wanted - 1 - guessed
            found.append((copy, last))
            if copy.reads_prompt:
                found += [(follower, last) for follower in copy.followers]
        place += piece.wanted
    return found
