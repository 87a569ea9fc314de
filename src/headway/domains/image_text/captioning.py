"""Image captioning: settings, pretrained towers and decoders, image sources, objective and pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor, nn

from headway.codecs import Codec, Kind, load_codec, sentence_codec
from headway.codecs.image_processor import ImageProcessor
from headway.codecs.tokenizer import FILE as TOKENIZER
from headway.config import override
from headway.config_kinds import register
from headway.data import SPLITS, SplitConfig, Splits, find_set, split_by_text
from headway.data.prepared.prepared_samples import PreparedSamples
from headway.data.splits import SplitIndices
from headway.domains.image_text import scenes
from headway.domains.image_text.captioned_images import (
    CaptionColumns,
    Captions,
    decode_captioned,
    open_captions,
    prepared_size,
)
from headway.domains.image_text.emoji import read_emoji
from headway.domains.image_text.pair_inference import bos_and_eos, search_captions
from headway.errors import ConfigError, UserError, logger
from headway.formats.open import open_config, open_model, usage_and_codec
from headway.formats.usage import Usage, read_usage
from headway.generate import SearchConfig
from headway.generate.prompts import device_of
from headway.generate.search import check_beam
from headway.io.hub import named_folder
from headway.layout import Layout
from headway.learn import Recipe, Task, TaskConfig
from headway.learn.examples import Batch, Contents, RngKey, RowSubset
from headway.learn.objective import evaluation_batches
from headway.learn.objectives.sequences import Ids, SequenceGeneration, Sources, SourceTargetExamples, teacher_forcing
from headway.learn.recipe import batch_size_of
from headway.learn.report import Picture, Tile, tile_grid
from headway.learn.shard_batches import PreparedExamples
from headway.metrics import caption_scores
from headway.nn.models import (
    Captioner,
    CaptionerConfig,
    EmbedConfig,
    ModelConfig,
    PatchEmbedConfig,
    TokenEmbedConfig,
    TransformerConfig,
    attention_maps,
    evaluation_mode,
)


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
    remedy = "use an image model or run, such as a ViT or CLIP"
    return _part(path, ("tower", "left"), PatchEmbedConfig, "does not take images", remedy)


def decoder_of(path: str) -> ModelPart:
    """The generating part of a model: a GPT, or the decoder of a captioner. UserError for others."""
    remedy = "use a run of `text`, or a GPT"
    return _part(path, ("decoder",), TokenEmbedConfig, "is not a causal language model", remedy)


def _part(path: str, names: tuple[str, ...], embed: type[EmbedConfig], fact: str, remedy: str) -> ModelPart:
    config = open_config(named_folder(path))
    for name in ("", *names):
        part = getattr(config, name, None) if name else config
        if not isinstance(part, TransformerConfig) or not isinstance(part.embed, embed):
            continue
        if embed is PatchEmbedConfig or part.stack.causal:
            return ModelPart(path, name)
    raise UserError(f"{path} {fact}; {remedy}")


BOS, EOS = "<s>", "</s>"


@dataclass(frozen=True)
class CaptionData:
    """N samples. `pixels(rows)` are their images, all of the same size; `keys` identify their contents; `images` are
    equal for samples of the same image, whose captions are alternatives; `splits` are the samples in each split:
    "train", "validation", "test" and perhaps others. `describe(row)` is a sample's display name, and `locate(row)` its
    location for messages. The images may be `prepared`, those of the samples as number `files` of them.
    """

    captions: Sequence[str]
    keys: Sequence[str]
    images: Int[np.ndarray, "N"]
    splits: SplitIndices
    pixels: Callable[[Int[np.ndarray, "B"]], UInt8[np.ndarray, "B H W 3"]]
    describe: Callable[[int], str]
    locate: Callable[[int], str]
    prepared: PreparedSamples | None = None
    files: Int[np.ndarray, "N"] | None = None


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
    decoded = decode_captioned(captions, processor, skip)
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
        prepared=captions.prepared,
        files=image_of,
    )


@dataclass(frozen=True)
class CaptionsConfig(TaskConfig):
    """Generate captions for images.

    `codec` and `size` set the tokenizer and its maximum vocabulary size (none: no limit). A caption with more than
    `max_length` tokens is an error or, with `drop_long`, skipped and counted; generated captions are never longer.
    `smoothing` is label smoothing (Szegedy et al. 2016). `beam` and `length_penalty` apply to the final split; other
    splits are decoded greedily. `shift` is the maximum shift of training images in pixels. In training, a share `noise`
    of the decoder's input tokens are those of other captions at the same position, so that it relies on the image
    instead of the words that follow each other in training (like word dropout, Bowman et al. 2016). `tower` and
    `decoder` are runs or published models that provide these parts with their weights, sizes and tokenizer. `goal`
    picks the best model.
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
    noise: float = 0.0  # share of the decoder's input tokens that are from other captions in training
    tower: str | None = None  # run or published model that provides the tower
    decoder: str | None = None  # run or published model that provides the decoder
    goal: Literal["exact_match", "chrf", "bleu", "loss"] = "chrf"
    split: SplitConfig = SplitConfig()  # held-out shares

    def __post_init__(self) -> None:
        if not 0 <= self.smoothing < 1:
            raise ConfigError(f"task.smoothing is {self.smoothing}; choose a fraction of at least 0 and below 1")
        if not 0 <= self.noise < 1:
            raise ConfigError(f"task.noise is {self.noise}; choose a share of at least 0 and below 1")
        check_beam("task.beam", self.beam)
        for name, minimum in (("max_length", 1), ("shift", 0)):
            if getattr(self, name) < minimum:
                raise ConfigError(f"task.{name} is {getattr(self, name)}; choose {minimum} or more")

    def gather(self, paths: Sequence[Path] | None, names: Sequence[str], processor: ImageProcessor) -> CaptionData:
        """The samples, from the user's files or from the recipe's data sets."""
        raise NotImplementedError

    def open(self, recipe: Recipe, data: Sequence[Path] | None, workspace: Path) -> Task:
        """Raises UserError for data that cannot be read, are too small, or do not fit the settings."""
        model = recipe.model
        if not isinstance(model, CaptionerConfig):
            kind = type(model).__name__
            raise ConfigError(f"captioning needs a captioner, but the model is a {kind}; choose a captioning recipe")
        if not (workspace / "recipe.json").is_file():  # a run that has started already has the parts of other models
            for name, part in self.part_starts().items():
                config = replace(part.config, heads={}, tie="none") if name == "tower" else part.config
                model = replace(model, **{name: config})
        usage = read_usage(workspace)
        if not usage.processor and self.tower is not None:  # the tower's own preprocessing
            usage = replace(usage, processor=tower_of(self.tower).usage.processor)
        paths = None if data is None else recipe.files(data)
        if (prepared := prepared_size(paths or (), usage)) is not None:
            model = with_size(model, prepared)
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
        samples = self.gather(paths, recipe.data, processor)
        if (workspace / TOKENIZER).is_file():
            codec = load_codec(workspace)
        elif self.decoder is not None:
            codec = decoder_of(self.decoder).codec()
        else:
            texts = (samples.captions[int(row)] for row in samples.splits["train"].tolist())
            codec = sentence_codec(self.codec, texts, self.size, (BOS, EOS), self.lowercase)
        return Task(CaptionDataset(self, recipe, model, samples, codec, usage, processor), CaptionGeneration(self))

    def part_starts(self) -> dict[str, ModelPart]:  # type: ignore[override]
        parts = {} if self.tower is None else {"tower": tower_of(self.tower)}
        return parts if self.decoder is None else {**parts, "decoder": decoder_of(self.decoder)}


@register("captions")
@dataclass(frozen=True)
class CaptionFilesConfig(CaptionsConfig):
    """Your own images and captions: the columns `path` and `caption` in .csv, .tsv or .jsonl files.

    A corrupt image is an error; with `skip_bad`, corrupt images are skipped and counted.
    """

    prepared_kinds: ClassVar[tuple[str, ...]] = ("caption",)

    path: str = "path"  # column with the image paths
    caption: str = "caption"  # column with the captions
    skip_bad: bool = False  # whether to skip and count corrupt images

    def gather(self, paths: Sequence[Path] | None, names: Sequence[str], processor: ImageProcessor) -> CaptionData:
        captions = open_captions(paths or (), CaptionColumns(self.path, self.caption))
        return caption_data(captions, processor, self.split, self.skip_bad)


@register("scenes")
@dataclass(frozen=True)
class ScenesConfig(CaptionsConfig):
    """Scenes of coloured shapes (scenes.py). `train`, `validation` and `test` are the numbers of scenes in these
    splits. The split "novel" is as large as the test split; each of its scenes has a pair of colour and shape that does
    not occur in training. With `tuning` these are other pairs, so that settings are not chosen on those of the test.
    """

    train: int = 40_000  # number of training scenes
    validation: int = 500  # number of validation scenes
    test: int = 1000  # number of test scenes
    seed: int = 0  # random seed of the scenes
    tuning: bool = False  # whether the novel pairs are others than those of the test
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
        first_novel = int(bounds[3])  # scenes from this one on have a novel pair

        def scene(row: int) -> scenes.Scene:
            return scenes.scene(self.seed, row, row >= first_novel, self.tuning)

        return CaptionData(
            captions=[scene(row).caption for row in range(bounds[-1])],
            keys=(),  # captions already identify the scenes
            images=np.arange(bounds[-1]),
            splits=SplitIndices(splits),
            pixels=lambda rows: np.stack([scenes.render(scene(row)) for row in rows.tolist()]),
            describe=lambda row: f"{'novel ' if row >= first_novel else ''}scene {row}",
            locate=lambda row: f"scene {row}",
        )


@register("emoji_captions")
@dataclass(frozen=True)
class EmojiCaptionsConfig(CaptionsConfig):
    """Emoji and their names in a `language`; variants of an emoji are in the same split."""

    language: Literal["en", "de", "fr", "es", "cs"] = "en"  # language of the names

    def gather(self, paths: Sequence[Path] | None, names: Sequence[str], processor: ImageProcessor) -> CaptionData:
        captions = read_emoji(paths or [path for name in names for path in find_set(name)])
        is_language = np.array([language == self.language for language in captions.languages or ()])
        return caption_data(captions, processor, self.split, selected=captions.is_query & is_language)


_MIN_BRIGHTNESS = 0.2  # brightness of pixels that get no attention
_MAX_WORDS = 16  # maximum words per caption in a picture


def attention_pictures(
    model: Captioner,
    codec: Codec,
    bos: int,
    inputs: Float[Tensor, "N 3 H W"],
    pixels: UInt8[np.ndarray, "N H W 3"],
    generated: Sequence[str],
) -> list[Picture]:
    """The decoder's attention for each generated word, averaged over heads and layers; empty without attention."""
    pictures = []
    device = device_of(model)
    for image, image_pixels, text in zip(inputs, pixels, generated):
        if not (ids := codec.encode(text)):
            continue
        input_ids = torch.tensor([[bos, *ids]], device=device)
        layout = Layout.full(1, 1 + len(ids), device=device)
        with evaluation_mode(model):
            maps = attention_maps(model, partial(model, image[None].to(device), input_ids, layout))
        decoder_weights = [weights[0].mean(0) for name, weights in maps.items() if name.startswith("decoder.")]
        if not decoder_weights:
            continue
        # Each patch's weight in predicting the token after each input token.
        rows, columns = model.config.images.grid((image.shape[1], image.shape[2]))
        mean = torch.stack(decoder_weights).mean(0)[-1 - len(ids) :, : rows * columns]
        weights = mean.unflatten(1, (rows, columns)).float().cpu().numpy()
        word_of = np.array([max(1, len(codec.decode(ids[: stop + 1]).split())) - 1 for stop in range(len(ids))])
        tiles = []
        for word_index, word in enumerate(text.split()[:_MAX_WORDS]):
            if (word_of == word_index).any():  # the image is bright where the word's weights are large
                word_weights = weights[: len(ids)][word_of == word_index].mean(0)
                heat = torch.from_numpy(word_weights / max(float(word_weights.max()), 1e-9))[None, None]
                heat = torch.nn.functional.interpolate(heat, image_pixels.shape[:2], mode="bilinear")[0, 0]
                brightness = _MIN_BRIGHTNESS + (1 - _MIN_BRIGHTNESS) * heat.numpy()[:, :, None]
                tiles.append(Tile((image_pixels * brightness).round().astype(np.uint8), word))
        pictures.append(
            Picture("Attention", text, tile_grid([Tile(image_pixels, "the image"), *tiles], small=True), wide=True)
        )
    return pictures


_LOG = logger(__name__)
_REPORT_IMAGES = 24  # images in the report
_ATTENTION_IMAGES = 4  # images with attention maps
_EXACT_MATCH = ("exact_match", "exact_match_interval")


def with_size(model: CaptionerConfig, size: tuple[int, int]) -> CaptionerConfig:
    """The captioner for images of this size."""
    return replace(model, tower=replace(model.tower, embed=replace(model.images, size=size)))


class CaptionDataset(SourceTargetExamples, PreparedExamples):
    """Images with captions. A batch is train.batch_size captions, each with its image."""

    def __init__(
        self,
        config: CaptionsConfig,
        recipe: Recipe,
        model: CaptionerConfig,
        samples: CaptionData,
        codec: Codec,
        usage: Usage,
        processor: ImageProcessor,
    ) -> None:
        """Raises UserError for captions that are too long, ConfigError for settings that do not fit."""
        self.config, self.model, self.samples = config, model, samples
        self.codec, self.usage, self.processor = codec, usage, processor
        self.seed, self.batch_size, self.places = recipe.train.seed, batch_size_of(recipe), recipe.train.accumulate
        self.prepared, self.prepared_rows = samples.prepared, samples.images if samples.files is None else samples.files
        self.bos, self.eos = bos_and_eos(codec)
        self.captions = [text.lower() for text in samples.captions] if config.lowercase else list(samples.captions)
        self.ids = codec.encode_batch(self.captions)
        limit = config.max_length if model.context is None else min(config.max_length, model.context - 1)
        lengths = np.fromiter(map(len, self.ids), np.int64, len(self.ids))
        too_long = np.flatnonzero(lengths > limit)
        if len(too_long) and not config.drop_long:
            row, is_setting = int(too_long[0]), limit == config.max_length
            limit_name = "task.max_length" if is_setting else "the model's context, without bos and eos,"
            raise UserError(
                f"{samples.locate(row)}: a caption of {lengths[row]} tokens exceeds {limit_name} of {limit}; "
                f"shorten it, raise {'task.max_length' if is_setting else 'model.context'}, or set "
                f"task.drop_long=true to skip {len(too_long):,} of {len(lengths):,}"
            )
        if len(too_long):
            _LOG.warning(
                "skipped %s of %s captions with more than %d tokens", f"{len(too_long):,}", f"{len(lengths):,}", limit
            )
        splits = samples.splits.without(too_long)
        self.splits = Splits(splits, np.sort(np.concatenate(list(splits.values()))), "captions", "a file")

    def adapt(self, model: ModelConfig) -> ModelConfig:
        """The model with its pretrained parts and the codec's vocabulary size. UserError for a split without
        samples.
        """
        for split in ("train", "validation"):
            self.splits.rows(split)
        config = self.config
        decoder_vocab_size = (
            self.model.vocab_size if config.decoder is not None else 0
        )  # published vocabularies may be larger
        has_parts = config.tower is not None or config.decoder is not None  # the task's model has them
        if not has_parts:
            assert isinstance(model, CaptionerConfig)  # checked by the task
            model = with_size(model, self.model.images.size)
        return override(
            self.model if has_parts else model, {"vocab_size": max(self.codec.vocab_size, decoder_vocab_size)}
        )

    def save(self, directory: Path) -> None:
        self.codec.save(directory)
        replace(read_usage(directory), processor=self.usage.processor).save(directory)

    def limited_rows(self, rows: np.ndarray, limit: int | None) -> np.ndarray:
        """The first rows; an image's captions are consecutive."""
        return rows[:limit]

    def take(self, rows: np.ndarray, rng_key: RngKey | None = None) -> Batch:
        """Inputs are images, Float[B, 3, H, W], and tokens, [B, T]; labels are the next tokens, [B, T]. In training,
        images are shifted at random, and some of the tokens are swapped.
        """
        pixels = self.samples.pixels(rows)
        if rng_key is not None and self.config.shift:
            pixels = shift_images(pixels, self.config.shift, self.seed, rng_key.positions)
        images = torch.from_numpy(np.stack([self.processor.normalize(image) for image in pixels]))
        ids = [self.ids[row] for row in rows.tolist()]
        decoder_ids, layout, labels = teacher_forcing(ids, [(self.bos,)] * len(ids), self.eos)
        if rng_key is not None and self.config.noise:
            decoder_ids = swap_tokens(decoder_ids, layout, self.config.noise, self.seed, rng_key.positions)
        computed = decoder_ids.numel() + self.model.prefix * len(ids)
        return Batch((images, decoder_ids, layout), labels, sum(map(len, ids)) + len(ids), computed)

    def contents(self) -> Contents:
        return {"images": (self.samples.keys,), "captions": (self.samples.captions,)}

    def describe_row(self, row: int) -> str:
        return self.samples.describe(row)

    def sources(self, split: str, limit: int | None = None) -> Sources:
        """Each image once, with all its captions."""
        rows = self.limited_rows(self.splits.rows(split), limit)
        images = self.samples.images[rows]
        unique_images, first_rows = np.unique(images, return_index=True)
        references: dict[int, list[str]] = {image: [] for image in unique_images.tolist()}
        for row, image in zip(rows.tolist(), images.tolist()):
            references[image].append(self.captions[row])
        return self._sources(rows[first_rows], list(references.values()))

    def sample_sources(self, count: int) -> Sources:
        rows = self.spread_rows(count)
        return self._sources(rows, [[self.captions[row]] for row in rows.tolist()])

    def _sources(self, rows: np.ndarray, references: list[list[str]]) -> Sources:
        return Sources(RowSubset(self, rows), references, [self.describe_row(row) for row in rows.tolist()])


class CaptionGeneration(SequenceGeneration[CaptionDataset]):
    """Captions of images, scored by exact matches, BLEU and chrF."""

    def __init__(self, config: CaptionsConfig) -> None:
        search = SearchConfig(config.beam, config.length_penalty)
        super().__init__(config.goal, search, config.smoothing, "decoder.heads.vocabulary")

    def generate(self, model: nn.Module, examples: CaptionDataset, sources: Sources, search: SearchConfig) -> list[Ids]:
        images = (batch.inputs[0] for _, batch in evaluation_batches(model, sources.inputs))
        max_length = examples.config.max_length
        hypotheses = search_captions(cast(Captioner, model), images, examples.bos, examples.eos, search, max_length)
        return [best.ids for best, *_ in hypotheses]

    def scores(self, examples: CaptionDataset, sources: Sources, generated: Sequence[Ids]) -> dict[str, Any]:
        return caption_scores(examples.decode_all(generated), sources.references)

    def evaluate(
        self, model: nn.Module, examples: CaptionDataset, split: str, limit: int | None = None
    ) -> dict[str, Any]:
        """The scores, and for the test split also exact matches on additional splits (such as "novel" for scenes)."""
        scores = super().evaluate(model, examples, split, limit)
        for extra_split in (
            [split for split in examples.splits.indices if split not in SPLITS] if split == "test" else ()
        ):
            sources = examples.sources(extra_split, limit)
            extra_scores = self.scores(examples, sources, self.generate(model, examples, sources, self.search))
            scores |= {
                name.replace("exact_match", f"exact_match_{extra_split}"): extra_scores[name] for name in _EXACT_MATCH
            }
        return scores

    def pictures(self, model: nn.Module, examples: CaptionDataset) -> list[Picture]:
        """Held-out images with their captions, and attention maps for some of them."""
        sources = examples.sample_sources(_REPORT_IMAGES)
        rows = sources.inputs.rows
        generated = examples.decode_all(self.generate(model, examples, sources, self.search))
        pixels, inputs = examples.samples.pixels(rows), examples.take(rows[:_ATTENTION_IMAGES]).inputs[0]
        attention_maps = attention_pictures(
            cast(Captioner, model), examples.codec, examples.bos, inputs, pixels, generated[:_ATTENTION_IMAGES]
        )
        tiles = [
            Tile(image, text, "" if text == reference else reference, text == reference)
            for image, text, (reference,) in zip(pixels, generated, sources.references)
        ]
        caption = "for held-out images; where a caption differs, the reference is below"
        return [Picture("Captions", caption, tile_grid(tiles), wide=True), *attention_maps]


def shift_images(
    images: UInt8[np.ndarray, "B H W 3"], max_shift: int, seed: int, positions: Int[np.ndarray, "B"]
) -> UInt8[np.ndarray, "B H W 3"]:
    """Shift each image at random by up to `max_shift` pixels, repeating its edges: a function of the seed and the
    position in the stream.
    """
    padded = np.pad(images, ((0, 0), (max_shift, max_shift), (max_shift, max_shift), (0, 0)), mode="edge")
    out = np.empty_like(images)
    height, width = images.shape[1:3]
    for index, position in enumerate(positions.tolist()):
        row, column = np.random.default_rng([seed, position]).integers(0, 2 * max_shift + 1, 2).tolist()
        out[index] = padded[index, row : row + height, column : column + width]
    return out


def swap_tokens(
    ids: Int[Tensor, "B T"], layout: Layout, share: float, seed: int, positions: Int[np.ndarray, "B"]
) -> Int[Tensor, "B T"]:
    """Replace a `share` of the tokens by those of random other rows at the same position, where these have one: a
    function of the seed and the positions in the stream.
    """
    rng = np.random.default_rng([seed, *positions.tolist()])
    rows = torch.from_numpy(rng.integers(0, len(ids), ids.shape))
    is_swapped = torch.from_numpy(rng.random(ids.shape) < share) & layout.mask.gather(0, rows)
    return torch.where(is_swapped, ids.gather(0, rows), ids)
