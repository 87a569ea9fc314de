"""Claim 10: the last state has no precise information on early tokens."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from headway.claims.claim import Claim, Finding, Number, Trials, Values
from headway.claims.networks import MIXERS, network
from headway.claims.pictures import lines
from headway.claims.training import Draw, Examples, Training, accuracy, generator, train
from headway.layout import Layout
from headway.mixers import KeyValues
from headway.models import TokenEmbedConfig, Transformer, TransformerConfig
from headway.parts.positions import LearnedConfig

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Settings:
    """Texts of `length` tokens of `symbols`, then a token that asks for the one at a place drawn at random."""

    length: int = 24
    symbols: int = 4
    width: int = 32
    rows: int = 64
    probed: int = 2000  # texts, half of them to fit the probe
    training: Training = Training(steps=600)
    mixers: tuple[str, ...] = ("elman", "lstm", "attention")


def model_of(settings: Settings, mixer: str) -> TransformerConfig:
    """Positions are given to all: which place is asked for is then easy to compare with."""
    symbols = settings.symbols + settings.length
    found = network(MIXERS[mixer], width=settings.width, symbols=symbols, outputs=settings.symbols)
    return replace(found, context=settings.length + 1, embed=TokenEmbedConfig(LearnedConfig()))


def texts(settings: Settings) -> Draw:
    """Every text is asked for one of its tokens, so that a model has reason to keep them all."""

    def draw(source: torch.Generator) -> Examples:
        text = torch.randint(settings.symbols, (settings.rows, settings.length), generator=source)
        place = torch.randint(settings.length, (settings.rows, 1), generator=source)
        ids = torch.cat([text, settings.symbols + place], 1)
        return Examples(ids, Layout.full(*ids.shape), text.gather(1, place)[:, 0])

    return draw


@torch.no_grad()
def memories(model: Transformer, text: Int[Tensor, "B T"]) -> list[Float[Tensor, "B N"]]:
    """What the model holds of each token once it has read the whole text: for a recurrent network its state, the same
    for all; for attention the key and the value of that token.
    """
    x, layout = model.embed(text, Layout.full(*text.shape))
    states = model.stack.initial_states(text.shape[0], text.shape[1] + 1, like=x)
    _, states, _ = model.stack(x, layout, states)
    state, mixer = (states or ())[0], model.stack.blocks[0].mixer
    if isinstance(state, KeyValues):
        return [torch.cat([part[:, k].flatten(1) for part in state], 1) for k in range(text.shape[1])]
    return [torch.cat(mixer.final(state), 1)] * text.shape[1]  # type: ignore[operator, union-attr]


def probe(features: Float[Tensor, "B N"], targets: Int[Tensor, "B"], classes: int) -> float:
    """The accuracy of a linear probe on the second half of the rows, fitted on the first by ridge regression."""
    x = torch.cat([features, torch.ones(len(features), 1)], 1).double()
    half = len(x) // 2
    wanted = torch.nn.functional.one_hot(targets, classes).double()
    gram = x[:half].T @ x[:half] + 0.1 * torch.eye(x.shape[1], dtype=torch.float64)
    weights = torch.linalg.solve(gram, x[:half].T @ wanted[:half])
    return float(((x[half:] @ weights).argmax(1) == targets[half:]).double().mean())


def measure(settings: Settings, variant: str, seed: int) -> Values:
    model = model_of(settings, variant).build(seed)
    draw = texts(settings)
    train(model, draw, settings.training, seed)
    shape = (settings.probed, settings.length)
    text = torch.randint(settings.symbols, shape, generator=generator(seed, 6))
    other = torch.randint(settings.symbols, shape, generator=generator(seed, 7))
    held = memories(model, text)
    order = range(settings.length - 1, -1, -1)  # from the last token, at distance 0, to the first
    return {
        "answers": accuracy(model, draw, seed),
        "probe": [probe(held[k], text[:, k], settings.symbols) for k in order],
        "never read": [probe(held[k], other[:, k], settings.symbols) for k in order],
    }


def judge(settings: Settings, trials: Trials) -> Finding:
    numbers, effect, control = [], True, True
    last = settings.length - 1
    for mixer in settings.mixers:
        near, far = trials.share(mixer, "probe", 0), trials.share(mixer, "probe", last)
        unread = trials.share(mixer, "never read", last)
        numbers += [
            Number(f"{mixer}: last token", near),
            Number(f"{mixer}: first token", far),
            Number(f"{mixer}: a token never read", unread),
        ]
        effect = effect and near.low > 0.9 and (far.low > 0.9 if mixer == "attention" else far.high < 0.5)
        control = control and unread.high < 1 / settings.symbols + 0.1
    return Finding(numbers, effect, control, [f"Chance is {1 / settings.symbols:.3g}."])


def draw(figure: Figure, settings: Settings, trials: Trials) -> None:
    left, right = figure.subplots(1, 2, sharey=True)
    distances, chance = range(settings.length), 1 / settings.symbols
    for axes, key, title in (
        (left, "probe", "a probe reads the token at a distance"),
        (right, "never read", "control: a token of another text"),
    ):
        series = {mixer: trials.of(mixer, key) for mixer in settings.mixers}
        lines(axes, distances, series, title=title, x="tokens before the end", chance=chance)
        axes.set_ylim(0, 1.04)
    left.set_ylabel("accuracy")


CLAIM = Claim(
    number=10,
    name="final-state",
    title="The last state has no precise information on early tokens",
    statement="From the last state of a recurrent network the last tokens can be read, but not the first ones; what "
    "attention remembers holds them all.",
    source="Bahdanau, Cho and Bengio 2015, section 1; Cho et al. 2014 (properties of neural machine translation)",
    measured="Networks are trained to say which token stood at a place that is asked for after the text. Then they "
    "are frozen, and a linear probe reads each token: from the state (h, and c of the LSTM) after the whole text, "
    "or from the key and value that attention holds of it.",
    rule="The probe reads the last token (lower end above 0.9) from all; it reads the first from attention's memory "
    "(above 0.9), and from Elman's and the LSTM's states in fewer than half of the texts (upper end).",
    control="A probe for tokens of another text, which the model never read, must fail: within 0.1 of chance by the "
    "upper end. If it did not, the probe would make up what it reads.",
    minutes=1.5,
    settings=Settings(),
    variants=lambda settings: list(settings.mixers),
    measure=measure,
    judge=judge,
    draw=draw,
)
