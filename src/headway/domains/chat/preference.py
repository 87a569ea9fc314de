"""Preference tuning: make the better of two answers more likely than before, relative to the other; scores of answers
to held-out prompts.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import torch
from jaxtyping import Float, Int
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn

from headway.config import to_dict
from headway.config_kinds import register
from headway.data import IGNORE_INDEX, PairBatches
from headway.data.array_store import ColumnWriter, cache_key, cache_root, open_or_build, read_column
from headway.data.token_store import ChatCache
from headway.domains.chat.chat_samples import PREFERENCES, ChatData
from headway.domains.chat.preference_losses import PAIR_LOSSES, PairLoss, PairLossName
from headway.domains.chat.task import (
    EVAL_BATCH_TOKENS,
    ChatConfig,
    Conversations,
    completions,
    replies,
)
from headway.errors import ConfigError, logger
from headway.formats.native import named_tensors
from headway.formats.tensorfile import read_tensors, write_tensors
from headway.formats.usage import read_usage
from headway.layout import Layout, to_device
from headway.learn import Recipe, Task
from headway.learn.examples import Batch, LengthBatches, RngKey, TrainingOrder, spread_evenly
from headway.learn.fine_tuning import reference_model
from headway.learn.objective import Objective, evaluate_batches
from headway.learn.parallel.evaluation import on_main_process
from headway.learn.recipe import batch_tokens_of
from headway.metrics import wilson_interval
from headway.nn.models import Loss, ModelConfig, VocabularyHead

_MAX_PROMPTS = 8  # prompts per evaluation
# An answer is endless from this many times the longest chosen one, plus this many tokens.
_LENGTH_FACTOR, _EXTRA_TOKENS = 2, 16
_MAX_BAD_SHARE = 0.5  # share of bad answers above which a model is unusable
_MAX_PERPLEXITY_CHANGE = 1.1  # maximum perplexity of the chosen answers, as a multiple of that at the start
_MIN_ANSWERS = 3  # minimum answers to conclude that they are all equal


def answer_scores(model: nn.Module, chats: Conversations, rows: np.ndarray) -> dict[str, float]:
    """Score greedy answers to at most 8 of the prompts: the share that resembles the chosen answer more than the
    rejected one (`win_rate`; a tie counts half), the shares that are empty or do not end, and the share of the most
    frequent answer unless the chosen ones repeat too.
    """
    sampled_rows = spread_evenly(rows, _MAX_PROMPTS).tolist()
    endings = [(chats.reply(row, 0), chats.reply(row, 1)) for row in sampled_rows]
    max_tokens = max(len(chats.codec.encode(text)) for pair in endings for text in pair)
    generated = list(completions(model, chats, sampled_rows, _LENGTH_FACTOR * max_tokens + _EXTRA_TOKENS))
    answers = [completion.text.strip() for completion in generated]
    chosen_texts, wins = [pair[0] for pair in endings], 0.0
    for text, pair in zip(answers, endings):
        chosen, rejected = (SequenceMatcher(None, text, ending, autojunk=False).ratio() for ending in pair)
        wins += 0.5 if chosen == rejected else chosen > rejected
    return {
        "win_rate": wins / len(answers),
        "empty_rate": sum(not text for text in answers) / len(answers),
        "endless_rate": sum(completion.finish_reason == "length" for completion in generated) / len(answers),
        "equal_rate": _top_share(answers) if _top_share(chosen_texts) <= _MAX_BAD_SHARE else 0.0,
    }


def failure_reason(scores: Mapping[str, Any], best: Mapping[str, Any] | None) -> str | None:
    """Describe what is wrong with a model's answers, given its scores, unless the best model so far has the same
    fault.
    """
    faults = {"empty_rate": "empty", "endless_rate": "endless", "equal_rate": "the same for different prompts"}
    for name, description in faults.items():
        if scores[name] > _MAX_BAD_SHARE and (best is None or best.get(name, 0.0) <= _MAX_BAD_SHARE):
            return f"{scores[name]:.0%} of its answers to held-out prompts are {description}"
    name, reference, time = "perplexity_change", 1.0, "at the start"
    if name not in scores:  # there is no reference model; the start is evaluated first
        name, reference, time = "perplexity", (best or scores)["perplexity"], f"at step {(best or {}).get('step', 0):,}"
    change = scores[name] / reference
    if change > _MAX_PERPLEXITY_CHANGE:
        return f"the perplexity of the chosen answers is {change:.3g} times what it was {time}"
    return None


def _top_share(texts: Sequence[str]) -> float:
    """The share of the most frequent answer; 0 if there are too few answers."""
    if len(texts) < _MIN_ANSWERS:
        return 0.0
    return Counter(texts).most_common(1)[0][1] / len(texts)


FILE = "reference.safetensors"
_COLUMN = "log_probabilities"
_FORMAT = 2
_MIN_WIN_RATE = 0.9  # win rate at which `enough` ends the training
_MARGIN_FACTOR = 4  # a margin of this many times `enough` ends the training whatever the answers are
_MAX_LOG_CHANGE = 50.0  # nats
_LOG = logger(__name__)


@register("preference")
@dataclass(frozen=True)
class PreferenceConfig(ChatConfig):
    """Preference optimisation by pairs of endings, with the `loss` of DPO (Rafailov et al. 2023), IPO (Azar et al.
    2023), ORPO (Hong et al. 2024) or SimPO (Meng et al. 2024). ORPO and SimPO need no reference model.

    `beta` is the strength of the reference in DPO and IPO (higher values stay closer to the start model), the weight of
    the odds ratio in ORPO, and the factor of the rewards in SimPO. `smoothing` is the share of choices assumed to be
    labelled the wrong way round (conservative DPO, Mitchell 2023). `anchor` adds the cross-entropy of the chosen
    endings to the loss (Pang et al. 2024, equation 4), so that training on a few choices does not make both endings
    unlikely; ORPO has it by definition. Training ends once the mean margin on the validation split is at least `enough`
    and the answers are better too. A batch has train.batch_tokens tokens, counting both endings.
    """

    prepared_kinds: ClassVar[tuple[str, ...]] = (PREFERENCES.name,)

    loss: PairLossName = "dpo"  # loss of a pair of endings
    beta: float | None = None  # strength of the preference loss; none: 2 for simpo, otherwise 0.1
    target_margin: float = 1.0  # margin of rewards that SimPO aims at (gamma)
    smoothing: float = 0.0  # share of choices assumed to be labelled the wrong way round, in dpo and simpo
    anchor: float = 0.0  # weight of the cross-entropy of the chosen endings
    enough: float | None = None  # mean margin of rewards on the validation split at which training may end

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.beta is not None and not 0 < self.beta < math.inf:
            raise ConfigError(f"task.beta is {self.beta}; choose a number above 0, such as 0.1")
        if not 0 <= self.target_margin < math.inf:
            raise ConfigError(f"task.target_margin is {self.target_margin}; choose 0 or more, such as 1")
        if not 0 <= self.smoothing < 0.5:
            raise ConfigError(f"task.smoothing is {self.smoothing}; choose a fraction of at least 0 and below 0.5")
        if self.smoothing and not PAIR_LOSSES[self.loss].reads_smoothing:
            raise ConfigError(f"task.smoothing is {self.smoothing}, but {self.loss} has no smoothing; set it to 0")
        if not 0 <= self.anchor < math.inf:
            raise ConfigError(f"task.anchor is {self.anchor}; choose 0 or more")
        if self.loss == "orpo" and not self.anchor:
            raise ConfigError("task.anchor is 0, but orpo needs the cross-entropy of the chosen endings; set it to 1")
        if self.enough is not None and not 0 < self.enough < math.inf:
            raise ConfigError(f"task.enough is {self.enough}; choose a margin above 0, such as 2, or none")

    @property
    def pair_loss(self) -> PairLoss:
        """The loss of pairs with its parameters."""
        kind = PAIR_LOSSES[self.loss]
        return kind(kind.default_beta if self.beta is None else self.beta, self.smoothing, self.target_margin)

    def open(self, recipe: Recipe, data: Sequence[Path] | None, workspace: Path) -> Task:
        """Raises UserError for data that cannot be read, are too small, or do not fit the settings."""
        self.check_model(recipe.model)
        batch_tokens_of(recipe, "preference")
        if self.loss != "simpo" and self.target_margin != PreferenceConfig.target_margin:
            raise ConfigError(
                f"task.target_margin is {self.target_margin}, but {self.loss} does not aim at a margin; remove it, or "
                "set task.loss=simpo"
            )
        if recipe.start is not None and read_usage(workspace).template is None:
            _LOG.warning(
                f"{recipe.start} has no chat template, so it cannot answer yet, and preferences do not teach it how; "
                "train it on conversations first, with the instruct recipe"
            )
        preferences = Preferences(self, recipe, self.read(PREFERENCES, recipe.files(data), workspace), workspace)
        return Task(preferences, PreferredEndings(self.pair_loss, self.anchor, self.enough))


class Preferences(Conversations):
    """Choices between two endings, with the log probabilities of both under the start model."""

    noun = "choices"

    def __init__(self, config: PreferenceConfig, recipe: Recipe, data: ChatData, workspace: Path) -> None:
        super().__init__(config, recipe, data)
        self._model, self._workspace = recipe.model, workspace
        self._reads_reference = config.pair_loss.reads_reference

    def adapt(self, model: ModelConfig) -> ModelConfig:
        self._model = super().adapt(model)
        return self._model

    @cached_property
    def reference(self) -> Float[Tensor, "N 2"]:
        """Log probabilities of all choices, read from the run if it has them; 0 for choices that do not fit, and for a
        loss without a reference model.
        """
        if not self._reads_reference:
            return torch.zeros(len(self.cache), 2)
        path, cache_name = self._workspace / FILE, self.cache.directory.name
        stored = read_tensors(path, "remove it to create it again")[0].get(cache_name) if path.is_file() else None
        if stored is not None:
            return stored
        context, module = self.config.context, reference_model(self.recipe, self._model)
        digest = hashlib.blake2b(json.dumps(to_dict(module.config)).encode(), digest_size=16)
        for tensor_name, tensor in named_tensors(module):
            digest.update(tensor_name.encode())
            digest.update(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().data)
        key = cache_key("reference", _FORMAT, cache_name, context, digest.hexdigest())
        folder = open_or_build(cache_root() / key, lambda folder: _write_reference(folder, self.cache, module, context))
        values = read_column(folder, _COLUMN, np.float32, 2 * len(self.cache))
        return torch.from_numpy(np.array(values)).view(len(self.cache), 2)

    def take(self, rows: np.ndarray, rng_key: RngKey | None = None) -> Batch:
        """Inputs are B choices as 2 B rows; targets are their labels and the reference, [2, B]. The token count is the
        number of choices, by which the loss is divided.
        """
        inputs, labels = _ending_batch(self.cache, rows)
        reference = self.reference[torch.from_numpy(rows)].T
        return Batch(inputs, (labels, reference), len(rows), labels.numel())

    def training_order(self, rows: np.ndarray) -> TrainingOrder:
        train = self.recipe.train
        plan = lambda indices: _plan(self.cache, rows[indices], train.batch_tokens or 0, self.seed)  # noqa: E731
        if self.windowed is None:
            return LengthBatches(plan(np.arange(len(rows))), len(rows))
        from headway.learn.shard_batches import PlacedLengthBatches  # rarely needed

        return PlacedLengthBatches(self.windowed, rows, plan, train.accumulate, self.seed)

    def evaluation_order(self, rows: np.ndarray) -> LengthBatches:
        return LengthBatches(_plan(self.cache, rows, max(EVAL_BATCH_TOKENS, 2 * self.config.context)), len(rows))

    def save(self, directory: Path) -> None:
        """Also save the reference, so that the run no longer needs its start model."""
        super().save(directory)
        if self._reads_reference:
            write_tensors(directory / FILE, {self.cache.directory.name: self.reference}, {"format": "headway"})


def _ending_batch(cache: ChatCache, rows: np.ndarray) -> tuple[tuple[Int[Tensor, "R T"], Layout], Int[Tensor, "R T"]]:
    """The chosen endings, then the rejected ones, each after its prompt; labels are the next tokens in the ending, -100
    elsewhere.
    """
    parts = [cache.chat(int(row), ending) for ending in (0, 1) for row in rows]
    layout = Layout.padded([len(ids) - 1 for ids, _ in parts])
    inputs = torch.zeros(len(parts), layout.length, dtype=torch.long)
    labels = torch.full_like(inputs, IGNORE_INDEX)
    for row, (ids, loss_mask) in enumerate(parts):
        tokens = torch.from_numpy(ids.astype(np.int64))
        inputs[row, : len(tokens) - 1] = tokens[:-1]
        is_label = torch.from_numpy(loss_mask[1:].astype(bool))
        labels[row, : len(tokens) - 1][is_label] = tokens[1:][is_label]
    return (inputs, layout), labels


def _plan(cache: ChatCache, rows: np.ndarray, batch_tokens: int, seed: int = 0) -> PairBatches:
    """Choices of similar lengths in one batch; `batch_tokens` counts both endings."""
    chosen, rejected = (cache.lengths[rows] - 1).T
    return PairBatches(chosen, rejected, batch_tokens // 2, seed)


@torch.no_grad()
def _write_reference(folder: Path, cache: ChatCache, model: nn.Module, context: int) -> None:
    """Compute and write the reference, which all runs that start from this model share."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows = np.flatnonzero(cache.lengths.max(1) <= context + 1)
    values = torch.zeros(len(cache), 2)
    model.to(device)
    plan = _plan(cache, rows, max(EVAL_BATCH_TOKENS, 2 * context)).in_order()
    title = "log probabilities under the start model"
    console, quiet = Console(stderr=True), not sys.stderr.isatty()
    for indices in track(plan, title, console=console, transient=True, disable=quiet):
        (inputs, layout), labels = _ending_batch(cache, rows[indices])
        x = model(inputs.to(device), layout.to(device)).x
        log_probs = log_probabilities(model, x, labels.to(device), _lengths(labels))
        values[torch.from_numpy(rows[indices])] = log_probs.T.float().cpu()
    with ColumnWriter(folder, {_COLUMN: np.float32}) as columns:
        columns.append(_COLUMN, values.numpy())


def log_probabilities(
    model: nn.Module, x: Float[Tensor, "R T D"], labels: Int[Tensor, "R T"], lengths: Int[Tensor, "2 B"]
) -> Float[Tensor, "2 B"]:
    """log p of each ending, summed over its labels, whose numbers `lengths` are on the CPU; the logits of all rows are
    never in memory at once.
    """
    head, counts = cast(VocabularyHead, model.get_submodule("heads.vocabulary")), lengths.flatten().tolist()
    rows = zip(x, labels, counts)
    return torch.stack([-head.loss(row, targets, count=count).total for row, targets, count in rows]).view(2, -1)


def _lengths(labels: Int[Tensor, "R T"]) -> Int[Tensor, "2 B"]:
    """The tokens of each ending."""
    return (labels != IGNORE_INDEX).sum(1).view(2, -1)


class PreferredEndings(Objective[Preferences]):
    """The loss of pairs of endings, and the cross-entropy of the chosen ones with the weight `anchor`."""

    shares_evaluation = True

    unit = "pair"
    evaluates_start = True

    def __init__(self, pair_loss: PairLoss, anchor: float = 0.0, enough: float | None = None) -> None:
        self.pair_loss, self.anchor, self.enough = pair_loss, anchor, enough

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Loss]:
        encoded = model(*batch.inputs)
        labels, reference = batch.targets
        lengths = _lengths(batch.host.targets[0])
        log_probs = log_probabilities(model, encoded.x, labels, lengths)
        lengths = to_device(lengths, log_probs.device)
        chosen, rejected = self.pair_loss.rewards(log_probs, reference, lengths)
        count = batch.tokens
        losses = {"loss": Loss(self.pair_loss.losses(chosen - rejected).sum(), count)}
        if self.anchor:
            losses["anchor"] = Loss(self.anchor * count * (-log_probs[0].sum() / lengths[0].sum()), count)
        return losses | {name: Loss(term * count, count) for name, term in encoded.auxiliary.items()}

    def evaluate(self, model: nn.Module, examples: Preferences, split: str, limit: int | None = None) -> dict[str, Any]:
        """The scores: the loss; how often the chosen ending has the higher reward (`accuracy`; a tie counts half), and
        by how much (`margin`); the mean reward of each; the perplexity of the chosen endings, as a multiple of the
        start model's if the loss has a reference; and those from `answer_scores`.
        """
        samples = examples.of(split).limited_to(limit)
        batch_rewards, nats, tokens = [], 0.0, 0

        def compute(_: np.ndarray, batch: Batch) -> tuple[Tensor, float, int]:
            labels, reference = batch.targets
            lengths = _lengths(batch.host.targets[0])
            log_probs = log_probabilities(model, model(*batch.inputs).x, labels, lengths).cpu()
            reference = reference.cpu()
            rewards = self.pair_loss.rewards(log_probs, reference, lengths).double()
            return rewards, float((reference[0] - log_probs[0]).double().sum()), int(lengths[0].sum())

        for rewards, batch_nats, batch_tokens in evaluate_batches(model, samples, compute):
            batch_rewards.append(rewards)
            nats, tokens = nats + batch_nats, tokens + batch_tokens
        rewards = torch.cat(batch_rewards, dim=1)
        margins = rewards[0] - rewards[1]
        correct = float((margins > 0).double().sum() + (margins == 0).double().sum() / 2)
        return {
            "loss": float(self.pair_loss.losses(margins).mean()),
            "accuracy": correct / len(samples),
            "accuracy_interval": wilson_interval(round(correct), len(samples)),
            "margin": float(margins.mean()),
            "chosen_reward": float(rewards[0].mean()),
            "rejected_reward": float(rewards[1].mean()),
            "perplexity_change" if self.pair_loss.reads_reference else "perplexity": math.exp(
                min(nats / tokens, _MAX_LOG_CHANGE)
            ),
            **on_main_process(lambda: answer_scores(model, examples, examples.rows_of(split)[:limit])),
            "samples": len(samples),
        }

    def failure_reason(self, scores: Mapping[str, Any], best: Mapping[str, Any] | None) -> str | None:
        return failure_reason(scores, best)

    def stop_reason(self, scores: Mapping[str, Any]) -> str | None:
        if self.enough is None or scores["margin"] < self.enough:
            return None
        if scores["win_rate"] < _MIN_WIN_RATE and scores["margin"] < _MARGIN_FACTOR * self.enough:
            return None
        wins = f"{scores['win_rate']:.0%} of its answers resemble the chosen ones"
        return f"the reward margin is {scores['margin']:.2g} and {wins}"

    def samples(self, model: nn.Module, examples: Preferences, count: int) -> list[dict[str, str]]:
        """Held-out prompts with the model's reply and the two endings."""
        rows = examples.spread_rows(count).tolist()
        return [
            {
                "prompt": examples.describe_row(row),
                "output": output,
                "chosen": examples.reply(row, 0),
                "rejected": examples.reply(row, 1),
            }
            for row, output in zip(rows, replies(model, examples, rows))
        ]
