"""Compare the bytecode of two versions of the sources: the same but for names, which map one to one in each scope."""

from __future__ import annotations

import dis
import re
import subprocess
import sys
from pathlib import Path
from types import CodeType

NAMES = {
    "LOAD_FAST",
    "STORE_FAST",
    "DELETE_FAST",
    "LOAD_DEREF",
    "STORE_DEREF",
    "LOAD_CLASSDEREF",
    "MAKE_CELL",
    "LOAD_CLOSURE",
}


# A method of a name that the module also imports is loaded as an attribute, so a local name that no longer hides an
# import, or begins to, changes these.
ATTRIBUTES = {"LOAD_ATTR", "LOAD_METHOD", "STORE_ATTR", "DELETE_ATTR", "IMPORT_NAME", "IMPORT_FROM"}
SKIPPED = {"CACHE", "EXTENDED_ARG", "PUSH_NULL"}
SAME = {"LOAD_METHOD": "LOAD_ATTR"}


class DifferenceError(Exception):
    """What differs."""


class Pairing:
    """A mapping of names that must stay one to one."""

    def __init__(self) -> None:
        self.forward: dict[str, str] = {}
        self.back: dict[str, str] = {}

    def pair(self, old: str, new: str, where: str) -> None:
        if self.forward.setdefault(old, new) != new or self.back.setdefault(new, old) != old:
            raise DifferenceError(
                f"{where}: {old} -> {new}, but {old} -> {self.forward[old]}, {self.back[new]} -> {new}"
            )


def same_expression(old: str, new: str) -> bool:
    """Whether two annotations are the same but for names."""
    shape = re.compile(r"[A-Za-z_]\w*")
    return shape.sub("x", old) == shape.sub("x", new)


def compare(old: CodeType, new: CodeType, where: str, keywords: Pairing, module: str) -> None:
    where = f"{where}.{old.co_name}"
    locals_, globals_ = Pairing(), Pairing()
    flags = [
        (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags, len(code.co_varnames))
        for code in (old, new)
    ]
    if flags[0] != flags[1]:
        raise DifferenceError(f"{where}: {flags}")
    for a, b in zip(old.co_varnames, new.co_varnames, strict=True):
        locals_.pair(a, b, where)
    first, second = ([i for i in dis.get_instructions(code) if i.opname not in SKIPPED] for code in (old, new))
    if [SAME.get(i.opname, i.opname) for i in first] != [SAME.get(i.opname, i.opname) for i in second]:
        raise DifferenceError(f"{where}: other instructions")
    place = [{i.offset: n for n, i in enumerate(one)} for one in (first, second)]
    codes: list[tuple[CodeType, CodeType]] = []
    closures: list[tuple[str, str]] = []
    constants: list[tuple[object, object]] = []
    for a, b in zip(first, second, strict=True):
        if a.opname in ("LOAD_CLOSURE", "MAKE_CELL"):
            closures.append((a.argval, b.argval))
        elif a.opname in NAMES:
            locals_.pair(a.argval, b.argval, where)
        elif a.opcode in dis.hasname:
            # attributes of several classes may map differently, and so may what modules are imported for
            if a.opname not in ATTRIBUTES:
                globals_.pair(a.argval, b.argval, where)
        elif a.opcode in dis.hasconst:
            constants.append((a.argval, b.argval))
        elif a.opname == "KW_NAMES":
            constants.append((old.co_consts[a.arg], new.co_consts[b.arg]))
        elif a.opcode in dis.hasjrel or a.opcode in dis.hasjabs:
            ends = [
                min((at for at in where_ if at >= target), default=0)
                for where_, target in zip(place, (a.argval, b.argval))
            ]
            if place[0].get(ends[0]) != place[1].get(ends[1]):
                raise DifferenceError(f"{where}: other jump")
        elif a.arg != b.arg and a.opname not in ("COPY_FREE_VARS", "LOAD_GLOBAL"):
            raise DifferenceError(f"{where}: {a.opname} {a.argval} {b.argval}")
    if sorted(locals_.forward.get(a, a) for a, _ in closures) != sorted(b for _, b in closures):
        left = [locals_.forward.get(a, "?") for a, _ in closures]
        unknown = [a for a, _ in closures if a not in locals_.forward]
        rest = [b for _, b in closures if b not in locals_.back]
        if len(unknown) != len(rest):
            raise DifferenceError(f"{where}: other cells {closures} {left}")
    for a, b in constants:
        if isinstance(a, CodeType) and isinstance(b, CodeType):
            codes.append((a, b))
            continue
        if a == b and type(a) is type(b):
            continue
        if (
            isinstance(a, tuple)
            and isinstance(b, tuple)
            and len(a) == len(b)
            and all(isinstance(x, str) for x in (*a, *b))
        ):
            continue  # names of keywords or imports, held together by the check of calls at run time
        if isinstance(a, str) and isinstance(b, str) and (same_expression(a, b)):
            changed.setdefault(module, set()).add((a, b))
            continue
        raise DifferenceError(f"{where}: constant {a!r} -> {b!r}")
    for a, b in codes:
        compare(a, b, where, keywords, module)


changed: dict[str, set[tuple[str, str]]] = {}


def main() -> int:
    """python proof.py COMMIT: the work tree against that commit; moved modules are given as OLD=NEW."""
    commit, moves = sys.argv[1], dict(pair.split("=") for pair in sys.argv[2:])
    listed = subprocess.run(
        ["git", "ls-tree", "-r", "--name-only", commit], capture_output=True, text=True, check=True
    ).stdout.split()
    bad = 0
    for path in (p for p in listed if p.endswith(".py")):
        before = subprocess.run(["git", "show", f"{commit}:{path}"], capture_output=True, text=True, check=True).stdout
        now = Path(moves.get(path, path))
        if not now.exists():
            bad += 1
            print(f"{path} is missing")
            continue
        after = now.read_text()
        if before == after:
            continue
        try:
            compare(
                compile(before, path, "exec", dont_inherit=True),
                compile(after, path, "exec", dont_inherit=True),
                path,
                Pairing(),
                path,
            )
        except DifferenceError as error:
            bad += 1
            print(error)
    for path, pairs in sorted(changed.items()):
        for a, b in sorted(pairs):
            if len(a) < 80 and " " not in a:
                print(f"string in {path}: {a} -> {b}")
    print("the same but for names" if not bad else f"{bad} files differ")
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main())
