"""Load published tokenizers in any of the formats that a folder may contain, and check them before use.

Regular expressions: a backtracking search can take time that is cubic or exponential in the length of the text, and
nothing stops it once it runs. So a pattern must be known, be too simple to backtrack, or pass a test in a helper
process on repetitions of its own characters.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from tokenizers import AddedToken, Tokenizer

from headway.codecs.sentencepiece import WORDS as PIECE_WORDS
from headway.codecs.sentencepiece import check_charsmap, read_marian, read_sentencepiece
from headway.codecs.special_tokens import (
    CONFIG_FILE,
    END_OF_TEXT,
    MARIAN_FILES,
    STYLE_TOKENS,
    UNSUPPORTED_STYLES,
    SpecialTokens,
    add_siglip_normalizer,
    add_tokens,
    configured_tokens,
    listed_tokens,
    published_tokens,
    read_settings,
    read_token,
    set_post_processor,
    special_ids,
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
from headway.codecs.tokenizer_limits import check_growth, check_special_tokens, check_template
from headway.codecs.tokenizer_training import LINES, WORD
from headway.codecs.vocabularies import (
    CL100K,
    CLIP,
    GPT2,
    MERGES,
    O200K,
    QWEN2,
    VOCABULARY,
    WORDPIECE_FILE,
    build_tiktoken,
    encoding_of,
    holds_ranks,
    parse_ranks,
    read_byte_pairs,
    read_bytes_only,
    read_residues,
    read_wordpiece,
    with_word_ends,
)
from headway.errors import UserError
from headway.io.helper import Helper, HelperError
from headway.io.json_files import DECODER

_GPT4 = (  # cl100k in tiktoken since 2023
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)
_SPACED = r"\A +| +\z"  # sentencepiece: only at the ends of a text
KNOWN_PATTERNS = frozenset({GPT2, CL100K, QWEN2, CLIP, O200K, _GPT4, WORD, LINES, PIECE_WORDS, _SPACED})
MAX_PATTERN_LENGTH = 1 << 17  # maximum characters in a pattern
_CPU_SECONDS = 2.0  # CPU time for all tests
_MEMORY = 1 << 30  # bytes
_helper = Helper("headway.codecs.regex_timing", _MEMORY)

_PARTS = re.compile(
    r"""(?P<around>\(\?<?[=!]) | (?P<open>\() | (?P<close>\)) | (?P<or>\|)
      | (?P<repeat>[*+] | \{\d*,\d*\}) | (?P<optional>\?) | (?P<count>\{\d+\})
      | (?P<strange>\\[gkKGXRMCybB0-9] | \[[^\]]*(?:\[|&&))
      | (?P<atom>\\[pP]\{[^}]*\} | \\x\{[^}]*\} | \\. | \[\^?\]?(?:[^\]\\]|\\.)*\] | .)""",
    re.VERBOSE | re.DOTALL,
)


def check_pattern(pattern: str, source: str) -> None:
    """Raise UserError for a regular expression that is invalid, backtracks or is too long."""
    if pattern in KNOWN_PATTERNS:
        return
    description = f"{source} splits words with {pattern!r:.80}"
    if len(pattern) > MAX_PATTERN_LENGTH:
        raise UserError(
            f"{description}, which has {len(pattern):,} characters, more than {MAX_PATTERN_LENGTH:,}; "
            "use another tokenizer"
        )
    fault = None if is_simple(pattern) else _measured_fault(pattern)
    if fault is not None:
        raise UserError(
            f"{description}, which {fault}; use another tokenizer, or write the pattern without nested repeats"
        )


def is_simple(pattern: str) -> bool:
    """Whether a search takes one step per character: no repeat is followed by anything or inside a group.

    Groups may only be lookarounds of fixed length.
    """
    in_group = repeated = False
    optional = 0
    for match in _PARTS.finditer(pattern):
        kind = match.lastgroup
        if repeated and kind != "or":
            return False
        if kind in ("open", "strange") or (kind in ("around", "repeat", "optional", "count") and in_group):
            return False
        if kind == "close" and not in_group:
            return False
        in_group = kind == "around" or (in_group and kind != "close")
        repeated = kind == "repeat" or (repeated and kind != "or")
        optional += kind in ("optional", "count")
    return not in_group and optional <= 16 and not re.search(r"\)[*+?{]|\{\d{4}|\{\d*,\d{4}", pattern)


@lru_cache(maxsize=256)
def _measured_fault(pattern: str) -> str | None:
    try:
        return _helper.ask(pattern, _CPU_SECONDS)
    except HelperError as error:
        return {
            "time": "backtracks endlessly",
            "memory": f"needs more than {_MEMORY >> 20} MB",
            "death": "crashes its process",
        }[error.reason]


_RELEVANT_ENTRIES = (
    "normalizer",
    "pre_tokenizer",
    "post_processor",
    "decoder",
    "added_tokens",
    "truncation",
    "padding",
    "model",
)
_NEXT_ENTRY = re.compile(r'\}\s*,\s*"((?:[^"\\]|\\.)*)"\s*:')
_MAX_BRACES = 1 << 16
_SPACE = re.compile(r"[ \t\r\n]*")
_PREFIX, _NON_EMPTY = '"continuing_subword_prefix"', re.compile(r'\s*:\s*"[^"]')


def read_without_model(text: str) -> dict[str, Any]:
    """The entries in a tokenizer.json, without its model if that comes last. Raises ValueError for an invalid file."""
    entries: dict[str, Any] = {}
    position = _skip_past("{", text, 0)
    while True:
        name, position = DECODER.raw_decode(text, position)
        position = _skip_past(":", text, position)
        if name == "model" and not _has_later_entries(text, position) and not _has_prefix_and_merges(text, position):
            return entries
        value, position = DECODER.raw_decode(text, position)
        if name in entries:
            raise ValueError(f"it has two entries named {name!r:.40}")
        entries[name] = value
        position = _SPACE.match(text, position).end()  # type: ignore[union-attr]
        if text[position : position + 1] == "}":
            break
        position = _skip_past(",", text, position)
    return entries


def _skip_past(character: str, text: str, position: int) -> int:
    """The position after a character and the white space around it."""
    position = _SPACE.match(text, position).end()  # type: ignore[union-attr]
    if text[position : position + 1] != character:
        raise ValueError(
            f"it has {text[position : position + 20]!r} at position {position}, where {character!r} is expected"
        )
    return _SPACE.match(text, position + 1).end()  # type: ignore[union-attr]


def _has_later_entries(text: str, start: int) -> bool:
    """Whether a relevant entry may follow the model, which means after a closing brace."""
    position = start
    for _ in range(_MAX_BRACES):
        position = text.find("}", position)
        if position < 0:
            return False
        entry = _NEXT_ENTRY.match(text, position)
        if entry and (entry[1] in _RELEVANT_ENTRIES or "\\" in entry[1]):
            return True
        position += 1
    return True  # it may, so everything is read


def _has_prefix_and_merges(text: str, start: int) -> bool:
    """Whether a model may have both merges and a prefix for inner tokens."""
    position = text.find(_PREFIX, start)
    has_prefix = position >= 0 and _NON_EMPTY.match(text, position + len(_PREFIX)) is not None
    return has_prefix and text.find('"merges"', start) >= 0


def patterns_and_maps(parts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """All patterns ("Regex") and maps ("precompiled_charsmap") in a tokenizer's steps."""
    pending: list[Any] = [part for name, part in parts.items() if name != "model"]
    while pending:
        node = pending.pop()
        if isinstance(node, list):
            pending += node
        elif isinstance(node, dict):
            pending += node.values()
            for name in ("Regex", "precompiled_charsmap"):
                if isinstance(node.get(name), str):
                    yield name, node[name]


TranslationSide = Literal["source", "target"]
SOURCE_FOLDER = "source"  # has the codec of sources next to a model, if targets have another one
SOURCE_FILE = "source.json"  # the codec of sources in prepared data, whose files are in one folder
MODELS = ("spiece.model", "tokenizer.model", "sentencepiece.bpe.model", "sentencepiece.model", "spm.model")
_MAX_TOKENS = 1 << 24  # maximum tokens in a vocabulary


def load_codec(path: Path | str, side: TranslationSide = "source") -> TokenizerCodec:
    """The codec in a tokenizer.json, or in a folder with a published tokenizer. Raises UserError if there is none."""
    codec = published_codec(path, side)
    if codec is None:
        file = Path(path) / FILE if Path(path).is_dir() else Path(path)
        raise UserError(f"{file} does not exist; pass a tokenizer.json or a folder with one")
    return codec


def load_codecs(path: Path | str) -> tuple[TokenizerCodec, ...]:
    """The codec in a file or folder, or the two of a translator with one for sources and one for targets: those of a
    run, of prepared data, or of a published Marian model. Raises UserError as `load_codec` does.
    """
    folder = Path(path)
    if (folder / MARIAN_FILES["target"][0]).is_file():
        return load_codec(folder, "source"), load_codec(folder, "target")
    sources = [file for file in (folder / SOURCE_FILE, folder / SOURCE_FOLDER / FILE) if file.is_file()]
    return (*map(load_codec, sources), load_codec(folder))


def published_codec(path: Path | str, side: TranslationSide = "source") -> TokenizerCodec | None:
    """The codec in a folder or file in a published format; None if there is no tokenizer.

    It reads the first of: tokenizer.json; vocab.json with merges.txt; vocab.txt; source.spm and target.spm with
    vocab.json, of which `side` is used; a sentencepiece .model; .tiktoken ranks. No code is run. Raises UserError for
    files that are invalid, too large or pickled, or that have an unsupported class.
    """
    location = Path(path)
    file = location if location.is_file() else _vocabulary_file(location, side)
    if file is None and location.is_dir() and style_of(read_settings(location / CONFIG_FILE), {}) == "byt5":
        file = location / CONFIG_FILE  # the vocabulary is all bytes
    if file is None:
        return None
    is_tokenizer_json = file.suffix == ".json" and file.name not in (VOCABULARY, CONFIG_FILE)
    settings = read_settings(config_path(file) if is_tokenizer_json else file.with_name(CONFIG_FILE))
    style = style_of(settings, object_or_empty(file.with_name("config.json")))
    if settings.get("auto_map") and file.name != FILE:
        raise UserError(
            f"{file.with_name(CONFIG_FILE)} needs custom code (auto_map), which is never run; "
            f"add a {FILE} next to it (transformers' save_pretrained writes one)"
        )
    tokenizer, style, known_tokens = _read_tokenizer(file, style, settings, side)
    with library_errors(file):
        add_siglip_normalizer(tokenizer, settings)
        add_tokens(tokenizer, published_tokens(settings, file.parent), str(file.parent))
        check_template(tokenizer, str(file))
        special_tokens = configured_tokens(settings, known_tokens)
        if special_tokens is not None:
            # So that decoding skips them. Single characters stay text: some CLIP models pad with "!".
            special = special_ids(tokenizer)
            for name in {*special_tokens.settings().values()}:
                token_id = tokenizer.token_to_id(name)
                if token_id is not None and token_id not in special and len(name) > 1:
                    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False)])
            set_post_processor(tokenizer, style, special_tokens, settings)
        if tokenizer.get_vocab_size() == 0:
            raise UserError(f"{file} contains no tokens; use the tokenizer of a trained model")
        codec = TokenizerCodec(tokenizer, special_tokens)
        if codec.vocab_size > _MAX_TOKENS:
            raise UserError(
                f"{file} has token ids up to {codec.vocab_size - 1}, too many for any model; download it again"
            )
        return codec


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
    pair_names = (VOCABULARY, MERGES)
    file = first_file(directory, [FILE])
    if file is None and all((directory / name).is_file() for name in pair_names):
        file = directory / VOCABULARY
    file = file or first_file(directory, [WORDPIECE_FILE, MARIAN_FILES[side][0], *MODELS])
    if file is not None or not directory.is_dir():
        return file
    ranks = sorted(directory.glob("*.tiktoken"))
    if len(ranks) > 1:
        names = ", ".join(path.name for path in ranks)
        raise UserError(f"{directory} contains several tokenizers ({names}); pass the one to use")
    return ranks[0] if ranks else None


def _read_tokenizer(
    file: Path, style: str, settings: Mapping[str, Any], side: TranslationSide
) -> tuple[Tokenizer, str, SpecialTokens | None]:
    """The tokenizer in a file, its style, and the style's special tokens; None if they must be guessed."""
    if file.name == CONFIG_FILE and style == "byt5":
        return read_bytes_only(listed_tokens(settings)), style, STYLE_TOKENS[style]
    if file.name == VOCABULARY or file.suffix == ".txt":
        if style in UNSUPPORTED_STYLES:
            raise UserError(
                f"{file} belongs to a tokenizer with the unsupported class {style!r}; "
                f"add a {FILE} next to it (transformers' save_pretrained writes one)"
            )
        if style == "esm" and file.suffix == ".txt":
            return read_residues(file), style, STYLE_TOKENS[style]
        tokenizer = (read_wordpiece if file.suffix == ".txt" else read_byte_pairs)(file, style, settings)
        if style not in STYLE_TOKENS:
            markers = {"[CLS]": "bert", "<|startoftext|>": "clip", "</s>": "roberta", END_OF_TEXT: "gpt2"}
            style = next((style for name, style in markers.items() if tokenizer.token_to_id(name) is not None), "")
        return tokenizer, style, STYLE_TOKENS.get(style)
    if file.suffix == ".json":
        return with_word_ends(_read_json(file)), style, None
    if file.suffix == ".spm":
        return read_marian(file.parent, side), "marian", STYLE_TOKENS["marian"]
    if file.suffix == ".tiktoken" or holds_ranks(read_bytes(file)):
        ranks = parse_ranks(read_bytes(file), file)
        encoding = encoding_of(file.stem, ranks)
        return build_tiktoken(ranks, encoding, file), "", SpecialTokens(bos=encoding.bos, eos=encoding.eos)
    tokenizer, special_tokens = read_sentencepiece(file, style, settings)
    return tokenizer, "bert" if style == "debertav2" else style, special_tokens


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
        model = entries.pop("model", None)
        prefix = model.get("continuing_subword_prefix") if isinstance(model, dict) else None
        for merge in model.get("merges") or () if prefix else ():  # type: ignore[union-attr]
            second = merge.partition(" ")[2] if isinstance(merge, str) else merge[1]
            if not second.startswith(str(prefix)):  # the library panics
                raise ValueError(f"it merges {second!r:.40}, which does not start with {prefix!r:.40}")
        bare = {name: entry for name, entry in entries.items() if name not in ("added_tokens", "truncation", "padding")}
        no_model = {"type": "BPE", "vocab": {}, "merges": []}
        # Its growth is checked before added tokens are loaded, because it also processes those.
        check_growth(Tokenizer.from_str(json.dumps({**bare, "added_tokens": [], "model": no_model})), source)
        tokenizer = Tokenizer.from_str(text)
        tokenizer.no_truncation()  # never truncate or pad silently
        tokenizer.no_padding()
        if all(tokenizer.token_to_id(content) == token_id for content, token_id in stated_ids.items()):
            return tokenizer
        # The library would close gaps between the ids of added tokens.
        state = parse_object(text, file)
        tokens = {int(token["id"]): read_token(token, source) for token in state["added_tokens"]}
        tokenizer = Tokenizer.from_str(json.dumps({**state, "added_tokens": [], "truncation": None, "padding": None}))
        add_tokens(tokenizer, tokens, source)
        return tokenizer
