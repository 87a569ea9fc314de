"""The parsed source of the package, for all tests that read it."""

from __future__ import annotations

import ast
import gc
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import headway

PACKAGE = Path(headway.__file__).parent


@cache
def trees() -> dict[str, ast.Module]:
    """By the file's place in the package. Do not change them."""
    paths = sorted(PACKAGE.rglob("*.py"))
    gc.disable()  # a million nodes that stay: the collector would look through them again and again
    found = {str(path.relative_to(PACKAGE)): ast.parse(path.read_text(encoding="utf-8")) for path in paths}
    gc.freeze()
    gc.enable()
    return found


def nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """The nodes of `ast.walk` except contexts of names, in another order and less time."""
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        for field in vars(node).values():
            if isinstance(field, list):
                waiting += [child for child in field if isinstance(child, ast.AST)]
            elif isinstance(field, ast.AST) and not isinstance(field, ast.expr_context):
                waiting.append(field)
