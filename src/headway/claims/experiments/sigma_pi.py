"""Claim 16: units of higher order recognise a pattern at places where they never saw it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations
from random import Random
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from headway.claims.claim import Claim, Finding, Number, Trials, Values
from headway.claims.networks import START, Training, descend
from headway.claims.page import plot_bars
from headway.nn.parts.init import initialise
from headway.nn.parts.projection import Projection

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ORDERS = {"third order": 3, "second order": 2, "first order": 1}
HIDDEN = "first order, hidden units"


@dataclass(frozen=True)
class SigmaPiSettings:
    """Patterns of `active` pixels on a ring of `pixels`, in `pairs` of a pattern and its mirror image. All are trained
    at the same `trained` places of the ring and tested at all others.
    """

    pixels: int = 16
    active: int = 5
    pairs: int = 2
    trained: int = 6
    training: Training = Training(steps=1000, lr=1e-2)


class SigmaPiUnits(nn.Module):
    """net_c = b_c + sum_j w_cj prod_k a_jk over sets j of inputs (Rumelhart, Hinton and McClelland 1986, chapter 2),
    with equal weights for all sets that are shifts of each other: net_c = b_c + sum_d w_c(d_1, ..., d_(n-1)) sum_i a_i
    a_(i+d_1) ... a_(i+d_(n-1)) at order n. The net input is then the same at all places (Giles and Maxwell 1987,
    section V).
    """

    def __init__(self, order: int, pixels: int, classes: int) -> None:
        super().__init__()
        self.offsets = list(combinations(range(1, pixels), order - 1))
        self.weigh = Projection(len(self.offsets), classes)

    def forward(self, a: Float[Tensor, "B N"]) -> Float[Tensor, "B C"]:
        products = [math.prod([a.roll(-d, 1) for d in offsets], start=a) for offsets in self.offsets]
        return self.weigh(torch.stack([product.sum(1) for product in products], 1))


class HiddenUnits(nn.Module):
    """Logistic units of first order and a layer of outputs, as in Rumelhart, Hinton and Williams 1986."""

    def __init__(self, pixels: int, hidden: int, classes: int) -> None:
        super().__init__()
        self.hidden, self.weigh = Projection(pixels, hidden), Projection(hidden, classes)

    def forward(self, a: Float[Tensor, "B N"]) -> Float[Tensor, "B C"]:
        return self.weigh(torch.sigmoid(self.hidden(a)))


def num_weights(units: nn.Module) -> int:
    return sum(parameter.numel() for parameter in units.parameters())


def mirrored_patterns(settings: SigmaPiSettings, rng: Random) -> Float[Tensor, "C N"]:
    """Pairs of a pattern and its mirror image; no pattern is a shift of another."""
    patterns: list[list[int]] = []
    shifts: set[tuple[int, ...]] = set()
    while len(patterns) < 2 * settings.pairs:
        chosen = rng.sample(range(settings.pixels), settings.active)
        pattern = [int(pixel in chosen) for pixel in range(settings.pixels)]
        own, mirrored = ({(*row[i:], *row[:i]) for i in range(settings.pixels)} for row in (pattern, pattern[::-1]))
        if not own & mirrored and not own & shifts:
            patterns += [pattern, pattern[::-1]]
            shifts |= own | mirrored
    return torch.tensor(patterns, dtype=torch.float32)


def measure(settings: SigmaPiSettings, variant: str, seed: int) -> Values:
    rng = Random(seed)
    patterns = mirrored_patterns(settings, rng)
    classes = len(patterns)
    places = rng.sample(range(settings.pixels), settings.pixels)
    of_split = {"seen": places[: settings.trained], "new": places[settings.trained :]}
    inputs = {split: torch.cat([patterns.roll(p, 1) for p in chosen]) for split, chosen in of_split.items()}
    targets = {split: torch.arange(classes).repeat(len(chosen)) for split, chosen in of_split.items()}
    units: nn.Module = SigmaPiUnits(ORDERS.get(variant, 3), settings.pixels, classes)
    if variant == HIDDEN:  # as many units as lead to the same number of weights
        hidden = round((num_weights(units) - classes) / (settings.pixels + 1 + classes))
        units = HiddenUnits(settings.pixels, hidden, classes)
    initialise(units, START, 1, seed)
    losses = list(descend(units, lambda: F.cross_entropy(units(inputs["seen"]), targets["seen"]), settings.training))
    with torch.no_grad():
        correct = {split: units(inputs[split]).argmax(1) == targets[split] for split in of_split}
    accuracies = {split: float(right.double().mean()) for split, right in correct.items()}
    return {**accuracies, "weights": num_weights(units), "loss": losses[-1]}


def apply_rule(settings: SigmaPiSettings, trials: Trials) -> Finding:
    shares = {(v, split): trials.share(v, split) for v in (*ORDERS, HIDDEN) for split in ("seen", "new")}
    numbers = [Number(f"{variant}: accuracy at {split} places", share) for (variant, split), share in shares.items()]
    third, second, first = (shares[order, "new"] for order in ORDERS)
    effect = third.low > 0.9 and max(second.high, first.high, shares[HIDDEN, "new"].high) < 0.7
    listed = ", ".join(f"{variant} {trials.collect(variant, 'weights')[0]}" for variant in (*ORDERS, HIDDEN))
    remarks = [
        f"Weights: {listed}. Chance is {1 / (2 * settings.pairs):.3g}.",
        "Units of second order see distances between two pixels, which a mirror image has, too; half is their limit.",
        "Over all places, every pixel is active equally often in all patterns. What first-order units learn about "
        "pixels at some places is therefore wrong at the others, and they may recognise less than chance.",
    ]
    return Finding(numbers, effect, shares[HIDDEN, "seen"].low > 0.9, remarks)


def draw(figure: Figure, settings: SigmaPiSettings, trials: Trials) -> None:
    titles = {"seen": "places of the training examples", "new": "other places"}
    for axes, (split, title) in zip(figure.subplots(1, 2, sharey=True), titles.items()):
        shares = {variant: trials.share(variant, split) for variant in (*ORDERS, HIDDEN)}
        plot_bars(axes, shares, title=title, x="accuracy")
        axes.axvline(1 / (2 * settings.pairs), color="#98a4b0", linewidth=1, linestyle=":")
        axes.set_xlim(0, 1.05)


CLAIM = Claim(
    number=16,
    name="sigma-pi",
    title="Units of higher order recognise a pattern at any place",
    statement="Sigma-pi units, which sum products of three inputs, recognise patterns at places where they never saw "
    "them. Units of lower order do not, nor does a first-order network with hidden units and as many weights.",
    source="Rumelhart, Hinton and McClelland 1986, chapter 2; Giles and Maxwell 1987",
    measured="A ring of 16 pixels shows one of four patterns of five pixels: two, and their mirror images. They are "
    "trained at six places and tested at the other ten. Units of order one to three have equal weights for products "
    "that are shifts of each other; the first-order network with hidden units has as many weights as third order.",
    rule="At new places, units of third order recognise more than 0.9 (lower end), and units of first and second order "
    "and the network with hidden units less than 0.7 (upper ends).",
    control="At the places of the training examples the claim must be wrong: there the network with hidden units has "
    "to recognise more than 0.9 (lower end). Otherwise its training would be at fault, and not its order.",
    minutes=0.5,
    settings=SigmaPiSettings(),
    variants=lambda settings: [*ORDERS, HIDDEN],
    measure=measure,
    apply_rule=apply_rule,
    draw=draw,
    seeds=5,
)
