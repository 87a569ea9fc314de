"""Scopes, names and their places in Python files: what `rename.py` changes.

Offsets count characters from the start of a file. Expressions within f-strings are parsed on their own, because Python
3.11 does not know where their names are.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple


@dataclass(eq=False)
class Scope:
    """A module, class, function, lambda or comprehension, with the names that it binds and those that it uses."""

    kind: str
    qualname: str
    parent: Scope | None
    bound: dict[str, list[int]] = field(default_factory=dict)
    uses: list[tuple[str, int]] = field(default_factory=list)
    elsewhere: dict[str, str] = field(default_factory=dict)  # names declared global or nonlocal
    parameters: list[str] = field(default_factory=list)
    children: list[Scope] = field(default_factory=list)

    @property
    def is_anonymous(self) -> bool:
        return self.kind in ("lambda", "comprehension")

    def resolve(self, name: str) -> Scope | None:
        """The scope that binds `name` as seen from here, by Python's rules; None for a builtin."""
        scope: Scope | None = self
        first = True
        while scope is not None:
            where = scope.elsewhere.get(name)
            if where == "global":
                while scope.parent is not None:
                    scope = scope.parent
                return scope if name in scope.bound else None
            if where is None and name in scope.bound and (first or scope.kind != "class"):
                return scope
            # a comprehension in a class does not see the class's names, but its first iterable is visited in the class
            scope, first = scope.parent, False
        return None


class Access(NamedTuple):
    """`value.name` at an offset."""

    name: str
    offset: int
    value: ast.expr
    scope: Scope


class Keyword(NamedTuple):
    """`callee(name=...)` at an offset."""

    name: str
    offset: int
    call: ast.Call | ast.ClassDef
    scope: Scope


class Text(NamedTuple):
    """A string constant, and the call or assignment that it is part of."""

    text: str
    offset: int
    end: int
    parents: tuple[ast.AST, ...]
    scope: Scope


class Imported(NamedTuple):
    """`from module import name as bound`; name is empty for `import module`."""

    module: str
    name: str
    bound: str
    name_offset: int
    bound_offset: int
    module_offset: int
    scope: Scope


@dataclass(eq=False)
class Class:
    """A class with its bases, and the places where its attributes are defined."""

    path: str
    node: ast.ClassDef
    scope: Scope
    outer: Scope
    attributes: dict[str, list[int]] = field(default_factory=dict)

    @property
    def qualname(self) -> str:
        return self.scope.qualname


class Source:
    """Text with conversion of the parser's lines and byte columns to offsets in the file that it is part of."""

    def __init__(self, text: str, base: int = 0, lead: int = 0) -> None:
        self.text, self.base, self.lead = text, base, lead
        self.lines = text.splitlines(keepends=True)
        self.starts = [0]
        for line in self.lines:
            self.starts.append(self.starts[-1] + len(line))

    def offset(self, line: int, column: int) -> int:
        text = self.lines[line - 1] if line <= len(self.lines) else ""
        characters = column if text.isascii() else len(text.encode()[:column].decode())
        return self.base + self.starts[line - 1] + characters - self.lead

    def start(self, node: Any) -> int:
        return self.offset(node.lineno, node.col_offset)

    def end(self, node: Any) -> int:
        return self.offset(node.end_lineno, node.end_col_offset)


def _fields(body: str, base: int) -> Iterator[tuple[str, int]]:
    """The expressions of an f-string's text, each with its offset."""
    i = 0
    while i < len(body):
        if body[i] in "{}" and body[i : i + 2] == body[i] * 2:
            i += 2
            continue
        if body[i] != "{":
            i += 1
            continue
        start = i + 1
        depth, quote, i = 0, "", start
        while True:
            c = body[i]
            if quote:
                if body.startswith(quote, i):
                    i += len(quote) - 1
                    quote = ""
            elif c in "'\"":
                quote = c * 3 if body.startswith(c * 3, i) else c
                i += len(quote) - 1
            elif c in "([{":
                depth += 1
            elif depth and c in ")]}":
                depth -= 1
            elif not depth and (c in "}:" or (c == "!" and body[i + 1] != "=")):
                break
            i += 1
        expression = body[start:i]
        if re.search(r"[^=!<>]=\s*$", expression):
            expression = expression.rstrip()[:-1]
        yield expression, base + start
        if body[i] == "!":
            i += 2
        if body[i] == ":":
            spec = i + 1
            depth, i = 0, spec
            while depth or body[i] != "}":
                depth += {"{": 1, "}": -1}.get(body[i], 0)
                i += 1
            yield from _fields(body[spec:i], base + spec)
        i += 1


class File(ast.NodeVisitor):
    """One file's scopes, classes, attributes, keywords, imports and strings."""

    def __init__(self, path: str, text: str) -> None:
        self.path, self.text = path, text
        parts = Path(path).with_suffix("").parts
        parts = parts[1:] if parts[0] in ("src", "tests", "benchmarks", "docs", "examples") else parts
        self.module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        self.source = Source(text)
        self.scope = self.root = Scope("module", "", None)
        self.scopes = [self.root]
        self.accesses: list[Access] = []
        self.keywords: list[Keyword] = []
        self.texts: list[Text] = []
        self.imports: list[Imported] = []
        self.classes: list[Class] = []
        self.defs: dict[int, tuple[ast.AST, Scope]] = {}  # by the offset of the def's name
        self._parents: list[ast.AST] = []
        self._class: list[Class] = []
        self._self: list[str] = []
        self.visit(ast.parse(text))
        for scope in self.scopes:
            for name, _ in scope.uses:
                scope.bound.pop(name, None) if name in scope.elsewhere else None

    def visit(self, node: ast.AST) -> None:
        self._parents.append(node)
        super().visit(node)
        self._parents.pop()

    def use(self, name: str, offset: int, binds: bool = False, scope: Scope | None = None) -> None:
        scope = scope or self.scope
        assert self.text[offset : offset + len(name)] == name, (
            self.path,
            name,
            offset,
            self.text[offset - 20 : offset + 20],
        )
        scope.uses.append((name, offset))
        if binds:
            owner = scope
            while name in owner.elsewhere and owner.parent is not None:
                owner = owner.parent
                if scope.elsewhere[name] == "global" and owner.parent is not None:
                    continue
                if name in owner.bound or owner.parent is None:
                    break
            owner.bound.setdefault(name, []).append(offset)

    def after(self, pattern: str, offset: int, name: str) -> int:
        found = re.compile(pattern + rf"({re.escape(name)})\b").search(self.text, offset)
        assert found, (self.path, pattern, name)
        return found.start(1)

    def enter(self, kind: str, qualname: str) -> Scope:
        scope = Scope(kind, qualname, self.scope)
        self.scope.children.append(scope)
        self.scopes.append(scope)
        return scope

    def qualified(self, name: str) -> str:
        owner = self.scope
        return f"{owner.qualname}.{name}" if owner.qualname else name

    # names

    def visit_Name(self, node: ast.Name) -> None:
        self.use(node.id, self.source.start(node), not isinstance(node.ctx, ast.Load))

    def visit_Attribute(self, node: ast.Attribute) -> None:
        self.visit(node.value)
        offset = self.source.end(node) - len(node.attr)
        assert self.text[offset : offset + len(node.attr)] == node.attr, (self.path, node.attr)
        self.accesses.append(Access(node.attr, offset, node.value, self.scope))
        if (
            isinstance(node.ctx, ast.Store)
            and isinstance(node.value, ast.Name)
            and self._class
            and node.value.id in self._self[-1:]
        ):
            self._class[-1].attributes.setdefault(node.attr, []).append(offset)

    def visit_Call(self, node: ast.Call) -> None:
        self.visit(node.func)
        for argument in node.args:
            self.visit(argument)
        for keyword in node.keywords:
            if keyword.arg:
                self.keywords.append(Keyword(keyword.arg, self.source.start(keyword), node, self.scope))
            self.visit(keyword.value)

    def visit_Constant(self, node: ast.Constant) -> None:
        if isinstance(node.value, str):
            self.texts.append(
                Text(
                    node.value, self.source.start(node), self.source.end(node), tuple(self._parents[-5:-1]), self.scope
                )
            )

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        start, end = self.source.start(node), self.source.end(node)
        segment = self.text[start:end]
        lines = Source("(" + segment + "\n)", start, 1)
        for token in tokenize.generate_tokens(io.StringIO("(" + segment + "\n)").readline):
            if token.type != tokenize.STRING:
                continue
            prefix = re.match(r"[a-zA-Z]*", token.string).group()
            if "f" not in prefix.lower():
                continue
            quote = 3 if token.string[len(prefix) :][:3] in ('"""', "'''") else 1
            offset = lines.starts[token.start[0] - 1] + token.start[1] + start - 1 + len(prefix) + quote
            for expression, at in _fields(token.string[len(prefix) + quote : -quote], offset):
                tree = ast.parse("(" + expression + ")", mode="eval").body
                outer, self.source = self.source, Source("(" + expression + ")", at, 1)
                self.visit(tree)
                self.source = outer

    def visit_Global(self, node: ast.Global | ast.Nonlocal) -> None:
        kind = "global" if isinstance(node, ast.Global) else "nonlocal"
        offset = self.source.start(node)
        for name in node.names:
            offset = (
                self.after(r"\b", offset + len(kind), name)
                if name == node.names[0]
                else self.after(r"\b", offset, name)
            )
            self.scope.elsewhere[name] = kind
            self.use(name, offset)
            offset += len(name)

    visit_Nonlocal = visit_Global

    def visit_ExceptHandler(self, node: ast.ExceptHandler) -> None:
        if node.type:
            self.visit(node.type)
        if node.name:
            self.use(node.name, self.after(r"as\s+", self.source.end(node.type), node.name), True)
        for statement in node.body:
            self.visit(statement)

    def visit_MatchAs(self, node: ast.MatchAs) -> None:
        self.generic_visit(node)
        if node.name:
            self.use(node.name, self.source.end(node) - len(node.name), True)

    visit_MatchStar = visit_MatchAs

    # imports

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            start, end = self.source.start(alias), self.source.end(alias)
            bound = alias.asname or alias.name.split(".")[0]
            offset = end - len(bound) if alias.asname else start
            self.use(bound, offset, True)
            self.imports.append(Imported(alias.name, "", alias.asname or "", start, offset, start, self.scope))

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        module_offset = self.source.start(node) + len("from ")
        for alias in node.names:
            start, end = self.source.start(alias), self.source.end(alias)
            bound = alias.asname or alias.name
            offset = end - len(bound) if alias.asname else start
            self.use(bound, offset, True)
            self.imports.append(
                Imported(node.module or "", alias.name, bound, start, offset, module_offset, self.scope)
            )

    # scopes

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        for decorator in node.decorator_list:
            self.visit(decorator)
        offset = self.after(r"def\s+", self.source.start(node), node.name)
        self.use(node.name, offset, True)
        in_class = self.scope.kind == "class"
        if in_class:
            self._class[-1].attributes.setdefault(node.name, []).append(offset)
        arguments = node.args
        every = [
            *arguments.posonlyargs,
            *arguments.args,
            *filter(None, [arguments.vararg]),
            *arguments.kwonlyargs,
            *filter(None, [arguments.kwarg]),
        ]
        for default in [*arguments.defaults, *filter(None, arguments.kw_defaults)]:
            self.visit(default)
        for argument in every:
            if argument.annotation:
                self.visit(argument.annotation)
        if node.returns:
            self.visit(node.returns)
        inner = self.enter("function", self.qualified(node.name))
        self.defs[offset] = (node, inner)
        outer, self.scope = self.scope, inner
        for argument in every:
            inner.parameters.append(argument.arg)
            self.use(argument.arg, self.source.start(argument), True)
        is_method = in_class and not any(
            isinstance(d, ast.Name) and d.id == "staticmethod" for d in node.decorator_list
        )
        self._self.append(
            every[0].arg if is_method and every else (self._self[-1] if self._self and not in_class else "")
        )
        for statement in node.body:
            self.visit(statement)
        self._self.pop()
        self.scope = outer

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_Lambda(self, node: ast.Lambda) -> None:
        arguments = node.args
        for default in [*arguments.defaults, *filter(None, arguments.kw_defaults)]:
            self.visit(default)
        outer, self.scope = self.scope, self.enter("lambda", self.scope.qualname)
        for argument in [
            *arguments.posonlyargs,
            *arguments.args,
            *filter(None, [arguments.vararg]),
            *arguments.kwonlyargs,
            *filter(None, [arguments.kwarg]),
        ]:
            self.scope.parameters.append(argument.arg)
            self.use(argument.arg, self.source.start(argument), True)
        self.visit(node.body)
        self.scope = outer

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        for decorator in node.decorator_list:
            self.visit(decorator)
        for base in node.bases:
            self.visit(base)
        for keyword in node.keywords:
            if keyword.arg:
                self.keywords.append(Keyword(keyword.arg, self.source.start(keyword), node, self.scope))
            self.visit(keyword.value)
        offset = self.after(r"class\s+", self.source.start(node), node.name)
        self.use(node.name, offset, True)
        if self.scope.kind == "class":
            self._class[-1].attributes.setdefault(node.name, []).append(offset)
        inner = self.enter("class", self.qualified(node.name))
        self.defs[offset] = (node, inner)
        outer, self.scope = self.scope, inner
        self._class.append(Class(self.path, node, inner, outer))
        self.classes.append(self._class[-1])
        for statement in node.body:
            self.visit(statement)
        for name, offsets in inner.bound.items():
            known = self._class[-1].attributes.setdefault(name, [])
            known += [offset for offset in offsets if offset not in known]
        self._class.pop()
        self.scope = outer

    def _comprehension(self, node: Any) -> None:
        self.visit(node.generators[0].iter)
        outer, self.scope = self.scope, self.enter("comprehension", self.scope.qualname)
        for number, generator in enumerate(node.generators):
            self.visit(generator.target)
            if number:
                self.visit(generator.iter)
            for condition in generator.ifs:
                self.visit(condition)
        for name in ("elt", "key", "value"):
            if hasattr(node, name):
                self.visit(getattr(node, name))
        self.scope = outer

    visit_ListComp = visit_SetComp = visit_DictComp = visit_GeneratorExp = _comprehension

    def visit_NamedExpr(self, node: ast.NamedExpr) -> None:
        scope = self.scope
        while scope.kind == "comprehension":
            scope = scope.parent
        self.use(node.target.id, self.source.start(node.target), True, scope)
        self.visit(node.value)
