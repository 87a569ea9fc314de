"""The decoding loop: sequences share steps, join and leave at any step, and do not affect each other."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, cast

import torch
from jaxtyping import Float
from torch import Tensor

from headway.codecs import Codec
from headway.engine.chunks import RowChunk
from headway.errors import ConfigError, UserError
from headway.generate.prompts import check_ids, check_not_nan, check_prompts, context_of
from headway.generate.samples import FairQueue, Sample
from headway.generate.sampling import Rule, Sampler, Sampling, row_keys
from headway.generate.score import score_prompt
from headway.generate.sequences import AnswerReader, Event, Ids, Limits
from headway.generate.speculation import CountedGuessLength, Draft, GuessLength, Lookup
from headway.generate.stepper import RowBatch, Stepper, TorchStepper, stepper_of
from headway.generate.torch_sampling import sample_rows
from headway.io.arguments import check_fields
from headway.io.machine_memory import free_bytes
from headway.nn.models import EncoderDecoderConfig, Generative, Transformer

if TYPE_CHECKING:
    from headway.engine import Engine
    from headway.engine.cache import Blocks
    from headway.engine.pool import Pool
    from headway.generate.prefix_cache import PrefixCache

_MAX_SPECULATED = 16  # maximum tokens in a step that gets guesses, which would slow down other sequences
_MAX_BATCH_POSITIONS = 1 << 16  # of all rows in a batch of torch, unless one row has more
_SHARE = 4  # by default, the cache takes 1 / _SHARE of the free memory
_DEFAULT_CACHE = 1 << 30  # bytes for the cache if the system does not report free memory


class FullError(UserError):
    """The queue is full."""


@dataclass(frozen=True)
class Request:
    """A prompt and what to compute for it: `n` continuations, sampled as `Session` would sample them for `n` equal
    prompts, and, with `prompt_top`, a score for each prompt token. If `generates` is False, only the scores are
    computed.
    """

    prompt: Ids
    sampling: Sampling = Sampling()
    limits: Limits = Limits()
    n: int = 1
    rule: Callable[[], Rule] | None = None  # makes one per sample
    top: int = 0  # number of most probable tokens to report with each token
    owner: str = ""  # one owner's requests share prefixes; time is shared fairly between owners
    prompt_top: int | None = None  # number of most probable tokens per prompt score; None: no scores
    generates: bool = True
    reader: Callable[[], AnswerReader] | None = None  # makes one per sample, which separates thinking from the answer

    def __post_init__(self) -> None:
        check_fields(self)
        if self.n < 1:
            raise ConfigError(f"n is {self.n}; use an integer of at least 1")
        for name, top in (("top", self.top), ("prompt_top", self.prompt_top or 0)):
            if top < 0:
                raise ConfigError(f"{name} is {top}; use an integer of at least 0")

    def check(self, model: Stepper) -> None:
        """Raise UserError for a prompt that this model cannot process, or that leaves no position for new tokens."""
        prompt = self.prompt
        if not self.generates and len(prompt) > 1:  # the last token is only scored
            check_ids("prompt", [prompt], model.config.vocab_size)
            prompt = prompt[:-1]
        check_prompts(model, [prompt])


class SchedulerState(NamedTuple):
    """The current load, and counters since startup."""

    waiting: int  # samples, including preempted ones
    running: int  # samples
    blocks: int  # key/value blocks in use, including cached prefixes
    most_blocks: int | None  # None if the model has no keys and values
    prefix_tokens: int  # prompt tokens already cached when a sample started
    prompt_tokens: int  # processed prompt tokens
    written_tokens: int
    preemptions: int
    guessed: int
    accepted: int


class Scheduler:
    """Shares a model among requests. `submit`, `cancel` and `state` may be called from any thread, but `step` only
    from one. Nothing else may generate with the model in the meantime.

    On the engine, a sample's output does not depend on what else is running, bit for bit. Prompts are processed in
    chunks between other sequences' steps, with fair queueing between owners. Cached key/value blocks are reused. If
    blocks run short, cached prefixes are evicted first; then the youngest samples are preempted and processed again
    later. Prefixes are cached only if every token stays visible, so not if all layers have windows or any layer has a
    recurrent state.

    On torch, all requests that wait when no sample runs start as one batch, which no other joins. In deterministic mode
    their outputs have the bits that they have alone; otherwise they are the same up to rounding.
    """

    def __init__(
        self,
        model: Generative | Stepper,
        codec: Codec | None = None,
        slots: int = 64,
        waiting: int = 256,
        cache_memory: int | None = None,
        step_tokens: int = 128,
        *,
        shared: bool = True,
        guess_length: Callable[[], GuessLength] | None = CountedGuessLength,
        draft: Generative | None = None,
    ) -> None:
        """At most `slots` sequences run and at most `waiting` requests wait at once. Keys and values take at most
        `cache_memory` bytes (None: a quarter of the free memory). A step processes at most `step_tokens` prompt tokens.

        If it is not `shared`, there is no limit of memory, and no prefix is cached. `guess_length` decides how many
        tokens to guess (None: no guesses). While only one sample runs, `draft` guesses instead of the text so far.
        """
        settings = {"slots": slots, "waiting": waiting, "cache_memory": cache_memory, "step_tokens": step_tokens}
        for name, setting in settings.items():
            if setting is not None and setting < 1:
                raise UserError(f"{name} is {setting}; use an integer of at least 1")
        self._stepper = stepper = stepper_of(model)
        if shared and isinstance(stepper.config, EncoderDecoderConfig):
            raise UserError("this model reads a source, but a Scheduler only continues prompts; use a Session")
        self._codec, self._slots, self._max_waiting = codec, slots, waiting
        self._guess_length, self._draft = guess_length if stepper.extends else None, draft
        # Torch reads the complete prompts of a batch in its first step.
        self._step_tokens = self._max_chunk = step_tokens if stepper.joins else sys.maxsize
        self._store: Blocks | None = None  # keys and values of the engine
        self._prefixes: PrefixCache | None = None
        if stepper.joins and not isinstance(stepper.config, EncoderDecoderConfig):
            engine = cast("Engine", stepper)
            # A recurrent model processes a chunk token by token, and each token takes as long as a step for all rows.
            self._max_chunk = step_tokens if engine.extends else max(1, step_tokens // _MAX_SPECULATED)
            [self._blank] = engine.open(count=1).rows  # the state that every row starts in
            self._store = self._blank.store
            if shared:
                free = free_bytes(torch.device("cpu")) if cache_memory is None else None
                engine.limit_cache(cache_memory or (_DEFAULT_CACHE if free is None else free // _SHARE))
                if self._store.size > 0 and self._store.window is None and not len(self._blank.state):
                    from headway.generate.prefix_cache import PrefixCache  # imports LLVM, which torch does not need

                    self._prefixes = PrefixCache(self._store)
        self._lock = threading.Lock()  # guards the queue and the tickets
        self._queue = FairQueue()
        self._running: list[Sample] = []
        self._ticket = 0
        self._unstarted: set[int] = set()  # requests without a started sample
        self._cancelled: set[int] = set()
        self._counts = dict.fromkeys(SchedulerState._fields, 0)

    def submit(self, request: Request, keys: Sequence[int] | None = None, batch: RowBatch | None = None) -> int:
        """Queue a request and return its ticket. Raises UserError for an invalid request, FullError if the queue is
        full. `keys` of its samples and the `batch` of their rows may come from a larger call.
        """
        vocab_size = self._stepper.config.vocab_size
        request.check(self._stepper)
        request.sampling.check_vocab_size(vocab_size)
        if (top := max(request.top, request.prompt_top or 0)) > vocab_size:
            raise UserError(f"top is {top}, more than this model's {vocab_size} tokens; use a smaller number")
        prompt, context, samples = list(request.prompt), context_of(self._stepper), list[Sample]()
        for number, key in enumerate(keys or row_keys([prompt] * request.n)):
            sampler = Sampler(
                request.sampling, key, prompt, None if request.rule is None else request.rule(), request.top
            )
            sample = Sample(
                number, request.owner, prompt, sampler, self._codec, request.limits, context, request.prompt_top,
                request.generates, None if request.reader is None else request.reader(),
            )  # fmt: skip
            if number == 0 and self._store is not None and self._store.max_blocks is not None:
                needed = self._store.most_blocks(len(prompt) + sample.limit - 1, self._step_tokens)
                if needed > self._store.max_blocks:
                    raise UserError(
                        f"{len(prompt)} prompt tokens and {sample.limit} new ones need "
                        f"{needed * self._store.size:,} bytes of keys and values, but the cache has "
                        f"{self._store.max_blocks * self._store.size:,}; request fewer, or enlarge the cache"
                    )
            if self._guess_length is not None:
                sample.guess_length, sample.guesser = self._guess_length(), Lookup(sample.ids)
                if self._draft is not None:
                    sample.guesser = Draft(
                        self._draft, sample.ids, sample.limit, sampler, vocab_size, self._stepper.pool
                    )
            if batch is not None:
                sample.batch, sample.index = batch, batch.add()
            samples.append(sample)
        with self._lock:
            if len(self._unstarted) >= self._max_waiting:
                raise FullError(f"the queue is full ({self._max_waiting} requests); retry later")
            self._ticket += 1
            self._unstarted.add(self._ticket)
            for sample in samples:
                sample.ticket = self._ticket
                self._queue.add(sample)
            return self._ticket

    def cancel(self, ticket: int) -> None:
        """Drop a request; its blocks are freed at the next step."""
        with self._lock:
            self._queue.drop({ticket})
            self._unstarted.discard(ticket)
            self._cancelled.add(ticket)

    def state(self) -> SchedulerState:
        """The state after the last step, with the current number of waiting samples."""
        with self._lock:
            most_blocks = None if self._store is None else self._store.max_blocks
            return SchedulerState(**{**self._counts, "waiting": len(self._queue), "most_blocks": most_blocks})

    @torch.inference_mode()
    def step(self) -> list[Event]:
        """Run one step; return no events if no request is active."""
        with self._lock:
            if self._cancelled:
                for sample in [sample for sample in self._running if sample.ticket in self._cancelled]:
                    self._close(sample)
                self._queue.drop(self._cancelled)  # they may have been preempted in the meantime
                self._cancelled.clear()
            self._admit()
        started = time.perf_counter()
        planned = self._plan()
        # The samples that get a token, with the row of their logits: those whose prompt is then complete, their
        # followers, and those that are generating.
        sampling_rows, end = [], 0
        for sample, chunk in planned.items():
            end += chunk.wanted
            guessed = len(chunk.ids) - sample.unprocessed
            if guessed >= 0:
                sampling_rows.append((sample, end - 1 - guessed))
                if sample.prefilling:
                    sampling_rows += [(follower, end - 1) for follower in sample.followers]
        events = []
        if planned:
            samplers, rows = [sample.sampler for sample, _ in sampling_rows], [row for _, row in sampling_rows]
            if self._stepper.pool is None:
                logits = self._stepper.compute(list(planned.values()))
                sampled = sample_rows(logits, rows, samplers)
            else:
                from headway.generate.compiled_sampling import StepSampling  # imports LLVM, which torch does not need

                sampling = StepSampling(samplers, rows, self._stepper.config.vocab_size)
                logits = self._stepper.compute(list(planned.values()), sampling.batch)
                sampled = sampling.events()
            seconds = time.perf_counter() - started
            events = self._collect(planned, logits, sampling_rows, sampled, seconds)
        with self._lock:
            for sample, chunk in planned.items():
                self._queue.served[sample.owner] += len(chunk.ids)
            self._queue.forget({sample.owner for sample in self._running})
            self._counts["running"] = len(self._running)
            self._counts["blocks"] = 0 if self._store is None else self._store.used
        return events

    def _admit(self) -> None:
        """Start the next samples in fair order, while there are slots, and blocks for their prompts and for the running
        samples. A sample always fits if it is the only one.
        """
        store, was_idle, opened = self._store, not self._running, list[Sample]()
        capacity = 0  # positions in a row of a batch of torch
        while len(self._running) < self._slots and (sample := self._queue.next()) is not None:
            leader = next(
                (other for other in self._running if other.ticket == sample.ticket and other.prefilling), None
            )
            if sample.batch is not None:
                if not self._stepper.joins and self._running and self._running[0].batch is not sample.batch:
                    return
                sample.row, sample.cached_tokens = sample.batch.open(self._stepper, sample.index), 0
            elif not self._stepper.joins:
                capacity = max(capacity, sample.prompt_length + sample.limit)
                if not was_idle or (opened and (len(opened) + 1) * capacity > _MAX_BATCH_POSITIONS):
                    break
                opened.append(sample)
            elif leader is not None:
                leader.followers.append(sample)
            else:
                blocks: list[int] = []
                if self._prefixes is not None and not sample.scores_prompt:  # scores need the prompt's logits
                    blocks = self._prefixes.find(sample.owner, sample.ids)
                running = [other for other in self._running if other.row is not None]
                if store is not None and store.max_blocks is not None and store.size and running:
                    needed = store.most_blocks(len(sample.ids) + 1, self._step_tokens)
                    needed -= sum(not store.is_exclusive(block) for block in blocks)
                    for other in running:
                        held_blocks = sum(map(bool, other.row.blocks))
                        needed += max(0, store.most_blocks(len(other.ids) + 1, self._step_tokens) - held_blocks)
                    lacking = needed - store.available
                    if lacking > 0 and (self._prefixes is None or lacking > self._prefixes.evictable()):
                        return
                sample.row = self._blank.fork()
                if self._prefixes is not None:
                    sample.row.adopt_prefix(blocks)
                    sample.processed = len(blocks) * self._prefixes.block_tokens
                sample.cached_tokens = min(sample.cached_tokens, sample.processed)
                self._counts["prefix_tokens"] += sample.processed
            self._queue.start(sample)
            self._unstarted.discard(sample.ticket)
            self._running.append(sample)
        if opened:
            capacity = max(sample.prompt_length + sample.limit for sample in opened)
            for sample, row in zip(opened, self._stepper.open(count=len(opened), capacity=capacity).rows):
                sample.row, sample.cached_tokens = row, 0

    def _plan(self) -> dict[Sample, RowChunk]:
        """The chunks for the next step. If there are too few blocks, drop guesses, then evict prefixes, then preempt
        the youngest sample.
        """
        planned = self._chunks(guessing=self._guess_length is not None)
        if not self._stepper.lacking(list(planned.values())):
            return planned
        planned = self._chunks(guessing=False)
        while lacking := self._stepper.lacking(list(planned.values())):
            if self._prefixes is None or not self._prefixes.evict(lacking):
                youngest = max(
                    (sample for sample in self._running if sample.row is not None), key=lambda candidate: candidate.age
                )
                for sample in (youngest, *youngest.followers):
                    self._close(sample)
                    with self._lock:
                        self._queue.add(sample)
                youngest.followers = []
                self._counts["preemptions"] += 1
                planned = self._chunks(guessing=False)
        return planned

    def _chunks(self, guessing: bool) -> dict[Sample, RowChunk]:
        """One token per generating sample, and prompt tokens up to the limit per step."""
        planned: dict[Sample, RowChunk] = {}
        budget = self._step_tokens
        for sample in sorted(self._running, key=self._queue.priority):
            unprocessed = len(sample.ids) - sample.processed
            count = min(unprocessed, budget, self._max_chunk) if unprocessed > 1 else 1
            if sample.row is not None and count:
                ids = sample.ids[sample.processed : sample.processed + count]
                scores = sample.prompt_top is not None and sample.scores_prompt and self._stepper.joins
                wanted = count if scores else int(count == unprocessed)
                planned[sample] = RowChunk(sample.row, sample.processed, ids, wanted)
                budget -= count if unprocessed > 1 else 0
        if not guessing or (self._draft is not None and len(planned) > 1):
            return planned
        headroom = _MAX_SPECULATED - sum(len(chunk.ids) for chunk in planned.values())
        for sample, chunk in planned.items():
            if headroom > 0 and sample.unprocessed == 1 and sample.generated:
                assert sample.guess_length is not None
                assert sample.guesser is not None
                max_guesses = min(sample.guess_length.next_length(), sample.limit - sample.generated - 1, headroom)
                guesses = sample.guesser.guess(max_guesses) if max_guesses else []
                planned[sample] = chunk._replace(ids=[*chunk.ids, *guesses], wanted=1 + len(guesses))
                headroom -= len(guesses)
        return planned

    def _collect(
        self,
        planned: dict[Sample, RowChunk],
        logits: Float[Tensor, "N C"],
        sampling_rows: list[tuple[Sample, int]],
        chosen: list[Event],
        seconds: float,
    ) -> list[Event]:
        """Complete the events of the sampled tokens; if guesses were right, sample again from the following logits."""
        guesses: dict[Sample, list[int]] = {}  # guesses that are not checked yet
        guessed: dict[Sample, int] = {}
        self._score(planned, logits)
        for sample, chunk in planned.items():
            unprocessed = len(sample.ids) - sample.processed
            count = min(len(chunk.ids), unprocessed)
            sample.processed += count
            if sample.generated:
                guesses[sample] = list(chunk.ids[count:])
                guessed[sample] = len(chunk.ids) - count
            else:
                self._counts["prompt_tokens"] += count
                if count == unprocessed:  # cache the prompt, and let the followers continue from it
                    if self._prefixes is not None:
                        self._prefixes.insert(sample.owner, sample.ids, sample.row)
                    for follower in sample.followers:
                        follower.row, follower.processed = sample.row.fork(), sample.processed
                        follower.cached_tokens, follower.scores = sample.cached_tokens, sample.scores
                    sample.followers = []
        events = []
        while sampling_rows:
            continuing = []
            for (sample, row), event in zip(sampling_rows, chosen):
                self._complete(sample, event)
                events.append(event)
                pending = guesses.get(sample)
                if pending and event.reason is None and pending[0] == event.id:
                    sample.processed += 1
                    continuing.append((sample, row + 1))
                    del pending[0]
            sampling_rows = continuing
            if continuing:
                rows = [row for _, row in continuing]
                chosen = sample_rows(logits, rows, [sample.sampler for sample, _ in continuing], self._stepper.pool)
        for sample, count in guessed.items():
            if sample.guess_length is not None:
                accepted = count - len(guesses[sample])
                sample.guess_length.update(count, accepted, seconds)
                self._counts["guessed"] += count
                self._counts["accepted"] += accepted
        for sample in [sample for sample in self._running if sample.done]:
            self._close(sample)
        return events

    def _score(self, planned: dict[Sample, RowChunk], logits: Float[Tensor, "N C"]) -> None:
        """Score this step's prompt tokens for requests that want scores."""
        row = 0
        for sample, chunk in planned.items():
            if sample.prompt_top is not None and sample.scores_prompt:
                if isinstance(self._stepper, TorchStepper):
                    model = cast(Transformer, self._stepper.model)
                    sample.scores = score_prompt(model, sample.ids, sample.prompt_top)
                    continue
                from headway.generate.compiled_sampling import score_tokens  # imports LLVM, which torch does not need

                first = max(sample.processed, len(sample.scores))  # skip tokens that were scored before a preemption
                ids = sample.ids[first + 1 : sample.processed + 1 + len(chunk.ids)]
                start = row + first - sample.processed
                if ids:
                    rows, pool = range(start, start + len(ids)), cast("Pool", self._stepper.pool)
                    sample.scores += score_tokens(logits, rows, ids, sample.prompt_top, pool)
            row += chunk.wanted

    def _complete(self, sample: Sample, event: Event) -> None:
        """Add the text and everything else about the sample to the event of its sampled token."""
        event.ticket, event.sequence, event.cached_tokens = sample.ticket, sample.number, sample.cached_tokens
        event.scores, sample.scores = sample.scores, []
        try:
            for score in event.scores:
                check_not_nan(score.logprob)
            if not sample.generates or (event.id is None and event.error is None):
                event.id = event.error = None
                sample.finish(event, "stop" if sample.generates else "length")
            elif event.error is not None:
                raise event.error
            else:
                check_not_nan(event.logprob)
                sample.push(event)
        except UserError as error:
            event.id, event.reason, event.error, event.scores, event.cached_tokens = None, "stop", error, (), 0
            sample.done = True
        if event.id is None:
            event.logprob, event.top = 0.0, ()
        else:
            self._counts["written_tokens"] += 1

    def _close(self, sample: Sample) -> None:
        """Stop running it. Its processed tokens stay cached as long as there is memory."""
        self._running.remove(sample)
        if sample.row is not None:
            if self._prefixes is not None:
                self._prefixes.insert(sample.owner, sample.ids[: sample.processed], sample.row)
            sample.row.close()
        sample.row, sample.processed = None, 0
