"""How the package is written: one word for one thing, one story a file, functions that are seen whole."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator

from package_trees import PACKAGE, trees

LINES_OF_A_FILE, LINES_OF_A_FUNCTION = 600, 60


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """All, within others too; they are statements, so that no expression is looked through."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node
        if isinstance(node, (ast.stmt, ast.excepthandler, ast.match_case)):
            yield from functions(node)


def test_no_class_name_stands_twice() -> None:
    found: defaultdict[str, list[str]] = defaultdict(list)
    for path, tree in trees().items():
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                found[node.name].append(path)
    assert len(found) > 500
    assert not {name: paths for name, paths in found.items() if len(paths) > 1}


def test_files_and_functions_are_short() -> None:
    long = [path for path in trees() if (PACKAGE / path).read_text(encoding="utf-8").count("\n") > LINES_OF_A_FILE]
    for path, tree in trees().items():
        for node in functions(tree):
            told = ast.get_docstring(node, clean=False) or ""
            length = (node.end_lineno or 0) - node.lineno + 1 - len(told.splitlines())
            if length > LINES_OF_A_FUNCTION:
                long.append(f"{path}: {node.name} has {length} lines")
    assert not long
