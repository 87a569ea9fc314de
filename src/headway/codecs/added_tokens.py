"""Added tokens: tokens beyond the model's vocabulary, at their published ids."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from headway.codecs.base import special_ids
from headway.codecs.special_tokens import SpecialTokens
from headway.codecs.tokenizer_files import object_or_empty
from headway.errors import UserError

FILE = "added_tokens.json"
_MAX_GAP = 1 << 17  # ids further than this beyond the vocabulary are rejected
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
Added = Mapping[int, AddedToken]


def published_tokens(settings: Mapping[str, Any], directory: Path) -> dict[int, AddedToken]:
    """The tokens in added_tokens.json and in the added_tokens_decoder of tokenizer_config.json, by id."""
    spellings, source = object_or_empty(directory / FILE), str(directory)
    tokens = {
        _parse_id(token_id, source): AddedToken(name, normalized=False) for name, token_id in spellings.items() if name
    }
    decoder = settings.get("added_tokens_decoder") or {}
    if not isinstance(decoder, dict):
        raise UserError(f"added_tokens_decoder in {source} is not a mapping of ids to tokens; download it again")
    tokens.update((_parse_id(token_id, source), read_token(state, source)) for token_id, state in decoder.items())
    return tokens


def read_token(state: Any, source: str) -> AddedToken:
    """An added token from its JSON."""
    if not isinstance(state, dict) or not isinstance(state.get("content"), str) or not state["content"]:
        raise UserError(f"{source} adds a token without text: {state!r:.80}; download it again")
    return AddedToken(state["content"], **{flag: bool(state[flag]) for flag in _FLAGS if flag in state})


def _parse_id(token_id: Any, source: str) -> int:
    try:
        return int(token_id)
    except (TypeError, ValueError):
        raise UserError(f"{source} adds a token at the invalid id {token_id!r:.80}; download it again") from None


def add_tokens(tokenizer: Tokenizer, added: Added, source: str) -> None:
    """Add tokens at their ids, and fill gaps with unused tokens. Raises UserError for an id that is taken."""
    missing = _missing_ids(tokenizer, added)
    size = _next_id(tokenizer)
    if missing and missing[-1] > size + _MAX_GAP:
        last_id = missing[-1]
        raise UserError(
            f"{source} adds {added[last_id].content!r} with id {last_id}, far beyond its {size} tokens; download the "
            "files again"
        )
    tokens = {i: AddedToken(f"<|unused_{i}|>", special=True, normalized=False) for i in _gap_ids(size, missing)}
    tokens.update(added)
    for special, run in groupby(sorted(tokens.items()), key=lambda item: item[1].special):
        (tokenizer.add_special_tokens if special else tokenizer.add_tokens)([token for _, token in run])
    for token_id, token in added.items():
        existing_id = tokenizer.token_to_id(token.content)
        if existing_id != token_id:
            raise UserError(
                f"{source} adds {token.content!r} with id {token_id}, but its id is {existing_id}; download it again"
            )


def _missing_ids(tokenizer: Tokenizer, added: Added) -> list[int]:
    return sorted(i for i, token in added.items() if tokenizer.token_to_id(token.content) is None)


def _gap_ids(size: int, ids: list[int]) -> Iterator[int]:
    """The ids from `size` up to the highest in `ids` that are missing from `ids`."""
    used = set(ids)
    return (i for i in range(size, ids[-1] if ids else size) if i not in used)


def _next_id(tokenizer: Tokenizer) -> int:
    """The id that the library assigns to the next added token."""
    vocab_size = tokenizer.get_vocab_size(with_added_tokens=False)
    return max([vocab_size, *(i + 1 for i in tokenizer.get_added_tokens_decoder())])


def make_special(tokenizer: Tokenizer, special_tokens: SpecialTokens) -> None:
    """Mark tokens with a role as special, so that decoding skips them. Single characters stay text: some CLIP models
    pad with \"!\".
    """
    special = special_ids(tokenizer)
    for name in {*special_tokens.settings().values()}:
        token_id = tokenizer.token_to_id(name)
        if token_id is not None and token_id not in special and len(name) > 1:
            tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False)])
