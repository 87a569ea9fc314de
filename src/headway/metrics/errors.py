"""Error rates of words and phonemes, and English texts as they are compared with what was said."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Hashable, Mapping, Sequence
from fractions import Fraction
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from headway.errors import UserError
from headway.metrics.intervals import bootstrap_ratio, wilson


def edit_distance(first: Sequence[Hashable], second: Sequence[Hashable]) -> int:
    """Insertions, deletions and replacements that turn one sequence into the other (Levenshtein).

    A column of the table is two whole numbers: the bits where it rises and where it falls by one from a row to the
    next (Myers 1999, in Hyyrö's form of 2003). So a symbol of `second` costs a dozen operations on numbers of
    `len(first)` bits, whatever the length.
    """
    if not first:
        return len(second)
    places: dict[Hashable, int] = {}
    for row, symbol in enumerate(first):
        places[symbol] = places.get(symbol, 0) | 1 << row
    every, last = (1 << len(first)) - 1, 1 << (len(first) - 1)
    rises, falls, distance = every, 0, len(first)
    for symbol in second:
        match = places.get(symbol, 0)
        diagonal = (((match & rises) + rises) ^ rises) | match | falls  # rows that cost no more than their diagonal
        right_rises = falls | (every & ~(diagonal | rises))
        right_falls = diagonal & rises
        distance += bool(right_rises & last) - bool(right_falls & last)
        right_rises = right_rises << 1 | 1
        rises = every & (right_falls << 1 | ~(diagonal | right_rises))
        falls = every & diagonal & right_rises
    return distance


def fewest_edits(hypothesis: Sequence[Hashable], references: Sequence[Sequence[Hashable]]) -> tuple[int, int]:
    """(edits, length) of the reference nearest to `hypothesis`; of equally near ones, of the longest."""
    if not references:
        raise UserError("a sample has no reference; give at least one for each")
    scored = [(edit_distance(reference, hypothesis), -len(reference)) for reference in references]
    edits, length = min(scored)
    return edits, -length


Rates = dict[str, float | list[float]]


def word_error_rate(hypotheses: Sequence[str], references: Sequence[Sequence[str]], seed: int = 0) -> Rates:
    """`wer` of texts: word edits per reference word. Each text has one or more references; the nearest counts.

    Words stand between white space; any normalisation is the caller's.
    """
    edits, lengths = _edits(hypotheses, references)
    return {**_rate("wer", edits, lengths, seed), "samples": len(edits)}


def pronunciation_error_rates(hypotheses: Sequence[str], references: Sequence[Sequence[str]], seed: int = 0) -> Rates:
    """`wer` and `per` of pronunciations, which are phonemes between spaces; the nearest reference counts.

    `wer` is the share of words that match none of their references, `per` phoneme edits per reference phoneme.
    """
    edits, lengths = _edits(hypotheses, references)
    wrong = sum(1 for count in edits if count)
    rates = _rate("per", edits, lengths, seed)
    return {
        "wer": wrong / len(edits),
        "wer_interval": wilson(wrong, len(edits)),
        **rates,
        "samples": len(edits),
    }


def _edits(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[list[int], list[int]]:
    if len(hypotheses) != len(references):
        raise UserError(f"{len(hypotheses)} hypotheses for {len(references)} references; give one for each")
    if not hypotheses:
        raise UserError("there are 0 samples to measure; give at least one")
    if any(isinstance(some, str) for some in references):
        raise UserError("references are single texts; give a list of references for each sample")
    pairs = zip(hypotheses, references)
    counted = [fewest_edits(text.split(), [reference.split() for reference in some]) for text, some in pairs]
    return [edits for edits, _ in counted], [length for _, length in counted]


def _rate(name: str, edits: list[int], lengths: list[int], seed: int) -> Rates:
    if not sum(lengths):
        raise UserError(f"{name} needs references with words in them; all {len(lengths)} are empty")
    interval = bootstrap_ratio(edits, lengths, seed)
    return {name: sum(edits) / sum(lengths), f"{name}_interval": interval}


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


def _suffixed(names: dict[str, int]) -> dict[str, tuple[int, str]]:
    """Plurals and ordinals: the number, and what is written behind it."""
    found = {}
    for name, number in names.items():
        found["sixes" if name == "six" else name[:-1] + "ies" if name.endswith("y") else name + "s"] = (number, "s")
    for name, number in names.items():
        ordinal = _ODD.get(name) or (name[:-1] + "ieth" if name.endswith("y") else name + "th")
        found[ordinal] = (number, {"first": "st", "second": "nd", "third": "rd"}.get(ordinal, "th"))
    return found


LAST = {"zeroth": (0, "th"), **_suffixed(ONES), **_suffixed(TENS), **_suffixed(MULTIPLIERS)}
DECIMALS = ZEROS | ONES.keys() | TENS.keys()
WORDS = DECIMALS | MULTIPLIERS.keys() | LAST.keys() | SIGNS.keys() | UNITS.keys() | SPECIAL | {"per", "percent"}


def digits(text: str) -> str:
    """A lower-cased text with its numbers as digits: "two hundred dollars" as "$200"."""
    # Halves as decimals, and letters apart from digits, but for ordinals and plurals.
    pieces = re.split(r"\band\s+a\s+half\b", text)
    halved = pieces[0]
    for piece in pieces[1:]:
        last = halved.split()[-1:] or [""]
        halved += (" point five" if last[0] in DECIMALS or last[0] in MULTIPLIERS else " and a half") + piece
    apart = re.sub(r"([a-z])([0-9])", r"\1 \2", halved)
    apart = re.sub(r"([0-9])([a-z])", r"\1 \2", apart)
    apart = re.sub(r"([0-9])\s+(st|nd|rd|th|s)\b", r"\1\2", apart)
    found = " ".join(_Reader(apart.split()).read())
    found = re.sub(r"([€£$])([0-9]+) (?:and )?¢([0-9]{1,2})\b", lambda m: f"{m[1]}{m[2]}.{int(m[3]):02d}", found)
    found = re.sub(r"[€£$]0.([0-9]{1,2})\b", lambda m: f"¢{int(m[1])}", found)
    return re.sub(r"\b1(s?)\b", r"one\1", found)  # which is mostly no number


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
            if self.value is not None and (word == "percent" or after == "cent"):
                self._say(f"{self.value}%")
                self._skip = word == "per"
            else:
                self._plain(word)
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
            try:
                found = Fraction(self.value) * number
            except ValueError:
                found = None
            if found is not None and found.denominator == 1:
                return found.numerator
            self._close()
            return number
        return self.value // 1000 * 1000 + self.value % 1000 * number

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
    for short, long in _WHOLE.items():
        text = re.sub(rf"\b{short}\b", long, text)
    for short, long in _TITLES.items():
        text = re.sub(rf"\b{short}\b", f"{long} ", text)
    for short, long in _PERFECT.items():
        text = re.sub(rf"{short}\b", f" {long}", text)
    for short, long in _ENDINGS.items():
        text = re.sub(rf"{short}\b", f" {long}", text)
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
