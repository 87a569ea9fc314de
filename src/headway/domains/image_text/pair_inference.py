"""Two-tower inference: matching texts and images."""

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

from headway.arguments import Failures, fill_failures, read_each
from headway.codecs import Codec
from headway.codecs.image_processor import FORMATS, ImageProcessor, read_image
from headway.codecs.tokenizer import sequence_template
from headway.errors import UserError
from headway.formats.usage import Usage
from headway.generate.prompts import device_of, evaluation_mode
from headway.learn.token_rows import LengthLimit, TokenRows, compute_in_batches, concatenate_rows, frame_rows
from headway.nn.models import PatchEmbedConfig, TwoTower, TwoTowerConfig
from headway.summary_card import SummaryCard, summary_repr

Image = str | Path | UInt8[np.ndarray, "H W 3"]
_BATCH_SIZE = 16  # images
_TEXT_BATCH_TOKENS = 4096  # tokens
_IMAGE_EXTENSIONS = (".jpg", ".tif", ".pgm", *(f".{name.lower()}" for name in FORMATS))


@summary_repr
class Matches(NamedTuple):
    """Similarities of images and texts, as cosines and as probabilities.

    `probabilities` are over the texts for each image (softmax, as in CLIP), or for each pair independently if the model
    was trained with a sigmoid loss (SigLIP).
    """

    similarities: Float[Tensor, "N M"]
    probabilities: Float[Tensor, "N M"]

    def card(self) -> SummaryCard:
        """The best text for each image, and in notebooks the probabilities of all texts."""
        table = self.probabilities.reshape(-1, self.probabilities.shape[-1] if self.probabilities.dim() else 1)
        rows = [{f"text {i + 1}": p for i, p in enumerate(row)} for row in table.tolist()]
        shape = " x ".join(map(str, self.probabilities.shape)) or "one image and one text"
        best = [max(range(len(row)), key=row.__getitem__) + 1 for row in table.tolist()]
        return SummaryCard("Matches", {"of": shape, "best text of each image": best}, rows)


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
    failures: Failures | None = None,
) -> Matches:
    """Cosines and probabilities of images (files, or their pixels) and texts.

    With `templates`, such as "a photo of a {}", a text's embedding is the mean over all templates (Radford et al. 2021,
    section 3.1.4). `source` names the model in messages; images that cannot be read are skipped and added to
    `failures`, if passed. Raises UserError without images or texts, for a template without {}, an empty or overlong
    text, an invalid image, or a model without image preprocessing.
    """
    if not images or not texts:
        raise UserError(f"there are {len(images)} images and {len(texts)} texts; pass at least one of each")
    prompts = fill_templates(texts, templates)
    text_embeddings = embed_texts(model, codec, prompts, truncate)  # before the images, which take longer
    image_embeddings = embed_images(model, usage, images, source, failures)
    text_embeddings = F.normalize(text_embeddings.unflatten(0, (len(texts), -1)).mean(1), dim=-1)
    with torch.inference_mode():
        logits = model.logits(image_embeddings.to(device_of(model)), text_embeddings.to(device_of(model))).float().cpu()
    return Matches(image_embeddings @ text_embeddings.T, logits.softmax(-1) if model.bias is None else logits.sigmoid())


def fill_templates(texts: Sequence[str], templates: Sequence[str]) -> list[str]:
    """Every text in every template, text by text."""
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
    failures: Failures | None = None,
) -> Float[Tensor, "N E"]:
    """A unit-length embedding in the shared space for each image or text. A string that is the path of an image file
    stands for the image. Images that cannot be read are skipped and added to `failures`, if passed.
    """
    image_indices = [index for index, item in enumerate(items) if is_image(item)]
    text_indices = [index for index in range(len(items)) if index not in set(image_indices)]
    embeddings = torch.empty(len(items), model.width)
    image_failures: Failures | None = None if failures is None else {}
    if text_indices:
        texts = [str(items[index]) for index in text_indices]
        check_texts(texts)
        embeddings[text_indices] = embed_texts(model, codec, texts, truncate)
    if image_indices:
        vectors = embed_images(model, usage, [items[index] for index in image_indices], source, image_failures)
        embeddings[image_indices] = fill_failures(vectors, image_failures or {}, len(image_indices))
    if failures is None or not image_failures:
        return embeddings
    failures.update({image_indices[position]: error for position, error in image_failures.items()})
    return embeddings[[index for index in range(len(items)) if index not in failures]]


def is_image(item: str | Image) -> bool:
    if isinstance(item, str):
        return item.lower().endswith(_IMAGE_EXTENSIONS) and Path(item).is_file()
    return True


def text_rows(
    codec: Codec,
    texts: Sequence[str],
    config: TwoTowerConfig,
    truncate: bool,
    locate: Callable[[int], str] = lambda row: f"text {row + 1}",
) -> TokenRows:
    """Encoded texts, padded to the context if the model needs it. UserError for a text that is too long, named by
    `locate`, unless truncation is on.
    """
    frame, limit = sequence_template(codec), LengthLimit(config.context, truncate)
    rows = frame_rows(frame, codec.encode_batch(texts), None, limit, locate)
    if config.filler is None or config.context is None:
        return rows
    id_rows = [rows.ids[start:stop].tolist() for start, stop in zip(rows.offsets, rows.offsets[1:])]
    padding = [config.filler] * config.context
    return TokenRows(*concatenate_rows([[*ids, *padding[len(ids) :]] for ids in id_rows]))


def text_vectors(model: TwoTower, rows: TokenRows, chosen: np.ndarray) -> Float[Tensor, "N E"]:
    """The embeddings of the chosen rows."""
    return compute_in_batches(model, rows, chosen, lambda inputs: model.vectors("right", *inputs), _TEXT_BATCH_TOKENS)


def embed_texts(model: TwoTower, codec: Codec, texts: Sequence[str], truncate: bool) -> Float[Tensor, "N E"]:
    rows = text_rows(codec, texts, model.config, truncate)
    return text_vectors(model, rows, np.arange(len(rows)))


def embed_images(
    model: TwoTower, usage: Usage, images: Sequence[Image], source: str, failures: Failures | None = None
) -> Float[Tensor, "N E"]:
    """The embeddings of images, resized to the model's size; `failures` as in `match`."""
    if not usage.processor:
        raise UserError(f"{source} has no preprocessor_config.json, which defines the image preprocessing; add it")
    processor = ImageProcessor.read(usage.processor, f"{source}: preprocessor_config.json")
    size, embeddings = cast(PatchEmbedConfig, model.left.config.embed).size, [torch.empty(0, model.width)]
    check_images(images)
    with evaluation_mode(model), torch.inference_mode():
        inputs_of = read_each(images, lambda _, image: processor(pixels_of(image)), failures)
        while batch := list(islice(inputs_of, _BATCH_SIZE)):
            shape = next((array.shape[1:] for array in batch if array.shape[1:] != size), None)
            if shape is not None:
                raise UserError(
                    f"{source} resizes an image to {shape}, but takes {size}; resize your images to this size"
                )
            inputs = torch.from_numpy(np.stack(batch)).to(device_of(model), model.scale.dtype)
            embeddings.append(model.vectors("left", inputs).float().cpu())
    return torch.cat(embeddings)


def check_texts(texts: Sequence[str]) -> None:
    """UserError for an empty text."""
    for index, text in enumerate(texts):
        if not text.strip():
            raise UserError(f"text {index + 1} of {len(texts)} is empty; fill it in or remove it")


def check_images(images: Sequence[Image]) -> None:
    """Raises UserError for values that cannot be images, before reading the first."""
    for index, image in enumerate(images):
        if isinstance(image, np.ndarray):
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
                raise UserError(
                    f"image {index + 1} is {image.dtype} of shape {image.shape}; use uint8 [height, width, 3]"
                )
        elif not isinstance(image, (str, Path)):
            raise UserError(f"image {index + 1} is a {type(image).__name__}; pass paths of image files, or pixels")


def pixels_of(image: Image) -> UInt8[np.ndarray, "H W 3"]:
    """The pixels of a file, or of an array. UserError for a file that cannot be read."""
    if isinstance(image, np.ndarray):
        return image
    if not Path(image).is_file():
        raise UserError(f"{image} is not a file; pass paths of image files")
    return read_image(image)
