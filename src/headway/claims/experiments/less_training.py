"""Claim 6: transformers need less training time."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from headway.claims.claim import Claim, Finding, Number, Trials, Values
from headway.claims.pictures import bars, colour
from headway.claims.pronunciation import WITHOUT_ORDER, Budget, seconds_to, tuned
from headway.claims.statistics import Interval, mean

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ANCESTORS = ("lstm", "gru")


@dataclass(frozen=True)
class Settings:
    """`target` is the phoneme error rate to be reached."""

    target: float = 0.30
    budget: Budget = Budget()


def measure(settings: Settings, variant: str, seed: int) -> Values:
    return tuned(settings.budget, variant, seed)


def runs(trials: Trials, variant: str) -> list[Values]:
    return [trial.values for trial in trials.all if trial.variant == variant]


def factor(settings: Settings, trials: Trials, variant: str) -> Interval:
    """How many times as long as attention a variant takes to the target: the geometric mean over pairs of seeds."""
    pairs = zip(runs(trials, variant), runs(trials, "attention"))
    logs = [math.log(seconds_to(a, settings.target)[0] / seconds_to(b, settings.target)[0]) for a, b in pairs]
    return Interval(*(math.exp(part) if part < 700 else math.inf for part in mean(logs)))


def judge(settings: Settings, trials: Trials) -> Finding:
    numbers, remarks = [], []
    for variant in ("attention", *ANCESTORS, WITHOUT_ORDER):
        reached = [seconds_to(values, settings.target) for values in runs(trials, variant)]
        numbers.append(Number(f"{variant}: seconds to the target", mean([time for time, _ in reached])))
        numbers.append(Number(f"{variant}: error rate in the end", mean(trials_end(trials, variant))))
        missed = sum(not there for _, there in reached)
        if missed:
            remarks.append(f"{variant}: {missed} of {len(reached)} runs never reach it, and count with all their time.")
    factors = {variant: factor(settings, trials, variant) for variant in (*ANCESTORS, WITHOUT_ORDER)}
    numbers += [Number(f"{variant} over attention: time", found) for variant, found in factors.items()]
    known = all(there for _, there in (seconds_to(values, settings.target) for values in runs(trials, "attention")))
    sizes = {v: trials.of(v, "parameters")[0] for v in ("attention", *ANCESTORS)}
    remarks.append("Parameters: " + ", ".join(f"{v} {count:,}" for v, count in sizes.items()) + ".")
    return Finding(
        numbers,
        effect=known and all(factors[variant].low > 1 for variant in ANCESTORS),
        control=factors[WITHOUT_ORDER].low > 1,
        remarks=remarks,
    )


def trials_end(trials: Trials, variant: str) -> list[float]:
    return [values["per"][-1] for values in runs(trials, variant)]


def draw(figure: Figure, settings: Settings, trials: Trials) -> None:
    left, right = figure.subplots(1, 2, width_ratios=(1.4, 1))
    for index, variant in enumerate(("attention", *ANCESTORS, WITHOUT_ORDER)):
        style = ":" if variant == WITHOUT_ORDER else "-"
        for number, values in enumerate(runs(trials, variant)):
            label = None if number else variant
            rates = [100 * rate for rate in values["per"]]
            left.plot(values["seconds"], rates, style, color=colour(variant, index), label=label, alpha=0.8)
    left.axhline(100 * settings.target, color="#98a4b0", linewidth=1, linestyle="--")
    left.set(xlabel="seconds of training", ylabel="phoneme error rate, %")
    left.set_title("pronunciation, each seed")
    left.set_ylim(0, 100)
    left.legend(fontsize=8)
    times = {
        variant: mean([seconds_to(values, settings.target)[0] for values in runs(trials, variant)])
        for variant in ("attention", *ANCESTORS)
    }
    bars(right, times, title=f"seconds to {100 * settings.target:.0f} %", x="seconds")


CLAIM = Claim(
    number=6,
    name="less-training",
    title="Transformers need less training time",
    statement="A transformer reaches the quality of LSTM and GRU models of equal size in less time.",
    source="Vaswani et al. 2017, section 6.1 and table 2",
    measured="English words to phonemes (recipe pronounce): validation error rate over the seconds of training. The "
    "mixers of encoder (both ways) and decoder are attention, LSTM or GRU; all read the source by attention; widths "
    "are chosen so that sizes are equal. AdamW, its rate chosen for each run by short runs before.",
    rule="LSTM and GRU each take longer than attention to the error rate fixed beforehand: the interval of the "
    "factor (geometric mean over seeds) lies above 1, and all runs of attention reach it.",
    control="A transformer that is not told the order of the letters must not be faster: it has to take longer than "
    "the one that is (interval of the factor above 1). If it did not, the target would be too easy to tell models "
    "apart.",
    minutes=20.0,
    settings=Settings(),
    variants=lambda settings: ["attention", *ANCESTORS, WITHOUT_ORDER],
    measure=measure,
    judge=judge,
    draw=draw,
    full=Settings(target=0.12, budget=Budget(steps=6000, trial_steps=400, evaluations=30)),
    full_minutes=300.0,
)
