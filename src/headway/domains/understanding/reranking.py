"""How relevant a document is to a query, evaluated by the order of each query's documents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor, nn

from headway.config_kinds import register
from headway.data import Table, read_table
from headway.data.labels import Target, json_list, parse_number
from headway.data.table_files import read_table_rows
from headway.domains.understanding.pair_inputs import PairInputs
from headway.domains.understanding.task import PooledTaskConfig, TextDataset, check_encoder
from headway.errors import UserError
from headway.formats.usage import read_usage
from headway.learn import Recipe, Task
from headway.learn.examples import Contents
from headway.learn.objectives.predictions import Goals, MultiLabel, Prediction
from headway.learn.report import Picture
from headway.learn.token_rows import TokenRows, frame_for
from headway.metrics import ranking_scores

_LABEL = "relevant"
_BOOLEANS = {"true": "1", "false": "0"}


@register("reranking")
@dataclass(frozen=True)
class RerankingConfig(PooledTaskConfig):
    """Predict how relevant each document is to its query: binary cross-entropy of a cross-encoder's single output
    (Nogueira and Cho 2019). The best model has the highest `goal` on held-out queries.

    A row has a `query`, a `document` and a `label`: 1 for a relevant document and 0 for others, or a number that is
    larger for more relevant documents. Files with a column `positive` have a relevant document in it, and others in
    `negative`, where JSON lines may have a list. All documents of a query are in the same split.
    """

    query: str = "query"  # column with the queries
    document: str = "document"  # column with the documents
    label: str = "label"  # column with the relevance
    positive: str = "positive"  # column with relevant documents
    negative: str = "negative"  # column with documents that are not relevant, or several comma-separated columns
    goal: Literal["ndcg_at_10", "mrr_at_10", "loss"] = "ndcg_at_10"  # score that selects the best model

    def open(self, recipe: Recipe, data: Sequence[Path] | None, workspace: Path) -> Task:
        """Raises UserError for data that cannot be read, cannot be ranked, or do not fit the model."""
        dataset = RankedPairs(self, recipe, self.read(recipe.files(data)), workspace)
        return Task(dataset, Relevance("pair", goal=self.goal))

    def read(self, paths: Sequence[Path]) -> RelevanceTable:
        """The documents of each query with their relevance from 0 to 1, each document once."""
        has_positives = self.positive in next(read_table_rows(paths)).values
        if has_positives:
            first, *others = (name.strip() for name in self.negative.split(","))
            columns = {"query": self.query, "positive": self.positive, "negative": first}
            more = {f"negative{number}": name for number, name in enumerate(others, 2)}
            table = read_table(paths, {**columns, **more}, target="negative")
            lists = [(json_list(text), text) for text in table.columns["negative"]]
            negatives = [
                [text for text in ([plain] if items is None else items) if text.strip()] for items, plain in lists
            ]
            for name in more:
                negatives = [[*texts, text] for texts, text in zip(negatives, table.columns[name])]
            groups = [
                [(positive, 1.0), *((text, 0.0) for text in others)]
                for positive, others in zip(table.columns["positive"], negatives)
            ]
        else:
            table = read_table(paths, {"query": self.query, "document": self.document, "label": self.label})
            values = []
            for row, label in enumerate(table.columns["label"]):
                value = parse_number(_BOOLEANS.get(label.strip().lower(), label))
                if value is None or value < 0:
                    raise UserError(
                        f"{table.location(row)}: the label is {label!r:.40}; write 1 for a relevant document and 0 for "
                        "others, or numbers that are larger for more relevant documents"
                    )
                values.append(value)
            largest = max(1.0, *values)
            groups = [[(document, value / largest)] for document, value in zip(table.columns["document"], values)]
        pairs: dict[tuple[int, str, str], tuple[int, float]] = {}  # by split, query and document
        for row, (query, group) in enumerate(zip(table.columns["query"], groups)):
            for document, value in group:
                key = (int(table.named_splits[row]), query, document)
                first, largest = pairs.get(key, (row, 0.0))
                pairs[key] = first, max(largest, value)
        rows = np.array([row for row, _ in pairs.values()])
        texts = {"text": [query for _, query, _ in pairs], "text2": [document for *_, document in pairs]}
        locations = [table.locations[row] for row in rows.tolist()]
        relevance = np.array([value for _, value in pairs.values()], np.float32)
        return RelevanceTable(Table(texts, table.named_splits[rows], locations), relevance)


class RelevanceTable(NamedTuple):
    """Queries ("text") with documents ("text2"), and their relevance from 0 to 1, float32 [N]."""

    table: Table
    relevance: Float[np.ndarray, "N"]


class RankedPairs(TextDataset):
    """Pairs of a query and a document; `targets` [N, 1] is their relevance, and `queries` [N] numbers the queries."""

    def __init__(self, config: RerankingConfig, recipe: Recipe, data: RelevanceTable, workspace: Path) -> None:
        self.usage, self.truncate = read_usage(workspace), config.truncate
        super().__init__(config, recipe, data.table, workspace)
        self.queries: Int[np.ndarray, "N"] = np.unique(data.table.columns["text"], return_inverse=True)[1]
        self.target, self.labels = Target("labels", "the labels are relevance"), (_LABEL,)
        self.targets = data.relevance[:, None]
        self.counts = np.zeros(0, np.int64)
        is_run = (workspace / "recipe.json").exists()  # which has passed, and may be evaluated on all of other data
        for split in ("all",) if is_run else ("train", "validation", self.splits.final):
            rows = self.splits.rows(split)
            if not ranking_scores(self.targets[rows, 0], self.targets[rows, 0], self.queries[rows]):
                raise UserError(
                    f"none of the {len(np.unique(self.queries[rows])):,} {split} queries has a relevant document and "
                    "another one, so there is nothing to rank; add documents that are not relevant, or more queries"
                )

    def tokenize(self, recipe: Recipe, first: Sequence[str], second: Sequence[str] | None) -> TokenRows:
        model = check_encoder(recipe.model)
        inputs = PairInputs(self.codec, model, self.usage, frame_for(self.codec, model))
        return inputs.rows(first, second or (), self.truncate, self.table.location)

    def limited_rows(self, rows: np.ndarray, limit: int | None) -> np.ndarray:
        """The rows of evenly spaced queries, complete, with at most `limit` rows but at least one query."""
        if limit is None or len(rows) <= limit:
            return rows
        chosen, counts = np.unique(self.queries[rows], return_counts=True)
        order = np.random.default_rng(0).permutation(len(chosen))
        kept = chosen[order[: max(1, int((counts[order].cumsum() <= limit).sum()))]]
        return rows[np.isin(self.queries[rows], kept)]

    def contents(self) -> Contents:
        return {**super().contents(), "relevance": (self.targets,)}


class Relevance(MultiLabel[RankedPairs]):
    """Binary cross-entropy of one output per pair, scored by the order of each query's documents."""

    goals: ClassVar[Goals] = {"ndcg_at_10": "max", "mrr_at_10": "max", "loss": "min"}
    target_name = "relevance"

    @property
    def measure(self) -> str:
        return "nats per pair"

    def evaluate(self, model: nn.Module, examples: RankedPairs, split: str, limit: int | None = None) -> dict[str, Any]:
        """Loss (nats per pair), MRR and NDCG of the first ten documents, over the queries that have a relevant document
        and another one.
        """
        logits, targets = self.evaluate_outputs(model, examples, split, limit)
        assert self._last_evaluation is not None
        queries = examples.queries[self._last_evaluation[2].rows]
        scores = ranking_scores(logits[:, 0].numpy(), targets[:, 0].numpy(), queries)
        scores.setdefault(self.goal, 0.0)  # if none of these queries can be ranked
        return {"loss": float(self._entropy(logits, targets).mean()), **scores}

    def calibrate(self, model: nn.Module, examples: RankedPairs, directory: Path) -> list[str]:
        return []  # scores are for ranking, so they need no threshold

    def predictions(
        self, examples: RankedPairs, rows: Int[np.ndarray, "N"], outputs: Float[Tensor, "N C"], targets: Tensor
    ) -> list[Prediction]:
        return [
            Prediction(row, f"{predicted:.3f}", f"{actual:.3g}")
            for row, predicted, actual in zip(rows.tolist(), outputs[:, 0].sigmoid().tolist(), targets[:, 0].tolist())
        ]

    def errors_first(self, outputs: Float[Tensor, "N C"], targets: Tensor) -> Int[np.ndarray, "N"]:
        """The largest errors first."""
        return np.argsort(-(outputs.sigmoid() - targets).abs()[:, 0].numpy(), kind="stable")

    def charts(self, examples: RankedPairs, outputs: Float[Tensor, "N C"], targets: Tensor) -> list[Picture]:
        return []
