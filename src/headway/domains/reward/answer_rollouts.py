"""Examples for learning from rewards: the current model answers prompts, and the answers get rewards."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from headway.codecs import TokenizerCodec
from headway.config import override
from headway.data.splits import Splits, split_by_text
from headway.domains.reward.prompt_files import PromptEncoder, PromptTable
from headway.domains.reward.sampled_answers import AnswerSampler, Rollout, SampledAnswer
from headway.errors import UserError, logger
from headway.formats.native import load_tensors, named_tensors
from headway.formats.tensorfile import read_tensors, write_tensors
from headway.generate.prompts import device_of
from headway.learn import FULL_SHARD, Recipe, Shard
from headway.learn.examples import Batch, Contents, FixedSizeBatches, OnPolicyExamples, SplitExamples, spread_evenly
from headway.learn.fine_tuning import initial_model, keep_vocabulary
from headway.learn.objectives.policy_gradient import Method, group_advantages
from headway.learn.run import RunDirectory
from headway.nn.models import ModelConfig, TransformerConfig, build
from headway.nn.parts.dropout import Dropout
from headway.rewards.scoring import Scorer

FILE = "reference.safetensors"
_CURVE = "rollouts.safetensors"
TOLERANCE = 1e-5  # of the log probabilities of sampler and trainer, in nats
_SAMPLING_STREAM, _ORDER_STREAM = 17, 18  # random streams, independent of others with the same seed
_MAX_REPORTED = 5  # errors of the reward in the log
_MAX_ENDLESS = 0.5  # share of answers without an end above which the log reports them
_LOG = logger(__name__)


class RolloutSettings(NamedTuple):
    """Prompts per rollout, answers per prompt, epochs over them, the weight of the KL penalty, and how rewards become
    advantages.
    """

    prompts: int
    group: int
    epochs: int
    kl: float
    method: Method


class ScoredAnswers(NamedTuple):
    """Answers to N prompts, K for each in order, with their rewards."""

    answers: Sequence[SampledAnswer]
    rewards: Float[np.ndarray, "N K"]


class RewardedPrompts(SplitExamples, OnPolicyExamples):
    """Prompts, and the answers of the model in training with their rewards. Rollout r is a function of the weights, the
    seed and r; batch k has answers of rollout k // `rollout_batches`.
    """

    default_split = "all"

    def __init__(
        self,
        recipe: Recipe,
        settings: RolloutSettings,
        table: PromptTable,
        encoder: PromptEncoder,
        sampler: AnswerSampler,
        scorer: Scorer,
        workspace: Path,
    ) -> None:
        self.recipe, self.settings, self.table = recipe, settings, table
        self.encoder, self.sampler, self.scorer, self.workspace = encoder, sampler, scorer, workspace
        self.codec: TokenizerCodec = encoder.codec
        self.seed, self.batch_size = recipe.train.seed, recipe.train.rows(1)
        indices = split_by_text([row["prompt"] for row in table.rows], table.named_splits, cast(Any, recipe.task).split)
        self.splits = Splits(indices, np.arange(len(table.rows)), "prompts")
        self.prompts = [encoder.encode(row["prompt"]) for row in table.rows]
        self._config = recipe.model
        self.start_exploring(nn.Identity())

    def start_exploring(self, model: nn.Module) -> None:
        for module in model.modules():
            if isinstance(module, Dropout):  # answers are learned from with the probabilities that sampled them
                module.p = 0.0
        self.model, self.measuring = model, False
        self.rollout: Rollout | None = None
        self.curve: list[tuple[float, float, float]] = []  # for each rollout: mean reward, equal groups, mean tokens
        self.largest_difference = 0.0  # of the log probabilities of sampler and trainer
        self._reference: nn.Module | None = None
        self._errors: set[str] = set()
        self._had_equal = self._had_endless = False

    @property
    def rollout_batches(self) -> int:
        settings = self.settings
        return settings.epochs * settings.prompts * settings.group // self.batch_size

    def contents(self) -> Contents:
        rows = [json.dumps(row, sort_keys=True) for row in self.table.rows]
        return {"prompts": ([row["prompt"] for row in self.table.rows],), "rows": (rows,)}

    def preview(self, count: int) -> list[str]:
        rows = spread_evenly(self.splits.all_indices, count).tolist()
        return [json.dumps(self.table.rows[row], ensure_ascii=False) for row in rows]

    def count(self, split: str) -> int:
        return len(self.splits.rows(split))

    def adapt(self, model: ModelConfig) -> ModelConfig:
        """`model` with the prompts' vocabulary. Raises UserError for a split without prompts, and for a prompt that
        leaves no room for an answer.
        """
        for split in ("train", "validation"):
            self.splits.rows(split)
        for prompt, location in zip(self.prompts, self.table.locations):
            if model.context is not None and len(prompt) >= model.context:
                raise UserError(
                    f"{location} has a prompt of {len(prompt):,} tokens, but the model's context of {model.context:,} "
                    "has to fit the answer, too; shorten it"
                )
        adapted = override(cast(TransformerConfig, model), {"vocab_size": self.codec.vocab_size})
        self._config = cast(TransformerConfig, keep_vocabulary(adapted, model))
        return self._config

    def answer(
        self, model: nn.Module, rows: Sequence[int], answers: int, seed: int, may_fail: bool = False
    ) -> ScoredAnswers:
        """Sample this many answers to each prompt and compute their rewards. An answer whose reward fails gets 0, and
        the log reports it, unless the model is a random one. UserError if the reward fails for all answers, unless it
        `may_fail`.
        """
        repeated = [row for row in rows for _ in range(answers)]
        sampled = self.sampler.sample(model, [self.prompts[row] for row in repeated], seed)
        triples = [(self.table.rows[r]["prompt"], a.text, self.table.rows[r]) for r, a in zip(repeated, sampled)]
        rewards = self.scorer.score(triples)
        errors = {
            reward: number for number, reward in enumerate(rewards) if isinstance(reward, str) and not self.measuring
        }
        if errors and not may_fail and not any(isinstance(reward, float) for reward in rewards):
            raise UserError(
                f"the reward {self.scorer.name!r} fails for all {len(rewards):,} answers ({next(iter(errors))}); "
                "correct it, and continue the run with --resume"
            )
        for error, number in errors.items():
            if error not in self._errors and len(self._errors) < _MAX_REPORTED:
                prompt, output, _ = triples[number]
                _LOG.warning(
                    "the reward %r fails (%s) for the answer %.80r to %.80r; such answers get 0",
                    self.scorer.name, error, output, prompt,
                )  # fmt: skip
            self._errors.add(error)
        values = np.array([reward if isinstance(reward, float) else 0.0 for reward in rewards])
        return ScoredAnswers(sampled, values.reshape(len(rows), answers))

    def batches(self, split: str, shard: Shard = FULL_SHARD, start: int = 0) -> Iterator[Batch]:
        """Training batches, for one process. UserError for other splits, which have no batches."""
        if split != "train":
            raise UserError(f"the {split} split of prompts is evaluated by its rewards and has no batches; use train")
        total = self.settings.prompts * self.settings.group
        for number in count(start):
            rollout, batch = divmod(number, self.rollout_batches)
            if batch == 0:
                self.rollout = self.explore(rollout)
            assert self.rollout is not None  # restored from the checkpoint
            epoch, index = divmod(batch, total // self.batch_size)
            order = np.random.default_rng([_ORDER_STREAM, self.seed, rollout, epoch]).permutation(total)
            chosen = order[index * self.batch_size : (index + 1) * self.batch_size]
            yield self.rollout.batch(torch.from_numpy(np.sort(chosen)))

    def explore(self, number: int) -> Rollout:
        """Rollout `number`: answers to the next prompts, with their advantages and log probabilities."""
        settings, training = self.settings, self.splits.rows("train")
        order = FixedSizeBatches(len(training), settings.prompts, self.seed).endless(FULL_SHARD, number)
        rows = training[next(order)[1]].tolist()
        rng = np.random.default_rng([_SAMPLING_STREAM, self.seed, number])
        scored = self.answer(self.model, rows, settings.group, int(rng.integers(1 << 63)))
        advantages = group_advantages(scored.rewards, settings.method)
        values = (torch.from_numpy(array.reshape(-1)).float() for array in (advantages, scored.rewards))
        prompts = [self.prompts[row] for row in rows for _ in range(settings.group)]
        rollout = Rollout.of(prompts, scored.answers, *values)
        log_probs = rollout.scored_by(self.model, self.batch_size)
        self._report(scored, float((log_probs - rollout.log_probabilities).abs().max()))
        rollout = rollout._replace(log_probabilities=log_probs)
        if settings.kl:
            self._reference = self._reference or self.load_reference()
            rollout = rollout._replace(reference=rollout.scored_by(self._reference, self.batch_size))
        equal = float((np.ptp(scored.rewards, axis=1) == 0).mean())
        tokens = float(np.mean([len(answer.ids) for answer in scored.answers]))
        self.curve.append((float(scored.rewards.mean()), equal, tokens))
        return rollout

    def _report(self, scored: ScoredAnswers, difference: float) -> None:
        """Log what is wrong with a rollout, once."""
        if self.measuring:
            return
        if difference > max(TOLERANCE, 2 * self.largest_difference):
            _LOG.warning(
                "log probabilities of sampler and trainer differ by %.1e, more than %.0e; the trainer's are used",
                difference, TOLERANCE,
            )  # fmt: skip
        self.largest_difference = max(self.largest_difference, difference)
        if not self._had_equal and not np.ptp(scored.rewards, axis=1).any():
            self._had_equal = True
            _LOG.warning(
                "all answers to each prompt of a rollout have the same reward (mean %.3g), so it teaches nothing; "
                "use prompts that the model answers correctly now and then, neither never nor always, or raise "
                "task.group",
                scored.rewards.mean(),
            )
        endless = np.mean([answer.finish_reason == "length" for answer in scored.answers])
        if not self._had_endless and endless > _MAX_ENDLESS:
            self._had_endless = True
            _LOG.warning(
                "%.0f %% of the answers do not end within %d tokens; set task.stop to the string that ends an answer, "
                "or raise task.max_new_tokens",
                100 * endless, self.sampler.limits.max_new_tokens,
            )  # fmt: skip

    def exploration_state(self) -> dict[str, Tensor]:
        difference = torch.tensor([self.largest_difference], dtype=torch.float64)
        state = {"curve": torch.tensor(self.curve, dtype=torch.float64), "difference": difference}
        if self.rollout is not None:
            state |= {name: tensor for name, tensor in self.rollout._asdict().items() if tensor is not None}
        return {name: tensor for name, tensor in state.items() if tensor.numel()}  # files cannot store empty tensors

    def load_exploration_state(self, state: Mapping[str, Tensor]) -> None:
        self.curve = [tuple(line) for line in state["curve"].tolist()] if "curve" in state else []  # type: ignore[misc]
        self.largest_difference = float(state["difference"]) if "difference" in state else 0.0
        if "ids" in state:
            fields = {name: state[name].clone() for name in Rollout._fields if name in state}
            self.rollout = Rollout(**fields)

    def complete_curve(self) -> Float[np.ndarray, "R 3"]:
        """The curve of this process or, if it has not trained, of the run."""
        path = self.workspace / _CURVE
        if not self.curve and path.is_file():
            return read_tensors(path, "remove it")[0]["curve"].numpy()
        return np.array(self.curve).reshape(-1, 3)

    def load_reference(self) -> nn.Module:
        """The start model, from the run if it has it."""
        path = self.workspace / FILE
        if path.is_file():
            model = build(self._config, self.seed)
            load_tensors(model, read_tensors(path, "start the run again")[0], path)
        else:
            model = self.start_model()
        return model.eval().requires_grad_(False).to(device_of(self.model))

    def start_model(self) -> nn.Module:
        """The model before the first step: its start or, for an adapter, the frozen weights that the run has."""
        recipe = replace(self.recipe, model=self._config)
        return initial_model(recipe, (), RunDirectory(self.workspace).base, started=False, saves_base=False)

    def save(self, directory: Path) -> None:
        """Also save the curve for later reports, and the start model's weights for the KL penalty, so that the run no
        longer needs its start. The run of an adapter has them anyway.
        """
        super().save(directory)
        if self.curve:
            curve = torch.tensor(self.curve, dtype=torch.float64)
            write_tensors(directory / _CURVE, {"curve": curve}, {"format": "headway"})
        if self.settings.kl and self.recipe.adapter is None and not (directory / FILE).is_file():
            write_tensors(directory / FILE, dict(named_tensors(self.start_model())), {"format": "headway"})
        self.workspace = directory

    def close(self) -> None:
        self.scorer.close()
