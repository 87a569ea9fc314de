"""Claim 12: delta beats additive writing when keys are rewritten."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from headway.claims.claim import Claim, Finding, Number, Trials, Values, difference
from headway.claims.networks import LINEAR, Training, accuracy, network, train
from headway.claims.page import plot_lines
from headway.claims.problems import KeyValuePairs, recall_pairs

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DELTA, ADDITIVE = "delta", ("linear attention", "fast weights")


@dataclass(frozen=True)
class RewritingSettings:
    """In the update setting, `keys` different keys are each written `times` times. In the capacity setting, the numbers
    of keys in `capacity` are each written once; the largest exceeds the size of a key.
    """

    times: tuple[int, ...] = (1, 2, 4)
    keys: int = 6
    capacity: tuple[int, ...] = (6, 12, 24)
    values: int = 8
    width: int = 32
    rows: int = 32
    training: Training = Training(steps=800)


class RewritingJob(NamedTuple):
    mixer: str
    keys: int
    times: int

    @property
    def name(self) -> str:
        return f"{self.mixer}: {self.keys} keys, {self.times} x"


def jobs(settings: RewritingSettings) -> dict[str, RewritingJob]:
    sizes = [(settings.keys, times) for times in settings.times]
    sizes += [(keys, 1) for keys in settings.capacity]
    all_jobs = [RewritingJob(mixer, *size) for size in dict.fromkeys(sizes) for mixer in (DELTA, *ADDITIVE)]
    return {job.name: job for job in all_jobs}


def measure(settings: RewritingSettings, variant: str, seed: int) -> Values:
    job = jobs(settings)[variant]
    problem = KeyValuePairs(job.keys, settings.values, job.times)
    config = network(LINEAR[job.mixer], width=settings.width, channels=problem.channels, outputs=settings.values)
    model = config.build(seed)
    sample_batch = recall_pairs(problem, settings.rows)
    losses = train(model, sample_batch, settings.training, seed)
    return {"accuracy": accuracy(model, sample_batch, seed), "losses": losses[:: max(1, len(losses) // 50)]}


def apply_rule(settings: RewritingSettings, trials: Trials) -> Finding:
    numbers = [Number(name, trials.share(name, "accuracy")) for name in jobs(settings)]
    max_times, effect = max(settings.times), True
    for mixer in ADDITIVE:
        both = [trials.collect(RewritingJob(m, settings.keys, max_times).name, "accuracy") for m in (DELTA, mixer)]
        gain = difference(*both)
        numbers.append(Number(f"delta minus {mixer}: {settings.keys} keys, {max_times} x", gain))
        effect = effect and gain.low > 0.1
    single_writes = [
        trials.share(RewritingJob(mixer, settings.keys, 1).name, "accuracy") for mixer in (DELTA, *ADDITIVE)
    ]
    remarks = [f"Chance is {1 / settings.values:.3g}."]
    return Finding(numbers, effect, all(interval.low > 0.9 for interval in single_writes), remarks)


def draw(figure: Figure, settings: RewritingSettings, trials: Trials) -> None:
    left, right = figure.subplots(1, 2, sharey=True)
    panels = (
        (left, [(settings.keys, times) for times in settings.times], "writes per key", settings.times),
        (right, [(keys, 1) for keys in settings.capacity], "keys, each written once", settings.capacity),
    )
    for axes, sizes, label, xs in panels:
        series = {
            mixer: list(zip(*(trials.collect(RewritingJob(mixer, *size).name, "accuracy") for size in sizes)))
            for mixer in (DELTA, *ADDITIVE)
        }
        plot_lines(axes, xs, series, x=label, log="x", ticks=xs, chance=1 / settings.values)
        axes.set_ylim(0, 1.04)
    left.set_title(f"update: {settings.keys} keys")
    right.set_title("capacity")
    left.set_ylabel("accuracy")


CLAIM = Claim(
    number=12,
    name="rewriting",
    title="Delta beats additive writing when keys are rewritten",
    statement="A memory that first removes the old value of a key recalls the latest value of rewritten keys. A "
    "memory that only adds mixes the values.",
    source="Schlag, Irie and Schmidhuber 2021, sections 4.2 and 6.1",
    measured="Associative recall: pairs of keys and values, each key once or several times in random order, then a "
    "query for the latest value of one; also with increasing numbers of keys. One block of equal width with the delta "
    "rule, linear attention (normalised) or fast weights (additive).",
    rule="With the most writes per key, the accuracy of delta is more than 0.1 above that of both additive forms, by "
    "the lower ends of the intervals of the differences over seeds.",
    control="If no key is written twice, the claim must be wrong: all have to recall more than 0.9 of as many keys "
    "(lower ends). If the additive forms failed there too, rewriting would not be the cause.",
    minutes=2.5,
    settings=RewritingSettings(),
    variants=lambda settings: list(jobs(settings)),
    measure=measure,
    apply_rule=apply_rule,
    draw=draw,
)
