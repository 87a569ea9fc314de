"""Grammars, in llguidance's dialect of lark, of the JSON texts that a schema allows."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from headway.errors import UserError
from headway.serve.expressions import LarkTerminal, either, joined, literal, spelt
from headway.serve.schemas.contents import Contents
from headway.serve.schemas.documents import Document
from headway.serve.schemas.numbers import UnknownError
from headway.serve.schemas.reading import SchemaReader
from headway.serve.schemas.shapes import Shape
from headway.serve.schemas.values import (
    ALL,
    NEVER,
    Arrays,
    Contained,
    Fit,
    JsonValues,
    Objects,
    RecursionWithinError,
    fit,
)

_MOST = 1 << 16  # maximum items of an array, or members of an object
_STATES = 4096  # maximum states to count one array or object
_RULES = 60_000  # maximum rules of a grammar
_SPACE = r"(?: |\r?\n[ \t]{0,32})?"  # between JSON tokens; limited, as models might never stop
_MARKS = {
    "OPEN_LIST": rf"\[{_SPACE}",
    "CLOSE_LIST": rf"{_SPACE}\]",
    "NO_LIST": rf"\[{_SPACE}\]",
    "OPEN_OBJECT": rf"\{{{_SPACE}",
    "CLOSE_OBJECT": rf"{_SPACE}\}}",
    "NO_OBJECT": rf"\{{{_SPACE}\}}",
    "COMMA": f"{_SPACE},{_SPACE}",
    "COLON": f"{_SPACE}:{_SPACE}",
}
_QUOTE = LarkTerminal(r"\x{22}")


@dataclass
class Grammar:
    """The rules of a text, and the constraints that must be checked during generation."""

    start: str
    lines: list[str]
    ignored: list[str]
    shapes: list[list[Shape]] = field(default_factory=list)  # by index; the first is the complete text


def grammar_of(schema: Any, source: str = "the schema", prefix: str = "") -> Grammar:
    """The grammar of a JSON schema of draft 4 to 2020-12. All its texts match the schema.

    The names of rules start with `prefix`, in lower case. UserError for an invalid or too large schema, and for every
    requirement that cannot be enforced.
    """
    document = Document(schema, source)
    reader = SchemaReader(document)
    try:
        root = reader.root()
        if reader.contents.is_fit_void(root):
            raise UserError(f"nothing matches {source}, or it refers to itself without end; allow some value")
        writer = _Writer(reader, prefix)
        start = writer.symbol(root)
        writer.finish()
    except RecursionWithinError:
        raise UserError(
            f"{source} refers to itself without end for the same value; make a part of it optional"
        ) from None
    except UnknownError as error:
        raise UserError(f"{source} requires {error}, which cannot be enforced; use a simpler one") from None
    except RecursionError:
        raise UserError(f"{source} is nested too deeply; use a flatter one") from None
    return Grammar(start, writer.lines, document.ignored, writer.shapes())


class _Writer:
    """Generates rules for sets of values, each once."""

    def __init__(self, reader: SchemaReader, prefix: str) -> None:
        self._reader = reader
        self._contents: Contents = reader.contents
        self._prefix = prefix
        self._symbols: dict[Fit, str | None] = {}
        self._terminals: dict[str, str] = {}
        self._waiting: list[tuple[Fit, str]] = []
        self._bodies: dict[str, str] = {}
        self._count = 0  # of names
        self.lines: list[str] = []
        self._shapes: dict[Fit, list[tuple[str, bool, list[Fit], dict[str, Fit], list[Fit], list[str] | None]]] = {}

    def symbol(self, wanted: Fit) -> str:
        """The name of the rule or terminal for a set that is not known to be empty."""
        found = self._symbols.get(wanted)
        if found is not None:
            return found
        values = self._reader.values(wanted) if wanted else ALL
        terminal, fragments = self._scalars(values)
        if not values.arrays and not values.objects and not fragments:
            found = self._terminal(terminal)
        elif not values.arrays and not values.objects and terminal is None and len(fragments) == 1:
            found = self._rule(f"%json {fragments[0]}")
        else:
            found = self._name("v")
            self._waiting.append((wanted, found))
        self._symbols[wanted] = found
        return found

    def finish(self) -> None:
        """Generate the rules of all requested symbols."""
        while self._waiting:
            wanted, name = self._waiting.pop()
            values = self._reader.values(wanted) if wanted else ALL
            terminal, fragments = self._scalars(values)
            options = [self._terminal(terminal)] if terminal is not None else []
            options += [self._rule(f"%json {fragment}") for fragment in fragments]
            self._shapes[wanted] = []
            for array in values.arrays:
                if not self._contents.is_void(array):
                    options += self._array(array, wanted)
            for each in values.objects:
                for one in self._resolved(each):
                    if not self._contents.is_void(one):
                        options += self._object(one, wanted)
            if not options:
                raise UnknownError("values that cannot be expressed")
            self._line(f"{name}: {' | '.join(dict.fromkeys(options))}")

    def _name(self, kind: str) -> str:
        self._count += 1
        return f"{self._prefix}{kind}{self._count}"

    def _line(self, line: str) -> None:
        self.lines.append(line)
        if len(self.lines) > _RULES:
            raise UnknownError(f"more than {_RULES:,} rules")

    def _rule(self, body: str, kind: str = "r") -> str:
        """The name of a rule with this body, the same for the same body."""
        found = self._bodies.get(body)
        if found is None:
            found = self._name(kind)
            self._bodies[body] = found
            self._line(f"{found}: {body}")
        return found

    def _terminal(self, terminal: LarkTerminal | None) -> str:
        if terminal is None:
            raise UnknownError("values that cannot be expressed")
        body = terminal.lark()
        found = self._terminals.get(body)
        if found is None:
            found = f"{self._prefix.upper()}T{len(self._terminals)}"
            self._terminals[body] = found
            self._line(f"{found}: {body}")
        return found

    def _mark(self, name: str) -> str:
        return self._terminal(LarkTerminal(_MARKS[name]))

    def _scalars(self, values: JsonValues) -> tuple[LarkTerminal | None, list[str]]:
        """A terminal for scalars, and llguidance schemas for scalars that it cannot express."""
        options = [LarkTerminal("null")] if values.null else []
        options += [LarkTerminal("true" if each else "false") for each in sorted(values.booleans)]
        fragments = []
        for number in values.numbers:
            terminal = number.terminal()
            if terminal is not None:
                options.append(terminal)
                continue
            fragment = number.fragment()
            if fragment is None:
                raise UnknownError(f"multiples of {number.step} within these bounds")
            fragments.append(fragment)
        for string in values.strings:
            terminal = self._contents.strings(string)
            if terminal is not None:
                options.append(joined([_QUOTE, terminal, _QUOTE]))
        return (either(options) if options else None), fragments

    def _resolved(self, record: Objects) -> list[Objects]:
        """The same without requirements that some member is of a kind: they are applied to the named members."""
        found = [record]
        for scope, wanted in sorted(record.some, key=str):
            names = [name for name in self._contents.names(record) if self._contents.is_in(scope, name)]
            demands = [Objects(((name, wanted),), required=(name,), least=1) for name in names]
            parts = (one.intersection(each) for one in found for each in demands)
            found = [part for part in parts if part is not None]
        return [replace(each, some=frozenset()) for each in found]

    def _array(self, record: Arrays, wanted: Fit) -> list[str]:
        items: list[Fit] = []
        for each in record.first:
            if self._contents.is_fit_void(each):
                break
            items.append(each)
        cut = len(items) < len(record.first)
        others = NEVER if cut or self._contents.is_fit_void(record.others) else record.others
        most = _MOST if record.most is None else min(record.most, _MOST)
        most = min(most, len(items)) if others == NEVER else most
        values = self._listed(record) if record.unique else None
        if values is not None:
            most = min(most, len(values))
        if record.least > most:
            if record.least > _MOST:
                raise UnknownError(f"arrays of {record.least:,} items")
            return []
        distinct = record.unique and most > 1
        self._shapes[wanted].append(("array", distinct, items, {}, [others] if others != NEVER else [], values))
        unbounded = record.most is None and others != NEVER and values is None
        if record.contains:
            return self._counted_array(replace(record, first=tuple(items), others=others), None if unbounded else most)
        options = [self._mark("NO_LIST")] if record.least == 0 else []
        if most == 0:
            return options
        comma, body = self._mark("COMMA"), ""
        if most > len(items):
            other = self.symbol(others)
            least = max(0, record.least - len(items) - (0 if items else 1))
            count = "*" if unbounded else f"{{{least},{most - max(len(items), 1)}}}"
            if unbounded and least:
                count = f"{{{least},}}"
            body = f"({comma} {other}){count}" if count != "{0,0}" else ""
            if not items:
                body = f"{other} {body}"
        for i in range(min(len(items), most) - 1, -1, -1):
            body = f"{self.symbol(items[i])} {body}"
            if i:
                body = f"{comma} {body}" if i < record.least else self._rule(f"({comma} {body})?", "t")
        return [*options, self._rule(f"{self._mark('OPEN_LIST')} {body} {self._mark('CLOSE_LIST')}", "a")]

    def _counted_array(self, record: Arrays, most: int | None) -> list[str]:
        """An array with a limited number of matching items: a rule per count of items and of matches."""
        if len(record.contains) > 1:
            raise UnknownError("arrays with more than one 'contains'")
        wanted: Contained = next(iter(record.contains))
        top = wanted.least if wanted.most is None else wanted.most + 1
        last = max(len(record.first), record.least, 1) if most is None else most
        if (last + 1) * (top + 1) > _STATES:
            raise UnknownError("arrays that contain that many items")
        comma, close, name = self._mark("COMMA"), self._mark("CLOSE_LIST"), self._name("c")
        live: set[tuple[int, int]] = set()
        for place in range(last, -1, -1):
            for count in range(top, -1, -1):
                item = record.item(place)
                may_end = record.least <= place and wanted.least <= count
                if may_end and (wanted.most is None or count <= wanted.most):
                    live.add((place, count))
                options = [close] if place and (place, count) in live else []
                other = item if wanted.most is None else fit(item, self._reader.negated(wanted.fit))
                for each, after in ((fit(item, wanted.fit), min(count + 1, top)), (other, count)):
                    follows = (min(place + 1, last), after)
                    full = place >= last and most is not None
                    if not full and follows in live and not self._contents.is_fit_void(each):
                        options.append(f"{comma if place else ''} {self.symbol(each)} {name}_{follows[0]}_{follows[1]}")
                        live.add((place, count))
                if options:
                    self._line(f"{name}_{place}_{count}: {' | '.join(options)}")
                elif (place, count) in live and place:
                    raise UnknownError("arrays that contain such items")
        options = [self._mark("NO_LIST")] if record.least == 0 and wanted.least == 0 else []
        item_first = (0, 0) in live and (record.item(0) != NEVER and most != 0)
        return [*options, *([self._rule(f"{self._mark('OPEN_LIST')} {name}_0_0", "a")] if item_first else [])]

    def _listed(self, record: Arrays) -> list[str] | None:
        """All possible items, as JSON, if they are few and scalar."""
        found: list[str] = []
        for each in {record.others, *record.first} - {NEVER}:
            values = self._reader.values(each) if each else ALL
            if values.arrays or values.objects or any(string.values is None for string in values.strings):
                return None
            found += ["null"] * values.null + [str(each).lower() for each in values.booleans]
            found += [f'"{spelt(text)}"' for string in values.strings for text in string.values or ()]
            for number in values.numbers:
                listed = number.listed()
                if listed is None:
                    return None
                found += listed
        return sorted(set(found))

    def _object(self, record: Objects, wanted: Fit) -> list[str]:
        contents, comma = self._contents, self._mark("COMMA")
        colon = self._mark("COLON")
        members = {name: contents.member(record, name) for name in contents.names(record)}
        shape = {}
        entries = []
        for name, each in members.items():
            required = name in record.required
            if contents.is_fit_void(each):
                if required:
                    return []
                continue
            shape[name] = each
            key = self._terminal(joined([_QUOTE, LarkTerminal(literal(spelt(name))), _QUOTE]))
            entries.append((f"{key} {colon} {self.symbol(each)}", required))
        others = contents.others(record)
        tail = ""
        if others:
            tail = " | ".join(
                f"{self._terminal(joined([_QUOTE, key, _QUOTE]))} {colon} {self.symbol(each)}" for key, each in others
            )
            tail = self._rule(tail, "m")
        count = len(record.required)
        distinct = bool(tail) and record.least > count + 1
        self._shapes[wanted].append(("object", distinct, [], shape, [each for _, each in others], None))
        most = len(entries) + (_MOST if tail else 0) if record.most is None else record.most
        options = [self._mark("NO_OBJECT")] if record.least == 0 else []
        if record.least > count or most < len(entries) + bool(tail) * _MOST:
            name = self._counted(entries, tail, record.least, None if record.most is None else most)
            if name:
                options.append(self._rule(f"{self._mark('OPEN_OBJECT')} {name}", "o"))
            return options
        follows = f"({comma} {tail})*" if tail else ""
        starts = [] if count or not tail else [f"{tail} {follows}"]
        for entry, required in reversed(entries):
            starts = [f"{entry} {follows}", *([] if required else starts)]
            if len(starts) > 1 and len(follows) > 40:
                starts[0] = f"{entry} {(follows := self._rule(follows, 'f'))}"
            follows = f"{comma} {entry} {follows}" if required else f"({comma} {entry})? {follows}"
        if starts:
            body = self._rule(" | ".join(starts), "b")
            options.append(self._rule(f"{self._mark('OPEN_OBJECT')} {body} {self._mark('CLOSE_OBJECT')}", "o"))
        return options

    def _counted(self, entries: list[tuple[str, bool]], tail: str, least: int, most: int | None) -> str:
        """The members of an object with a limited number of them: a rule per member and count."""
        cap = least if most is None else most
        if (len(entries) + 1) * (cap + 1) > _STATES:
            raise UnknownError("objects with that many members")
        comma, close, name = self._mark("COMMA"), self._mark("CLOSE_OBJECT"), self._name("c")
        live: set[tuple[int, int]] = set()
        for i in range(len(entries), -1, -1):
            for count in range(cap, -1, -1):
                more = min(count + 1, cap)
                full = most is not None and count >= most
                separator = comma if count else ""
                options = []
                if i < len(entries):
                    entry, required = entries[i]
                    if not full and (i + 1, more) in live:
                        options.append(f"{separator} {entry} {name}_{i + 1}_{more}")
                    if not required and (i + 1, count) in live:
                        options.append(f"{name}_{i + 1}_{count}")
                else:
                    if count >= max(least, 1):
                        options.append(close)
                    if tail and not full and ((i, more) in live or (more == count and options)):
                        options.append(f"{separator} {tail} {name}_{i}_{more}")
                if options:
                    live.add((i, count))
                    self._line(f"{name}_{i}_{count}: {' | '.join(options)}")
        return f"{name}_0_0" if (0, 0) in live else ""

    def shapes(self) -> list[list[Shape]]:
        """The shapes of all sets that contain unique items or keys; empty if there are none."""
        inside: dict[Fit, set[Fit]] = {
            each: {to for _, _, first, named, others, _ in shapes for to in (*first, *named.values(), *others)}
            for each, shapes in self._shapes.items()
        }
        needed = {each for each, shapes in self._shapes.items() if any(shape[1] for shape in shapes)}
        if not needed:
            return []
        while more := {each for each, to in inside.items() if each not in needed and to & needed}:
            needed |= more
        root = next(iter(self._symbols))
        order = [root, *sorted(needed - {root}, key=str)]
        places = {each: i for i, each in enumerate(order)}

        def place(each: Fit) -> int:
            return places.get(each, -1)

        return [
            [
                Shape(kind, distinct, [place(to) for to in first], {name: place(to) for name, to in named.items()},
                      [place(to) for to in others], values)
                for kind, distinct, first, named, others, values in self._shapes.get(each, [])
            ]
            for each in order
        ]  # fmt: skip
