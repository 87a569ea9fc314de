"""Emoji with their names and keywords in five languages, and baselines without learning."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8
from torch import nn

from headway.config import register
from headway.data.files import File
from headway.domains.image_text.data import Captions
from headway.domains.image_text.recall import AT
from headway.domains.image_text.task import CaptionedImages, ImageTextConfig, Matching
from headway.errors import UserError
from headway.learn import Recipe, Task
from headway.parsing import parse_json
from headway.received import opened

_SIDE = 16  # pixels per side for comparing images, as block means
_GRAM = 3
LANGUAGES = ("en", "de", "fr", "es", "cs")
_ANYONE = {"1f468": "1f9d1", "1f469": "1f9d1"}  # a man, a woman: a person
_VARIANTS = ("200d", "fe0f", "2640", "2642", *(f"1f3f{digit}" for digit in "bcdef"))  # joiners, genders, skins
_WHO = re.compile(r"\b(mx|mrs|man|woman|person|men|women|people|boy|girl|male|female)\b\.?|facing right", re.IGNORECASE)


@register("emoji")
@dataclass(frozen=True)
class EmojiPairsConfig(ImageTextConfig):
    """Names are evaluated in each language; keywords are for training only. Variants of an emoji are in one split."""

    def open(self, recipe: Recipe, data: Sequence[Path] | None, workspace: Path) -> Task:
        size = self.check(recipe)
        images = CaptionedImages(self, recipe, size, read_emoji(recipe.files(data)), workspace)
        return Task(images, EmojiMatching(self))


class EmojiMatching(Matching):
    """Adds baselines on the final split: chance, and nearest neighbours in pixels."""

    def judge(
        self, model: nn.Module, examples: CaptionedImages, split: str, limit: int | None = None
    ) -> dict[str, Any]:
        found = super().judge(model, examples, split, limit)
        if split != examples.final_split:
            return found
        sides = examples.of(split).some(limit).rows, examples.of("train").rows
        return found | baselines(*(_side(examples, images) for images in sides))


def _side(examples: CaptionedImages, images: np.ndarray) -> ComparedImages:
    (texts, of), captions = examples.asked(images), examples.captions
    said, spoken = ([column[row] for row in texts] for column in (captions.texts, captions.languages or []))
    return ComparedImages(examples.pictures.pixels[images], said, of, spoken)


def read_emoji(paths: Sequence[Path]) -> Captions:
    """Read the .zip of images and the .json of names. UserError for other formats."""
    archive, names = (_one(paths, suffix) for suffix in (".zip", ".json"))
    try:
        with opened(names) as file:
            listed: list[dict[str, Any]] = parse_json(file.read())
        codes = {_code(each): each["en"]["name"] for each in listed}
        images = [File(archive, each["file"]) for each in listed]
        groups = [group_of(code, codes) for code in codes]
        rows = [row for number, each in enumerate(listed) for row in _rows(number, each)]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{names} is not a list of emoji with names ({error!r}); download the set again") from None
    of, texts, languages, asked = (list(column) for column in zip(*rows))
    places = [f"{names}: {listed[image]['file']}" for image in of]
    none = np.zeros(len(images), np.uint8)
    return Captions(images, texts, np.array(of), places, none, np.array(asked), languages, groups)


def _one(paths: Sequence[Path], suffix: str) -> Path:
    found = [path for path in paths if path.suffix == suffix]
    if len(found) != 1:
        raise UserError(f"{len(found)} of {len(paths)} files are {suffix}; pass one .zip of images and one .json")
    return found[0]


def _code(emoji: Mapping[str, Any]) -> str:
    return emoji["file"].removesuffix(".png")


def _rows(number: int, emoji: Mapping[str, Any]) -> list[tuple[int, str, str, bool]]:
    """Its names, and each keyword that is not a name: image, text, language, is_query."""
    found = []
    for language in LANGUAGES:
        name = emoji[language]["name"]
        found.append((number, name, language, True))
        found += [(number, word, language, False) for word in emoji[language]["keywords"] if word != name]
    return found


def group_of(code: str, names: Mapping[str, str]) -> str:
    """The common part of an emoji's variants: the English name of the plain one without the person.

    `code` is the hexadecimal number of each character, joined by hyphens; `names` maps the existing codes.
    """
    parts = [_ANYONE.get(part, part) for part in code.split("-") if part not in _VARIANTS]
    plain = next((name for name in ("-200d-".join(parts), "-".join(parts)) if name in names), code)
    left = " ".join(_WHO.sub(" ", names[plain].partition(":")[0]).split())
    return left.lower() or "person"


class ComparedImages(NamedTuple):
    """Images with their texts; text n belongs to image `of[n]`."""

    pixels: UInt8[np.ndarray, "M H W 3"]
    texts: Sequence[str]
    of: Int[np.ndarray, "N"]
    languages: Sequence[str]


def baselines(asked: ComparedImages, known: ComparedImages) -> dict[str, float]:
    """`chance_at_K` and `neighbour_at_K`: recall of an image's texts among all of its language.

    The neighbour is the training image with the nearest pixels. Its text ranks the candidates by the cosine of their
    character trigram counts; ties are in random order, and the rates are expected values.
    """
    looks, theirs = _small(asked.pixels), _small(known.pixels)
    nearest = ((theirs**2).sum(1)[None] - 2 * looks @ theirs.T).argmin(1)
    found: dict[str, list[float]] = {f"{kind}_at_{k}": [] for kind in ("chance", "neighbour") for k in AT}
    spoken, there = np.array(asked.languages), np.array(known.languages)
    for language in np.unique(spoken):
        some, others = np.flatnonzero(spoken == language), np.flatnonzero(there == language)
        similar = _overlap([known.texts[row] for row in others.tolist()], [asked.texts[row] for row in some.tolist()])
        place = dict(zip(known.of[others].tolist(), range(len(others))))
        for column, row in enumerate(some.tolist()):
            neighbour = place.get(int(nearest[asked.of[row]]))
            scores = np.zeros(len(some)) if neighbour is None else similar[neighbour]
            better, equal = (scores > scores[column]).sum(), (scores == scores[column]).sum()
            for k in AT:
                found[f"chance_at_{k}"].append(min(1.0, k / len(some)))
                found[f"neighbour_at_{k}"].append(float(np.clip((k - better) / equal, 0, 1)))
    return {name: float(np.mean(values)) for name, values in found.items()}


def _small(pixels: UInt8[np.ndarray, "M H W 3"]) -> Float[np.ndarray, "M P"]:
    count, high, wide = pixels.shape[:3]
    rows, columns = max(1, high // _SIDE), max(1, wide // _SIDE)
    cut = pixels[:, : high // rows * rows, : wide // columns * columns].astype(np.float32)
    return cut.reshape(count, high // rows, rows, wide // columns, columns, 3).mean((2, 4)).reshape(count, -1)


def _overlap(known: Sequence[str], asked: Sequence[str]) -> Float[np.ndarray, "K N"]:
    framed = [f" {text.casefold()} " for text in (*known, *asked)]
    counts = [Counter(text[start : start + _GRAM] for start in range(max(1, len(text) - _GRAM + 1))) for text in framed]
    names = {gram: number for number, gram in enumerate(sorted({gram for each in counts for gram in each}))}
    table = np.zeros((len(counts), len(names)), np.float32)
    for row, each in enumerate(counts):
        table[row, [names[gram] for gram in each]] = list(each.values())
    table /= np.maximum(np.linalg.norm(table, axis=1, keepdims=True), 1e-9)
    return np.round(table[: len(known)] @ table[len(known) :].T, 5)
