"""A model that generates by a compiled program: torch reads the prompts, the program what follows."""

from __future__ import annotations

import sys
import threading
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from headway.engine.builder import FEW, CannotLowerError, PackedWeights
from headway.engine.cache import Blocks, Layer, Memory, RowBlocks, flat_states, flat_summaries, pool, write
from headway.engine.keys import FORMS
from headway.engine.machine import HAS_BF16_UNIT, announced
from headway.engine.operations import BLOCK
from headway.engine.packed import PackedTensor
from headway.engine.plan import StepProgram, check, lower
from headway.engine.tiles import FP32
from headway.layout import Layout
from headway.nn.kernels import rough_attention
from headway.nn.mixers.attention import KeyValues, SelfAttention
from headway.nn.mixers.conditional_gru import Annotations
from headway.nn.mixers.cross import Remembered
from headway.nn.models import Cache, Captioner, Decoding, EncoderDecoder, Heard, Prompt, Transformer
from headway.nn.models.transformer import check_prompt
from headway.visibility import Causal

_KEPT = 2  # rooms: what is read, and what comes next
_FREE = 3  # references to a room that nobody else holds: the list's, the loop's, and that of who counts them


class Results:
    def __init__(self) -> None:
        self._rooms: list[np.ndarray] = []

    def rows(self, count: int, width: int) -> Float[Tensor, "R C"]:
        """Rows with no content yet, the caller's as long as the tensor or a view of it lives."""
        size = count * width
        for room in self._rooms:
            if room.size >= size and sys.getrefcount(room) == _FREE:
                return torch.from_numpy(room[:size]).view(count, width)
        room = np.empty(size, np.float32)
        self._rooms = [*self._rooms, room][-_KEPT:]
        return torch.from_numpy(room[:]).view(count, width)


_MOST_ROWS, _MOST_PACKED_ROWS = 16, 512  # of a step; torch's products of more rows are faster in fp32


class Kept(NamedTuple):
    """A generation under way, as `headway.nn.models.Decoding`: keys and values of each row, and those of its memory."""

    own: RowBlocks
    read: RowBlocks
    states: np.ndarray  # [B, N], of mixers whose state does not grow
    lengths: np.ndarray  # [M], of the memories
    fixed: np.ndarray  # [M, N], what memories say that is the same for all tokens
    positions: Int[Tensor, "B"]

    def select(self, rows: Int[Tensor, "R"], memory_rows: Int[Tensor, "N"] | None = None) -> Kept:
        read, lengths, fixed = self.read, self.lengths, self.fixed
        if memory_rows is not None and len(lengths):
            read, lengths = read.select(memory_rows.tolist()), lengths[memory_rows.numpy()]
        if memory_rows is not None and len(fixed):
            fixed = fixed[memory_rows.numpy()]
        return Kept(
            self.own.select(rows.tolist()), read, self.states[rows.numpy()], lengths, fixed, self.positions[rows]
        )

    def assign(self, target: Int[Tensor, "N"], source: Int[Tensor, "N"]) -> None:
        """Rows `target` become as rows `source` are."""
        self.own.assign(target.tolist(), source.tolist())
        self.states[target.numpy()] = self.states[source.numpy()]

    def at(self, positions: Int[Tensor, "B"]) -> Kept:
        return self._replace(positions=positions)


class Engine(nn.Module):
    """`model` with a compiled step of up to `most_rows` rows; its `config`, `start` and `step` are those of a model."""

    def __init__(
        self, model: Transformer | EncoderDecoder | Captioner, threads: int | None = None, cache: Cache = "fp32"
    ) -> None:
        """`cache` is what keys and values are kept in. Raises CannotLowerError for what has no instruction."""
        super().__init__()
        self.model, self.config = model, model.config
        decoder = decoder_of(model)
        check(decoder)
        devices = {parameter.device.type for parameter in model.parameters()}
        if devices != {"cpu"}:
            raise CannotLowerError(f"a model on {', '.join(sorted(devices))}")
        self._decoder = [decoder]  # in a list, as it is a part of the model already
        self._lock = threading.Lock()
        self.weights, self.form = PackedWeights(), FORMS[cache]
        self.pool = pool(threads or torch.get_num_threads())
        self._packed = any(isinstance(parameter, PackedTensor) for parameter in decoder.parameters())
        self.most_rows = _MOST_PACKED_ROWS if self._packed else _MOST_ROWS
        program = self._lower(1, 256, 64)
        self._programs = {False: program}  # of few rows, and of many
        self.extends = program.state_numbers == 0  # whether `extend` takes several tokens of a sequence at once
        self._results = Results()
        self._own = Blocks(program.own.bytes, _window(decoder), self.pool)
        self._read = Blocks(program.read.bytes, threads=self.pool)

    @property
    def training(self) -> bool:  # type: ignore[override]
        """Whether the model is in training mode: an engine has none of its own, by which the model's could be lost."""
        return self.model.training

    @training.setter
    def training(self, mode: bool) -> None:
        """`train` sets it for this module and then for the model, whose mode it is."""

    def start(self, prompt: Prompt, capacity: int) -> tuple[Float[Tensor, "B C"], Decoding | Kept]:
        """Read the prompts: by the program where weights are packed and what is kept are keys and values, else by
        torch, whose products of many rows are faster in fp32.
        """
        if prompt.layout.batch > self.most_rows:
            return self.model.start(prompt, capacity)
        check_prompt(prompt.layout, capacity, self.config.context)
        if self._packed and self.extends and prompt.source is None:
            return self._read_prompt(prompt)
        logits, decoding = self.model.start(prompt, prompt.layout.length)  # blocks have room for what follows
        return logits, self.adopt(decoding)

    def hear(self, source: Any, layout: Layout) -> Heard:
        """As EncoderDecoder.hear; where weights are packed, attention rounds to bf16 if that is fast here."""
        assert isinstance(self.model, EncoderDecoder)
        with rough_attention(self._packed and HAS_BF16_UNIT):
            return self.model.hear(source, layout)

    def _read_prompt(self, prompt: Prompt) -> tuple[Float[Tensor, "B C"], Kept]:
        rows, lengths = prompt.layout.batch, prompt.layout.lengths
        none = np.zeros((0, 0), np.float32)
        own, read = RowBlocks(self._own, [[] for _ in range(rows)]), RowBlocks(self._read, [])
        kept = Kept(own, read, np.zeros((rows, 0), np.float32), np.zeros(0, np.int64), none, torch.zeros_like(lengths))
        last, each = torch.empty(rows, self._programs[False].x.width), max(1, self.most_rows // rows)
        with self._lock:
            for start in range(0, prompt.ids.shape[1], each):
                columns = torch.arange(start, min(start + each, prompt.ids.shape[1]))
                places = torch.where(columns < lengths[:, None], columns, -1)
                program = self._prepare(places.numpy(), kept)
                self._run(program, prompt.ids[:, columns], places, slice(program.body))
                ending = (places == lengths[:, None] - 1).flatten()
                last[ending.view(rows, -1).any(1)] = program.x.rows(ending.numel())[ending]
            program.x.rows(rows)[:] = last
            logits = self._results.rows(rows, program.symbols)
            program.write_logits(logits.data_ptr())
            self._run(program, lengths, lengths, slice(program.body, None))
        return logits, kept.at(lengths)

    def step(self, ids: Int[Tensor, "B"], decoding: Decoding | Kept) -> tuple[Float[Tensor, "B C"], Decoding | Kept]:
        if isinstance(decoding, Decoding):
            return self.model.step(ids, decoding)
        logits, after = self.extend(ids[:, None], decoding)
        return logits[:, 0], after

    @property
    def cache_bytes(self) -> int:
        """Of the keys and values that generations under way hold now."""
        return sum(store.held * store.size for store in (self._own, self._read))

    def extend(self, ids: Int[Tensor, "B T"], decoding: Kept) -> tuple[Float[Tensor, "B T C"], Kept]:
        """T more symbols of each row, and the logits after each; B T is at most `most_rows`, and T is 1 where the model
        does not extend. The logits are those of T steps, bit for bit.
        """
        rows, length = ids.shape
        with self._lock:  # a program has one place for what it computes
            logits = self._extend(ids, decoding)
        positions = torch.where(decoding.positions < 0, decoding.positions, decoding.positions + length)
        return logits.view(rows, length, -1), decoding.at(positions)

    def _extend(self, ids: Int[Tensor, "B T"], decoding: Kept) -> Float[Tensor, "BT C"]:
        steps = np.arange(ids.shape[1])
        starts = decoding.positions.numpy()[:, None]
        places = np.where(starts < 0, -1, starts + steps)
        program = self._prepare(places, decoding)
        logits = self._results.rows(places.size, program.symbols)
        program.write_logits(logits.data_ptr())
        self._run(program, ids, torch.from_numpy(places), slice(None))
        return logits

    def _prepare(self, places: np.ndarray, decoding: Kept) -> StepProgram:
        """The program for tokens at these places [B, T], which knows where the rows keep what they know."""
        decoding.own.forget(places[:, 0])
        for column in places.T:
            decoding.own.make_room(column)
        batch = places.size
        program = self._fitting(batch, int(places.max()) + 1, int(decoding.lengths.max(initial=1)))
        _place(program.own, decoding.own, batch)
        if len(decoding.lengths):
            _place(program.read, decoding.read, batch)
            program.read.sharing[0] = batch // len(decoding.lengths)
            program.read.lengths[:batch] = np.repeat(decoding.lengths, batch // len(decoding.lengths))
        if len(decoding.fixed):
            program.read.fixed[:batch] = np.repeat(decoding.fixed, batch // len(decoding.fixed), axis=0)
        program.find_states(decoding.states)
        return program

    def _run(self, program: StepProgram, symbols: Tensor, places: Tensor, part: slice) -> None:
        """A part of the instructions for tokens that are `symbols` at `places`."""
        symbols, places = symbols.reshape(-1).contiguous(), places.reshape(-1).contiguous()
        batch, threads, counter = len(places), self.pool.threads, self.pool.counter
        scratch = [room.ctypes.data for room in program.room]
        table, floats = program.table[part], program.floats[part]

        def job(thread: int) -> None:
            program.run(
                table,
                floats,
                symbols.data_ptr(),
                places.data_ptr(),
                batch,
                scratch[thread],
                counter,
                thread,
                threads,
            )

        with announced(program.run):
            self.pool.run(job)

    def _fitting(self, rows: int, capacity: int, reach: int) -> StepProgram:
        wide = rows > FEW
        now = self._programs.get(wide, self._programs[False])
        held = now.read.tables.shape[1] * BLOCK - BLOCK
        if rows > now.rows or capacity > now.capacity or reach > held:
            capacity = max(now.capacity, _power(capacity))
            self._programs[wide] = self._lower(max(now.rows, _power(rows)), capacity, max(held, _power(reach)))
        return self._programs[wide]

    def _lower(self, rows: int, capacity: int, reach: int) -> StepProgram:
        with torch.inference_mode():
            return lower(self._decoder[0], self.weights, rows, capacity, reach, self.form, self.pool.threads)

    def adopt(self, decoding: Decoding) -> Kept:
        """States of torch as blocks, and as rows of numbers."""
        lengths = decoding.positions.tolist()
        own = RowBlocks(self._own, [[] for _ in lengths])
        for row, length in enumerate(lengths):
            layers = [Layer(self.form, s.keys[row], s.values[row]) for s in decoding.states if isinstance(s, KeyValues)]
            own.blocks[row] = write(self._own, layers, length)
        own._fill()
        memories = [m for m in decoding.memories or () if isinstance(m, (Remembered, Annotations))]
        sizes = memories[0].layout.lengths.tolist() if memories else []
        read = RowBlocks(self._read, [[] for _ in sizes])
        for row, length in enumerate(sizes):
            read.blocks[row] = write(self._read, [self._of_row(m, row) for m in memories], length)
        read._fill()
        states, fixed = flat_states(decoding).numpy(), flat_summaries(decoding).numpy()
        return Kept(own, read, states, np.array(sizes, np.int64), fixed, decoding.positions.cpu())

    def _of_row(self, memory: Remembered | Annotations, row: int) -> Layer:
        keys, values = memory.keys[row], memory.values[row]
        if isinstance(memory, Annotations):
            return Layer(FP32, keys[:, None], values[:, None])
        return Layer(self.form, keys, values)


def decoder_of(model: Transformer | EncoderDecoder | Captioner) -> Transformer:
    """The part that writes. CannotLowerError where what it reads first is no symbols."""
    if isinstance(model, Captioner):
        raise CannotLowerError("an image before the text")
    return model.decoder if isinstance(model, EncoderDecoder) else model


def refusal(model: Transformer | EncoderDecoder | Captioner) -> str | None:
    """What the engine has no instruction for, by name; None where it has all."""
    try:
        check(decoder_of(model))
    except CannotLowerError as error:
        return str(error)
    return None


def _window(decoder: Transformer) -> int | None:
    """How far back any layer sees; None where one sees everything."""
    patterns = [module.config.pattern for module in decoder.modules() if isinstance(module, SelfAttention)]
    windows = [pattern.window for pattern in patterns if isinstance(pattern, Causal)]
    return max((window for window in windows if window), default=None) if all(windows) else None


def _place(memory: Memory, rows: RowBlocks, batch: int) -> None:
    """The addresses of the blocks of each row; rows of one memory read the same."""
    table = rows.table[:, : memory.tables.shape[1]]
    memory.tables[:batch, : table.shape[1]] = np.repeat(table, batch // len(rows.blocks), axis=0)


def _power(number: int) -> int:
    return 1 << max(0, number - 1).bit_length()
