"""Rows, games and templates as their files may have them, of valid structure and hostile values, and the indexes of
Parquet files: pure functions of a draw.
"""

from __future__ import annotations

import csv
import io
import json
import random
import struct
from typing import Any

# What good files hold stands first in each of these, and in what is chosen from below: see mutate.Mild.
TEXTS = (
    "good",
    "the cat sat",
    "a",
    "\u00e9",
    "\U0001f600",
    "a\tb",
    "1_000",
    "{}",
    "",
    " ",
    "\u202e",
    "\0",
    "\x1b[2J",
    "\ufeff",
)
TEXTS += ("a\nb", "a\rb", 'a"b', "\ufdd4", "\u2028", "x" * 3000, "NaN", "inf", "-0", "1e999", "9" * 400, "0x10")
TEXTS += ("\u0661", "null", "[")
LABELS = ("a", "b", "a", "b", "", "0", "1", "1.5", "\x1b", "B-X", "I-X", "O")
TIMES = (
    "2024-01-01",
    "2024-01-02",
    "2024-02-30",
    "0000-00-00",
    "9999-12-31",
    "2024-01-01T00:00:00Z",
    "2024-01-01 25:61",
    "1",
    "-5",
)
TIMES += ("1e9", "2024-W01", "Jan 2024", "2024-01-01T00:00:00+99:99", "", "253402300800", "99999999999999999999")
NAMES = (
    "text",
    "label",
    "source",
    "target",
    "messages",
    "prompt",
    "chosen",
    "rejected",
    "time",
    "value",
    "series",
    "text2",
    "id",
    "",
)
NAMES += ("position", "fen", "bestmove", "wdl", "text", "label", "\x1b", "TEXT")
ROLES = ("user", "assistant", "system", "tool", "", "x", "\x1b")


def _cell(name: str, draw: random.Random) -> str:
    if draw.random() < 0.1:
        return draw.choice(TEXTS)
    known = {"label": LABELS, "time": TIMES, "value": ("1", "2.5", "-3", "nan", "", "1e308", "9" * 30)}
    return draw.choice(known.get(name, ("the cat sat on the mat", "a dog", "good", "bad", "one two three")))


def composed_csv(draw: random.Random) -> bytes:
    """A table with a header: of one separator, mostly as wide as its header."""
    wanted = draw.choice((("text", "label"), ("time", "value"), ("time", "series", "value"), ("fen", "bestmove")))
    header = [*wanted, *draw.sample(NAMES, draw.choice((0, 0, 1, 3)))]
    out = io.StringIO()
    form: dict[str, Any] = {
        "delimiter": draw.choice(",,,;\t"),
        "quoting": draw.choice((csv.QUOTE_MINIMAL, csv.QUOTE_ALL)),
    }
    writer = csv.writer(out, lineterminator=draw.choice(("\n", "\n", "\r\n", "\r")), escapechar="\\", **form)
    writer.writerow(header)
    start = draw.choice((0, 1_700_000_000))
    for number in range(draw.choice((30, 30, 2, 1, 0, 200))):
        row = [_cell(name, draw) for name in header]
        if "time" in header and draw.random() < 0.9:
            row[header.index("time")] = str(start + number * 3600)
        writer.writerow(row if draw.random() > 0.02 else draw.choice((row[:-1], [*row, "more"], [], row * 200)))
    text = out.getvalue()
    if draw.random() < 0.1:
        text = text[: draw.randrange(len(text) + 1)] + draw.choice(('"', '"""', "\0", "\r\r\n", "\\"))
    return _encoded(text, draw)


def _encoded(text: str, draw: random.Random) -> bytes:
    if draw.random() < 0.9:
        return text.encode("utf-8", "surrogatepass")
    return text.encode(draw.choice(("utf-8-sig", "utf-16", "utf-32", "latin-1")), "replace")


def _json(draw: random.Random, depth: int = 0) -> Any:
    """Any value."""
    if depth > 3 or draw.random() < 0.7:
        return draw.choice((None, True, 0, -1, 1.5, 1 << 70, float("nan"), float("inf"), *TEXTS))
    if draw.random() < 0.5:
        return [_json(draw, depth + 1) for _ in range(draw.choice((0, 1, 3)))]
    return {draw.choice(NAMES): _json(draw, depth + 1) for _ in range(draw.choice((0, 1, 3)))}


def _messages(draw: random.Random) -> Any:
    said = [
        {
            draw.choice(("role", "from")): draw.choice(ROLES[:3] if draw.random() < 0.9 else ROLES),
            "content": draw.choice(TEXTS[2:6]),
        }
        for _ in range(draw.choice((2, 3, 1, 0, 9)))
    ]
    for turn in said:
        if draw.random() < 0.1:
            turn[draw.choice(("content", "value", "role", "tool_calls"))] = _json(draw)
    return said if draw.random() < 0.95 else _json(draw)


def composed_lines(draw: random.Random) -> bytes:
    """JSON lines of texts, pairs, labelled texts, chats or preferences."""
    kind = draw.choice(("text", "pair", "label", "chat", "preference"))
    lines = []
    for number in range(draw.choice((9, 30, 2, 1, 0))):
        row: dict[str, Any] = {
            "text": {"text": f"{draw.choice(TEXTS)} {number}"},
            "pair": {"source": f"one {number}", "target": f"eins {number}"},
            "label": {"text": f"a text {number}", "label": draw.choice((*LABELS, 0, 1, 2.5, None))},
            "chat": {"messages": _messages(draw)},
            "preference": {"prompt": _messages(draw), "chosen": _messages(draw), "rejected": draw.choice(TEXTS)},
        }[kind]
        if draw.random() < 0.1:
            row[draw.choice((*row, *NAMES))] = _json(draw)
        line = json.dumps(row, ensure_ascii=draw.random() < 0.5)
        if draw.random() < 0.03:
            line = draw.choice(
                (line[:-1], f"{line},", "[]", "1", "", "\0", line + line, "[" * 5000, '{"text": ' * 3000)
            )
        lines.append(line)
    return _encoded(draw.choice(("\n", "\n", "\r\n")).join([*lines, ""]), draw)


BOARDS = (
    "rnbqkbnr/pppppppp/8/8/8/8/PPPPPPPP/RNBQKBNR",
    "8/8/8/8/8/8/8/K1k5",
    "8/8/8/8/8/8/8/8",
    "kkkkkkkk/8/8/8/8/8/8/KKKKKKKK",
)
BOARDS += (
    "QQQQQQQQ/QQQQQQQQ/QQQQQQQQ/QQQQQQQk/QQQQQQQQ/QQQQQQQQ/QQQQQQQQ/QQQQQQQK",
    "9/8/8/8/8/8/8/8",
    "r3k2r/8/8/8/8/8/8/R3K2R",
)
BOARDS += (
    "pppppppp/8/8/4k3/8/8/4K3/PPPPPPPP",
    "rnbqkbnr/pppppppp/8/8/8/8/PPPPPPPP/RNBQKBN",
    "~8/8/8/8/8/8/8/K1k5",
    "8/" * 500,
)
MOVES = (
    "e4",
    "d4",
    "e5",
    "Nf3",
    "O-O",
    "O-O-O",
    "0-0",
    "exd5",
    "e8=Q",
    "e8=K",
    "--",
    "Z0",
    "Qh5#",
    "e2e4",
    "a1a1",
    "@@@@",
    "P@e4",
    "Kxk1",
)


def composed_position(draw: random.Random) -> str:
    board = draw.choice(BOARDS)
    side, rights = draw.choice("wwwbx"), draw.choice(("-", "KQkq", "KQkqKQkq", "HAha", "K", "x", ""))
    passing = draw.choice(("-", "-", "e3", "e6", "z9", "a1", ""))
    return f"{board} {side} {rights} {passing}"


def composed_epd(draw: random.Random) -> bytes:
    """Positions with operations."""
    lines = []
    plain = draw.random() < 0.5
    for _ in range(draw.choice((1, 1, 2, 9))):
        said = [
            draw.choice(("bm ", "am ", "pv ", "sm "))
            + " ".join(draw.choice(MOVES) for _ in range(draw.choice((0, 1, 1, 3)))),
            f'id "{draw.choice(TEXTS)}"',
            f"ce {draw.choice((0, 100, -32767, 10**30, 'x'))}",
            f"dm {draw.choice((0, 1, -5, 10**9, 'x'))}",
            f"hmvc {draw.choice((0, 99, -1, 10**12))}",
            f"fmvn {draw.choice((1, 0, -1, 10**12))}",
            f'c0 "{draw.choice(TEXTS)}"',
            draw.choice(("", ";", "bm", '"', "x" * 300, "noop 1 2 3", "c9 \\")),
        ]
        ending = draw.choice((";", ";", ";", "", ";;"))
        kept = [each for each in said if draw.random() < 0.5]
        place = f"{BOARDS[0]} w KQkq -" if plain else composed_position(draw)
        kept = [f"bm {draw.choice(('e4', 'd4', 'Nf3'))}", *kept[1:]] if plain else kept
        lines.append(f"{place} {'; '.join(kept)}{';' if plain else ending}")
    return _encoded("\n".join([*lines, ""]), draw)


def _variation(draw: random.Random, depth: int) -> str:
    parts = []
    for number in range(draw.choice((0, 1, 3, 9))):
        parts.append(f"{draw.choice((number, 1, 0, 10**12))}{draw.choice(('.', '...', ''))} {draw.choice(MOVES)}")
        comment = ("[%eval 0.3]", "[%eval #-3]", "[%eval 1e999]", "[%clk 0:0:0]", "[%eval ", *TEXTS)
        parts += [f"{{{draw.choice(comment)}}}"] if draw.random() < 0.3 else []
        parts += [draw.choice(("$1", "$999999", "!", "??", ";rest", "%", "$"))] if draw.random() < 0.1 else []
        if depth < 3 and draw.random() < 0.15:
            parts.append(f"({_variation(draw, depth + 1)})")
    if draw.random() < 0.01:
        parts.append("(1. e4 " * 3000)
    return " ".join(parts)


def composed_pgn(draw: random.Random) -> bytes:
    """Games with their tags, comments and variations, some of them legal."""
    games = []
    for _ in range(draw.choice((1, 2, 5, 0))):
        tags = {"Event": draw.choice(TEXTS), "Result": draw.choice(("1-0", "0-1", "1/2-1/2", "*", "x"))}
        if draw.random() < 0.4:
            tags |= {"SetUp": "1", "FEN": f"{composed_position(draw)} {draw.choice(('0 1', '-1 0', '10 x', ''))}"}
        tags |= {"Variant": draw.choice(("Standard", "Chess960", "Crazyhouse", "x"))} if draw.random() < 0.2 else {}
        head = "".join(f'[{name} "{value}"]\n' for name, value in tags.items())
        legal = "1. e4 {[%eval 0.2]} e5 2. Nf3 Nc6 3. Bb5 a6 4. O-O"
        body = legal if draw.random() < 0.5 else ""
        end = draw.choice(("1-0", "*", "", "1/2", "{", "("))
        games.append(f"{head}\n{body} {_variation(draw, 0)} {end}\n")
    return _encoded("\n".join(games), draw)


VALUES = (
    "messages",
    "message",
    "messages[0]",
    "message.content",
    "bos_token",
    "1",
    "-1",
    "'a'",
    "'a' * 99",
    "range(9)",
    "[]",
    "{}",
)
VALUES += (
    "none",
    "loop.index",
    "x",
    "namespace(a=1)",
    "true",
    "10 ** 9",
    "'%s'",
    "'{}'",
    "raise_exception",
    "strftime_now",
    "tools",
)
FILTERS = (
    "trim",
    "length",
    "upper",
    "tojson",
    "join",
    "list",
    "string",
    "int",
    "float",
    "first",
    "last",
    "reverse",
    "sort",
    "unique",
)
FILTERS += (
    "wordwrap(3)",
    "indent(9)",
    "replace('a', 'bb')",
    "center(99)",
    "batch(2)",
    "slice(3)",
    "map('upper')",
    "map(attribute='role')",
)
FILTERS += (
    "select('equalto', 1)",
    "groupby('role')",
    "attr('__class__')",
    "format(1)",
    "round(3)",
    "abs",
    "dictsort",
    "items",
    "safe",
    "x",
)
METHODS = (
    "strip()",
    "split('a')",
    "upper()",
    "items()",
    "get('role')",
    "format(1)",
    "join(messages)",
    "replace('', 'x')",
    "__class__",
)
METHODS += (
    "zfill(999)",
    "startswith('a')",
    "append(1)",
    "encode()",
    "count('a')",
    "keys",
    "pop()",
    "content",
    "0",
    "expandtabs(99)",
)


def _expression(draw: random.Random, depth: int) -> str:
    if depth > 3 or draw.random() < 0.3:
        return draw.choice(VALUES)
    inner = _expression(draw, depth + 1)
    other = draw.choice(VALUES)
    return draw.choice(
        (
            f"{inner} | {draw.choice(FILTERS)}",
            f"{inner} | {draw.choice(FILTERS)}",
            f"({inner}).{draw.choice(METHODS)}",
            f"{inner} {draw.choice(('+', '-', '*', '/', '//', '%', '**', '~', 'in', '==', '<', 'and', 'or'))} {other}",
            f"({inner} if {other} else {draw.choice(VALUES)})",
            f"[{inner}, {other}]",
            f"{{'a': {inner}}}",
            f"({inner})[{draw.choice((':', '0', '::-1', '-1:', '::0', other))}]",
            f"{inner} is {draw.choice(('defined', 'string', 'mapping', 'none', 'iterable', 'divisibleby(0)', 'x'))}",
        )
    )


def composed_template(draw: random.Random, depth: int = 0) -> str:
    """A chat template, mostly one that can be parsed."""
    parts = []
    for _ in range(draw.choice((0, 1, 2, 4))):
        inner = composed_template(draw, depth + 1) if depth < 3 else "a"
        said = _expression(draw, 0)
        parts.append(
            draw.choice(
                (
                    f"{{{{ {said} }}}}",
                    f"{{{{- {said} -}}}}",
                    f"{{% for message in {draw.choice(('messages', 'range(3)', said))} %}}{inner}{{% endfor %}}",
                    f"{{% for x in messages recursive %}}{inner}{{{{ loop(messages) }}}}{{% endfor %}}",
                    f"{{% if {said} %}}{inner}{{% else %}}b{{% endif %}}",
                    f"{{% set x = {said} %}}",
                    f"{{% set ns = namespace(a={said}) %}}{{% set ns.a = ns %}}{{{{ ns.a }}}}",
                    f"{{% macro m(x={draw.choice(VALUES)}) %}}{inner}{{% endmacro %}}{{{{ m() }}}}{{{{ m({said}) }}}}",
                    f"{{% generation %}}{inner}{{% endgeneration %}}",
                    f"{{% filter {draw.choice(FILTERS)} %}}{inner}{{% endfilter %}}",
                    f"{{% call(y) m(1) %}}{inner}{{% endcall %}}",
                    draw.choice(
                        (
                            "{% break %}",
                            "{% include 'a' %}",
                            "{% import 'os' as os %}",
                            "{% extends 'a' %}",
                            "{# a #}",
                            "{%",
                        )
                    ),
                    draw.choice(TEXTS),
                    "{{ raise_exception('no \x1b[2J') }}",
                )
            )
        )
    return "".join(parts)


class Parquet:
    """The index of a Parquet file (Thrift's compact protocol), read to a tree of its fields with their kinds, and
    written again with other values.
    """

    def __init__(self, data: bytes) -> None:
        length = int.from_bytes(data[-8:-4], "little")
        self._body, self._data, self._place = data[: -8 - length], data[-8 - length : -8], 0
        self._tree = self._structure()

    def composed(self, draw: random.Random) -> bytes:
        """The file with one to four values of its index changed."""
        count = draw.choice((1, 1, 2, 4))
        leaves = self._leaves(self._tree, [])
        chosen = {id(leaf): leaf for leaf in draw.sample(leaves, min(count, len(leaves)))}
        index = self._written(12, self._tree, draw, chosen)
        length = len(index) if draw.random() < 0.97 else draw.choice((0, len(index) - 1, len(index) + 1, (1 << 32) - 1))
        return self._body + index + struct.pack("<I", length) + b"PAR1"

    def _leaves(self, tree: Any, found: list[Any]) -> list[Any]:
        for field in tree:
            kind, value = field[1], field[2]
            if kind == 12:
                self._leaves(value, found)
            elif kind in (9, 10) and value[0] == 12:
                found.append(field)
                for each in value[1]:
                    self._leaves(each, found)
            found.append(field)
        return found

    def _structure(self) -> list[Any]:
        fields, number = [], 0
        while head := self._byte():
            number = number + (head >> 4) if head >> 4 else self._whole()
            kind = head & 15
            fields.append((number, kind, None if kind in (1, 2) else self._value(kind)))
        return fields

    def _value(self, kind: int) -> Any:
        if kind in (9, 10):
            head = self._byte()
            count = self._unsigned() if head >> 4 == 15 else head >> 4
            return (head & 15, [self._value(head & 15) for _ in range(count)])
        if kind == 12:
            return self._structure()
        if kind in (7, 8):
            return self._taken(8 if kind == 7 else self._unsigned())
        return self._byte() if kind in (1, 2, 3) else self._whole()

    def _taken(self, count: int) -> bytes:
        self._place += count
        return self._data[self._place - count : self._place]

    def _byte(self) -> int:
        return self._taken(1)[0]

    def _unsigned(self) -> int:
        found = shift = 0
        while (byte := self._byte()) > 127:
            found, shift = found | (byte & 127) << shift, shift + 7
        return found | byte << shift

    def _whole(self) -> int:
        found = self._unsigned()
        return (found >> 1) ^ -(found & 1)

    def _written(self, kind: int, value: Any, draw: random.Random, chosen: dict[int, Any]) -> bytes:
        if kind == 12:
            out = b""
            for field in value:
                number, inner, held = field
                if id(field) in chosen:
                    if draw.random() < 0.15:
                        continue
                    held = self._other(inner, held, draw)
                out += bytes([inner]) + _zigzag(number)
                out += b"" if inner in (1, 2) else self._written(inner, held, draw, chosen)
            return out + b"\0"
        if kind in (9, 10):
            inner, items = value
            return (
                bytes([240 | inner])
                + _varint(len(items))
                + b"".join(self._written(inner, i, draw, chosen) for i in items)
            )
        if kind == 8:
            return _varint(len(value)) + value
        if kind == 7:
            return value
        return bytes([value & 255]) if kind in (1, 2, 3) else _zigzag(value)

    def _other(self, kind: int, value: Any, draw: random.Random) -> Any:
        if kind in (4, 5, 6):
            return draw.choice(
                (0, 1, -1, 2, 7, value + 1, value * 2, -value, 1 << 16, (1 << 31) - 1, 1 << 31, 1 << 40, (1 << 63) - 1)
            )
        if kind == 8:
            return draw.choice(
                (b"", b"x", value * 2, value[:-1], b"\xff\xfe", b"a.b", b"\x1b[2J", b"text", b"x" * 5000)
            )
        if kind in (9, 10):
            inner, items = value
            return inner, draw.choice((items[:-1], items + items[:1], items[::-1], [], items * 300))
        return value if kind != 3 else draw.choice((0, 1, 127, 255))


def _varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    found = b""
    while value > 127:
        found, value = found + bytes([value & 127 | 128]), value >> 7
    return found + bytes([value])


def _zigzag(value: int) -> bytes:
    return _varint((value << 1) ^ (value >> 63))
