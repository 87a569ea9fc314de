"""The words of a transcript, and when each was spoken."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median

from headway.codecs import TokenizerCodec
from headway.domains.audio.marks import Marks
from headway.domains.audio.timestamps import Part
from headway.domains.audio.timing import align
from headway.models import EncoderDecoder, Heard

_OPENING = "\"'“¿([{-"  # marks that belong to the word after them
_CLOSING = "\"'.。,，!！?？:：”)]}、"  # and to the word before
_STOPS = ".。!！?？"
_LONGEST = 0.7  # seconds: what counts as a usual word at most
_SLACK = 0.5  # seconds by which a word may reach beyond its segment


@dataclass(frozen=True)
class Word:
    """With the space and the marks that belong to it; `start` and `end` are seconds."""

    word: str
    start: float
    end: float
    probability: float


class Words:
    """Finds the words of segments and their times."""

    def __init__(self, model: EncoderDecoder, codec: TokenizerCodec, marks: Marks) -> None:
        self.model, self.codec, self.marks = model, codec, marks

    def timed(self, heard: Heard, opening: list[int], parts: list[Part], frames: int, spoken: float) -> list[Part]:
        """The segments of a window with their words, by which their own times are corrected. `spoken` is when the last
        word before the window ended, in seconds from the window's start.
        """
        texts = [[symbol for symbol in part.ids if symbol < self.marks.end] for part in parts]
        whole = [symbol for text in texts for symbol in text]
        if not whole:
            return parts
        found = align(self.model, heard, self.marks, opening, whole, frames)
        timed: list[list[Word]] = []
        place = 0
        for text in texts:
            words: list[Word] = []
            for piece, count in split_words(self.codec, text):
                last = place + count
                likely = float(found.probabilities[place:last].mean())
                words.append(Word(piece, float(found.seconds[place]), float(found.seconds[last]), likely))
                place = last
            timed.append(words)
        lengths = [word.end - word.start for words in timed for word in words if word.end > word.start]
        usual = min(_LONGEST, median(lengths)) if lengths else 0.0
        results = []
        for part, words in zip(parts, timed):
            part = _settled(part, merged(_cut_at_stops(words, 2 * usual)), spoken, usual)
            spoken = part.end if part.words else spoken
            results.append(part)
        return results


def split_words(codec: TokenizerCodec, ids: Sequence[int]) -> list[tuple[str, int]]:
    """Words, and of how many symbols each is made. A word begins with a space; a mark is a word of its own. Where a
    text has no spaces, as in Chinese, a word is what the symbols spell.
    """
    stream, pieces, waiting = codec.stream(), [], 0
    for symbol in ids:
        waiting += 1
        text = stream.push(symbol)
        if text:
            pieces.append((text, waiting))
            waiting = 0
    if waiting:
        pieces.append((stream.flush(), waiting))
    words: list[tuple[str, int]] = []
    for text, count in pieces:
        if words and _continues(words[-1][0], text):
            words[-1] = (words[-1][0] + text, words[-1][1] + count)
        else:
            words.append((text, count))
    return words


def _continues(word: str, text: str) -> bool:
    """Whether a piece goes on with a word."""
    return not (text[:1].isspace() or _is_mark(text) or _is_mark(word) or _is_unspaced(text[:1]))


def _is_mark(text: str) -> bool:
    return text.strip() != "" and text.strip() in _OPENING + _CLOSING


def _is_unspaced(letter: str) -> bool:
    """Whether a letter is of a script that puts no spaces between words: Thai to Lao, Burmese, Khmer, Chinese and
    Japanese.
    """
    ranges = ((0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3040, 0x30FF), (0x3400, 0x9FFF))
    return bool(letter) and any(first <= ord(letter) <= last for first, last in ranges)


def merged(words: Sequence[Word]) -> list[Word]:
    """Marks joined with the words that they belong to, whose times stay."""
    found: list[Word] = []
    for word in words:
        if found and word.word in _CLOSING and not found[-1].word.endswith(" "):
            found[-1] = replace(found[-1], word=found[-1].word + word.word)
        elif found and found[-1].word.startswith(" ") and found[-1].word.strip() in _OPENING:
            found[-1] = replace(word, word=found[-1].word + word.word)
        else:
            found.append(word)
    return found


def _cut_at_stops(words: Sequence[Word], longest: float) -> list[Word]:
    """What is longer than usual at the end of a sentence is silence."""
    found: list[Word] = []
    for word in words:
        if found and word.end - word.start > longest > 0:
            if word.word.strip() in _STOPS:
                word = replace(word, end=word.start + longest)
            elif found[-1].word.strip() in _STOPS:
                word = replace(word, start=word.end - longest)
        found.append(word)
    return found


def _settled(part: Part, words: list[Word], spoken: float, usual: float) -> Part:
    """A segment with its words: a first word after a pause that is too long began later, and where segment and word
    differ by much, the segment is believed.
    """
    if not words:
        return part
    first, longest = words[0], 2 * usual
    if first.end - spoken > 2 * longest and first.end - first.start > longest:
        first = replace(first, start=max(0.0, first.end - longest))
    if part.start < first.end and part.start - _SLACK > first.start:
        first = replace(first, start=max(0.0, min(first.end - usual, part.start)))
    words = [first, *words[1:]]
    last = words[-1]
    if part.end > last.start and part.end + _SLACK < last.end:
        words[-1] = replace(last, end=max(last.start + usual, part.end))
    return part._replace(start=words[0].start, end=words[-1].end, words=tuple(words))
