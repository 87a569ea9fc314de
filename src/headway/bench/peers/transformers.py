"""transformers' part of a benchmark: `python -m headway.bench.peers.transformers measure JOB`."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch

from headway.bench.measurement import (
    BEAM_WIDTH,
    NEW_TOKENS,
    TARGET_TOKENS,
    WARMUP_TOKENS,
    BenchJob,
    Kind,
    run_job,
    time_call,
    time_step,
)

_PEER: Any = import_module("transformers")  # a type checker needs ten seconds for its thousands of files
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@torch.inference_mode()
def decode(job: BenchJob) -> dict[str, float]:
    """Model steps with its cache, which are faster than `generate`."""
    model, (ids, mask) = _model(job, _DTYPES[job.form]), _left_pad(job.prompts(), job.device)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    out = model(ids, **_mask_arguments(job, mask, positions), use_cache=True, logits_to_keep=1)
    position = positions[:, -1:]

    def steps(count: int) -> None:
        nonlocal out, mask, position
        for _ in range(count):
            mask, position = torch.cat([mask, torch.ones_like(position)], 1), position + 1
            chosen = out.logits[:, -1:].argmax(-1)
            out = model(
                chosen, **_mask_arguments(job, mask, position), past_key_values=out.past_key_values, use_cache=True
            )

    steps(WARMUP_TOKENS)
    return {
        "tokens_per_second": job.rows
        * (NEW_TOKENS - WARMUP_TOKENS)
        / time_call(lambda: steps(NEW_TOKENS - WARMUP_TOKENS), job.device)
    }


@torch.inference_mode()
def prefill(job: BenchJob) -> dict[str, float]:
    """The forward pass and the logits after the last token."""
    model, (ids, mask) = _model(job, _DTYPES[job.form]), _left_pad(job.prompts(), job.device)
    mask_arguments = _mask_arguments(job, mask, (mask.cumsum(-1) - 1).clamp(min=0))
    call_seconds = time_step(lambda: model(ids, **mask_arguments, use_cache=True, logits_to_keep=1), job.device)
    return {"tokens_per_second": int(mask.sum()) / call_seconds}


@torch.inference_mode()
def translate(job: BenchJob) -> dict[str, float]:
    """`generate` with beam search and a minimum length, so that all outputs have the same number of tokens."""
    model = _PEER.AutoModelForSeq2SeqLM.from_pretrained(job.model, dtype=_DTYPES[job.form])
    model.eval().to(job.device)
    sources, pad = job.sources(), job.symbols - 1
    max_length = max(map(len, sources))
    ids = torch.tensor([[*row, *[pad] * (max_length - len(row))] for row in sources], device=job.device)

    def work() -> None:
        output = model.generate(
            ids,
            attention_mask=(ids != pad).long(),
            num_beams=BEAM_WIDTH,
            do_sample=False,
            min_new_tokens=TARGET_TOKENS,
            max_new_tokens=TARGET_TOKENS,
        )
        assert output.shape == (job.rows, 1 + TARGET_TOKENS)

    work()
    seconds = time_call(work, job.device)
    return {"sentences_per_second": job.rows / seconds, "tokens_per_second": job.rows * TARGET_TOKENS / seconds}


def train(job: BenchJob) -> dict[str, float]:
    """A plain training loop: the model's loss, clipping, and torch's fused AdamW."""
    model, context = _model(job, torch.float32).train(), job.context or 0
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    generator = torch.Generator().manual_seed(job.seed)

    def step() -> None:
        ids = torch.randint(0, job.symbols, (job.rows, context), generator=generator).to(job.device)
        with torch.autocast(torch.device(job.device).type, torch.bfloat16, enabled=job.form == "bf16"):
            loss = model(ids, labels=ids, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return {"tokens_per_second": job.rows * context / time_step(step, job.device)}


def load(job: BenchJob) -> dict[str, float]:
    """The time to load a model and touch every page of its weights, measured at the second load, when modules are
    imported and the files are in the page cache.
    """

    def work() -> None:
        kind = _PEER.AutoModelForSeq2SeqLM if _PEER.AutoConfig.from_pretrained(job.model).is_encoder_decoder else None
        model: Any = (kind or _PEER.AutoModelForCausalLM).from_pretrained(job.model, dtype=_DTYPES[job.form])
        model.to(job.device)
        for parameter in model.parameters():
            parameter.data.reshape(-1)[:: 4096 // parameter.element_size()].sum()

    work()
    return {"seconds": time_call(work, job.device)}


def _model(job: BenchJob, dtype: torch.dtype) -> Any:
    model: Any = _PEER.AutoModelForCausalLM.from_pretrained(job.model, dtype=dtype)
    return model.eval().to(job.device)


def _left_pad(prompts: list[list[int]], device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Left-padded prompts and their attention mask, each [B, T]."""
    max_length = max(map(len, prompts))
    ids = torch.tensor([[*[0] * (max_length - len(row)), *row] for row in prompts], device=device)
    mask = torch.tensor([[*[0] * (max_length - len(row)), *[1] * len(row)] for row in prompts], device=device)
    return ids, mask


def _mask_arguments(job: BenchJob, mask: torch.Tensor, positions: torch.Tensor) -> dict[str, torch.Tensor]:
    """The mask and positions. One row has neither, because it has no padding and is faster without them."""
    return {} if job.rows == 1 else {"attention_mask": mask, "position_ids": positions}


_WORK: dict[Kind, Callable[[BenchJob], dict[str, float]]] = {
    "decode": decode,
    "prefill": prefill,
    "translate": translate,
    "train": train,
    "load": load,
}


def measure(job: BenchJob) -> dict[str, float]:
    torch.set_num_threads(job.threads)
    _PEER.utils.logging.set_verbosity_error()
    _PEER.utils.logging.disable_progress_bar()
    return _WORK[job.kind](job)


if __name__ == "__main__":
    run_job(measure)
