"""Claim 13: a fixed vector fails long sentences."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, cast

from headway.claims.claim import Claim, Finding, Number, Trials, Values, difference, mean
from headway.claims.networks import config_of_size, num_parameters
from headway.claims.page import plot_intervals, plot_lines
from headway.claims.sequences import (
    Budget,
    count_words,
    open_recipe_task,
    small_model,
    target_vocab_size,
    train_tuned,
    with_scaled_init,
    write_lists,
)
from headway.domains.translation.task import ParallelText, TargetText
from headway.learn.task import Task
from headway.metrics import pronunciation_error_rates
from headway.nn.models import EncoderDecoder, ModelConfig
from headway.nn.models.seq2seq_presets import rnnenc, rnnsearch

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FIXED, SEARCH, TRANSFORMER = "gru, fixed vector", "gru, RNNsearch", "attention"
LAST = f"{FIXED}, last word only"
VARIANTS = (FIXED, SEARCH, TRANSFORMER, LAST)


@dataclass(frozen=True)
class LongSentencesSettings:
    """Lists of 1 to `most` words, with `trained` training lists and `judged` validation lists per length."""

    most: int = 5
    trained: int = 10_000
    judged: int = 150
    width: int = 64  # width of the transformer; the others have the same size
    budget: Budget = Budget(steps=1400, trial_steps=100, rates=(4e-3, 8e-3), evaluations=1, judged=300)


def measure(settings: LongSentencesSettings, variant: str, seed: int) -> Values:
    with TemporaryDirectory() as folder:
        last_only = variant == LAST
        paths = write_lists(Path(folder), settings.most, settings.trained, settings.judged, last_only)
        with open_recipe_task("pronounce", settings.budget, seed, paths) as task:
            curve = train_tuned(settings.budget, task, model_of(settings, variant, task), seed)
            rates, letters = by_length(settings, task, curve.model)
    return {**curve.values("per"), "rates": rates, "letters": letters}


def model_of(settings: LongSentencesSettings, variant: str, task: Task) -> ModelConfig:
    transformer = small_model(task, "pronounce", settings.width, depth=1)
    if variant == TRANSFORMER:
        return transformer
    build, vocab_size = rnnsearch if variant == SEARCH else rnnenc, target_vocab_size(task)
    return config_of_size(
        lambda width: with_scaled_init(build(width, width, vocab_size, width // 2)), num_parameters(transformer)
    )


def by_length(settings: LongSentencesSettings, task: Task, model: EncoderDecoder) -> tuple[list[float], list[float]]:
    """The phoneme error rate for lists of 1, 2, ... words, and their mean length in letters."""
    examples, objective = cast(ParallelText, task.examples), cast(TargetText, task.objective)
    sources = examples.sources("validation")
    inputs, references = sources.inputs, sources.references
    outputs = examples.decode_all(objective.generate(model, examples, sources, objective.search_for("validation")))
    rates, letters = [], []
    for length in range(1, settings.most + 1):
        indices = [index for index, text in enumerate(inputs) if count_words(text) == length]
        error_rates = pronunciation_error_rates([outputs[p] for p in indices], [references[p] for p in indices])
        rates.append(cast(float, error_rates["per"]))
        letters.append(sum(len(inputs[p]) for p in indices) / len(indices))
    return rates, letters


def rises(trials: Trials, variant: str) -> list[float]:
    """The rise of the error rate from single words to the longest lists, per trial."""
    return [rates[-1] - rates[0] for rates in trials.collect(variant, "rates")]


def apply_rule(settings: LongSentencesSettings, trials: Trials) -> Finding:
    rise = {variant: rises(trials, variant) for variant in VARIANTS}
    excess = {compared: difference(rise[FIXED], rise[compared]) for compared in (SEARCH, TRANSFORMER)}
    control = difference([rise_value / 2 for rise_value in rise[FIXED]], rise[LAST])
    numbers = []
    for variant in VARIANTS:
        numbers.append(
            Number(f"{variant}: error rate for single words", mean(trials.collect_point(variant, "rates", 0)))
        )
        numbers.append(
            Number(
                f"{variant}: error rate for lists of {settings.most}", mean(trials.collect_point(variant, "rates", -1))
            )
        )
        numbers.append(Number(f"{variant}: rise between them", mean(rise[variant])))
    numbers += [Number(f"rise of {FIXED} minus that of {compared}", interval) for compared, interval in excess.items()]
    numbers.append(Number(f"half the rise of {FIXED} minus that with the last word only", control))
    letters = ", ".join(f"{interval:.0f}" for interval in trials.collect(FIXED, "letters")[0])
    sizes = ", ".join(f"{variant} {trials.collect(variant, 'parameters')[0]:,}" for variant in VARIANTS[:3])
    remarks = [f"Lists of 1 to {settings.most} words have {letters} letters.", f"Parameters: {sizes}."]
    effect = mean(rise[FIXED]).low > 0 and all(interval.low > 0 for interval in excess.values())
    return Finding(numbers, effect, control.low > 0, remarks)


def draw(figure: Figure, settings: LongSentencesSettings, trials: Trials) -> None:
    left, right = figure.subplots(1, 2)
    letters = [fmean(column) for column in zip(*trials.collect(FIXED, "letters"))]
    series = {variant: trials.collect(variant, "rates") for variant in VARIANTS}
    plot_lines(left, letters, series, title="phoneme error rate", x="letters of the source", y="validation")
    rise_by_variant = {variant: rises(trials, variant) for variant in VARIANTS}
    plot_intervals(
        right, rise_by_variant, title=f"rise from 1 to {settings.most} words", x="95 % interval and each seed"
    )


CLAIM = Claim(
    number=13,
    name="long-sentences",
    title="A fixed vector fails long sentences",
    statement="A model that encodes the whole source as one vector gets worse with longer sources. A model that "
    "attends to the source, recurrent or not, gets worse more slowly.",
    source="Cho et al. 2014 (Properties), figure 4; Bahdanau, Cho and Bengio 2015, figure 2",
    measured="Lists of 1 to 5 English words to pronounce (random words of recipe pronounce; validation words are "
    "not in the training data): the phoneme error rate by the length of the list, for the GRU model of 2014 with its "
    "fixed vector, RNNsearch of 2015 and a transformer, with equal sizes and steps of AdamW. Short trial runs choose "
    "the learning rate of each run. Longer sources are joined words, because sentences of a language would differ in "
    "more than their length.",
    rule="From single words to the longest lists, the error rate of the fixed vector rises (interval over seeds above "
    "0), and by more than those of RNNsearch and the transformer (both intervals of the difference above 0).",
    control="The same model and lists, but only the last word is the target. It fits into the vector, so the rise must "
    "be less than half of that with all words (interval of the difference above 0). Otherwise the model would fail at "
    "reading long sources, and not at storing them in a vector.",
    minutes=16.0,
    settings=LongSentencesSettings(),
    variants=lambda settings: list(VARIANTS),
    measure=measure,
    apply_rule=apply_rule,
    draw=draw,
)
