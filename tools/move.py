"""Move modules and what imports them: the lines `> PATH` of rename maps.

python tools/move.py MAP...
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from rename import Workspace, read_maps

TEXTS = ("pyproject.toml", "*.md", "*.ipynb", "*.py", "*.yml", "Makefile")


def dotted(path: str) -> str:
    return ".".join(Path(path).with_suffix("").parts[1:])


def main() -> int:
    """Edit imports by scope, then dotted names and paths in all texts, then move the files."""
    _, moves = read_maps(sys.argv[1:])
    names = {dotted(old): dotted(new) for old, new in moves.items()}
    workspace = Workspace()
    workspace.pairs, workspace.guesses = [], []
    for file in workspace.files.values():
        for one in file.imports:
            full = f"{one.module}.{one.name}"
            if one.name and one.module in names:
                workspace.edit(file, one.module_offset, one.module, names[one.module], "import")
            if one.name and full in names:
                new = names[full].rsplit(".", 1)[1]
                workspace.edit(file, one.name_offset, one.name, new, "import")
                if one.bound == one.name and one.bound_offset == one.name_offset:
                    workspace.rename_binding(file, one.scope, one.name, new, file.path)
        package = file.module if file.path.endswith("__init__.py") else ""
        for text in file.texts:
            if package and re.fullmatch(r"\.[\w.]+", text.text) and (new := names.get(package + text.text)):
                workspace.edit(file, text.offset + 1, text.text, new.removeprefix(package), "relative")
            elif package and text.text.isidentifier() and (new := names.get(f"{package}.{text.text}")):
                if any("TASKS" in getattr(t, "id", "") for node in text.parents for t in getattr(node, "targets", ())):
                    workspace.edit(file, text.offset + 1, text.text, new.rsplit(".", 1)[1], "task")
    workspace.conflicts()
    for problem in dict.fromkeys(workspace.problems):
        print(problem)
    if workspace.problems and "--force" not in sys.argv:
        return 1
    workspace.write()
    pattern = re.compile(
        r"(?<![\w.])(" + "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True)) + r")(?![\w])"
    )
    paths = {old.removeprefix("src/"): new.removeprefix("src/") for old, new in moves.items()}
    listed = subprocess.run(["git", "ls-files", *TEXTS], capture_output=True, text=True, check=True).stdout.split()
    for path in listed:
        if path.startswith(("CHANGELOG", "docs/decisions", "tools/")):
            continue
        before = Path(path).read_text(encoding="utf-8")
        after = pattern.sub(lambda match: names[match[1]], before)
        for old, new in paths.items():
            after = after.replace(old, new)
            short = old.removeprefix("headway/")
            if "/" in short:
                after = re.sub(rf"(?<![\w/]){re.escape(short)}(?!\w)", new.removeprefix("headway/"), after)
        if after != before:
            Path(path).write_text(after, encoding="utf-8")
    for old, new in moves.items():
        subprocess.run(["git", "mv", old, new], check=True)
    print(len(moves), "modules moved")
    return 0


if __name__ == "__main__":
    sys.exit(main())
