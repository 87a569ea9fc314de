"""Claim 17: the operations of attention grow with the square of the length, by count and by the clock."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from headway.claims.claim import Claim, Finding, Number, Trials, Values
from headway.claims.experiments.cost_of_context import LINE, SQUARE, fit_exponent, is_within
from headway.claims.networks import LINEAR, MIXERS, generator, measure_seconds, network, single_thread
from headway.claims.page import plot_lines
from headway.nn.kernels import recording
from headway.nn.mixers import AttentionConfig, MixerConfig

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CONTROL = "attention, short rows"
MIXERS_BY_VARIANT: dict[str, MixerConfig] = {
    "attention": AttentionConfig(heads=1),
    "linear attention": LINEAR["linear attention"],
    "delta": LINEAR["delta"],
    "elman": MIXERS["elman"],
    CONTROL: AttentionConfig(heads=1),
}
COUNTED_SQUARE, COUNTED_LINE = (1.9, 2.1), (0.95, 1.05)  # allowed range of an exponent's interval, by count


@dataclass(frozen=True)
class CountedCostSettings:
    """Operations are counted at the `counted` lengths and timed at `lengths`, with at least one length in common. The
    control has the same tokens in rows of `row` tokens.
    """

    counted: tuple[int, ...] = (1024, 2048, 4096)
    lengths: tuple[int, ...] = (2048, 4096, 8192, 16384)
    width: int = 32
    row: int = 256
    enough: float = 0.2  # minimum seconds to measure each cost


def measure(settings: CountedCostSettings, variant: str, seed: int) -> Values:
    model = network(MIXERS_BY_VARIANT[variant], width=settings.width, vocab_size=8, outputs=1).build(seed)
    source = generator(seed, 9)

    def inputs(length: int) -> Tensor:
        return torch.randint(8, (1, length), generator=source).view(-1, settings.row if variant == CONTROL else length)

    def step(tokens: Tensor) -> None:
        model(tokens).x.square().mean().backward()

    operations, seconds = [], []
    for length in settings.counted:
        # In the plain form of attention, because torch does not count the products inside its fused CPU kernel.
        with FlopCounterMode(display=False) as counter, recording(lambda weights: None):
            step(inputs(length))
        operations.append(counter.get_total_flops())
    with single_thread():
        for length in settings.lengths:
            tokens = inputs(length)
            seconds.append(
                measure_seconds(lambda tokens=tokens: step(tokens), settings.enough, clock=time.process_time)
            )
    return {"operations": operations, "seconds": seconds}


def apply_rule(settings: CountedCostSettings, trials: Trials) -> Finding:
    numbers, agrees = [], {}
    for variant in MIXERS_BY_VARIANT:
        counted = fit_exponent(trials, variant, "operations", settings.counted)
        timed = fit_exponent(trials, variant, "seconds", settings.lengths)
        numbers += [Number(f"{variant}: counted", counted, "points")]
        numbers += [Number(f"{variant}: by the clock", timed, "points")]
        by_count, by_clock = (COUNTED_SQUARE, SQUARE) if variant == "attention" else (COUNTED_LINE, LINE)
        agrees[variant] = is_within(counted, by_count) and is_within(timed, by_clock)
    remarks = ["All numbers are exponents p of cost = a T^p."]
    length = max(set(settings.counted) & set(settings.lengths))
    speeds = []
    for variant in MIXERS_BY_VARIANT:
        count = trials.collect_point(variant, "operations", settings.counted.index(length))[0]
        seconds = trials.collect_point(variant, "seconds", settings.lengths.index(length))[0]
        speeds.append(f"{variant} {count / seconds / 1e9:.1f}")
    remarks.append(
        f"Equal counts do not take equal times. Thousand million counted operations per second at {length:,} tokens: "
        f"{', '.join(speeds)}."
    )
    control = agrees.pop(CONTROL)
    return Finding(numbers, all(agrees.values()), control, remarks)


def draw(figure: Figure, settings: CountedCostSettings, trials: Trials) -> None:
    left, right = figure.subplots(1, 2)
    series = {v: [[n / 1e6 for n in run] for run in trials.collect(v, "operations")] for v in MIXERS_BY_VARIANT}
    title = "operations of a training step, millions"
    plot_lines(left, settings.counted, series, title=title, x="tokens", log="xy", ticks=settings.counted)
    series = {v: [[1000 * t for t in run] for run in trials.collect(v, "seconds")] for v in MIXERS_BY_VARIANT}
    title = "processor time of a training step, ms"
    labels = {"title": title, "x": "tokens", "log": "xy", "ticks": settings.lengths, "legend": False}
    plot_lines(right, settings.lengths, series, **labels)


CLAIM = Claim(
    number=17,
    name="counted-cost",
    title="Counted operations and the clock agree on the square",
    statement="The operations of attention grow with the square of the length; those of linear attention, of the delta "
    "rule and of an Elman network in proportion to it. The clock shows the same exponents, though less exactly.",
    source="Vaswani et al. 2017, table 1; Katharopoulos et al. 2020",
    measured="A training step of one block over one text: the multiplications and additions in its matrix products, "
    "counted as torch executes them, and its processor time on one core. Attention is counted in its plain form, which "
    "computes the masked scores, too. Elementwise functions are not counted.",
    rule="By count, the interval of attention's exponent is within 1.9 to 2.1, and those of the others within 0.95 to "
    "1.05. By the clock, they are within 1.6 to 2.2 and 0.8 to 1.2, as in claim 7.",
    control="The same attention over as many tokens, cut into rows of 256, must not be quadratic: its exponents have "
    "to be within 0.95 to 1.05 by count and 0.8 to 1.2 by the clock. Otherwise the square would come from the number "
    "of tokens, and not from the length of the text.",
    minutes=1.5,
    settings=CountedCostSettings(),
    variants=lambda settings: list(MIXERS_BY_VARIANT),
    measure=measure,
    apply_rule=apply_rule,
    draw=draw,
)
