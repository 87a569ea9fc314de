"""headway's part of a benchmark: `python -m headway.bench.headway_runner measure JOB`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

import headway as hw
from headway.bench.benchmark import HEADWAY
from headway.bench.measurement import (
    BEAM_WIDTH,
    EOS_ID,
    NEW_TOKENS,
    TARGET_TOKENS,
    TIMELINE_STEPS,
    WARMUP_TOKENS,
    BenchJob,
    Kind,
    run_job,
    time_call,
    time_step,
)
from headway.codecs import train_codec
from headway.data import SplitConfig, TokenCache
from headway.domains.text.task import Documents, LanguageConfig, NextToken
from headway.engine import Engine, PackedTensor
from headway.engine.timeline import StepTimeline
from headway.formats.native import named_tensors
from headway.formats.open import open_config, open_model
from headway.generate import SearchConfig, translate_ids
from headway.generate.prompts import make_prompt
from headway.generate.torch_sampling import argmax
from headway.learn import AdamWConfig, Recipe, TrainConfig
from headway.learn.learner import Learner
from headway.learn.memory import retained_heap
from headway.learn.parallel.processes import Processes
from headway.learn.task import Task
from headway.nn.kernels import deterministic
from headway.nn.models import EncoderDecoder, Generative

_TOKENS = 1 << 18


def training_step(job: BenchJob) -> Callable[[], object]:
    """A training step on windows of random tokens: batch, forward, backward, clipping, AdamW."""
    context = job.context or 0
    config = LanguageConfig(context=context, packing="windows", split=SplitConfig(validation=0.1, test=0.0))
    train_config = TrainConfig(steps=1_000_000, batch_size=job.rows)
    model, optim = open_config(job.model), AdamWConfig(lr=1e-3)
    recipe = Recipe("bench", "text", "random tokens", (), model, config, optim, train=train_config)
    ids = np.random.default_rng(job.seed).integers(0, job.symbols, _TOKENS).astype(np.uint32)  # one document
    offsets, keys = np.array([0, _TOKENS], np.int64), np.array([0], np.uint64)
    corpus = TokenCache(Path(job.folder), ids, offsets, keys, np.zeros(1, np.uint8), (0, 0), _TOKENS)
    codec = train_codec("char", ["ab"], None)  # any codec works, because neither batches nor losses need text
    task = Task(Documents(config, corpus, codec, context, job.rows, job.seed), NextToken())
    learner = Learner(open_model(job.model).model, recipe, task, Processes(torch.device(job.device)), job.form)
    stream, number = task.batches("train"), iter(range(recipe.train.steps))
    return lambda: learner.update(next(number), [next(stream)])


def decode(model: Generative, job: BenchJob) -> dict[str, float]:
    """Greedy steps after the prompts, one token per row, without speculation; on a GPU as CUDA graphs where requests
    are.
    """
    prompts = job.prompts()
    timeline_steps = TIMELINE_STEPS if job.timeline is not None else 0
    logits, decoding = model.start(
        make_prompt(prompts, None, torch.device(job.device)), max(map(len, prompts)) + NEW_TOKENS + timeline_steps
    )

    def steps(count: int) -> None:
        nonlocal logits, decoding
        for _ in range(count):
            logits, decoding = model.step(argmax(logits), decoding)

    steps(WARMUP_TOKENS)
    seconds = time_call(lambda: steps(NEW_TOKENS - WARMUP_TOKENS), job.device)
    if job.timeline is not None and isinstance(model, Engine):
        model.timeline = StepTimeline()
        steps(timeline_steps)
        model.timeline.write(Path(job.timeline))
    rate = job.rows * (NEW_TOKENS - WARMUP_TOKENS) / seconds
    measurement: dict[str, float] = {"tokens_per_second": rate, "weight_bytes": _bytes_per_step(model)}
    if isinstance(model, Engine):
        measurement["cache_bytes"] = model.cache_bytes
    return measurement


def prefill(model: Generative, job: BenchJob) -> dict[str, float]:
    """From the prompt ids to the logits after them."""
    prompts = job.prompts()
    max_length, device = max(map(len, prompts)), torch.device(job.device)
    call_seconds = time_step(lambda: model.start(make_prompt(prompts, None, device), max_length + 1), job.device)
    return {"tokens_per_second": sum(map(len, prompts)) / call_seconds}


def translate(model: Generative, job: BenchJob) -> dict[str, float]:
    """Beam search over all sentences; eos is suppressed so that all have the same number of tokens."""
    start = job.symbols - 1
    config = SearchConfig(BEAM_WIDTH, most_ratio=0, most_extra=TARGET_TOKENS)

    def work() -> None:
        translations = translate_ids(
            model, job.sources(), bos=start, eos=EOS_ID, config=config, suppressed=(EOS_ID, start)
        )
        assert {len(hypotheses[0].ids) for hypotheses in translations} == {TARGET_TOKENS}

    work()
    seconds = time_call(work, job.device)
    return {"sentences_per_second": job.rows / seconds, "tokens_per_second": job.rows * TARGET_TOKENS / seconds}


def train(job: BenchJob) -> dict[str, float]:
    """Trainer steps."""
    with retained_heap():
        step = training_step(job)
        return {"tokens_per_second": job.rows * (job.context or 0) / time_step(step, job.device)}


def load(job: BenchJob) -> dict[str, float]:
    """The time to load a model and touch every page of its weights, measured at the second load, when modules are
    imported and the files are in the page cache.
    """

    def work() -> None:
        model = hw.load(job.model, job.device, job.form)  # type: ignore[arg-type]
        for _, tensor in named_tensors(model.module):
            for part in _parts(tensor):
                part.reshape(-1)[:: 4096 // part.element_size()].sum()

    work()
    return {"seconds": time_call(work, job.device)}


def _bytes_per_step(model: Generative) -> int:
    """Bytes of weights that a step reads: the decoder's, without an embedding unless it is also the head."""
    module = getattr(model, "model", model)
    decoder: Any = module.decoder if isinstance(module, EncoderDecoder) else module
    table = getattr(decoder.embed, "table", None)
    excluded = None if any(getattr(head, "weight", None) is table for head in decoder.heads.values()) else id(table)
    read_tensors = {id(tensor): tensor for _, tensor in named_tensors(decoder) if id(tensor) != excluded}
    return sum(part.nbytes for tensor in read_tensors.values() for part in _parts(tensor))


def _parts(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """The tensors that store a tensor's values."""
    if isinstance(tensor, PackedTensor):
        yield tensor.packed.weights
        if tensor.packed.scales is not None:
            yield tensor.packed.scales
    else:
        yield tensor.data


_GENERATION_BENCHMARKS: dict[Kind, Callable[[Generative, BenchJob], dict[str, float]]] = {
    "decode": decode,
    "prefill": prefill,
    "translate": translate,
}


def measure(job: BenchJob) -> dict[str, float]:
    torch.set_num_threads(job.threads)
    with deterministic(job.deterministic):
        if job.kind in _GENERATION_BENCHMARKS:
            is_quantised = job.form in ("int8", "int4")
            path, weights = (job.converted_path(HEADWAY), None) if is_quantised else (job.model, job.form)
            model = hw.load(path, job.device, weights, job.backend, job.cache).generator  # type: ignore[arg-type]
            with torch.inference_mode():
                return _GENERATION_BENCHMARKS[job.kind](model, job)
        return train(job) if job.kind == "train" else load(job)


if __name__ == "__main__":
    run_job(measure)
