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

from headway.codecs import TokenizerCodec
from headway.domains.audio.window_transcriber import FRAMES, STEP, TimedPart, WhisperTokens
from headway.layout import Layout
from headway.nn.models import EncodedSource, EncoderDecoder, attention_maps

_MEDIAN_WIDTH = 7  # positions of the median filter
_EPSILON = 1e-9


class TimedTokens(NamedTuple):
    """The start of each of N tokens and the end of the last, and the probability of each."""

    seconds: Float[np.ndarray, "N+1"]
    probabilities: Float[np.ndarray, "N"]


@torch.inference_mode()
def align(
    model: EncoderDecoder,
    audio: EncodedSource,
    special_tokens: WhisperTokens,
    initial_ids: list[int],
    text: list[int],
    frames: int,
) -> TimedTokens:
    """The times of the `text` tokens in the first `frames` log-mel frames of a window.

    The model takes the text without timestamps. The weights of the alignment heads are normalised over the tokens,
    smoothed over time and averaged; dynamic time warping (Sakoe and Chiba 1978) finds the path with the largest weight.
    """
    ids = torch.tensor(
        [[*initial_ids, special_tokens.no_timestamps, *text, special_tokens.eos]],
        device=next(model.parameters()).device,
    )
    layout, logits = Layout.full(*ids.shape, device=ids.device), []

    def read() -> None:
        encoded = model(audio, layout, ids, layout)
        logits.append(model.heads["vocabulary"](encoded.x[0, len(initial_ids) : -2]))

    maps = attention_maps(model.decoder, read)
    tokens = torch.tensor(text, device=ids.device)
    probabilities = logits[0][:, : special_tokens.eos].float().softmax(-1).gather(1, tokens[:, None])[:, 0]
    positions = -(-frames // FRAMES)
    depth = len(model.decoder.stack.blocks)
    layers = [maps[f"stack.blocks.{layer}.cross"][0] for layer in range(depth)]
    heads = [
        layers[layer][head]
        for layer, head in special_tokens.alignment_heads
        if layer < depth and head < len(layers[layer])
    ]
    # The model's alignment heads, or all heads in the upper half of its layers.
    weights = (torch.stack(heads) if heads else torch.cat(layers[depth // 2 :]))[:, :, :positions]
    weights = weights / weights.sum(-1, keepdim=True).clamp_min(_EPSILON)
    deviation, mean = torch.std_mean(weights, dim=-2, keepdim=True, unbiased=False)
    weights, half_width = (weights - mean) / deviation.clamp_min(_EPSILON), _MEDIAN_WIDTH // 2
    if weights.shape[-1] > half_width:  # the median of each position and its neighbours in time
        neighbours = F.pad(weights, (half_width, half_width), mode="reflect").unfold(-1, _MEDIAN_WIDTH, 1)
        weights = neighbours.sort(-1).values[..., half_width]
    cost = -weights.mean(0)[len(initial_ids) : -1]
    rows, columns = dynamic_time_warping(cost.double().cpu().numpy())
    token_starts = np.searchsorted(rows, np.arange(len(text) + 1))  # where the path reaches each token
    return TimedTokens(columns[token_starts] * STEP, probabilities.cpu().double().numpy())


def dynamic_time_warping(cost: Float[np.ndarray, "N M"]) -> tuple[Int[np.ndarray, "L"], Int[np.ndarray, "L"]]:
    """The lowest-cost path from the first corner to the last, in steps of one in either or both directions: rows and
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
        direction = step[i, j]
        i, j = i - (direction != 2), j - (direction != 1)
    path_array = np.array(path[::-1])
    return path_array[:, 0], path_array[:, 1]


_OPENING_PUNCTUATION = "\"'“¿([{-"  # punctuation that belongs to the following word
_CLOSING_PUNCTUATION = "\"'.。,，!！?？:：”)]}、"  # punctuation that belongs to the preceding word
# Scripts without spaces between words: Thai to Lao, Burmese, Khmer, Japanese and Chinese.
_UNSPACED_SCRIPTS = (
    ("\u0e00", "\u0eff"),
    ("\u1000", "\u109f"),
    ("\u1780", "\u17ff"),
    ("\u3040", "\u30ff"),
    ("\u3400", "\u9fff"),
)
_SENTENCE_ENDS = ".。!！?？"
_MAX_USUAL_LENGTH = 0.7  # maximum seconds of a usual word
_SLACK = 0.5  # seconds by which a word may exceed its segment


@dataclass(frozen=True)
class Word:
    """A word with its space and punctuation; `start` and `end` are seconds."""

    word: str
    start: float
    end: float
    probability: float


class WordAligner:
    """Finds the words of segments and their times."""

    def __init__(self, model: EncoderDecoder, codec: TokenizerCodec, special_tokens: WhisperTokens) -> None:
        self.model, self.codec, self.special_tokens = model, codec, special_tokens

    def add_words(
        self, audio: EncodedSource, initial_ids: list[int], parts: list[TimedPart], frames: int, last_word_end: float
    ) -> list[TimedPart]:
        """A window's segments with their words, which also correct the segments' times. `spoken` is the end of the last
        word before the window, in seconds from the window's start.
        """
        part_ids = [[token for token in part.ids if token < self.special_tokens.eos] for part in parts]
        all_ids = [token for text in part_ids for token in text]
        if not all_ids:
            return parts
        times = align(self.model, audio, self.special_tokens, initial_ids, all_ids, frames)
        timed_words: list[list[Word]] = []
        index = 0
        for text in part_ids:
            words: list[Word] = []
            for word_text, count in split_words(self.codec, text):
                stop = index + count
                probability = float(times.probabilities[index:stop].mean())
                words.append(Word(word_text, float(times.seconds[index]), float(times.seconds[stop]), probability))
                index = stop
            timed_words.append(words)
        lengths = [word.end - word.start for words in timed_words for word in words if word.end > word.start]
        usual_length = min(_MAX_USUAL_LENGTH, median(lengths)) if lengths else 0.0
        max_length, results = 2 * usual_length, []
        for part, words in zip(parts, timed_words):
            trimmed: list[Word] = []  # unusually long words at sentence ends are shorter, because the excess is silence
            for word in words:
                if trimmed and word.end - word.start > max_length > 0:
                    if word.word.strip() in _SENTENCE_ENDS:
                        word = replace(word, end=word.start + max_length)
                    elif trimmed[-1].word.strip() in _SENTENCE_ENDS:
                        word = replace(word, start=word.end - max_length)
                trimmed.append(word)
            if words := merge_punctuation(trimmed):
                # If the first word after a pause is too long, it starts later; if segment and word times differ by
                # much, the segment's times win.
                first = words[0]
                if first.end - last_word_end > 2 * max_length and first.end - first.start > max_length:
                    first = replace(first, start=max(0.0, first.end - max_length))
                if part.start < first.end and part.start - _SLACK > first.start:
                    first = replace(first, start=max(0.0, min(first.end - usual_length, part.start)))
                words[0] = first
                last = words[-1]
                if part.end > last.start and part.end + _SLACK < last.end:
                    words[-1] = replace(last, end=max(last.start + usual_length, part.end))
                last_word_end = words[-1].end
                part = part._replace(start=words[0].start, end=last_word_end, words=tuple(words))
            results.append(part)
        return results


def split_words(codec: TokenizerCodec, ids: Sequence[int]) -> list[tuple[str, int]]:
    """Words with their token counts. A word starts with a space; punctuation is its own word. In text without spaces,
    such as Chinese, a word is the text of its tokens.
    """
    stream, chunks, num_waiting = codec.stream(), [], 0
    for token in ids:
        num_waiting += 1
        text = stream.push(token)
        if text:
            chunks.append((text, num_waiting))
            num_waiting = 0
    if num_waiting:
        chunks.append((stream.flush(), num_waiting))
    words: list[tuple[str, int]] = []
    for text, count in chunks:
        is_unspaced = any(first <= letter <= last for letter in text[:1] for first, last in _UNSPACED_SCRIPTS)
        starts_word = text[:1].isspace() or _is_punctuation(text) or is_unspaced
        if words and not starts_word and not _is_punctuation(words[-1][0]):
            words[-1] = (words[-1][0] + text, words[-1][1] + count)
        else:
            words.append((text, count))
    return words


def split_ids(codec: TokenizerCodec, ids: Sequence[int], eos: int, texts: Sequence[str]) -> list[list[int]]:
    """The ids of a segment, split to match the `texts`; ids from `end` on have no text."""
    stream, spelled, limits = codec.stream(), 0, np.cumsum([len(text) for text in texts]).tolist()
    parts: list[list[int]] = [[] for _ in texts]
    part = 0
    for token in ids:
        parts[part].append(token)
        if token < eos:
            spelled += len(stream.push(token))
            while part < len(parts) - 1 and spelled >= limits[part]:
                part += 1
    return parts


def between_pauses(words: Sequence[Word], pause: float) -> list[list[Word]]:
    """Words grouped by pauses of at least `pause` seconds; each group has a nonzero length."""
    groups: list[list[Word]] = []
    for word in words:
        after_pause = bool(groups) and word.start - groups[-1][-1].end >= pause
        if not groups or (after_pause and groups[-1][-1].end > groups[-1][0].start):
            groups.append([])
        groups[-1].append(word)
    if len(groups) > 1 and groups[-1][-1].end <= groups[-1][0].start:
        groups[-2:] = [[*groups[-2], *groups[-1]]]
    return groups


def _is_punctuation(text: str) -> bool:
    return text.strip() != "" and text.strip() in _OPENING_PUNCTUATION + _CLOSING_PUNCTUATION


def merge_punctuation(words: Sequence[Word]) -> list[Word]:
    """Join punctuation with its word, whose times stay."""
    merged_words: list[Word] = []
    for word in words:
        if merged_words and word.word in _CLOSING_PUNCTUATION and not merged_words[-1].word.endswith(" "):
            merged_words[-1] = replace(merged_words[-1], word=merged_words[-1].word + word.word)
        elif (
            merged_words
            and merged_words[-1].word.startswith(" ")
            and merged_words[-1].word.strip() in _OPENING_PUNCTUATION
        ):
            merged_words[-1] = replace(word, word=merged_words[-1].word + word.word)
        else:
            merged_words.append(word)
    return merged_words
