"""Conversations and preferences as shards of token ids with masks of the tokens to train on, and trainings that start
from their table.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from headway.codecs import Codec, Kind, TokenizerCodec, load_codec
from headway.codecs.chat_template import ChatTemplate, default_template, read_template
from headway.data.dialogues import find_chat_files
from headway.data.input_files import File
from headway.data.prepared.prepared_samples import PreparedSamples
from headway.data.prepared.sample_shards import EncodedSample
from headway.data.splits import split_code, text_key
from headway.data.token_store import ChatCache
from headway.domains.chat.chat_samples import ChatData, ChatKind, chat_template, train_chat_codec
from headway.errors import UserError
from headway.formats.usage import read_usage
from headway.io.hub import named_folder
from headway.learn.prepared_rows import PreparedTokens
from headway.learn.token_shards import KEY_BYTES, SourceRow, shared_dtype


class ChatReader:
    """The conversations or preferences of files, with the chat template of the `tokenizer`'s model, or the default one.
    A new tokenizer has this kind and size (codec, size).
    """

    def __init__(
        self,
        kind: ChatKind,
        paths: Sequence[Path],
        codec: Kind = "bpe",
        size: int | None = 8192,
        tokenizer: str | None = None,
    ) -> None:
        self._kind, self._size = kind, size
        self.name, self.parts, self.num_sums, self.vocabularies = kind.name, kind.parts, kind.parts, 1
        self.codec: Kind = codec
        self.files: Sequence[File] = find_chat_files(paths)
        folder = None if tokenizer is None else named_folder(tokenizer)
        text = None if folder is None else read_usage(folder).template or read_template(folder)
        self._template = default_template().text if text is None else ChatTemplate(text).text
        self._bound: ChatTemplate | None = None  # to the tokenizer, which is the same for all rows
        self.settings: Mapping[str, Any] = {"codec": codec, "size": size, "template": self._template}

    def rows(self) -> Iterator[SourceRow]:
        for file in self.files:
            code = 0 if file.named_split is None else split_code(file.named_split)
            for line, *messages in self._kind.read(file):
                yield SourceRow(messages, "", code, f"{file.name}, line {line}")

    def texts(self, content: Any) -> Sequence[str]:
        return [message["content"] for messages in content for message in messages]

    def train(self, texts: Iterable[str]) -> Codec:
        return train_chat_codec(self.codec, texts, self._size)

    def encode(self, rows: Sequence[SourceRow], codecs: Sequence[Codec]) -> Iterator[EncodedSample]:
        """The ids of each conversation, and then a bit per token, 1 for those to train on; sums count them."""
        codec, dtype = cast(TokenizerCodec, codecs[0]), shared_dtype(codecs)
        self._bound = self._bound or chat_template(self._template, codec)
        for row in rows:
            text, chats = self._kind.encode(self._bound, codec, row.location, *row.content)
            masks = [np.zeros(len(ids), np.uint8) for ids, _ in chats]
            for mask, (_, spans) in zip(masks, chats):
                for start, stop in spans:
                    mask[start:stop] = 1
            ids = np.array([token for ids, _ in chats for token in ids], dtype)
            yield EncodedSample(
                ids.tobytes() + np.packbits(np.concatenate(masks)).tobytes(),
                text_key(text).to_bytes(KEY_BYTES, "little"),
                tuple(map(len, masks)),
                sums=[int(mask.sum()) for mask in masks],
            )


@dataclass(frozen=True)
class PreparedChats(ChatCache):
    """Conversations in shards; only their lengths are in memory."""

    prepared: PreparedTokens

    def chat(self, sample: int, index: int = 0) -> tuple[np.ndarray, np.ndarray]:
        ((ids, masks),) = self._contents(np.array([sample]))
        return ids[index], masks[index]

    def tokens(self, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        ids, masks = zip(*((np.concatenate(parts) for parts in content) for content in self._contents(samples)))
        return np.concatenate(ids), np.concatenate(masks), np.cumsum([0, *map(len, ids[:-1])])

    def _contents(self, samples: np.ndarray) -> Iterator[tuple[list[np.ndarray], list[np.ndarray]]]:
        """The ids and the loss masks of the conversations of samples. UserError for one without tokens to train on."""
        for ids, content in self.prepared.contents(samples):
            ends, bits = np.cumsum([len(part) for part in ids]), np.frombuffer(content, np.uint8)
            mask = np.unpackbits(bits, count=int(ends[-1]))
            masks = np.split(mask, ends[:-1])
            if len(bits) != -(-len(mask) // 8) or not all(part[1:].any() for part in masks):
                raise UserError(self.prepared.inconsistent)
            yield ids, masks

    @property
    def reply_lengths(self) -> np.ndarray:
        return self.prepared.samples.sums.astype(np.int64)

    def digests(self) -> tuple[np.ndarray, np.ndarray]:
        return self.prepared.samples.checksums, self.prepared.samples.sums

    def location(self, sample: int) -> str:
        return self.prepared.samples.names[sample]


def open_prepared(
    paths: Sequence[Path], kind: ChatKind, codec: TokenizerCodec | None, template: str | None
) -> ChatData:
    """Prepared samples for a model with this tokenizer and chat template, or for a new model. UserError for samples
    that were prepared with others.
    """
    samples = PreparedSamples.open(paths, kind.name, kind.parts)
    text, name = samples.details.get("template"), samples.data.name
    if not isinstance(text, str):
        raise UserError(f"the index of {name} does not state a chat template; prepare the data again")
    if codec is None:
        codec, template = load_codec(samples.data.companion_folder()), text
    tokens, bound, sums = PreparedTokens(samples, codec), chat_template(template, codec), samples.sums
    if bound.text != text:
        raise UserError(
            f"{name} was prepared with another chat template than that of this model; prepare the data with "
            "--tokenizer and the model's folder"
        )
    if sums.shape != tokens.lengths.shape or (sums > tokens.lengths.astype(np.uint64)).any():
        raise UserError(tokens.inconsistent)
    chats = PreparedChats(
        directory=samples.data.folder / samples.data.index.digest,  # whose name identifies the contents
        chats_per_sample=kind.parts,
        ids=np.zeros(0, np.uint16),
        loss_mask=np.zeros(0, np.uint8),
        offsets=np.append(0, np.cumsum(tokens.lengths.reshape(-1))),
        keys=tokens.keys,
        named_splits=samples.named_splits,
        lines=np.zeros(0, np.uint32),
        prepared=tokens,
    )
    return ChatData(codec, bound, chats, samples if samples.is_windowed else None)
