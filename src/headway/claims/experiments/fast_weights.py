"""Claim 4: the fast weight controller is the unnormalised linear transformer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor, nn

from headway.claims.claim import Claim, Finding, Interval, Number, Trials, Values
from headway.claims.networks import START, generator
from headway.claims.page import plot_lines
from headway.layout import Layout
from headway.nn.mixers import AttentionConfig, FastWeightsConfig, LinearAttentionConfig, Mixer
from headway.nn.parts.init import initialise

if TYPE_CHECKING:
    from matplotlib.figure import Figure

UNNORMALISED = "unnormalised"
CONTROLS = ("normalised", "softmax")
MAX_EQUAL, MIN_UNEQUAL = 1e-9, 1e-2  # relative differences in double precision


@dataclass(frozen=True)
class FastWeightsSettings:
    """Lengths, some of which are not multiples of the parallel form's chunk size."""

    lengths: tuple[int, ...] = (1, 7, 64, 100, 257)
    width: int = 32
    heads: int = 4
    rows: int = 2


def mixer_of(settings: FastWeightsSettings, variant: str) -> Mixer:
    """A mixer in double precision; all mixers have the same parameters with the same names."""
    heads = settings.heads
    config = {
        "controller": FastWeightsConfig(heads, strength=False),
        "unnormalised": LinearAttentionConfig(heads, features="identity", normalise=False),
        "normalised": LinearAttentionConfig(heads, features="elu"),
        "softmax": AttentionConfig(heads),
    }[variant]
    return config.build(settings.width, nn.ModuleDict()).double()


def reference_outputs(controller: Mixer, x: Float[Tensor, "B T D"], heads: int) -> Float[Tensor, "B T D"]:
    """As in 1992: a slow network determines the writes, W = W + v k^T, and the fast one returns y = W q."""
    batch, length, width = x.shape
    q, k, v = controller.qkv(x).view(batch, length, 3, heads, -1).unbind(2)  # type: ignore[operator, union-attr]
    fast = x.new_zeros(batch, heads, width // heads, width // heads)
    outputs = []
    for t in range(length):
        fast = fast + v[:, t, :, :, None] * k[:, t, :, None, :]
        outputs.append((fast @ q[:, t, :, :, None])[..., 0])
    return controller.out(torch.stack(outputs, 1).flatten(2))  # type: ignore[operator]


def gradients(y: Tensor, x: Tensor, mixer: nn.Module) -> list[Tensor]:
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
    return list(torch.autograd.grad((y * weights).sum(), [x, *mixer.parameters()]))


def relative_difference(first: Tensor, second: Tensor) -> float:
    """The largest difference, relative to the largest value."""
    first, second = first.detach(), second.detach()
    return float((first - second).abs().max() / second.abs().max().clamp(min=1e-300))


def measure(settings: FastWeightsSettings, variant: str, seed: int) -> Values:
    controller = mixer_of(settings, "controller")
    initialise(controller, START, 1, seed)
    mixer = mixer_of(settings, variant)
    mixer.load_state_dict(controller.state_dict())
    differences: dict[str, list[float]] = {"outputs": [], "gradients": [], "module": []}
    for length in settings.lengths:
        shape = (settings.rows, length, settings.width)
        x = torch.randn(shape, generator=generator(seed, length), dtype=torch.float64, requires_grad=True)
        layout = Layout.full(settings.rows, length)
        reference, parallel = reference_outputs(controller, x, settings.heads), mixer.parallel(x, layout)
        differences["outputs"].append(relative_difference(parallel, reference))
        pairs = zip(gradients(parallel, x, mixer), gradients(reference, x, controller))
        differences["gradients"].append(max(relative_difference(a, b) for a, b in pairs if b.abs().max() > 0))
        differences["module"].append(relative_difference(token_by_token(controller, x, layout), reference))
    return differences


@torch.no_grad()
def token_by_token(mixer: Mixer, x: Tensor, layout: Layout) -> Tensor:
    """The library's controller, token by token through its state."""
    state, outputs = mixer.initial_state(x.shape[0], x.shape[1], like=x), []
    for t in range(x.shape[1]):
        y, state = mixer.recurrent(x[:, t : t + 1], Layout(layout.positions[:, t : t + 1]), state)
        outputs.append(y)
    return torch.cat(outputs, 1)


def largest_difference(trials: Trials, variant: str, key: str) -> float:
    return max(max(series) for series in trials.collect(variant, key))


def apply_rule(settings: FastWeightsSettings, trials: Trials) -> Finding:
    def number(name: str, value: float) -> Number:
        return Number(name, Interval(value, value, value), "all seeds and lengths")

    same = {key: largest_difference(trials, UNNORMALISED, key) for key in ("outputs", "gradients", "module")}
    # A control must differ for every seed and every length above one token.
    long = [i for i, length in enumerate(settings.lengths) if length > 1]
    smallest = {v: min(trials.collect(v, "outputs")[s][i] for s in range(trials.seeds) for i in long) for v in CONTROLS}
    numbers = [
        number("outputs: largest relative difference", same["outputs"]),
        number("gradients: largest relative difference", same["gradients"]),
        number("controller through its state: largest relative difference", same["module"]),
        *(number(f"control, {v}: smallest relative difference", value) for v, value in smallest.items()),
    ]
    return Finding(numbers, max(same.values()) < MAX_EQUAL, all(value > MIN_UNEQUAL for value in smallest.values()))


def draw(figure: Figure, settings: FastWeightsSettings, trials: Trials) -> None:
    axes = figure.subplots()
    floor = 1e-18
    titles = {
        "linear, unnormalised: outputs": (UNNORMALISED, "outputs"),
        "linear, unnormalised: gradients": (UNNORMALISED, "gradients"),
        "linear, normalised (control): outputs": ("normalised", "outputs"),
        "attention with softmax (control): outputs": ("softmax", "outputs"),
    }
    series = {
        title: [[max(value, floor) for value in run] for run in trials.collect(variant, key)]
        for title, (variant, key) in titles.items()
    }
    axes.axhline(MAX_EQUAL, color="#98a4b0", linewidth=1, linestyle=":")
    title = "relative difference from the fast weight controller of 1992, weights shared"
    plot_lines(axes, settings.lengths, series, title=title, x="tokens", log="xy", ticks=settings.lengths)
    axes.set_ylim(floor, 10)


CLAIM = Claim(
    number=4,
    name="fast-weights",
    title="The fast weight controller is the unnormalised linear transformer",
    statement="A slow network that writes keys and values into fast weights by outer products (1992) computes the same "
    "function as linear attention without normalisation (2020).",
    source="Schmidhuber 1992; Katharopoulos et al. 2020; Schlag, Irie and Schmidhuber 2021, section 3.1",
    measured="W = W + v k^T, y = W q, token by token as in 1992, compared with the parallel, masked form of linear "
    "attention with the same weights: outputs and gradients in double precision at several lengths.",
    rule="For all seeds and lengths, the largest relative difference of outputs and of gradients is below 1e-9.",
    control="Normalised linear attention and softmax attention have the same weights but compute another function: "
    "both must differ by more than 1e-2 for more than one token. Otherwise the measure would not detect any "
    "difference.",
    minutes=0.2,
    settings=FastWeightsSettings(),
    variants=lambda settings: [UNNORMALISED, *CONTROLS],
    measure=measure,
    apply_rule=apply_rule,
    draw=draw,
)
