"""What is done once before anything is measured: checks, and the drawn model in the form of each program."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from headway.bench.job import LONGEST, NEW, PROMPT, READ, WRITTEN, Kind
from headway.bench.programs import OURS, Program
from headway.checkpoints import native
from headway.checkpoints.published import save_published
from headway.checkpoints.usage import Usage
from headway.config import from_dict, to_dict
from headway.errors import UserError
from headway.exchange import quantize
from headway.memory import check_room
from headway.models import EncoderDecoder, EncoderDecoderConfig, ModelConfig, TransformerConfig, build, describe
from headway.models.embeds import TokenEmbed

_BYTES = {"fp32": 4.0, "bf16": 4.0, "int8": 1.1, "int4": 0.6}  # of a weight on disk, at most
_NEEDS = {
    "decode": (PROMPT + NEW, "writes up to"),
    "prefill": (READ + 1, "reads up to"),
    "translate": (max(LONGEST, WRITTEN + 1), "reads or writes up to"),
}


def without_dropout(config: ModelConfig) -> ModelConfig:
    """`config` that drops nothing, so that all programs do the same arithmetic."""

    def cleared(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: 0.0 if key == "dropout" else cleared(item) for key, item in value.items()}
        return [cleared(item) for item in value] if isinstance(value, list) else value

    return from_dict(ModelConfig, cleared(to_dict(config)))


def check_shape(kind: Kind, name: str, config: ModelConfig) -> None:
    """UserError for a shape that does not do what is measured."""
    if kind == "translate" and not isinstance(config, EncoderDecoderConfig):
        raise UserError(
            f"shape {name!r} is not an encoder-decoder and translates nothing; give one such as marian-base"
        )
    writes = isinstance(config, TransformerConfig) and config.stack.causal and "vocabulary" in config.heads
    if kind in ("decode", "prefill", "train") and not writes:
        raise UserError(f"shape {name!r} is not a language model, so it has no {kind}; give one such as llama-135m")
    context = getattr(config, "context", None)
    if kind == "train" and context is None:
        raise UserError(
            f"shape {name!r} has no longest context to fill with tokens; give one that has, such as gpt-10m"
        )
    needed, does = _NEEDS.get(kind, (0, ""))
    if context is not None and context < needed:
        raise UserError(f"shape {name!r} has a context of {context}, but {kind} {does} {needed} symbols; give another")


def check_space(kind: Kind, name: str, config: ModelConfig, programs: Sequence[Program], folder: Path) -> None:
    """UserError where the memory or the disk does not hold what is prepared."""
    whole = describe(config)["weights_bytes"]
    parts = {"weights": whole, "the file that they are written to": whole}
    if kind == "train":
        parts = {"weights": whole, "gradients": whole, "optimiser": 2 * whole}
    check_room(f"measuring {name}", parts, torch.device("cpu"), "choose a smaller --shape")
    needed = whole + sum(
        round(whole / 4 * _BYTES[p.form]) for p in programs if p.prepares or p.form in ("int8", "int4")
    )
    needed += whole if any(program.name == "llama.cpp" for program in programs) else 0  # before it is rounded
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"measuring {name} needs {needed:,} bytes of disk for its files, {folder} has {free:,} free; "
            "choose a smaller --shape, or set TMPDIR to a folder with more room"
        )


def prepare_ours(kind: Kind, config: ModelConfig, seed: int, programs: Sequence[Program], folder: Path) -> None:
    """Draw the model and write it: in a published format where a peer reads it or is beside, and in 8 and 4 bits.

    UserError for a shape that the published formats cannot say.
    """
    model, place = build(config, seed), folder / "model"
    if isinstance(model, EncoderDecoder) and isinstance(model.decoder.embed, TokenEmbed):
        with torch.no_grad():  # Marian's decoder starts from zeros
            model.decoder.embed.table[-1] = 0.0
    if kind == "load" or any(program.name != OURS for program in programs):
        save_published(model, config, place, _usage(config))
    else:
        native.save_model(model, config, place)
    if kind == "load":  # where rounding is a part of loading
        return
    for program in programs:
        if program.name == OURS and program.form in ("int8", "int4"):
            quantize(place, folder / f"{OURS}-{program.form}", program.form)  # type: ignore[arg-type]


def _usage(config: ModelConfig) -> Usage:
    """The marks of a translation model as Marian has them, so that every program starts and ends alike."""
    if not isinstance(config, EncoderDecoderConfig):
        return Usage()
    last = config.symbols - 1
    return Usage("marian", ends=(0,), pad=last, decoder_start=last)
