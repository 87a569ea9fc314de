"""Emoji with names and keywords in five languages, and baselines that do not learn."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8
from torch import nn

from headway.config_kinds import register
from headway.data.input_files import File
from headway.domains.image_text.captioned_images import Captions
from headway.domains.image_text.task import RECALL_AT, ImageTextConfig, ImageTextDataset, ImageTextMatching
from headway.errors import UserError
from headway.io.files import open_file
from headway.io.json_files import parse_json
from headway.learn import Recipe, Task

_THUMBNAIL = 16  # pixels per side for comparing images, as block means
_NGRAM = 3
LANGUAGES = ("en", "de", "fr", "es", "cs")
_NEUTRAL_PERSON = {"1f468": "1f9d1", "1f469": "1f9d1"}  # man, woman: person
_VARIANTS = ("200d", "fe0f", "2640", "2642", *(f"1f3f{digit}" for digit in "bcdef"))  # joiners, genders, skins
_PERSON_WORDS = re.compile(
    r"\b(mx|mrs|man|woman|person|men|women|people|boy|girl|male|female)\b\.?|facing right", re.IGNORECASE
)


@register("emoji")
@dataclass(frozen=True)
class EmojiPairsConfig(ImageTextConfig):
    """Names are evaluated in each language; keywords are only for training. Variants of an emoji are in the same
    split.
    """

    prepared_kinds: ClassVar[tuple[str, ...]] = ()

    def open(self, recipe: Recipe, data: Sequence[Path] | None, workspace: Path) -> Task:
        return Task(self.dataset(recipe, lambda: read_emoji(recipe.files(data)), workspace), EmojiMatching(self))


class EmojiMatching(ImageTextMatching):
    """Adds baselines on the final split: chance, and nearest neighbours in pixels."""

    def evaluate(
        self, model: nn.Module, examples: ImageTextDataset, split: str, limit: int | None = None
    ) -> dict[str, Any]:
        scores = super().evaluate(model, examples, split, limit)
        if split != examples.final_split:
            return scores
        image_sets = examples.of(split).limited_to(limit).rows, examples.of("train").rows
        compared, captions = [], examples.captions
        for images in image_sets:
            text_rows, image_of = examples.query_rows(images)
            texts, languages = (
                [column[row] for row in text_rows] for column in (captions.texts, captions.languages or [])
            )
            compared.append(ComparedImages(examples.decoded.pixels[images], texts, image_of, languages))
        return scores | recall_baselines(*compared)


def read_emoji(paths: Sequence[Path]) -> Captions:
    """Read the .zip file with images and the .json file with names. UserError for other formats."""
    matches = {suffix: [path for path in paths if path.suffix == suffix] for suffix in (".zip", ".json")}
    for suffix, suffix_paths in matches.items():
        if len(suffix_paths) != 1:
            raise UserError(
                f"{len(suffix_paths)} of {len(paths)} files are {suffix}; pass one .zip with images and one .json"
            )
    [archive], [names] = matches[".zip"], matches[".json"]
    try:
        with open_file(names) as file:
            entries: list[dict[str, Any]] = parse_json(file.read())
        codes = {entry["file"].removesuffix(".png"): entry["en"]["name"] for entry in entries}
        images = [File(archive, entry["file"]) for entry in entries]
        groups = [group_of(code, codes) for code in codes]
        rows: list[tuple[int, str, str, bool]] = []  # names, and keywords that are not names: image, text, ...
        for index, entry in enumerate(entries):
            for language in LANGUAGES:
                name = entry[language]["name"]
                keywords = entry[language]["keywords"]
                rows.append((index, name, language, True))
                rows += [(index, word, language, False) for word in keywords if word != name]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{names} is not a list of emoji with names ({error!r}); download the data again") from None
    image_of, texts, languages, is_query = (list(column) for column in zip(*rows))
    locations = [f"{names}: {entries[image]['file']}" for image in image_of]
    no_splits = np.zeros(len(images), np.uint8)
    return Captions(images, texts, np.array(image_of), locations, no_splits, np.array(is_query), languages, groups)


def group_of(code: str, names: Mapping[str, str]) -> str:
    """What an emoji's variants have in common: the English name of the plain one, without the person.

    `code` is the hexadecimal code point of each character, joined by hyphens; `names` maps the existing codes.
    """
    parts = [_NEUTRAL_PERSON.get(part, part) for part in code.split("-") if part not in _VARIANTS]
    base_name = next((name for name in ("-200d-".join(parts), "-".join(parts)) if name in names), code)
    name = " ".join(_PERSON_WORDS.sub(" ", names[base_name].partition(":")[0]).split())
    return name.lower() or "person"


class ComparedImages(NamedTuple):
    """Images with their texts; text n belongs to image `of[n]`."""

    pixels: UInt8[np.ndarray, "M H W 3"]
    texts: Sequence[str]
    image_of: Int[np.ndarray, "N"]
    languages: Sequence[str]


def recall_baselines(queries: ComparedImages, training: ComparedImages) -> dict[str, float]:
    """`chance_at_K` and `neighbour_at_K`: recall of an image's texts among all texts in their language.

    The neighbour is the training image with the nearest pixels. Its text ranks the candidates by the cosine of their
    character trigram counts; ties are in random order, and the rates are expected values.
    """
    query_thumbnails, train_thumbnails = _block_means(queries.pixels), _block_means(training.pixels)
    nearest = ((train_thumbnails**2).sum(1)[None] - 2 * query_thumbnails @ train_thumbnails.T).argmin(1)
    rates: dict[str, list[float]] = {f"{kind}_at_{k}": [] for kind in ("chance", "neighbour") for k in RECALL_AT}
    query_languages, train_languages = np.array(queries.languages), np.array(training.languages)
    for language in np.unique(query_languages):
        query_rows = np.flatnonzero(query_languages == language)
        train_rows = np.flatnonzero(train_languages == language)
        texts = [training.texts[row] for row in train_rows.tolist()]
        padded = [f" {text.casefold()} " for text in (*texts, *(queries.texts[row] for row in query_rows.tolist()))]
        counts = [
            Counter(text[start : start + _NGRAM] for start in range(max(1, len(text) - _NGRAM + 1))) for text in padded
        ]
        ngram_index = {gram: index for index, gram in enumerate(sorted(set().union(*counts)))}
        table = np.zeros((len(counts), len(ngram_index)), np.float32)
        for row, ngram_counts in enumerate(counts):
            table[row, [ngram_index[gram] for gram in ngram_counts]] = list(ngram_counts.values())
        table /= np.maximum(np.linalg.norm(table, axis=1, keepdims=True), 1e-9)
        similarity = np.round(table[: len(texts)] @ table[len(texts) :].T, 5)
        row_of_image = dict(zip(training.image_of[train_rows].tolist(), range(len(train_rows))))
        for column, row in enumerate(query_rows.tolist()):
            neighbour = row_of_image.get(int(nearest[queries.image_of[row]]))
            scores = np.zeros(len(query_rows)) if neighbour is None else similarity[neighbour]
            num_better, num_equal = (scores > scores[column]).sum(), (scores == scores[column]).sum()
            for k in RECALL_AT:
                rates[f"chance_at_{k}"].append(min(1.0, k / len(query_rows)))
                rates[f"neighbour_at_{k}"].append(float(np.clip((k - num_better) / num_equal, 0, 1)))
    return {name: float(np.mean(values)) for name, values in rates.items()}


def _block_means(pixels: UInt8[np.ndarray, "M H W 3"]) -> Float[np.ndarray, "M P"]:
    count, height, width = pixels.shape[:3]
    rows, columns = max(1, height // _THUMBNAIL), max(1, width // _THUMBNAIL)
    cropped = pixels[:, : height // rows * rows, : width // columns * columns].astype(np.float32)
    return cropped.reshape(count, height // rows, rows, width // columns, columns, 3).mean((2, 4)).reshape(count, -1)
