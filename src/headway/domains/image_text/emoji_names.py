"""Emoji and their names in several languages, as the shared data set has them: one zip of pictures and a JSON file."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import UInt8

from headway.checkpoints.durable import read_json
from headway.codecs.images import pillow
from headway.errors import UserError

Language = Literal["en", "de", "fr", "es", "cs"]
CAPTIONS, PICTURES = "captions.json", "noto-emoji-64px.zip"
# Parts of an emoji's code that make a variant of it: the tones of skin, joiner, the look as an emoji, the two genders.
_VARIANTS = {"1f3fb", "1f3fc", "1f3fd", "1f3fe", "1f3ff", "200d", "fe0f", "2640", "2642"}
_PEOPLE = {"1f468", "1f469", "1f9d1"}  # man, woman, person: one and the same where something follows
_WHO = re.compile(r"\b(man|woman|person|men|women|people)\b[:\s]*|: .* skin tone$")


class Emoji(NamedTuple):
    """Names by language and pictures, [N, 64, 64, 3]; variants of one emoji have the same of `groups`."""

    files: list[str]
    names: list[dict[Language, str]]
    pictures: UInt8[np.ndarray, "N H W 3"]
    groups: list[str]


def read_emoji(paths: Sequence[Path]) -> Emoji:
    """The emoji of captions.json and of the zip that lies beside it. UserError for what is missing or damaged."""
    named = {path.name: path for path in paths}
    if CAPTIONS not in named or PICTURES not in named:
        raise UserError(f"{', '.join(map(str, paths)) or 'no file'}: emoji need {CAPTIONS} and {PICTURES}; name both")
    try:
        entries = [(str(entry["file"]), entry) for entry in read_json(named[CAPTIONS])]  # type: ignore[union-attr]
        names = [{language: str(entry[language]["name"]) for language in Language.__args__} for _, entry in entries]
    except (KeyError, TypeError) as error:
        raise UserError(f"{named[CAPTIONS]} is no list of emoji ({error!r}); get the file again") from None
    files = [file for file, _ in entries]
    return Emoji(files, names, _pictures(named[PICTURES], files), groups(files, [name["en"] for name in names]))


def _pictures(path: Path, files: Sequence[str]) -> UInt8[np.ndarray, "N H W 3"]:
    image = pillow()
    try:
        with zipfile.ZipFile(path) as archive:
            read = [np.array(image.open(io.BytesIO(archive.read(file))).convert("RGB")) for file in files]
        return np.stack(read)
    except (KeyError, ValueError, OSError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is damaged, or not the one of these captions ({error}); get it again") from None


def groups(files: Sequence[str], names: Sequence[str]) -> list[str]:
    """A key for each emoji that its variants share: the same code but for skin tone and gender, or the same English
    name but for who does it ("woman cook", "cook").
    """
    keys = [(f"code {bare_code(file)}", f"name {bare_name(name)}") for file, name in zip(files, names)]
    leader: dict[str, str] = {}

    def find(key: str) -> str:
        while leader.get(key, key) != key:
            key = leader[key]
        return key

    for code, name in keys:
        first, second = sorted((find(code), find(name)))
        leader[second] = first
    return [find(code) for code, _ in keys]


def bare_code(file: str) -> str:
    """The code in a file's name without what only makes a variant: 1f469-200d-1f373.png is person-1f373."""
    parts = [part for part in Path(file).stem.split("-") if part not in _VARIANTS]
    return "-".join("person" if part in _PEOPLE else part for part in parts) or Path(file).stem


def bare_name(name: str) -> str:
    """A name without who does it; the name itself where nothing else is in it."""
    return _WHO.sub("", name).strip() or name
