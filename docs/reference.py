"""Writes settings.md and api.md from the dataclasses, functions and docstrings themselves: `python docs/reference.py`.

`python docs/reference.py --check` writes nothing, and ends with 1 where a page is not what it would write.
"""

from __future__ import annotations

import sys
from pathlib import Path

from pages import api, settings

PAGES = {"settings.md": settings.page, "api.md": api.page}


def main() -> int:
    """Write both pages, or say which are not as they should be."""
    stale = []
    for name, make in PAGES.items():
        path, text = Path(__file__).parent / name, make()
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            stale.append(name)
            if "--check" not in sys.argv:
                path.write_text(text, encoding="utf-8")
    print(f"docs/reference.py: {', '.join(stale) or 'nothing'} {'is stale' if '--check' in sys.argv else 'written'}")
    return 1 if stale and "--check" in sys.argv else 0


if __name__ == "__main__":
    sys.exit(main())
