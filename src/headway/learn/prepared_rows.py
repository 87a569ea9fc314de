"""Token ids of prepared samples, and rows of them for encoders, read from shards when a batch needs them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import cycle

import numpy as np

from headway.codecs import Codec
from headway.codecs.tokenizer import SequenceTemplate
from headway.data import PairBatches
from headway.data.prepared.prepared_samples import PreparedSamples
from headway.errors import UserError
from headway.learn.token_rows import Inputs, LengthLimit, TokenRows, frame_rows, plan_batches
from headway.learn.token_shards import KEY_BYTES, shared_dtype, shared_fingerprint


class PreparedTokens:
    """The token ids of prepared samples, one array per part, by one codec, or by one codec per part. UserError if other
    tokenizers made them, and if the table contradicts itself.
    """

    def __init__(self, samples: PreparedSamples, *codecs: Codec) -> None:
        samples.data.check_tokenizer(shared_fingerprint(codecs))
        self.samples, self._dtype = samples, shared_dtype(codecs)
        self._vocab_sizes = [codec.vocab_size for codec in codecs]
        self.lengths = samples.lengths.reshape(len(samples), -1)  # int64 [N, P]
        sizes, has_keys = samples.sizes, samples.keys.shape[1] == KEY_BYTES
        # Each length is compared first, because huge ones overflow in the sum.
        fits = (self.lengths <= sizes[:, None]).all() and (self.lengths.sum(1) * self._dtype.itemsize <= sizes).all()
        self.inconsistent = f"the table of {samples.data.name} is inconsistent with its shards; prepare the data again"
        if not fits or not has_keys:
            raise UserError(self.inconsistent)

    @property
    def keys(self) -> np.ndarray:
        """What decides the splits of samples, uint64 [N]."""
        return np.ascontiguousarray(self.samples.keys).view("<u8")[:, 0]

    def contents(self, rows: np.ndarray) -> Iterator[tuple[list[np.ndarray], memoryview]]:
        """The ids of each part of samples, and the bytes after them."""
        for content, lengths in zip(self.samples.contents(rows), self.lengths[rows]):
            stop = int(lengths.sum()) * self._dtype.itemsize
            ids = np.frombuffer(content[:stop], self._dtype)
            parts = np.split(ids, np.cumsum(lengths[:-1]))
            if any(part.max(initial=0) >= size for part, size in zip(parts, cycle(self._vocab_sizes))):
                raise UserError(
                    f"{self.samples.data.name} contains token ids that its tokenizer does not have; prepare it again"
                )
            yield parts, content[stop:]


class PreparedRows:
    """`TokenRows` of texts or text pairs in shards; only their lengths are in memory."""

    def __init__(
        self, tokens: PreparedTokens, frame: SequenceTemplate, limit: LengthLimit, locate: Callable[[int], str]
    ) -> None:
        """UserError for a text that is too long, named by `locate`, unless it may be truncated."""
        self.tokens, self._frame, self._limit = tokens, frame, limit
        special_count = frame.num_special_tokens(tokens.lengths.shape[1])
        self.lengths = tokens.lengths.sum(1) + special_count
        if limit.max_length is not None:
            too_long = np.flatnonzero(self.lengths > limit.max_length)
            if len(too_long) and not limit.truncate:
                self.framed(too_long[:1], lambda _: locate(int(too_long[0])))
            self.lengths = np.minimum(self.lengths, max(special_count, limit.max_length))

    def __len__(self) -> int:
        return len(self.lengths)

    def framed(self, indices: np.ndarray, locate: Callable[[int], str] = str) -> TokenRows:
        """These rows in memory; `locate` names one for messages."""
        first, *second = zip(*([ids.tolist() for ids in parts] for parts, _ in self.tokens.contents(indices)))
        return frame_rows(self._frame, first, second[0] if second else None, self._limit, locate)

    def inputs(self, indices: np.ndarray) -> Inputs:
        """The rows with these indices, padded to the longest."""
        return self.framed(indices).inputs(np.arange(len(indices)))

    def plan(self, indices: np.ndarray, batch_tokens: int, seed: int = 0) -> PairBatches:
        """Batches of these rows; each contains positions in `indices`."""
        return plan_batches(self.lengths[indices], batch_tokens, seed)
