"""Where chat templates run: jinja2's sandbox, with limits on time and on the size of every value; and where the
assistant speaks in what they write.

A template comes with a model from anywhere. The sandbox keeps it from the machine; the limits keep it from a loop
without end and from texts that double until the memory is full.
"""

from __future__ import annotations

import functools
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from types import GeneratorType
from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError, Undefined, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from headway.errors import UserError

ASSISTANT = "assistant"
Message = Mapping[str, Any]
Span = tuple[int, int]
Render = Callable[[Sequence[Message], bool], str]
OPEN, CLOSE = "\ufdd2", "\ufdd3"  # noncharacters, around what a {% generation %} block writes
_BORDERS = re.compile(f"[{OPEN}{CLOSE}]")
_HERE = "\ufdd5"  # a noncharacter in the place of what is sought


def block_spans(text: str, marks: re.Pattern[str]) -> tuple[str, list[Span]]:
    """A text without the borders of its {% generation %} blocks, and where these were.

    A block that ends before the mark of the turn's end is taken to mean that too.
    """
    parts, borders, done = [], [], 0
    for part in _BORDERS.split(text):
        parts.append(part)
        done += len(part)
        borders.append(done)
    plain = "".join(parts)
    spans = []
    for start, stop in zip(borders[:-1:2], borders[1::2]):
        ended = any(mark.end() == stop for mark in marks.finditer(plain, start, stop))
        mark = None if ended else marks.match(plain, stop)
        spans.append((start, mark.end() if mark else stop))
    return plain, spans


def assistant_spans(render: Render, messages: Sequence[Message], whole: str, marks: re.Pattern[str]) -> list[Span]:
    """Start and stop, in characters of `whole`, of each thing that the assistant says.

    `render(messages, prompt)` writes a conversation, with the opening of an answer where `prompt` says so; `whole` is
    all of it, and `marks` find the special symbols. What is said is what follows that opening, up to the mark that ends
    the turn, which is part of it. Raises UserError where earlier turns are written otherwise once others follow, so
    that nothing can be found.
    """
    spans = []
    for i, message in enumerate(messages):
        if message.get("role") == ASSISTANT:
            around = _Around(render, messages, i, whole)
            start, stop = around.start(), around.stop(marks)
            if start is None or stop is None or not start <= stop:
                raise UserError(
                    f"this chat template writes message {i} otherwise where others follow, so that what the assistant "
                    "says is not found; put {% generation %} blocks into the template, or end the chat there"
                )
            spans.append((start, stop))
    return spans


class _Around:
    """What a template writes before and after one message."""

    def __init__(self, render: Render, messages: Sequence[Message], place: int, whole: str) -> None:
        self._render = render
        self._messages = messages
        self._place = place
        self._whole = whole

    def start(self) -> int | None:
        before = self._written(self._messages[: self._place], prompt=True)
        if before is not None and self._whole.startswith(before):
            return len(before)
        split = self._split()
        return len(split[0]) if split else None

    def stop(self, marks: re.Pattern[str]) -> int | None:
        until = self._written(self._messages[: self._place + 1], prompt=False)
        if until is not None and self._whole.startswith(until):
            last = max(marks.finditer(until), key=re.Match.end, default=None)
            # A line break after the mark is the template's: nobody says it.
            return len(until) if last is None or until[last.end() :].strip() else last.end()
        split = self._split()
        if not split:
            return None
        stop = len(self._whole) - len(split[1])
        mark = marks.match(self._whole, stop)
        return mark.end() if mark else stop

    def _split(self) -> tuple[str, str] | None:
        """The texts before and after the message's content, where the whole has them too."""
        message = {**self._messages[self._place], "content": _HERE}
        other = [*self._messages[: self._place], message, *self._messages[self._place + 1 :]]
        before, found, after = (self._written(other, prompt=False) or "").partition(_HERE)
        fits = self._whole.startswith(before) and self._whole.endswith(after)
        alone = bool(found) and _HERE not in after
        return (before, after) if alone and fits and len(before) + len(after) <= len(self._whole) else None

    def _written(self, messages: Sequence[Message], prompt: bool) -> str | None:
        try:
            return self._render(messages, prompt)
        except UserError:  # many templates take no conversation that is cut short
            return None


SECONDS = 5.0
LARGEST = 1 << 23  # characters of a text, items of a list
_WORK = 1 << 26  # characters that one call may write
_BITS = 1 << 14  # of a whole number
_METHODS = ("center", "expandtabs", "format", "format_map", "join", "ljust", "replace", "rjust", "translate", "zfill")
_FILTERS = ("batch", "center", "format", "indent", "join", "replace", "round", "slice", "tojson", "wordwrap")
_REFUSED = ("encode", "to_bytes", "from_bytes")  # methods that make bytes, which nothing here measures
_UNUSED = ("pprint", "random", "sum", "urlize", "xmlattr")  # sums of lists take the square of their number
_DATA = (str, int, float, list, tuple, dict)
_WIDTH = re.compile(r"\d{6}|\{[^{}]*\{|%[-+ #0]*\*")
_NUMBERS, _FIELDS = re.compile(r"\d+"), re.compile(r"[%{]")
_DIGITS = 100  # after the point, of a number that is rounded
_ESCAPED = re.compile(r"\\u(fd[de][0-9a-f])")  # a guard in a message, which stays one
_deadline: ContextVar[float] = ContextVar("deadline")


class RefusedError(TemplateError):
    """The messages are none that the template takes, in its own words."""


@contextmanager
def time_limit(seconds: float = SECONDS) -> Iterator[None]:
    """The time in which a template must be done."""
    token = _deadline.set(time.monotonic() + seconds)
    try:
        yield
    finally:
        _deadline.reset(token)


class Generation(Extension):
    """{% generation %} ... {% endgeneration %} around what the assistant writes."""

    tags = {"generation"}  # noqa: RUF012 (as the base class has it)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        before, after = (nodes.Output([nodes.TemplateData(mark)], lineno=line) for mark in (OPEN, CLOSE))
        return [before, *body, after]


class Sandbox(ImmutableSandboxedEnvironment):
    """jinja2 as published chat templates expect it, inside limits."""

    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[Generation, "jinja2.ext.loopcontrols"],
            finalize=self.text,
            optimized=False,  # nothing is computed before the clock runs
        )
        self.globals.pop("lipsum", None)
        self.globals.update(raise_exception=_refuse, strftime_now=_now)
        self.filters["tojson"] = _to_json
        kept = {name: call for name, call in self.filters.items() if name not in _UNUSED}
        self.filters = {name: self._limited(name, call) for name, call in kept.items()}

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        return _Watched().visit(super()._parse(source, name, filename))

    def tick(self, *_: Any) -> None:
        """Called in every loop and for every call."""
        if time.monotonic() > _deadline.get():
            raise SecurityError("it takes too long")

    def text(self, value: Any) -> str:
        """A value as it is written: texts, numbers, and lists of them."""
        if not isinstance(value, (*_DATA, Undefined, type(None))):
            raise SecurityError(f"it writes a {type(value).__name__}, which is no text")
        measure(value)
        return str(value)

    def joined(self, *values: Any) -> str:
        """The operator ~."""
        return self.contained("".join(map(self.text, self.contained(values))))

    def contained(self, value: Any) -> Any:
        """`value`, unless it is too large."""
        measure(value)
        return value

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805 (as in jinja2)
        __self.tick()
        method = getattr(__obj, "__wrapped__", __obj)  # jinja2 wraps str.format
        owner, name = getattr(method, "__self__", None), getattr(method, "__name__", "")
        if name in _REFUSED:
            raise SecurityError(f"it calls {name}, which makes no text")
        if isinstance(owner, str) and name in _METHODS:
            _check_work(name, owner, [*args, *kwargs.values()])
        return __self.contained(super().call(__context, __obj, *args, **kwargs))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        self.tick()
        _check_operands(operator, left, right)
        return self.contained(super().call_binop(context, operator, left, right))

    def _limited(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """A filter that looks at the size of what it gets and gives."""

        @functools.wraps(function)
        def limited(*args: Any, **kwargs: Any) -> Any:
            self.tick()
            args = tuple(list(self._counted(arg)) if isinstance(arg, GeneratorType) else arg for arg in args)
            _no_namespace([*args, *kwargs.values()])
            values = [arg for arg in (*args, *kwargs.values()) if isinstance(arg, _DATA)]
            if values and name in _FILTERS:
                _check_work(name, values[0], values[1:])
            result = function(*args, **kwargs)
            return self._counted(result) if isinstance(result, GeneratorType) else self.contained(result)

        return limited

    def _counted(self, items: Iterator[Any]) -> Iterator[Any]:
        room = LARGEST
        for item in items:
            self.tick()
            room -= measure(item)
            if room < 0:
                raise SecurityError("it makes a list that is too large")
            yield item


class _Watched(NodeTransformer):
    """Puts the limits into a template: a tick into each loop, a look at each list and text that is put together."""

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802 (named by jinja2)
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(_own("tick", [], node), lineno=node.lineno))
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _own("joined", node.nodes, node)

    def visit_List(self, node: nodes.List) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _own("contained", [node], node)

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _own("contained", [node], node)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _own("contained", [node], node) if node.ctx == "load" else node


def _own(name: str, args: list[nodes.Expr], at: nodes.Node) -> nodes.Expr:
    function = nodes.EnvironmentAttribute(name, lineno=at.lineno)
    return nodes.Call(function, args, [], None, None, lineno=at.lineno)


def measure(value: Any) -> int:
    """Characters and items of a value, counted as often as they are held. Raises SecurityError beyond LARGEST."""
    size, waiting = 0, [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, str):
            size += len(one)
        elif isinstance(one, dict):
            waiting += [*one.keys(), *one.values()]
        elif isinstance(one, (list, tuple)):
            waiting += one
        elif isinstance(one, int) and one.bit_length() > _BITS:
            raise SecurityError("it computes a number that is too large")
        elif isinstance(one, Namespace) and one is not value:
            raise SecurityError("it keeps a namespace inside a value")
        size += 1
        if size + len(waiting) > LARGEST:
            raise SecurityError(f"it makes a value of more than {LARGEST:,} characters")
    return size


def _check_work(name: str, value: Any, others: list[Any]) -> None:
    """Before the call of a method or filter that may write a multiple of `value`."""
    if name.startswith("format"):
        _no_namespace(others)
        _check_format(value, others)
        return
    if name == "round" and any(isinstance(other, int) and abs(other) > _DIGITS for other in others):
        raise SecurityError(f"it rounds to more than {_DIGITS} digits")
    factor = max([1, *(abs(other) if isinstance(other, (int, float)) else measure(other) for other in others)])
    if not factor * measure(value) <= _WORK:
        raise SecurityError(f"it writes more than {_WORK:,} characters at once")


def _check_format(form: Any, values: list[Any]) -> None:
    """Each field may write every value, and is at least as wide as it says."""
    if not isinstance(form, str):
        return
    if _WIDTH.search(form):
        raise SecurityError("it formats with a width of its own")
    widths = sum(map(int, _NUMBERS.findall(form)))
    if widths + len(_FIELDS.findall(form)) * sum(map(measure, values)) > _WORK:
        raise SecurityError(f"it writes more than {_WORK:,} characters at once")


def _check_operands(operator: str, left: Any, right: Any) -> None:
    if operator == "%" and isinstance(left, str):
        _check_work("format", left, [right])
    elif operator == "**" and isinstance(left, int) and isinstance(right, int):
        if abs(right) * left.bit_length() > _BITS:
            raise SecurityError("it computes a number that is too large")
    elif operator == "*":
        for one, other in ((left, right), (right, left)):
            if isinstance(one, (str, list, tuple)) and isinstance(other, int) and measure(one) * other > LARGEST:
                raise SecurityError(f"it makes a value of more than {LARGEST:,} characters")


def _no_namespace(values: list[Any]) -> None:
    """Namespaces may hold each other, and their text would have no end."""
    if any(isinstance(value, Namespace) for value in values):
        raise SecurityError("it writes a namespace, which is no text")


def _refuse(message: Any = "") -> None:
    raise RefusedError(str(message))


def _now(form: Any) -> str:
    """The time of day as `form` writes it."""
    if not isinstance(form, str) or len(form) > 100:
        raise SecurityError("it writes the time in no form that is known")
    return time.strftime(form)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """As published templates expect it: jinja2's own would escape < and > for HTML."""
    text = json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    return _ESCAPED.sub(lambda match: chr(int(match[1], 16)), text) if ensure_ascii else text


def compiled(text: str, source: str) -> Callable[[Mapping[str, Any]], str]:
    """What a template writes, given the values of its names. Its errors are UserErrors that name `source`."""
    with time_limit(), _said(source):
        template = Sandbox().from_string(text)

    def write(values: Mapping[str, Any]) -> str:
        room, written = LARGEST, []
        with time_limit(), _said(source):
            for part in template.generate(values):
                room -= len(part)
                if room < 0:
                    raise SecurityError(f"it writes more than {LARGEST:,} characters")
                written.append(part)
        return "".join(written)

    return write


@contextmanager
def _said(source: str) -> Iterator[None]:
    try:
        yield
    except RefusedError as error:
        raise UserError(f"{source} refuses these messages: {error}") from None
    except TemplateSyntaxError as error:
        raise UserError(f"{source} is not a template: {error.message} (line {error.lineno}); correct it") from None
    except Exception as error:  # templates are programs, and fail as programs do
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{source} fails: {reason:.300}; give messages of the form it expects") from None
