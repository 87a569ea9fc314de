"""Claim 8: the GRU is neither better nor worse than the LSTM for sequence to sequence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from headway.claims.claim import Claim, Finding, Number, Trials, Values
from headway.claims.pictures import bars, colour
from headway.claims.pronunciation import Budget, tuned
from headway.claims.statistics import Equivalence, equivalence

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MIXERS = ("lstm", "gru", "elman")


@dataclass(frozen=True)
class Settings:
    """`margin` is the difference of phoneme error rates below which models count as equal."""

    margin: float = 0.02
    budget: Budget = Budget(steps=500, rates=(2e-3, 4e-3), evaluations=2, words=1000)


def measure(settings: Settings, variant: str, seed: int) -> Values:
    found = tuned(settings.budget, variant, seed)
    return {**found, "end": found["per"][-1]}


def against_lstm(settings: Settings, trials: Trials, other: str) -> Equivalence:
    pairs = zip(trials.of(other, "end"), trials.of("lstm", "end"))
    return equivalence([a - b for a, b in pairs], settings.margin)


def judge(settings: Settings, trials: Trials) -> Finding:
    numbers = [Number(f"{mixer}: phoneme error rate", trials.share(mixer, "end")) for mixer in MIXERS]
    gru, elman = (against_lstm(settings, trials, other) for other in ("gru", "elman"))
    numbers += [Number("gru minus lstm", gru.difference), Number("elman minus lstm", elman.difference)]
    remarks = [
        f"Two one-sided tests, gru and lstm within {settings.margin}: p = {gru.p:.2g}; elman: p = {elman.p:.2g}."
    ]
    sizes = ", ".join(f"{mixer} {trials.of(mixer, 'parameters')[0]:,}" for mixer in MIXERS)
    return Finding(numbers, gru.equivalent, not elman.equivalent, [*remarks, f"Parameters: {sizes}."])


def draw(figure: Figure, settings: Settings, trials: Trials) -> None:
    left, right = figure.subplots(1, 2)
    bars(left, {mixer: trials.share(mixer, "end") for mixer in MIXERS}, title="phoneme error rate", x="validation")
    for row, other in enumerate(("gru", "elman")):
        found = against_lstm(settings, trials, other).difference
        right.errorbar(
            [found.value],
            [row],
            xerr=[[found.value - found.low], [found.high - found.value]],
            capsize=4,
            marker="o",
            color=colour(other),
        )
        pairs = zip(trials.of(other, "end"), trials.of("lstm", "end"))
        right.plot([a - b for a, b in pairs], [row + 0.15] * trials.seeds, "|", color=colour(other))
    right.axvspan(-settings.margin, settings.margin, color="#e2e6ea", zorder=0)
    right.axvline(0, color="#98a4b0", linewidth=1)
    right.set_yticks([0, 1], ["gru - lstm", "elman - lstm"])
    right.set_ylim(1.6, -0.6)
    right.set(xlabel="difference of error rates; grey: counts as equal")
    right.set_title("difference, 95 % interval and each seed")


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
    control="The same test must not find an Elman network equal to the LSTM. If it did, the margin would be too "
    "wide to tell anything apart.",
    minutes=20.0,
    settings=Settings(),
    variants=lambda settings: list(MIXERS),
    measure=measure,
    judge=judge,
    draw=draw,
    seeds=5,
    full=Settings(margin=0.01, budget=Budget(steps=6000, trial_steps=400, evaluations=4, words=3000)),
    full_minutes=400.0,
)
