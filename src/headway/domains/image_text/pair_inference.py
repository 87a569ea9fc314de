"""Inference with image-text models: matching texts and images, and captions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, cast

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor

from headway.codecs import Codec
from headway.codecs.image_processor import FORMATS
from headway.codecs.tokenizer import sequence_template
from headway.errors import UserError
from headway.formats.usage import Usage
from headway.generate import Hypothesis, SearchConfig, beam_search
from headway.generate.prompts import context_of, device_of, pad
from headway.io.arguments import Failures
from headway.io.summary_card import SummaryCard, summary_repr
from headway.learn.token_rows import LengthLimit, TokenRows, compute_in_batches, concatenate_rows, frame_rows
from headway.nn.models import Captioner, PatchEmbed, PatchEmbedConfig, Prompt, TwoTower, TwoTowerConfig, evaluation_mode
from headway.predict.image_inputs import Image, image_batches, processor_of

_TEXT_BATCH_TOKENS = 4096  # tokens
IMAGE_EXTENSIONS = (".jpg", ".tif", ".pgm", *(f".{name.lower()}" for name in FORMATS))


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
    """The embeddings of images, resized to the model's size. Images that cannot be read are skipped and added to
    `failures`, if passed. UserError for an invalid image, or a model (`source`) without image preprocessing.
    """
    size, embeddings = cast(PatchEmbedConfig, model.left.config.embed).size, [torch.empty(0, model.width)]
    with evaluation_mode(model), torch.inference_mode():
        for batch in image_batches(images, processor_of(usage, source), failures):
            if (shape := tuple(batch.shape[2:])) != size:
                raise UserError(
                    f"{source} resizes an image to {shape}, but takes {size}; resize your images to this size"
                )
            inputs = batch.to(device_of(model), model.scale.dtype)
            embeddings.append(model.vectors("left", inputs).float().cpu())
    return torch.cat(embeddings)


def check_texts(texts: Sequence[str]) -> None:
    """UserError for an empty text."""
    for index, text in enumerate(texts):
        if not text.strip():
            raise UserError(f"text {index + 1} of {len(texts)} is empty; fill it in or remove it")


def bos_and_eos(codec: Codec) -> tuple[int, int]:
    """The bos and eos tokens of a caption. UserError for a codec without them."""
    if codec.eos_id is None:
        raise UserError("the tokenizer has no eos token, so a caption would never end; use one with an eos token")
    return codec.eos_id if codec.bos_id is None else codec.bos_id, codec.eos_id


def search_captions(
    model: Captioner,
    batches: Iterable[Float32[Tensor, "B 3 H W"]],
    bos: int,
    eos: int,
    search: SearchConfig,
    max_length: int,
) -> list[list[Hypothesis]]:
    """The `n_best` captions of each image, of at most `max_length` tokens, best first."""
    context = context_of(model)
    limit = max_length if context is None else min(max_length, context - 1)
    parameter = cast(PatchEmbed, model.tower.embed).positions.table  # never quantised
    hypotheses = []
    for batch in batches:
        images = batch.to(device_of(model), parameter.dtype)
        prompt = Prompt(*pad([[bos]] * len(images), device_of(model)), images)
        hypotheses += beam_search(model, prompt, [limit] * len(images), eos, search)
    return hypotheses
