"""A model that generates with a compiled program, one step at a time; its encoder runs as it is."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from headway.engine.builder import FEW, CannotLowerError, PackedWeights
from headway.engine.cache import Blocks, Layer, OutOfBlocksError, flat_states, flat_summaries, write
from headway.engine.choosing import Choosing
from headway.engine.keys import FORMS
from headway.engine.machine import HAS_BF16_UNIT, announced
from headway.engine.means import KeyMeans, mean_by_position, mean_keys
from headway.engine.operations import BLOCK
from headway.engine.packed import PackedTensor
from headway.engine.plan import StepProgram, check, lower
from headway.engine.pool import most_threads, pool
from headway.engine.program import SHARING
from headway.engine.rows import Kept, Piece, Reading, Row, runs_of, states_of, together, write_runs
from headway.engine.tiles import FP32, INT8
from headway.engine.timeline import StepTimeline, run_noted
from headway.errors import UserError
from headway.layout import Layout
from headway.nn.kernels import rough_attention
from headway.nn.mixers.attention import KeyValues, SelfAttention
from headway.nn.mixers.conditional_gru import Annotations
from headway.nn.mixers.cross import Remembered
from headway.nn.models import Cache, Captioner, Decoding, EncoderDecoder, Heard, Prompt, Transformer
from headway.nn.models.transformer import check_prompt
from headway.visibility import Causal

_KEPT = 2  # buffers: the current logits and the next ones
_FREE = 3  # references to a free buffer: the list's, the loop's, and the counting call's


class Results:
    """Buffers for logits, reused when nothing references them."""

    def __init__(self) -> None:
        self._rooms: list[np.ndarray] = []

    def rows(self, count: int, width: int) -> Float[Tensor, "R C"]:
        """Uninitialised rows, the caller's as long as the tensor or a view of it exists."""
        size = count * width
        if size == 0:
            return torch.empty(0, width)
        for room in self._rooms:
            if room.size >= size and sys.getrefcount(room) == _FREE:
                return torch.from_numpy(room[:size]).view(count, width)
        room = np.empty(size, np.float32)
        self._rooms = [*self._rooms, room][-_KEPT:]
        return torch.from_numpy(room[:]).view(count, width)


_MOST_ROWS = 512  # per run of a program


class Engine(nn.Module):
    """`model` with a compiled step of up to `max_rows` rows; has the `config`, `start` and `step` of a model."""

    def __init__(
        self, model: Transformer | EncoderDecoder | Captioner, threads: int | None = None, cache: Cache | None = None
    ) -> None:
        """`cache` is the number format of keys and values; None: fp16 for quantised weights, otherwise fp32. Raises
        CannotLowerError for a module without an instruction.
        """
        super().__init__()
        self.model, self.config = model, model.config
        decoder = decoder_of(model)
        check(decoder)
        devices = {parameter.device.type for parameter in model.parameters()}
        if devices != {"cpu"}:
            raise CannotLowerError(f"a model on {', '.join(sorted(devices))}")
        self._decoder = [decoder]  # in a list: it is a submodule of the model already
        self._lock = threading.Lock()
        self._packed = any(isinstance(parameter, PackedTensor) for parameter in decoder.parameters())
        self.cache: Cache = cache or ("fp16" if self._packed else "fp32")
        self.weights, self.form = PackedWeights(), FORMS[self.cache]
        self.pool = pool(threads or most_threads())
        self.most_rows = _MOST_ROWS
        rounds = cache == "int8" and isinstance(model, Transformer)  # a decoder with an encoder has no source yet
        self.means: KeyMeans = mean_keys(Engine(model, threads, "fp32"), decoder) if rounds else {}
        program = self._lower(1, 256, 64)
        self._programs = {False: program}  # for few rows, and for many
        self._state_numbers, self._symbols = program.state_numbers, program.symbols
        self.extends = program.state_numbers == 0  # whether rows can roll back behind `extend`
        self._results = Results()
        self.timeline: StepTimeline | None = None  # records when each instruction runs
        self._own = Blocks(program.own.bytes, _window(decoder), self.pool)
        self._read = Blocks(program.read.bytes, threads=self.pool)

    @property
    def training(self) -> bool:  # type: ignore[override]
        """The model's mode: the engine has none of its own that could differ."""
        return self.model.training

    @training.setter
    def training(self, mode: bool) -> None:
        """`train` sets it for this module and then for the model, whose mode it is."""

    def start(self, prompt: Prompt, capacity: int) -> tuple[Float[Tensor, "B C"], Kept]:
        """Process the prompts and, with the encoder, their sources."""
        check_prompt(prompt.layout, capacity, self.config.context)
        lengths = prompt.layout.lengths.cpu()
        kept = self.open(prompt.source, prompt.source_layout, len(lengths))
        ids = prompt.ids.tolist()
        pieces = [Piece(row, 0, said[:length]) for row, said, length in zip(kept.rows, ids, lengths.tolist())]
        return self.compute(pieces), kept.at(lengths)

    def hear(self, source: Any, layout: Layout) -> Heard:
        """EncoderDecoder.encode; with packed weights, torch's attention uses bf16 if that is fast here."""
        assert isinstance(self.model, EncoderDecoder)
        with rough_attention(self._packed and HAS_BF16_UNIT):
            return self.model.hear(source, layout)

    def open(self, source: Any = None, layout: Layout | None = None, count: int | None = None) -> Kept:
        """Empty rows, one per source, or `count` without sources. The source is `encode`'s input, or its output."""
        stack, memories, starts = self._decoder[0].stack, None, None
        if isinstance(self.model, EncoderDecoder):
            if source is None or layout is None:
                raise UserError("an encoder-decoder needs a source; pass prompt.source and prompt.source_layout")
            memories, starts, _ = self.hear(source, layout)
            count = layout.batch
        assert count is not None
        like = torch.zeros(1, 1)
        states = stack.initial_states(count, 1, like=like) if starts is None else stack.begin(starts, 1, like=like)
        return self.adopt(Decoding(states or (), memories, torch.zeros(count, dtype=torch.long)))

    def step(self, ids: Int[Tensor, "B"], decoding: Kept) -> tuple[Float[Tensor, "B C"], Kept]:
        logits, after = self.extend(ids[:, None], decoding)
        return logits[:, 0], after

    @property
    def cache_bytes(self) -> int:
        """Bytes of keys and values in use."""
        return sum(store.held * store.size for store in (self._own, self._read))

    def extend(self, ids: Int[Tensor, "B T"], decoding: Kept) -> tuple[Float[Tensor, "B T C"], Kept]:
        """Process T more tokens of each row; return the logits after each. T must be 1 if the model does not extend.
        The logits equal those of T steps, bit for bit.
        """
        length, positions = ids.shape[1], decoding.positions
        said = zip(decoding.rows, positions.tolist(), ids.tolist())
        logits = self.compute([Piece(row, start, symbols, length) for row, start, symbols in said])
        after = torch.where(positions < 0, positions, positions + length)
        return logits.view(len(positions), length, -1), decoding.at(after)

    def compute(self, pieces: Sequence[Piece], choosing: Choosing | None = None) -> Float[Tensor, "N C"]:
        """One step: write each chunk into its row; return the requested logits in the order of the chunks. The result
        of a chunk depends on its row alone, bit for bit, not on the others or on how its tokens are cut into chunks.
        With `sampling`, whose rows index these logits, also samples: in the last instruction, or afterwards with the
        same code if the program runs more than once.

        The states of recurrent mixers move on: they are those after a row's last token. Raises OutOfBlocksError, before
        writing anything, if the cache limit leaves too little.
        """
        with self._lock:  # a program has one set of buffers
            self._own.gather()
            self._read.gather()
            if self._own.most is not None and self.lacking(pieces):
                raise OutOfBlocksError(f"{self.lacking(pieces):.0f} blocks of keys and values are missing")
            if self._state_numbers and max(len(piece.ids) for piece in pieces) > 1:
                logits = self._compute_columns(pieces)
            else:
                parts = list(self._parts(pieces))
                if len(parts) == 1 and self.timeline is None:
                    return self._compute(pieces, choosing)
                logits = torch.cat([self._compute(part) for part in parts])
        if choosing is not None:
            choosing.run(logits, self.pool)
        return logits

    def limit_cache(self, size: int | None) -> None:
        """Use at most so many bytes of keys and values."""
        self._own.most = None if size is None or not self._own.size else max(1, size // self._own.size)

    def lacking(self, pieces: Sequence[Piece]) -> float:
        """How many blocks are missing to compute these chunks; 0 if there are enough."""
        needed = sum(piece.row.lacks(piece.start, piece.start + len(piece.ids)) for piece in pieces if piece.start >= 0)
        return max(0, needed - self._own.left)

    def _parts(self, pieces: Sequence[Piece]) -> Iterator[list[Piece]]:
        """The same chunks in several steps of at most `max_rows` tokens."""
        part, room = [], self.most_rows
        for piece in pieces:
            row, start, ids, wanted = piece
            while len(ids) > room:
                left = len(ids) - room
                if room:
                    part.append(Piece(row, start, ids[:room], max(0, wanted - left)))
                yield part
                start, ids, wanted = start + room, ids[room:], min(wanted, left)
                part, room = [], self.most_rows
            part.append(Piece(row, start, ids, wanted))
            room -= len(ids)
        if part:
            yield part

    def _compute_columns(self, pieces: Sequence[Piece]) -> Float[Tensor, "N C"]:
        """Token by token, because states depend on the token before."""
        ends = np.cumsum([piece.wanted for piece in pieces])
        logits = self._results.rows(int(ends[-1]), self._symbols)
        for column in range(max(len(piece.ids) for piece in pieces)):
            going = [n for n, piece in enumerate(pieces) if column < len(piece.ids)]
            parts, places = [], []
            for n in going:
                row, start, ids, wanted = pieces[n]
                left = len(ids) - column
                parts.append(Piece(row, start + column if start >= 0 else -1, [ids[column]], int(left <= wanted)))
                if left <= wanted:
                    places.append(int(ends[n]) - left)
            for first in range(0, len(parts), self.most_rows):
                some = parts[first : first + self.most_rows]
                count = sum(part.wanted for part in some)
                found = self._compute(some)
                if count:
                    logits[places[:count]], places = found, places[count:]
        return logits

    def _compute(self, pieces: Sequence[Piece], choosing: Choosing | None = None) -> Float[Tensor, "N C"]:
        counts = [len(piece.ids) for piece in pieces]
        batch = sum(counts)
        symbols, places = np.empty(batch, np.int64), np.empty(batch, np.int64)
        wanted, end = [], 0
        for (_, start, ids, last), count in zip(pieces, counts):
            begin, end = end, end + count
            symbols[begin:end] = ids
            places[begin:end] = range(start, start + count) if start >= 0 else -1
            wanted += range(end - last, end)
        self._make_room(pieces)
        program = self._prepare([piece.row for piece in pieces], counts, places)
        states = None
        if self._state_numbers:
            states = states_of([piece.row for piece in pieces])
            program.find_states(states)
        logits = self._results.rows(len(wanted), program.symbols)
        program.write_logits(logits.data_ptr())
        asked = 0
        if choosing is not None:
            asked = choosing.by(logits.data_ptr(), 4 * program.symbols, program.symbols, self.pool.threads)
        if len(wanted) == batch:
            self._run(program, symbols, places, slice(None), asked)
        else:
            self._run(program, symbols, places, slice(program.body))
        if states is not None and states.ctypes.data != pieces[0].row.state.ctypes.data:
            for piece, state in zip(pieces, states):
                piece.row.state[:] = state
        if 0 < len(wanted) < batch:
            x = program.x.rows(batch)
            x[: len(wanted)] = x[wanted]
            self._run(program, symbols[wanted], places[wanted], slice(program.body, None), asked)
        for row, start, ids, last in pieces:
            row.forget(start + len(ids) - last)  # the row may roll back to its first logits
        return logits

    def _make_room(self, pieces: Sequence[Piece]) -> None:
        copies = []
        for row, start, ids, _ in pieces:
            if start >= 0:
                copies += row.make_room(start, start + len(ids))
        if copies:
            self._own.copy(copies)

    def _prepare(self, rows: Sequence[Row], counts: Sequence[int], places: np.ndarray) -> StepProgram:
        """The program for tokens at these positions, `counts` of each row, with the tables of the rows' blocks."""
        readings = [row.reading for row in rows]
        reach = max((reading.length for reading in readings if reading is not None), default=1)
        program = self._fitting(len(places), int(places.max()) + 1, reach)
        own, read, end = program.own, program.read, 0
        for row, reading, count in zip(rows, readings, counts):
            begin, end = end, end + count
            blocks = min(len(row.table), own.tables.shape[1])
            own.tables[begin:end, :blocks] = row.table[:blocks]
            if reading is not None:
                blocks = min(len(reading.table), read.tables.shape[1])
                read.tables[begin:end, :blocks] = reading.table[:blocks]
                read.lengths[begin:end] = reading.length
                if read.fixed.shape[1]:
                    read.fixed[begin:end] = reading.fixed
        each = [number for number, count in enumerate(counts) for _ in range(count)]
        starts = runs_of(each, places.tolist(), SHARING)
        write_runs(own.runs, starts, end, len(starts) == len({id(row) for row in rows}))
        if readings[0] is not None:
            write_runs(read.runs, runs_of([readings[number] for number in each], None, SHARING), end, True)
        return program

    def _run(self, program: StepProgram, symbols: np.ndarray, places: np.ndarray, part: slice, asked: int = 0) -> None:
        """Run a part of the instructions for `tokens` at `positions`; after the last one, sample if `sampling_call` is
        not 0.
        """
        batch, threads, counter = len(places), self.pool.threads, self.pool.counter
        table, floats, scratch = program.table[part], program.floats[part], program.scratch
        said, where = symbols.ctypes.data, places.ctypes.data
        if self.timeline is not None:
            self._run_noted(self.timeline, (table, floats, said, where, batch), scratch)
            return

        def job(thread: int) -> None:
            program.run(table, floats, said, where, batch, scratch[thread], counter, thread, threads, asked)

        with announced(program.run):
            self.pool.run(job)

    def _run_noted(self, timeline: StepTimeline, fields: tuple[Any, ...], scratch: list[int]) -> None:
        threads, counter, table = self.pool.threads, self.pool.counter, fields[0]
        ticks = timeline.room(threads, table)
        place = ticks.ctypes.data
        self.pool.run(lambda thread: run_noted(*fields, scratch[thread], counter, thread, threads, place))
        timeline.note(table, ticks)

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
            return lower(
                self._decoder[0], self.weights, rows, capacity, reach, self.form, self.means, self.pool.threads
            )

    def adopt(self, decoding: Decoding) -> Kept:
        """Convert torch's keys and values to blocks, and its states to arrays."""
        lengths, states = decoding.positions.tolist(), flat_states(decoding).numpy()
        memories = [m for m in decoding.memories or () if isinstance(m, (Remembered, Annotations))]
        sizes = memories[0].layout.lengths.tolist() if memories else []
        fixed = flat_summaries(decoding).numpy()
        readings: list[Reading] = []
        for row, length in enumerate(sizes or [0] * len(fixed)):
            layers = [
                Layer(FP32, m.keys[row][:, None], m.values[row][:, None])
                if isinstance(m, Annotations)
                else Layer(self.form, m.keys[row], m.values[row], self._mean_of(m.keys[row, :length]))
                for m in memories
            ]
            numbers = fixed[row] if len(fixed) else np.zeros(0, np.float32)
            readings.append(Reading(self._read, write(self._read, layers, length), length, numbers))
        rows, each = [], len(lengths) // len(readings) if readings else 0
        for row, length in enumerate(lengths):
            layers = []
            if length:
                layers = [
                    Layer(self.form, state.keys[row], state.values[row], self._means_until(block, length))
                    for block, state in zip(self._decoder[0].stack.blocks, decoding.states)
                    if isinstance(state, KeyValues)
                ]
            reading = readings[row // each] if readings else None
            rows.append(Row(self._own, write(self._own, layers, length), reading, states[row].copy()))
        return Kept(together(rows), decoding.positions.cpu(), readings)

    def _means_until(self, block: nn.Module, length: int) -> Float[Tensor, "P G K"] | None:
        mixer = cast(SelfAttention, block.mixer)
        mean = self.means.get(mixer)
        return None if mean is None else mean_by_position(mixer, mean, length)

    def _mean_of(self, keys: Float[Tensor, "S G K"]) -> Float[Tensor, "1 G K"] | None:
        """The mean over an encoder's positions; it shifts all scores equally, which softmax ignores."""
        if self.form != INT8:
            return None
        return torch.from_numpy(keys.numpy().mean(0, dtype=np.float64, keepdims=True).astype(np.float32))


def decoder_of(model: Transformer | EncoderDecoder | Captioner) -> Transformer:
    """The decoder of a model. Raises CannotLowerError if something other than tokens precedes the text."""
    if isinstance(model, Captioner):
        raise CannotLowerError("an image before the text")
    return model.decoder if isinstance(model, EncoderDecoder) else model


def refusal(model: Transformer | EncoderDecoder | Captioner) -> str | None:
    """What the engine has no instruction for, by name; None if it supports the whole model."""
    try:
        check(decoder_of(model))
    except CannotLowerError as error:
        return str(error)
    return None


def _window(decoder: Transformer) -> int | None:
    """The largest window of any layer; None if one sees everything."""
    patterns = [module.config.pattern for module in decoder.modules() if isinstance(module, SelfAttention)]
    windows = [pattern.window for pattern in patterns if isinstance(pattern, Causal)]
    return max((window for window in windows if window), default=None) if all(windows) else None


def _power(number: int) -> int:
    return 1 << max(0, number - 1).bit_length()
