"""Answers that the current model samples, with the compiled engine if it supports the model, and their batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from headway.codecs import TokenizerCodec
from headway.data import IGNORE_INDEX
from headway.engine import CannotLowerError, Engine
from headway.errors import logger
from headway.generate import Limits, Sampling, Session
from headway.generate.prompts import Ids, device_of
from headway.layout import Layout
from headway.learn.examples import Batch
from headway.learn.objectives.policy_gradient import PolicyTargets, label_log_probabilities
from headway.nn.models import Transformer, evaluation_mode

_LOG = logger(__name__)


class SampledAnswer(NamedTuple):
    """One sampled answer: its ids with the end token, if it has one, their log probabilities, and its text."""

    ids: list[int]
    log_probabilities: list[float]
    text: str
    finish_reason: Literal["stop", "length"]


class AnswerSampler:
    """Samples answers at temperature 1, as a pure function of weights, prompts and seed."""

    def __init__(self, codec: TokenizerCodec, limits: Limits) -> None:
        self.codec, self.limits = codec, limits
        self.engine: Engine | None = None  # None: PyTorch samples
        self._model: nn.Module | None = None

    def sample(self, model: nn.Module, prompts: Sequence[Ids], seed: int) -> list[SampledAnswer]:
        """An answer to each prompt. Equal prompts get different answers."""
        if model is not self._model:
            self._model, self.engine = model, None
            try:
                self.engine = Engine(cast(Transformer, model))
            except CannotLowerError as error:
                _LOG.info("the CPU engine has no instruction for %s, so PyTorch samples the answers", error)
        elif self.engine is not None:
            self.engine.refresh()
        session = Session(cast(Transformer, model) if self.engine is None else self.engine, self.codec)
        tokens: list[list[tuple[int, float]]] = [[] for _ in prompts]
        answers: dict[int, SampledAnswer] = {}
        sampling = Sampling(temperature=1.0, seed=seed)
        for event in session.events(prompts, sampling, self.limits):
            token = event.end if event.id is None else (event.id, event.logprob)
            if token is not None:
                tokens[event.sequence].append(token)
            if event.completion is not None:
                ids, log_probs = map(list, zip(*tokens[event.sequence]))
                completion = event.completion
                answers[event.sequence] = SampledAnswer(ids, log_probs, completion.text, completion.finish_reason)
        return [answers[index] for index in range(len(prompts))]


class Rollout(NamedTuple):
    """N answers after their prompts, to learn from. Row n has `lengths[n]` ids, of which the first `starts[n]` are the
    prompt. The log probabilities are those of the next token, under the model that sampled and under the start model.
    """

    ids: Int[Tensor, "N T"]
    starts: Int[Tensor, "N"]
    lengths: Int[Tensor, "N"]
    log_probabilities: Float[Tensor, "N T"]
    advantages: Float[Tensor, "N"]
    rewards: Float[Tensor, "N"]
    reference: Float[Tensor, "N T"] | None = None

    @classmethod
    def of(
        cls,
        prompts: Sequence[Ids],
        answers: Sequence[SampledAnswer],
        advantages: Float[Tensor, "N"],
        rewards: Float[Tensor, "N"],
    ) -> Rollout:
        """With the sampler's log probabilities and without a reference."""
        rows = [[*prompt, *answer.ids] for prompt, answer in zip(prompts, answers)]
        ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
        log_probs = torch.zeros(ids.shape)
        for number, (row, prompt, answer) in enumerate(zip(rows, prompts, answers)):
            ids[number, : len(row)] = torch.tensor(row)
            log_probs[number, len(prompt) - 1 : len(row) - 1] = torch.tensor(answer.log_probabilities)
        starts, lengths = ([len(row) for row in part] for part in (prompts, rows))
        return cls(ids, torch.tensor(starts), torch.tensor(lengths), log_probs, advantages, rewards)

    def batch(self, rows: Int[Tensor, "B"]) -> Batch:
        """These answers; the loss is divided by their number."""
        lengths = self.lengths[rows] - 1  # the last token is only predicted
        layout = Layout.padded(lengths.tolist())
        chosen, columns = self.ids[rows, : layout.length + 1], torch.arange(layout.length)
        is_label = (columns >= self.starts[rows, None] - 1) & (columns < lengths[:, None])
        labels = chosen[:, 1:].masked_fill(~is_label, IGNORE_INDEX)
        log_probs = self.log_probabilities[rows, : layout.length]
        reference = None if self.reference is None else self.reference[rows, : layout.length]
        targets = PolicyTargets(labels, log_probs, reference, self.advantages[rows], self.rewards[rows])
        return Batch((chosen[:, :-1], layout), targets, len(rows), labels.numel())

    @torch.no_grad()
    def scored_by(self, model: nn.Module, batch_size: int) -> Float[Tensor, "N T"]:
        """The log probabilities of the answers under a model, in batches of `batch_size` rows."""
        out = torch.zeros(self.log_probabilities.shape)
        with evaluation_mode(model):
            for rows in torch.arange(len(self.ids)).split(batch_size):
                batch = self.batch(rows).to(device_of(model))
                values = label_log_probabilities(model, model(*batch.inputs).x, batch)
                out[rows, : values.shape[1]] = values.float().cpu()
        return out
