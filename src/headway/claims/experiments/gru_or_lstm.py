"""Claim 8: the GRU is neither better nor worse than the LSTM for sequence to sequence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from headway.claims.claim import Claim, Finding, Number, Trials, Values
from headway.claims.pictures import bars, intervals
from headway.claims.sequences import Budget, opened, small, tuned
from headway.claims.statistics import equivalence

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MIXERS = ("lstm", "gru", "elman")


@dataclass(frozen=True)
class Settings:
    """`margin` is the difference of phoneme error rates below which models count as equal. Sizes are those of a
    transformer of this width and depth.
    """

    margin: float = 0.02
    width: int = 64
    depth: int = 1
    budget: Budget = Budget(steps=700, rates=(4e-3, 8e-3), evaluations=2, judged=2000)


def measure(settings: Settings, variant: str, seed: int) -> Values:
    with opened("pronounce", settings.budget, seed) as task:
        model = small(task, "pronounce", settings.width, settings.depth, variant)
        course = tuned(settings.budget, task, model, seed)
    return {**course.values("per"), "end": course.scores[-1]["per"]}


def against_lstm(trials: Trials, other: str) -> list[float]:
    """The difference of error rates, a pair of trials each."""
    return [a - b for a, b in zip(trials.of(other, "end"), trials.of("lstm", "end"))]


def judge(settings: Settings, trials: Trials) -> Finding:
    numbers = [Number(f"{mixer}: phoneme error rate", trials.share(mixer, "end")) for mixer in MIXERS]
    gru, elman = (equivalence(against_lstm(trials, other), settings.margin) for other in ("gru", "elman"))
    numbers += [Number("gru minus lstm", gru.difference), Number("elman minus lstm", elman.difference)]
    remarks = [
        f"Two one-sided tests, gru and lstm within {settings.margin}: p = {gru.p:.2g}; elman: p = {elman.p:.2g}."
    ]
    sizes = ", ".join(f"{mixer} {trials.of(mixer, 'parameters')[0]:,}" for mixer in MIXERS)
    return Finding(
        numbers, gru.equivalent, not elman.equivalent and elman.difference.low > 0, [*remarks, f"Parameters: {sizes}."]
    )


def draw(figure: Figure, settings: Settings, trials: Trials) -> None:
    left, right = figure.subplots(1, 2)
    bars(left, {mixer: trials.share(mixer, "end") for mixer in MIXERS}, title="phoneme error rate", x="validation")
    found = {f"{other} - lstm": against_lstm(trials, other) for other in ("gru", "elman")}
    intervals(right, found, settings.margin, title="difference, 95 % interval and each seed", x="grey: counts as equal")


CLAIM = Claim(
    number=8,
    name="gru-or-lstm",
    title="The GRU is neither better nor worse than the LSTM",
    statement="For sequence to sequence models of equal size, GRU and LSTM reach the same quality.",
    source="Chung et al. 2014; Britz et al. 2017, section 4.2",
    measured="English words to phonemes (recipe pronounce) with LSTM, GRU or Elman networks in encoder and decoder, "
    "equal sizes, the source read by attention: the error rate of phonemes after equally many steps of AdamW, its "
    "rate chosen for each run by short runs before.",
    rule="Two one-sided t tests over paired seeds reject, at 5 % each, that the error rates of GRU and LSTM differ "
    "by more than the margin fixed beforehand, 0.02.",
    control="The same test must not find an Elman network equal to the LSTM, which has to be better (interval of the "
    "difference above 0). If it were not, margin or scatter would be too wide to tell anything apart.",
    minutes=11.0,
    settings=Settings(),
    variants=lambda settings: list(MIXERS),
    measure=measure,
    judge=judge,
    draw=draw,
    seeds=5,
    full=Settings(margin=0.01, budget=Budget(steps=6000, rates=(4e-3, 8e-3), evaluations=2, judged=4000)),
    full_minutes=60.0,
)
