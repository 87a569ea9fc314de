"""Runs the commands of a page and writes their output below: `python docs/capture.py docs/start/first-run.md`.

A block of the language `console` has lines that begin with `$ `, each followed by its output. All blocks of a page run
in one new folder, in order. A comment above a block may keep part of a long output, `<!-- output: first 3, last 8 -->`
or `<!-- output: first 3, from "evaluating" -->`, where the line that begins with that text is the first of the end.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(
    r"(?:<!-- output: (?:first (\d+))?,? ?(?:last (\d+)|from \"([^\"]+)\")? -->\n)?^```console\n(.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
NOISE = re.compile(r"\x1b\[[0-9;]*[A-Za-z]|[^\n]*\r(?!\n)|^W: Download is performed unsandboxed.*\n?", re.MULTILINE)


def commands(block: str) -> list[str]:
    """The commands of a console block; one that ends with a backslash goes on in the next line."""
    return [line[2:] for line in block.replace("\\\n", "\\\0").splitlines() if line.startswith("$ ")]


def run(command: str, folder: Path) -> str:
    """The output of a command. Raises RuntimeError if it fails."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "COLUMNS": "120", "EXAMPLES": str(ROOT / "examples")}
    done = subprocess.run(
        ["bash", "-c", command.replace("\\\0", "\\\n").replace("examples/", "$EXAMPLES/")],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"{command} exited with {done.returncode}:\n{done.stdout}")
    return NOISE.sub("", done.stdout).replace(str(folder), "").replace(sys.prefix, ".venv").rstrip()


def page(text: str, output: Callable[[str], str]) -> str:
    """The page with the output of each command below it."""

    def filled(match: re.Match[str]) -> str:
        first, last = (int(match[number]) if match[number] else None for number in (1, 2))
        parts = []
        for command in commands(match[4]):
            lines = output(command).splitlines()
            if match[3] is not None:
                last = next((len(lines) - n for n, line in enumerate(lines) if line.startswith(match[3])), None)
            if (first is not None or last is not None) and len(lines) > (first or 0) + (last or 0):
                lines = [*lines[: first or 0], "...", *(lines[-last:] if last else [])]
            parts.append("\n".join([f"$ {command}".replace("\0", "\n"), *lines]))
        head = match[0][: match[0].index("```console")]
        return f"{head}```console\n" + "\n".join(parts) + "\n```"

    return BLOCK.sub(filled, text)


def main() -> None:
    """Fill the pages that the command line names."""
    for name in sys.argv[1:]:
        path = Path(name)
        with tempfile.TemporaryDirectory() as folder:
            path.write_text(
                page(path.read_text(encoding="utf-8"), lambda command: run(command, Path(folder))), encoding="utf-8"
            )
        print(f"{name}: outputs written")


if __name__ == "__main__":
    main()
