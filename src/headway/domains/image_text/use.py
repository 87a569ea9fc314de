"""Two-tower inference: matching of texts and images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from headway.card import Card, shows
from headway.codecs import Codec
from headway.codecs.processor import FORMATS, ImageProcessor, read_image
from headway.codecs.tokenizer import frame_of
from headway.errors import UserError
from headway.formats.usage import Usage
from headway.generate.prompts import device_of, evaluating
from headway.given import Failed, each, filled
from headway.learn.rows import FramedRows, Limit, flat, framed, said_of
from headway.nn.models import PatchEmbedConfig, TwoTower, TwoTowerConfig

Image = str | Path | UInt8[np.ndarray, "H W 3"]
_AT_ONCE = 16  # images
_TEXTS_AT_ONCE = 4096  # tokens
_ENDINGS = (".jpg", ".tif", ".pgm", *(f".{name.lower()}" for name in FORMATS))


@shows
class Matches(NamedTuple):
    """Similarities of images and texts: cosines, and probabilities.

    `probabilities` are over the texts for each image (softmax, as in CLIP), or for each pair independently if the model
    was trained with a sigmoid loss (SigLIP).
    """

    similarities: Float[Tensor, "N M"]
    probabilities: Float[Tensor, "N M"]

    def card(self) -> Card:
        """The best text of each image, and in notebooks the probabilities of all."""
        table = self.probabilities.reshape(-1, self.probabilities.shape[-1] if self.probabilities.dim() else 1)
        rows = [{f"text {i + 1}": p for i, p in enumerate(row)} for row in table.tolist()]
        shape = " x ".join(map(str, self.probabilities.shape)) or "one image and one text"
        best = [max(range(len(row)), key=row.__getitem__) + 1 for row in table.tolist()]
        return Card("Matches", {"of": shape, "best text of each image": best}, rows)


def match(
    model: TwoTower,
    codec: Codec,
    usage: Usage,
    images: Sequence[Image],
    texts: Sequence[str],
    templates: Sequence[str] = (),
    truncate: bool = False,
    *,
    source: str,
    failed: Failed | None = None,
) -> Matches:
    """Cosines and probabilities of images (files, or their pixels) and texts.

    With `templates`, such as "a photo of a {}", a text's embedding is the mean over its templates (Radford et al. 2021,
    section 3.1.4). `source` names the model in messages; images that cannot be read are left out and added to
    `failures`, if passed. Raises UserError without images or texts, for a template without {}, an empty or too long
    text, an invalid image, or a model without image preprocessing.
    """
    if not images or not texts:
        raise UserError(f"there are {len(images)} images and {len(texts)} texts; pass at least one of each")
    said = named(texts, templates)
    right = embed_texts(model, codec, said, truncate)  # before the images, which take longer
    left = embed_images(model, usage, images, source, failed)
    right = F.normalize(right.unflatten(0, (len(texts), -1)).mean(1), dim=-1)
    with torch.inference_mode():
        logits = model.logits(left.to(device_of(model)), right.to(device_of(model))).float().cpu()
    return Matches(left @ right.T, logits.softmax(-1) if model.bias is None else logits.sigmoid())


def named(texts: Sequence[str], templates: Sequence[str]) -> list[str]:
    """Each text in each template, text by text."""
    for template in templates:
        if template.count("{}") != 1:
            raise UserError(f'the template {template!r} needs exactly one {{}}; write it as "a photo of a {{}}"')
    check_texts(texts)
    return [template.replace("{}", text) for text in texts for template in templates or ("{}",)]


def embed(
    model: TwoTower,
    codec: Codec,
    usage: Usage,
    items: Sequence[str | Image],
    truncate: bool,
    source: str,
    failed: Failed | None = None,
) -> Float[Tensor, "N E"]:
    """An embedding of unit length in the shared space for each image or text. A string that is the path of an image
    file means the image. Images that cannot be read are left out and added to `failures`, if passed.
    """
    seen = [number for number, item in enumerate(items) if is_image(item)]
    read = [number for number in range(len(items)) if number not in set(seen)]
    found = torch.empty(len(items), model.width)
    wrong: Failed | None = None if failed is None else {}
    if read:
        texts = [str(items[number]) for number in read]
        check_texts(texts)
        found[read] = embed_texts(model, codec, texts, truncate)
    if seen:
        vectors = embed_images(model, usage, [items[number] for number in seen], source, wrong)
        found[seen] = filled(vectors, wrong or {}, len(seen))
    if failed is None or not wrong:
        return found
    failed.update({seen[place]: error for place, error in wrong.items()})
    return found[[number for number in range(len(items)) if number not in failed]]


def is_image(item: str | Image) -> bool:
    if isinstance(item, str):
        return item.lower().endswith(_ENDINGS) and Path(item).is_file()
    return True


def text_rows(
    codec: Codec,
    texts: Sequence[str],
    config: TwoTowerConfig,
    truncate: bool,
    place: Callable[[int], str] = lambda row: f"text {row + 1}",
) -> FramedRows:
    """Encoded texts, padded to the context if the model needs it. UserError for one that is too long, named by
    `locate`, unless truncation is on.
    """
    frame, limit = frame_of(codec), Limit(config.context, truncate)
    rows = framed(frame, codec.encode_batch(texts), None, limit, place)
    if config.filler is None or config.context is None:
        return rows
    each = [rows.ids[start:stop].tolist() for start, stop in zip(rows.offsets, rows.offsets[1:])]
    filling = [config.filler] * config.context
    return FramedRows(*flat([[*ids, *filling[len(ids) :]] for ids in each]))


def text_vectors(model: TwoTower, rows: FramedRows, chosen: np.ndarray) -> Float[Tensor, "N E"]:
    """The embeddings of chosen rows."""
    return said_of(model, rows, chosen, lambda inputs: model.vectors("right", *inputs), _TEXTS_AT_ONCE)


def embed_texts(model: TwoTower, codec: Codec, texts: Sequence[str], truncate: bool) -> Float[Tensor, "N E"]:
    rows = text_rows(codec, texts, model.config, truncate)
    return text_vectors(model, rows, np.arange(len(rows)))


def embed_images(
    model: TwoTower, usage: Usage, images: Sequence[Image], source: str, failed: Failed | None = None
) -> Float[Tensor, "N E"]:
    """The embeddings of images, resized to the model's size; `failures` as in `match`."""
    if not usage.processor:
        raise UserError(f"{source} has no preprocessor_config.json, which defines the image preprocessing; add it")
    processor = ImageProcessor.read(usage.processor, f"{source}: preprocessor_config.json")
    size, found = cast(PatchEmbedConfig, model.left.config.embed).size, [torch.empty(0, model.width)]
    check_images(images)
    with evaluating(model), torch.inference_mode():
        inputs_of = each(images, lambda _, image: processor(pixels_of(image)), failed)
        while read := list(islice(inputs_of, _AT_ONCE)):
            shape = next((one.shape[1:] for one in read if one.shape[1:] != size), None)
            if shape is not None:
                raise UserError(f"{source} resizes an image to {shape}, but takes {size}; resize your images to that")
            inputs = torch.from_numpy(np.stack(read)).to(device_of(model), model.scale.dtype)
            found.append(model.vectors("left", inputs).float().cpu())
    return torch.cat(found)


def check_texts(texts: Sequence[str]) -> None:
    """UserError for an empty text."""
    for number, text in enumerate(texts):
        if not text.strip():
            raise UserError(f"text {number + 1} of {len(texts)} is empty; fill it in or leave it out")


def check_images(images: Sequence[Image]) -> None:
    """Raises UserError for values that cannot be images, before reading the first."""
    for number, image in enumerate(images):
        if isinstance(image, np.ndarray):
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
                raise UserError(
                    f"image {number + 1} is {image.dtype} of shape {image.shape}; use uint8 [height, width, 3]"
                )
        elif not isinstance(image, (str, Path)):
            raise UserError(f"image {number + 1} is a {type(image).__name__}; pass paths of image files, or pixels")


def pixels_of(image: Image) -> UInt8[np.ndarray, "H W 3"]:
    """The pixels of a file, or of an array. UserError for a file that cannot be read."""
    if isinstance(image, np.ndarray):
        return image
    if not Path(image).is_file():
        raise UserError(f"{image} is not a file; pass paths of image files")
    return read_image(image)
