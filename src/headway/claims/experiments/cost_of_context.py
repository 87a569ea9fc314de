"""Claim 7: attention costs the square of the context; the linear forms a line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from headway.claims.claim import Claim, Finding, Interval, Number, Trials, Values, exponent
from headway.claims.networks import LINEAR, generator, measure_seconds, network, saved_bytes, step_seconds
from headway.claims.page import plot_lines
from headway.layout import Layout
from headway.nn.kernels import recording
from headway.nn.mixers import AttentionConfig, Mixer, MixerConfig, tree_map
from headway.nn.models import Transformer, TransformerConfig
from headway.visibility import Causal

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ATTENTION, LINEAR_FORMS, CONTROL = "attention", ("linear attention", "delta"), "attention, window"
SQUARE, LINE = (1.6, 2.2), (0.8, 1.2)  # allowed range of an exponent's interval


@dataclass(frozen=True)
class CostOfContextSettings:
    """`lengths` are training lengths, `counted` the lengths for counting memory, `contexts` the context lengths before
    a decoded token.
    """

    lengths: tuple[int, ...] = (2048, 4096, 8192, 16384)
    counted: tuple[int, ...] = (1024, 2048, 4096)
    contexts: tuple[int, ...] = (32768, 65536, 131072, 262144)
    training_width: int = 32
    decoding_width: int = 128
    window: int = 256
    enough: float = 0.2  # minimum seconds to measure each cost


def config_of(settings: CostOfContextSettings, variant: str, width: int) -> TransformerConfig:
    mixers: dict[str, MixerConfig] = {
        ATTENTION: AttentionConfig(heads=1),
        CONTROL: AttentionConfig(heads=1, pattern=Causal(settings.window)),
        **{name: LINEAR[name] for name in LINEAR_FORMS},
    }
    return network(mixers[variant], width=width, vocab_size=8, outputs=1)


def measure(settings: CostOfContextSettings, variant: str, seed: int) -> Values:
    values: dict[str, Any] = {}
    if variant != CONTROL:  # in training on a CPU, a window is a mask over all scores and saves nothing
        values = measure_training(settings, config_of(settings, variant, settings.training_width).build(seed), seed)
    model = config_of(settings, variant, settings.decoding_width).build(seed)
    return {**values, **measure_decoding(settings, model)}


def measure_training(settings: CostOfContextSettings, model: Transformer, seed: int) -> dict[str, Any]:
    """The time for the forward and backward pass, and the bytes saved between them by the fused kernel and by the plain
    form, which stores every attention weight.
    """
    source = generator(seed, 9)
    inputs = {n: torch.randint(8, (1, n), generator=source) for n in {*settings.lengths, *settings.counted}}
    with recording(lambda weights: None):
        plain = [saved_bytes(model, inputs[n]) for n in settings.counted]
    return {
        "training": [sum(step_seconds(model, inputs[n], settings.enough)) for n in settings.lengths],
        "kept": [saved_bytes(model, inputs[n]) for n in settings.counted],
        "kept, plain": plain,
    }


@torch.no_grad()
def measure_decoding(settings: CostOfContextSettings, model: Transformer) -> dict[str, Any]:
    """The time for one more token after a context, and the size of its state in bytes."""
    times, sizes = [], []
    for context in settings.contexts:
        x, layout = model.embed(torch.tensor([[0]]), Layout(torch.tensor([[context]])))
        states = model.stack.initial_states(1, context + 1, like=x)
        times.append(
            measure_seconds(lambda x=x, layout=layout, states=states: model.stack(x, layout, states), settings.enough)
        )
        sizes.append(state_bytes(model, context + 1))
    return {"decoding": times, "state": sizes}


def state_bytes(model: nn.Module, context: int) -> int:
    sizes: list[int] = []
    like = torch.empty(0)
    for mixer in (m for m in model.modules() if isinstance(m, Mixer)):
        tree_map(lambda t: sizes.append(t.numel() * t.element_size()), mixer.initial_state(1, context, like=like))
    return sum(sizes)


def fit_exponent(trials: Trials, variant: str, key: str, xs: tuple[int, ...], offset: float = 0.0) -> Interval:
    """The exponent over all repetitions plus `offset`: the exponent for decoding a whole text is 1 more than that for
    one token.
    """
    runs = trials.collect(variant, key)
    fitted = exponent([x for _ in runs for x in xs], [y for run in runs for y in run])
    return Interval(*(part + offset for part in fitted))


def apply_rule(settings: CostOfContextSettings, trials: Trials) -> Finding:
    numbers, effect = [], True
    for variant in (ATTENTION, *LINEAR_FORMS):
        allowed = SQUARE if variant == ATTENTION else LINE
        costs = {
            "time of training": fit_exponent(trials, variant, "training", settings.lengths),
            "time of decoding a text": fit_exponent(trials, variant, "decoding", settings.contexts, 1.0),
            "memory of training, plain form": fit_exponent(trials, variant, "kept, plain", settings.counted),
        }
        effect = effect and all(is_within(interval, allowed) for interval in costs.values())
        costs["memory of training, fused"] = fit_exponent(trials, variant, "kept", settings.counted)
        costs["memory of decoding"] = fit_exponent(trials, variant, "state", settings.contexts)
        numbers += [Number(f"{variant}: {name}", interval, "points") for name, interval in costs.items()]
    control = fit_exponent(trials, CONTROL, "decoding", settings.contexts, 1.0)
    numbers.append(Number(f"{CONTROL} of {settings.window}: time of decoding a text", control, "points"))
    fused = next(n.interval for n in numbers if n.name == "attention: memory of training, fused")
    remarks = ["All numbers are exponents p of cost = a T^p."]
    if is_within(fused, LINE):
        remarks.append(
            "With the fused kernel, the memory of attention in training is linear; only its time is quadratic."
        )
    return Finding(numbers, effect, is_within(control, LINE), remarks)


def is_within(interval: Interval, limits: tuple[float, float]) -> bool:
    return limits[0] < interval.low and interval.high < limits[1]


def draw(figure: Figure, settings: CostOfContextSettings, trials: Trials) -> None:
    left, middle, right = figure.subplots(1, 3)
    every = (ATTENTION, *LINEAR_FORMS)
    thousand = [x / 1024 for x in settings.lengths]
    series = {v: [[1000 * t for t in run] for run in trials.collect(v, "training")] for v in every}
    plot_lines(left, thousand, series, title="training step, ms", x="tokens, thousands", log="xy", ticks=thousand)
    series = {v: [[b / 2**20 for b in run] for run in trials.collect(v, "kept, plain")] for v in every}
    series["attention, fused"] = [[b / 2**20 for b in run] for run in trials.collect(ATTENTION, "kept")]
    plot_lines(
        middle,
        settings.counted,
        series,
        title="saved for the backward pass, MiB",
        x="tokens",
        log="xy",
        ticks=settings.counted,
    )
    thousand = [x / 1024 for x in settings.contexts]
    series = {v: [[1000 * t for t in run] for run in trials.collect(v, "decoding")] for v in (*every, CONTROL)}
    plot_lines(right, thousand, series, title="one token, ms", x="context, thousands", log="xy", ticks=thousand)


CLAIM = Claim(
    number=7,
    name="cost-of-context",
    title="Attention costs the square of the context; the linear forms a line",
    statement="The time and memory of attention grow with the square of the context. Those of linear attention and of "
    "the delta rule grow in proportion to it, in training and in decoding.",
    source="Vaswani et al. 2017, table 1; Katharopoulos et al. 2020; Schlag, Irie and Schmidhuber 2021",
    measured="One block at 2,048 to 16,384 tokens: the time of a training step; the counted bytes saved for its "
    "backward pass, in the plain form that stores every attention weight and in the fused form; and the time of one "
    "token after a context of up to 262,144, whose integral is the time of a whole text. Exponents are fitted to the "
    "logarithms.",
    rule="For the time of training, the time of decoding a whole text, and the memory of training in the plain form, "
    "the interval of attention's exponent is within 1.6 to 2.2, and that of the linear forms within 0.8 to 1.2.",
    control="Attention within a window must not be quadratic: the exponent of decoding a text has to be within 0.8 to "
    "1.2. Otherwise the fit would find squares anywhere.",
    minutes=3.0,
    settings=CostOfContextSettings(),
    variants=lambda settings: [ATTENTION, *LINEAR_FORMS, CONTROL],
    measure=measure,
    apply_rule=apply_rule,
    draw=draw,
)
