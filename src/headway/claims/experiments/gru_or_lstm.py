"""Claim 8: the GRU is neither better nor worse than the LSTM for sequence to sequence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from headway.claims.claim import Claim, Finding, Number, Trials, Values, equivalence
from headway.claims.page import plot_bars, plot_intervals
from headway.claims.sequences import Budget, open_recipe_task, small_model, train_tuned

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LSTM, GRU, ELMAN = "lstm", "gru", "elman"
HALF = "lstm, half as wide"
VARIANTS = (LSTM, GRU, ELMAN, HALF)


@dataclass(frozen=True)
class GRUOrLSTMSettings:
    """`margin` is the difference in phoneme error rate below which models count as equal. Models have the size of a
    transformer with this width and depth.
    """

    margin: float = 0.02
    width: int = 64
    depth: int = 1
    budget: Budget = Budget(steps=1200, trial_steps=100, rates=(4e-3, 8e-3), evaluations=2, judged=2000)


def measure(settings: GRUOrLSTMSettings, variant: str, seed: int) -> Values:
    with open_recipe_task("pronounce", settings.budget, seed) as task:
        width, mixer = (settings.width // 2, LSTM) if variant == HALF else (settings.width, variant)
        model = small_model(task, "pronounce", width, settings.depth, mixer)
        curve = train_tuned(settings.budget, task, model, seed)
    return {**curve.values("per"), "end": curve.scores[-1]["per"]}


def error_differences(trials: Trials, variant: str) -> list[float]:
    """The differences in error rate, per pair of trials."""
    return [a - b for a, b in zip(trials.collect(variant, "end"), trials.collect(LSTM, "end"))]


def apply_rule(settings: GRUOrLSTMSettings, trials: Trials) -> Finding:
    numbers = [Number(f"{variant}: phoneme error rate", trials.share(variant, "end")) for variant in VARIANTS]
    tests = {compared: equivalence(error_differences(trials, compared), settings.margin) for compared in VARIANTS[1:]}
    numbers += [Number(f"{compared} minus {LSTM}", test.difference) for compared, test in tests.items()]
    listed = "; ".join(f"{compared} p = {test.p:.2g}" for compared, test in tests.items())
    remarks = [f"Two one-sided tests against {LSTM}, margin {settings.margin}: {listed}."]
    sizes = ", ".join(f"{variant} {trials.collect(variant, 'parameters')[0]:,}" for variant in VARIANTS)
    control = not tests[HALF].equivalent and tests[HALF].difference.low > 0
    return Finding(numbers, tests[GRU].equivalent, control, [*remarks, f"Parameters: {sizes}."])


def draw(figure: Figure, settings: GRUOrLSTMSettings, trials: Trials) -> None:
    left, right = figure.subplots(1, 2)
    rates = {variant: trials.share(variant, "end") for variant in VARIANTS}
    plot_bars(left, rates, title="phoneme error rate", x="validation")
    differences = {compared: error_differences(trials, compared) for compared in VARIANTS[1:]}
    plot_intervals(right, differences, settings.margin, title="minus the lstm's, each seed", x="grey: counts as equal")


CLAIM = Claim(
    number=8,
    name="gru-or-lstm",
    title="The GRU is neither better nor worse than the LSTM",
    statement="In sequence-to-sequence models of equal size, GRU and LSTM reach the same quality.",
    source="Chung et al. 2014; Britz et al. 2017, section 4.2",
    measured="English words to phonemes (recipe pronounce) with LSTM or GRU in encoder and decoder, equal sizes, and "
    "attention to the source: the phoneme error rate after equally many steps of AdamW. Short trial runs choose the "
    "learning rate of each run. An Elman network of the same size is included for comparison.",
    rule="Two one-sided t tests over paired seeds reject, at 5 % each, that the error rates of GRU and LSTM differ "
    "by more than the margin fixed beforehand, 0.02 (--full: 0.01).",
    control="The same test must not find an LSTM of half the width equal to the LSTM, and must find it worse (interval "
    "of the difference above 0). Otherwise the margin or the spread would be too wide to distinguish models.",
    minutes=17.0,
    settings=GRUOrLSTMSettings(),
    variants=lambda settings: list(VARIANTS),
    measure=measure,
    apply_rule=apply_rule,
    draw=draw,
    seeds=5,
    full=GRUOrLSTMSettings(
        margin=0.01, budget=Budget(steps=4500, trial_steps=100, rates=(4e-3, 8e-3), evaluations=2, judged=4000)
    ),
    full_minutes=55.0,
)
