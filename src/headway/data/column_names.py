"""Column names of tables: check for duplicates, and suggest a name for a missing column."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from headway.errors import UserError, nearest

# Names that published data sets use for a column, the most common first.
_SYNONYMS = {
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
COLUMN_USES = tuple(_SYNONYMS)


def check_column_names(source: str, names: Sequence[str], noun: str = "columns") -> None:
    """UserError if two columns have the same name, with both column numbers. Columns without a name, which some
    programs append, are ignored.
    """
    first: dict[str, int] = {}
    for number, name in enumerate(names, 1):
        if name and name in first:
            raise UserError(
                f"{source} has two {noun} named {name!r} ({first[name]} and {number}); rename or remove one of them"
            )
        first[name] = number


def guess_column(use: str, names: Iterable[str]) -> str | None:
    """The column that is probably meant by `use` ("label", ...), ignoring case; None if there is no candidate."""
    by_name = {name.strip().lower().replace(" ", "_"): name for name in names}
    return next((by_name[synonym] for synonym in _SYNONYMS.get(use, ()) if synonym in by_name), None)


def suggest_column(name: str, names: Sequence[str], use: str = "") -> str:
    """The end of a message about a missing column: the name that the user may have meant."""
    if not names:
        return "it is empty"
    candidate = guess_column(use or name, names)
    return nearest(name, names) if candidate is None else f"did you mean {candidate!r}?"
