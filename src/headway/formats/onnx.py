"""Export models as ONNX files: one graph from ids or pixels to logits and vectors, with the files needed to use it."""

from __future__ import annotations

import importlib
import json
import os
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, processors
from torch import Tensor, nn

from headway.codecs import Codec, TokenizerCodec
from headway.codecs.image_processor import FILE as PROCESSOR
from headway.codecs.image_processor import ImageProcessor
from headway.codecs.tokenizer import FILE as TOKENIZER
from headway.errors import UserError
from headway.formats.export_check import ExportCheck, ExportResult, compare
from headway.formats.native import total_bytes
from headway.formats.usage import Usage
from headway.io.durable import write_json
from headway.layout import Layout
from headway.nn.mixers.attention import AttentionConfig
from headway.nn.models import (
    Act,
    Captioner,
    EncoderDecoder,
    ModelFeatures,
    PatchEmbedConfig,
    TokenEmbedConfig,
    TokenInputs,
    Transformer,
    TwoTower,
    UNetPolicy,
)
from headway.nn.models.disentangled import DisentangledConfig
from headway.nn.models.heads import VocabularyHeadConfig, apply_head
from headway.nn.models.kinds import predicting_head
from headway.nn.models.pooled import DistilledHeadConfig, PooledHeadConfig, pool
from headway.nn.parts.feedforward import GatedConfig, MLPConfig

SUFFIX = ".onnx"
LABELS, THRESHOLDS = "labels.json", "thresholds.json"
INSTALL = "ONNX files need the packages onnx and onnxscript; install headway[onnx]"
_MAX_FILE_BYTES = 3 << 29  # bytes of weights in one file; protobuf is limited to 2 GB
_LOGITS = {
    "classes": "text classifier",
    "number": "text regressor",
    "tags": "tagger",
    "vocabulary": "masked language model",
}
_ROUNDING = 1e-4  # largest difference from onnxruntime's kernels, relative to the largest output
_HEADS = (VocabularyHeadConfig, PooledHeadConfig, DistilledHeadConfig)

Output = Callable[[ModelFeatures, Tensor], Tensor]  # of the model's inputs, too


class Graph(NamedTuple):
    """The exported graph: `example` inputs by name, the names of their dynamic axes, output names, the kind of model,
    and the numbers of ids that inputs may have.
    """

    module: nn.Module
    example: dict[str, Tensor]
    axes: tuple[dict[int, str], ...]
    outputs: tuple[str, ...]
    kind: str
    num_ids: int = 0


def save_onnx(model: nn.Module, usage: Usage, codec: Codec | None, path: Path, source: str) -> ExportResult:
    """Write an ONNX file to `path`, with tokenizer.json or preprocessor_config.json and labels.json (if there are
    labels) next to it; return the kind of the model and the check of the graph. Weights of more than 1.6 GB go into a
    separate file, `path`.data.

    `source` names the model in messages. UserError if the model cannot be exported or a file already exists.
    """
    check_onnx()
    graph = _build_graph(model, usage, source)
    files = _companion_files(graph.kind, usage, codec)
    check_output_paths(path, files)
    program = _export(graph)
    context = cast(Transformer, model).config.context
    properties = {"kind": graph.kind, "context": context, "labels": list(usage.labels), "processor": usage.processor}
    metadata = {
        key: value if isinstance(value, str) else json.dumps(value) for key, value in properties.items() if value
    }
    program.model.metadata_props.update(metadata)
    program.model.producer_name = "headway"
    large = total_bytes(model.parameters()) > _MAX_FILE_BYTES
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=path.parent) as drafts:
            program.save(Path(drafts) / path.name, external_data=large)
            check = _check(graph, Path(drafts) / path.name)
            check_output_paths(path, files)  # again: another program may have written them
            for name, content in files.items():  # before the model, which completes the export
                write_json(path.parent / name, content)
            for draft in sorted(Path(drafts).iterdir(), reverse=True):  # weights before the file that names them
                os.replace(draft, path.parent / draft.name)
    except OSError as error:
        raise UserError(f"{path} could not be written ({error.strerror}); free space or choose another path") from None
    return ExportResult(graph.kind, check)


def check_onnx() -> None:
    """UserError if the packages that write ONNX files are not installed."""
    try:
        with warnings.catch_warnings(action="ignore"):
            importlib.import_module("onnxscript")
    except ImportError:
        raise UserError(INSTALL) from None


def check_output_paths(path: Path, files: Iterable[str]) -> None:
    """UserError if the file, or one that goes next to it, already exists."""
    for candidate in (path, path.with_name(f"{path.name}.data"), *(path.with_name(name) for name in files)):
        if candidate.exists():
            raise UserError(f"{candidate} already exists; choose an empty folder, as in out/{path.name}")


def _build_graph(model: nn.Module, usage: Usage, source: str) -> Graph:
    """Build the graph of a model without running it. UserError if it cannot be exported."""
    unsupported = next((description for kind, description in _UNSUPPORTED.items() if isinstance(model, kind)), None)
    if unsupported is not None or not isinstance(model, Transformer):
        description = unsupported or f"a {type(model).__name__}"
        raise UserError(f"{source} is {description}, which cannot be exported to ONNX; use --format hf")
    config = model.config
    if not isinstance(config.embed, (TokenEmbedConfig, PatchEmbedConfig)):
        embed_kind = type(config.embed).__name__.removesuffix("EmbedConfig").lower()
        raise UserError(
            f"{source} takes {embed_kind}, but only text and image models can be exported to ONNX; load it with hw.load"
        )
    for number, block in enumerate(config.stack.blocks, 1):
        if not isinstance(block.mixer, AttentionConfig):
            raise UserError(
                f"layer {number} of {source} is a {block.mixer.kind}, which processes tokens step by step, "  # type: ignore[attr-defined]
                "and torch's ONNX exporter has no loop over a dynamic length; train with model.mixer=attention"
            )
        if isinstance(config.stack.biases.get(block.mixer.bias or ""), DisentangledConfig):
            raise UserError(
                f"layer {number} of {source} has disentangled attention, which cannot be exported to ONNX; use "
                "--format hf"
            )
        if not isinstance(block.feed_forward, (MLPConfig, GatedConfig, type(None))):
            raise UserError(
                f"layer {number} of {source} routes tokens to experts, which cannot be exported to ONNX; train without "
                "experts, or use --format hf"
            )
    unsupported_head = next((name for name, head in config.heads.items() if not isinstance(head, _HEADS)), None)
    if unsupported_head is not None:
        raise UserError(f"the head {unsupported_head!r} of {source} cannot be exported to ONNX; use --format hf")
    if isinstance(model.config.embed, PatchEmbedConfig):
        return _image_graph(model, usage, source)
    return _text_graph(model)


_UNSUPPORTED: dict[type[nn.Module], str] = {
    EncoderDecoder: "an encoder-decoder, whose beam search steps through caches",
    Captioner: "a captioner, whose beam search steps through caches",
    TwoTower: "a two-tower model",
    Act: "a robot policy",
    UNetPolicy: "a robot policy",
}


class _SingleDocumentLayout(Layout):
    """A layout with one document per row, which a graph cannot detect."""

    single = True  # type: ignore[assignment]


class _TextGraph(nn.Module):
    """From ids, the attention mask, and token types for models that have them."""

    def __init__(self, model: Transformer, outputs: Iterable[Output]) -> None:
        super().__init__()
        self.model, self.outputs = model, tuple(outputs)

    def forward(self, ids: Tensor, mask: Tensor, types: Tensor | None = None) -> tuple[Tensor, ...]:
        is_token = mask > 0
        layout = _SingleDocumentLayout(torch.where(is_token, is_token.long().cumsum(1) - 1, -1))
        encoded = self.model(TokenInputs(ids, types), layout)
        return tuple(output(encoded, ids) for output in self.outputs)


class _ImageGraph(nn.Module):
    """From normalised pixels, `length` tokens per image."""

    def __init__(self, model: Transformer, outputs: Iterable[Output], length: int) -> None:
        super().__init__()
        self.model, self.outputs, self.length = model, tuple(outputs), length

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        positions = torch.arange(self.length).expand(pixels.shape[0], self.length)
        encoded = self.model(pixels, Layout(positions, dense=True))
        return tuple(output(encoded, pixels) for output in self.outputs)


def _text_graph(model: Transformer) -> Graph:
    config, outputs = model.config, _logits(model)
    causal, typed = config.stack.causal, cast(TokenEmbedConfig, config.embed).types > 1
    if not causal or "embedding" in config.heads:
        # The unit-length vector that `embed` returns.
        mean = lambda encoded, _: F.normalize(pool(encoded.x, encoded.layout, "mean"), dim=-1)  # noqa: E731
        outputs["sentence_embedding"] = _apply_head(model.heads["embedding"]) if "embedding" in model.heads else mean
    size = 2, min(config.context or 8, 8)
    ids, mask = torch.zeros(size, dtype=torch.long), torch.ones(size, dtype=torch.long)
    example = {"input_ids": ids, "attention_mask": mask, **({"token_type_ids": ids.clone()} if typed else {})}
    kind = next((description for head, description in _LOGITS.items() if head in config.heads), "text encoder")
    if causal and "vocabulary" in config.heads:
        kind = "language model"
    axes = tuple({0: "batch", 1: "time"} for _ in example)
    return Graph(_TextGraph(model, outputs.values()), example, axes, tuple(outputs), kind, config.vocab_size)


def _image_graph(model: Transformer, usage: Usage, source: str) -> Graph:
    """Build a graph for images at their processor's output size. UserError without a processor."""
    if not usage.processor:
        raise UserError(f"{source} has no {PROCESSOR} for preprocessing images; add it")
    embed, outputs = cast(PatchEmbedConfig, model.config.embed), _logits(model)
    size = ImageProcessor.read(usage.processor, f"{source}: {PROCESSOR}").shape or embed.size
    pooling = "first" if embed.tokens else "mean"
    outputs["image_embedding"] = lambda x, _: F.normalize(pool(x.x, x.layout, pooling, embed.registers), dim=-1)
    kind = {"classes": "image classifier", "number": "image regressor"}.get(
        predicting_head(model) or "", "image encoder"
    )
    example = {"pixel_values": torch.zeros(2, embed.channels, *size)}
    rows, columns = embed.grid(size)
    module = _ImageGraph(model, outputs.values(), embed.tokens + embed.registers + rows * columns)
    return Graph(module, example, ({0: "batch"},), tuple(outputs), kind)


def _logits(model: Transformer) -> dict[str, Output]:
    """Return the heads that output logits: named "logits" if there is one, otherwise by their names."""
    names = [name for name in model.heads if name != "embedding"]
    return {"logits" if len(names) == 1 else name: _apply_head(model.heads[name]) for name in names}


def _apply_head(head: nn.Module) -> Output:
    return lambda encoded, inputs: apply_head(head, encoded.x, encoded.layout, inputs)


def _export(graph: Graph) -> Any:
    """Return torch's program for the graph. UserError if its exporter fails."""
    sizes = {name: torch.export.Dim(name, min=1) for axes in graph.axes for name in axes.values()}
    shapes = tuple({axis: sizes[name] for axis, name in axes.items()} for axes in graph.axes)
    graph.module.eval()
    try:
        with warnings.catch_warnings(action="ignore"), torch.no_grad():
            return torch.onnx.export(
                graph.module,
                tuple(graph.example.values()),
                input_names=list(graph.example),
                output_names=list(graph.outputs),
                dynamic_shapes=shapes,
                dynamo=True,
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:  # type: ignore[attr-defined]
        reason = " ".join(str(error.__cause__ or error).split())[:200]
        raise UserError(f"torch's ONNX exporter fails on this model ({reason}); use --format hf") from error


def _check(graph: Graph, file: Path) -> ExportCheck:
    """Compare the outputs of the written graph with those of the model, by onnxruntime or else by onnx's own reference
    implementation.
    """
    random = torch.Generator().manual_seed(0)
    first, *_ = graph.example
    shape = graph.example[first].shape
    sample = (
        torch.randint(graph.num_ids, shape, generator=random) if graph.num_ids else torch.randn(shape, generator=random)
    )
    inputs = {**graph.example, first: sample}
    with torch.no_grad():
        expected = dict(zip(graph.outputs, graph.module(*inputs.values())))
    feeds = {name: tensor.numpy() for name, tensor in inputs.items()}
    try:
        from onnxruntime import InferenceSession

        arrays = InferenceSession(file, providers=["CPUExecutionProvider"]).run(list(graph.outputs), feeds)
    except ImportError:
        from onnx.reference import ReferenceEvaluator

        arrays = ReferenceEvaluator(str(file)).run(list(graph.outputs), feeds)
    written = {name: torch.from_numpy(np.asarray(array)) for name, array in zip(graph.outputs, arrays)}
    return compare(expected, written, _ROUNDING, f"the outputs {', '.join(graph.outputs)}")


def _companion_files(kind: str, usage: Usage, codec: Codec | None) -> dict[str, Any]:
    """Return the content of the files next to the graph, by file name."""
    files: dict[str, Any] = {}
    if usage.processor:
        files[PROCESSOR] = usage.processor
    if isinstance(codec, TokenizerCodec):
        tokenizer = Tokenizer.from_str(codec.tokenizer.to_str())
        token_names = [
            None if token_id is None else tokenizer.id_to_token(token_id) for token_id in (codec.bos_id, codec.eos_id)
        ]
        bos, eos = ([] if name is None else [name] for name in token_names)
        if kind != "language model" and tokenizer.post_processor is None and bos + eos:
            tokenizer.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
                single=[*bos, "$A", *eos],
                pair=[*bos, "$A", *eos, "$B:1", *(f"{name}:1" for name in eos)],
                special_tokens=[(name, tokenizer.token_to_id(name)) for name in {*bos, *eos}],  # type: ignore[misc]
            )
        pad = codec.pad or 0  # masked, so any id works
        tokenizer.enable_padding(pad_id=pad, pad_token=tokenizer.id_to_token(pad) or "")
        files[TOKENIZER] = json.loads(tokenizer.to_str())
    if usage.labels:
        files[LABELS] = list(usage.labels)
    if usage.thresholds:
        files[THRESHOLDS] = dict(zip(usage.labels, usage.thresholds))
    return files
