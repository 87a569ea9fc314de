"""The symbols that have a role: begin, end, unknown, pad, mask. What the publisher says comes before any guess."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from headway.codecs.files import object_or_empty
from headway.codecs.stream import special_ids

END_OF_TEXT = "<|endoftext|>"
# Names that published tokenizers use, the more specific first: GPT-2's one symbol is both begin and end.
BEGIN = ("<s>", "<|begin_of_text|>", "<bos>", "[CLS]", "<|startoftext|>", "[BOS]", END_OF_TEXT)
END = ("</s>", "<|end_of_text|>", "<eos>", "[SEP]", "[EOS]", END_OF_TEXT)
PAD = ("<pad>", "[PAD]", "<|pad|>")
MASK = ("[MASK]", "<mask>")
CONFIG, MAP = "tokenizer_config.json", "special_tokens_map.json"


@dataclass(frozen=True)
class Marks:
    """Spellings by the roles that tokenizer_config.json gives them; None where there is no such symbol."""

    bos: str | None = None
    eos: str | None = None
    unk: str | None = None
    sep: str | None = None
    pad: str | None = None
    cls: str | None = None
    mask: str | None = None

    @property
    def begin(self) -> str | None:
        """What stands before a text: BERT's is its `cls`."""
        return self.bos or self.cls

    @property
    def end(self) -> str | None:
        """What stands after a text: BERT's is its `sep`."""
        return self.eos or self.sep

    def settings(self) -> dict[str, str]:
        """As tokenizer_config.json has them."""
        return {f"{role}_token": spelling for role, spelling in asdict(self).items() if spelling is not None}


ROLES = tuple(field.name for field in fields(Marks))
NO_MARKS = Marks()


def said(settings: Mapping[str, Any], otherwise: Marks | None = None) -> Marks | None:
    """The marks that settings name; what they leave out is as in `otherwise`. None where nothing says anything."""
    found = {role: _spelling(settings[f"{role}_token"]) for role in ROLES if f"{role}_token" in settings}
    if not found and otherwise is None:
        return None
    return replace(otherwise or NO_MARKS, **found)


def read_settings(path: Path) -> dict[str, Any]:
    """tokenizer_config.json at `path`; marks that it lacks come from the special_tokens_map.json beside it."""
    return {**object_or_empty(path.with_name(MAP)), **object_or_empty(path)}


def _spelling(value: Any) -> str | None:
    """A mark is a text, or a mapping that has it as its content."""
    text = value.get("content") if isinstance(value, dict) else value
    return text if isinstance(text, str) and text else None


def guessed(tokenizer: Tokenizer) -> Marks:
    """Where nothing is said: what the tokenizer puts around a text, or else symbols of well-known names."""
    before, after = around(tokenizer)
    begin = before or _first(tokenizer, BEGIN)
    end = after or _first(tokenizer, END)
    marks = Marks(pad=_first(tokenizer, PAD), mask=_first(tokenizer, MASK))
    marks = replace(marks, cls=begin) if begin == "[CLS]" else replace(marks, bos=begin)
    return replace(marks, sep=end) if end == "[SEP]" else replace(marks, eos=end)


def around(tokenizer: Tokenizer) -> tuple[str | None, str | None]:
    """The first symbol that a tokenizer puts before a text, and the last that it puts after it."""
    if tokenizer.post_processor is None:
        return None, None
    plain = tokenizer.encode("a", add_special_tokens=False).tokens
    framed = tokenizer.encode("a", add_special_tokens=True).tokens
    at = next((i for i in range(len(framed)) if framed[i : i + len(plain)] == plain), 0)
    end = at + len(plain)
    return (framed[0] if at else None), (framed[-1] if end < len(framed) else None)


def _first(tokenizer: Tokenizer, names: Iterable[str]) -> str | None:
    special = special_ids(tokenizer)
    return next((name for name in names if tokenizer.token_to_id(name) in special), None)
