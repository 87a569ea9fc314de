"""Load published tokenizers in any of the formats that a folder may contain."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from tokenizers import Tokenizer

from headway.codecs import added, bytepairs, wordpiece
from headway.codecs.bounds import check_frame, check_growth, check_marks
from headway.codecs.files import first_file, library_errors, object_or_empty, parse_object, read_bytes, read_text
from headway.codecs.marks import (
    CONFIG,
    MARKS,
    OTHER,
    SIDES,
    RoleTokens,
    frame,
    inferred,
    read_settings,
    said,
    simplify,
    style_of,
)
from headway.codecs.outline import check_merges, laid_open, outline
from headway.codecs.patterns import check_pattern
from headway.codecs.sentencepiece import check_charsmap
from headway.codecs.tokenizer import FILE, TokenizerCodec, settings_of
from headway.errors import UserError

Side = Literal["source", "target"]
MODELS = ("spiece.model", "tokenizer.model", "sentencepiece.bpe.model", "sentencepiece.model", "spm.model")
_MOST = 1 << 24  # tokens


@dataclass(frozen=True)
class _Folder:
    """The settings in the files next to a vocabulary."""

    directory: Path
    settings: Mapping[str, Any]
    style: str


class _Read(NamedTuple):
    """A tokenizer, its style, and the style's special tokens; None if they must be guessed."""

    tokenizer: Tokenizer
    style: str
    marks: RoleTokens | None


def load_codec(path: Path | str) -> TokenizerCodec:
    """The codec of a tokenizer.json, or of a folder with a published tokenizer.

    UserError if there is none.
    """
    codec = published_codec(path)
    if codec is None:
        file = Path(path) / FILE if Path(path).is_dir() else Path(path)
        raise UserError(f"{file} does not exist; pass a tokenizer.json or a folder with one")
    return codec


def published_codec(path: Path | str, side: Side = "source") -> TokenizerCodec | None:
    """The codec of a folder or a file in a published format; None if there is no tokenizer.

    It reads the first of: tokenizer.json; vocab.json with merges.txt; vocab.txt; source.spm and target.spm with
    vocab.json, of which `side` is used; a sentencepiece .model; .tiktoken ranks. No code is run. Raises UserError for
    files that are invalid, too large, pickled, or of an unsupported class.
    """
    place = Path(path)
    file = place if place.is_file() else _vocabulary(place, side)
    if file is None:
        return None
    own = file.suffix == ".json" and file.name != bytepairs.VOCABULARY
    settings = read_settings(settings_of(file) if own else file.with_name(CONFIG))
    config = object_or_empty(file.with_name("config.json"))
    folder = _Folder(file.parent, settings, style_of(settings, config))
    if settings.get("auto_map") and file.name != FILE:
        raise UserError(
            f"{file.with_name(CONFIG)} needs custom code (auto_map), which is never run; "
            f"add a {FILE} next to it (transformers' save_pretrained writes one)"
        )
    read = _read(file, folder, side)
    with library_errors(file):
        return _codec(read, folder, file)


def check_fits(codec: TokenizerCodec, symbols: int, place: Path | str) -> None:
    """UserError for a tokenizer with more ids than the `vocab_size` of a model's embedding; fewer are common.

    `path` is the folder of both, for the message.
    """
    if codec.size > symbols:
        raise UserError(
            f"{place}: the tokenizer has {codec.size} tokens but the model's embedding only {symbols}; "
            "use the tokenizer that the model was trained with"
        )


def _vocabulary(directory: Path, side: Side) -> Path | None:
    """The file with a folder's vocabulary."""
    pair = (bytepairs.VOCABULARY, bytepairs.MERGES)
    found = first_file(directory, [FILE])
    if found is None and all((directory / name).is_file() for name in pair):
        found = directory / bytepairs.VOCABULARY
    found = found or first_file(directory, [wordpiece.FILE, SIDES[side][0], *MODELS])
    if found is not None or not directory.is_dir():
        return found
    ranks = sorted(directory.glob("*.tiktoken"))
    if len(ranks) > 1:
        names = ", ".join(path.name for path in ranks)
        raise UserError(f"{directory} contains several tokenizers ({names}); pass the one to use")
    return ranks[0] if ranks else None


def _read(file: Path, folder: _Folder, side: Side) -> _Read:
    style, settings = folder.style, folder.settings
    if file.name == bytepairs.VOCABULARY or file.suffix == ".txt":
        return _read_vocabulary(file, style, settings)
    if file.suffix == ".json":
        return _Read(_read_json(file), style, None)
    from headway.codecs import tiktoken
    from headway.codecs.vocabularies import read_marian, read_sentencepiece  # imports the sentencepiece reader

    if file.suffix == ".spm":
        return _Read(read_marian(folder.directory, side), "marian", MARKS["marian"])
    if file.suffix == ".tiktoken" or tiktoken.holds_ranks(read_bytes(file)):
        ranks = tiktoken.read_ranks(file)
        encoding = tiktoken.encoding_of(file.stem, ranks)
        return _Read(tiktoken.build(ranks, encoding, file), "", encoding.marks)
    tokenizer, marks = read_sentencepiece(file, style, settings)
    return _Read(tokenizer, style, marks)


def _read_vocabulary(file: Path, style: str, settings: Mapping[str, Any]) -> _Read:
    if style in OTHER:
        raise UserError(
            f"{file} belongs to a tokenizer of the unsupported class {style!r}; "
            f"add a {FILE} next to it (transformers' save_pretrained writes one)"
        )
    read = wordpiece.read_wordpiece if file.suffix == ".txt" else bytepairs.read_pairs
    tokenizer = read(file, style, settings)
    known = style if style in MARKS else inferred(tokenizer)
    return _Read(tokenizer, known, MARKS.get(known))


def _codec(read: _Read, folder: _Folder, file: Path) -> TokenizerCodec:
    tokenizer = read.tokenizer
    simplify(tokenizer, folder.settings)
    added.add_tokens(tokenizer, added.published_tokens(folder.settings, folder.directory), str(folder.directory))
    check_frame(tokenizer, str(file))
    marks = said(folder.settings, read.marks)
    if marks is not None:
        added.make_special(tokenizer, marks)
        frame(tokenizer, read.style, marks, folder.settings)
    if tokenizer.get_vocab_size() == 0:
        raise UserError(f"{file} contains no tokens; use the tokenizer of a trained model")
    codec = TokenizerCodec(tokenizer, marks)
    if codec.size > _MOST:
        raise UserError(f"{file} has token ids up to {codec.size - 1}, too many for any model; download it again")
    return codec


def _read_json(file: Path) -> Tokenizer:
    text, source = read_text(file), str(file)
    with library_errors(file):
        parts = outline(text)
        tokens = parts.get("added_tokens") or []
        stated = {token["content"]: token["id"] for token in tokens}
        check_marks((token["content"] for token in tokens if token.get("special")), source)
        for kind, value in laid_open(parts):
            if kind == "Regex":
                check_pattern(value, source)
            else:
                check_charsmap(base64.b64decode(value, validate=True))
        check_merges(parts.pop("model", None))
        bare = {name: part for name, part in parts.items() if name not in ("added_tokens", "truncation", "padding")}
        # Its growth is checked before added tokens are loaded, because it also processes these.
        check_growth(Tokenizer.from_str(json.dumps({**bare, "added_tokens": [], "model": _NO_MODEL})), source)
        tokenizer = Tokenizer.from_str(text)
        tokenizer.no_truncation()  # never truncate or pad silently
        tokenizer.no_padding()
        agrees = all(tokenizer.token_to_id(content) == number for content, number in stated.items())
        return tokenizer if agrees else _with_gaps(text, file)


_NO_MODEL = {"type": "BPE", "vocab": {}, "merges": []}


def _with_gaps(text: str, file: Path) -> Tokenizer:
    """The tokenizer of a file whose added tokens have gaps between their ids, which the library would close."""
    state = parse_object(text, file)
    tokens = {int(token["id"]): added.read_token(token, str(file)) for token in state["added_tokens"]}
    tokenizer = Tokenizer.from_str(json.dumps({**state, "added_tokens": [], "truncation": None, "padding": None}))
    added.add_tokens(tokenizer, tokens, str(file))
    return tokenizer
