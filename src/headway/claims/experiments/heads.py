"""Claim 9: heads amplify the tokens that matter, and the causal mask keeps the model honest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from headway.claims.claim import Claim, Finding, Number, Trials, Values, difference, mean
from headway.claims.networks import ExampleBatch, Training, accuracy, generator, network, train
from headway.claims.page import plot_lines
from headway.claims.problems import KeyValuePairs, recall_pairs
from headway.layout import Layout
from headway.nn.kernels import IGNORE_INDEX
from headway.nn.mixers import AttentionConfig
from headway.nn.models import attention_maps
from headway.nn.parts.positions import RotaryConfig
from headway.visibility import Causal, Full

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MASKED, UNMASKED = "next token, masked", "next token, mask removed"


@dataclass(frozen=True)
class HeadsSettings:
    """Of the `keys` that were written, `asked` are queried at once. `length` and `symbols` describe the random
    sequences.
    """

    heads: tuple[int, ...] = (1, 2, 4, 8)
    keys: int = 12
    values: int = 8
    asked: int = 4
    length: int = 16
    symbols: int = 8
    width: int = 64
    rows: int = 64
    training: Training = Training(steps=600)

    @property
    def pairs(self) -> KeyValuePairs:
        return KeyValuePairs(self.keys, self.values, queries=self.asked)


def variants(settings: HeadsSettings) -> list[str]:
    return [*(_heads(count) for count in settings.heads), MASKED, UNMASKED]


def _heads(count: int) -> str:
    return f"attention, {count} head{'s' if count > 1 else ''}"


def measure(settings: HeadsSettings, variant: str, seed: int) -> Values:
    if variant in (MASKED, UNMASKED):
        return train_next_token(settings, variant == MASKED, seed)
    return look_up(settings, next(count for count in settings.heads if _heads(count) == variant), seed)


def look_up(settings: HeadsSettings, heads: int, seed: int) -> Values:
    """Associative recall, with the query token's attention weights."""
    problem = settings.pairs
    outputs = settings.asked * settings.values
    config = network(AttentionConfig(heads), width=settings.width, channels=problem.channels, outputs=outputs)
    model = config.build(seed)
    sample_batch = recall_pairs(problem, settings.rows)
    train(model, sample_batch, settings.training, seed)
    examples, positions = problem.sample(settings.rows, generator(seed, 5))
    maps = attention_maps(model, lambda: model(examples.inputs, examples.layout))
    weights = next(iter(maps.values()))[:, :, -1]  # those of the last token, [B, H, S]
    correct_weights = weights.gather(2, positions[:, None].expand(-1, heads, -1))  # [B, H, A]
    return {
        "accuracy": accuracy(model, sample_batch, seed),
        "weight": float(correct_weights.amax(1).mean()),
        "picture": weights[0].tolist(),
        "places": positions[0].tolist(),
    }


def train_next_token(settings: HeadsSettings, masked: bool, seed: int) -> Values:
    """Train on the next token in random sequences, which a causal model can only guess."""
    mixer = AttentionConfig(2, pattern=Causal() if masked else Full(), rotary=RotaryConfig())
    n_symbols = settings.symbols
    config = network(mixer, width=settings.width, vocab_size=n_symbols, outputs=n_symbols, pool="tokens")
    model = config.build(seed)

    def sample_batch(source: torch.Generator) -> ExampleBatch:
        text = torch.randint(n_symbols, (settings.rows, settings.length + 1), generator=source)
        # Without the mask, a model can copy every target but this one, which is not in the row.
        targets = text[:, 1:].clone()
        targets[:, -1] = IGNORE_INDEX
        return ExampleBatch(text[:, :-1], Layout.full(settings.rows, settings.length), targets)

    def without_next_token(source: torch.Generator) -> ExampleBatch:
        examples = sample_batch(source)
        rows, length = settings.rows, settings.length // 2
        targets = torch.full((rows, length), IGNORE_INDEX)
        targets[:, -1] = examples.inputs[:, length]
        return ExampleBatch(examples.inputs[:, :length], Layout.full(rows, length), targets)

    train(model, sample_batch, settings.training, seed)
    return {
        "accuracy": accuracy(model, sample_batch, seed),
        "honest": accuracy(model, without_next_token, seed, batches=16),
    }


def apply_rule(settings: HeadsSettings, trials: Trials) -> Finding:
    enough = _heads(min((n for n in settings.heads if n >= settings.asked), default=settings.heads[-1]))
    numbers = [Number(f"{_heads(n)}: accuracy", trials.share(_heads(n), "accuracy")) for n in settings.heads]
    weight = trials.share(enough, "weight")
    gain = difference(trials.collect(enough, "accuracy"), trials.collect(_heads(settings.heads[0]), "accuracy"))
    unmasked, masked = trials.share(UNMASKED, "accuracy"), trials.share(MASKED, "accuracy")
    hidden = trials.share(UNMASKED, "honest")
    numbers += [
        Number(f"{enough}: weight of the best head on the right key", weight),
        Number(f"{enough} minus {_heads(settings.heads[0])}: accuracy", gain),
        Number(f"{UNMASKED}: accuracy in training", unmasked),
        Number(f"{UNMASKED}: accuracy without the next token in the row", hidden),
        Number(f"{MASKED}: accuracy in training", masked),
    ]
    chance = 1 / settings.symbols
    effect = weight.low > 0.5 and gain.low > 0.1 and unmasked.low > 0.9
    control = masked.high < chance + 0.1 and hidden.high < chance + 0.1
    remarks = [f"Uniform attention has a weight of {1 / settings.pairs.length:.2g} per token; chance is {chance:.3g}."]
    return Finding(numbers, effect, control, remarks)


def draw(figure: Figure, settings: HeadsSettings, trials: Trials) -> None:
    left, middle, right = figure.subplots(1, 3, width_ratios=(1, 1.25, 1))
    accuracies = list(zip(*(trials.collect(_heads(n), "accuracy") for n in settings.heads)))
    title = f"{settings.asked} of {settings.keys} keys queried"
    plot_lines(
        left,
        settings.heads,
        {"attention": accuracies},
        title=title,
        x="heads",
        y="accuracy",
        log="x",
        ticks=settings.heads,
    )
    left.set_ylim(0, 1.04)
    enough = next((n for n in settings.heads if n >= settings.asked), settings.heads[-1])
    picture, positions = (trials.collect(_heads(enough), key)[0] for key in ("picture", "places"))
    middle.imshow(picture, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    middle.grid(False)
    for number, position in enumerate(positions, 1):
        middle.annotate(f"{number}", (position, -0.62), ha="center", va="bottom", fontsize=8, annotation_clip=False)
    middle.set_yticks(range(enough), [f"head {h + 1}" for h in range(enough)])
    middle.set(xlabel="token; queried keys are numbered")
    middle.set_title("attention of the query", pad=16)
    kinds = {"masked": MASKED, "mask removed": UNMASKED}
    for offset, (key, label) in enumerate((("accuracy", "as trained"), ("honest", "next token hidden"))):
        values = [mean(trials.collect(name, key)).value for name in kinds.values()]
        right.bar(
            [i + 0.36 * offset for i in range(2)], values, width=0.34, label=label, color=("#2563c9", "#d9660a")[offset]
        )
    right.set_xticks([0.18, 1.18], list(kinds))
    right.axhline(1 / settings.symbols, color="#98a4b0", linestyle=":", linewidth=1)
    right.set_title("next token of random texts")
    right.set_ylim(0, 1.25)
    right.legend(fontsize=8, loc="upper left")


CLAIM = Claim(
    number=9,
    name="heads",
    title="Heads amplify the tokens that matter, and the mask keeps them honest",
    statement="Each head attends to the token that matters, so one layer can look up as many values at once as it has "
    "heads. Without the causal mask, a model only learns to copy what it should predict.",
    source="Vaswani et al. 2017, sections 3.2.2 and 3.2.3",
    measured="Associative recall: pairs of keys and values, then a token that queries four keys at once. Accuracy for "
    "1 to 8 heads with equally many weights, and the attention weight on the correct keys. Then training on the next "
    "token of random texts, with and without the mask.",
    rule="With as many heads as queried keys, the best head's weight on the correct key is above one half, and the "
    "accuracy is more than 0.1 above that of one head. Without the mask, the accuracy on random texts is above 0.9. "
    "All by the lower ends of the intervals.",
    control="On random texts, no model can predict better than chance. The masked model must fail, and so must the "
    "unmasked one if the next token is not in its row: within 0.1 of chance, by the upper ends of the intervals.",
    minutes=1.5,
    settings=HeadsSettings(),
    variants=variants,
    measure=measure,
    apply_rule=apply_rule,
    draw=draw,
)
