"""Claim 10: the last state has no precise information on early tokens."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from headway.claims.claim import Claim, Finding, Number, Trials, Values
from headway.claims.networks import MIXERS, ExampleBatch, SampleBatch, Training, accuracy, generator, network, train
from headway.claims.page import plot_lines
from headway.layout import Layout
from headway.nn.mixers import KeyValues, State
from headway.nn.models import TokenEmbedConfig, Transformer, TransformerConfig
from headway.nn.parts.positions import LearnedConfig

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class FinalStateSettings:
    """Sequences of `short` and of `length` random `symbols`, and a token that queries one position.

    The long sequences contain 120 bits, like a sentence of eight words from a vocabulary of 30,000.
    """

    short: int = 6
    length: int = 40
    symbols: int = 8
    width: int = 32
    rows: int = 64
    probed: int = 2000  # texts; half of them fit the probe
    training: Training = Training(steps=1000)
    mixers: tuple[str, ...] = ("elman", "lstm", "attention")


def name(mixer: str, length: int) -> str:
    return f"{mixer}, {length}"


def model_of(settings: FinalStateSettings, mixer: str, length: int) -> TransformerConfig:
    """All models have learned positions, so the queried position is easy to compare with."""
    vocab_size = settings.symbols + length
    config = network(MIXERS[mixer], width=settings.width, vocab_size=vocab_size, outputs=settings.symbols)
    return replace(config, context=length + 1, embed=TokenEmbedConfig(LearnedConfig()))


def query_problem(settings: FinalStateSettings, length: int) -> SampleBatch:
    """Sequences with a query for a random token, so that the model has to store all tokens."""

    def sample_batch(source: torch.Generator) -> ExampleBatch:
        text = torch.randint(settings.symbols, (settings.rows, length), generator=source)
        position = torch.randint(length, (settings.rows, 1), generator=source)
        ids = torch.cat([text, settings.symbols + position], 1)
        return ExampleBatch(ids, Layout.full(ids.shape[0], ids.shape[1]), text.gather(1, position)[:, 0])

    return sample_batch


@torch.no_grad()
def memories(model: Transformer, text: Int[Tensor, "B T"]) -> list[Float[Tensor, "B N"]]:
    """The model's memory of each token after the whole sequence: for a recurrent network, its state, which is the same
    for all tokens; for attention, the token's key and value.
    """
    x, layout = model.embed(text, Layout.full(text.shape[0], text.shape[1]))
    states = model.stack.initial_states(text.shape[0], text.shape[1] + 1, like=x)
    _, states, _ = model.stack(x, layout, states)
    state, mixer = cast(tuple[State, ...], states)[0], model.stack.blocks[0].mixer
    if isinstance(state, KeyValues):
        return [torch.cat([part[:, k].flatten(1) for part in state], 1) for k in range(text.shape[1])]
    return [torch.cat(mixer.final(state), 1)] * text.shape[1]  # type: ignore[operator, union-attr]


def probe(features: Float[Tensor, "B N"], targets: Int[Tensor, "B"], classes: int) -> float:
    """The accuracy of a linear probe on the second half of the rows, fitted to the first half by ridge regression."""
    x = torch.cat([features, torch.ones(len(features), 1)], 1).double()
    half = len(x) // 2
    wanted = torch.nn.functional.one_hot(targets, classes).double()
    gram = x[:half].T @ x[:half] + 0.1 * torch.eye(x.shape[1], dtype=torch.float64)
    weights = torch.linalg.solve(gram, x[:half].T @ wanted[:half])
    return float(((x[half:] @ weights).argmax(1) == targets[half:]).double().mean())


def measure(settings: FinalStateSettings, variant: str, seed: int) -> Values:
    mixer, length = variant.split(", ")[0], int(variant.split(", ")[1])
    model = model_of(settings, mixer, length).build(seed)
    sample_batch = query_problem(settings, length)
    train(model, sample_batch, settings.training, seed)
    shape = (settings.probed, length)
    text = torch.randint(settings.symbols, shape, generator=generator(seed, 6))
    unread = torch.randint(settings.symbols, shape, generator=generator(seed, 7))
    memory = memories(model, text)
    order = range(length - 1, -1, -1)  # from the last token, at distance 0, to the first
    return {
        "answers": accuracy(model, sample_batch, seed),
        "probe": [probe(memory[k], text[:, k], settings.symbols) for k in order],
        "never read": [probe(memory[k], unread[:, k], settings.symbols) for k in order],
    }


def apply_rule(settings: FinalStateSettings, trials: Trials) -> Finding:
    numbers, effect, control = [], True, True
    long, short = settings.length, settings.short
    for mixer in settings.mixers:
        near, far = (trials.share(name(mixer, long), "probe", index) for index in (0, -1))
        first = trials.share(name(mixer, short), "probe", -1)
        unread = trials.share(name(mixer, long), "never read", -1)
        numbers += [
            Number(f"{mixer}: last of {long} tokens", near),
            Number(f"{mixer}: first of {long} tokens", far),
            Number(f"{mixer}: first of {short} tokens", first),
            Number(f"{mixer}: a token never read", unread),
            Number(f"{mixer}: its own answers, {long} tokens", trials.share(name(mixer, long), "answers")),
        ]
        effect = effect and near.low > 0.9 and (far.low > 0.9 if mixer == "attention" else far.high < 0.5)
        control = control and unread.high < 1 / settings.symbols + 0.1
    within_reach = trials.share(name("lstm", short), "probe", -1).low > 0.5
    return Finding(numbers, effect, control and within_reach, [f"Chance is {1 / settings.symbols:.3g}."])


def draw(figure: Figure, settings: FinalStateSettings, trials: Trials) -> None:
    parts, chance = figure.subplots(1, 3, sharey=True, width_ratios=(1.4, 0.7, 1.4)), 1 / settings.symbols
    for axes, key, length, title in (
        (parts[0], "probe", settings.length, f"the probe, {settings.length} tokens"),
        (parts[1], "probe", settings.short, f"{settings.short} tokens"),
        (parts[2], "never read", settings.length, "control: tokens of another text"),
    ):
        series = {mixer: trials.collect(name(mixer, length), key) for mixer in settings.mixers}
        has_legend = axes is parts[0]
        plot_lines(
            axes, range(length), series, title=title, x="tokens before the end", chance=chance, legend=has_legend
        )
        axes.set_ylim(0, 1.04)
    parts[0].set_ylabel("accuracy")


CLAIM = Claim(
    number=10,
    name="final-state",
    title="The last state has no precise information on early tokens",
    statement="The last state of a recurrent network contains the last tokens, but not the first ones. The memory of "
    "attention contains them all.",
    source="Bahdanau, Cho and Bengio 2015, section 1; Cho et al. 2014 (properties of neural machine translation)",
    measured="Networks are trained to recall the token at a position that is queried after the text. Then they are "
    "frozen, and a linear probe predicts each token: from the state (h, and c of the LSTM) after the whole text, or "
    "from the key and value that attention stores of it.",
    rule="In the long texts, the probe predicts the last token for all models (lower end above 0.9). It predicts the "
    "first from attention's memory (above 0.9), and from Elman's and the LSTM's states in fewer than half of the texts "
    "(upper end).",
    control="A probe for tokens of another text, which the model never read, must fail: within 0.1 of chance, by the "
    "upper end. In short texts the claim must be wrong: the probe has to predict the first token from the LSTM's "
    "state in more than half of the texts. Otherwise it could not read old tokens at all.",
    minutes=1.5,
    settings=FinalStateSettings(),
    variants=lambda settings: [name(m, n) for n in (settings.short, settings.length) for m in settings.mixers],
    measure=measure,
    apply_rule=apply_rule,
    draw=draw,
)
