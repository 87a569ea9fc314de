"""Settings of captioning tasks: pretrained towers and decoders, sources of images, and model inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from jaxtyping import Bool, Int, UInt8
from torch import nn

from headway.codecs import Codec, Kind, load_codec, sentence_codec
from headway.codecs.processor import ImageProcessor
from headway.codecs.tokenizer import FILE as TOKENIZER
from headway.config import register
from headway.data import SplitConfig, find_set, sides_of
from headway.data.splits import Sides
from headway.domains.image_text import scenes
from headway.domains.image_text.data import CaptionColumns, Captions, open_pictures, read_captions
from headway.domains.image_text.emoji import read_emoji
from headway.errors import ConfigError, UserError
from headway.formats.hub import named_folder
from headway.formats.open import open_config, open_model, use_of
from headway.formats.usage import Usage, read_usage
from headway.generate.search import check_beam
from headway.learn import Recipe, Task, TaskConfig
from headway.nn.models import CaptionerConfig, PatchEmbedConfig, TokenEmbedConfig, TransformerConfig


@dataclass(frozen=True)
class ModelPart:
    """A model at `path`, or its part named `inner`."""

    path: str
    inner: str = ""

    def open(self) -> nn.Module:
        """The part with its weights."""
        return open_model(named_folder(self.path)).model.get_submodule(self.inner)

    @property
    def config(self) -> TransformerConfig:
        found: Any = open_config(named_folder(self.path))
        return getattr(found, self.inner) if self.inner else found

    @property
    def usage(self) -> Usage:
        """The usage stored with the model: its image preprocessing and its eos tokens."""
        folder = named_folder(self.path)
        return use_of(folder)[0] if (folder / "usage.json").is_file() else open_model(folder).usage

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
        path, ("tower", "left"), _sees, "does not take images", "use a run or model of images, such as a ViT or CLIP"
    )


def decoder_of(path: str) -> ModelPart:
    """The generating part of a model: a GPT, or the decoder of a captioner. UserError for others."""
    return _part(path, ("decoder",), _writes, "is not a causal language model", "use a run of `text`, or a GPT")


def _part(path: str, names: tuple[str, ...], fits: Any, fact: str, remedy: str) -> ModelPart:
    config = open_config(named_folder(path))
    if fits(config):
        return ModelPart(path)
    for name in names:
        if fits(getattr(config, name, None)):
            return ModelPart(path, name)
    raise UserError(f"{path} {fact}; {remedy}")


def _sees(config: Any) -> bool:
    return isinstance(config, TransformerConfig) and isinstance(config.embed, PatchEmbedConfig)


def _writes(config: Any) -> bool:
    return isinstance(config, TransformerConfig) and isinstance(config.embed, TokenEmbedConfig) and config.stack.causal


BEGIN, END = "<s>", "</s>"


@dataclass(frozen=True)
class Captioned:
    """N samples. `pixels(rows)` are their images, all of one size; `keys` identify their contents; `images` are equal
    for samples of the same image, whose captions are alternatives; `splits` are the samples of each split, "train",
    "validation", "test" and perhaps others; `describe(row)` is a sample's display name, `locate(row)` its location for
    messages.
    """

    captions: Sequence[str]
    keys: Sequence[str]
    images: Int[np.ndarray, "N"]
    sides: Sides
    pixels: Callable[[Int[np.ndarray, "B"]], UInt8[np.ndarray, "B H W 3"]]
    shown: Callable[[int], str]
    place: Callable[[int], str]


def captioned(
    found: Captions,
    processor: ImageProcessor,
    split: SplitConfig,
    skip: bool = False,
    wanted: Bool[np.ndarray, "N"] | None = None,
) -> Captioned:
    """The `selected` captions with their images.

    Equal pixels are one image, and all its captions are in the same split. UserErrors as in `open_pictures`: a corrupt
    image, unless `skip` leaves such out and counts them.
    """
    pictures = open_pictures(found.images, processor, skip)
    kept = ~np.isin(found.of, list(pictures.wrong))
    rows = np.flatnonzero(kept if wanted is None else kept & wanted)
    if len(rows) == 0:
        raise UserError(f"none of {len(found.texts):,} captions has a valid image; add valid images")
    of = found.of[rows]
    _, same = np.unique(pictures.keys, return_inverse=True)
    keys = pictures.keys if found.groups is None else found.groups
    return Captioned(
        captions=[found.texts[row] for row in rows.tolist()],
        keys=[pictures.keys[image] for image in of.tolist()],
        images=same[of],
        sides=sides_of([keys[image] for image in of.tolist()], found.named[of], split),
        pixels=lambda chosen: np.asarray(pictures.pixels[of[chosen]]),
        shown=lambda row: found.images[of[row]].name,
        place=lambda row: found.places[rows[row]],
    )


@dataclass(frozen=True)
class CaptionsConfig(TaskConfig):
    """Generate the caption of an image.

    `codec` and `size` set the tokenizer and its maximum vocabulary (none: no limit). A caption of more than `longest`
    tokens is an error, or with `drop_long` left out of training and counted; generated captions are never longer.
    `smoothing` is label smoothing (Szegedy et al. 2016). `beam` and `length_penalty` apply to the final split; other
    splits are decoded greedily. `shift` is the maximum shift of training images in pixels. `tower` and `decoder` are
    runs or published models from which these parts are taken, with weights, sizes and tokenizer. `goal` picks the best
    model.
    """

    codec: Kind = "bpe"  # kind of the tokenizer to train
    size: int | None = 4000  # maximum vocabulary size; none: no limit
    lowercase: bool = False  # whether to lower-case the captions
    longest: int = 64  # maximum tokens per caption
    drop_long: bool = False  # whether to leave longer ones out of training, and count them
    smoothing: float = 0.0
    beam: int = 4  # beam size on the final split; 1 is greedy
    length_penalty: float = 0.6  # of the beam search
    shift: int = 0
    tower: str | None = None  # run or published model that provides the tower
    decoder: str | None = None  # run or published model that provides the decoder
    goal: Literal["exact_match", "chrf", "bleu", "loss"] = "chrf"
    split: SplitConfig = SplitConfig()  # held-out shares

    def __post_init__(self) -> None:
        if not 0 <= self.smoothing < 1:
            raise ConfigError(f"task.smoothing is {self.smoothing}; choose a share of at least 0 and below 1")
        check_beam("task.beam", self.beam)
        for name, least in (("longest", 1), ("shift", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"task.{name} is {getattr(self, name)}; choose {least} or more")

    def gather(self, paths: Sequence[Path] | None, names: Sequence[str], processor: ImageProcessor) -> Captioned:
        """The samples, from the user's files or from the recipe's data sets."""
        raise NotImplementedError

    def open(self, recipe: Recipe, data: Sequence[Path] | None, workspace: Path) -> Task:
        """Raises UserError for data that cannot be read, are too small, or do not fit the settings."""
        from headway.domains.image_text.captioning import CaptionText, ImagesToCaption

        model = recipe.model
        if not isinstance(model, CaptionerConfig):
            kind = type(model).__name__
            raise ConfigError(f"captions need a captioner, but the model is a {kind}; choose a captioning recipe")
        model = self.with_parts(model, workspace)
        usage = read_usage(workspace)
        if not usage.processor and self.tower is not None:  # the tower's own preprocessing
            usage = replace(usage, processor=tower_of(self.tower).usage.processor)
        if not usage.processor:
            high, wide = model.images.size
            size = {"height": high, "width": wide}
            usage = replace(usage, processor={"image_processor_type": "ViTImageProcessor", "size": size, "resample": 3})
        processor = ImageProcessor.read(usage.processor, "the images' processor")
        if processor.shape != model.images.size or processor.channels != 3:
            raise ConfigError(
                f"the image processor outputs {processor.shape} pixels in {processor.channels} channels, but the tower "
                f"takes {model.images.size} in 3; set model.tower.embed.size, or choose another tower"
            )
        samples = self.gather(data, recipe.data, processor)
        codec = self._codec((samples.captions[int(row)] for row in samples.sides["train"].tolist()), workspace)
        return Task(ImagesToCaption(self, recipe, model, samples, codec, usage, processor), CaptionText(self))

    def starts(self) -> dict[str, ModelPart]:  # type: ignore[override]
        found = {} if self.tower is None else {"tower": tower_of(self.tower)}
        return found if self.decoder is None else {**found, "decoder": decoder_of(self.decoder)}

    def with_parts(self, model: CaptionerConfig, workspace: Path) -> CaptionerConfig:
        """`model` with parts of other models instead of its own. A started run already has them."""
        if (workspace / "recipe.json").is_file():
            return model
        for name, part in self.starts().items():
            config = replace(part.config, heads={}, tie="none") if name == "tower" else part.config
            model = replace(model, **{name: config})
        return model

    def _codec(self, captions: Iterable[str], workspace: Path) -> Codec:
        """The codec in the workspace, otherwise that of the decoder, otherwise one trained on the training captions."""
        if (workspace / TOKENIZER).is_file():
            return load_codec(workspace)
        if self.decoder is not None:
            return decoder_of(self.decoder).codec()
        return sentence_codec(self.codec, captions, self.size, (BEGIN, END), self.lowercase)


@register("captions")
@dataclass(frozen=True)
class FilesConfig(CaptionsConfig):
    """Your own images and captions: the columns `path` and `caption` of .csv, .tsv or .jsonl files.

    Corrupt images are an error, or with `skip_bad` left out and counted.
    """

    path: str = "path"  # column with the images
    caption: str = "caption"  # column with the captions
    skip_bad: bool = False  # whether to leave corrupt images out, and count them

    def gather(self, paths: Sequence[Path] | None, names: Sequence[str], processor: ImageProcessor) -> Captioned:
        found = read_captions(paths or (), CaptionColumns(self.path, self.caption))
        return captioned(found, processor, self.split, self.skip_bad)


@register("scenes")
@dataclass(frozen=True)
class ScenesConfig(CaptionsConfig):
    """Scenes of coloured shapes (scenes.py): `train`, `validation` and `test` of them, and as many as for the test in
    the split "novel", whose scenes have a pair of colour and shape that does not occur in training.
    """

    train: int = 40_000  # number of training scenes
    validation: int = 500  # number of validation scenes
    test: int = 1000  # number of test scenes
    seed: int = 0  # random seed of the scenes
    makes_data: ClassVar[bool] = True

    def gather(self, paths: Sequence[Path] | None, names: Sequence[str], processor: ImageProcessor) -> Captioned:
        if paths is not None:
            raise UserError("scenes are generated; leave --data out, or train the recipe caption on your images")
        if processor.size != (scenes.SIDE, scenes.SIDE):
            raise ConfigError(f"scenes have {scenes.SIDE} x {scenes.SIDE} pixels; set model.tower.embed.size to that")
        edges = np.cumsum([0, self.train, self.validation, self.test, self.test])
        sides = {
            name: np.arange(start, end)
            for name, start, end in zip(("train", "validation", "test", "novel"), edges, edges[1:])
        }
        first = int(edges[3])  # the first novel one
        drawn = _Scenes(self.seed, first)
        return Captioned(
            captions=drawn.captions(int(edges[-1])),
            keys=(),  # captions already identify the scenes
            images=np.arange(edges[-1]),
            sides=Sides(sides),
            pixels=lambda rows: np.stack([scenes.draw(drawn.scene(row)) for row in rows.tolist()]),
            shown=lambda row: f"{'novel ' if row >= first else ''}scene {row}",
            place=lambda row: f"scene {row}",
        )


@dataclass(frozen=True)
class _Scenes:
    """Scenes by row, those from `first_novel` on with a novel pair."""

    seed: int
    novel: int

    def scene(self, row: int) -> scenes.Scene:
        return scenes.scene(self.seed, row, row >= self.novel)

    def captions(self, count: int) -> list[str]:
        return [self.scene(row).caption for row in range(count)]


@register("emoji_captions")
@dataclass(frozen=True)
class EmojiConfig(CaptionsConfig):
    """Emoji and their names in a `language`; variants of one emoji are in the same split."""

    language: Literal["en", "de", "fr", "es", "cs"] = "en"  # of the names

    def gather(self, paths: Sequence[Path] | None, names: Sequence[str], processor: ImageProcessor) -> Captioned:
        found = read_emoji(paths or [path for name in names for path in find_set(name)])
        own = np.array([language == self.language for language in found.languages or ()])
        return captioned(found, processor, self.split, wanted=found.asked & own)
