"""Settings of captioning tasks: pretrained towers and decoders, image sources, and model inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from jaxtyping import Bool, Int, UInt8
from torch import nn

from headway.codecs import Codec, Kind, load_codec, sentence_codec
from headway.codecs.image_processor import ImageProcessor
from headway.codecs.tokenizer import FILE as TOKENIZER
from headway.config import register
from headway.data import SplitConfig, find_set, split_by_text
from headway.data.splits import SplitIndices
from headway.domains.image_text import scenes
from headway.domains.image_text.captioned_images import CaptionColumns, Captions, decode_images, read_captions
from headway.domains.image_text.emoji import read_emoji
from headway.errors import ConfigError, UserError
from headway.formats.hub import named_folder
from headway.formats.open import open_config, open_model, usage_and_codec
from headway.formats.usage import Usage, read_usage
from headway.generate.search import check_beam
from headway.learn import Recipe, Task, TaskConfig
from headway.nn.models import CaptionerConfig, PatchEmbedConfig, TokenEmbedConfig, TransformerConfig


@dataclass(frozen=True)
class ModelPart:
    """The model at `path`, or the part of it named `inner`."""

    path: str
    part: str = ""

    def open(self) -> nn.Module:
        """The part with its weights."""
        return open_model(named_folder(self.path)).model.get_submodule(self.part)

    @property
    def config(self) -> TransformerConfig:
        model_config: Any = open_config(named_folder(self.path))
        return getattr(model_config, self.part) if self.part else model_config

    @property
    def usage(self) -> Usage:
        """The usage stored with the model: image preprocessing and eos tokens."""
        folder = named_folder(self.path)
        return usage_and_codec(folder)[0] if (folder / "usage.json").is_file() else open_model(folder).usage

    def codec(self) -> Codec:
        """The model's tokenizer. UserError if it has none."""
        codec = open_model(named_folder(self.path)).codec
        if codec is None:
            raise UserError(f"{self.path} has no tokenizer next to its weights; add its tokenizer.json")
        return codec

    def __str__(self) -> str:
        return self.path


def tower_of(path: str) -> ModelPart:
    """The vision part of a model: a vision transformer, or the tower of a CLIP or captioner. UserError for others."""
    return _part(
        path,
        ("tower", "left"),
        _takes_images,
        "does not take images",
        "use an image model or run, such as a ViT or CLIP",
    )


def decoder_of(path: str) -> ModelPart:
    """The generating part of a model: a GPT, or the decoder of a captioner. UserError for others."""
    return _part(
        path, ("decoder",), _is_causal_decoder, "is not a causal language model", "use a run of `text`, or a GPT"
    )


def _part(path: str, names: tuple[str, ...], is_suitable: Any, fact: str, remedy: str) -> ModelPart:
    config = open_config(named_folder(path))
    if is_suitable(config):
        return ModelPart(path)
    for name in names:
        if is_suitable(getattr(config, name, None)):
            return ModelPart(path, name)
    raise UserError(f"{path} {fact}; {remedy}")


def _takes_images(config: Any) -> bool:
    return isinstance(config, TransformerConfig) and isinstance(config.embed, PatchEmbedConfig)


def _is_causal_decoder(config: Any) -> bool:
    return isinstance(config, TransformerConfig) and isinstance(config.embed, TokenEmbedConfig) and config.stack.causal


BOS, EOS = "<s>", "</s>"


@dataclass(frozen=True)
class CaptionData:
    """N samples. `pixels(rows)` are their images, all of the same size; `keys` identify their contents; `images` are
    equal for samples of the same image, whose captions are alternatives; `splits` are the samples in each split:
    "train", "validation", "test" and perhaps others. `describe(row)` is a sample's display name, and `locate(row)` its
    location for messages.
    """

    captions: Sequence[str]
    keys: Sequence[str]
    images: Int[np.ndarray, "N"]
    splits: SplitIndices
    pixels: Callable[[Int[np.ndarray, "B"]], UInt8[np.ndarray, "B H W 3"]]
    describe: Callable[[int], str]
    locate: Callable[[int], str]


def caption_data(
    captions: Captions,
    processor: ImageProcessor,
    split: SplitConfig,
    skip: bool = False,
    selected: Bool[np.ndarray, "N"] | None = None,
) -> CaptionData:
    """The `selected` captions with their images.

    Images with equal pixels are one image, and all its captions are in the same split. UserErrors as in `open_images`:
    a corrupt image, unless `skip` is set; then corrupt images are skipped and counted.
    """
    decoded = decode_images(captions.images, processor, skip)
    is_valid = ~np.isin(captions.image_of, list(decoded.errors))
    rows = np.flatnonzero(is_valid if selected is None else is_valid & selected)
    if len(rows) == 0:
        raise UserError(f"none of {len(captions.texts):,} captions has a valid image; add valid images")
    image_of = captions.image_of[rows]
    _, same = np.unique(decoded.keys, return_inverse=True)
    keys = decoded.keys if captions.groups is None else captions.groups
    return CaptionData(
        captions=[captions.texts[row] for row in rows.tolist()],
        keys=[decoded.keys[image] for image in image_of.tolist()],
        images=same[image_of],
        splits=split_by_text([keys[image] for image in image_of.tolist()], captions.named_splits[image_of], split),
        pixels=lambda indices: np.asarray(decoded.pixels[image_of[indices]]),
        describe=lambda row: captions.images[image_of[row]].name,
        locate=lambda row: captions.locations[rows[row]],
    )


@dataclass(frozen=True)
class CaptionsConfig(TaskConfig):
    """Generate captions for images.

    `codec` and `size` set the tokenizer and its maximum vocabulary size (none: no limit). A caption with more than
    `max_length` tokens is an error or, with `drop_long`, skipped and counted; generated captions are never longer.
    `smoothing` is label smoothing (Szegedy et al. 2016). `beam` and `length_penalty` apply to the final split; other
    splits are decoded greedily. `shift` is the maximum shift of training images in pixels. `tower` and `decoder` are
    runs or published models that provide these parts with their weights, sizes and tokenizer. `goal` picks the best
    model.
    """

    codec: Kind = "bpe"  # kind of the tokenizer to train
    size: int | None = 4000  # maximum vocabulary size; none: no limit
    lowercase: bool = False  # whether to lower-case the captions
    max_length: int = 64  # maximum tokens per caption
    drop_long: bool = False  # whether to skip and count longer captions
    smoothing: float = 0.0
    beam: int = 4  # beam size on the final split; 1 is greedy
    length_penalty: float = 0.6  # length penalty of the beam search
    shift: int = 0
    tower: str | None = None  # run or published model that provides the tower
    decoder: str | None = None  # run or published model that provides the decoder
    goal: Literal["exact_match", "chrf", "bleu", "loss"] = "chrf"
    split: SplitConfig = SplitConfig()  # held-out shares

    def __post_init__(self) -> None:
        if not 0 <= self.smoothing < 1:
            raise ConfigError(f"task.smoothing is {self.smoothing}; choose a fraction of at least 0 and below 1")
        check_beam("task.beam", self.beam)
        for name, minimum in (("max_length", 1), ("shift", 0)):
            if getattr(self, name) < minimum:
                raise ConfigError(f"task.{name} is {getattr(self, name)}; choose {minimum} or more")

    def gather(self, paths: Sequence[Path] | None, names: Sequence[str], processor: ImageProcessor) -> CaptionData:
        """The samples, from the user's files or from the recipe's data sets."""
        raise NotImplementedError

    def open(self, recipe: Recipe, data: Sequence[Path] | None, workspace: Path) -> Task:
        """Raises UserError for data that cannot be read, are too small, or do not fit the settings."""
        from headway.domains.image_text.captioning import CaptionDataset, CaptionGeneration

        model = recipe.model
        if not isinstance(model, CaptionerConfig):
            kind = type(model).__name__
            raise ConfigError(f"captioning needs a captioner, but the model is a {kind}; choose a captioning recipe")
        model = self.with_parts(model, workspace)
        usage = read_usage(workspace)
        if not usage.processor and self.tower is not None:  # the tower's own preprocessing
            usage = replace(usage, processor=tower_of(self.tower).usage.processor)
        if not usage.processor:
            height, width = model.images.size
            size = {"height": height, "width": width}
            usage = replace(usage, processor={"image_processor_type": "ViTImageProcessor", "size": size, "resample": 3})
        processor = ImageProcessor.read(usage.processor, "the image processor")
        if processor.shape != model.images.size or processor.channels != 3:
            raise ConfigError(
                f"the image processor outputs {processor.shape} pixels in {processor.channels} channels, but the tower "
                f"takes {model.images.size} in 3; set model.tower.embed.size, or choose another tower"
            )
        samples = self.gather(data, recipe.data, processor)
        codec = self._codec((samples.captions[int(row)] for row in samples.splits["train"].tolist()), workspace)
        return Task(CaptionDataset(self, recipe, model, samples, codec, usage, processor), CaptionGeneration(self))

    def part_starts(self) -> dict[str, ModelPart]:  # type: ignore[override]
        parts = {} if self.tower is None else {"tower": tower_of(self.tower)}
        return parts if self.decoder is None else {**parts, "decoder": decoder_of(self.decoder)}

    def with_parts(self, model: CaptionerConfig, workspace: Path) -> CaptionerConfig:
        """`model` with parts of other models instead of its own. A run that has started already has them."""
        if (workspace / "recipe.json").is_file():
            return model
        for name, part in self.part_starts().items():
            config = replace(part.config, heads={}, tie="none") if name == "tower" else part.config
            model = replace(model, **{name: config})
        return model

    def _codec(self, captions: Iterable[str], workspace: Path) -> Codec:
        """The codec in the workspace, otherwise the decoder's, otherwise one trained on the training captions."""
        if (workspace / TOKENIZER).is_file():
            return load_codec(workspace)
        if self.decoder is not None:
            return decoder_of(self.decoder).codec()
        return sentence_codec(self.codec, captions, self.size, (BOS, EOS), self.lowercase)


@register("captions")
@dataclass(frozen=True)
class CaptionFilesConfig(CaptionsConfig):
    """Your own images and captions: the columns `path` and `caption` in .csv, .tsv or .jsonl files.

    A corrupt image is an error; with `skip_bad`, corrupt images are skipped and counted.
    """

    path: str = "path"  # column with the image paths
    caption: str = "caption"  # column with the captions
    skip_bad: bool = False  # whether to skip and count corrupt images

    def gather(self, paths: Sequence[Path] | None, names: Sequence[str], processor: ImageProcessor) -> CaptionData:
        captions = read_captions(paths or (), CaptionColumns(self.path, self.caption))
        return caption_data(captions, processor, self.split, self.skip_bad)


@register("scenes")
@dataclass(frozen=True)
class ScenesConfig(CaptionsConfig):
    """Scenes of coloured shapes (scenes.py). `train`, `validation` and `test` are the numbers of scenes in these
    splits. The split "novel" is as large as the test split; each of its scenes has a pair of colour and shape that does
    not occur in training.
    """

    train: int = 40_000  # number of training scenes
    validation: int = 500  # number of validation scenes
    test: int = 1000  # number of test scenes
    seed: int = 0  # random seed of the scenes
    generates_data: ClassVar[bool] = True

    def gather(self, paths: Sequence[Path] | None, names: Sequence[str], processor: ImageProcessor) -> CaptionData:
        if paths is not None:
            raise UserError("scenes are generated; remove --data, or use the caption recipe to train on your images")
        if processor.size != (scenes.SIDE, scenes.SIDE):
            raise ConfigError(
                f"scenes have {scenes.SIDE} x {scenes.SIDE} pixels; set model.tower.embed.size to this size"
            )
        bounds = np.cumsum([0, self.train, self.validation, self.test, self.test])
        splits = {
            name: np.arange(start, end)
            for name, start, end in zip(("train", "validation", "test", "novel"), bounds, bounds[1:])
        }
        first_novel = int(bounds[3])  # the first novel one
        generated = _GeneratedScenes(self.seed, first_novel)
        return CaptionData(
            captions=generated.captions(int(bounds[-1])),
            keys=(),  # captions already identify the scenes
            images=np.arange(bounds[-1]),
            splits=SplitIndices(splits),
            pixels=lambda rows: np.stack([scenes.render(generated.scene(row)) for row in rows.tolist()]),
            describe=lambda row: f"{'novel ' if row >= first_novel else ''}scene {row}",
            locate=lambda row: f"scene {row}",
        )


@dataclass(frozen=True)
class _GeneratedScenes:
    """Scenes by row; those from `first_novel` on have a novel pair."""

    seed: int
    first_novel: int

    def scene(self, row: int) -> scenes.Scene:
        return scenes.scene(self.seed, row, row >= self.first_novel)

    def captions(self, count: int) -> list[str]:
        return [self.scene(row).caption for row in range(count)]


@register("emoji_captions")
@dataclass(frozen=True)
class EmojiCaptionsConfig(CaptionsConfig):
    """Emoji and their names in a `language`; variants of an emoji are in the same split."""

    language: Literal["en", "de", "fr", "es", "cs"] = "en"  # language of the names

    def gather(self, paths: Sequence[Path] | None, names: Sequence[str], processor: ImageProcessor) -> CaptionData:
        captions = read_emoji(paths or [path for name in names for path in find_set(name)])
        is_language = np.array([language == self.language for language in captions.languages or ()])
        return caption_data(captions, processor, self.split, selected=captions.is_query & is_language)
