"""How large and how plain the code is, in numbers that a change can be held to.

    python benchmarks/house.py            # of this tree: one JSON object
    python benchmarks/house.py FOLDER     # of another checkout

Counted are the files of src/headway. A header is a file's docstring and imports up to its first other statement. A
private function is used once where its name stands once beside its definition in the package. The closure of a forward
pass with its loss are the files that are reached by imports from the model of `text` and from the loss.
"""

from __future__ import annotations

import ast
import io
import json
import os
import re
import subprocess
import sys
import tokenize
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from measure import ROOT

MODELS = {"Transformer", "EncoderDecoder", "TwoTower", "Captioner", "Act", "Trajectories", "Model"}
LAYOUT = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENCODING}
FORWARD = ("headway.nn.models.transformer", "headway.nn.kernels.cross_entropy", "headway.nn.models.heads")
LOADED = "import sys, headway; headway.load(sys.argv[1]); print(sum(m.split('.')[0] == 'headway' for m in sys.modules))"


def header(tree: ast.Module, lines: int) -> int:
    """The lines before the first statement that is neither a docstring nor an import."""
    for node in tree.body:
        text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if not text and not isinstance(node, (ast.Import, ast.ImportFrom)):
            return min(node.lineno, *(one.lineno for one in getattr(node, "decorator_list", [])), node.lineno) - 1
    return lines


def module_of(path: Path, source: Path) -> str:
    return ".".join(path.relative_to(source).with_suffix("").parts).removesuffix(".__init__")


def imported(tree: ast.Module, modules: set[str]) -> Iterator[str]:
    """The modules of the package that a file imports when it is imported itself."""
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("headway"):
            yield from ({f"{node.module}.{name.name}" for name in node.names} & modules) or {node.module}
        elif isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name in modules)


def closure(trees: dict[str, ast.Module], starts: tuple[str, ...]) -> set[str]:
    """What is reached by imports; a package's own __init__ counts only where it is named."""
    found: set[str] = set()
    left = list(starts)
    while left:
        name = left.pop()
        if name in trees and name not in found:
            found.add(name)
            left.extend(imported(trees[name], set(trees)))
    return found


def asked_of_models(tree: ast.Module) -> int:
    """isinstance(x, M) where M, or one of a tuple, is a model."""
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == "isinstance"]
    return sum(
        bool(MODELS & set(re.findall(r"\w+", ast.unparse(call.args[1])))) for call in calls if len(call.args) > 1
    )


def counted(root: Path) -> dict[str, Any]:
    source = root / "src"
    texts = {module_of(path, source): path.read_text() for path in sorted((source / "headway").rglob("*.py"))}
    trees = {name: ast.parse(text) for name, text in texts.items()}
    lines = {name: text.count("\n") for name, text in texts.items()}
    tokens, names = 0, Counter[str]()
    for text in texts.values():
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            tokens += token.type not in LAYOUT
            names[token.string] += token.type == tokenize.NAME
    classes, private = Counter[str](), Counter[str]()
    for tree in trees.values():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                classes[node.name] += 1
            elif isinstance(node, ast.FunctionDef) and re.match(r"_[^_]", node.name):
                private[node.name] += 1
    reached = closure(trees, FORWARD)
    outside = [tree for name, tree in trees.items() if not name.startswith(("headway.nn.models", "headway.engine"))]
    return {
        "files": len(texts),
        "lines": sum(lines.values()),
        "tokens": tokens,
        "header_share": round(sum(header(trees[name], lines[name]) for name in texts) / sum(lines.values()), 3),
        "private_functions": sum(private.values()),
        "private_functions_used_once": sum(count for name, count in private.items() if names[name] == 2 * count),
        "closure_of_a_forward": {"files": len(reached), "lines": sum(lines[name] for name in reached)},
        "isinstance_of_models_outside": sum(map(asked_of_models, outside)),
        "class_names_twice": {name: count for name, count in sorted(classes.items()) if count > 1},
    }


def loaded(root: Path) -> int:
    """How many modules of the package are there when a small text model has been loaded."""
    environment = {**os.environ, "PYTHONPATH": str(root / "src")}
    with TemporaryDirectory() as folder:
        text = Path(folder) / "text.txt"
        text.write_text("\n".join(f"line {n} of a text about {n % 17}" for n in range(2000)))
        command = [
            sys.executable,
            "-m",
            "headway",
            "train",
            "text",
            "--data",
            str(text),
            "--run",
            f"{folder}/run",
            "--set",
        ]
        small = ["model.width=16", "model.depth=1", "model.heads=2", "task.size=300", "train.steps=1"]
        subprocess.run([*command, *small], env=environment, check=True, capture_output=True)
        asked = [sys.executable, "-c", LOADED, f"{folder}/run"]
        return int(subprocess.run(asked, env=environment, check=True, capture_output=True, text=True).stdout)


if __name__ == "__main__":
    place = Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else ROOT
    print(json.dumps({**counted(place), "modules_loaded": loaded(place)}, indent=1))
