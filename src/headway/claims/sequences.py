"""Runs on real sequence-to-sequence tasks: words to phonemes, sentences to sentences."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, cast

from torch import Tensor

from headway.app.recipes import configure_recipe, load_recipe
from headway.app.variants import matching_width
from headway.claims.claim import Values
from headway.claims.networks import START, Training, descend, num_parameters, single_thread
from headway.config import override
from headway.data import Pair, SplitConfig, find_set, group_references, iter_pairs, split_pairs
from headway.learn import ScheduleConfig, WSDConfig
from headway.learn.objectives.sequences import SourceTargetExamples
from headway.learn.task import Task
from headway.nn.models import EncoderDecoder, EncoderDecoderConfig, ModelConfig, describe, evaluation_mode
from headway.predict.model_evaluation import open_task

ATTENTION = "attention"
WITHOUT_ORDER = "attention, without positions"


@dataclass(frozen=True)
class Budget:
    """The number of steps in a run, and in the short trial runs that choose among the learning `rates`.

    `judged` is the number of validation sources that each evaluation decodes greedily.
    """

    steps: int = 2000
    trial_steps: int = 150
    rates: tuple[float, ...] = (2e-3, 4e-3, 8e-3)
    evaluations: int = 10
    judged: int = 500
    batch_tokens: int = 1024
    schedule: ScheduleConfig = WSDConfig(warmup=0.05, decay=0.5)


class TrainingCurve(NamedTuple):
    """A training run and its model, with the steps, seconds of training on one core, and validation scores at each
    evaluation.
    """

    steps: list[int]
    seconds: list[float]
    scores: list[dict[str, Any]]
    rate: float
    tried: dict[float, float]  # validation loss of the trial runs, by learning rate
    model: EncoderDecoder

    def values(self, *names: str) -> dict[str, Any]:
        """The run as plain data, with the named scores."""
        scores = {name: [entry[name] for entry in self.scores] for name in ("loss", *names)}
        tried = {f"{rate:g}": loss for rate, loss in self.tried.items()}
        parameters = describe(self.model.config)["parameters"]
        facts = {"parameters": parameters, "rate": self.rate, "tried": tried}
        return {**facts, "steps": self.steps, "seconds": self.seconds, **scores}


@contextmanager
def open_recipe_task(
    recipe: str, budget: Budget, seed: int, data: Sequence[Path] | None = None, **settings: Any
) -> Iterator[Task]:
    """The task of a recipe over its own data, or over `data`; `settings` are the task's."""
    task_settings = {f"task.{name}": value for name, value in settings.items()}
    configured = configure_recipe(recipe, data, {**task_settings, "train.batch_tokens": budget.batch_tokens}, seed)
    with TemporaryDirectory() as workspace:
        yield cast(Task, open_task(configured, Path(workspace)))


def small_model(task: Task, recipe: str, width: int, depth: int, mixer: str = ATTENTION) -> ModelConfig:
    """The recipe's model in a smaller size, or with equal size and another mixer in its (bidirectional) encoder and
    decoder.

    Without dropout: such short runs do not overfit, and the same seed gives the same numbers.
    """
    reference = task.adapt(override(load_recipe(recipe).model, {"width": width, "depth": depth, "dropout": 0.0}))
    if mixer == ATTENTION:
        return reference
    changed = {"encoder.embed.positions": None} if mixer == WITHOUT_ORDER else {"mixer": mixer}
    variant = override(reference, changed)
    matched_width = matching_width(variant, num_parameters(reference))
    return variant if matched_width is None else override(variant, {"width": matched_width})


def target_vocab_size(task: Task) -> int:
    """The size of the target vocabulary."""
    return cast(SourceTargetExamples, task.examples).codec.vocab_size


def with_scaled_init(model: EncoderDecoderConfig) -> EncoderDecoderConfig:
    """The model with initial weights scaled to its width.

    The models from 2014 used one small range, chosen for 1,000 units. With few units, signals vanish and training
    stalls for a long time.
    """
    return replace(model, init=START)


def train_tuned(budget: Budget, task: Task, model: ModelConfig, seed: int) -> TrainingCurve:
    """A run with the best learning rate, by the validation loss of short runs with the same seed."""
    tried: dict[float, float] = {}
    for rate in budget.rates if len(budget.rates) > 1 else ():
        short = train_model(budget, task, model, seed, Training(budget.trial_steps, rate, budget.schedule), 1)
        tried[rate] = short.scores[-1]["loss"]
    best = min(budget.rates, key=lambda rate: tried.get(rate, 0.0))
    training = Training(budget.steps, best, budget.schedule)
    return train_model(budget, task, model, seed, training, budget.evaluations)._replace(tried=tried)


def train_model(
    budget: Budget, task: Task, model: ModelConfig, seed: int, training: Training, evaluations: int
) -> TrainingCurve:
    """Train a model, with `evaluations` evenly spaced over the run, the last at its end.

    Seconds are the processor time of the single thread, so other programs do not count.
    """
    network = cast(EncoderDecoder, task.adapt(model).build(seed))
    batches = task.batches("train")

    def loss() -> Tensor:
        average = task.loss(network, next(batches))["loss"]
        return average.total / average.count

    steps = descend(network, loss, training)
    curve = TrainingCurve([], [], [], training.lr, {}, network)
    spent, interval = 0.0, -(-training.steps // evaluations)
    with single_thread():
        for step in range(1, training.steps + 1):
            started = time.process_time()
            next(steps)
            spent += time.process_time() - started
            if step % interval == 0 or step == training.steps:
                curve.steps.append(step)
                curve.seconds.append(spent)
                with evaluation_mode(network):
                    curve.scores.append(task.evaluate(network, "validation", budget.judged))
    return curve


def time_to_target(values: Values, goal: str, target: float) -> tuple[float, bool]:
    """The time when a score first fell to `target`, interpolated between evaluations; else the total, and False."""
    previous = None
    for seconds, score in zip(values["seconds"], values[goal]):
        if score <= target:
            if previous is None or previous[1] <= score:
                return seconds, True
            fraction = (previous[1] - target) / (previous[1] - score)
            return previous[0] + fraction * (seconds - previous[0]), True
        previous = seconds, score
    return values["seconds"][-1], False


DATA_SET = "cmudict"
SEPARATOR = "_"  # separates the words of a list, in source and target


def write_backwards(directory: Path) -> list[Path]:
    """Write all words, each with its phonemes in reverse order."""
    reversed_pairs = (Pair(word, " ".join(reversed(sounds.split()))) for word, sounds in iter_pairs(find_set(DATA_SET)))
    return [_write(directory / "backwards.tsv", reversed_pairs)]


def write_lists(
    directory: Path, max_words: int, training_lists: int, validation_lists: int, last_only: bool
) -> list[Path]:
    """Write lists of 1 to `max_words` words with the pronunciation of all words or only the last one. For each length,
    there are `training_lists` lists for training and `validation_lists` for validation.

    The lists are the same each time. Validation words are not in training lists.
    """
    paths = []
    for split, count in (("train", training_lists), ("validation", validation_lists)):
        pronunciations = group_references(split_pairs(find_set(DATA_SET), split, SplitConfig()))
        # Words that consist of letters, each with its first pronunciation.
        words = [Pair(word, sounds[0]) for word, sounds in pronunciations.items() if word.isalpha()]
        rng, rows = Random(split), []
        for length in [*range(1, max_words + 1)] * count:
            chosen = rng.sample(words, length)
            targets = [word.target for word in (chosen[-1:] if last_only else chosen)]
            rows.append(Pair(SEPARATOR.join(word.source for word in chosen), f" {SEPARATOR} ".join(targets)))
        paths.append(_write(directory / f"{split}.tsv", rows))
    return paths


def count_words(source: str) -> int:
    """The number of words in a list."""
    return source.count(SEPARATOR) + 1


def _write(path: Path, rows: Iterable[Pair]) -> Path:
    path.write_text("".join(f"{source}\t{target}\n" for source, target in rows), encoding="utf-8")
    return path
