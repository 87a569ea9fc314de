"""Claim 6: transformers need less training time."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from headway.claims.claim import Claim, Finding, Interval, Number, Trials, Values, mean
from headway.claims.page import colour, plot_bars
from headway.claims.sequences import (
    ATTENTION,
    WITHOUT_ORDER,
    Budget,
    open_recipe_task,
    small_model,
    time_to_target,
    train_tuned,
)
from headway.learn import InverseSqrtConfig

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ANCESTORS = ("lstm", "gru")
VARIANTS = (ATTENTION, *ANCESTORS, WITHOUT_ORDER)
GOALS = {"per": "phoneme error rate", "loss": "loss, nats per token"}


@dataclass(frozen=True)
class LessTrainingSettings:
    """`target` is the `goal` score to reach; lower is better. `symbols` is the vocabulary size if it can be chosen.
    Models have the size of a transformer with this width and depth. The learning rate schedule does not depend on the
    end of the run, because that would favour models that reach the target near the end.
    """

    recipe: str = "pronounce"
    symbols: int | None = None
    goal: str = "per"
    target: float = 0.30
    width: int = 64
    depth: int = 1
    budget: Budget = Budget(steps=1000, schedule=InverseSqrtConfig(warmup=100))


def measure(settings: LessTrainingSettings, variant: str, seed: int) -> Values:
    codec: dict[str, Any] = {} if settings.symbols is None else {"size": settings.symbols}
    with open_recipe_task(settings.recipe, settings.budget, seed, **codec) as task:
        model = small_model(task, settings.recipe, settings.width, settings.depth, variant)
        curve = train_tuned(settings.budget, task, model, seed)
    return curve.values(settings.goal)


def times_to_target(settings: LessTrainingSettings, trials: Trials, variant: str) -> list[tuple[float, bool]]:
    """The seconds to the target, per trial, and whether it was reached."""
    return [
        time_to_target(trial.values, settings.goal, settings.target) for trial in trials.all if trial.variant == variant
    ]


def apply_rule(settings: LessTrainingSettings, trials: Trials) -> Finding:
    numbers, remarks = [], []
    for variant in VARIANTS:
        reached = times_to_target(settings, trials, variant)
        numbers.append(Number(f"{variant}: seconds to the target", mean([seconds for seconds, _ in reached])))
        numbers.append(
            Number(
                f"{variant}: {GOALS[settings.goal]} at the end", mean(trials.collect_point(variant, settings.goal, -1))
            )
        )
        missed = sum(not is_reached for _, is_reached in reached)
        if missed:
            remarks.append(
                f"{variant}: {missed} of {len(reached)} runs never reach it, and count with their total time."
            )
    # Each variant's time to the target relative to attention: the geometric mean over pairs of seeds.
    factors, attention_times = {}, times_to_target(settings, trials, ATTENTION)
    for variant in VARIANTS[1:]:
        pairs = zip(times_to_target(settings, trials, variant), attention_times)
        log_ratio = mean([math.log(seconds / attention_seconds) for (seconds, _), (attention_seconds, _) in pairs])
        factors[variant] = Interval(*(math.exp(part) if part < 700 else math.inf for part in log_ratio))
    numbers += [Number(f"{variant} / attention: time", ratio) for variant, ratio in factors.items()]
    attention_reached = all(is_reached for _, is_reached in attention_times)
    sizes = ", ".join(f"{v} {trials.collect(v, 'parameters')[0]:,}" for v in (ATTENTION, *ANCESTORS))
    return Finding(
        numbers,
        effect=attention_reached and all(factors[variant].low > 1 for variant in ANCESTORS),
        control=attention_reached and factors[WITHOUT_ORDER].low > 1,
        remarks=[*remarks, f"Parameters: {sizes}."],
    )


def draw(figure: Figure, settings: LessTrainingSettings, trials: Trials) -> None:
    left, right = figure.subplots(1, 2, width_ratios=(1.4, 1))
    for index, variant in enumerate(VARIANTS):
        style = ":" if variant == WITHOUT_ORDER else "-"
        curves = zip(trials.collect(variant, "seconds"), trials.collect(variant, settings.goal))
        for number, (seconds, scores) in enumerate(curves):
            label = None if number else variant
            left.plot(seconds, scores, style, color=colour(variant, index), label=label, alpha=0.8)
    left.axhline(settings.target, color="#98a4b0", linewidth=1, linestyle="--")
    left.set(xlabel="seconds of training", ylabel=GOALS[settings.goal], title=f"{settings.recipe}, each seed")
    left.legend(fontsize=8)
    durations = {
        variant: mean([seconds for seconds, _ in times_to_target(settings, trials, variant)])
        for variant in VARIANTS[:-1]
    }
    plot_bars(right, durations, title=f"seconds to {settings.target:g}", x="seconds of one core")


CLAIM = Claim(
    number=6,
    name="less-training",
    title="Transformers need less training time",
    statement="A transformer reaches the quality of LSTM and GRU models of equal size in less time.",
    source="Vaswani et al. 2017, section 6.1 and table 2",
    measured="English words to phonemes (recipe pronounce): validation error rate by seconds of training. The "
    "mixers of the bidirectional encoder and the decoder are attention, LSTM or GRU; all attend to the source; widths "
    "are chosen for equal sizes. AdamW; short trial runs choose the learning rate of each run. --full: captions, "
    "English to German (Multi30k), and the loss.",
    rule="LSTM and GRU each take longer than attention to reach a target fixed beforehand, an error rate of 0.30 "
    "(--full: 3.2 nats): the interval of the factor (geometric mean over seeds) is above 1, and all runs of attention "
    "reach it.",
    control="A transformer without positions does not know the order of the letters and has to take longer than the "
    "one with positions (interval of the factor above 1). Otherwise the target would be too easy to distinguish "
    "models.",
    minutes=16.0,
    settings=LessTrainingSettings(),
    variants=lambda settings: list(VARIANTS),
    measure=measure,
    apply_rule=apply_rule,
    draw=draw,
    full=LessTrainingSettings(
        recipe="multi30k-en-de-small",
        symbols=2000,
        goal="loss",
        target=3.2,
        budget=Budget(steps=3000, judged=200, batch_tokens=1024, schedule=InverseSqrtConfig(warmup=100)),
    ),
    full_minutes=40.0,
    seeds=4,
    full_seeds=3,
)
