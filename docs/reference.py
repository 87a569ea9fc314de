"""Writes the reference pages, and the types of a model's verbs, from the code itself: `python docs/reference.py`.

`python docs/reference.py --check` writes nothing, and exits with 1 if a page is out of date.
"""

from __future__ import annotations

import sys
from pathlib import Path

from pages import api, commands, models, settings, stub

FOLDER = Path(__file__).parent


def written() -> dict[str, str]:
    """All pages, by their path below docs."""
    return {
        "reference/api.md": api.page(),
        "reference/commands.md": commands.page(),
        "reference/presets.md": models.presets(),
        "reference/formats.md": models.formats(),
        "reference/http.md": models.http(),
        **settings.pages(),
        f"../{stub.STUB}": stub.verbs_stub(),
    }


def main() -> int:
    """Write all pages, or list those that are out of date."""
    stale = []
    for name, text in written().items():
        path = FOLDER / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            stale.append(name)
            if "--check" not in sys.argv:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text, encoding="utf-8")
    print(
        f"docs/reference.py: {', '.join(stale) or 'nothing'} {'is out of date' if '--check' in sys.argv else 'written'}"
    )
    return 1 if stale and "--check" in sys.argv else 0


if __name__ == "__main__":
    sys.exit(main())
