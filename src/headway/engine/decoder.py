"""A model that generates with a compiled program, one step at a time; its encoder runs as it is."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from headway.engine.builder import FEW, CannotLowerError, PackedWeights
from headway.engine.cache import Blocks, Layer, OutOfBlocksError, self_block_bytes, write
from headway.engine.chunks import RowChunk
from headway.engine.instructions import WORDS, Opcode
from headway.engine.interpreter import SHARING
from headway.engine.kv_kernels import CACHE_DTYPES
from headway.engine.machine import announce_compilation
from headway.engine.means import KeyMeans, mean_by_position, unrotated_mean
from headway.engine.operations import BLOCK
from headway.engine.packed_weights import PackedTensor
from headway.engine.pool import max_threads, pool
from headway.engine.processor import HAS_BF16_UNIT
from headway.engine.sampling_batch import SamplingBatch
from headway.engine.sequence_rows import EngineDecoding, MemoryBlocks, Row, runs_of, stack_states, states_of, write_runs
from headway.engine.step_program import StepProgram, check, lower
from headway.engine.tiles import FP32, INT8
from headway.engine.timeline import StepTimeline, run_timed
from headway.errors import UserError
from headway.layout import Layout
from headway.nn.kernels import bf16_attention
from headway.nn.mixers.associative import FastWeights
from headway.nn.mixers.attention import KeyValues, SelfAttention
from headway.nn.mixers.conditional_gru import Annotations, Summary
from headway.nn.mixers.cross import ProjectedMemory
from headway.nn.mixers.dynamic_links import FastLinks
from headway.nn.mixers.recurrence import Vectors
from headway.nn.models import CacheDtype, Captioner, Decoding, EncodedSource, EncoderDecoder, Prompt, Transformer
from headway.nn.models.block import Block
from headway.nn.models.transformer import check_prompt
from headway.visibility import Causal

_MAX_BUFFERS = 2  # buffers: the current logits and the next ones
_FREE_REFERENCES = 3  # references to a free buffer: the list's, the loop's, and the counting call's


class LogitBuffers:
    """Buffers for logits, reused when nothing references them."""

    def __init__(self) -> None:
        self._buffers: list[np.ndarray] = []

    def rows(self, count: int, width: int) -> Float[Tensor, "R C"]:
        """Uninitialised rows, reserved for the caller as long as the tensor or a view of it exists."""
        size = count * width
        if size == 0:
            return torch.empty(0, width)
        for buffer in self._buffers:
            if buffer.size >= size and sys.getrefcount(buffer) == _FREE_REFERENCES:
                return torch.from_numpy(buffer[:size]).view(count, width)
        buffer = np.empty(size, np.float32)
        self._buffers = [*self._buffers, buffer][-_MAX_BUFFERS:]
        return torch.from_numpy(buffer[:]).view(count, width)


_MAX_ROWS = 512  # per run of a program
_SAMPLE_TOKENS, _SEED = 64, 0  # of the text whose mean keys are taken


class Engine(nn.Module):
    """`model` with a compiled step of up to `max_rows` rows; has the `config`, `start` and `step` of a model, and is a
    `Stepper`.
    """

    joins = True

    def __init__(
        self,
        model: Transformer | EncoderDecoder | Captioner,
        threads: int | None = None,
        cache: CacheDtype | None = None,
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
        self.cache: CacheDtype = cache or ("fp16" if self._packed else "fp32")
        self.weights, self.cache_dtype = PackedWeights(), CACHE_DTYPES[self.cache]
        self.pool = pool(threads or max_threads())
        self.max_rows = _MAX_ROWS
        is_int8 = cache == "int8" and isinstance(model, Transformer)  # a decoder with an encoder has no source yet
        self.means: KeyMeans = mean_keys(Engine(model, threads, "fp32"), decoder) if is_int8 else {}
        program = self._lower(1, 256, 64)
        self._programs = {False: program}  # for few rows, and for many
        self._state_size, self._vocab_size = program.state_size, program.vocab_size
        self.extends = program.state_size == 0  # whether rows can roll back after `extend`
        self._results = LogitBuffers()
        self.timeline: StepTimeline | None = None  # records when each instruction runs
        # The largest window of any layer; None if one sees everything.
        patterns = [module.config.pattern for module in decoder.modules() if isinstance(module, SelfAttention)]
        windows = [pattern.window for pattern in patterns if isinstance(pattern, Causal)]
        window = max((window for window in windows if window), default=None) if all(windows) else None
        self._kv_blocks = Blocks(program.kv_tables.bytes, window, self.pool)
        self._memory_blocks = Blocks(program.memory_tables.bytes, threads=self.pool)

    @property
    def training(self) -> bool:  # type: ignore[override]
        """The model's mode: the engine has none of its own that could differ."""
        return self.model.training

    @training.setter
    def training(self, mode: bool) -> None:
        """`train` sets it for this module, which ignores it, and then for the model."""

    def start(self, prompt: Prompt, capacity: int) -> tuple[Float[Tensor, "B C"], EngineDecoding]:
        """Process the prompts and, with the encoder, their sources."""
        check_prompt(prompt.layout, capacity, self.config.context)
        lengths = prompt.layout.lengths.cpu()
        decoding = self.open(prompt.source, prompt.source_layout, len(lengths))
        ids = prompt.ids.tolist()
        chunks = [
            RowChunk(row, 0, tokens[:length]) for row, tokens, length in zip(decoding.rows, ids, lengths.tolist())
        ]
        return self.compute(chunks), decoding.at(lengths)

    def encode(self, source: Any, layout: Layout) -> EncodedSource:
        """EncoderDecoder.encode; with packed weights, torch's attention uses bf16 if that is fast here."""
        assert isinstance(self.model, EncoderDecoder)
        with bf16_attention(self._packed and HAS_BF16_UNIT):
            return self.model.encode(source, layout)

    def open(
        self, source: Any = None, layout: Layout | None = None, count: int | None = None, capacity: int = 0
    ) -> EngineDecoding:
        """Empty rows, one per source, or `count` without sources. The source is `encode`'s input, or its output. Rows
        grow as needed, so the engine ignores their `capacity` in tokens.
        """
        stack, memories, starts = self._decoder[0].stack, None, None
        if isinstance(self.model, EncoderDecoder):
            if source is None or layout is None:
                raise UserError("an encoder-decoder needs a source; pass prompt.source and prompt.source_layout")
            memories, starts, _ = self.encode(source, layout)
            count = layout.batch
        assert count is not None
        like = torch.zeros(1, 1)
        states = (
            stack.initial_states(count, 1, like=like) if starts is None else stack.states_from(starts, 1, like=like)
        )
        return self.adopt(Decoding(states or (), memories, torch.zeros(count, dtype=torch.long)))

    def step(self, ids: Int[Tensor, "B"], decoding: EngineDecoding) -> tuple[Float[Tensor, "B C"], EngineDecoding]:
        logits, after = self.extend(ids[:, None], decoding)
        return logits[:, 0], after

    @property
    def cache_bytes(self) -> int:
        """Bytes of keys and values in use."""
        return sum(store.used * store.size for store in (self._kv_blocks, self._memory_blocks))

    def extend(
        self, ids: Int[Tensor, "B T"], decoding: EngineDecoding
    ) -> tuple[Float[Tensor, "B T C"], EngineDecoding]:
        """Process T more tokens of each row; return the logits after each. T must be 1 if the model does not extend.
        The logits equal those of T steps, bit for bit.
        """
        length, positions = ids.shape[1], decoding.positions
        inputs = zip(decoding.rows, positions.tolist(), ids.tolist())
        logits = self.compute([RowChunk(row, start, tokens, length) for row, start, tokens in inputs])
        after = torch.where(positions < 0, positions, positions + length)
        return logits.view(len(positions), length, -1), decoding.at(after)

    def compute(self, chunks: Sequence[RowChunk], sampling: SamplingBatch | None = None) -> Float[Tensor, "N C"]:
        """One step: write each chunk into its row; return the requested logits in the order of the chunks. A chunk's
        result depends only on its row, bit for bit, not on the others or on how its tokens are cut into chunks. With
        `sampling`, whose rows index these logits, also samples: in the last instruction, or afterwards with the same
        code if the program runs more than once.

        The states of recurrent mixers advance to those after a row's last token. Raises OutOfBlocksError, before
        writing anything, if the cache limit leaves too little.
        """
        with self._lock:  # a program has one set of buffers
            self._kv_blocks.release_pending()
            self._memory_blocks.release_pending()
            if self._kv_blocks.max_blocks is not None and self.lacking(chunks):
                raise OutOfBlocksError(f"{self.lacking(chunks):.0f} blocks of keys and values are missing")
            if self._state_size and max(len(chunk.ids) for chunk in chunks) > 1:
                logits = self._compute_columns(chunks)
            else:
                parts = list(self._parts(chunks))
                if len(parts) == 1 and self.timeline is None:
                    return self._compute(chunks, sampling)
                logits = torch.cat([self._compute(part) for part in parts])
        if sampling is not None:
            sampling.run(logits, self.pool)
        return logits

    def refresh(self) -> None:
        """Follow weights that were changed in place, as by a training step. The programs keep their sizes and their
        compiled code, and read contiguous fp32 matrices where the model has them; constants that were computed from
        weights are computed again. Sequences in progress would mix old and new weights.
        """
        with self._lock:
            self.weights = PackedWeights()
            lowered: dict[int, StepProgram] = {}
            for program in self._programs.values():
                reach = program.memory_tables.tables.shape[1] * BLOCK - BLOCK
                if id(program) not in lowered:
                    lowered[id(program)] = self._lower(program.rows, program.capacity, reach)
            self._programs = {wide: lowered[id(program)] for wide, program in self._programs.items()}

    def limit_cache(self, size: int | None) -> None:
        """Limit keys and values to this many bytes."""
        self._kv_blocks.max_blocks = (
            None if size is None or not self._kv_blocks.size else max(1, size // self._kv_blocks.size)
        )

    def lacking(self, chunks: Sequence[RowChunk]) -> float:
        """How many blocks are missing to compute these chunks; 0 if there are enough."""
        needed = sum(
            chunk.row.blocks_needed(chunk.start, chunk.start + len(chunk.ids)) for chunk in chunks if chunk.start >= 0
        )
        return max(0, needed - self._kv_blocks.available)

    def _parts(self, chunks: Sequence[RowChunk]) -> Iterator[list[RowChunk]]:
        """The same chunks in several steps of at most `max_rows` tokens."""
        part, free = [], self.max_rows
        for chunk in chunks:
            row, start, ids, wanted = chunk
            while len(ids) > free:
                remaining = len(ids) - free
                if free:
                    part.append(RowChunk(row, start, ids[:free], max(0, wanted - remaining)))
                yield part
                start, ids, wanted = start + free, ids[free:], min(wanted, remaining)
                part, free = [], self.max_rows
            part.append(RowChunk(row, start, ids, wanted))
            free -= len(ids)
        if part:
            yield part

    def _compute_columns(self, chunks: Sequence[RowChunk]) -> Float[Tensor, "N C"]:
        """Token by token, because states depend on the previous token."""
        offsets = np.cumsum([chunk.wanted for chunk in chunks])
        logits = self._results.rows(int(offsets[-1]), self._vocab_size)
        for column in range(max(len(chunk.ids) for chunk in chunks)):
            active = [n for n, chunk in enumerate(chunks) if column < len(chunk.ids)]
            parts, rows = [], []
            for n in active:
                row, start, ids, wanted = chunks[n]
                remaining = len(ids) - column
                parts.append(
                    RowChunk(row, start + column if start >= 0 else -1, [ids[column]], int(remaining <= wanted))
                )
                if remaining <= wanted:
                    rows.append(int(offsets[n]) - remaining)
            for first in range(0, len(parts), self.max_rows):
                batch = parts[first : first + self.max_rows]
                count = sum(part.wanted for part in batch)
                batch_logits = self._compute(batch)
                if count:
                    logits[rows[:count]], rows = batch_logits, rows[count:]
        return logits

    def _compute(self, chunks: Sequence[RowChunk], sampling: SamplingBatch | None = None) -> Float[Tensor, "N C"]:
        counts = [len(chunk.ids) for chunk in chunks]
        batch = sum(counts)
        tokens, positions = np.empty(batch, np.int64), np.empty(batch, np.int64)
        wanted, end = [], 0
        for (_, start, ids, last), count in zip(chunks, counts):
            first, end = end, end + count
            tokens[first:end] = ids
            positions[first:end] = range(start, start + count) if start >= 0 else -1
            wanted += range(end - last, end)
        copies = []
        for row, start, ids, _ in chunks:
            if start >= 0:
                copies += row.reserve(start, start + len(ids))
        if copies:
            self._kv_blocks.copy(copies)
        program = self._prepare([chunk.row for chunk in chunks], counts, positions)
        states = None
        if self._state_size:
            states = states_of([chunk.row for chunk in chunks])
            program.table[program.state_words] = program.state_offsets + states.ctypes.data
        logits = self._results.rows(len(wanted), program.vocab_size)
        program.table[-1, WORDS[Opcode.MULTIPLY]["y"]] = logits.data_ptr()  # the last instruction computes them
        sampling_call = 0
        if sampling is not None:
            sampling_call = sampling.bind(
                logits.data_ptr(), 4 * program.vocab_size, program.vocab_size, self.pool.threads
            )
        if len(wanted) == batch:
            self._run(program, tokens, positions, slice(None), sampling_call)
        else:
            self._run(program, tokens, positions, slice(program.body))
        if states is not None and states.ctypes.data != chunks[0].row.state.ctypes.data:
            for chunk, state in zip(chunks, states):
                chunk.row.state[:] = state
        if 0 < len(wanted) < batch:
            x = program.x.rows(batch)
            x[: len(wanted)] = x[wanted]
            self._run(program, tokens[wanted], positions[wanted], slice(program.body, None), sampling_call)
        for row, start, ids, last in chunks:
            row.forget(start + len(ids) - last)  # the row may roll back to its first logits
        return logits

    def _prepare(self, rows: Sequence[Row], counts: Sequence[int], positions: np.ndarray) -> StepProgram:
        """The program for tokens at these positions, `counts` of each row, with the tables of the rows' blocks."""
        memories = [row.memory for row in rows]
        reach = max((memory.length for memory in memories if memory is not None), default=1)
        capacity, wide = int(positions.max()) + 1, len(positions) > FEW
        program = self._programs.get(wide, self._programs[False])
        memory_capacity = program.memory_tables.tables.shape[1] * BLOCK - BLOCK
        if len(positions) > program.rows or capacity > program.capacity or reach > memory_capacity:
            program = self._lower(
                max(program.rows, _power(len(positions))), max(program.capacity, _power(capacity)),
                max(memory_capacity, _power(reach)),
            )  # fmt: skip
        self._programs[wide] = program
        kv_tables, memory_tables, end = program.kv_tables, program.memory_tables, 0
        for row, memory, count in zip(rows, memories, counts):
            start, end = end, end + count
            blocks = min(len(row.table), kv_tables.tables.shape[1])
            kv_tables.tables[start:end, :blocks] = row.table[:blocks]
            if memory is not None:
                blocks = min(len(memory.table), memory_tables.tables.shape[1])
                memory_tables.tables[start:end, :blocks] = memory.table[:blocks]
                memory_tables.lengths[start:end] = memory.length
                if memory_tables.fixed.shape[1]:
                    memory_tables.fixed[start:end] = memory.fixed
        row_indices = [number for number, count in enumerate(counts) for _ in range(count)]
        starts = runs_of(row_indices, positions.tolist(), SHARING)
        write_runs(kv_tables.runs, starts, end, len(starts) == len({id(row) for row in rows}))
        if memories[0] is not None:
            write_runs(
                memory_tables.runs, runs_of([memories[number] for number in row_indices], None, SHARING), end, True
            )
        return program

    def _run(
        self, program: StepProgram, tokens: np.ndarray, positions: np.ndarray, part: slice, sampling_call: int = 0
    ) -> None:
        """Run a part of the instructions for `tokens` at `positions`; after the last one, sample if `sampling_call` is
        not 0.
        """
        batch, threads, counter = len(positions), self.pool.threads, self.pool.counter
        table, scratch = program.table[part], program.scratch
        fields = (table.ctypes.data, len(table), tokens.ctypes.data, positions.ctypes.data, batch)
        if self.timeline is not None:
            ticks, started = np.zeros((threads, len(table) + 1), np.int64), time.perf_counter()
            at = ticks.ctypes.data
            self.pool.run(lambda thread: run_timed(*fields, scratch[thread], counter, thread, threads, at))
            self.timeline.steps.append((table.copy(), ticks, time.perf_counter() - started))
            return

        def job(thread: int) -> None:
            program.run(*fields, scratch[thread], counter, thread, threads, sampling_call)

        with announce_compilation(program.run):
            self.pool.run(job)

    def _lower(self, rows: int, capacity: int, reach: int) -> StepProgram:
        with torch.inference_mode():
            return lower(
                self._decoder[0], self.weights, rows, capacity, reach, self.cache_dtype, self.means, self.pool.threads
            )

    def adopt(self, decoding: Decoding) -> EngineDecoding:
        """Convert torch's keys and values to blocks, and its states to arrays."""
        lengths = decoding.positions.tolist()
        parts = [torch.zeros(len(lengths), 0)]  # states in the order of a program, layer by layer
        for layer_state in decoding.states:
            if isinstance(layer_state, Vectors):
                parts += layer_state.now
            elif isinstance(layer_state, (FastWeights, FastLinks)):
                parts.append(layer_state.matrix)
        states = torch.cat([part.detach().float().flatten(1) for part in parts], 1).numpy()
        memories = [m for m in decoding.memories or () if isinstance(m, (ProjectedMemory, Annotations))]
        sizes = memories[0].layout.lengths.tolist() if memories else []
        # Encoder outputs that are the same for all tokens, layer by layer.
        summaries = [part for memory in decoding.memories or () if isinstance(memory, Summary) for part in memory]
        fixed = torch.cat([part.detach().float() for part in summaries], 1).numpy() if summaries else np.zeros((0, 0))
        row_memories: list[MemoryBlocks] = []
        for row, length in enumerate(sizes or [0] * len(fixed)):
            layers = []
            for m in memories:
                if isinstance(m, Annotations):
                    layers.append(Layer(FP32, m.keys[row][:, None], m.values[row][:, None]))
                    continue
                mean = None
                if self.cache_dtype == INT8:  # over an encoder's positions; it shifts all scores equally
                    keys = m.keys[row, :length].numpy()
                    mean = torch.from_numpy(keys.mean(0, dtype=np.float64, keepdims=True).astype(np.float32))
                layers.append(Layer(self.cache_dtype, m.keys[row], m.values[row], mean))
            fixed_values = fixed[row] if len(fixed) else np.zeros(0, np.float32)
            row_memories.append(
                MemoryBlocks(self._memory_blocks, write(self._memory_blocks, layers, length), length, fixed_values)
            )
        rows, rows_per_memory = [], len(lengths) // len(row_memories) if row_memories else 0
        for row, length in enumerate(lengths):
            layers = []
            for block, state in zip(self._decoder[0].stack.blocks, decoding.states) if length else ():
                if isinstance(state, KeyValues):
                    mixer = cast(SelfAttention, block.mixer)
                    mean = self.means.get(mixer)
                    means = None if mean is None else mean_by_position(mixer, mean, length)
                    layers.append(Layer(self.cache_dtype, state.keys[row], state.values[row], means))
            row_memory = row_memories[row // rows_per_memory] if row_memories else None
            rows.append(Row(self._kv_blocks, write(self._kv_blocks, layers, length), row_memory, states[row].copy()))
        return EngineDecoding(stack_states(rows), decoding.positions.cpu(), row_memories)


def mean_keys(engine: Engine, model: Transformer) -> KeyMeans:
    """The mean keys of an engine's model; empty if it caches no keys. The engine must cache them in fp32."""
    if not engine._kv_blocks.size:
        return {}
    count = min(_SAMPLE_TOKENS, model.config.context or _SAMPLE_TOKENS)
    rng = torch.Generator().manual_seed(_SEED)
    ids = torch.randint(model.config.vocab_size, (count,), generator=rng).tolist()
    logits = engine.compute([RowChunk(engine.open(count=1).rows[0], 0, ids, count)])
    noise = -torch.empty_like(logits).exponential_(generator=rng).log()
    ids = [ids[0], *(logits + noise).argmax(-1)[:-1].tolist()]  # one sample of each distribution (Gumbel 1954)
    row = engine.open(count=1).rows[0]
    engine.compute([RowChunk(row, 0, ids, count)])
    content = np.stack([engine._kv_blocks.view(block) for block in row.blocks]).view(np.float32)
    means, start = {}, 0
    for block in model.stack.blocks:
        assert isinstance(block, Block)
        mixer, stop = block.mixer, start + self_block_bytes(block, FP32) // 4
        if isinstance(mixer, SelfAttention):
            keys = content[:, start:stop].reshape(len(content), mixer.groups, -1)[..., : mixer.size * BLOCK]
            keys = keys.reshape(-1, mixer.groups, mixer.size, BLOCK).transpose(0, 3, 1, 2)
            means[mixer] = unrotated_mean(mixer, keys.reshape(-1, mixer.groups, mixer.size)[:count])
        start = stop
    return means


def decoder_of(model: Transformer | EncoderDecoder | Captioner) -> Transformer:
    """The decoder of a model. Raises CannotLowerError if anything but tokens precedes the text."""
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


def _power(number: int) -> int:
    return 1 << max(0, number - 1).bit_length()
