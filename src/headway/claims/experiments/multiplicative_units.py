"""Claim 3: multiplicative units matter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from headway.claims.claim import Claim, Finding, Number, Trials, Values, difference
from headway.claims.networks import MIXERS, AdditiveConfig, SampleBatch, Training, accuracy, error, network, train
from headway.claims.page import plot_bars
from headway.claims.problems import adding, copying, recall_marked, sum_all
from headway.nn.mixers import MixerConfig
from headway.nn.models import TransformerConfig

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CELLS: dict[str, MixerConfig] = {"lstm": MIXERS["lstm"], "additive": AdditiveConfig()}
TASKS = ("adding", "copying")  # those of claim 2, at its greatest lengths
FURTHER = "latest"
CONTROL = "total"


@dataclass(frozen=True)
class MultiplicativeUnitsSettings:
    """The `length` of the adding problem and the `delay` for copying. `short` is the length of the problems that are
    not in claim 2: `latest`, which overwrites a memory, and `total`, which needs no gates.
    """

    length: int = 100
    delay: int = 30
    short: int = 30
    symbols: int = 4
    count: int = 3
    width: int = 32
    rows: int = 32
    training: Training = Training(steps=500)


def problem(
    settings: MultiplicativeUnitsSettings, cell: MixerConfig, task: str
) -> tuple[TransformerConfig, SampleBatch, float]:
    """The network, its examples, and the accuracy by chance or the error for a constant answer."""
    rows, length, n_symbols, width = settings.rows, settings.length, settings.symbols, settings.width
    if task == "adding":
        return network(cell, width=width, channels=2, outputs=1), adding(rows, length), 1 / 6
    if task == "total":
        return network(cell, width=width, channels=2, outputs=1), sum_all(rows, settings.short), 1 / 12
    if task == "latest":
        config = network(cell, width=width, vocab_size=2 * n_symbols + 1, outputs=n_symbols)
        return config, recall_marked(rows, n_symbols, settings.short), 1 / n_symbols
    config = network(cell, width=width, vocab_size=n_symbols + 2, outputs=n_symbols, pool="tokens")
    return config, copying(rows, n_symbols, settings.count, settings.delay), 1 / n_symbols


def trial_name(cell: str, task: str) -> str:
    return f"{cell}: {task}"


def variants(settings: MultiplicativeUnitsSettings) -> list[str]:
    return [trial_name(cell, task) for task in (*TASKS, FURTHER, CONTROL) for cell in CELLS]


def measure(settings: MultiplicativeUnitsSettings, variant: str, seed: int) -> Values:
    cell, task = variant.split(": ")
    config, sample_batch, guess = problem(settings, CELLS[cell], task)
    model = config.build(seed)
    losses = train(model, sample_batch, settings.training, seed)
    if task in ("adding", "total"):
        solved = 1 - error(model, sample_batch, seed) / guess
    else:
        solved = (accuracy(model, sample_batch, seed) - guess) / (1 - guess)
    return {"solved": max(0.0, solved), "losses": losses[:: max(1, len(losses) // 50)]}


def apply_rule(settings: MultiplicativeUnitsSettings, trials: Trials) -> Finding:
    numbers, effect = [], True
    for task in (*TASKS, FURTHER):
        both = [trials.collect(trial_name(cell, task), "solved") for cell in CELLS]
        gain = difference(*both)
        numbers += [Number(trial_name(cell, task), trials.share(trial_name(cell, task), "solved")) for cell in CELLS]
        numbers.append(Number(f"{task}: lstm minus additive", gain))
        effect = effect and (task not in TASKS or gain.low > 0.1)
    total = {cell: trials.share(trial_name(cell, CONTROL), "solved") for cell in CELLS}
    numbers += [Number(trial_name(cell, CONTROL), interval) for cell, interval in total.items()]
    return Finding(numbers, effect, control=total["additive"].low > 0.5)


def draw(figure: Figure, settings: MultiplicativeUnitsSettings, trials: Trials) -> None:
    titles = {
        "adding": f"adding, {settings.length}",
        "copying": f"copying, delay {settings.delay}",
        "latest": f"the latest mark, {settings.short}",
        CONTROL: f"control: sum of {settings.short}",
    }
    for axes, (task, title) in zip(figure.subplots(1, 4, sharey=True), titles.items()):
        plot_bars(
            axes, {cell: trials.share(trial_name(cell, task), "solved") for cell in CELLS}, title=title, x="solved"
        )
        axes.set_xlim(0, 1.05)


CLAIM = Claim(
    number=3,
    name="multiplicative-units",
    title="Multiplicative units matter",
    statement="The LSTM owes its abilities to products: with sums instead, it does worse on the same problems.",
    source="Hochreiter and Schmidhuber 1997, section 4; Gers, Schmidhuber and Cummins 2000",
    measured="The solved share (0 is chance or a constant answer, 1 no error) of the problems of claim 2 at its "
    "greatest lengths, for an LSTM and for the same cell with sums instead of products: c = c + (f + i + g) / 3, h = "
    "(o + tanh c) / 2. Also a problem that overwrites a memory: the symbol that was marked last.",
    rule="In both problems of claim 2, the LSTM solves at least 0.1 more, by the lower end of the interval of the "
    "difference over seeds.",
    control="The sum of all numbers needs no gate to protect or overwrite a memory. There the claim must be wrong: the "
    "additive cell has to solve more than half (lower end). Otherwise its training would be at fault.",
    minutes=2.5,
    settings=MultiplicativeUnitsSettings(),
    variants=variants,
    measure=measure,
    apply_rule=apply_rule,
    draw=draw,
)
