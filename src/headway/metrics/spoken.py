"""English texts as they are compared with what was said: Whisper's normaliser (Radford et al. 2022, appendix C)."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from headway.errors import UserError
from headway.metrics.numbers import digits

_FILLERS = r"\b(hmm|mm|mhm|mmm|uh|um)\b"
_WHOLE = {
    "won't": "will not", "can't": "can not", "let's": "let us", "ain't": "aint", "y'all": "you all",
    "wanna": "want to", "gotta": "got to", "gonna": "going to", "i'ma": "i am going to", "imma": "i am going to",
    "woulda": "would have", "coulda": "could have", "shoulda": "should have", "ma'am": "madam",
}  # fmt: skip
_TITLES = {
    "mr": "mister", "mrs": "missus", "st": "saint", "dr": "doctor", "prof": "professor", "capt": "captain",
    "gov": "governor", "ald": "alderman", "gen": "general", "sen": "senator", "rep": "representative",
    "pres": "president", "rev": "reverend", "hon": "honorable", "asst": "assistant", "assoc": "associate",
    "lt": "lieutenant", "col": "colonel", "jr": "junior", "sr": "senior", "esq": "esquire",
}  # fmt: skip
_PERFECT = {
    "'d been": "had been", "'s been": "has been", "'d gone": "had gone", "'s gone": "has gone", "'d done": "had done",
    "'s got": "has got",
}  # fmt: skip
_ENDINGS = {
    "n't": "not", "'re": "are", "'s": "is", "'d": "would", "'ll": "will", "'t": "not", "'ve": "have", "'m": "am",
}  # fmt: skip
_KEPT = ".%$¢€£"
_LETTERS = {"œ": "oe", "Œ": "OE", "ø": "o", "Ø": "O", "æ": "ae", "Æ": "AE", "ß": "ss", "ẞ": "SS", "đ": "d", "Đ": "D"}
_LETTERS |= {"ð": "d", "Ð": "D", "þ": "th", "Þ": "th", "ł": "l", "Ł": "L"}


def english_words(text: str, spelling: Mapping[str, str] | None = None) -> str:
    """What is left to compare of an English text: words in lower case, written out or as digits, without marks.

    `spelling` gives words in American spelling; None is the published table, see `spellings`.
    """
    text = re.sub(r"[<\[][^>\]]*[>\]]", "", text.lower())
    text = re.sub(r"\(([^)]+?)\)", "", text)
    text = re.sub(r"\s+'", "'", re.sub(_FILLERS, "", text))
    text = _written_out(text)
    text = re.sub(r"(\d),(\d)", r"\1\2", text)
    text = re.sub(r"\.([^0-9]|$)", r" \1", text)
    table = spellings() if spelling is None else spelling
    text = " ".join(table.get(word, word) for word in digits(_letters(text)).split())
    # Signs of money and percent that are left without a number.
    text = re.sub(r"[.$¢€£]([^0-9])", r" \1", text)
    return " ".join(re.sub(r"([^0-9])%", r"\1 ", text).split())


@cache
def spellings() -> Mapping[str, str]:
    """British words and their American spelling, the table that is published with Whisper, from the package
    whisper-normalizer. UserError where it is not installed.
    """
    found = find_spec("whisper_normalizer")
    if found is None or found.origin is None:
        raise UserError("this needs the package whisper-normalizer; pip install 'headway[audio]'")
    return json.loads((Path(found.origin).parent / "normalizers" / "english.json").read_text(encoding="utf-8"))


def _written_out(text: str) -> str:
    for short, long in _WHOLE.items():
        text = re.sub(rf"\b{short}\b", long, text)
    for short, long in _TITLES.items():
        text = re.sub(rf"\b{short}\b", f"{long} ", text)
    for short, long in _PERFECT.items():
        text = re.sub(rf"{short}\b", f" {long}", text)
    for short, long in _ENDINGS.items():
        text = re.sub(rf"{short}\b", f" {long}", text)
    return text


def _letters(text: str) -> str:
    """Letters without accents; marks and symbols as spaces, but for those of numbers."""
    found = []
    for letter in unicodedata.normalize("NFKD", text):
        kind = unicodedata.category(letter)
        if letter in _KEPT:
            found.append(letter)
        elif letter in _LETTERS:
            found.append(_LETTERS[letter])
        elif kind != "Mn":
            found.append(" " if kind[0] in "MSP" else letter)
    return "".join(found)
