"""Text codecs: text <-> token ids with a `tokenizers.Tokenizer` of any kind, trained here or published; streaming
decoders, and the templates of special tokens.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from tokenizers import Regex, Tokenizer, models, pre_tokenizers

from headway.codecs.special_tokens import END_OF_TEXT, SpecialTokens, guess_special_tokens, special_ids
from headway.codecs.tokenizer_limits import check_pieces, check_special_tokens
from headway.errors import UserError
from headway.io.durable import temporary_path

Kind = Literal["word", "byte", "char", "bpe", "wordpiece", "unigram"]  # kinds of trainable tokenizers


class StreamDecoder(Protocol):
    """Decodes ids one by one; the concatenated output equals `Codec.decode`."""

    def push(self, token: int) -> str:
        """The text that `token` completes; empty while a character is incomplete."""
        ...

    def flush(self) -> str:
        """The remaining text, with an incomplete character as U+FFFD; resets the decoder."""
        ...


class Codec(Protocol):
    """Text <-> token ids. There is no padding token: a Layout marks padding."""

    vocab_size: int  # all ids are smaller
    bos_id: int | None  # added before a text
    eos_id: int | None  # added after a text
    unk_id: int | None  # for text without a token; None if every text has tokens

    def encode(self, text: str) -> list[int]:
        """The ids for `text`, without begin and end tokens. Text that looks like a special token stays text."""
        ...

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` each text, in parallel."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The detokenised text. Special tokens are skipped; the unknown token stays visible."""
        ...

    def sections(self, text: str) -> Iterator[str]:
        """Split a long text into sections whose concatenated ids equal the ids for the whole text."""
        ...

    def stream(self) -> StreamDecoder:
        """A decoder that takes ids one by one."""
        ...

    def save(self, path: Path) -> None:
        """Write tokenizer.json in the folder `path`, or `path` itself if it ends in .json.

        The file is written under a temporary name and then renamed, so it is never incomplete.
        """
        ...

    def fingerprint(self) -> str:
        """A hash of everything that the ids depend on, for cache keys."""
        ...


_BYTE_TOKEN = re.compile("<0x([0-9A-F]{2})>")


_VISIBLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
_HIDDEN = [byte for byte in range(256) if byte not in _VISIBLE]
BYTES = {**{chr(b): b for b in _VISIBLE}, **{chr(256 + i): b for i, b in enumerate(_HIDDEN)}}
"""The characters that represent bytes in byte-level tokenizers: visible Latin-1 characters as they are, the others from
U+0100.
"""


def decoder_steps(tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """The JSON steps of the tokenizer's decoder; empty if tokens are joined with spaces."""
    if tokenizer.decoder is None:
        return []
    state = json.loads(tokenizer.decoder.__getstate__())
    return state["decoders"] if state["type"] == "Sequence" else [state]


class ByteStream:
    """For byte-level tokenizers: an incremental UTF-8 decoder that is also exact for invalid bytes.

    With `line_space`, the tokenizer adds one space at the start of each line, which is dropped.
    """

    def __init__(self, tokenizer: Tokenizer, line_space: bool) -> None:
        self._tokenizer = tokenizer
        self._special = special_ids(tokenizer)
        self._line_space = line_space
        self._restart()

    def _restart(self) -> None:
        self._characters = codecs.getincrementaldecoder("utf-8")("replace")
        self._at_line_start = True

    def push(self, token: int) -> str:
        spelling = self._tokenizer.id_to_token(token)
        if spelling is None or token in self._special:
            return ""
        known = all(character in BYTES for character in spelling)
        token_bytes = bytes(BYTES[character] for character in spelling) if known else spelling.encode()
        return self._without_line_space(self._characters.decode(token_bytes))

    def flush(self) -> str:
        text = self._without_line_space(self._characters.decode(b"", final=True))
        self._restart()
        return text

    def _without_line_space(self, text: str) -> str:
        if not self._line_space or not text:
            return text
        stripped = text.removeprefix(" ") if self._at_line_start else text
        self._at_line_start = text.endswith("\n")
        return stripped.replace("\n ", "\n")


class WindowStream:
    """For all other tokenizers: a token's text may depend on adjacent tokens, so a short window is decoded.

    The window contains the last tokens that were printed and those received since.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._special = special_ids(tokenizer)
        self._printed: list[int] = []
        self._pending: list[int] = []

    def push(self, token: int) -> str:
        if token in self._special:
            return ""
        self._pending.append(token)
        printed_text = self._tokenizer.decode(self._printed, skip_special_tokens=True)
        full_text = self._tokenizer.decode(self._printed + self._pending, skip_special_tokens=True)
        text = full_text[len(printed_text) :]
        if text:
            self.continue_after(self._pending)
        return text

    def continue_after(self, printed: list[int]) -> None:
        """Continue after the tokens `printed`."""
        self._printed, self._pending = printed, []

    def flush(self) -> str:
        self.continue_after([])
        return ""


class FallbackStream:
    """For tokenizers whose tokens <0x00> to <0xFF> encode characters that have no token.

    If a run of bytes contains an invalid one, `decode` replaces the whole run. A stream cannot look ahead, so it
    replaces only the invalid bytes.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._window = WindowStream(tokenizer)
        self._characters = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        byte = _BYTE_TOKEN.fullmatch(self._tokenizer.id_to_token(token) or "")
        if byte is not None:
            self._window.continue_after([token])
            return self._characters.decode(bytes.fromhex(byte[1]))
        text = self._window.push(token)
        return self._characters.decode(b"", final=True) + text if text else ""

    def flush(self) -> str:
        return self._characters.decode(b"", final=True) + self._window.flush()


__all__ = ["END_OF_TEXT", "FILE", "TokenizerCodec"]

FILE = "tokenizer.json"
SECTION_LENGTH = 1 << 16  # characters; tokenizers uses about a hundred bytes per character
# Tokenizers that split words never join two non-blank lines.
_SECTION_BREAK = re.compile(r"(?<=\S\n)(?=\S)")
_MAX_SPELLABLE = 1 << 16
_PROBE = ("The word, its\n", "line-2 end.\n", "(Next) \u00fc")
# Steps that remove the space that tokenizers trained here add at the start of each line.
LINE_SPACE_STEPS = [
    {"type": "Replace", "pattern": {"String": "\n "}, "content": "\n"},
    {"type": "Strip", "content": " ", "start": 1, "stop": 0},
]


class TokenizerCodec:
    """Text <-> ids with the `tokenizers` library.

    `special_tokens` are token names by role; None guesses them. A name that is not a token is ignored. Besides the
    attributes that every codec has, `pad` and `mask` are ids, or None if there is no such token.
    """

    def __init__(self, tokenizer: Tokenizer, special_tokens: SpecialTokens | None = None) -> None:
        tokenizer.no_truncation()  # never truncate or pad silently
        tokenizer.no_padding()
        tokenizer.encode_special_tokens = True  # "</s>" in a text must not end the sequence
        vocabulary = tokenizer.get_vocab(with_added_tokens=True)
        added = tokenizer.get_added_tokens_decoder().values()
        check_special_tokens((token.content for token in added if token.special), "the tokenizer")
        check_pieces(tokenizer, vocabulary, "the tokenizer")
        _block_special_spellings(tokenizer)
        self.tokenizer = tokenizer
        self.vocab_size = max(vocabulary.values()) + 1
        self.special_tokens = guess_special_tokens(tokenizer) if special_tokens is None else special_tokens
        self.bos_id = self.token_id(self.special_tokens.start_token)
        self.eos_id = self.token_id(self.special_tokens.end_token)
        self.pad = self.token_id(self.special_tokens.pad)
        self.mask = self.token_id(self.special_tokens.mask)
        if isinstance(tokenizer.model, models.Unigram):  # the only model that stores an id instead of a name
            self.unk_id = json.loads(tokenizer.model.__getstate__()).get("unk_id")
        else:  # GPT-2 defines an unknown token but never uses it
            self.unk_id = self.token_id(getattr(tokenizer.model, "unk_token", None))

    def token_id(self, name: str | None) -> int | None:
        """The id of the token `name`, such as "<|im_end|>"; None if there is none."""
        return None if name is None else self.tokenizer.token_to_id(name)

    def encode(self, text: str) -> list[int]:
        """Raises UserError for text that has no tokens, if the tokenizer has no unknown token."""
        if len(text) > SECTION_LENGTH:
            return self.encode_batch([text])[0]
        try:
            return self.tokenizer.encode(text, add_special_tokens=False).ids
        except BaseException as error:
            raise _as_user_error(error) from error

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        text_sections = [list(self.sections(text)) for text in texts]
        all_sections = [section for sections in text_sections for section in sections]
        try:
            encodings = iter(self.tokenizer.encode_batch_fast(all_sections, add_special_tokens=False))
        except BaseException as error:
            raise _as_user_error(error) from error
        return [[i for _ in sections for i in next(encodings).ids] for sections in text_sections]

    def decode(self, ids: Sequence[int]) -> str:
        try:
            return self.tokenizer.decode(ids, skip_special_tokens=True)
        except BaseException as error:
            raise _as_user_error(error) from error

    def sections(self, text: str) -> Iterator[str]:
        """Cut after about 65,000 characters, at the next line break between two words.

        The text is not cut for tokenizers that join lines or mark the start of a text.
        """
        start = 0
        while len(text) - start > SECTION_LENGTH and self._separates_lines:
            cut = _SECTION_BREAK.search(text, start + SECTION_LENGTH)
            if cut is None:
                break
            yield text[start : cut.start()]
            start = cut.start()
        yield text[start:] if start else text

    @cached_property
    def _separates_lines(self) -> bool:
        joined_ids = self.encode("".join(_PROBE))
        return joined_ids == [i for line in _PROBE for i in self.encode(line)]

    def stream(self) -> StreamDecoder:
        steps = decoder_steps(self.tokenizer)
        if steps and steps[0]["type"] == "ByteLevel" and steps[1:] in ([], LINE_SPACE_STEPS):
            return ByteStream(self.tokenizer, line_space=steps[1:] == LINE_SPACE_STEPS)
        if any(step["type"] == "ByteFallback" for step in steps):
            return FallbackStream(self.tokenizer)
        return WindowStream(self.tokenizer)

    def save(self, path: Path) -> None:
        path = Path(path)
        file = path if path.suffix == ".json" else path / FILE
        file.parent.mkdir(parents=True, exist_ok=True)
        # Special tokens are written first, so that a tokenizer file never exists without them.
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", **self.special_tokens.settings()}
        _write_atomically(config_path(file), json.dumps(settings, indent=2, ensure_ascii=False) + "\n")
        _write_atomically(file, self.tokenizer.to_str(pretty=True))

    def difference(self, other: TokenizerCodec) -> str | None:
        """How the tokens in `other` differ from these, for messages; None if all ids have the same meaning."""
        own_vocab, other_vocab = (codec.tokenizer.get_vocab(with_added_tokens=True) for codec in (self, other))
        if own_vocab == other_vocab:
            return None
        if len(own_vocab) != len(other_vocab):
            return f"{len(other_vocab)} tokens instead of {len(own_vocab)}"
        by_id = {token_id: name for name, token_id in other_vocab.items()}
        name, token_id = min(
            (item for item in own_vocab.items() if other_vocab.get(item[0]) != item[1]), key=lambda item: item[1]
        )
        return f"id {token_id} is {by_id.get(token_id)!r} instead of {name!r}"

    def fingerprint(self) -> str:
        return hashlib.sha256(f"{self.tokenizer.to_str()}{self.bos_id},{self.eos_id}".encode()).hexdigest()


def _as_user_error(error: BaseException) -> BaseException:
    """Turn an error from the library, which raises bare Exceptions and panics, into a UserError."""
    reason = " ".join(str(error).split())[:200]
    if type(error).__name__ == "PanicException":  # it is not an Exception
        return UserError(f"the tokenizer fails on this input ({reason}); use another tokenizer")
    if not isinstance(error, Exception) or isinstance(error, (MemoryError, TypeError, OverflowError)):
        return error
    return UserError(f"the tokenizer has no tokens for the text ({reason}); use one with an unknown token")


def config_path(file: Path) -> Path:
    """The file with a tokenizer file's special tokens: tokenizer_config.json for tokenizer.json."""
    return file.with_name(f"{file.stem}_config.json")


def _write_atomically(file: Path, text: str) -> None:
    draft = temporary_path(file)
    draft.write_text(text, encoding="utf-8")
    os.replace(draft, file)


def _block_special_spellings(tokenizer: Tokenizer) -> None:
    """Keep text from being encoded as special tokens that are also in the model's vocabulary.

    sentencepiece never matches these in a text, but `tokenizers` does in Unigram models, and in BPE models that keep
    known words whole. Such text is split next to a known character, so that no token can span it. Unknown characters
    on both sides would be fused otherwise.
    """
    added = tokenizer.get_added_tokens_decoder()
    names = [token.content for token in added.values() if token.special and len(token.content) > 1]
    in_vocabulary = [name for name in names if tokenizer.model.token_to_id(name) is not None]
    spellable = [
        name for name in in_vocabulary if (0, len(name)) in tokenizer.encode(name, add_special_tokens=False).offsets
    ]
    if not spellable:
        return
    if sum(map(len, spellable)) > _MAX_SPELLABLE:
        raise UserError(
            f"the tokenizer has {len(spellable):,} special tokens that text could be encoded as, with more than "
            f"{_MAX_SPELLABLE:,} characters in total; use another tokenizer"
        )
    starts: dict[str, list[str]] = {}
    for name in spellable:
        known = (i for i in range(1, len(name)) if any(map(tokenizer.model.token_to_id, name[i - 1 : i + 1])))
        cut = next(known, 1)
        starts.setdefault(name[:cut], []).append(re.escape(name[cut:]))
    pattern = "|".join(f"(?<={re.escape(first)})(?={'|'.join(suffixes)})" for first, suffixes in starts.items())
    steps = [] if tokenizer.pre_tokenizer is None else [tokenizer.pre_tokenizer]
    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*steps, split])  # type: ignore[assignment]


class SequenceTemplate(NamedTuple):
    """Special tokens before a text, between two texts and after them; `typed` if the second has its own token type.

    BERT: [CLS] a [SEP] b [SEP] with types 0 and 1; RoBERTa: <s> a </s></s> b </s> without types.
    """

    before: tuple[int, ...]
    between: tuple[int, ...]
    after: tuple[int, ...]
    typed: bool = True

    def num_special_tokens(self, text_count: int) -> int:
        """The number of special tokens added to one or two texts."""
        return len(self.before) + len(self.after) + (len(self.between) if text_count == 2 else 0)

    def add_special_tokens(self, first: Sequence[int], second: Sequence[int] | None = None) -> list[int]:
        """The ids for one or two texts with special tokens."""
        if second is None:
            return [*self.before, *first, *self.after]
        return [*self.before, *first, *self.between, *second, *self.after]


def sequence_template(codec: Codec) -> SequenceTemplate:
    """The template from a published tokenizer. Without one, it is the begin token before a text, and the end token
    between and after texts.
    """
    bos, eos = (() if token_id is None else (token_id,) for token_id in (codec.bos_id, codec.eos_id))
    plain = SequenceTemplate(bos, eos, eos)
    if not isinstance(codec, TokenizerCodec) or codec.tokenizer.post_processor is None:
        return plain
    try:
        probe = codec.tokenizer.encode("a", "b", add_special_tokens=True)
    except BaseException as error:
        raise _as_user_error(error) from error
    positions = [[i for i, text in enumerate(probe.sequence_ids) if text == sequence_id] for sequence_id in (0, 1)]
    if not all(positions) or len(positions[0]) + len(positions[1]) == len(probe.ids):
        return plain
    (start, stop), (second, stop_second) = ((indices[0], indices[-1] + 1) for indices in positions)
    ids = probe.ids
    typed = probe.type_ids[second] == 1
    return SequenceTemplate(tuple(ids[:start]), tuple(ids[stop:second]), tuple(ids[stop_second:]), typed)


def encode_with_special_tokens(codec: Codec, text: str) -> list[int]:
    """The ids for a text, with the special tokens of a published tokenizer."""
    if not isinstance(codec, TokenizerCodec):
        return codec.encode(text)
    try:
        return codec.tokenizer.encode(text, add_special_tokens=True).ids
    except BaseException as error:
        raise _as_user_error(error) from error


class WordTokens(NamedTuple):
    """The ids for a sentence; `first` is the index of each word's first token, None for a word without tokens."""

    ids: list[int]
    first_tokens: list[int | None]


def tokenize_words(codec: TokenizerCodec, sentences: Sequence[Sequence[str]]) -> list[WordTokens]:
    """The tokens for each sentence, whose words are joined by spaces so that the ids equal those for running text."""
    strings = [" ".join(words) for words in sentences]
    try:
        encoded = codec.tokenizer.encode_batch(strings, add_special_tokens=False)
    except BaseException as error:
        raise _as_user_error(error) from error
    word_tokens = []
    for words, encoding in zip(sentences, encoded):
        first_tokens: list[int | None] = []
        offsets, token_index, start = encoding.offsets, 0, 0
        for word in words:  # a token belongs to the word in which it ends
            stop = start + len(word)
            while token_index < len(offsets) and offsets[token_index][1] <= start:
                token_index += 1
            is_inside = token_index < len(offsets) and offsets[token_index][0] < stop
            first_tokens.append(token_index if is_inside else None)
            start = stop + 1
        word_tokens.append(WordTokens(encoding.ids, first_tokens))
    return word_tokens


class LocatedTokens(NamedTuple):
    """The ids for a text, the first character and the one after the last of each token, and the index of its word, None
    if the tokenizer has no words.
    """

    ids: list[int]
    offsets: list[tuple[int, int]]
    words: list[int | None]


def locate_tokens(codec: TokenizerCodec, texts: Sequence[str]) -> list[LocatedTokens]:
    """The tokens for each text with their positions in it."""
    try:
        encoded = codec.tokenizer.encode_batch(list(texts), add_special_tokens=False)
    except BaseException as error:
        raise _as_user_error(error) from error
    return [LocatedTokens(encoding.ids, encoding.offsets, encoding.word_ids) for encoding in encoded]
