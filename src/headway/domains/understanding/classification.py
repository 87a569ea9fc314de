"""Labels of texts and text pairs: a class, a number or several labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from headway.config_kinds import register
from headway.data import ClassSplitConfig, read_table
from headway.data.prepared.prepared_samples import PreparedSamples
from headway.data.prepared.shard_reader import is_prepared
from headway.domains.understanding.labelled_text_shards import PreparedTextDataset
from headway.domains.understanding.task import PooledTaskConfig, TextDataset, group_column
from headway.domains.understanding.unlabelled import UnlabelledTexts, new_texts
from headway.errors import ConfigError
from headway.io.files import user_path
from headway.learn import Recipe, Task
from headway.learn.objectives.classes import Classification
from headway.learn.objectives.language import LanguageClassification
from headway.learn.objectives.ngram_classes import NgramClassification, TextClassification
from headway.learn.objectives.targets import ChosenTarget, TargetConfig, choose_target, target_task
from headway.learn.run import PRETRAINING


@register("classification")
@dataclass(frozen=True)
class ClassificationConfig(PooledTaskConfig, TargetConfig):
    """Predict the class, the number or the labels of each text, depending on the labels or `target`.

    `text` and `label` name the columns. `smoothing` is label smoothing (Szegedy et al. 2016). `language_weight` adds
    the next-token loss of the texts to that of classes, for a causal model (Radford et al. 2018). With `ngrams`, logits
    of n-grams are fitted after training and added, for classes and without an adapter; they learn from the texts in
    the files `unlabelled`, too, with the labels that the model gives them. `skip_bad` skips texts without a label and
    counts them.
    """

    prepared_kinds: ClassVar[tuple[str, ...]] = ("labelled-texts",)
    changeable: ClassVar[tuple[str, ...]] = ("unlabelled",)  # files may have moved

    text: str = "text"  # column with the texts
    smoothing: float = 0.0
    language_weight: float = 0.0  # weight of the next-token loss
    ngrams: bool = False  # whether to add logits of n-grams; not with an adapter
    unlabelled: tuple[str, ...] = ()  # files of texts without labels for the n-grams, as for --pretrain
    split: ClassSplitConfig = ClassSplitConfig(validation=0.1, test=0.1)  # held-out shares
    skip_bad: bool = False  # whether to skip and count texts without a label

    @property
    def columns(self) -> dict[str, str]:
        """Column names by their role."""
        return {"text": self.text, "label": self.label, **group_column(self.group)}

    def open(self, recipe: Recipe, data: Sequence[Path] | None, workspace: Path) -> Task:
        """Raises UserError for data that cannot be read, are too small, or do not fit the model."""
        paths, noun = recipe.files(data), "pair" if "text2" in self.columns else "text"
        if any(map(is_prepared, paths)):
            samples = self._prepared(paths, workspace)
            chosen = choose_target(samples.labels, samples.names.__getitem__, self, noun, self.skip_bad)
            dataset = PreparedTextDataset(self, recipe, samples.select(chosen.rows), workspace, chosen)
        else:
            table = read_table(paths, self.columns, target="label")
            chosen = choose_target(table.columns["label"], table.location, self, noun, self.skip_bad)
            dataset = TextDataset(self, recipe, table.select(chosen.rows), workspace, chosen)
        if self.unlabelled:
            if not self.ngrams or noun == "pair":
                raise ConfigError("task.unlabelled is for n-grams of single texts; remove it, or set task.ngrams=true")
            # A first stage's texts are in the run, which may have moved.
            copies = [workspace / PRETRAINING / "data" / Path(name).name for name in self.unlabelled]
            others = [copy if copy.is_file() else user_path(name) for name, copy in zip(self.unlabelled, copies)]
            if not (workspace / "recipe.json").exists():
                new_texts(dataset, others, self.text)  # errors in them appear before training
            dataset.unlabelled = lambda: UnlabelledTexts(dataset, recipe, others, self.text).all
        objective = self._class_objective(chosen, recipe.adapter is not None)
        return target_task(dataset, self, noun, self.smoothing, workspace, objective)

    def _prepared(self, paths: Sequence[Path], workspace: Path) -> PreparedSamples:
        """The samples of prepared data. ConfigError for a new run that sets other columns than those that were read."""
        samples = PreparedSamples.open(paths, self.prepared_kinds[0], len(self.columns) - ("group" in self.columns) - 1)
        stated = samples.details.get("columns")
        if not (workspace / "recipe.json").exists() and self.columns != stated:
            ours, theirs = (
                ", ".join(f"{use}={str(name)[:40]}" for use, name in columns.items())
                for columns in (self.columns, stated if isinstance(stated, dict) else {})
            )
            raise ConfigError(
                f"{samples.data.name} was prepared from the columns {theirs}, but the recipe reads {ours}; set "
                "task.NAME to these, or prepare the data again with --columns"
            )
        return samples

    def _class_objective(self, chosen: ChosenTarget, is_adapted: bool) -> Callable[..., Classification[Any]]:
        """The objective for classes. Raises ConfigError for a language loss that cannot be added."""
        if not self.language_weight:
            has_ngrams = self.ngrams and chosen.target.kind == "class" and not is_adapted
            return NgramClassification if has_ngrams else TextClassification
        if self.language_weight < 0 or chosen.target.kind != "class":
            raise ConfigError(
                f"task.language_weight is {self.language_weight:g} with target {chosen.target.kind!r}; use a number "
                "above 0 with task.target=class, or 0"
            )
        return partial(LanguageClassification, self.language_weight)


@register("pairs")
@dataclass(frozen=True)
class TextPairsConfig(ClassificationConfig):
    """Predict the class or the labels of each text pair, or its number if all labels are numbers.

    `text`, `text2` and `label` name the columns. Pairs are split by their first text.
    """

    prepared_kinds: ClassVar[tuple[str, ...]] = ("labelled-pairs",)
    numbers_as_targets: ClassVar[bool] = True
    number_goal: ClassVar[str] = "spearman"

    text2: str = "text2"  # column with the second texts

    @property
    def columns(self) -> dict[str, str]:
        return {**super().columns, "text2": self.text2}
