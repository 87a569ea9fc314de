"""Added tokens: tokens in addition to the model's vocabulary, at their published ids."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from headway.codecs.base import special_ids
from headway.codecs.files import object_or_empty
from headway.codecs.marks import RoleTokens
from headway.errors import UserError

FILE = "added_tokens.json"
_FAR = 1 << 17  # ids further beyond the vocabulary are rejected
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
Added = Mapping[int, AddedToken]


def published_tokens(settings: Mapping[str, Any], directory: Path) -> dict[int, AddedToken]:
    """The tokens in added_tokens.json and in the added_tokens_decoder of tokenizer_config.json, by id."""
    plain, source = object_or_empty(directory / FILE), str(directory)
    found = {_id(number, source): AddedToken(name, normalized=False) for name, number in plain.items() if name}
    decoder = settings.get("added_tokens_decoder") or {}
    if not isinstance(decoder, dict):
        raise UserError(f"added_tokens_decoder in {source} is not a mapping of ids to tokens; download it again")
    found.update((_id(number, source), read_token(state, source)) for number, state in decoder.items())
    return found


def read_token(state: Any, source: str) -> AddedToken:
    """An added token from its JSON."""
    if not isinstance(state, dict) or not isinstance(state.get("content"), str) or not state["content"]:
        raise UserError(f"{source} adds a token without text: {state!r:.80}; download it again")
    return AddedToken(state["content"], **{flag: bool(state[flag]) for flag in _FLAGS if flag in state})


def _id(number: Any, source: str) -> int:
    try:
        return int(number)
    except (TypeError, ValueError):
        raise UserError(f"{source} adds a token at the invalid id {number!r:.80}; download it again") from None


def add_tokens(tokenizer: Tokenizer, added: Added, source: str) -> None:
    """Add tokens at their ids, with unused tokens in the gaps. UserError for an id that is taken."""
    missing = _missing(tokenizer, added)
    size = _next(tokenizer)
    if missing and missing[-1] > size + _FAR:
        last = missing[-1]
        raise UserError(
            f"{source} adds {added[last].content!r} as {last}, far beyond its {size} tokens; download the files again"
        )
    tokens = {i: AddedToken(f"<|unused_{i}|>", special=True, normalized=False) for i in _between(size, missing)}
    tokens.update(added)
    for special, run in groupby(sorted(tokens.items()), key=lambda item: item[1].special):
        (tokenizer.add_special_tokens if special else tokenizer.add_tokens)([token for _, token in run])
    for number, token in added.items():
        found = tokenizer.token_to_id(token.content)
        if found != number:
            raise UserError(
                f"{source} adds {token.content!r} as {number}, but its id is {found}; download the files again"
            )


def _missing(tokenizer: Tokenizer, added: Added) -> list[int]:
    return sorted(i for i, token in added.items() if tokenizer.token_to_id(token.content) is None)


def _between(size: int, numbers: list[int]) -> Iterator[int]:
    """The ids from `size` up to the last of `ids` that are not in `ids`."""
    taken = set(numbers)
    return (i for i in range(size, numbers[-1] if numbers else size) if i not in taken)


def _next(tokenizer: Tokenizer) -> int:
    """The id that the library assigns to the next added token."""
    own = tokenizer.get_vocab_size(with_added_tokens=False)
    return max([own, *(i + 1 for i in tokenizer.get_added_tokens_decoder())])


def make_special(tokenizer: Tokenizer, marks: RoleTokens) -> None:
    """Mark tokens with a role as special, so that decoding skips them. Single characters stay text: some CLIP models
    pad with \"!\".
    """
    special = special_ids(tokenizer)
    for name in {*marks.settings().values()}:
        number = tokenizer.token_to_id(name)
        if number is not None and number not in special and len(name) > 1:
            tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False)])
