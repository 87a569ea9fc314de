"""Rename identifiers by scope, and prove by bytecode that nothing else changed.

    python tools/rename.py check MAP...    # what the maps name exists, and no new name is taken in its scope
    python tools/rename.py apply MAP...    # rename in src, tests, benchmarks, docs and examples, then prove it

A map has a line for each scope, below the file that it is about:

    @ src/headway/data/files.py        # the file of the following lines
    > src/headway/data/paths.py        # move the module
    read: old>new other>better         # names that the function `read` binds: parameters, locals, comprehensions
    =Old>New                           # a name of the module
    Table=old>new                      # an attribute, method or field of the class `Table` and of its subclasses

Keyword arguments, imports, `__all__` and dotted names in strings follow. Where several unrelated classes have an
attribute of the same name, pyright says which one an access means.
"""

from __future__ import annotations

import ast
import re
import sys
from builtins import __dict__ as BUILTINS
from collections import defaultdict
from keyword import iskeyword
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parent))
from scopes import Access, Class, File, Keyword, Scope

TOPS = ("src", "tests", "benchmarks", "docs", "examples", "tools")


class Rename(NamedTuple):
    """One pair of a map; kind is local, module or member."""

    path: str
    kind: str
    qualname: str
    old: str
    new: str
    line: str


def read_maps(paths: list[str]) -> tuple[list[Rename], dict[str, str]]:
    """The pairs of all maps, and the modules that move."""
    pairs, moves = [], {}
    for map_path in paths:
        path = ""
        for number, line in enumerate(Path(map_path).read_text().splitlines(), 1):
            line, where = line.split("#")[0].strip(), f"{map_path}:{number}"
            if not line:
                continue
            if line[0] == "@":
                path = line[1:].strip()
            elif line[0] == ">":
                moves[path] = line[1:].strip()
            elif match := re.fullmatch(r"([\w.]*)=(\w+)\s*>\s*(\w+)", line):
                kind = "member" if match[1] else "module"
                pairs.append(Rename(path, kind, match[1], match[2], match[3], where))
            elif match := re.fullmatch(r"([\w.]+):((?:\s*\w+\s*>\s*\w+)+)", line):
                for old, new in re.findall(r"(\w+)\s*>\s*(\w+)", match[2]):
                    pairs.append(Rename(path, "local", match[1], old, new, where))
            else:
                print(f"{where}: not a line of a map: {line}")
    return [pair for pair in dict.fromkeys(pairs) if pair.old != pair.new], moves


class Workspace:
    """All Python files, with what is needed to follow names from one to the other."""

    def __init__(self, only: set[str] | None = None) -> None:
        paths = sorted(only) if only else sorted(str(path) for top in TOPS for path in Path(top).rglob("*.py"))
        self.files = {path: File(path, Path(path).read_text()) for path in paths if Path(path).exists()}
        self.modules = {file.module: file for file in self.files.values()}
        self.edits: dict[str, dict[int, tuple[str, str]]] = defaultdict(dict)
        self.problems: list[str] = []
        self.names: dict[tuple[int, str], str] = {}  # (id of the binding scope, old name) to the new name
        self.keyword_renames: dict[tuple[int, str], str] = {}  # (id of the function's scope, old) to the new name
        self.member_renames: dict[tuple[str, str, str], str] = {}  # (path, class, old) to the new name
        self.imported = {
            (id(one.scope), one.bound or one.module.split(".")[0]): (file, one)
            for file in self.files.values()
            for one in file.imports
        }
        self.importers: dict[tuple[str, str], list] = defaultdict(list)
        for file in self.files.values():
            for one in file.imports:
                if one.name:
                    self.importers[one.module, one.name].append((file, one))
        self.classes: dict[tuple[str, str], Class] = {
            (file.path, one.qualname): one for file in self.files.values() for one in file.classes
        }
        self.groups: dict[tuple[tuple[str, str], str], frozenset] = {}
        self._pyright = None

    # which object a name means

    def meaning(self, scope: Scope, name: str, depth: int = 0):
        """("module", file), ("def", file, qualname) or None for the expression `name` as seen from `scope`."""
        owner = scope.resolve(name)
        if owner is None or depth > 9:
            return None
        if known := self.imported.get((id(owner), name)):
            _, one = known
            if not one.name:
                return (
                    ("module", self.modules[one.module])
                    if one.bound and one.module in self.modules
                    else ("package", one.module.split(".")[0])
                    if not one.bound
                    else None
                )
            return self.member_of_module(one.module, one.name, depth + 1)
        file = self.file_of(owner)
        if owner.kind in ("module", "class", "function"):
            qualname = f"{owner.qualname}.{name}" if owner.qualname else name
            if any(offset in file.defs for offset in owner.bound.get(name, ())):
                return ("def", file, qualname)
        return None

    def member_of_module(self, module: str, name: str, depth: int = 0):
        if f"{module}.{name}" in self.modules:
            return ("module", self.modules[f"{module}.{name}"])
        if module in self.modules:
            file = self.modules[module]
            if name in file.root.bound:
                return self.meaning(file.root, name, depth) or ("name", file, name)
        return None

    def file_of(self, scope: Scope) -> File:
        while scope.parent is not None:
            scope = scope.parent
        if not hasattr(self, "_roots"):
            self._roots = {id(file.root): file for file in self.files.values()}
        return self._roots[id(scope)]

    def expression(self, scope: Scope, node: ast.expr):
        if isinstance(node, ast.Name):
            return self.meaning(scope, node.id)
        if isinstance(node, ast.Subscript):
            return self.expression(scope, node.value)
        if isinstance(node, ast.Attribute):
            dotted = ast.unparse(node)
            if dotted in self.modules:
                return ("module", self.modules[dotted])
            owner = self.expression(scope, node.value)
            if owner and owner[0] == "module":
                return self.member_of_module(owner[1].module, node.attr)
            if owner and owner[0] == "def":
                file, qualname = owner[1], f"{owner[2]}.{node.attr}"
                if any(inner.qualname == qualname for _, inner in file.defs.values()):
                    return ("def", file, qualname)
        return None

    # edits

    def edit(self, file: File, offset: int, old: str, new: str, where: str) -> None:
        assert file.text[offset : offset + len(old)] == old, (file.path, old, file.text[offset : offset + 30], where)
        known = self.edits[file.path].get(offset)
        if known and known != (old, new):
            self.problems.append(f"{where}: {file.path}: {old} is renamed to {known[1]} and to {new}")
        self.edits[file.path][offset] = (old, new)

    def rename_binding(self, file: File, scope: Scope, old: str, new: str, where: str) -> None:
        """All uses of the name that `scope` binds, and what imports it if that is a module."""
        key = (id(scope), old)
        if key in self.names:
            if self.names[key] != new:
                self.problems.append(
                    f"{where}: {old} of {file.path}:{scope.qualname} is also renamed to {self.names[key]}"
                )
            return
        self.names[key] = new
        stack = [scope]
        while stack:
            inner = stack.pop()
            stack += inner.children
            if any(name == old for name, _ in inner.uses) and inner.resolve(old) is scope:
                for name, offset in inner.uses:
                    if name == old:
                        self.edit(file, offset, old, new, where)
            for name, offset in inner.uses:  # declarations as global or nonlocal
                if name == old and inner.elsewhere.get(old) == "global" and scope.kind == "module":
                    self.edit(file, offset, old, new, where)
        if scope.kind == "module":
            for other, one in self.importers.get((file.module, old), ()):
                self.edit(other, one.name_offset, old, new, where)
                if one.bound == old and one.name_offset == one.bound_offset:
                    self.rename_binding(other, one.scope, old, new, where)
            if file.path.endswith("__init__.py") or True:
                self.rename_listed(file, old, new, where)

    def rename_listed(self, file: File, old: str, new: str, where: str) -> None:
        """`__all__` and the names of `lazily` in a file."""
        for text in file.texts:
            if text.text == old and any(
                (
                    isinstance(node, ast.Assign)
                    and any(isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets)
                )
                or (
                    isinstance(node, ast.Call)
                    and isinstance(node.func, ast.Name)
                    and node.func.id in ("lazily", "lazy_imports", "export_lazily")
                )
                for node in text.parents
            ):
                self.edit(file, text.offset + 1, old, new, where)

    # local names

    def local(self, pair: Rename) -> None:
        file = self.files.get(pair.path)
        scopes = [s for s in file.scopes if s.kind == "function" and s.qualname == pair.qualname] if file else []
        if not scopes:
            return self.problems.append(f"{pair.line}: {pair.path} has no function {pair.qualname}")
        done = False
        for scope in scopes:
            stack = [scope]
            while stack:
                inner = stack.pop()
                stack += [child for child in inner.children if child.is_anonymous]
                if pair.old in inner.bound:
                    done = True
                    self.rename_binding(file, inner, pair.old, pair.new, pair.line)
                    if inner is scope and pair.old in inner.parameters:
                        self.keyword_renames[id(inner), pair.old] = pair.new
        if not done:
            self.problems.append(f"{pair.line}: {pair.qualname} of {pair.path} does not bind {pair.old}")

    def module(self, pair: Rename) -> None:
        file = self.files.get(pair.path)
        if file is None or pair.old not in file.root.bound:
            return self.problems.append(f"{pair.line}: {pair.path} does not bind {pair.old}")
        self.rename_binding(file, file.root, pair.old, pair.new, pair.line)

    # members

    def group(self, key: tuple[str, str], name: str) -> frozenset:
        """The classes that define `name` and are related to `key` by inheritance."""
        if (key, name) in self.groups:
            return self.groups[key, name]
        related, stack = set(), [key]
        while stack:
            one = stack.pop()
            if one in related:
                continue
            related.add(one)
            stack += self.bases()[one] + self.derived()[one]
        members = self._linked(key, name)
        for member in members:
            self.groups[member, name] = members
        return members

    def _linked(self, key: tuple[str, str], name: str) -> frozenset:
        def ancestors(one):
            seen, stack = set(), list(self.bases()[one])
            while stack:
                base = stack.pop()
                if base not in seen:
                    seen.add(base)
                    stack += self.bases()[base]
            return seen

        members, stack = set(), [key]
        defining = {one for one, cls in self.classes.items() if name in cls.attributes} | {key}
        up = {one: ancestors(one) for one in defining}
        while stack:
            one = stack.pop()
            if one in members:
                continue
            members.add(one)
            stack += [other for other in defining if other in up[one] or one in up[other]]
        return frozenset(members)

    def bases(self) -> dict:
        if not hasattr(self, "_bases"):
            self._bases = {}
            for key, cls in self.classes.items():
                found = [self.expression(cls.outer, base) for base in cls.node.bases]
                self._bases[key] = [
                    (one[1].path, one[2])
                    for one in found
                    if one and one[0] == "def" and (one[1].path, one[2]) in self.classes
                ]
        return self._bases

    def derived(self) -> dict:
        if not hasattr(self, "_derived"):
            self._derived = defaultdict(list)
            for key, bases in self.bases().items():
                for base in bases:
                    self._derived[base].append(key)
        return self._derived

    def member(self, pair: Rename, alone: bool = False) -> None:
        cls = self.classes.get((pair.path, pair.qualname))
        if cls is None:
            return self.problems.append(f"{pair.line}: {pair.path} has no class {pair.qualname}")
        if pair.old not in cls.attributes:
            return self.problems.append(f"{pair.line}: class {pair.qualname} of {pair.path} does not define {pair.old}")
        keys = [(pair.path, pair.qualname)] if alone else self.group((pair.path, pair.qualname), pair.old)
        for path, qualname in keys:
            known = self.member_renames.get((path, qualname, pair.old))
            if known and known != pair.new:
                self.problems.append(f"{pair.line}: {qualname}.{pair.old} is also renamed to {known}")
            self.member_renames[path, qualname, pair.old] = pair.new
            related, file = self.classes[path, qualname], self.files[path]
            if pair.old in related.scope.bound:
                self.rename_binding(file, related.scope, pair.old, pair.new, pair.line)
            for offset in related.attributes.get(pair.old, ()):
                self.edit(file, offset, pair.old, pair.new, pair.line)
            if pair.new in related.attributes and not self.renamed_away(path, qualname, pair.new):
                self.problems.append(f"{pair.line}: class {qualname} of {path} has {pair.new} already")

    def renamed_away(self, path: str, qualname: str, name: str) -> bool:
        return any(
            p.kind == "member" and p.old == name and (p.path, p.qualname) in self.group((path, qualname), name)
            for p in self.pairs
        )

    def accesses(self) -> None:
        """Attribute accesses of renamed members and module names."""
        renamed = defaultdict(dict)
        for (path, qualname, old), new in self.member_renames.items():
            renamed[old][path, qualname] = new
        definers = defaultdict(set)
        for key, cls in self.classes.items():
            for name in cls.attributes:
                if name in renamed:
                    definers[name].add(key)
        for file in self.files.values():
            for access in file.accesses:
                owner = self.expression(access.scope, access.value)
                if owner and owner[0] == "module":
                    new = self.names.get((id(owner[1].root), access.name))
                    if new:
                        self.edit(file, access.offset, access.name, new, "module access")
                    continue
                if access.name in renamed and access.offset not in self.edits[file.path]:
                    if new := self.member_meant(file, access, renamed[access.name], definers[access.name]):
                        self.edit(file, access.offset, access.name, new, "attribute")

    def member_meant(self, file: File, access: Access, renamed: dict, definers: set) -> str | None:
        owner = self.expression(access.scope, access.value)
        key = None
        if owner and owner[0] == "def" and (owner[1].path, owner[2]) in self.classes:
            key = (owner[1].path, owner[2])
        elif isinstance(access.value, ast.Name):
            key = self.class_of_self(file, access.scope, access.value.id)
        if key is not None:
            for one in [key, *self.ancestors(key)]:
                if access.name in self.classes[one].attributes:
                    return renamed.get(one)
        places = self.definitions(file, access.offset)
        inside = [self.class_at(path, line, column, access.name) for path, line, column in places if path]
        if any(inside):
            news = {renamed.get(one) for one in inside if one}
            if len(news) == 1:
                return news.pop()
            self.problems.append(f"{self.where(file, access.offset)}: .{access.name} may be {news}")
            return None
        if places:
            return None  # another package's, or a name that is no member
        news = {renamed.get(one) for one in definers}
        if len(news) == 1:
            self.guesses.append(f"{self.where(file, access.offset)}: .{access.name}>{next(iter(news))}")
            return news.pop()
        self.problems.append(f"{self.where(file, access.offset)}: unknown .{access.name}, one of {news}")
        return None

    def ancestors(self, key) -> list:
        found, stack = [], list(self.bases()[key])
        while stack:
            base = stack.pop(0)
            if base not in found:
                found.append(base)
                stack += self.bases()[base]
        return found

    def class_of_self(self, file: File, scope: Scope, name: str):
        """The class of `self` or `cls` if the name is a method's first parameter."""
        owner = scope.resolve(name)
        if (
            owner is not None
            and owner.kind == "function"
            and owner.parameters[:1] == [name]
            and owner.parent.kind == "class"
        ):
            return (file.path, owner.parent.qualname)
        return None

    def class_at(self, path: str, line: int, column: int, name: str):
        file = self.files.get(path)
        if file is None:
            return None
        offset = file.source.starts[line - 1] + column
        if not hasattr(self, "_places"):
            self._places = {
                (key[0], at): key
                for key, cls in self.classes.items()
                for offsets in cls.attributes.values()
                for at in offsets
            }
        return self._places.get((path, offset))

    def where(self, file: File, offset: int) -> str:
        return f"{file.path}:{file.text.count(chr(10), 0, offset) + 1}"

    def definitions(self, file: File, offset: int) -> list:
        if self._pyright is None:
            from lsp import Pyright

            self._pyright = Pyright(".", str(Path(".venv/bin/pyright-langserver").resolve()))
        line = file.text.count("\n", 0, offset)
        return self._pyright.definitions(file.path, line, offset - file.source.starts[line])

    # keywords

    def keywords(self) -> None:
        """Keyword arguments that meet renamed parameters, fields or constructors."""
        olds = defaultdict(set)
        parameters = defaultdict(list)  # (function name, parameter) of all functions
        for file in self.files.values():
            for node, inner in file.defs.values():
                if inner.kind == "function":
                    for name in inner.parameters:
                        parameters[node.name, name].append((file, inner))
        for (_, old), new in self.keyword_renames.items():
            olds[old].add(new)
        for (_, _, old), new in self.member_renames.items():
            olds[old].add(new)
        for file in self.files.values():
            for keyword in file.keywords:
                if keyword.name in olds:
                    new = self.keyword_meant(file, keyword, parameters)
                    if new:
                        self.edit(file, keyword.offset, keyword.name, new, "keyword")

    def keyword_meant(self, file: File, keyword: Keyword, parameters: dict) -> str | None:
        call, scope = keyword.call, keyword.scope
        if isinstance(call, ast.ClassDef):
            return None
        callee = call.func
        if isinstance(callee, ast.Name) and callee.id == "partial" and call.args:
            callee = call.args[0]
        meant = self.expression(scope, callee)
        if isinstance(callee, ast.Name) and meant is None and (key := self.class_of_self(file, scope, callee.id)):
            return self.constructor(key, keyword.name)
        if meant and meant[0] == "def":
            key = (meant[1].path, meant[2])
            if key in self.classes:
                return self.constructor(key, keyword.name)
            news = {
                self.keyword_renames.get((id(inner), keyword.name))
                for node, inner in meant[1].defs.values()
                if inner.qualname == meant[2] and keyword.name in inner.parameters
            }
            return self.only(file, keyword, news)
        name = callee.attr if isinstance(callee, ast.Attribute) else callee.id if isinstance(callee, ast.Name) else ""
        if name in ("replace", "_replace", "evolve"):
            news = {
                self.member_renames.get((*key, keyword.name))
                for key, cls in self.classes.items()
                if keyword.name in cls.scope.bound
            }
            return self.only(file, keyword, news)
        if name == "__init__":
            news = {
                self.keyword_renames.get((id(inner), keyword.name)) for _, inner in parameters["__init__", keyword.name]
            }
            return self.only(file, keyword, news)
        candidates = parameters.get((name, keyword.name), [])
        if not candidates:
            if name not in BUILTINS and isinstance(callee, ast.Name):
                self.guesses.append(f"{self.where(file, keyword.offset)}: keyword {keyword.name}= of {name} left")
            return None
        news = {self.keyword_renames.get((id(inner), keyword.name)) for _, inner in candidates}
        return self.only(file, keyword, news)

    def constructor(self, key: tuple[str, str], name: str) -> str | None:
        for one in [key, *self.ancestors(key)]:
            cls = self.classes[one]
            for node, inner in self.files[one[0]].defs.values():
                if inner.kind == "function" and inner.parent is cls.scope and node.name in ("__init__", "__new__"):
                    return self.keyword_renames.get((id(inner), name))
            if name in cls.scope.bound:
                return self.member_renames.get((*one, name))
        return None

    def only(self, file: File, keyword: Keyword, news: set) -> str | None:
        if len(news) > 1:
            callee = keyword.call.func
            if isinstance(callee, ast.Attribute):
                offset = file.source.end(callee) - len(callee.attr)
                places = self.definitions(file, offset)
                found = set()
                for path, line, column in places:
                    other = self.files.get(path)
                    at = other and other.source.starts[line - 1] + column
                    if other and at in other.defs:
                        found.add(self.keyword_renames.get((id(other.defs[at][1]), keyword.name)))
                if len(found) == 1:
                    return found.pop()
            self.problems.append(f"{self.where(file, keyword.offset)}: keyword {keyword.name}= may be any of {news}")
            return None
        return next(iter(news), None)

    # strings

    def strings(self) -> None:
        """Names in strings: setattr(object, "name"), and dotted paths."""
        members = defaultdict(set)
        for (_, _, old), new in self.member_renames.items():
            members[old].add(new)
        module_names = {
            (self.file_of_id(scope), old): new for (scope, old), new in self.names.items() if self.file_of_id(scope)
        }
        olds = {old for _, old in module_names} | set(members)
        for file in self.files.values():
            for text in file.texts:
                if text.text.startswith("headway.") and re.fullmatch(r"[\w.]+", text.text):
                    self.dotted(file, text)
                if text.text not in olds or text.offset + 1 in self.edits[file.path]:
                    continue
                call = next((node for node in reversed(text.parents) if isinstance(node, ast.Call)), None)
                name = getattr(call.func, "attr", getattr(call.func, "id", "")) if call else ""
                if (
                    name in ("setattr", "getattr", "hasattr", "delattr", "delitem", "attrgetter", "object", "spy")
                    and call.args
                ):
                    owner = self.expression(text.scope, call.args[0])
                    new = None
                    if owner and owner[0] == "module":
                        new = self.names.get((id(owner[1].root), text.text))
                    elif owner and owner[0] == "def":
                        keys = [(owner[1].path, owner[2])]
                        keys += self.ancestors(keys[0]) if keys[0] in self.classes else []
                        new = next((n for k in keys if (n := self.member_renames.get((*k, text.text)))), None)
                    elif len(members[text.text]) == 1:
                        self.problems.append(
                            f"{self.where(file, text.offset)}: {text.text!r} in {name}, perhaps {members[text.text]}"
                        )
                    if new:
                        self.edit(file, text.offset + 1, text.text, new, "string")

    def file_of_id(self, number: int) -> str:
        if not hasattr(self, "_root_ids"):
            self._root_ids = {id(file.root): file.path for file in self.files.values()}
        return self._root_ids.get(number, "")

    def dotted(self, file: File, text) -> None:
        parts = text.text.split(".")
        for cut in range(len(parts) - 1, 0, -1):
            module = ".".join(parts[:cut])
            if module in self.modules:
                new = self.names.get((id(self.modules[module].root), parts[cut]))
                if new:
                    offset = text.offset + 1 + len(module) + 1
                    self.edit(file, offset, parts[cut], new, "dotted")
                return

    # conflicts

    def conflicts(self) -> None:
        """New names that their scopes, or scopes between a binding and its use, know already."""
        by_id = {id(scope): (file, scope) for file in self.files.values() for scope in file.scopes}
        final = self.names

        def new_of(scope: Scope, name: str) -> str:
            return final.get((id(scope), name), name)

        for (number, old), new in final.items():
            file, scope = by_id[number]
            what = f"{file.path}: {scope.qualname or 'module'}: {old}>{new}"
            if iskeyword(new) or not new.isidentifier():
                self.problems.append(f"{what}: not a name")
            if any(name != old and new_of(scope, name) == new for name in scope.bound):
                self.problems.append(f"{what}: {new} is bound there already")
                continue
            if scope.kind == "class":
                continue
            stack = [scope]
            while stack:
                inner = stack.pop()
                stack += inner.children
                used = {name for name, _ in inner.uses}
                for name in used:
                    owner = inner.resolve(name)
                    if owner is scope and name == old:
                        between = inner
                        while between is not scope:
                            if between.kind != "class" or between is inner:
                                if any(new_of(between, other) == new for other in between.bound):
                                    self.problems.append(f"{what}: {new} hides it in {between.qualname}")
                                    break
                            between = between.parent
                    elif owner is not scope and (new_of(owner, name) if owner else name) == new:
                        outside = owner is None or self.encloses(owner, scope)
                        if outside:
                            self.problems.append(
                                f"{what}: it would hide {new} that {inner.qualname or 'the module'} uses"
                            )

    @staticmethod
    def encloses(outer: Scope, inner: Scope) -> bool:
        parent = inner.parent
        while parent is not None:
            if parent is outer:
                return True
            parent = parent.parent
        return False

    def plan(self, pairs: list[Rename], whole: bool = True) -> None:
        self.pairs, self.guesses = pairs, []
        for pair in pairs:
            if pair.kind == "module":
                self.module(pair)
        for pair in pairs:
            if pair.kind == "local":
                self.local(pair)
        for pair in pairs:
            if pair.kind == "member":
                self.member(pair)
        self.conflicts()
        if whole:
            self.accesses()
            self.keywords()
            self.strings()

    def write(self) -> None:
        for path, edits in self.edits.items():
            text = self.files[path].text
            for offset in sorted(edits, reverse=True):
                old, new = edits[offset]
                text = text[:offset] + new + text[offset + len(old) :]
            Path(path).write_text(text)


def main() -> int:
    action, maps = sys.argv[1], [name for name in sys.argv[2:] if name != "--force"]
    pairs, moves = read_maps(maps)
    if action == "check":
        workspace = Workspace({pair.path for pair in pairs} | set(moves))
        workspace.plan(pairs, whole=False)
    else:
        workspace = Workspace()
        workspace.plan(pairs)
    for problem in dict.fromkeys(workspace.problems):
        print(problem)
    print(len(pairs), "pairs,", sum(map(len, workspace.edits.values())), "edits,", len(workspace.problems), "problems")
    if action != "check":
        print(*workspace.guesses, sep="\n")
    if action == "apply" and (not workspace.problems or "--force" in sys.argv):
        workspace.write()
    return bool(workspace.problems)


if __name__ == "__main__":
    sys.exit(main())
