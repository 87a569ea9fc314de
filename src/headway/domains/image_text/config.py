"""The settings of the task, and what it refuses."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from headway.codecs import END_OF_TEXT, FILE, Codec, Kind, load_codec, sentence_codec
from headway.codecs.styles import frame
from headway.config import register
from headway.data import SplitConfig
from headway.domains.image_text.augment import AugmentConfig
from headway.domains.image_text.data import Columns, read_captions
from headway.errors import ConfigError
from headway.models import ModelConfig, PatchEmbedConfig, TwoTowerConfig
from headway.train import Recipe, TaskConfig

if TYPE_CHECKING:
    from headway.domains.image_text.task import ImageText

SPECIAL = ("<|startoftext|>", END_OF_TEXT)  # CLIP's


@register("image_text")
@dataclass(frozen=True)
class ImageTextConfig(TaskConfig):
    """Find the texts of an image among those of others, and the image of a text (Radford et al. 2021).

    `image`, `caption` and `language` are the names of the columns; the last may be missing. `loss` is CLIP's softmax or
    SigLIP's sigmoid, which wants a model with a bias. A batch is train.batch_size images, each with so many `captions`
    of its own, drawn anew each epoch; as the loss couples them, train.accumulate is 1, and `at_once` images or texts
    are computed together, the others again on the way back. exp(scale) is held to `scale_limit`.

    `codec`, `size` (at most) and `lowercase` are for the codec that is trained where the model starts from scratch. A
    text of more tokens than the model reads is an error, or cut with `truncate`. An image that is corrupt is an error,
    or left out and counted with `skip_bad`. `split` says what is held out where no table is named for it.
    """

    image: str = "path"  # column of the images
    caption: str = "caption"  # column of the texts
    language: str = "language"  # column of the language, which may be missing
    loss: Literal["softmax", "sigmoid"] = "softmax"  # CLIP's, or SigLIP's
    captions: int = 1  # texts of each image in a batch
    at_once: int | None = None  # images or texts computed together; none: all
    scale_limit: float | None = 100.0  # the most that exp(scale) may be
    augment: AugmentConfig = AugmentConfig()  # what training changes of images
    codec: Kind = "bpe"  # kind of the tokenizer that is trained
    size: int | None = 2000  # most symbols
    lowercase: bool = True  # whether texts are lower-cased
    truncate: bool = False  # cut texts that are too long
    skip_bad: bool = False  # leave corrupt images out, and count them
    split: SplitConfig = SplitConfig(validation=0.1, test=0.1)  # what is held out

    def __post_init__(self) -> None:
        for name in ("captions", "at_once"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"task.{name} is {value}; give 1 or more")
        if self.scale_limit is not None and self.scale_limit <= 0:
            raise ConfigError(f"task.scale_limit is {self.scale_limit}; give a number above 0, such as 100, or none")

    def open(self, recipe: Recipe, data: Sequence[Path] | None, workspace: Path) -> ImageText:
        """Raises UserError for data that cannot be read, hold too little, or do not fit the model."""
        from headway.domains.image_text.task import ImageText

        self.check(recipe)
        paths = recipe.files(data)
        columns = Columns(self.image, self.caption, self.language)
        return ImageText(self, recipe, read_captions(paths, columns), workspace)

    def check(self, recipe: Recipe) -> None:
        """Raises ConfigError for settings that do not go together."""
        train, model = recipe.train, check_towers(recipe.model)
        if train.accumulate != 1:
            raise ConfigError(
                f"train.accumulate is {train.accumulate}, but the loss couples the pairs of a batch, so that parts of "
                "it are not the whole; set train.accumulate to 1, and task.at_once to what fits into memory"
            )
        if train.batch_size is None or train.batch_size < 2:
            raise ConfigError(f"train.batch_size is {train.batch_size}; give the images of a batch, 2 or more")
        if self.loss == "sigmoid" and model.bias is None:
            raise ConfigError(
                "task.loss sigmoid learns a bias, and the model has none; set model.bias to -10 and model.scale to "
                "2.3, or task.loss to softmax"
            )

    def codec_of(self, texts: Iterable[str], workspace: Path) -> Codec:
        """The codec of the run or of the model it starts from; else one made of the texts that are trained on."""
        if (workspace / FILE).exists():
            return load_codec(workspace)
        codec = sentence_codec(self.codec, texts, self.size, SPECIAL, self.lowercase)
        frame(codec.tokenizer, "clip", codec.marks, {})  # for others who read the tokenizer.json
        return codec


def check_towers(model: ModelConfig) -> TwoTowerConfig:
    """Raises ConfigError for a model that is no pair of towers, an image's and a text's."""
    if not isinstance(model, TwoTowerConfig) or not isinstance(model.left.embed, PatchEmbedConfig):
        raise ConfigError(
            f"this task needs a tower of images and one of texts, and the model is a {type(model).__name__}; start "
            "from a CLIP or SigLIP, or take the model of the recipe"
        )
    return model
