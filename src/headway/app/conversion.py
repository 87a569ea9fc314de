"""Convert models: import to headway's own format, quantise, and export to formats that other programs read."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

from headway.app.model_card import CARD, model_card
from headway.app.runs import open_recipe
from headway.codecs import TokenizerCodec
from headway.codecs.special_tokens import SpecialTokens, set_post_processor
from headway.domains import text
from headway.errors import UserError, nearest
from headway.formats import native
from headway.formats.deferred import deferred_weights
from headway.formats.export_check import ExportResult, check_export
from headway.formats.gguf import SUFFIX as GGUF
from headway.formats.gguf import save_gguf
from headway.formats.heads import to_classes_model
from headway.formats.native import Weights, named_tensors, total_bytes
from headway.formats.onnx import SUFFIX as ONNX
from headway.formats.onnx import check_onnx, save_onnx
from headway.formats.open import OpenedModel, open_model
from headway.formats.published import CONFIG, load_published, save_published
from headway.io.arguments import check_types
from headway.io.durable import DIGESTS_FILE, atomic_write, read_json, seal, write_json, write_text
from headway.io.hub import find_folder
from headway.io.outputs import check_free_disk, check_kind
from headway.learn.run import RunDirectory
from headway.nn.models import ModelConfig

if TYPE_CHECKING:
    from headway.app.quantization import QuantizationReport  # imports LLVM

Format = Literal["hf", "gguf", "onnx"]
_TRAINING_FILES = (
    native.FILE,
    "metrics.jsonl",
    "report.html",
    DIGESTS_FILE,
    ".lock",
)  # files of a run that inference does not need
_TOKENIZER_CONFIG = "tokenizer_config.json"


def import_model(opened: OpenedModel, directory: Path) -> None:
    """Write headway's own format: weights with their configuration, tokenizer, and usage settings."""
    check_empty(directory)
    check_free_disk(directory.parent, total_bytes(dict(named_tensors(opened.model)).values()))
    with _atomic_folder(directory) as draft:
        native.save_model(opened.model, opened.model.config, draft)  # type: ignore[arg-type]
        _save_usage_and_codec(opened, draft)


@contextmanager
def _atomic_folder(directory: Path) -> Iterator[Path]:
    """A temporary folder that is moved to `directory`, with digests, once everything is written."""
    with atomic_write(Path(os.path.realpath(directory)), new=True) as draft:
        draft.mkdir()
        yield draft
        seal(draft)


class QuantizationResult(NamedTuple):
    """The result of `quantize`: the folder, the number format ("mixed" if it was chosen per layer), the weight
    bytes before and after, the format of each layer, and what each format costs on the texts of the report.
    """

    directory: Path
    weights: str
    bytes_before: int
    bytes: int
    layers: dict[str, Weights]
    report: QuantizationReport | None


@check_types
def quantize(
    model: str | Path,
    out: str | Path,
    weights: Weights | None = None,
    bits_per_weight: float | None = None,
    report: str | Path | None = None,
) -> QuantizationResult:
    """Quantise the weights of a run or model and write it to the folder `out`, with its tokenizer and everything else
    that `load` needs. Weights are read, converted and written one by one.

    weights: "int8" or "int4" for all layers (None: "int8").
    bits_per_weight: choose the format of each layer instead: int4, int8 or fp32, so that the mean is at most this many
    bits, scales included, and the divergence is small. The divergence of a layer is measured on the texts of the
    report; without one, the errors of its weights replace it.
    report: a file or folder of texts; measures the loss of the original and of each format, and the divergence of
    their predictions, also if only one layer is quantised.

    Raises UserError before any work starts for a model that cannot be quantised, texts that it cannot read, `out` that
    is not empty, and a disk that is too small.
    """
    from headway.app.quantization import FormatSizes, layers_of, measure, weight_errors
    from headway.engine import save_quantised

    if weights not in (None, "int8", "int4"):
        raise UserError(f"unknown number format {weights} for quantised weights; use int8 or int4")
    if weights is not None and bits_per_weight is not None:
        raise UserError(f"weights are {weights}, but bits_per_weight chooses a format per layer; remove one of them")
    source, directory = find_folder(model), Path(out)
    check_empty(directory)
    with deferred_weights():
        opened = open_model(source, None)
    before, layers = total_bytes(dict(named_tensors(opened.model)).values()), layers_of(opened.model)
    if bits_per_weight is not None:
        FormatSizes(layers).check_bits(bits_per_weight)
    costs = None if report is None else measure(opened, source, Path(report))
    names: Weights | dict[str, Weights] = weights or "int8"
    formats: dict[str, Weights] = dict.fromkeys(layers, names)
    if bits_per_weight is not None:
        layer_costs = weight_errors(layers) if costs is None else costs.layers
        formats = FormatSizes(layers).choose(layer_costs, bits_per_weight)
        names = {name: formats[layer] for layer, matrices in layers.items() for name in matrices}
    with _atomic_folder(directory) as draft:
        after = save_quantised(opened.model, names, draft)
        if RunDirectory(source).exists():
            for path in source.iterdir():
                if path.is_file() and path.name not in _TRAINING_FILES:
                    check_kind(path, os.lstat(path))  # a link may point to a private file elsewhere
                    shutil.copy2(path, draft / path.name)
        else:
            _save_usage_and_codec(opened, draft)
    return QuantizationResult(directory, names if isinstance(names, str) else "mixed", before, after, formats, costs)


@check_types
def export(
    model: str | Path, out: str | Path, format: str | None = None, dtype: str | None = None, card: bool = False
) -> str:
    """Write a run or model to `out` in a format that other programs read, and return the name of its family or kind
    in that format.

    "hf" is a folder for transformers; "gguf" is one file for llama.cpp, with weights in `dtype` f32 (or None), f16,
    q8_0, q4_k_m or another format of llama.cpp; "onnx" is a graph for onnxruntime, where `out` is the file or a folder
    for model.onnx, with the tokenizer, labels and image processor next to it. None chooses by the suffix of `out`:
    .gguf, .onnx, otherwise hf. A folder for transformers has a model card, README.md; with `card`, a .gguf or
    .onnx file gets one next to it. Weights are read one by one, except for onnx. The output is read back and must
    compute the same as the model.

    Raises UserError for a model that the format cannot represent, if `out` already exists or its disk is too small, and
    if outputs differ by more than the number format explains; then nothing is written.
    """
    return export_checked(model, out, format, dtype, card).family


def export_checked(
    model: str | Path, out: str | Path, format: str | None, dtype: str | None, card: bool = False
) -> ExportResult:
    """`export`, together with the comparison of outputs."""
    target_format = format_from_suffix(Path(out)) if format is None else format
    check_format(target_format, dtype)
    if target_format == "onnx":
        check_onnx()
    source, path = find_folder(model), Path(out)
    card_path = (path if target_format == "onnx" and path.suffix != ONNX else path.parent) / CARD
    if card and target_format != "hf" and card_path.exists():
        raise UserError(f"{card_path} already exists; choose a folder without it, or leave out --card")
    with nullcontext() if target_format == "onnx" else deferred_weights():
        opened = open_model(source)
    codec = opened.codec
    if RunDirectory(source).exists() and isinstance(codec, TokenizerCodec) and codec.bos_id is not None:
        task = open_recipe(source).task
        if isinstance(task, text.LanguageConfig) and not task.random_crops:
            # The tokenizer of a run trained on whole documents adds the bos token, as the run's prompts do.
            bos = codec.tokenizer.id_to_token(codec.bos_id)
            set_post_processor(codec.tokenizer, "", SpecialTokens(bos=bos), {"add_bos_token": True})
    written = model_card(opened, source, path, target_format) if card or target_format == "hf" else None
    result = export_model(opened, path, target_format, dtype, str(model), written)
    if written is not None and target_format != "hf":
        write_text(card_path, written)
    return result


def export_model(
    opened: OpenedModel,
    directory: Path,
    target_format: str = "hf",
    dtype: str | None = None,
    source: str = "the model",
    card: str | None = None,
) -> ExportResult:
    """Write a published format; return its name for the model's family, and the comparison of the model with the
    written one.

    "hf": config.json, safetensors and tokenizer.json for transformers. "gguf": one file, `dtype` f32 (or None) or
    another number format of llama.cpp. "onnx": see `save_onnx`. `source` names the model in messages; `card` is the
    README.md of an "hf" folder. Raises UserError
    for a model that the format cannot represent.
    """
    check_format(target_format, dtype)
    model, usage, codec = opened
    if target_format == "onnx":
        file = directory if directory.suffix == ONNX else directory / f"model{ONNX}"
        return save_onnx(model, usage, codec, file, source)
    check_empty(directory)
    config: ModelConfig = model.config  # type: ignore[assignment]
    if target_format == "gguf":
        precision: Any = (dtype or "f32").upper()
        return save_gguf(model, config, directory, codec, usage, precision)
    with _atomic_folder(directory) as draft:
        family = save_published(model, config, draft, usage)
        if codec is not None:
            codec.save(draft)
            # Add the ids of special tokens that config.json lacks, and the chat template.
            ids = {
                "bos_token_id": codec.bos_id,
                "eos_token_id": codec.eos_id,
                "pad_token_id": getattr(codec, "pad", None),
            }
            written_config = read_json(draft / CONFIG)
            missing_ids = {
                name: token_id
                for name, token_id in ids.items()
                if written_config.get(name) is None and token_id is not None
            }
            write_json(draft / CONFIG, written_config | missing_ids)
            if usage.template is not None:
                path = draft / _TOKENIZER_CONFIG
                write_json(path, read_json(path) | {"chat_template": usage.template})
        if card is not None:
            write_text(draft / CARD, card)
        with deferred_weights():
            return ExportResult(family, check_export(to_classes_model(model), load_published(draft).model))


def format_from_suffix(out: Path) -> Format:
    """The export format for a file suffix."""
    formats: dict[str, Format] = {GGUF: "gguf", ONNX: "onnx"}
    return formats.get(out.suffix, "hf")


def check_format(target_format: str, dtype: str | None) -> None:
    """Raise UserError for an unknown format, and for a `dtype` with a format other than gguf."""
    if target_format not in get_args(Format):
        raise UserError(f"unknown format {target_format!r}; {nearest(target_format, get_args(Format))}")
    if dtype is not None and target_format != "gguf":
        raise UserError(
            f"--dtype {dtype} applies to gguf files only, but the format is {target_format}; add --format gguf"
        )


def check_empty(directory: Path) -> None:
    """Raise UserError if a folder is not empty, or is a broken link."""
    if directory.is_symlink() and not directory.exists():
        raise UserError(f"{directory} is a link to {os.readlink(directory)}, which does not exist; remove the link")
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise UserError(f"{directory} already exists and is not empty; choose another folder")


def _save_usage_and_codec(opened: OpenedModel, directory: Path) -> None:
    """Write a model's usage and codec next to its weights."""
    opened.usage.save(directory)
    if opened.codec is not None:
        opened.codec.save(directory)
