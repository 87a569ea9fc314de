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
    from pages import api, fields, settings

    return {"api.md": api, "settings.md": settings, "fields": fields}


@pytest.mark.parametrize("name", ["api.md", "settings.md"])
def test_the_committed_page_is_what_the_program_gives(name: str, pages: dict[str, ModuleType]) -> None:
    made = pages[name].page()
    assert made == (DOCS / name).read_text(encoding="utf-8"), f"docs/{name} is stale; run python docs/reference.py"


@pytest.mark.parametrize("name", ["api.md", "settings.md"])
def test_links_within_a_page_lead_to_one_heading(name: str) -> None:
    text = (DOCS / name).read_text(encoding="utf-8")
    headings = Counter(re.sub(r"[^\w\- ]", "", line).lower().replace(" ", "-") for line in _headings(text))
    targets = set(re.findall(r"\]\(#([^)]+)\)", text))
    assert targets
    assert all(headings[target] == 1 for target in targets)


def _headings(text: str) -> list[str]:
    return re.findall(r"^#+ (.*)$", text, re.MULTILINE)


def test_every_setting_has_a_meaning_and_every_name_its_docs() -> None:
    settings = (DOCS / "settings.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `\w+` \| .*$", settings, re.MULTILINE)
    assert len(rows) > 400
    assert [row for row in rows if row.endswith("|  |")] == []
    api = (DOCS / "api.md").read_text(encoding="utf-8")
    assert [name for name in hw.__all__ if f"hw.{name}`" not in api and name not in ("Model", "__version__")] == []
    assert re.findall(r"^#### `model\..*\n+(?:```python\n[^`]*```\n+)?(?=#)", api, re.MULTILINE) == []  # nothing said


def test_every_recipe_and_kind_is_on_the_page(pages: dict[str, ModuleType]) -> None:
    text = (DOCS / "settings.md").read_text(encoding="utf-8")
    headings = set(_headings(text))
    assert [row["name"] for row in hw.recipes() if f"| `{row['name']}` |" not in text] == []
    from headway import config

    kinds = [
        cls for base in config._KINDS if base.__module__.startswith("headway.") for cls in config.kinds(base).values()
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


def test_the_program_says_which_page_is_stale(
    monkeypatch: pytest.MonkeyPatch, pages: dict[str, ModuleType], capsys: pytest.CaptureFixture
) -> None:
    import reference

    monkeypatch.setattr(sys, "argv", ["reference.py", "--check"])
    monkeypatch.setattr(reference, "PAGES", {"settings.md": lambda: "another page"})
    assert reference.main() == 1
    assert "settings.md is stale" in capsys.readouterr().out
    monkeypatch.setattr(reference, "PAGES", {"api.md": pages["api.md"].page})
    assert reference.main() == 0
