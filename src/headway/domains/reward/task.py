"""Learning from rewards: the task's settings, and evaluation by sampled answers to held-out prompts."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from torch import nn

from headway.codecs import TokenizerCodec, load_codec
from headway.codecs.tokenizer import FILE as TOKENIZER
from headway.config import from_dict, setting
from headway.config_kinds import deferred_check, register
from headway.data import SplitConfig
from headway.domains.reward.answer_rollouts import RewardedPrompts, RolloutSettings
from headway.domains.reward.prompt_files import PromptEncoder, read_prompts
from headway.domains.reward.sampled_answers import AnswerSampler
from headway.errors import ConfigError, UserError
from headway.formats.usage import read_usage
from headway.learn import Recipe, Task, TaskConfig
from headway.learn.adapters import LoRAConfig
from headway.learn.examples import spread_evenly
from headway.learn.objectives.policy_gradient import Method, PolicyGradient
from headway.learn.recipe import batch_size_of
from headway.learn.report import Picture, line_chart
from headway.learn.run import RunDirectory, read_metrics
from headway.metrics import bootstrap_mean
from headway.nn.models import TransformerConfig
from headway.rewards import REWARDS, reward_function
from headway.rewards.scoring import Scorer

_EVALUATION_SEED = 3  # of the answers to held-out prompts, which all evaluations sample with the same random numbers
_MAX_SECONDS = 3600  # for the reward of an answer
_POINTS = 200  # maximum points of a curve


@register("reward")
@deferred_check
@dataclass(frozen=True)
class RewardConfig(TaskConfig):
    """Learn from the rewards of sampled answers.

    In each rollout the model answers `prompts` prompts, `group` times each, at temperature 1. It learns from these
    answers for `epochs` epochs in batches of train.batch_size answers. `method` is GRPO (Shao et al. 2024), Dr. GRPO
    (Liu et al. 2025) or REINFORCE with the mean reward of the other answers as its baseline. `clip` bounds how much a
    token's probability changes in a rollout; REINFORCE does not clip and takes one step per rollout. `kl` weights the
    KL divergence from the start model; 0 needs no copy of it.

    `reward` is the name of a reward, or module:function of your own, which is called with the prompt, the answer and
    the prompt's line of the data. Each answer has `seconds`. An answer ends with the model's end token or with `stop`,
    after `max_new_tokens` at the latest. An evaluation samples `answers` answers to each held-out prompt; an answer
    passes if its reward is at least `passing`.
    """

    changeable: ClassVar[tuple[str, ...]] = ("seconds",)

    reward: str | None = None  # name of the reward, or module:function
    method: Method = "grpo"  # grpo, dr-grpo or reinforce
    prompts: int = 16  # prompts per rollout
    group: int = 8  # answers per prompt
    epochs: int = 1  # epochs over the answers of a rollout
    clip: float = 0.2
    kl: float = 0.0  # weight of the KL divergence from the start model
    max_new_tokens: int = 64  # maximum tokens of an answer
    stop: str | None = None  # string that ends an answer
    pattern: str | None = None  # regular expression for prompts without their own
    schema: str | None = None  # JSON schema, as text, for prompts without their own
    seconds: float = 5.0  # time limit for the reward of an answer
    answers: int = 4  # answers per held-out prompt
    passing: float = 1.0  # minimum reward of an answer that passes
    split: SplitConfig = SplitConfig(validation=0.1, test=0.1)  # held-out shares

    def __post_init__(self) -> None:
        for name, least in (("prompts", 1), ("group", 2), ("epochs", 1), ("max_new_tokens", 1), ("answers", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"task.{name} is {getattr(self, name)}; choose {least} or more")
        if not self.clip > 0:
            raise ConfigError(f"task.clip is {self.clip}; choose a number above 0")
        if not 0 < self.seconds <= _MAX_SECONDS:
            raise ConfigError(f"task.seconds is {self.seconds}; choose a number above 0 and up to {_MAX_SECONDS}")
        if not 0 <= self.kl < math.inf:
            raise ConfigError(f"task.kl is {self.kl}; choose 0 or more")
        if self.stop == "":
            raise ConfigError("task.stop is empty; choose a string, or none")

    def open(self, recipe: Recipe, data: Sequence[Path] | None, workspace: Path) -> Task:
        """Raises UserError for a reward that cannot be used, for prompts that it cannot check, and for settings that do
        not fit.
        """
        if recipe.start is None:
            raise UserError("rewards improve a model that can already answer; choose one with --from")
        model = recipe.model
        if not isinstance(model, TransformerConfig) or not model.stack.causal or "vocabulary" not in model.heads:
            raise ConfigError("rewards need a model that generates text; choose a decoder such as gpt2 or Llama")
        if isinstance(recipe.adapter, LoRAConfig) and recipe.adapter.dropout:
            raise ConfigError(
                f"adapter.dropout is {recipe.adapter.dropout}, but answers are learned from without dropout; set "
                "adapter.dropout=0"
            )
        for name, reader in (("pattern", "regex"), ("schema", "json-schema")):
            if getattr(self, name) is not None and self.reward in REWARDS and self.reward != reader:
                raise ConfigError(
                    f"task.{name} is set, but the reward {self.reward!r} does not use it; remove it, or choose {reader}"
                )
        if self.method == "reinforce" and self.clip != RewardConfig.clip:
            raise ConfigError(f"task.clip is {self.clip}, but reinforce does not clip; remove it")
        self.check_batches(recipe)
        scorer = Scorer(str(self.reward), reward_function(self.reward), self.seconds)
        shared = {"pattern": self.pattern, "schema": self.schema}
        common = {name: setting for name, setting in shared.items() if setting is not None}
        table = read_prompts(recipe.files(data), scorer.name, common)
        if not table.rows:
            raise UserError("the data have no prompts; add a .jsonl with prompt, or a .txt with one prompt per line")
        codec = load_codec(workspace) if (workspace / TOKENIZER).exists() else None
        if not isinstance(codec, TokenizerCodec):
            raise UserError(f"{recipe.start} has no text tokenizer; choose a model with one")
        scorer.start()
        encoder = PromptEncoder(codec, read_usage(workspace))
        stop = None if self.stop is None else self.stop.replace("\\n", "\n")
        sampler = AnswerSampler(codec, encoder.limits(self.max_new_tokens, stop))
        settings = RolloutSettings(self.prompts, self.group, self.epochs, self.kl, self.method)
        examples = RewardedPrompts(recipe, settings, table, encoder, sampler, scorer, workspace)
        return Task(examples, RewardedAnswers(self))

    def check_batches(self, recipe: Recipe) -> None:
        """Raise ConfigError unless the answers of a rollout make complete steps."""
        accumulate, total = recipe.train.accumulate, self.prompts * self.group
        rows = batch_size_of(recipe) * accumulate
        if total % rows:
            raise ConfigError(
                f"steps of {rows} answers do not divide the {total:,} answers of a rollout "
                f"(task.prompts={self.prompts} x task.group={self.group}); set train.batch_size so that they do"
            )
        steps = self.epochs * total // rows
        if self.method == "reinforce" and steps > 1:
            raise ConfigError(
                f"task.method=reinforce takes one step per rollout of {total:,} answers, not {steps}; set "
                f"train.batch_size={total // accumulate} and task.epochs=1"
            )


@setting(RewardConfig, "schema")
def _schema(config: RewardConfig, value: Any) -> RewardConfig:
    """Accept a JSON schema, or its text."""
    try:
        text = json.dumps(value) if isinstance(value, (dict, bool)) else value
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"task.schema is not JSON ({error}); correct it") from None
    return replace(config, schema=from_dict(str | None, text, "task.schema"))  # type: ignore[arg-type]


class RewardedAnswers(PolicyGradient[RewardedPrompts]):
    """A policy gradient, evaluated by the rewards of sampled answers to held-out prompts."""

    goal = "reward"
    goal_better: Literal["min", "max"] = "max"
    evaluates_start = True

    def __init__(self, config: RewardConfig) -> None:
        super().__init__(config.method, config.clip, config.kl, config.max_new_tokens)
        self.config = config

    def evaluate(
        self, model: nn.Module, examples: RewardedPrompts, split: str, limit: int | None = None
    ) -> dict[str, Any]:
        """The mean reward of sampled answers; how many answers pass, and for how many prompts at least one of its
        answers does (pass@1 and pass@k); tokens per answer; and the shares of answers that do not end and of prompts
        whose answers all have the same reward. Training adds the mean reward of its last rollout and the largest
        difference between the log probabilities of sampler and trainer.
        """
        rows = spread_evenly(examples.splits.rows(split), limit).tolist()
        scored = examples.answer(model, rows, self.config.answers, _EVALUATION_SEED)
        rewards, passed = scored.rewards, scored.rewards >= self.config.passing
        scores: dict[str, Any] = {"reward": float(rewards.mean()), "reward_interval": bootstrap_mean(rewards.mean(1))}
        ks = {"pass_at_1": passed.mean(1), f"pass_at_{self.config.answers}": passed.any(1).astype(float)}
        for name, values in ks.items():
            scores |= {name: float(values.mean()), f"{name}_interval": bootstrap_mean(values)}
        scores |= {
            "answer_tokens": float(np.mean([len(answer.ids) for answer in scored.answers])),
            "endless_rate": float(np.mean([answer.finish_reason == "length" for answer in scored.answers])),
            "equal_rewards_rate": float((np.ptp(rewards, axis=1) == 0).mean()),
            "samples": len(rows),
        }
        if split == "validation" and examples.curve:
            scores |= {"training_reward": examples.curve[-1][0], "sampler_difference": examples.largest_difference}
        return scores

    def samples(self, model: nn.Module, examples: RewardedPrompts, count: int) -> list[dict[str, str]]:
        """Held-out prompts with a sampled answer and its reward: rewards can rise for the wrong reasons."""
        rows = spread_evenly(examples.splits.rows(examples.final_split), count).tolist()
        scored = examples.answer(model, rows, 1, _EVALUATION_SEED, may_fail=True)
        return [
            {"prompt": examples.table.rows[row]["prompt"], "output": answer.text, "reward": f"{reward:.3g}"}
            for row, answer, reward in zip(rows, scored.answers, scored.rewards[:, 0].tolist())
        ]

    def remark(self, model: nn.Module, examples: RewardedPrompts) -> str:
        """How often validation answers passed before training, and with the best weights."""
        lines = read_metrics(RunDirectory(examples.workspace).metrics)
        evaluations = [line for line in lines if line.get("split") == "validation" and "reward" in line]
        if len(evaluations) < 2:
            return ""
        best = max(evaluations, key=lambda line: line["reward"])
        k, first = f"pass_at_{self.config.answers}", evaluations[0]
        before, after = (f"{100 * line['pass_at_1']:.1f} % of answers passed, and {100 * line[k]:.1f} % of prompts in "
                         f"{self.config.answers} answers" for line in (first, best))  # fmt: skip
        if best is first:
            return f"training did not improve the start model on the validation split: {before}"
        return f"validation before training: {before}; with the best weights: {after}"

    def pictures(self, model: nn.Module, examples: RewardedPrompts) -> list[Picture]:
        """The rewards of training answers, and the share of prompts whose answers all had the same reward."""
        lines = examples.complete_curve()
        groups = np.array_split(np.arange(len(lines)), min(_POINTS, max(1, len(lines))))
        if len(lines) < 2:
            return []
        curves = [[(float(g[-1] + 1), float(lines[g, column].mean())) for g in groups] for column in range(3)]
        rewards = line_chart({"reward": curves[0], "equal rewards": curves[1]}, "rollout", "mean")
        tokens = line_chart({"tokens": curves[2]}, "rollout", "tokens per answer")
        caption = "of sampled answers; prompts whose answers have equal rewards teach nothing"
        return [
            Picture("Training rewards", caption, rewards),
            Picture("Length of answers", "training", tokens),
        ]
