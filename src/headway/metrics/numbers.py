"""Spoken English numbers as digits, as Whisper's normaliser writes them (Radford et al. 2022, appendix C)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction

_SMALL = (
    "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
)
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
_LARGE = "thousand million billion trillion quadrillion quintillion sextillion septillion octillion nonillion decillion"
_ODD = {"one": "first", "two": "second", "three": "third", "five": "fifth", "eight": "eighth", "nine": "ninth"}
_ODD |= {"twelve": "twelfth"}

ZEROS = {"o", "oh", "zero"}
ONES = {name: number for number, name in enumerate(_SMALL.split(), 1)}
TENS = {name: 10 * number for number, name in enumerate(_TENS.split(), 2)}
MULTIPLIERS = {"hundred": 100, **{name: 1000**power for power, name in enumerate(_LARGE.split(), 1)}}
# What stands before a number, and what stands behind it and is written before.
SIGNS = {"minus": "-", "negative": "-", "plus": "+", "positive": "+"}
MONEY = {"pound": "£", "euro": "€", "dollar": "$", "cent": "¢"}
UNITS = MONEY | {f"{name}s": sign for name, sign in MONEY.items()}
SPECIAL = {"and", "double", "triple", "point"}
_DIGITS = re.compile(r"\d+(\.\d+)?")


def _ordinal(name: str) -> tuple[str, str]:
    """The word, and what is written behind the digits."""
    word = _ODD.get(name) or (name[:-1] + "ieth" if name.endswith("y") else name + "th")
    return word, {"first": "st", "second": "nd", "third": "rd"}.get(word, "th")


def _plural(name: str) -> str:
    return "sixes" if name == "six" else name[:-1] + "ies" if name.endswith("y") else name + "s"


def _suffixed(names: dict[str, int]) -> dict[str, tuple[int, str]]:
    """Ordinals and plurals: the number, and what is written behind it."""
    ordinals = {_ordinal(name)[0]: (number, _ordinal(name)[1]) for name, number in names.items()}
    return {**{_plural(name): (number, "s") for name, number in names.items()}, **ordinals}


LAST = {"zeroth": (0, "th"), **_suffixed(ONES), **_suffixed(TENS), **_suffixed(MULTIPLIERS)}
DECIMALS = ZEROS | ONES.keys() | TENS.keys()
WORDS = DECIMALS | MULTIPLIERS.keys() | LAST.keys() | SIGNS.keys() | UNITS.keys() | SPECIAL | {"per", "percent"}


def digits(text: str) -> str:
    """A lower-cased text with its numbers as digits: "two hundred dollars" as "$200"."""
    found = " ".join(_Reader(_prepared(text).split()).read())
    found = re.sub(r"([€£$])([0-9]+) (?:and )?¢([0-9]{1,2})\b", lambda m: f"{m[1]}{m[2]}.{int(m[3]):02d}", found)
    found = re.sub(r"[€£$]0.([0-9]{1,2})\b", lambda m: f"¢{int(m[1])}", found)
    return re.sub(r"\b1(s?)\b", r"one\1", found)  # which is mostly no number


def _prepared(text: str) -> str:
    """Halves as decimals, and letters apart from digits, but for ordinals and plurals."""
    pieces = re.split(r"\band\s+a\s+half\b", text)
    halved = pieces[0]
    for piece in pieces[1:]:
        last = halved.split()[-1:] or [""]
        halved += (" point five" if last[0] in DECIMALS or last[0] in MULTIPLIERS else " and a half") + piece
    apart = re.sub(r"([a-z])([0-9])", r"\1 \2", halved)
    apart = re.sub(r"([0-9])([a-z])", r"\1 \2", apart)
    return re.sub(r"([0-9])\s+(st|nd|rd|th|s)\b", r"\1\2", apart)


class _Reader:
    """One word after the other. `value` is the number so far: whole, or digits where no sum can be made of it."""

    def __init__(self, words: Sequence[str]) -> None:
        self.words = words
        self.value: int | str | None = None
        self.prefix = ""
        self.out: list[str] = []
        self._skip = False

    def read(self) -> list[str]:
        for place, word in enumerate(self.words):
            if self._skip:
                self._skip = False
                continue
            before = self.words[place - 1] if place else None
            after = self.words[place + 1] if place + 1 < len(self.words) else None
            self._word(word, before, after)
        self._close()
        return self.out

    def _say(self, word: str) -> None:
        self.out.append(self.prefix + word)
        self.value, self.prefix = None, ""

    def _close(self) -> None:
        if self.value is not None:
            self._say(str(self.value))

    def _plain(self, word: str) -> None:
        """A word that is no part of a number."""
        self._close()
        self._say(word)

    def _word(self, word: str, before: str | None, after: str | None) -> None:
        numeric = _is_numeric(after)
        if _is_numeric(word[1:] if word[0] in "£€$¢-+" else word):
            self._figures(word)
        elif word not in WORDS:
            self._plain(word)
        elif word in ZEROS:
            self.value = f"{self.value or ''}0"
        elif word in ONES or word in TENS:
            self.value = self._joined(ONES.get(word) or TENS[word], before)
        elif word in MULTIPLIERS:
            self.value = self._times(MULTIPLIERS[word])
        elif word in LAST:
            number, suffix = LAST[word]
            whole = self._times(number) if number in MULTIPLIERS.values() else self._joined(number, before)
            self._say(f"{whole}{suffix}")
        elif word in SIGNS:
            self._close()
            if after in WORDS or numeric:
                self.prefix = SIGNS[word]
            else:
                self._say(word)
        elif word in UNITS:
            if self.value is None:
                self._say(word)
            else:
                self.prefix = UNITS[word]
                self._close()
        elif word in ("per", "percent"):
            self._percent(word, after)
        else:
            self._special(word, before, after, numeric)

    def _figures(self, word: str) -> None:
        signed = word[0] in "£€$¢-+"
        if isinstance(self.value, str) and self.value.endswith("."):
            self.value += word
            return
        self._close()
        self.prefix = word[0] if signed else self.prefix
        plain = word[1:] if signed else word
        whole = Fraction(plain)
        self.value = whole.numerator if whole.denominator == 1 else plain

    def _joined(self, number: int, before: str | None) -> int | str:
        """A number below a hundred after what there is: added where that leaves room for it, else behind it."""
        if self.value is None:
            return number
        if isinstance(self.value, str) or (before in ONES and number < 20):
            if before in TENS and number < 10:
                return f"{str(self.value)[:-1]}{number}"
            return f"{self.value}{number}"
        room = 10 if number < 10 else 100
        return self.value + number if self.value % room == 0 else f"{self.value}{number}"

    def _times(self, number: int) -> int:
        if self.value is None:
            return number
        if isinstance(self.value, str) or self.value == 0:
            found = _fraction(self.value)
            if found is not None and (found * number).denominator == 1:
                return (found * number).numerator
            self._close()
            return number
        return self.value // 1000 * 1000 + self.value % 1000 * number

    def _percent(self, word: str, after: str | None) -> None:
        if self.value is not None and (word == "percent" or after == "cent"):
            self._say(f"{self.value}%")
            self._skip = word == "per"
        else:
            self._plain(word)

    def _special(self, word: str, before: str | None, after: str | None, numeric: bool) -> None:
        if after not in WORDS and not numeric:
            self._plain(word)
        elif word == "and":
            if before not in MULTIPLIERS:
                self._plain(word)
        elif word == "point":
            if after in DECIMALS or numeric:
                self.value = f"{self.value or ''}."
        elif after in ONES or after in ZEROS:
            times = 2 if word == "double" else 3
            self.value = f"{self.value or ''}{str(ONES.get(after or '', 0)) * times}"
            self._skip = True
        else:
            self._plain(word)


def _is_numeric(word: str | None) -> bool:
    return word is not None and _DIGITS.fullmatch(word) is not None


def _fraction(value: int | str) -> Fraction | None:
    try:
        return Fraction(value)
    except ValueError:
        return None
