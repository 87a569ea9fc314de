"""Train codecs on a stream of texts: words, bytes, characters, BPE, WordPiece and Unigram.

Codecs reproduce text that they have tokens for exactly, unless `lowercase` is set. Word and character codecs have an
unknown token; the others work on bytes and need none.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Literal, get_args

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from headway.codecs.tokenizer import BYTES, END_OF_TEXT, SECTION_LENGTH, Kind, TokenizerCodec
from headway.codecs.tokenizer_limits import MAX_TOKEN_LENGTH
from headway.errors import UserError, nearest

Split = Literal["text", "space"]

SUBWORDS = ("bpe", "wordpiece", "unigram")
LINES = r"(?<=\n)(?=[^\n])"  # before each line except the first
# A word with inner apostrophes and hyphens, or a punctuation mark, with the space before it; or other white space.
WORD = r" ?\w+(?:['’\-]\w+)*| ?[^\w\s]|\s"
REPLACEMENT = "\ufffd"  # Unicode's replacement character
UNKNOWN_TOKEN = {"text": " <unk>", "space": "<unk>"}  # in text, it follows a space, as words do
MAX_WORD_BYTES = 100  # WordPiece gives up on longer words, so they are cut
MIN_FREQUENCY = 2  # minimum frequency for merging a pair
MAX_INT = (1 << 31) - 1
MAX_VOCAB_SIZE = 1 << 24  # maximum vocabulary size
ALPHABET = sorted(BYTES, key=BYTES.__getitem__)
_WINDOW = 500  # characters; if every window contains a space and other text, no word is long
_SPACE = re.compile(r"\s")
_LONG_WORD = re.compile(r"\w{1000}(?=\w)|[^\w\s]{1000}(?=[^\w\s])")
_LONG_SPACE = re.compile(r"(\s{1000})\s+")
_WORD_END = re.compile(r"(?<=\S)(?=\s)")


def train_codec(
    kind: Kind,
    texts: Iterable[str],
    size: int | None = None,
    *,
    lowercase: bool = False,
    split: Split = "text",
    prefix_space: bool = False,
    special: Sequence[str] = (END_OF_TEXT,),
    fewer: bool = False,
) -> TokenizerCodec:
    """Train a codec with a vocabulary of `size` tokens, including those in `special`, which get the last ids. With
    `fewer`, `size` is only a maximum.

    `texts` is read once and never held in memory as a whole. If `size` is None, all words or characters in the data, or
    all bytes, are used. `split="space"` treats everything between spaces as a word (phonemes). `prefix_space` uses the
    same token for a word at the start of a line and after a space, which suits sentences. Raises UserError if there is
    no text, and if the size is too small for the kind or larger than the data can fill.
    """
    _check(kind, size, split, prefix_space, special)
    line_space = prefix_space or (kind == "word" and split == "text")
    tokenizer = Tokenizer(models.BPE())
    steps: list[normalizers.Normalizer] = [normalizers.Lowercase()] if lowercase else []
    if line_space:  # a space before each line, so that its first word has the same token as elsewhere
        steps += [normalizers.Prepend(" "), normalizers.Replace(Regex(LINES), " ")]
    if steps:
        tokenizer.normalizer = normalizers.Sequence(steps)  # type: ignore[assignment]
    tokenizer.pre_tokenizer = _pre_tokenizer(kind, split)
    tokenizer.decoder = _decoder(kind, split, line_space)
    max_size = MAX_INT if size is None else size - len(special)
    non_empty = (text for text in texts if text)
    first = next(non_empty, None)
    if first is None:
        raise UserError("there is no text to train a codec on; pass non-empty data")
    sections = _sections(chain([first], non_empty))
    if kind in SUBWORDS:
        sections = map(_with_short_words, sections)
    if kind == "byte":
        tokenizer.model = models.BPE({token: byte for byte, token in enumerate(ALPHABET)}, [])
    elif kind == "char":
        counts: Counter[str] = Counter()
        for section in sections:
            counts.update(tokenizer.normalizer.normalize_str(section) if tokenizer.normalizer else section)
        del counts[REPLACEMENT]  # the unknown token
        frequent = sorted(counts, key=lambda character: (-counts[character], character))[: max_size - 1]
        vocabulary = {character: i for i, character in enumerate([*sorted(frequent), REPLACEMENT])}
        tokenizer.model = models.BPE(vocabulary, [], unk_token=REPLACEMENT)
    elif kind == "word":
        tokenizer.model = _train_words(tokenizer, sections, max_size, UNKNOWN_TOKEN[split])
    else:
        tokenizer.model = _train_subwords(kind, tokenizer, sections, max_size)
    _check_vocab_filled(tokenizer, kind, None if fewer else size, special)
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in special])
    return TokenizerCodec(tokenizer)


def sentence_codec(
    kind: Kind, texts: Iterable[str], size: int | None, special: Sequence[str], lowercase: bool = False
) -> TokenizerCodec:
    """Train a codec with at most `size` tokens for sentences: a word has the same token at the start of a sentence and
    inside it. Raises the same errors as `train_codec`.
    """
    spaced = kind in SUBWORDS
    return train_codec(kind, texts, size, lowercase=lowercase, prefix_space=spaced, special=special, fewer=True)


def _check(kind: str, size: int | None, split: str, prefix_space: bool, special: Sequence[str]) -> None:
    if kind not in get_args(Kind):
        raise UserError(f"unknown codec kind {kind!r}; {nearest(kind, get_args(Kind))}")
    if split not in get_args(Split):
        raise UserError(f"split is {split!r}; {nearest(split, get_args(Split))}")
    if split == "space" and kind != "word":
        raise UserError(f"a {kind} codec does not support split='space'; use kind='word' or split='text'")
    if prefix_space and kind not in SUBWORDS:
        raise UserError(f"a {kind} codec does not support prefix_space; omit it, or use {', '.join(SUBWORDS)}")
    if len(set(special)) < len(special) or "" in special:
        raise UserError(f"special tokens {list(special)} are not distinct; pass each name once")
    _check_size(kind, size, len(special))


def _check_size(kind: str, size: int | None, special: int) -> None:
    byte_size = len(ALPHABET) + special
    min_size = special + 2 if kind in ("word", "char") else byte_size  # the unknown token and one more, or all bytes
    if size is None:
        if kind in SUBWORDS:
            raise UserError(f"a {kind} codec needs a size; set one, such as 8000")
    elif kind == "byte" and size != byte_size:
        raise UserError(f"size {size} does not fit a byte codec; set {byte_size}, or omit it")
    elif size < min_size:
        raise UserError(f"size {size} is too small for a {kind} codec; set {min_size} or more")
    elif size > MAX_VOCAB_SIZE:  # the library allocates all of it up front, and aborts the process on failure
        raise UserError(f"size {size:,} is too large for a codec; set {MAX_VOCAB_SIZE:,} or less")


def _check_vocab_filled(tokenizer: Tokenizer, kind: str, size: int | None, special: Sequence[str]) -> None:
    vocab_size = tokenizer.get_vocab_size() + len(special)
    if size is not None and vocab_size < size:
        raise UserError(
            f"size {size} is more than the data can fill: they suffice for a {kind} codec with {vocab_size} tokens; "
            f"set {vocab_size} or less, or add data"
        )
    for name in special:
        if tokenizer.token_to_id(name) is not None:
            raise UserError(f"special token {name!r} also occurs in the data as a {kind}; choose another name")


def _sections(texts: Iterable[str]) -> Iterator[str]:
    """The texts, with long ones cut before white space because the library uses a hundred bytes per character."""
    for text in texts:
        start = 0
        while len(text) - start > SECTION_LENGTH:
            cut = _WORD_END.search(text, start + SECTION_LENGTH)
            end = cut.start() if cut else len(text)
            yield text[start:end]
            start = end
        yield text[start:] if start else text


def _with_short_words(text: str) -> str:
    """A text with spaces inserted into words of more than a thousand characters, and at most a thousand spaces in a
    row, because trainers take quadratic time in these lengths.
    """
    windows = (text[start : start + _WINDOW] for start in range(0, len(text) - _WINDOW + 1, _WINDOW))
    if all(_SPACE.search(window) and not window.isspace() for window in windows):
        return text
    return _LONG_SPACE.sub(r"\1", _LONG_WORD.sub(r"\g<0> ", text))


def _pre_tokenizer(kind: str, split: str) -> pre_tokenizers.PreTokenizer | None:
    if kind == "char":
        return None
    if split == "space":
        return pre_tokenizers.WhitespaceSplit()
    if kind == "word":
        return pre_tokenizers.Split(Regex(WORD), "isolated")
    # GPT-2's pattern separates letters, digits and punctuation, and keeps a space with the word after it.
    bytewise = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=kind != "byte")
    if kind != "wordpiece":
        return bytewise
    short = pre_tokenizers.Split(Regex(f".{{1,{MAX_WORD_BYTES}}}"), "isolated")
    return pre_tokenizers.Sequence([bytewise, short])


def _decoder(kind: str, split: str, line_space: bool) -> decoders.Decoder | None:
    if split == "space":
        return None  # tokens are joined by spaces
    first = decoders.Fuse() if kind in ("word", "char") else decoders.ByteLevel()
    if not line_space:
        return first
    # LINE_SPACE_STEPS repeats these steps for the stream decoder.
    return decoders.Sequence([first, decoders.Replace("\n ", "\n"), decoders.Strip(" ", 1, 0)])


def _train_words(tokenizer: Tokenizer, texts: Iterable[str], max_size: int, unknown: str) -> models.Model:
    """The unknown token, then words by frequency."""
    trainer = trainers.WordLevelTrainer(  # type: ignore[call-arg]
        vocab_size=max_size, min_frequency=1, special_tokens=[unknown], show_progress=False
    )
    trained = _train(tokenizer, models.WordLevel({unknown: 0}, unk_token=unknown), texts, trainer)
    words = {word: i for word, i in trained.get_vocab().items() if len(word) <= MAX_TOKEN_LENGTH}
    return models.WordLevel({word: i for i, word in enumerate(sorted(words, key=words.__getitem__))}, unk_token=unknown)


def _train_subwords(kind: str, tokenizer: Tokenizer, texts: Iterable[str], max_size: int) -> models.Model:
    if kind == "unigram":
        trainer = trainers.UnigramTrainer(vocab_size=max_size, initial_alphabet=ALPHABET, show_progress=False)
        trained = _train(tokenizer, models.Unigram(), texts, trainer)
        # Pieces and log probabilities, best first, without random differences between training runs: those in the last
        # digits (because of thread order) and in the order of bytes that never occurred.
        scores = json.loads(trained.model.__getstate__())["vocab"]
        floor = min((score for piece, score in scores if len(piece) > 1), default=0.0)
        rounded_scores = [(piece, round(max(score, floor), 6)) for piece, score in scores]
        return models.Unigram(sorted(rounded_scores, key=lambda pair: (-pair[1], pair[0])), None, False)
    trainer = trainers.BpeTrainer(
        vocab_size=max_size,
        min_frequency=MIN_FREQUENCY,
        initial_alphabet=ALPHABET,
        max_token_length=MAX_TOKEN_LENGTH,
        show_progress=False,
    )
    trained = _train(tokenizer, models.BPE(), texts, trainer)
    if kind == "bpe":
        return trained.model
    # BPE tokens, matched as in WordPiece: the longest first. A token at the start of a word includes the space, so the
    # others need no "##". The same data produce the same codec, which the library's own trainer does not guarantee.
    return models.WordPiece(trained.get_vocab(), max_input_chars_per_word=MAX_WORD_BYTES, continuing_subword_prefix="")


def _train(tokenizer: Tokenizer, model: models.Model, texts: Iterable[str], trainer: trainers.Trainer) -> Tokenizer:
    """A separate tokenizer for training, because training leaves special tokens in it."""
    scratch = Tokenizer(model)
    if tokenizer.normalizer is not None:
        scratch.normalizer = tokenizer.normalizer
    scratch.pre_tokenizer = tokenizer.pre_tokenizer
    scratch.train_from_iterator(texts, trainer)
    return scratch
