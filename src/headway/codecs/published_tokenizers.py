"""Load published tokenizers in any of the formats that a folder may contain."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from tokenizers import Tokenizer

from headway.codecs import added_tokens, bytepairs, wordpiece
from headway.codecs.regex_check import check_pattern
from headway.codecs.sentencepiece import check_charsmap
from headway.codecs.special_tokens import (
    CONFIG_FILE,
    MARIAN_FILES,
    STYLE_TOKENS,
    UNSUPPORTED_STYLES,
    SpecialTokens,
    add_siglip_normalizer,
    configured_tokens,
    infer_style,
    read_settings,
    set_post_processor,
    style_of,
)
from headway.codecs.tokenizer import FILE, TokenizerCodec, config_path
from headway.codecs.tokenizer_files import (
    first_file,
    library_errors,
    object_or_empty,
    parse_object,
    read_bytes,
    read_text,
)
from headway.codecs.tokenizer_json import check_merges, patterns_and_maps, read_without_model
from headway.codecs.tokenizer_limits import check_growth, check_special_tokens, check_template
from headway.errors import UserError

TranslationSide = Literal["source", "target"]
MODELS = ("spiece.model", "tokenizer.model", "sentencepiece.bpe.model", "sentencepiece.model", "spm.model")
_MAX_TOKENS = 1 << 24  # maximum tokens in a vocabulary


@dataclass(frozen=True)
class _TokenizerFolder:
    """The settings from the files next to a vocabulary."""

    directory: Path
    settings: Mapping[str, Any]
    style: str


class _LoadedTokenizer(NamedTuple):
    """A tokenizer, its style, and the style's special tokens; None if they must be guessed."""

    tokenizer: Tokenizer
    style: str
    special_tokens: SpecialTokens | None


def load_codec(path: Path | str) -> TokenizerCodec:
    """The codec in a tokenizer.json, or in a folder with a published tokenizer. Raises UserError if there is none."""
    codec = published_codec(path)
    if codec is None:
        file = Path(path) / FILE if Path(path).is_dir() else Path(path)
        raise UserError(f"{file} does not exist; pass a tokenizer.json or a folder with one")
    return codec


def published_codec(path: Path | str, side: TranslationSide = "source") -> TokenizerCodec | None:
    """The codec in a folder or file in a published format; None if there is no tokenizer.

    It reads the first of: tokenizer.json; vocab.json with merges.txt; vocab.txt; source.spm and target.spm with
    vocab.json, of which `side` is used; a sentencepiece .model; .tiktoken ranks. No code is run. Raises UserError for
    files that are invalid, too large or pickled, or that have an unsupported class.
    """
    location = Path(path)
    file = location if location.is_file() else _vocabulary_file(location, side)
    if file is None:
        return None
    is_tokenizer_json = file.suffix == ".json" and file.name != bytepairs.VOCABULARY
    settings = read_settings(config_path(file) if is_tokenizer_json else file.with_name(CONFIG_FILE))
    config = object_or_empty(file.with_name("config.json"))
    folder = _TokenizerFolder(file.parent, settings, style_of(settings, config))
    if settings.get("auto_map") and file.name != FILE:
        raise UserError(
            f"{file.with_name(CONFIG_FILE)} needs custom code (auto_map), which is never run; "
            f"add a {FILE} next to it (transformers' save_pretrained writes one)"
        )
    loaded = _load(file, folder, side)
    with library_errors(file):
        return _build_codec(loaded, folder, file)


def check_vocab_size(codec: TokenizerCodec, vocab_size: int, path: Path | str) -> None:
    """Raise UserError for a tokenizer with more ids than the `vocab_size` of a model's embedding; fewer are common.

    `path` is the folder that contains both, for the message.
    """
    if codec.vocab_size > vocab_size:
        raise UserError(
            f"{path}: the tokenizer has {codec.vocab_size} tokens, but the model's embedding has only {vocab_size}; "
            "use the tokenizer that the model was trained with"
        )


def _vocabulary_file(directory: Path, side: TranslationSide) -> Path | None:
    """The file with a folder's vocabulary."""
    pair_names = (bytepairs.VOCABULARY, bytepairs.MERGES)
    file = first_file(directory, [FILE])
    if file is None and all((directory / name).is_file() for name in pair_names):
        file = directory / bytepairs.VOCABULARY
    file = file or first_file(directory, [wordpiece.FILE, MARIAN_FILES[side][0], *MODELS])
    if file is not None or not directory.is_dir():
        return file
    ranks = sorted(directory.glob("*.tiktoken"))
    if len(ranks) > 1:
        names = ", ".join(path.name for path in ranks)
        raise UserError(f"{directory} contains several tokenizers ({names}); pass the one to use")
    return ranks[0] if ranks else None


def _load(file: Path, folder: _TokenizerFolder, side: TranslationSide) -> _LoadedTokenizer:
    style, settings = folder.style, folder.settings
    if file.name == bytepairs.VOCABULARY or file.suffix == ".txt":
        return _read_vocabulary(file, style, settings)
    if file.suffix == ".json":
        return _LoadedTokenizer(_read_json(file), style, None)
    from headway.codecs import tiktoken
    from headway.codecs.sentencepiece_ids import read_marian, read_sentencepiece  # imports the sentencepiece reader

    if file.suffix == ".spm":
        return _LoadedTokenizer(read_marian(folder.directory, side), "marian", STYLE_TOKENS["marian"])
    if file.suffix == ".tiktoken" or tiktoken.holds_ranks(read_bytes(file)):
        ranks = tiktoken.read_ranks(file)
        encoding = tiktoken.encoding_of(file.stem, ranks)
        return _LoadedTokenizer(tiktoken.build(ranks, encoding, file), "", encoding.special_tokens)
    tokenizer, special_tokens = read_sentencepiece(file, style, settings)
    return _LoadedTokenizer(tokenizer, style, special_tokens)


def _read_vocabulary(file: Path, style: str, settings: Mapping[str, Any]) -> _LoadedTokenizer:
    if style in UNSUPPORTED_STYLES:
        raise UserError(
            f"{file} belongs to a tokenizer with the unsupported class {style!r}; "
            f"add a {FILE} next to it (transformers' save_pretrained writes one)"
        )
    reader = wordpiece.read_wordpiece if file.suffix == ".txt" else bytepairs.read_byte_pairs
    tokenizer = reader(file, style, settings)
    known_style = style if style in STYLE_TOKENS else infer_style(tokenizer)
    return _LoadedTokenizer(tokenizer, known_style, STYLE_TOKENS.get(known_style))


def _build_codec(loaded: _LoadedTokenizer, folder: _TokenizerFolder, file: Path) -> TokenizerCodec:
    tokenizer = loaded.tokenizer
    add_siglip_normalizer(tokenizer, folder.settings)
    added_tokens.add_tokens(
        tokenizer, added_tokens.published_tokens(folder.settings, folder.directory), str(folder.directory)
    )
    check_template(tokenizer, str(file))
    special_tokens = configured_tokens(folder.settings, loaded.special_tokens)
    if special_tokens is not None:
        added_tokens.make_special(tokenizer, special_tokens)
        set_post_processor(tokenizer, loaded.style, special_tokens, folder.settings)
    if tokenizer.get_vocab_size() == 0:
        raise UserError(f"{file} contains no tokens; use the tokenizer of a trained model")
    codec = TokenizerCodec(tokenizer, special_tokens)
    if codec.vocab_size > _MAX_TOKENS:
        raise UserError(f"{file} has token ids up to {codec.vocab_size - 1}, too many for any model; download it again")
    return codec


def _read_json(file: Path) -> Tokenizer:
    text, source = read_text(file), str(file)
    with library_errors(file):
        entries = read_without_model(text)
        added_tokens = entries.get("added_tokens") or []
        stated_ids = {token["content"]: token["id"] for token in added_tokens}
        check_special_tokens((token["content"] for token in added_tokens if token.get("special")), source)
        for kind, value in patterns_and_maps(entries):
            if kind == "Regex":
                check_pattern(value, source)
            else:
                check_charsmap(base64.b64decode(value, validate=True))
        check_merges(entries.pop("model", None))
        bare = {name: entry for name, entry in entries.items() if name not in ("added_tokens", "truncation", "padding")}
        # Its growth is checked before added tokens are loaded, because it also processes those.
        check_growth(Tokenizer.from_str(json.dumps({**bare, "added_tokens": [], "model": _NO_MODEL})), source)
        tokenizer = Tokenizer.from_str(text)
        tokenizer.no_truncation()  # never truncate or pad silently
        tokenizer.no_padding()
        agrees = all(tokenizer.token_to_id(content) == token_id for content, token_id in stated_ids.items())
        return tokenizer if agrees else _with_gaps(text, file)


_NO_MODEL = {"type": "BPE", "vocab": {}, "merges": []}


def _with_gaps(text: str, file: Path) -> Tokenizer:
    """The tokenizer in a file whose added tokens have gaps between their ids, which the library would close."""
    state = parse_object(text, file)
    tokens = {int(token["id"]): added_tokens.read_token(token, str(file)) for token in state["added_tokens"]}
    tokenizer = Tokenizer.from_str(json.dumps({**state, "added_tokens": [], "truncation": None, "padding": None}))
    added_tokens.add_tokens(tokenizer, tokens, str(file))
    return tokenizer
