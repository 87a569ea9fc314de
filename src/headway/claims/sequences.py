"""Runs on real sequence-to-sequence tasks: words to phonemes, sentences to sentences."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, cast

from torch import Tensor

from headway.app.recipes import configured, named
from headway.app.variants import matching_width, nearest_width
from headway.claims.claim import Values
from headway.claims.networks import START, Training, descend, one_thread
from headway.config import override
from headway.data import Pair, SplitConfig, find_set, grouped, pairs, split_pairs
from headway.evaluation import open_task
from headway.learn import ScheduleConfig, WSDConfig
from headway.learn.objectives.written import Sourced
from headway.learn.task import Task
from headway.nn.models import EncoderDecoder, EncoderDecoderConfig, ModelConfig, describe

ATTENTION = "attention"
WITHOUT_ORDER = "attention, without positions"


@dataclass(frozen=True)
class Budget:
    """The steps of a run, and of the short trial runs that choose among the learning `rates`.

    `judged` is the number of validation sources that an evaluation decodes greedily.
    """

    steps: int = 2000
    trial_steps: int = 150
    rates: tuple[float, ...] = (2e-3, 4e-3, 8e-3)
    evaluations: int = 10
    judged: int = 500
    batch_tokens: int = 1024
    schedule: ScheduleConfig = WSDConfig(warmup=0.05, decay=0.5)


class Course(NamedTuple):
    """A training run, by evaluation: steps, seconds of training on one core, and validation scores; and its model."""

    steps: list[int]
    seconds: list[float]
    scores: list[dict[str, Any]]
    rate: float
    tried: dict[float, float]  # validation loss of the trial runs, by learning rate
    model: EncoderDecoder

    def values(self, *names: str) -> dict[str, Any]:
        """The run as plain data, with the named scores."""
        scores = {name: [found[name] for found in self.scores] for name in ("loss", *names)}
        tried = {f"{rate:g}": loss for rate, loss in self.tried.items()}
        parameters = describe(self.model.config)["parameters"]
        facts = {"parameters": parameters, "rate": self.rate, "tried": tried}
        return {**facts, "steps": self.steps, "seconds": self.seconds, **scores}


@contextmanager
def opened(
    recipe: str, budget: Budget, seed: int, data: Sequence[Path] | None = None, **settings: Any
) -> Iterator[Task]:
    """The task of a recipe over its own data, or over `data`; `settings` are the task's."""
    changed = {f"task.{name}": value for name, value in settings.items()}
    found = configured(recipe, data, {**changed, "train.batch_tokens": budget.batch_tokens}, seed)
    with TemporaryDirectory() as workspace:
        yield cast(Task, open_task(found, Path(workspace)))


def small(task: Task, recipe: str, width: int, depth: int, mixer: str = ATTENTION) -> ModelConfig:
    """The recipe's model in a smaller size, or of equal size with another mixer in its (bidirectional) encoder and
    decoder.

    Without dropout: such short runs do not overfit, and the same seed gives the same numbers.
    """
    own = task.adapt(override(named(recipe).model, {"width": width, "depth": depth, "dropout": 0.0}))
    if mixer == ATTENTION:
        return own
    changed = {"encoder.embed.positions": None} if mixer == WITHOUT_ORDER else {"mixer": mixer}
    other = override(own, changed)
    matched = matching_width(other, size(own))
    return other if matched is None else override(other, {"width": matched})


def symbols_of(task: Task) -> int:
    """The size of the target vocabulary."""
    return cast(Sourced, task.examples).codec.size


def begun(model: EncoderDecoderConfig) -> EncoderDecoderConfig:
    """The model with initial weights scaled to its width.

    The models of 2014 used one small range, made for 1,000 units. With few units signals vanish, and training stalls
    for long.
    """
    return replace(model, init=START)


def size(model: ModelConfig) -> int:
    """Trainable parameters."""
    return describe(model)["parameters"]


def sized(make: Callable[[int], ModelConfig], parameters: int) -> ModelConfig:
    """The config that `make` returns at the even width with the nearest number of parameters."""
    return make(nearest_width(lambda width: size(make(width)), parameters, step=2))


def tuned(budget: Budget, task: Task, model: ModelConfig, seed: int) -> Course:
    """A run with the best learning rate, by the validation loss of short runs with the same seed."""
    tried: dict[float, float] = {}
    for rate in budget.rates if len(budget.rates) > 1 else ():
        short = run(budget, task, model, seed, Training(budget.trial_steps, rate, budget.schedule), 1)
        tried[rate] = short.scores[-1]["loss"]
    best = min(budget.rates, key=lambda rate: tried.get(rate, 0.0))
    training = Training(budget.steps, best, budget.schedule)
    return run(budget, task, model, seed, training, budget.evaluations)._replace(tried=tried)


def run(budget: Budget, task: Task, model: ModelConfig, seed: int, training: Training, evaluations: int) -> Course:
    """Train a model, with `evaluations` evenly spaced over the run, the last at its end.

    Seconds are the processor time of the single thread, so other programs do not count.
    """
    network = cast(EncoderDecoder, task.adapt(model).build(seed))
    batches = task.batches("train")

    def loss() -> Tensor:
        found = task.loss(network, next(batches))["loss"]
        return found.total / found.count

    steps = descend(network, loss, training)
    course = Course([], [], [], training.lr, {}, network)
    spent, every = 0.0, -(-training.steps // evaluations)
    with one_thread():
        for step in range(1, training.steps + 1):
            began = time.process_time()
            next(steps)
            spent += time.process_time() - began
            if step % every == 0 or step == training.steps:
                network.eval()
                course.steps.append(step)
                course.seconds.append(spent)
                course.scores.append(task.evaluate(network, "validation", budget.judged))
                network.train()
    return course


def seconds_to(values: Values, goal: str, target: float) -> tuple[float, bool]:
    """The time when a score first fell to `target`, interpolated between evaluations; else the total, and False."""
    before = None
    for seconds, score in zip(values["seconds"], values[goal]):
        if score <= target:
            if before is None or before[1] <= score:
                return seconds, True
            share = (before[1] - target) / (before[1] - score)
            return before[0] + share * (seconds - before[0]), True
        before = seconds, score
    return values["seconds"][-1], False


NAME = "cmudict"
BETWEEN = "_"  # separates the words of a list, in source and target


def write_backwards(directory: Path) -> list[Path]:
    """Write all words, each with its phonemes in reverse order."""
    found = (Pair(word, " ".join(reversed(sounds.split()))) for word, sounds in pairs(find_set(NAME)))
    return [_write(directory / "backwards.tsv", found)]


def write_lists(directory: Path, most: int, trained: int, judged: int, last_only: bool) -> list[Path]:
    """Write lists of 1 to `max_words` words with the pronunciation of all words or of only the last: per length
    `training_lists` for training and `validation_lists` for validation.

    The lists are the same each time. Validation words are not in training lists.
    """
    found = []
    for side, count in (("train", trained), ("validation", judged)):
        draw, words = Random(side), _words(side)
        chosen = (draw.sample(words, length) for _ in range(count) for length in range(1, most + 1))
        found.append(_write(directory / f"{side}.tsv", (_joined(some, last_only) for some in chosen)))
    return found


def words_of(source: str) -> int:
    """The number of words in a list."""
    return source.count(BETWEEN) + 1


def _words(side: str) -> list[Pair]:
    """Words that consist of letters, each with its first pronunciation."""
    known = grouped(split_pairs(find_set(NAME), side, SplitConfig()))
    return [Pair(word, sounds[0]) for word, sounds in known.items() if word.isalpha()]


def _joined(words: list[Pair], last_only: bool) -> Pair:
    source = BETWEEN.join(word.source for word in words)
    return Pair(source, words[-1].target if last_only else f" {BETWEEN} ".join(word.target for word in words))


def _write(path: Path, found: Iterable[Pair]) -> Path:
    path.write_text("".join(f"{source}\t{target}\n" for source, target in found), encoding="utf-8")
    return path
