"""Word-level timestamps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from headway.codecs import TokenizerCodec
from headway.domains.audio.listener import FRAMES, STEP, TimedPart, WhisperTokens
from headway.layout import Layout
from headway.nn.models import EncoderDecoder, Heard, attention_maps

_SMOOTH = 7  # positions of the median filter
_BLANK = 1e-9


class TimedSymbols(NamedTuple):
    """The start of each of N tokens and the end of the last, and the probability of each."""

    seconds: Float[np.ndarray, "N+1"]
    probabilities: Float[np.ndarray, "N"]


@torch.inference_mode()
def align(
    model: EncoderDecoder, heard: Heard, marks: WhisperTokens, opening: list[int], text: list[int], frames: int
) -> TimedSymbols:
    """The times of the tokens `text` in the first `frames` log-mel frames of a window.

    The model is given the text, without timestamps. The weights of the alignment heads are normalised over the tokens,
    smoothed along time and averaged; dynamic time warping (Sakoe and Chiba 1978) finds the path of maximum weight.
    """
    ids = torch.tensor([[*opening, marks.plain, *text, marks.end]], device=next(model.parameters()).device)
    layout, logits = Layout.full(*ids.shape, device=ids.device), []

    def read() -> None:
        encoded = model(heard, layout, ids, layout)
        logits.append(model.heads["vocabulary"](encoded.x[0, len(opening) : -2]))

    maps = attention_maps(model.decoder, read)
    symbols = torch.tensor(text, device=ids.device)
    likely = logits[0][:, : marks.end].float().softmax(-1).gather(1, symbols[:, None])[:, 0]
    positions = -(-frames // FRAMES)
    weights = _weights(maps, marks, len(model.decoder.stack.blocks))[:, :, :positions]
    weights = weights / weights.sum(-1, keepdim=True).clamp_min(_BLANK)
    deviation, mean = torch.std_mean(weights, dim=-2, keepdim=True, unbiased=False)
    weights, beside = (weights - mean) / deviation.clamp_min(_BLANK), _SMOOTH // 2
    if weights.shape[-1] > beside:  # the median of each position and its neighbours in time
        around = F.pad(weights, (beside, beside), mode="reflect").unfold(-1, _SMOOTH, 1)
        weights = around.sort(-1).values[..., beside]
    cost = -weights.mean(0)[len(opening) : -1]
    rows, columns = warp(cost.double().cpu().numpy())
    first = np.searchsorted(rows, np.arange(len(text) + 1))  # where the path reaches each token
    return TimedSymbols(columns[first] * STEP, likely.cpu().double().numpy())


def _weights(maps: dict[str, Tensor], marks: WhisperTokens, depth: int) -> Float[Tensor, "H T S"]:
    """The weights of the model's alignment heads, or of all heads in the upper half of its layers."""
    layers = [maps[f"stack.blocks.{layer}.cross"][0] for layer in range(depth)]
    named = [(layer, head) for layer, head in marks.heads if layer < depth and head < len(layers[layer])]
    if named:
        return torch.stack([layers[layer][head] for layer, head in named])
    return torch.cat(layers[depth // 2 :])


def warp(cost: Float[np.ndarray, "N M"]) -> tuple[Int[np.ndarray, "L"], Int[np.ndarray, "L"]]:
    """The path of lowest cost from the first corner to the last, by steps of one in either or both directions: rows and
    columns.

    The table is filled along its diagonals, whose cells are independent.
    """
    rows, columns = cost.shape
    total = np.full((rows + 1, columns + 1), np.inf)
    total[0, 0] = 0.0
    step = np.zeros((rows + 1, columns + 1), np.int8)  # 0 diagonal, 1 down, 2 across
    for diagonal in range(2, rows + columns + 1):
        i = np.arange(max(1, diagonal - columns), min(rows, diagonal - 1) + 1)
        j = diagonal - i
        choices = np.stack([total[i - 1, j - 1], total[i - 1, j], total[i, j - 1]])
        # Diagonal only if it beats both others, and across if neither wins.
        best = np.where(
            (choices[0] < choices[1]) & (choices[0] < choices[2]), 0, np.where(choices[1] < choices[2], 1, 2)
        )
        step[i, j] = best
        total[i, j] = cost[i - 1, j - 1] + np.take_along_axis(choices, best[None], 0)[0]
    step[0, :], step[:, 0] = 2, 1
    i, j, path = rows, columns, []
    while i > 0 or j > 0:
        path.append((i - 1, j - 1))
        way = step[i, j]
        i, j = i - (way != 2), j - (way != 1)
    found = np.array(path[::-1])
    return found[:, 0], found[:, 1]


_OPENING = "\"'“¿([{-"  # punctuation that belongs to the following word
_CLOSING = "\"'.。,，!！?？:：”)]}、"  # and to the preceding word
_STOPS = ".。!！?？"
_LONGEST = 0.7  # seconds: maximum length of a usual word
_SLACK = 0.5  # seconds by which a word may exceed its segment


@dataclass(frozen=True)
class Word:
    """A word with its space and punctuation; `start` and `end` are seconds."""

    word: str
    start: float
    end: float
    probability: float


class Words:
    """Finds the words of segments and their times."""

    def __init__(self, model: EncoderDecoder, codec: TokenizerCodec, marks: WhisperTokens) -> None:
        self.model, self.codec, self.marks = model, codec, marks

    def timed(
        self, heard: Heard, opening: list[int], parts: list[TimedPart], frames: int, spoken: float
    ) -> list[TimedPart]:
        """The segments of a window with their words, which also correct the segments' times. `spoken` is the end of the
        last word before the window, in seconds from the window's start.
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
    """Words with their token counts. A word starts with a space; punctuation is its own word. In text without spaces,
    such as Chinese, a word is the text of its tokens.
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
        begins = text[:1].isspace() or _is_mark(text) or _is_unspaced(text[:1])
        if words and not begins and not _is_mark(words[-1][0]):
            words[-1] = (words[-1][0] + text, words[-1][1] + count)
        else:
            words.append((text, count))
    return words


def split_ids(codec: TokenizerCodec, ids: Sequence[int], end: int, texts: Sequence[str]) -> list[list[int]]:
    """The ids of a segment, split to match the `texts`; ids from `end` on have no text."""
    stream, spelled, limits = codec.stream(), 0, np.cumsum([len(text) for text in texts]).tolist()
    parts: list[list[int]] = [[] for _ in texts]
    part = 0
    for symbol in ids:
        parts[part].append(symbol)
        if symbol < end:
            spelled += len(stream.push(symbol))
            while part < len(parts) - 1 and spelled >= limits[part]:
                part += 1
    return parts


def between_pauses(words: Sequence[Word], pause: float) -> list[list[Word]]:
    """Words grouped by pauses of at least `pause` seconds; each group has a nonzero length."""
    groups: list[list[Word]] = []
    for word in words:
        ended = bool(groups) and word.start - groups[-1][-1].end >= pause
        if not groups or (ended and groups[-1][-1].end > groups[-1][0].start):
            groups.append([])
        groups[-1].append(word)
    if len(groups) > 1 and groups[-1][-1].end <= groups[-1][0].start:
        groups[-2:] = [[*groups[-2], *groups[-1]]]
    return groups


def _is_mark(text: str) -> bool:
    return text.strip() != "" and text.strip() in _OPENING + _CLOSING


def _is_unspaced(letter: str) -> bool:
    """Whether a letter belongs to a script without spaces between words: Thai to Lao, Burmese, Khmer, Chinese and
    Japanese.
    """
    ranges = ((0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3040, 0x30FF), (0x3400, 0x9FFF))
    return bool(letter) and any(first <= ord(letter) <= last for first, last in ranges)


def merged(words: Sequence[Word]) -> list[Word]:
    """Join punctuation with its word, whose times stay."""
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
    """Shorten unusually long words at sentence ends, because the excess is silence."""
    found: list[Word] = []
    for word in words:
        if found and word.end - word.start > longest > 0:
            if word.word.strip() in _STOPS:
                word = replace(word, end=word.start + longest)
            elif found[-1].word.strip() in _STOPS:
                word = replace(word, start=word.end - longest)
        found.append(word)
    return found


def _settled(part: TimedPart, words: list[Word], spoken: float, usual: float) -> TimedPart:
    """A segment with its words: a too long first word after a pause starts later, and if segment and word differ by
    much, the segment's times win.
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
