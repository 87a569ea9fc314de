"""Text for the tutorial on language models: the documentation strings of Python's standard library.

python examples/library_text.py my-folder [PACKAGES]     # one .txt file per package; all (1.7 MB) by default
"""

from __future__ import annotations

import ast
import sys
import sysconfig
from pathlib import Path


def docstrings(path: Path) -> list[str]:
    """The docstrings of a module and of its functions and classes."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError):
        return []
    kinds = (ast.Module, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    texts = [ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, kinds)]
    return [text for text in texts if text]


def library() -> dict[str, list[str]]:
    """Docstrings of the standard library by package, without its tests; modules outside packages are "modules"."""
    root = Path(sysconfig.get_path("stdlib"))
    found: dict[str, list[str]] = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).parts
        if not {"test", "tests", "site-packages", "idlelib", "lib2to3", "__pycache__"} & set(parts):
            found.setdefault(parts[0] if len(parts) > 1 else "modules", []).extend(docstrings(path))
    return found


def main() -> None:
    folder, most = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else None
    folder.mkdir(parents=True, exist_ok=True)
    for package, texts in list(library().items())[:most]:
        if texts:
            (folder / f"{package}.txt").write_text("\n\n".join(texts) + "\n", encoding="utf-8")
    print(f"wrote {len(list(folder.glob('*.txt')))} files to {folder}")


if __name__ == "__main__":
    main()
