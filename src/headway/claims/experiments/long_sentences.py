"""Claim 13: a fixed vector fails long sentences."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, cast

from headway.claims.claim import Claim, Finding, Number, Trials, Values, difference, mean
from headway.claims.page import intervals, lines, middle_of
from headway.claims.sequences import Budget, begun, opened, size, sized, small, symbols_of, tuned, words_of, write_lists
from headway.domains.translation.task import ParallelText, TargetText
from headway.learn.task import Task
from headway.metrics import pronunciation_error_rates
from headway.nn.models import EncoderDecoder, ModelConfig
from headway.nn.models.ancestors import rnnenc, rnnsearch

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
    width: int = 64  # of the transformer; the others have the same size
    budget: Budget = Budget(steps=1400, trial_steps=100, rates=(4e-3, 8e-3), evaluations=1, judged=300)


def measure(settings: LongSentencesSettings, variant: str, seed: int) -> Values:
    with TemporaryDirectory() as folder:
        last_only = variant == LAST
        data = write_lists(Path(folder), settings.most, settings.trained, settings.judged, last_only)
        with opened("pronounce", settings.budget, seed, data) as task:
            course = tuned(settings.budget, task, model_of(settings, variant, task), seed)
            rates, letters = by_length(settings, task, course.model)
    return {**course.values("per"), "rates": rates, "letters": letters}


def model_of(settings: LongSentencesSettings, variant: str, task: Task) -> ModelConfig:
    transformer = small(task, "pronounce", settings.width, depth=1)
    if variant == TRANSFORMER:
        return transformer
    build, symbols = rnnsearch if variant == SEARCH else rnnenc, symbols_of(task)
    return sized(lambda width: begun(build(width, width, symbols, width // 2)), size(transformer))


def by_length(settings: LongSentencesSettings, task: Task, model: EncoderDecoder) -> tuple[list[float], list[float]]:
    """The phoneme error rate for lists of 1, 2, ... words, and their mean length in letters."""
    examples, objective = cast(ParallelText, task.examples), cast(TargetText, task.objective)
    sources = examples.sources("validation")
    texts, references = sources.given, sources.references
    outputs = examples.texts(objective.write(model, examples, sources, objective.searched("validation")))
    rates, letters = [], []
    for length in range(1, settings.most + 1):
        places = [place for place, text in enumerate(texts) if words_of(text) == length]
        found = pronunciation_error_rates([outputs[p] for p in places], [references[p] for p in places])
        rates.append(cast(float, found["per"]))
        letters.append(sum(len(texts[p]) for p in places) / len(places))
    return rates, letters


def falls(trials: Trials, variant: str) -> list[float]:
    """The rise of the error rate from single words to the longest lists, per trial."""
    return [rates[-1] - rates[0] for rates in trials.of(variant, "rates")]


def judge(settings: LongSentencesSettings, trials: Trials) -> Finding:
    loss = {variant: falls(trials, variant) for variant in VARIANTS}
    over = {other: difference(loss[FIXED], loss[other]) for other in (SEARCH, TRANSFORMER)}
    control = difference([fall / 2 for fall in loss[FIXED]], loss[LAST])
    numbers = []
    for variant in VARIANTS:
        numbers.append(Number(f"{variant}: error rate for single words", mean(trials.at(variant, "rates", 0))))
        numbers.append(
            Number(f"{variant}: error rate for lists of {settings.most}", mean(trials.at(variant, "rates", -1)))
        )
        numbers.append(Number(f"{variant}: rise between them", mean(loss[variant])))
    numbers += [Number(f"rise of {FIXED} minus that of {other}", found) for other, found in over.items()]
    numbers.append(Number(f"half the rise of {FIXED} minus that with the last word only", control))
    letters = ", ".join(f"{found:.0f}" for found in trials.of(FIXED, "letters")[0])
    sizes = ", ".join(f"{variant} {trials.of(variant, 'parameters')[0]:,}" for variant in VARIANTS[:3])
    remarks = [f"Lists of 1 to {settings.most} words have {letters} letters.", f"Parameters: {sizes}."]
    effect = mean(loss[FIXED]).low > 0 and all(found.low > 0 for found in over.values())
    return Finding(numbers, effect, control.low > 0, remarks)


def draw(figure: Figure, settings: LongSentencesSettings, trials: Trials) -> None:
    left, right = figure.subplots(1, 2)
    letters = middle_of(trials.of(FIXED, "letters"))
    series = {variant: trials.of(variant, "rates") for variant in VARIANTS}
    lines(left, letters, series, title="phoneme error rate", x="letters of the source", y="validation")
    rises = {variant: falls(trials, variant) for variant in VARIANTS}
    intervals(right, rises, title=f"rise from 1 to {settings.most} words", x="95 % interval and each seed")


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
    judge=judge,
    draw=draw,
)
