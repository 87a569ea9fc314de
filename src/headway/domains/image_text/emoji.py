"""Emoji with their names and keywords in five languages, and how well one can do without learning."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from headway.config import register
from headway.data.files import File
from headway.domains.image_text.baseline import baselines
from headway.domains.image_text.config import ImageTextConfig
from headway.domains.image_text.data import Captions
from headway.domains.image_text.task import ImageText
from headway.errors import UserError
from headway.train import Recipe

LANGUAGES = ("en", "de", "fr", "es", "cs")
_ANYONE = {"1f468": "1f9d1", "1f469": "1f9d1"}  # a man, a woman: a person
_VARIANTS = ("200d", "fe0f", "2640", "2642", *(f"1f3f{digit}" for digit in "bcdef"))  # joiners, genders, skins
_WHO = re.compile(r"\b(mx|mrs|man|woman|person|men|women|people|boy|girl|male|female)\b\.?|facing right", re.IGNORECASE)


@register("emoji")
@dataclass(frozen=True)
class EmojiConfig(ImageTextConfig):
    """Names are asked for in each language, keywords only learnt from. Variants of an emoji are on one side."""

    def open(self, recipe: Recipe, data: Sequence[Path] | None, workspace: Path) -> Emoji:
        self.check(recipe)
        paths = recipe.files(data)
        return Emoji(self, recipe, read_emoji(paths), workspace)


class Emoji(ImageText):
    """Beside what the model does, `evaluate` says of the final split what chance gives, and neighbours in pixels."""

    def evaluate(self, model: nn.Module, split: str = "validation", limit: int | None = None) -> dict[str, Any]:
        found = super().evaluate(model, split, limit)
        if split != self.final_split:
            return found
        images, train = self.numbers(split)[:limit], self.numbers("train")
        (texts, of), (known, owner) = self.asked(images), self.asked(train)
        pixels, (said, spoken) = self.pictures_of.pixels, (self.captions.texts, self.captions.languages or [])
        return found | baselines(
            (pixels[images], [said[row] for row in texts], of, [spoken[row] for row in texts]),
            (pixels[train], [said[row] for row in known], owner, [spoken[row] for row in known]),
        )


def read_emoji(paths: Sequence[Path]) -> Captions:
    """The .zip of images and the .json that names them. UserError for what is not of this form."""
    archive, names = (_one(paths, suffix) for suffix in (".zip", ".json"))
    try:
        listed: list[dict[str, Any]] = json.loads(names.read_text(encoding="utf-8"))
        codes = {_code(each): each["en"]["name"] for each in listed}
        images = [File(archive, each["file"]) for each in listed]
        groups = [group_of(code, codes) for code in codes]
        rows = [row for number, each in enumerate(listed) for row in _rows(number, each)]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{names} is not a list of emoji with names ({error!r}); get the set again") from None
    of, texts, languages, asked = (list(column) for column in zip(*rows))
    places = [f"{names}: {listed[image]['file']}" for image in of]
    none = np.zeros(len(images), np.uint8)
    return Captions(images, texts, np.array(of), places, none, np.array(asked), languages, groups)


def _one(paths: Sequence[Path], suffix: str) -> Path:
    found = [path for path in paths if path.suffix == suffix]
    if len(found) != 1:
        raise UserError(f"{len(found)} of {len(paths)} files are {suffix}; give one .zip of images and one .json")
    return found[0]


def _code(emoji: Mapping[str, Any]) -> str:
    return emoji["file"].removesuffix(".png")


def _rows(number: int, emoji: Mapping[str, Any]) -> list[tuple[int, str, str, bool]]:
    """Its names, and each keyword that is none of them: image, text, language, asked."""
    found = []
    for language in LANGUAGES:
        name = emoji[language]["name"]
        found.append((number, name, language, True))
        found += [(number, word, language, False) for word in emoji[language]["keywords"] if word != name]
    return found


def group_of(code: str, names: Mapping[str, str]) -> str:
    """What variants of an emoji have in common: the English name of the plain one without whom it shows.

    `code` is the hexadecimal number of each character, with hyphens between them; `names` has those that there are.
    """
    parts = [_ANYONE.get(part, part) for part in code.split("-") if part not in _VARIANTS]
    plain = next((name for name in ("-200d-".join(parts), "-".join(parts)) if name in names), code)
    left = " ".join(_WHO.sub(" ", names[plain].partition(":")[0]).split())
    return left.lower() or "person"
