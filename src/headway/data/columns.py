"""Column names of tables: check for duplicates, and suggest a name for a missing column."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from headway.errors import UserError, nearest

# Names that published data sets use for a column, the most common first.
_OTHERS = {
    "label": (
        "label", "labels", "class", "target", "category", "sentiment", "intent", "classes", "categories", "class_name",
        "label_text", "tag", "topic", "emotion", "rating", "stars", "score", "y", "gold", "gold_label", "coarse_label",
    ),
    "text": (
        "text", "texts", "sentence", "review", "content", "document", "body", "comment", "message", "tweet", "question",
        "sentence1", "text1", "premise", "question1", "utterance", "query", "title", "description", "input", "string",
    ),
    "text2": ("text2", "sentence2", "hypothesis", "question2", "answer", "passage", "positive", "text_b", "target"),
    "path": ("path", "file", "filename", "file_name", "filepath", "file_path", "image", "audio", "img", "image_path"),
    "caption": ("caption", "captions", "text", "description", "title", "alt", "sentence"),
    "source": ("source", "src", "input", "text", "original"),
    "target": ("target", "tgt", "translation", "output", "label", "reference"),
}  # fmt: skip
USES = tuple(_OTHERS)


def check_header(where: str, names: Sequence[str], places: str = "columns") -> None:
    """UserError if two columns have the same name, with both of their numbers. Columns without a name, which some
    programs append, are ignored.
    """
    first: dict[str, int] = {}
    for number, name in enumerate(names, 1):
        if name and name in first:
            raise UserError(
                f"{where} has two {places} named {name!r} ({first[name]} and {number}); rename or remove one of them"
            )
        first[name] = number


def likely(use: str, names: Iterable[str]) -> str | None:
    """The column that is probably meant by `use` ("label", ...), ignoring case; None if there is no candidate."""
    known = {name.strip().lower().replace(" ", "_"): name for name in names}
    return next((known[other] for other in _OTHERS.get(use, ()) if other in known), None)


def suggestion(name: str, names: Sequence[str], use: str = "") -> str:
    """The end of a message about a missing column: the name that the user may have meant."""
    if not names:
        return "it is empty"
    found = likely(use or name, names)
    return nearest(name, names) if found is None else f"did you mean {found!r}?"
