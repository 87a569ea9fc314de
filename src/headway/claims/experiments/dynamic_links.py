"""Claim 15: links that change within the scene bind the features of an object."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from headway.claims.claim import Claim, Finding, Number, Trials, Values
from headway.claims.networks import MIXERS, ExampleBatch, SampleBatch, Training, accuracy, network, train
from headway.claims.page import plot_bars, plot_lines
from headway.claims.problems import KeyValuePairs
from headway.nn.mixers import DynamicLinksConfig, MixerConfig

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DYNAMIC, FIXED, ELMAN = "dynamic links", "fixed links", "elman"


@dataclass(frozen=True)
class DynamicLinksSettings:
    """Scenes with each number of `objects`, which have one of `shapes` and one of `colours`. The claim is about the
    last number, the control about the first.
    """

    objects: tuple[int, ...] = (1, 4)
    shapes: int = 8
    colours: int = 8
    width: int = 64
    rows: int = 64
    rate: float = 2.0
    training: Training = Training(steps=500)

    def scene(self, objects: int) -> KeyValuePairs:
        return KeyValuePairs(objects, self.colours, possible_keys=self.shapes)


def mixer_of(settings: DynamicLinksSettings, network_name: str) -> MixerConfig:
    """The mixer y = tanh((W + F) x + b), F = 0.9 F + (rate / D) y x^T; at a rate of 0, only the learned W is left."""
    if network_name == ELMAN:
        return MIXERS[ELMAN]
    return DynamicLinksConfig(rate=settings.rate if network_name == DYNAMIC else 0.0)


def binding(problem: KeyValuePairs, rows: int) -> SampleBatch:
    """The colour of the object that has the queried shape.

    The units of an object's shape and colour are active together, one object after the other. A second set of units
    stays active from then on: it has all features of the scene, but not which of them belong together (the
    superposition of von der Malsburg 1981).
    """

    def sample_batch(source: torch.Generator) -> ExampleBatch:
        momentary, layout, targets = problem.sample(rows, source)[0]
        return ExampleBatch(torch.cat([momentary, momentary.cumsum(1)], -1), layout, targets)

    return sample_batch


def trial_name(network_name: str, objects: int) -> str:
    return f"{network_name}: {objects}"


def measure(settings: DynamicLinksSettings, variant: str, seed: int) -> Values:
    network_name, objects = variant.split(": ")
    problem = settings.scene(int(objects))
    mixer, channels = mixer_of(settings, network_name), 2 * problem.channels
    model = network(mixer, width=settings.width, channels=channels, outputs=settings.colours).build(seed)
    sample_batch = binding(problem, settings.rows)
    losses = train(model, sample_batch, settings.training, seed)
    return {
        "accuracy": accuracy(model, sample_batch, seed, batches=16),
        "losses": losses[:: max(1, len(losses) // 50)],
    }


def apply_rule(settings: DynamicLinksSettings, trials: Trials) -> Finding:
    solved = {
        (name, objects): trials.share(trial_name(name, objects), "accuracy")
        for name in (DYNAMIC, FIXED, ELMAN)
        for objects in settings.objects
    }
    one, several = settings.objects[0], settings.objects[-1]
    effect = solved[DYNAMIC, several].low > 0.9 and solved[FIXED, several].high < 0.6
    numbers = [
        Number(f"{name}, {objects} {'object' if objects == 1 else 'objects'}: accuracy", interval)
        for (name, objects), interval in solved.items()
    ]
    remarks = [
        f"Chance is {1 / settings.colours:.3g}.",
        "The Elman network has fixed links, too, but its units have a state, which could store what belongs together.",
    ]
    return Finding(numbers, effect, solved[FIXED, one].low > 0.9, remarks)


def draw(figure: Figure, settings: DynamicLinksSettings, trials: Trials) -> None:
    *parts, right = figure.subplots(1, len(settings.objects) + 1)
    names = (DYNAMIC, FIXED, ELMAN)
    for axes, objects in zip(parts, settings.objects):
        shares = {name: trials.share(trial_name(name, objects), "accuracy") for name in names}
        plot_bars(axes, shares, title=f"colours, objects: {objects}", x="accuracy")
        axes.axvline(1 / settings.colours, color="#98a4b0", linewidth=1, linestyle=":")
        axes.set_xlim(0, 1.05)
        axes.tick_params(labelleft=axes is parts[0])
    series = {name: trials.collect(trial_name(name, settings.objects[-1]), "losses") for name in names}
    steps = range(0, settings.training.steps, max(1, settings.training.steps // 50))
    plot_lines(right, steps, series, title=f"loss, objects: {settings.objects[-1]}", x="step")
    right.set_ylim(0, None)


CLAIM = Claim(
    number=15,
    name="dynamic-links",
    title="Links that change at once bind the features of an object",
    statement="Links that grow within a scene, by the correlation of the units that they connect, bind the features of "
    "each object. The same network with fixed links has all features, but not which of them belong together.",
    source="Von der Malsburg 1981; Hinton and Plaut 1987",
    measured="Objects with a shape and a colour appear one after the other; then the network predicts the colour of "
    "one shape. Units of all features that appeared stay active. The networks have equal weights, examples and steps, "
    "and differ in one number: the rate of links F in y = tanh((W + F) x + b), F = 0.9 F + rate y x^T, which is 0 for "
    "fixed links. An Elman network is included for comparison.",
    rule="With four objects, dynamic links predict more than 0.9 of the colours (lower end), and fixed links less than "
    "0.6 (upper end). A guess among the colours of the scene reaches about 0.4.",
    control="With one object there is nothing to bind, and the claim must be wrong: fixed links have to predict more "
    "than 0.9 of the colours (lower end). Otherwise their training would be at fault, and not the binding.",
    minutes=1.0,
    settings=DynamicLinksSettings(),
    variants=lambda settings: [
        trial_name(name, objects) for objects in settings.objects for name in (DYNAMIC, FIXED, ELMAN)
    ],
    measure=measure,
    apply_rule=apply_rule,
    draw=draw,
)
