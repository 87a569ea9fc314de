"""Small models for the experiments, one block per mixer, and their shared training loop."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Generator, Tensor, nn

from headway.app.variants import nearest_width
from headway.layout import Layout
from headway.learn import AdamWConfig, ScheduleConfig, WSDConfig
from headway.learn.optim import Optimizer
from headway.nn.kernels import IGNORE_INDEX, RunSteps, pointwise, unroll
from headway.nn.mixers import (
    AttentionConfig,
    DeltaConfig,
    ElmanConfig,
    FastWeightsConfig,
    GRUConfig,
    LinearAttentionConfig,
    LSTMConfig,
    MixerConfig,
)
from headway.nn.mixers.recurrence import Recurrence, RecurrenceConfig
from headway.nn.models import (
    BlockConfig,
    EmbedConfig,
    ModelConfig,
    PooledHeadConfig,
    StackConfig,
    TokenEmbedConfig,
    Transformer,
    TransformerConfig,
    describe,
)
from headway.nn.models.pooled import Pool
from headway.nn.parts.feedforward import MLPConfig
from headway.nn.parts.init import InitConfig
from headway.nn.parts.norm import RMSNormConfig
from headway.nn.parts.positions import RotaryConfig
from headway.nn.parts.projection import Projection


def measure_seconds(
    work: Callable[[], Any],
    min_seconds: float = 0.1,
    min_runs: int = 3,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """The time for `work` by `clock`: the shortest of at least `min_runs` runs that take `min_seconds` in total, after
    a warm-up run.

    Other load on the machine can only lengthen a run, so the shortest is nearest to the actual cost.
    """
    work()
    gc.collect()
    times: list[float] = []
    while len(times) < min_runs or (sum(times) < min_seconds and len(times) < 100):
        start = clock()
        work()
        times.append(clock() - start)
    return min(times)


def step_seconds(model: nn.Module, inputs: Tensor, min_seconds: float = 0.1) -> tuple[float, float]:
    """(forward, backward) times for one step; the backward time is the time for both passes minus the forward time."""

    def forward() -> Tensor:
        return model(inputs).x.square().mean()

    def both() -> None:
        forward().backward()

    forward_seconds, total_seconds = measure_seconds(forward, min_seconds), measure_seconds(both, min_seconds)
    return forward_seconds, max(total_seconds - forward_seconds, 1e-9)


def saved_bytes(model: nn.Module, inputs: Tensor) -> int:
    """The bytes that the forward pass saves for the backward pass, without weights; they are counted, not measured."""
    weights = {p.data_ptr() for p in model.parameters()}
    storage_bytes: dict[int, int] = {}

    def record(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            storage_bytes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(record, lambda tensor: tensor):
        out = model(inputs).x.square().mean()  # keep it alive, so that no address is reused
    del out
    return sum(storage_bytes.values())


@contextmanager
def single_thread() -> Iterator[None]:
    """Run torch on one thread, so that processor time is the time on one core."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class ExampleBatch(NamedTuple):
    """Inputs with their layout, and targets: classes (integers) or numbers.

    A head with several answers outputs their scores one answer after another.
    """

    inputs: Any
    layout: Layout
    targets: Tensor


SampleBatch = Callable[[Generator], ExampleBatch]


@dataclass(frozen=True)
class Training:
    """The training settings, which are the same for all variants in an experiment."""

    steps: int = 400
    lr: float = 4e-3
    schedule: ScheduleConfig = WSDConfig(warmup=0.05, decay=0.5)
    clip: float = 1.0


def generator(*parts: int) -> Generator:
    """A separate random generator for each tuple of integers."""
    seed = 0
    for part in parts:
        seed = (seed * 1_000_003 + part + 1) % (1 << 62)
    return Generator().manual_seed(seed)


def train(model: Transformer, sample_batch: SampleBatch, training: Training, seed: int) -> list[float]:
    """Train in place on `draw`'s examples, which are the same for all variants with one seed; return the loss at each
    step.
    """
    source = generator(seed, 1)
    return list(descend(model, lambda: compute_loss(model, sample_batch(source)), training))


def descend(model: nn.Module, loss: Callable[[], Tensor], training: Training) -> Iterator[float]:
    """Train in place, one step per iteration; `loss` returns a batch's loss."""
    optimizer = Optimizer(AdamWConfig(training.lr, betas=(0.9, 0.99), weight_decay=0.0), model)
    for step in range(training.steps):
        optimizer.flat.zero_grads()
        batch_loss = loss()
        batch_loss.backward()
        norm = float(torch.linalg.vector_norm(optimizer.flat.grads))
        optimizer.flat.grads.mul_(min(1.0, training.clip / (norm + 1e-12)))
        optimizer.step(training.schedule.factor(step, training.steps))
        yield float(batch_loss.detach())


def compute_loss(model: Transformer, examples: ExampleBatch) -> Tensor:
    """The cross-entropy in nats for classes, the mean squared error for numbers."""
    answer = model.output("answer", examples.inputs, examples.layout)
    if examples.targets.is_floating_point():
        return F.mse_loss(answer[..., 0], examples.targets)
    scores = answer.reshape(examples.targets.numel(), -1)
    return F.cross_entropy(scores, examples.targets.flatten(), ignore_index=IGNORE_INDEX)


@torch.no_grad()
def accuracy(model: Transformer, sample_batch: SampleBatch, seed: int, batches: int = 4) -> float:
    """The accuracy on fresh examples."""
    source, num_correct, num_targets = generator(seed, 2), 0, 0
    for _ in range(batches):
        examples = sample_batch(source)
        answer = model.output("answer", examples.inputs, examples.layout)
        predicted = answer.reshape(*examples.targets.shape, -1).argmax(-1)
        has_target = examples.targets != IGNORE_INDEX
        num_correct += int(((predicted == examples.targets) & has_target).sum())
        num_targets += int(has_target.sum())
    return num_correct / num_targets


@torch.no_grad()
def error(model: Transformer, sample_batch: SampleBatch, seed: int, batches: int = 4) -> float:
    """The mean squared error on fresh examples."""
    source = generator(seed, 2)
    return sum(float(compute_loss(model, sample_batch(source))) for _ in range(batches)) / batches


# With a variance of 1 / fan_in, gradients in Elman networks initially keep their size, which is their best start.
START = InitConfig(matrices="fan_in", residual="same", embedding=1.0)
# Units that remember from the start (Jozefowicz et al. 2015 use 1, and more for longer dependencies).
FORGET_BIAS = 3.0

MIXERS: dict[str, MixerConfig] = {
    "elman": ElmanConfig(),
    "lstm": LSTMConfig(forget_bias=FORGET_BIAS),
    "gru": GRUConfig(),
    "attention": AttentionConfig(heads=2, rotary=RotaryConfig()),
}
LINEAR: dict[str, MixerConfig] = {
    "linear attention": LinearAttentionConfig(heads=1, features="dpfp"),
    "fast weights": FastWeightsConfig(heads=1),
    "delta": DeltaConfig(heads=1),
}


@dataclass(frozen=True)
class NumbersEmbedConfig(EmbedConfig):
    """Embeds `channels` numbers per position instead of a token."""

    channels: int = 2

    def build(self, width: int, vocab_size: int, context: int | None) -> NumbersEmbed:
        return NumbersEmbed(self.channels, width)


class NumbersEmbed(nn.Module):
    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.project = Projection(channels, width)

    def default_layout(self, inputs: Float[Tensor, "B T N"]) -> Layout:
        return Layout.full(*inputs.shape[:2], device=inputs.device)

    def forward(self, inputs: Float[Tensor, "B T N"], layout: Layout) -> tuple[Float[Tensor, "B T D"], Layout]:
        return self.project(inputs), layout


def network(
    mixers: MixerConfig | Sequence[MixerConfig],
    *,
    width: int,
    outputs: int,
    vocab_size: int = 0,
    types: int = 0,
    channels: int = 0,
    pool: Pool = "last",
) -> TransformerConfig:
    """A block per mixer (norm, mixer, norm, feed-forward, with residual connections) and a linear head.

    The input is tokens of a vocabulary of `vocab_size`, which may have `types`, or else `channels` numbers per
    position. The head has `outputs` numbers at the last position, or at all positions.
    """
    chain = (mixers,) if isinstance(mixers, MixerConfig) else tuple(mixers)
    blocks = tuple(BlockConfig(mixer, feed_forward=MLPConfig(ratio=2.0), norm=RMSNormConfig()) for mixer in chain)
    return TransformerConfig(
        width=width,
        vocab_size=vocab_size,
        stack=StackConfig(blocks, norm=RMSNormConfig()),
        embed=NumbersEmbedConfig(channels) if channels else TokenEmbedConfig(types=types),
        heads={"answer": PooledHeadConfig(outputs, pool)},
        tie="none",
        init=START,
    )


def num_parameters(model: nn.Module | ModelConfig) -> int:
    """Trainable parameters."""
    return describe(model)["parameters"]


def config_of_size(make: Callable[[int], ModelConfig], parameters: int, step: int = 2) -> ModelConfig:
    """The config that `make` returns for the width with the nearest number of parameters, a multiple of `step`."""
    return make(nearest_width(lambda width: num_parameters(make(width)), parameters, step=step))


@dataclass(frozen=True)
class AdditiveConfig(RecurrenceConfig):
    """As many weights as an LSTM with the same number of cells."""

    def build(self, width: int, biases: nn.ModuleDict) -> Additive:
        return Additive(self, width)


class Additive(Recurrence):
    """c = c + (f + i + g) / 3 and h = (o + tanh(c)) / 2, with i, f, g, o = tanh(W x + U h + b).

    The LSTM's c = f c + i g and h = o tanh(c) with a sum for each product. The added gates are centred, because
    logistic ones would push the cell away from 0 with every token. Sums are divided by their number of terms, because
    feedback would otherwise grow.
    """

    vectors = 2

    def __init__(self, config: AdditiveConfig, width: int) -> None:
        super().__init__(config, width)
        gates = (self.cells,) * 4
        self.input = Projection(width, gates)
        self.hidden = Projection(self.cells, gates, bias=False)

    def scan(self, x: Tensor, start: tuple[Tensor, ...], steps: RunSteps) -> tuple[Tensor, tuple[Tensor, ...]]:
        def cell(inputs: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, ...]:
            i, f, g, o = pointwise(torch.tanh, inputs + self.hidden(h)).chunk(4, dim=-1)
            c = c + (f + i + g) / 3
            return (o + pointwise(torch.tanh, c)) / 2, c

        return unroll(cell, self.input(x), start, steps)
