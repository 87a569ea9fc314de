"""Claim 1: Elman's gradients vanish."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from headway.claims.claim import Claim, Finding, Number, Trials, Values, mean, slope
from headway.claims.networks import MIXERS, Training, accuracy, generator, network, train
from headway.claims.page import plot_bars, plot_lines
from headway.claims.problems import recall
from headway.nn.models import Transformer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MIN_NORM = 1e-30  # smaller norms are 0 in fp32


@dataclass(frozen=True)
class VanishingGradientsSettings:
    """Recall of one of `symbols` at a `near` and a `far` distance, with `noise` other symbols in between."""

    near: int = 5
    far: int = 50
    symbols: int = 8
    noise: int = 8
    width: int = 32
    rows: int = 32
    training: Training = Training(steps=600)
    mixers: tuple[str, ...] = ("elman", "lstm", "gru", "attention")


def gradient_norms(model: Transformer, inputs: Tensor) -> list[float]:
    """|d y_T / d x_(T-k)| for k = 0, 1, ...: y_T is the stack's output at the last token, x the embedded inputs.

    The Frobenius norm of the Jacobian, estimated with random combinations of the outputs, as a mean over rows.
    """
    x, layout = model.embed(inputs, model.embed.default_layout(inputs))  # type: ignore[operator, union-attr]
    x = x.detach().requires_grad_()
    y = model.stack(x, layout).x[:, -1]
    signs = torch.randint(2, y.shape, generator=generator(0, 3)) * 2.0 - 1
    (gradient,) = torch.autograd.grad((y * signs).sum(), x)
    norms = gradient.norm(dim=-1).mean(0).flip(0)
    return [max(float(norm), _MIN_NORM) for norm in norms]


def variants(settings: VanishingGradientsSettings) -> list[str]:
    return [f"{name}, {distance}" for name in settings.mixers for distance in (settings.far, settings.near)]


def measure(settings: VanishingGradientsSettings, variant: str, seed: int) -> Values:
    name, distance = variant.split(", ")
    config = network(
        MIXERS[name], width=settings.width, vocab_size=settings.symbols + settings.noise + 1, outputs=settings.symbols
    )
    model = config.build(seed)
    sample_batch = recall(settings.rows, settings.symbols, settings.noise, int(distance))
    inputs = sample_batch(generator(seed, 4)).inputs
    before = gradient_norms(model, inputs)
    losses = train(model, sample_batch, settings.training, seed)
    return {
        "accuracy": accuracy(model, sample_batch, seed),
        "gradients": before,
        "gradients_trained": gradient_norms(model, inputs),
        "losses": losses[:: max(1, len(losses) // 50)],
    }


def decay(settings: VanishingGradientsSettings, trials: Trials, name: str, key: str) -> list[float]:
    """The slope of ln |gradient| over distance, per trial; at -0.1, a tenth is lost per token."""
    all_norms = trials.collect(f"{name}, {settings.far}", key)
    return [slope(range(1, len(norms)), [math.log(n) for n in norms[1:]]).value for norms in all_norms]


def apply_rule(settings: VanishingGradientsSettings, trials: Trials) -> Finding:
    half = math.log(2) / 10
    numbers, decays, far, near = [], {}, {}, {}
    for name in settings.mixers:
        decays[name] = mean(decay(settings, trials, name, "gradients"))
        far[name] = trials.share(f"{name}, {settings.far}", "accuracy")
        near[name] = trials.share(f"{name}, {settings.near}", "accuracy")
        numbers.append(Number(f"{name}: accuracy at {settings.far}", far[name]))
        numbers.append(Number(f"{name}: accuracy at {settings.near}", near[name]))
        numbers.append(Number(f"{name}: ln gradient per token, untrained", decays[name]))
        trained = mean(decay(settings, trials, name, "gradients_trained"))
        numbers.append(Number(f"{name}: ln gradient per token, trained at {settings.far}", trained))
    vanish = decays["elman"].high < -half and decays["attention"].low > -half
    fails = far["elman"].high < 0.5 and far["lstm"].low > 0.5 and far["attention"].low > 0.5
    remarks = [f"Chance is {1 / settings.symbols:.3g}."]
    if decays["lstm"].high < -half:
        remarks.append("The gradients of the untrained LSTM vanish too: not all of its forget gates are open.")
    return Finding(numbers, effect=vanish and fails, control=near["elman"].low > 0.5, remarks=remarks)


def draw(figure: Figure, settings: VanishingGradientsSettings, trials: Trials) -> None:
    left, middle, right = figure.subplots(1, 3, width_ratios=(1, 1, 0.9), sharey=False)
    labels: dict[str, Any] = {"x": "distance k", "log": "y"}
    for axes, key, title in (
        (left, "gradients", "|dy / dx| at distance k, untrained"),
        (middle, "gradients_trained", "the same, trained"),
    ):
        series = {name: trials.collect(f"{name}, {settings.far}", key) for name in settings.mixers}
        plot_lines(axes, range(settings.far + 1), series, title=title, **labels)
        labels["legend"] = False
        axes.set_ylim(1e-10, None)
    accuracies = {
        f"{name}, {distance}": trials.share(f"{name}, {distance}", "accuracy")
        for name in settings.mixers
        for distance in (settings.near, settings.far)
    }
    plot_bars(right, accuracies, title="recall at a distance", x="accuracy", chance=None)
    right.axvline(1 / settings.symbols, color="#98a4b0", linewidth=1, linestyle=":")
    right.set_xlim(0, 1.05)


CLAIM = Claim(
    number=1,
    name="vanishing-gradients",
    title="Elman's gradients vanish",
    statement="What an Elman network learns from an input decreases exponentially with its distance, so it fails to "
    "recall over a distance at which an LSTM and attention succeed.",
    source="Hochreiter 1991; Bengio, Simard and Frasconi 1994; Hochreiter and Schmidhuber 1997, section 3",
    measured="The norm of the gradient of the last output with respect to the input k tokens earlier, before and after "
    "training; and the accuracy of recalling the first of 51 symbols, with equal width, data, steps and optimiser.",
    rule="Elman's gradients halve at least every 10 tokens (the interval of the slope of ln |gradient| is below "
    "-0.069) and attention's do not. At the far distance, Elman recalls less than half (upper end of its interval), "
    "LSTM and attention more than half (lower ends).",
    control="At the near distance the claim must be wrong: there Elman has to recall more than half. If it fails there "
    "too, its training is at fault, and not the distance.",
    minutes=1.5,
    settings=VanishingGradientsSettings(),
    variants=variants,
    measure=measure,
    apply_rule=apply_rule,
    draw=draw,
)
