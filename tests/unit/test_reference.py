"""The reference of settings and of the API is what the code says, and says something of each of them."""

from __future__ import annotations

import re
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

import headway as hw

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture
def pages(monkeypatch: pytest.MonkeyPatch) -> dict[str, ModuleType]:
    monkeypatch.syspath_prepend(str(DOCS))
    import reference
    from pages import fields

    return {"reference": reference, "fields": fields}


def test_the_committed_pages_are_what_the_program_gives(pages: dict[str, ModuleType]) -> None:
    stale = [
        name
        for name, text in pages["reference"].written().items()
        if not (DOCS / name).exists() or text != (DOCS / name).read_text(encoding="utf-8")
    ]
    assert stale == [], "run python docs/reference.py"


def _headings(text: str) -> list[str]:
    return re.findall(r"^#+ (.*)$", text, re.MULTILINE)


def _settings() -> str:
    """All pages of settings."""
    pages = sorted((DOCS / "reference/settings").glob("*.md"))
    return "\n".join(path.read_text(encoding="utf-8") for path in pages)


def test_headings_of_settings_are_unique() -> None:
    """Links name a heading and the page is found by it."""
    headings = Counter(heading for heading in _headings(_settings()) if heading not in ("Training", "Tasks", "Mixers"))
    doubled = {heading for heading, count in headings.items() if count > 1}
    assert doubled <= {"Adapters", "Inputs", "Models", "Outputs", "Settings"}  # titles of pages and of their first part


def test_every_setting_has_a_meaning_and_every_name_its_docs() -> None:
    rows = re.findall(r"^\| `\w+` \| .*$", _settings(), re.MULTILINE)
    assert len(rows) > 400
    assert [row for row in rows if row.endswith("|  |")] == []
    api = (DOCS / "reference/api.md").read_text(encoding="utf-8")
    assert [name for name in hw.__all__ if f"hw.{name}`" not in api and name not in ("Model", "__version__")] == []
    assert re.findall(r"^#### `model\..*\n+(?:```text\n[^`]*```\n+)?(?=#)", api, re.MULTILINE) == []  # nothing said


def test_every_recipe_and_kind_is_on_a_page(pages: dict[str, ModuleType]) -> None:
    headings = set(_headings(_settings()))
    recipes = (DOCS / "reference/recipes.md").read_text(encoding="utf-8")
    assert [row["name"] for row in hw.recipes() if f"| `{row['name']}` |" not in recipes] == []
    from headway import config_kinds

    kinds = [
        cls
        for base in config_kinds.KINDS
        if base.__module__.startswith("headway.")
        for cls in config_kinds.kinds(base).values()
    ]
    assert len(kinds) > 80
    assert [
        cls for cls in kinds if cls.__module__.startswith("headway.") and pages["fields"].heading(cls) not in headings
    ] == []


@dataclass(frozen=True)
class Above:
    """What is shared."""

    one: int = 1  # the first


@dataclass(frozen=True)
class Below(Above):
    """A config. `two` is (so. it. seems) the second; what follows is still of it. Of `one` and `two` this is said.

    three, four: the others,
    over two lines.
    """

    two: tuple[int, ...] | None = None
    three: float = 8 / 3
    four: bool = True
    five: tuple[str, ...] = (
        "x",  # a comment within brackets,
        "y",  # over two lines
    )


def test_fields_are_read_from_comments_and_docstrings(pages: dict[str, ModuleType]) -> None:
    found = pages["fields"].describe(Below)
    assert {field.name: field.meaning for field in found.fields} == {
        "one": "the first",
        "two": "(so. it. seems) the second; what follows is still of it",
        "three": "the others, over two lines",
        "four": "the others, over two lines",
        "five": "a comment within brackets, over two lines",
    }
    assert found.prose == ["A config. Of `one` and `two` this is said."]
    assert [(field.type, field.default) for field in found.fields[1:4]] == [
        ("list of int or none", "`none`"),
        ("float", "`2.66667`"),
        ("bool", "`true`"),
    ]
    assert [field.name for field in pages["fields"].describe(Below, Above).fields] == ["two", "three", "four", "five"]


def test_the_program_names_the_page_that_is_out_of_date(
    monkeypatch: pytest.MonkeyPatch, pages: dict[str, ModuleType], capsys: pytest.CaptureFixture
) -> None:
    reference = pages["reference"]
    monkeypatch.setattr(sys, "argv", ["reference.py", "--check"])
    monkeypatch.setattr(reference, "written", lambda: {"reference/api.md": "another page"})
    assert reference.main() == 1
    assert "reference/api.md is out of date" in capsys.readouterr().out
    monkeypatch.setattr(reference, "written", dict)
    assert reference.main() == 0
