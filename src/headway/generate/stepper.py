"""The step of a model for many sequences: pieces of their tokens in, logits and choices out."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar, cast

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from headway.engine.chunks import RowChunk
from headway.generate.prompts import device_of, pad
from headway.layout import Layout, to_device
from headway.nn.models import GenerationProgress, Generative, Prompt, evaluation_mode

if TYPE_CHECKING:
    from headway.engine.pool import Pool
    from headway.engine.sampling_batch import SamplingBatch

_COMPACT_SHARE = 0.25  # share of a batch that must have finished before its rows are removed


class Stepper(Protocol):
    """A model that computes many rows in a step: the compiled engine, or `TorchStepper`."""

    config: Any
    joins: bool  # whether rows may join and leave at any step without an effect on the others
    extends: bool  # whether a row may process several tokens at once and roll back to any of them
    pool: Pool | None  # the threads that compute and sample; None: torch computes, and samples unless it is slow

    def open(
        self, source: Any = None, layout: Layout | None = None, count: int | None = None, capacity: int = 0
    ) -> Any:
        """Open a batch of empty rows: one per source, or `count` without sources, for up to `capacity` tokens each."""
        ...

    def compute(self, chunks: Sequence[RowChunk], sampling: SamplingBatch | None = None) -> Float[Tensor, "N C"]:
        """Process the chunks; return the requested logits in order. With `sampling`, also sample from them."""
        ...

    def lacking(self, chunks: Sequence[RowChunk]) -> float:
        """How many blocks of keys and values are missing to compute these chunks; 0 if there are enough."""
        ...


def stepper_of(model: Generative | Stepper) -> Stepper:
    """The model itself if it computes rows, otherwise a TorchStepper."""
    return cast(Stepper, model) if hasattr(model, "compute") else TorchStepper(cast(Generative, model))


def with_graphs(model: Generative) -> Generative:
    """The model; its decoding steps are CUDA graphs if its device has them."""
    device = device_of(model)
    if device.type in ("cpu", "meta") or not hasattr(torch.get_device_module(device), "CUDAGraph"):
        return model
    from headway.generate.decoding_graph import GraphedModel  # for GPUs

    return model if isinstance(model, GraphedModel) else cast(Generative, GraphedModel(model))


class RowBatch:
    """Sequences whose rows are opened together, with their sources. Torch also computes them together."""

    def __init__(self, count: int, capacity: int, source: Any = None, layout: Layout | None = None) -> None:
        self._fields = source, layout, count, capacity
        self._rows: dict[int, Any] = {}
        self._size = 0  # how many sequences it has so far

    def add(self) -> int:
        """The index of the next sequence."""
        self._size += 1
        return self._size - 1

    def open(self, stepper: Stepper, index: int) -> Any:
        """Return the empty row with this index. If it was returned before, open the whole batch again."""
        if index not in self._rows:
            self._rows = dict(enumerate(stepper.open(*self._fields).rows))
        return self._rows.pop(index)


class TorchRow:
    """A row of a TorchBatch."""

    def __init__(self, batch: TorchBatch) -> None:
        self.batch = batch

    def close(self) -> None:
        """Its memory is freed with the batch's, or when so many rows have finished that they are removed."""


class TorchBatch:
    """Rows that torch computes together until all end: its sums depend on the batch, so none joins a running one."""

    def __init__(self, source: Any, layout: Layout | None, count: int, capacity: int) -> None:
        self.source, self.layout, self.capacity = source, layout, capacity
        self.rows = [TorchRow(self) for _ in range(count)]
        self.decoding: GenerationProgress | None = None  # once it has started


class TorchStepper:
    """Steps of a torch model. All rows of a batch start in the same step, and nothing joins them."""

    joins = extends = False
    pool: Pool | None = None

    def __init__(self, model: Generative) -> None:
        self.model, self.config = with_graphs(model), model.config

    def open(
        self, source: Any = None, layout: Layout | None = None, count: int | None = None, capacity: int = 0
    ) -> TorchBatch:
        assert count is not None
        return TorchBatch(source, layout, count, capacity)

    def lacking(self, chunks: Sequence[RowChunk]) -> float:
        return 0

    def compute(self, chunks: Sequence[RowChunk], sampling: SamplingBatch | None = None) -> Float[Tensor, "N C"]:
        """The logits after each chunk of one batch. Rows without a chunk have finished: they are padding, where nothing
        is written, until they are a quarter of the batch and are removed.
        """
        batch = chunks[0].row.batch
        with evaluation_mode(self.model):
            if batch.decoding is None:
                if batch.source is None:  # the order of sources is that of the rows
                    batch.rows = [chunk.row for chunk in chunks]
                ids, layout = pad([chunk.ids for chunk in chunks], device_of(self.model))
                prompt = Prompt(ids, layout, batch.source, batch.layout)
                logits, batch.decoding = self.model.start(prompt, batch.capacity)
                return logits
            device = batch.decoding.positions.device
            tokens = {chunk.row: chunk.ids[0] for chunk in chunks}
            indices = {row: index for index, row in enumerate(batch.rows)}
            running = [indices[chunk.row] for chunk in chunks]  # of several owners in an order that changes
            if finished := len(batch.rows) - len(chunks):
                if finished >= _COMPACT_SHARE * len(batch.rows):
                    index = to_device(torch.tensor(running), device)
                    batch.rows, running = [chunk.row for chunk in chunks], list(range(len(chunks)))
                    batch.decoding = batch.decoding.select(index, index)
                else:
                    idle = to_device(torch.tensor([row not in tokens for row in batch.rows]), device)
                    batch.decoding = batch.decoding.at(batch.decoding.positions.masked_fill(idle, -1))
            # From numpy, because torch.tensor takes ten times as long, which shows in steps of small models.
            ids = to_device(torch.from_numpy(np.array([tokens.get(row, 0) for row in batch.rows])), device)
            logits, batch.decoding = self.model.step(ids, batch.decoding)
            in_order = running == list(range(len(batch.rows)))
            return logits if in_order else logits[to_device(torch.tensor(running), device)]


R = TypeVar("R")


class NextTokens(NamedTuple):
    """The next token for each row in one generation."""

    ids: Int[Tensor, "B"]
    decoding: Any  # GenerationProgress


StepOutput = tuple[Float[Tensor, "B C"], Any]  # the logits after these tokens, and the decoding state
DecodingCoroutine = Generator[NextTokens, StepOutput, R]  # yields its next tokens and receives the logits


@torch.inference_mode()
def run_coroutine(model: Generative, coroutine: DecodingCoroutine[R]) -> R:
    """Run one coroutine to the end and return its result."""
    try:
        request = next(coroutine)
        while True:
            [output] = step_together(model, [request])
            request = coroutine.send(output)
    except StopIteration as end:
        return end.value


def step_together(model: Generative, requests: Sequence[NextTokens]) -> list[StepOutput]:
    """Run one step for several coroutines. Each gets exactly what `model.step` would return in a separate step, bit for
    bit. The compiled engine takes one step for all of them; torch takes one step for each, because batching changes the
    order of sums.
    """
    if not hasattr(model, "compute") or len(requests) == 1:
        return [model.step(*entry) for entry in requests]
    chunks = [
        RowChunk(row, position, [token])
        for ids, decoding in requests
        for row, position, token in zip(decoding.rows, decoding.positions.tolist(), ids.tolist())
    ]
    logits = cast(Stepper, model).compute(chunks).split([len(ids) for ids, _ in requests])
    after = [torch.where(entry.positions < 0, entry.positions, entry.positions + 1) for _, entry in requests]
    return [(rows, entry.at(positions)) for rows, (_, entry), positions in zip(logits, requests, after)]
