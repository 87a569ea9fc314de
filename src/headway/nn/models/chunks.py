"""Action chunks: the decoder's queries, the posterior's inputs, and heads that learn chunks by regression or
diffusion.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from headway.config_kinds import family, register
from headway.errors import ConfigError
from headway.layout import Layout, to_device
from headway.nn.models.embeds import Embed, EmbedConfig
from headway.nn.models.heads import Loss
from headway.nn.models.patches import LearnedVectors
from headway.nn.models.robot import Observations
from headway.nn.parts.dropout import Dropout
from headway.nn.parts.feedforward import ACTIVATIONS, Terms
from headway.nn.parts.positions import SinusoidalConfig
from headway.nn.parts.projection import Projection


class NoisyChunks(NamedTuple):
    """Action chunks with noise, and its amount: the diffusion `steps`, from 0."""

    actions: Float[Tensor, "B C A"]
    steps: Int[Tensor, "B"]


class ChunkNoise(NamedTuple):
    """Random numbers for a batch of chunks: standard normal noise and, for diffusion, a step per row."""

    noise: Tensor
    steps: Int[Tensor, "B"] | None = None

    def to(self, device: torch.device | str) -> ChunkNoise:
        return to_device(self, device)


class Chunks(NamedTuple):
    """Demonstrated chunks; `mask` is true for actions before the episode's end, and `count` their number if it is
    known: otherwise they are counted, for which a program waits for a GPU.
    """

    actions: Float[Tensor, "B C A"]
    mask: Bool[Tensor, "B C"]
    count: int | None = None

    def to(self, device: torch.device | str) -> Chunks:
        return to_device(self, device)


@runtime_checkable
class ChunkModel(Protocol):
    """The interface of a model for a chunk head."""

    def encode(self, observations: Observations) -> tuple[Any, Terms]:
        """Observations encoded once for the decoder, and auxiliary losses."""
        ...

    def decode_chunk(self, encoded: Any, noisy: NoisyChunks | None) -> Float[Tensor, "B C A"]:
        """The decoder's output for each action of a chunk."""
        ...

    def infer(self, observations: Observations, chunks: Chunks) -> tuple[Float[Tensor, "B Z"], Float[Tensor, "B Z"]]:
        """Mean and log variance of the latent of demonstrated chunks."""
        ...


@family
@dataclass(frozen=True)
class ChunkHeadConfig:
    """How action chunks are learned and predicted."""

    @property
    def size(self) -> int:
        """Size of the latent, which a posterior infers in training; 0 for none."""
        return 0

    @property
    def noised(self) -> bool:
        """Whether the decoder takes actions with noise."""
        return False

    def sample_noise(self, random: np.random.Generator, rows: int, chunk: int, actions: int) -> ChunkNoise:
        """Sample the noise to train or predict `rows` chunks."""
        raise NotImplementedError

    def losses(
        self, model: ChunkModel, observations: Observations, chunks: Chunks, sample: ChunkNoise
    ) -> dict[str, Loss]:
        """Named losses, summed over the actions in the mask."""
        raise NotImplementedError

    def predict(self, model: ChunkModel, observations: Observations, sample: ChunkNoise) -> Float[Tensor, "B C A"]:
        """Predict chunks for observations."""
        raise NotImplementedError


@register("regression")
@dataclass(frozen=True)
class RegressionConfig(ChunkHeadConfig):
    """Zhao et al. 2023, algorithm 1: the mean absolute error of actions, plus `beta` times the KL divergence of the
    latent from a standard normal distribution (Kingma and Welling 2014, appendix B).
    """

    latent: int = 32  # size of the latent, 0 for none
    beta: float = 10.0  # weight of the latent's KL divergence

    def __post_init__(self) -> None:
        if self.latent < 0 or self.beta < 0:
            raise ConfigError(f"latent={self.latent} and beta={self.beta}: both must be at least 0")

    @property
    def size(self) -> int:
        return self.latent

    def sample_noise(self, random: np.random.Generator, rows: int, chunk: int, actions: int) -> ChunkNoise:
        return ChunkNoise(torch.from_numpy(random.standard_normal((rows, self.latent), np.float32)))

    def losses(
        self, model: ChunkModel, observations: Observations, chunks: Chunks, sample: ChunkNoise
    ) -> dict[str, Loss]:
        divergence = {}
        if self.latent:
            mean, log_variance = model.infer(observations, chunks)
            observations = observations._replace(latent=mean + (0.5 * log_variance).exp() * sample.noise)
            divergences = 0.5 * (mean.square() + log_variance.exp() - log_variance - 1)
            divergence = {"kl": Loss(self.beta * divergences.sum(), observations.rows)}
        memory, terms = model.encode(observations)
        error = (model.decode_chunk(memory, None) - chunks.actions).abs()
        return {"actions": masked_loss(error, chunks, terms), **divergence}

    def predict(self, model: ChunkModel, observations: Observations, sample: ChunkNoise) -> Float[Tensor, "B C A"]:
        return model.decode_chunk(model.encode(observations)[0], None)


def masked_loss(error: Float[Tensor, "B C A"], chunks: Chunks, terms: Terms) -> Loss:
    """The mean error per action, summed over the actions in the mask, plus the auxiliary means `terms`."""
    count = int(chunks.mask.sum()) if chunks.count is None else chunks.count
    total = torch.where(chunks.mask, error.mean(-1), 0.0).sum()
    return Loss(total + sum(terms.values(), total.new_zeros(())) * count, count)


@register("queries")
@dataclass(frozen=True)
class QueriesConfig(EmbedConfig):
    """One learned query per action of a chunk, or zeros for a stack that adds positions to queries and keys. For
    diffusion the noisy actions and the step are added.
    """

    chunk: int = 1  # actions per chunk
    actions: int = 0  # size of a noisy action, for diffusion; 0: no actions as input
    dropout: float = 0.0  # dropout rate of the queries
    learned: bool = True  # whether queries are learned

    @property
    def length(self) -> int:
        return self.chunk

    def describe_inputs(self, vocab_size: int, context: int | None) -> str:
        return f"{self.chunk} queries" + (f" and noisy actions of size {self.actions}" if self.actions else "")

    def summary(self) -> str:
        return "queries"

    def build(self, width: int, vocab_size: int, context: int | None) -> Queries:
        if self.chunk < 1:
            raise ConfigError(f"model.chunk is {self.chunk}; set at least 1 action")
        return Queries(self, width)


class Queries(Embed):
    def __init__(self, config: QueriesConfig, width: int) -> None:
        super().__init__()
        self.queries = LearnedVectors(config.chunk, width) if config.learned else Zeros(config.chunk, width)
        self.noised = NoisedActions(config.actions, width) if config.actions else None
        self.dropout = Dropout(config.dropout)

    def forward(self, noisy: NoisyChunks | None, layout: Layout) -> tuple[Float[Tensor, "B C D"], Layout]:
        x = self.queries.table.expand(layout.batch, -1, -1)
        if self.noised is not None:
            x = x + self.noised(noisy)
        return self.dropout(x), layout


class Zeros(nn.Module):
    """A table of zeros for queries that are not learned."""

    table: Tensor

    def __init__(self, chunk: int, width: int) -> None:
        super().__init__()
        zero = torch.zeros((), device="cpu")  # a single number in memory, whatever the configured size
        self.register_buffer("table", zero.expand(chunk, width), persistent=False)


class NoisedActions(nn.Module):
    """Noisy actions by a linear layer, plus the diffusion step: sinusoids through one hidden layer (Ho et al. 2020,
    appendix B).
    """

    def __init__(self, actions: int, width: int) -> None:
        super().__init__()
        self.actions = Projection(actions, width)
        self.places = SinusoidalConfig().build(width, None)
        self.up, self.down = Projection(width, 4 * width), Projection(4 * width, width)
        self.activation = ACTIVATIONS["silu"]

    def forward(self, noisy: NoisyChunks) -> Float[Tensor, "B C D"]:
        actions = self.actions(noisy.actions)
        step = self.places(Layout(noisy.steps[:, None]), actions)
        return actions + self.down(self.activation(self.up(step)))


class PosteriorInputs(NamedTuple):
    """Inputs of a posterior: states (None if it takes none), and the chunks that followed them."""

    states: Float[Tensor, "B S"] | None
    actions: Float[Tensor, "B C A"]


@register("shown")
@dataclass(frozen=True)
class PosteriorEmbedConfig(EmbedConfig):
    """A class token, the state and each action of a chunk, with sinusoidal positions unless the stack adds its own."""

    states: int = 0  # size of the state, 0 for none
    actions: int = 1  # size of an action
    dropout: float = 0.0  # dropout rate of all tokens
    positions: bool = True  # whether tokens have sinusoidal positions

    @property
    def front(self) -> int:
        """Number of tokens before the actions."""
        return 1 + bool(self.states)

    def describe_inputs(self, vocab_size: int, context: int | None) -> str:
        return f"a state of size {self.states} and actions of size {self.actions}"

    def summary(self) -> str:
        return "class token, state, actions"

    def build(self, width: int, vocab_size: int, context: int | None) -> PosteriorEmbed:
        return PosteriorEmbed(self, width)


class PosteriorEmbed(Embed):
    """Zhao et al. 2023, figure 4, left: a class token, the state and the actions, with sinusoidal positions."""

    def __init__(self, config: PosteriorEmbedConfig, width: int) -> None:
        super().__init__()
        self.config = config
        self.first = LearnedVectors(1, width)
        self.states = Projection(config.states, width) if config.states else None
        self.actions = Projection(config.actions, width)
        self.positions = SinusoidalConfig().build(width, None) if config.positions else None
        self.dropout = Dropout(config.dropout)

    def forward(self, inputs: PosteriorInputs, layout: Layout) -> tuple[Float[Tensor, "B T D"], Layout]:
        actions = self.actions(inputs.actions)
        state = [] if self.states is None else [self.states(inputs.states)[:, None]]
        x = torch.cat([self.first(actions), *state, actions], 1)
        return self.dropout(x if self.positions is None else x + self.positions(layout, x)), layout


_OFFSET = 0.008  # offset s of the cosine schedule, so that the first step is not too small
_MAX_BETA = 0.999  # maximum beta of a step

Denoiser = Callable[[Float[Tensor, "B C A"], Int[Tensor, "B"]], tuple[Float[Tensor, "B C A"], Float[Tensor, "B C A"]]]
"""Splits x at given steps into the (clipped) sample and its (unclipped) noise."""


def alphas_cumprod(steps: int) -> Float[Tensor, "T"]:
    """The cumulative product of alphas after each step: the cosine schedule of Nichol and Dhariwal 2021, equation 17,
    with clipped betas.
    """
    fractions = torch.arange(steps + 1, dtype=torch.float64) / steps
    curve = torch.cos((fractions + _OFFSET) / (1 + _OFFSET) * math.pi / 2).square()
    betas = (1 - curve[1:] / curve[:-1]).clamp(max=_MAX_BETA)
    return (1 - betas).cumprod(0).float()


def sampling_steps(steps: int, sampled: int, spacing: Literal["trailing", "leading"] = "trailing") -> list[int]:
    """`sampled` evenly spaced steps in descending order, from the last one or ("leading") down to step 0."""
    if spacing == "leading":
        return [steps // sampled * index for index in reversed(range(sampled))]
    return [steps * (sampled - index) // sampled - 1 for index in range(sampled)]


def ddim(
    noise: Float[Tensor, "B C A"], denoise: Denoiser, alpha_bars: Float[Tensor, "T"], timesteps: Sequence[int]
) -> Float[Tensor, "B C A"]:
    """Song et al. 2021 (DDIM), equation 12 with sigma 0: from noise to a sample through the steps `timesteps`."""
    x = noise
    for timestep, next_timestep in zip(timesteps, [*timesteps[1:], None]):
        clean, direction = denoise(x, torch.full((x.shape[0],), timestep, device=x.device))
        if next_timestep is None:
            return clean
        x = alpha_bars[next_timestep].sqrt() * clean + (1 - alpha_bars[next_timestep]).sqrt() * direction
    return x


def ddpm(
    noise: Float[Tensor, "B N C A"], denoise: Denoiser, alpha_bars: Float[Tensor, "T"], timesteps: Sequence[int]
) -> Float[Tensor, "B C A"]:
    """Ho et al. 2020, algorithm 2 with the variance of equation 7: starts from the first of N noise samples; each step
    but the last adds another one.
    """
    x = noise[:, 0]
    for index, (timestep, next_timestep) in enumerate(zip(timesteps, [*timesteps[1:], None]), 1):
        clean, _ = denoise(x, torch.full((x.shape[0],), timestep, device=x.device))
        if next_timestep is None:
            return clean
        ratio, noise_variance = alpha_bars[timestep] / alpha_bars[next_timestep], 1 - alpha_bars[timestep]
        next_variance = 1 - alpha_bars[next_timestep]
        mean = (
            alpha_bars[next_timestep].sqrt() * (1 - ratio) / noise_variance * clean
            + ratio.sqrt() * next_variance / noise_variance * x
        )
        x = mean + ((1 - ratio) * next_variance / noise_variance).sqrt() * noise[:, index]
    return x


@register("diffusion")
@dataclass(frozen=True)
class DiffusionConfig(ChunkHeadConfig):
    """Diffusion Policy (Chi et al. 2023, section 2): the decoder takes a noisy chunk and predicts its `noise` (equation
    5) or the `sample` without it.

    `clip` limits the predicted sample to this range, in normalised units. It is required if the model predicts noise,
    because the first steps divide by almost zero: 1 for actions scaled by their range (task.scaling=range).

    The `sampler` "ddpm" adds noise at every step, "ddim" does not. `spacing` "trailing" samples steps from the last one
    down, "leading" so that the final one is step 0, as most other libraries do.
    """

    steps: int = 100  # noise steps in training
    sampled: int = 10  # denoising steps at inference
    predicts: Literal["noise", "sample"] = "sample"  # prediction target of the decoder: the noise, or the clean sample
    clip: float | None = None
    sampler: Literal["ddim", "ddpm"] = "ddim"  # ddpm adds noise at every denoising step, ddim none
    spacing: Literal["trailing", "leading"] = "trailing"  # steps to sample: from the last one, or down to step 0

    def __post_init__(self) -> None:
        if not 1 <= self.sampled <= self.steps:
            raise ConfigError(
                f"cannot sample {self.sampled} of {self.steps} steps; set model.head.sampled from 1 to model.head.steps"
            )
        if self.clip is not None and not self.clip > 0:
            raise ConfigError(f"model.head.clip is {self.clip}; set a number above 0, or none")
        if self.predicts == "noise" and self.clip is None:
            raise ConfigError(
                "a head that predicts noise needs clipped samples; set model.head.clip=1 and task.scaling=range, or "
                "model.head.predicts=sample"
            )

    @property
    def noised(self) -> bool:
        return True

    def sample_noise(self, random: np.random.Generator, rows: int, chunk: int, actions: int) -> ChunkNoise:
        sample_shape = (self.sampled,) if self.sampler == "ddpm" else ()
        noise = random.standard_normal((rows, *sample_shape, chunk, actions), np.float32)
        return ChunkNoise(torch.from_numpy(noise), torch.from_numpy(random.integers(0, self.steps, rows)))

    def losses(
        self, model: ChunkModel, observations: Observations, chunks: Chunks, sample: ChunkNoise
    ) -> dict[str, Loss]:
        """Ho et al. 2020, equation 14, over the actions in the mask."""
        assert sample.steps is not None
        noise = sample.noise[:, 0] if self.sampler == "ddpm" else sample.noise
        alpha_bar = to_device(alphas_cumprod(self.steps).to(noise.dtype), noise.device)[sample.steps][:, None, None]
        noisy_actions = alpha_bar.sqrt() * chunks.actions + (1 - alpha_bar).sqrt() * noise
        memory, terms = model.encode(observations)
        target = noise if self.predicts == "noise" else chunks.actions
        error = (model.decode_chunk(memory, NoisyChunks(noisy_actions, sample.steps)) - target).square()
        return {"actions": masked_loss(error, chunks, terms)}

    def predict(self, model: ChunkModel, observations: Observations, sample: ChunkNoise) -> Float[Tensor, "B C A"]:
        memory, _ = model.encode(observations)
        alpha_bars = alphas_cumprod(self.steps).to(sample.noise)

        def denoise(x: Tensor, steps: Tensor) -> tuple[Tensor, Tensor]:
            output, alpha_bar = model.decode_chunk(memory, NoisyChunks(x, steps)), alpha_bars[steps][:, None, None]
            if self.predicts == "noise":
                clean, noise = (x - (1 - alpha_bar).sqrt() * output) / alpha_bar.sqrt(), output
            else:
                clean, noise = output, (x - alpha_bar.sqrt() * output) / (1 - alpha_bar).sqrt()
            return clean if self.clip is None else clean.clamp(-self.clip, self.clip), noise

        sampler = ddpm if self.sampler == "ddpm" else ddim
        return sampler(sample.noise, denoise, alpha_bars, sampling_steps(self.steps, self.sampled, self.spacing))
