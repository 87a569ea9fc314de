"""A sandbox for chat templates: jinja2's sandbox with limits on CPU time and on the size of every value.

Templates come with untrusted models. The sandbox gives them no access to the machine, and the limits stop endless loops
and strings that double until memory is full. It runs in a helper process, whose limits also apply within a single call
and to all values together.
"""

from __future__ import annotations

import functools
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import GeneratorType
from typing import Any

from jinja2 import Template, TemplateError, TemplateSyntaxError, Undefined, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from headway.codecs.chat_spans import CLOSE, OPEN

MAX_SIZE = 1 << 23  # characters in a string, or items in a list
_MAX_WORK = 1 << 26  # characters that one call may write
_MAX_BITS = 1 << 14  # maximum bits in an integer
_METHODS = ("center", "expandtabs", "format", "format_map", "join", "ljust", "replace", "rjust", "translate", "zfill")
_FILTERS = ("batch", "center", "format", "indent", "join", "replace", "round", "slice", "tojson", "wordwrap")
_FORMATS = ("format", "format_map")
_FORBIDDEN_METHODS = ("encode", "to_bytes", "from_bytes")  # methods that return bytes, whose size is not measured
_FORBIDDEN_FILTERS = ("pprint", "random", "sum", "urlize", "xmlattr")  # summing lists is quadratic
_DATA_TYPES = (str, int, float, list, tuple, dict)
_WIDTH = re.compile(r"\d{6}|\{[^{}]*\{|%[-+ #0]*\*")
_DIGIT_RUN, _FIELDS = re.compile(r"\d+"), re.compile(r"[%{]")
_MAX_DIGITS = 100  # decimal places when rounding
_ESCAPED_GUARD = re.compile(r"\\u(fd[de][0-9a-f])")  # a guard in a message, which must be kept
_deadline: ContextVar[float] = ContextVar("deadline")


class OvertimeError(SecurityError):
    """The time is up."""


class RefusedError(TemplateError):
    """The template rejects the messages, with its own text."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Limit a template's CPU time."""
    token = _deadline.set(time.thread_time() + seconds)
    try:
        yield
    finally:
        _deadline.reset(token)


class Generation(Extension):
    """{% generation %} ... {% endgeneration %} around the assistant's output."""

    tags = {"generation"}  # noqa: RUF012 (as in the base class)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        before, after = (nodes.Output([nodes.TemplateData(mark)], lineno=line) for mark in (OPEN, CLOSE))
        return [before, *body, after]


class Sandbox(ImmutableSandboxedEnvironment):
    """jinja2 as published chat templates expect it, with limits."""

    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[Generation, "jinja2.ext.loopcontrols"],
            finalize=self.text,
            optimized=False,  # compute nothing before the clock starts
        )
        self.globals.pop("lipsum", None)
        self.globals.update(raise_exception=_raise_exception, strftime_now=_format_time)
        self.filters["tojson"] = _to_json
        allowed = {name: call for name, call in self.filters.items() if name not in _FORBIDDEN_FILTERS}
        self.filters = {name: self._limited(name, call) for name, call in allowed.items()}

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        return _LimitInserter().visit(super()._parse(source, name, filename))

    def tick(self, *_: Any) -> None:
        """Called in every loop and for every call."""
        if time.thread_time() > _deadline.get():
            raise OvertimeError("it takes too long")

    def text(self, value: Any) -> str:
        """A value as output: strings, numbers, and lists of these."""
        if not isinstance(value, (*_DATA_TYPES, Undefined, type(None))):
            raise SecurityError(f"it writes a {type(value).__name__}, which is not text")
        measure(value)
        return str(value)

    def joined(self, *values: Any) -> str:
        """The operator ~."""
        return self.checked("".join(map(self.text, self.checked(values))))

    def checked(self, value: Any) -> Any:
        """`value`, unless it is too large."""
        measure(value)
        return value

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805 (as in jinja2)
        __self.tick()
        method = getattr(__obj, "__wrapped__", __obj)  # jinja2 wraps str.format
        owner, name = getattr(method, "__self__", None), getattr(method, "__name__", "")
        if name in _FORBIDDEN_METHODS:
            raise SecurityError(f"it calls {name}, which does not return text")
        if isinstance(owner, str) and name in _FORMATS and method is __obj:  # not wrapped by jinja2
            raise SecurityError(f"it calls a string's {name} outside the sandbox")
        if isinstance(owner, str) and name in _METHODS:
            _check_work(name, owner, [*args, *kwargs.values()])
        return __self.checked(super().call(__context, __obj, *args, **kwargs))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        self.tick()
        if operator == "%" and isinstance(left, str):
            _check_work("format", left, [right])
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            if abs(right) * left.bit_length() > _MAX_BITS:
                raise SecurityError("it computes a number that is too large")
        elif operator == "*":
            for repeated, count in ((left, right), (right, left)):
                if (
                    isinstance(repeated, (str, list, tuple))
                    and isinstance(count, int)
                    and measure(repeated) * count > MAX_SIZE
                ):
                    raise SecurityError(f"it makes a value of more than {MAX_SIZE:,} characters")
        return self.checked(super().call_binop(context, operator, left, right))

    def _limited(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """A filter that checks the size of its arguments and its result."""

        @functools.wraps(function)
        def limited(*args: Any, **kwargs: Any) -> Any:
            self.tick()
            args = tuple(list(self._counted(arg)) if isinstance(arg, GeneratorType) else arg for arg in args)
            _no_namespace([*args, *kwargs.values()])
            values = [arg for arg in (*args, *kwargs.values()) if isinstance(arg, _DATA_TYPES)]
            if values and name in _FILTERS:
                _check_work(name, values[0], values[1:])
            result = function(*args, **kwargs)
            return self._counted(result) if isinstance(result, GeneratorType) else self.checked(result)

        return limited

    def _counted(self, items: Iterator[Any]) -> Iterator[Any]:
        remaining = MAX_SIZE
        for item in items:
            self.tick()
            remaining -= measure(item)
            if remaining < 0:
                raise SecurityError("it makes a list that is too large")
            yield item


class _LimitInserter(NodeTransformer):
    """Adds the limits to a template: a tick in each loop, and a size check for each new list and string."""

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802 (named by jinja2)
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(_environment_call("tick", [], node), lineno=node.lineno))
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _environment_call("joined", node.nodes, node)

    def visit_List(self, node: nodes.List | nodes.Dict) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _environment_call("checked", [node], node)

    visit_Dict = visit_List  # noqa: N815

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _environment_call("checked", [node], node) if node.ctx == "load" else node


def _environment_call(name: str, args: list[nodes.Expr], node: nodes.Node) -> nodes.Expr:
    function = nodes.EnvironmentAttribute(name, lineno=node.lineno)
    return nodes.Call(function, args, [], None, None, lineno=node.lineno)


def measure(value: Any) -> int:
    """The characters and items of a value, counting repeats. Raises SecurityError beyond MAX_SIZE."""
    size, pending = 0, [value]
    while pending:
        node = pending.pop()
        if isinstance(node, str):
            size += len(node)
        elif isinstance(node, dict):
            pending += [*node.keys(), *node.values()]
        elif isinstance(node, (list, tuple)):
            pending += node
        elif isinstance(node, int) and node.bit_length() > _MAX_BITS:
            raise SecurityError("it computes a number that is too large")
        elif isinstance(node, Namespace) and node is not value:
            raise SecurityError("it stores a namespace inside a value")
        size += 1
        if size + len(pending) > MAX_SIZE:
            raise SecurityError(f"it makes a value of more than {MAX_SIZE:,} characters")
    return size


def _check_work(name: str, value: Any, arguments: list[Any]) -> None:
    """Check the work for a method or filter that may write a multiple of `value`."""
    if name.startswith("format"):
        _no_namespace(arguments)
        if isinstance(value, str):  # each field may write every argument, and is at least as wide as stated
            if _WIDTH.search(value):
                raise SecurityError("it formats with a variable or very large width")
            widths = sum(map(int, _DIGIT_RUN.findall(value)))
            if widths + len(_FIELDS.findall(value)) * sum(map(measure, arguments)) > _MAX_WORK:
                raise SecurityError(f"it writes more than {_MAX_WORK:,} characters at once")
        return
    if name == "round" and any(isinstance(argument, int) and abs(argument) > _MAX_DIGITS for argument in arguments):
        raise SecurityError(f"it rounds to more than {_MAX_DIGITS} digits")
    factor = max(
        [1, *(abs(argument) if isinstance(argument, (int, float)) else measure(argument) for argument in arguments)]
    )
    if not factor * measure(value) <= _MAX_WORK:
        raise SecurityError(f"it writes more than {_MAX_WORK:,} characters at once")


def _no_namespace(values: list[Any]) -> None:
    """Reject namespaces: they may contain each other, which would make their text infinite."""
    if any(isinstance(value, Namespace) for value in values):
        raise SecurityError("it writes a namespace, which is not text")


def _raise_exception(message: Any = "") -> None:
    raise RefusedError(str(message))


def _format_time(time_format: Any) -> str:
    """The current time in the format `time_format`."""
    if not isinstance(time_format, str) or len(time_format) > 100:
        raise SecurityError("it writes the time in an unsupported format")
    return time.strftime(time_format)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as published templates expect it; jinja2's own filter would escape < and > for HTML."""
    text = json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    return _ESCAPED_GUARD.sub(lambda match: chr(int(match[1], 16)), text) if ensure_ascii else text


@functools.lru_cache(maxsize=32)
def _compiled(text: str) -> Template:
    return Sandbox().from_string(text)


def answer(request: Mapping[str, Any]) -> dict[str, str]:
    """Render the template `text` with `values`. Returns its output as "written", or the error as "refused" (and
    "spent").

    The template has `seconds` of CPU time. Without values, it is only compiled.
    """
    try:
        with time_limit(request["seconds"]):
            template, values = _compiled(request["text"]), request["values"]
            remaining, parts = MAX_SIZE, []
            for part in () if values is None else template.generate(values):
                remaining -= len(part)
                if remaining < 0:
                    raise SecurityError(f"it writes more than {MAX_SIZE:,} characters")
                parts.append(part)
            return {"written": "".join(parts)}
    except RefusedError as error:
        return {"refused": f"rejects these messages: {error}"}
    except TemplateSyntaxError as error:
        return {"refused": f"is not a template: {error.message} (line {error.lineno}); correct it"}
    except MemoryError:
        raise
    except Exception as error:  # templates are programs and can raise anything
        reason = " ".join(str(error).split()) or type(error).__name__
        spent = {"spent": "time"} if isinstance(error, OvertimeError) else {}
        return {"refused": f"fails: {reason:.300}; use messages in the format that it expects", **spent}
