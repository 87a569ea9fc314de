"""Extractive question answering: windows over long contexts, and the most probable span of tokens in each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from headway.codecs.tokenizer import TokenizerCodec, locate_tokens
from headway.errors import UserError
from headway.learn.token_rows import frame_for, frame_rows
from headway.nn.models import TransformerConfig

_MAX_STRIDE = 128  # tokens that windows share by default


class Answer(NamedTuple):
    """A part of a context, its characters from `start` to before `end`, and its score: the probability that an answer
    starts at its first token times the probability that one ends at its last. `no_answer` is the score of the first
    token of the input, which models for SQuAD 2 use if the context does not contain an answer.
    """

    text: str
    start: int
    end: int
    score: float
    no_answer: float


class _ContextWindow(NamedTuple):
    """A context's tokens from `start` to before `stop`."""

    context: int
    start: int
    stop: int


class _Span(NamedTuple):
    score: float
    start: int = 0
    end: int = 0


class ContextWindows:
    """Inputs of a question and each window of each context (`rows`), and the best span that each window contains. The
    last `stride` tokens of a window start the next one.
    """

    def __init__(
        self,
        codec: TokenizerCodec,
        config: TransformerConfig,
        question: str,
        contexts: Sequence[str],
        window: int,
        stride: int | None,
    ) -> None:
        """UserError for a window without room for the context, or with less room than the stride."""
        frame, question_ids = frame_for(codec, config), codec.encode(question)
        window = window if config.context is None else min(window, config.context)
        free = window - frame.num_special_tokens(2) - len(question_ids)
        shared = min(window // 2, _MAX_STRIDE, max(0, free - 1)) if stride is None else stride
        if free <= shared:
            raise UserError(
                f"the question has {len(question_ids)} tokens, which leaves {max(0, free)} of a window of {window} for "
                f"the context, and windows share {shared}; shorten the question, or use a larger window or a smaller "
                "stride"
            )
        self._contexts, self._tokens = contexts, locate_tokens(codec, contexts)
        self._windows = [
            _ContextWindow(context, start, min(start + free, len(tokens.ids)))
            for context, tokens in enumerate(self._tokens)
            for start in range(0, max(1, len(tokens.ids) - shared), free - shared)
        ]
        parts = [self._tokens[context].ids[start:stop] for context, start, stop in self._windows]
        self.rows = frame_rows(frame, [question_ids] * len(parts), parts)
        self._has_null = len(frame.before) > 0
        self._offset = len(frame.before) + len(question_ids) + len(frame.between)
        self._spans = [_Span(0.0)] * len(parts)
        self._no_answers = [1.0 if self._has_null else 0.0] * len(contexts)

    def add_span(self, index: int, logits: Float[np.ndarray, "T 2"], max_tokens: int) -> None:
        """Find the best span of at most `max_tokens` tokens in a window, from its logits for starts and ends."""
        context, start, stop = self._windows[index]
        null = logits[:1] if self._has_null else np.full((1, 2), -np.inf)
        values = np.concatenate([null, logits[self._offset : self._offset + stop - start]]).astype(np.float64)
        if len(values) == 1:
            return
        shares = np.exp(values - values.max(0))
        shares /= shares.sum(0)
        self._no_answers[context] = min(self._no_answers[context], float(shares[0].prod()))
        starts, ends = shares[1:].T
        length = min(max_tokens, len(starts))
        products = starts[:, None] * np.lib.stride_tricks.sliding_window_view(np.pad(ends, (0, length - 1)), length)
        first, more = divmod(int(products.argmax()), length)
        last = first + more
        tokens = self._tokens[context]
        words, offsets = tokens.words[start:stop], tokens.offsets[start:stop]
        first_word, last_word = words[first], words[last]
        if first_word is not None and last_word is not None:  # complete words, as far as the window contains them
            first, last = words.index(first_word), len(words) - 1 - words[::-1].index(last_word)
        self._spans[index] = _Span(float(products.max()), offsets[first][0], offsets[last][1])

    def answers(self, allow_none: bool) -> list[Answer]:
        """The best answer from each context; with `allow_none`, an empty one where that is more probable."""
        answers = []
        for context, (text, no_answer) in enumerate(zip(self._contexts, self._no_answers)):
            spans = [span for window, span in zip(self._windows, self._spans) if window.context == context]
            score, start, end = max(spans, key=lambda span: span.score)
            if allow_none and no_answer > score:
                score, start, end = no_answer, 0, 0
            answers.append(Answer(text[start:end], start, end, score, no_answer))
        return answers
