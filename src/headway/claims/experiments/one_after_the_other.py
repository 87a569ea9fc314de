"""Claim 5: recurrent networks run one token after the other; attention runs all at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch

from headway.claims.claim import Claim, Finding, Interval, Number, Trials, Values, mean
from headway.claims.networks import (
    MIXERS,
    config_of_size,
    generator,
    measure_seconds,
    network,
    num_parameters,
    step_seconds,
)
from headway.claims.page import plot_lines
from headway.layout import Layout
from headway.nn.models import ModelConfig, Transformer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SEQUENTIAL = "attention, token by token"
PARALLEL, RECURRENT = "attention", ("elman", "lstm", "gru")


@dataclass(frozen=True)
class OneAfterTheOtherSettings:
    """One sequence of each length per step, for models with as many parameters as attention at this width."""

    lengths: tuple[int, ...] = (32, 64, 128, 256, 512)
    width: int = 96
    symbols: int = 32
    enough: float = 0.2  # minimum seconds to measure each cost


def config_of(settings: OneAfterTheOtherSettings, mixer: str) -> ModelConfig:
    def config(width: int, mixer: str) -> ModelConfig:
        return network(MIXERS[mixer], width=width, vocab_size=settings.symbols, outputs=1)

    parallel = config(settings.width, PARALLEL)
    if mixer == PARALLEL:
        return parallel
    return config_of_size(lambda width: config(width, mixer), num_parameters(parallel), step=4)


def measure(settings: OneAfterTheOtherSettings, variant: str, seed: int) -> Values:
    model = cast(Transformer, config_of(settings, PARALLEL if variant == SEQUENTIAL else variant).build(seed))
    source = generator(seed, 8)
    inputs = [torch.randint(settings.symbols, (1, length), generator=source) for length in settings.lengths]
    if variant == SEQUENTIAL:
        return {
            "parameters": num_parameters(model),
            "forward": [measure_seconds(lambda t=text: step_by_step(model, t), settings.enough) for text in inputs],
        }
    times = [step_seconds(model, text, settings.enough) for text in inputs]
    return {"parameters": num_parameters(model), "forward": [f for f, _ in times], "backward": [b for _, b in times]}


@torch.no_grad()
def step_by_step(model: Transformer, text: torch.Tensor) -> None:
    """The forward pass of the same model, token by token with a state, as in a recurrent network."""
    states = None
    for position in range(text.shape[1]):
        x, layout = model.embed(text[:, position : position + 1], Layout(torch.tensor([[position]])))
        states = states or model.stack.initial_states(1, text.shape[1], like=x)
        _, states, _ = model.stack(x, layout, states)


def ratio(trials: Trials, slow: str, fast: str, names: tuple[str, ...], index: int) -> Interval:
    """The ratio of two variants' times, over repetitions."""
    tops, bottoms = (
        [sum(parts) for parts in zip(*(trials.collect_point(v, n, index) for n in names))] for v in (slow, fast)
    )
    return mean([top / bottom for top, bottom in zip(tops, bottoms)])


def apply_rule(settings: OneAfterTheOtherSettings, trials: Trials) -> Finding:
    numbers, max_length = [], settings.lengths[-1]
    step_ratios = {v: ratio(trials, v, PARALLEL, ("forward", "backward"), -1) for v in RECURRENT}
    numbers += [
        Number(f"{v} / attention: a step of {max_length} tokens", ratio_interval, "repetitions")
        for v, ratio_interval in step_ratios.items()
    ]
    for name in ("forward", "backward"):
        ratio_interval = ratio(trials, "lstm", PARALLEL, (name,), -1)
        numbers.append(Number(f"lstm / attention: {name}, {max_length} tokens", ratio_interval, "repetitions"))
    short_ratio = ratio(trials, "lstm", PARALLEL, ("forward", "backward"), 0)
    numbers.append(Number(f"lstm / attention: a step of {settings.lengths[0]} tokens", short_ratio, "repetitions"))
    control_ratio = ratio(trials, SEQUENTIAL, "lstm", ("forward",), -1)
    numbers.append(
        Number(f"attention token by token / lstm: forward, {max_length} tokens", control_ratio, "repetitions")
    )
    sizes = {v: trials.collect(v, "parameters")[0] for v in (PARALLEL, *RECURRENT)}
    listed = ", ".join(f"{v} {count:,}" for v, count in sizes.items())
    remarks = [f"Parameters: {listed}.", "The gain of running all tokens at once depends on the number of threads."]
    effect = (
        all(ratio_interval.low > 1 for ratio_interval in step_ratios.values())
        and step_ratios["lstm"].value > short_ratio.value
    )
    return Finding(numbers, effect, control=control_ratio.low > 1, remarks=remarks)


def draw(figure: Figure, settings: OneAfterTheOtherSettings, trials: Trials) -> None:
    for axes, name in zip(figure.subplots(1, 2, sharey=True), ("forward", "backward")):
        series = {
            variant: [[1000 * t for t in times] for times in trials.collect(variant, name)]
            for variant in (PARALLEL, *RECURRENT, *((SEQUENTIAL,) if name == "forward" else ()))
        }
        plot_lines(
            axes, settings.lengths, series, title=f"{name}, one text", x="tokens", log="xy", ticks=settings.lengths
        )
    figure.axes[0].set_ylabel("milliseconds")
    figure.axes[0].set_ylim(top=30 * figure.axes[0].get_ylim()[1])  # space for the legend


CLAIM = Claim(
    number=5,
    name="one-after-the-other",
    title="Recurrent networks run one token after the other; attention runs all at once",
    statement="With equally many parameters, a training step of a recurrent network takes longer than one of "
    "attention, and the ratio grows with the length of the text, because tokens have to wait for each other.",
    source="Vaswani et al. 2017, section 1 and table 1",
    measured="The time of a forward and of a backward pass over one text of 32 to 512 tokens, the best of several "
    "runs. Widths are chosen so that all have as many parameters as attention. Repetitions replace seeds.",
    rule="At the greatest length, every recurrent network takes longer than attention (the factor's lower end above "
    "1), and the LSTM's factor is greater there than at the shortest length.",
    control="The same attention, run token by token with a state, must lose its lead: its forward pass has to take "
    "longer than the LSTM's (lower end above 1). Otherwise attention would not owe its speed to running all at once.",
    minutes=1.5,
    settings=OneAfterTheOtherSettings(),
    variants=lambda settings: [PARALLEL, *RECURRENT, SEQUENTIAL],
    measure=measure,
    apply_rule=apply_rule,
    draw=draw,
    seeds=6,
)
