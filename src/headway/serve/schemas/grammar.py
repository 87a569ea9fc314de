"""Grammars, in llguidance's lark dialect, for the JSON that a schema allows."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from headway.errors import UserError
from headway.serve.ecma_regex import LarkTerminal, concatenate, escape_json, escape_literal, union
from headway.serve.schemas.contents import Contents
from headway.serve.schemas.documents import Document
from headway.serve.schemas.numbers import UnknownError
from headway.serve.schemas.schema_reader import SchemaReader
from headway.serve.schemas.values import (
    ALL,
    NEVER,
    ArraySet,
    Contained,
    JsonValues,
    ObjectSet,
    RecursionWithinError,
    SchemaSet,
    all_of,
)

_MAX_ITEMS = 1 << 16  # items per array, or members per object
_MAX_STATES = 4096  # states for counting in one array or object
_MAX_RULES = 60_000  # rules per grammar
_WHITESPACE = r"(?: |\r?\n[ \t]{0,32})?"  # between JSON tokens; limited, as models might never stop
_PUNCTUATION = {
    "OPEN_LIST": rf"\[{_WHITESPACE}",
    "CLOSE_LIST": rf"{_WHITESPACE}\]",
    "NO_LIST": rf"\[{_WHITESPACE}\]",
    "OPEN_OBJECT": rf"\{{{_WHITESPACE}",
    "CLOSE_OBJECT": rf"{_WHITESPACE}\}}",
    "NO_OBJECT": rf"\{{{_WHITESPACE}\}}",
    "COMMA": f"{_WHITESPACE},{_WHITESPACE}",
    "COLON": f"{_WHITESPACE}:{_WHITESPACE}",
}
_QUOTE = LarkTerminal(r"\x{22}")


class Shape(NamedTuple):
    """The possible arrays and objects at one position of a schema, some of which must have unique items or keys: a
    constraint that a grammar cannot express and that is checked during generation.
    """

    kind: str  # "array" or "object"
    distinct: bool  # whether items, or keys, must be unique
    first: list[int]  # indices of the first items' shapes
    named: dict[str, int]  # indices of the members' shapes
    others: list[int]  # indices for all other items or members
    values: list[str] | None  # all possible items, as JSON, if there are few


@dataclass
class Grammar:
    """A grammar's rules, and the constraints that must be checked during generation."""

    start: str
    lines: list[str]
    ignored: list[str]
    shapes: list[list[Shape]] = field(default_factory=list)  # by index; the first is the complete text


def grammar_of(schema: Any, source: str = "the schema", prefix: str = "") -> Grammar:
    """The grammar for a JSON schema, draft 4 to 2020-12. All JSON that it generates matches the schema.

    The names of rules start with `prefix`, in lower case. UserError for an invalid or too large schema, and for every
    requirement that cannot be enforced.
    """
    document = Document(schema, source)
    reader = SchemaReader(document)
    try:
        root = reader.root()
        if reader.contents.is_set_void(root):
            raise UserError(f"nothing matches {source}, or it refers to itself without end; allow some value")
        writer = _GrammarWriter(reader, prefix)
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


class _GrammarWriter:
    """Generates the rules for sets of values, each set once."""

    def __init__(self, reader: SchemaReader, prefix: str) -> None:
        self._reader = reader
        self._contents: Contents = reader.contents
        self._prefix = prefix
        self._symbols: dict[SchemaSet, str | None] = {}
        self._terminals: dict[str, str] = {}
        self._pending: list[tuple[SchemaSet, str]] = []
        self._bodies: dict[str, str] = {}
        self._count = 0  # of names
        self.lines: list[str] = []
        self._shapes: dict[
            SchemaSet, list[tuple[str, bool, list[SchemaSet], dict[str, SchemaSet], list[SchemaSet], list[str] | None]]
        ] = {}

    def symbol(self, schemas: SchemaSet) -> str:
        """The name of the rule or terminal for a set that is not known to be empty."""
        name = self._symbols.get(schemas)
        if name is not None:
            return name
        values = self._reader.values(schemas) if schemas else ALL
        terminal, fragments = self._scalars(values)
        if not values.arrays and not values.objects and not fragments:
            name = self._terminal(terminal)
        elif not values.arrays and not values.objects and terminal is None and len(fragments) == 1:
            name = self._rule(f"%json {fragments[0]}")
        else:
            name = self._new_name("v")
            self._pending.append((schemas, name))
        self._symbols[schemas] = name
        return name

    def finish(self) -> None:
        """Generate the rules of all requested symbols."""
        while self._pending:
            schemas, name = self._pending.pop()
            values = self._reader.values(schemas) if schemas else ALL
            terminal, fragments = self._scalars(values)
            options = [self._terminal(terminal)] if terminal is not None else []
            options += [self._rule(f"%json {fragment}") for fragment in fragments]
            self._shapes[schemas] = []
            for array in values.arrays:
                if not self._contents.is_void(array):
                    options += self._array(array, schemas)
            for record in values.objects:
                for resolved in self._resolve_required(record):
                    if not self._contents.is_void(resolved):
                        options += self._object(resolved, schemas)
            if not options:
                raise UnknownError("values that cannot be expressed")
            self._add_line(f"{name}: {' | '.join(dict.fromkeys(options))}")

    def _new_name(self, kind: str) -> str:
        self._count += 1
        return f"{self._prefix}{kind}{self._count}"

    def _add_line(self, line: str) -> None:
        self.lines.append(line)
        if len(self.lines) > _MAX_RULES:
            raise UnknownError(f"more than {_MAX_RULES:,} rules")

    def _rule(self, body: str, kind: str = "r") -> str:
        """The name of a rule with this body; equal bodies share a name."""
        name = self._bodies.get(body)
        if name is None:
            name = self._new_name(kind)
            self._bodies[body] = name
            self._add_line(f"{name}: {body}")
        return name

    def _terminal(self, terminal: LarkTerminal | None) -> str:
        if terminal is None:
            raise UnknownError("values that cannot be expressed")
        body = terminal.lark()
        name = self._terminals.get(body)
        if name is None:
            name = f"{self._prefix.upper()}T{len(self._terminals)}"
            self._terminals[body] = name
            self._add_line(f"{name}: {body}")
        return name

    def _punctuation(self, name: str) -> str:
        return self._terminal(LarkTerminal(_PUNCTUATION[name]))

    def _scalars(self, values: JsonValues) -> tuple[LarkTerminal | None, list[str]]:
        """A terminal for scalars, and llguidance schemas for scalars that it cannot express."""
        options = [LarkTerminal("null")] if values.null else []
        options += [LarkTerminal("true" if boolean else "false") for boolean in sorted(values.booleans)]
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
                options.append(concatenate([_QUOTE, terminal, _QUOTE]))
        return (union(options) if options else None), fragments

    def _resolve_required(self, record: ObjectSet) -> list[ObjectSet]:
        """The same without requirements for a member of some kind, which are applied to the named members."""
        resolved = [record]
        for scope, schemas in sorted(record.required_scopes, key=str):
            names = [name for name in self._contents.names(record) if self._contents.is_in(scope, name)]
            demands = [ObjectSet(((name, schemas),), required=(name,), min_members=1) for name in names]
            parts = (base.intersection(candidate) for base in resolved for candidate in demands)
            resolved = [part for part in parts if part is not None]
        return [replace(candidate, required_scopes=frozenset()) for candidate in resolved]

    def _array(self, record: ArraySet, schemas: SchemaSet) -> list[str]:
        items: list[SchemaSet] = []
        for item_schemas in record.first:
            if self._contents.is_set_void(item_schemas):
                break
            items.append(item_schemas)
        is_cut = len(items) < len(record.first)
        other_items = NEVER if is_cut or self._contents.is_set_void(record.other_items) else record.other_items
        max_items = _MAX_ITEMS if record.max_items is None else min(record.max_items, _MAX_ITEMS)
        max_items = min(max_items, len(items)) if other_items == NEVER else max_items
        values = self._enumerate_items(record) if record.unique else None
        if values is not None:
            max_items = min(max_items, len(values))
        if record.min_items > max_items:
            if record.min_items > _MAX_ITEMS:
                raise UnknownError(f"arrays of {record.min_items:,} items")
            return []
        distinct = record.unique and max_items > 1
        self._shapes[schemas].append(
            ("array", distinct, items, {}, [other_items] if other_items != NEVER else [], values)
        )
        unbounded = record.max_items is None and other_items != NEVER and values is None
        if record.contains:
            return self._counted_array(
                replace(record, first=tuple(items), other_items=other_items), None if unbounded else max_items
            )
        options = [self._punctuation("NO_LIST")] if record.min_items == 0 else []
        if max_items == 0:
            return options
        comma, body = self._punctuation("COMMA"), ""
        if max_items > len(items):
            item_symbol = self.symbol(other_items)
            min_items = max(0, record.min_items - len(items) - (0 if items else 1))
            count = "*" if unbounded else f"{{{min_items},{max_items - max(len(items), 1)}}}"
            if unbounded and min_items:
                count = f"{{{min_items},}}"
            body = f"({comma} {item_symbol}){count}" if count != "{0,0}" else ""
            if not items:
                body = f"{item_symbol} {body}"
        for i in range(min(len(items), max_items) - 1, -1, -1):
            body = f"{self.symbol(items[i])} {body}"
            if i:
                body = f"{comma} {body}" if i < record.min_items else self._rule(f"({comma} {body})?", "t")
        return [*options, self._rule(f"{self._punctuation('OPEN_LIST')} {body} {self._punctuation('CLOSE_LIST')}", "a")]

    def _counted_array(self, record: ArraySet, max_items: int | None) -> list[str]:
        """An array with a limited number of matching items: a rule per count of items and of matches."""
        if len(record.contains) > 1:
            raise UnknownError("arrays with more than one 'contains'")
        contained: Contained = next(iter(record.contains))
        max_count = contained.min_count if contained.max_count is None else contained.max_count + 1
        last = max(len(record.first), record.min_items, 1) if max_items is None else max_items
        if (last + 1) * (max_count + 1) > _MAX_STATES:
            raise UnknownError("arrays that contain that many items")
        comma, close, name = self._punctuation("COMMA"), self._punctuation("CLOSE_LIST"), self._new_name("c")
        live: set[tuple[int, int]] = set()
        for position in range(last, -1, -1):
            for count in range(max_count, -1, -1):
                item = record.item_schemas(position)
                may_end = record.min_items <= position and contained.min_count <= count
                if may_end and (contained.max_count is None or count <= contained.max_count):
                    live.add((position, count))
                options = [close] if position and (position, count) in live else []
                unmatched = (
                    item if contained.max_count is None else all_of(item, self._reader.negated(contained.schemas))
                )
                for next_item, next_count in (
                    (all_of(item, contained.schemas), min(count + 1, max_count)),
                    (unmatched, count),
                ):
                    follows = (min(position + 1, last), next_count)
                    full = position >= last and max_items is not None
                    if not full and follows in live and not self._contents.is_set_void(next_item):
                        options.append(
                            f"{comma if position else ''} {self.symbol(next_item)} {name}_{follows[0]}_{follows[1]}"
                        )
                        live.add((position, count))
                if options:
                    self._add_line(f"{name}_{position}_{count}: {' | '.join(options)}")
                elif (position, count) in live and position:
                    raise UnknownError("arrays that contain such items")
        options = [self._punctuation("NO_LIST")] if record.min_items == 0 and contained.min_count == 0 else []
        can_start = (0, 0) in live and (record.item_schemas(0) != NEVER and max_items != 0)
        return [*options, *([self._rule(f"{self._punctuation('OPEN_LIST')} {name}_0_0", "a")] if can_start else [])]

    def _enumerate_items(self, record: ArraySet) -> list[str] | None:
        """All possible items, as JSON, if they are few and scalar."""
        items: list[str] = []
        for entry in {record.other_items, *record.first} - {NEVER}:
            values = self._reader.values(entry) if entry else ALL
            if values.arrays or values.objects or any(string.values is None for string in values.strings):
                return None
            items += ["null"] * values.null + [str(entry).lower() for entry in values.booleans]
            items += [f'"{escape_json(text)}"' for string in values.strings for text in string.values or ()]
            for number in values.numbers:
                listed = number.listed()
                if listed is None:
                    return None
                items += listed
        return sorted(set(items))

    def _object(self, record: ObjectSet, schemas: SchemaSet) -> list[str]:
        contents, comma = self._contents, self._punctuation("COMMA")
        colon = self._punctuation("COLON")
        members = {name: contents.member(record, name) for name in contents.names(record)}
        shape = {}
        entries = []
        for name, member_schemas in members.items():
            required = name in record.required
            if contents.is_set_void(member_schemas):
                if required:
                    return []
                continue
            shape[name] = member_schemas
            key = self._terminal(concatenate([_QUOTE, LarkTerminal(escape_literal(escape_json(name))), _QUOTE]))
            entries.append((f"{key} {colon} {self.symbol(member_schemas)}", required))
        other_members = contents.other_members(record)
        tail = ""
        if other_members:
            tail = " | ".join(
                f"{self._terminal(concatenate([_QUOTE, key, _QUOTE]))} {colon} {self.symbol(member_schemas)}"
                for key, member_schemas in other_members
            )
            tail = self._rule(tail, "m")
        count = len(record.required)
        distinct = bool(tail) and record.min_members > count + 1
        self._shapes[schemas].append(
            ("object", distinct, [], shape, [member_schemas for _, member_schemas in other_members], None)
        )
        max_members = len(entries) + (_MAX_ITEMS if tail else 0) if record.max_members is None else record.max_members
        options = [self._punctuation("NO_OBJECT")] if record.min_members == 0 else []
        if record.min_members > count or max_members < len(entries) + bool(tail) * _MAX_ITEMS:
            name = self._counted_members(
                entries, tail, record.min_members, None if record.max_members is None else max_members
            )
            if name:
                options.append(self._rule(f"{self._punctuation('OPEN_OBJECT')} {name}", "o"))
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
            options.append(
                self._rule(f"{self._punctuation('OPEN_OBJECT')} {body} {self._punctuation('CLOSE_OBJECT')}", "o")
            )
        return options

    def _counted_members(
        self, entries: list[tuple[str, bool]], tail: str, min_members: int, max_members: int | None
    ) -> str:
        """The members of an object with a limited number of them: a rule per member and count."""
        cap = min_members if max_members is None else max_members
        if (len(entries) + 1) * (cap + 1) > _MAX_STATES:
            raise UnknownError("objects with that many members")
        comma, close, name = self._punctuation("COMMA"), self._punctuation("CLOSE_OBJECT"), self._new_name("c")
        live: set[tuple[int, int]] = set()
        for i in range(len(entries), -1, -1):
            for count in range(cap, -1, -1):
                next_count = min(count + 1, cap)
                full = max_members is not None and count >= max_members
                separator = comma if count else ""
                options = []
                if i < len(entries):
                    entry, required = entries[i]
                    if not full and (i + 1, next_count) in live:
                        options.append(f"{separator} {entry} {name}_{i + 1}_{next_count}")
                    if not required and (i + 1, count) in live:
                        options.append(f"{name}_{i + 1}_{count}")
                else:
                    if count >= max(min_members, 1):
                        options.append(close)
                    if tail and not full and ((i, next_count) in live or (next_count == count and options)):
                        options.append(f"{separator} {tail} {name}_{i}_{next_count}")
                if options:
                    live.add((i, count))
                    self._add_line(f"{name}_{i}_{count}: {' | '.join(options)}")
        return f"{name}_0_0" if (0, 0) in live else ""

    def shapes(self) -> list[list[Shape]]:
        """The shapes of all sets that contain unique items or keys; empty if there are none."""
        inside: dict[SchemaSet, set[SchemaSet]] = {
            schemas: {
                target for _, _, first, named, others, _ in shapes for target in (*first, *named.values(), *others)
            }
            for schemas, shapes in self._shapes.items()
        }
        needed = {schemas for schemas, shapes in self._shapes.items() if any(shape[1] for shape in shapes)}
        if not needed:
            return []
        while more := {schemas for schemas, target in inside.items() if schemas not in needed and target & needed}:
            needed |= more
        root = next(iter(self._symbols))
        order = [root, *sorted(needed - {root}, key=str)]
        indices = {schemas: i for i, schemas in enumerate(order)}

        def index_of(schemas: SchemaSet) -> int:
            return indices.get(schemas, -1)

        return [
            [
                Shape(kind, distinct, [index_of(target) for target in first], {name: index_of(target) for name,
                target in named.items()},
                      [index_of(target) for target in others], values)
                for kind, distinct, first, named, others, values in self._shapes.get(schemas, [])
            ]
            for schemas in order
        ]  # fmt: skip
