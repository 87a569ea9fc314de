"""The fields of config dataclasses: their types and defaults as `--set` takes them, and what their docs say of them."""

from __future__ import annotations

import dataclasses
import inspect
import io
import json
import re
import tokenize
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin

from headway import config_kinds

HEADINGS = {  # over families that have a section of their own
    "optim": "Optimisers",
    "schedule": "Schedules",
    "adapter": "Adapters",
    "model": "Models",
    "mixer": "Mixers",
    "embed": "Inputs",
    "head": "Outputs",
    "task": "Tasks",
}
_SCALARS = {int: "int", float: "float", bool: "bool", str: "text"}
_NAMES = r"`?\w+`?(?:(?:, | and |, and )`?\w+`?)*"


@dataclass(frozen=True)
class Field:
    """A setting as the page shows it."""

    name: str
    type: str
    default: str
    meaning: str


@dataclass(frozen=True)
class Described:
    """A config class: what is said of it as a whole, and its fields, those of its bases first."""

    prose: list[str]
    fields: list[Field]


def describe(cls: type, above: type | None = None) -> Described:
    """A config class without the fields that it has from `above`, one of its bases."""
    meanings: dict[str, str] = {}
    prose: list[str] = []
    for base in reversed(cls.__mro__):
        if dataclasses.is_dataclass(base) and not (above is not None and issubclass(above, base)):
            said, rest = _read_doc(base)
            meanings |= said | comments(base)
            prose = rest if base is cls else prose
    inherited = {} if above is None else {f.name: f for f in dataclasses.fields(above)}
    hints = typing.get_type_hints(cls)
    shown = [f for f in dataclasses.fields(cls) if not _same(f, inherited.get(f.name))]
    known = {} if above is None else {f.name: f.meaning for f in describe(above).fields}
    return Described(
        prose,
        [Field(f.name, kind(hints[f.name]), default(f), meanings.get(f.name, known.get(f.name, ""))) for f in shown],
    )


def _same(field: Any, inherited: Any) -> bool:
    return inherited is not None and default(field) == default(inherited)


@cache
def comments(cls: type) -> Mapping[str, str]:
    """The comment behind each field of a class (not of its bases)."""
    source = inspect.cleandoc("\n" + inspect.getsource(cls))
    found: dict[str, str] = {}
    name, depth = "", 0
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.NAME and token.start[1] == 4:
            name = token.string
        depth += token.string in "([{" and token.type == tokenize.OP
        depth -= token.string in ")]}" and token.type == tokenize.OP
        if token.type == tokenize.COMMENT and name and token.start[1] > 4:
            found[name] = (found[name] + " " if name in found else "") + token.string.lstrip("# ")
    own = inspect.get_annotations(cls)
    return {name: text for name, text in found.items() if name in own}


@cache
def _read_doc(cls: type) -> tuple[dict[str, str], list[str]]:
    """What the docstring says of each field by a clause of its own, and the paragraphs of all that it says else."""
    own = {field.name for field in dataclasses.fields(cls)}
    noted = comments(cls)
    said: dict[str, str] = {}
    paragraphs: list[str] = []
    for block in _paragraphs(cls.__doc__ or "", own):
        rest: list[str] = []
        for clause in _clauses(block, own):
            names, text = _subject(clause, own)
            if names and len(names) == 1 and names[0] not in noted:
                said[names[0]] = _tidy(text)
            elif names and clause.partition(":")[0].replace("`", "") == ", ".join(names):
                said |= {name: _tidy(text) for name in names}
            else:
                rest.append(clause)
        if rest:
            paragraphs.append(_whole(" ".join(rest)))
    auto = (cls.__doc__ or "").startswith(f"{cls.__name__}(")  # what dataclass writes where there is none
    return said, [] if auto else paragraphs


def _whole(text: str) -> str:
    text = text.rstrip(";")
    return (text[0].upper() + text[1:] if text[0].islower() else text) + ("" if text.endswith((".", ":", ")")) else ".")


def _tidy(text: str) -> str:
    return re.sub(r"^(is|are|says|: )\s*", "", text.strip()).rstrip(".;").strip()


def _paragraphs(doc: str, names: set[str]) -> list[str]:
    lines = inspect.cleandoc(doc).splitlines()
    blocks: list[str] = [""]
    for line in lines:
        noted = re.match(r"\w+(, \w+)*: ", line)
        if not line.strip() or (noted and set(noted[0][:-2].split(", ")) <= names):
            blocks.append(line.strip())
        else:
            blocks[-1] = f"{blocks[-1]} {line.strip()}".strip()
    return [block for block in blocks if block]


def _clauses(text: str, names: set[str]) -> list[str]:
    """Sentences, cut at semicolons too where what follows begins with a field's name."""
    cuts, depth = [0], 0
    for place, letter in enumerate(text):
        depth += (letter in "([") - (letter in ")]")
        ends = place and text[place - 1] in ".;" and letter == " " and depth == 0
        if ends and (text[place - 1] == "." or text[place + 1] == "`"):
            following = text[place + 1 :]
            if following[:1].isupper() or following[:1] == "`" or _subject(following, names)[0]:
                cuts.append(place + 1)
    return [text[a:b].strip() for a, b in zip(cuts, [*cuts[1:], len(text)])]


def _subject(clause: str, names: set[str]) -> tuple[list[str], str]:
    """The fields that a clause begins with, as "`a` is ..." or "a, b: ...", and what it says of them."""
    found = re.match(rf"({_NAMES})(:?) (.*)", clause, re.DOTALL)
    if not found or not (found[2] or found[1].startswith("`")):
        return [], clause
    subject = [word for word in re.split(r", and |, | and ", found[1].replace("`", "")) if word]
    first = subject[0] if not found[2] else ""
    quoted = clause.startswith(f"`{first}`") or bool(found[2])
    return (subject, found[3]) if quoted and all(name in names for name in subject) else ([], clause)


def kind(hint: Any) -> str:
    """A type in the words of the page."""
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        parts = [kind(arg) for arg in args if arg is not type(None)]
        return " or ".join(parts + ["none"] * (type(None) in args))
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in args)
    if origin is tuple:
        if args[-1] is Ellipsis:
            return f"list of {kind(args[0])}"
        parts = [kind(arg) for arg in args]
        return f"{len(parts)} {parts[0]}s" if len(set(parts)) == 1 and parts[0].isalpha() else f"[{', '.join(parts)}]"
    if origin in (dict, Mapping):
        return f"{kind(args[1])} by name"
    if isinstance(hint, type) and hint.__module__.startswith("headway"):
        return f"[{title(hint)}](#{anchor(heading(hint))})"
    return _SCALARS.get(hint, str(hint))


def title(cls: type) -> str:
    """The words for a config class: "feed forward" for FeedForwardConfig, "lstm mixer" for a kind."""
    words = re.findall(r"[A-Z]+(?![a-z])|[A-Z][a-z]+", cls.__name__.removesuffix("Config"))
    if "kind" in vars(cls):
        family = next(base for base in cls.__mro__[1:] if is_family(base))
        return f"{vars(cls)['kind']} {title(family)}".replace(" optim", " optimiser")
    domain = f" of {cls.__module__.split('.')[2]}" if cls.__module__.startswith("headway.domains.") else ""
    return " ".join(words).lower() + domain


def heading(cls: type) -> str:
    """What stands over a class on the page."""
    return HEADINGS.get(title(cls), title(cls))


def anchor(text: str) -> str:
    """What a link to a heading is."""
    return text.lower().replace(" ", "-")


def is_family(cls: type) -> bool:
    """Whether kinds are registered in it."""
    return cls in config_kinds.KINDS


def default(field: Any) -> str:
    """A default as `--set` would take it."""
    if field.default is not dataclasses.MISSING:
        return value(field.default)
    if field.default_factory is not dataclasses.MISSING:
        return value(field.default_factory())
    return "must be given"


def value(given: Any) -> str:
    """A value as `--set` takes it; of a config its kind and what differs from the defaults."""
    return f"`{_plain(given)}`" if not _is_long(given) else _plain(given)


def _is_long(given: Any) -> bool:
    return given == () or given == {} or len(_plain(given)) > 60


def _plain(given: Any) -> str:
    if dataclasses.is_dataclass(given) and not isinstance(given, type):
        own = {f.name: _plain(getattr(given, f.name)) for f in dataclasses.fields(given) if _differs(f, given)}
        settings = ", ".join(f"{name} {text}" for name, text in own.items())
        named = getattr(given, "kind", "")
        return f"{named} ({settings})" if named and settings else named or settings or "defaults"
    if isinstance(given, float):
        return f"{given:.6g}"
    if isinstance(given, (tuple, list)):
        return f"[{', '.join(map(_plain, given))}]"
    if isinstance(given, Mapping):
        return "; ".join(f"{name}: {_plain(item)}" for name, item in given.items()) or "none"
    return "none" if given is None else given if isinstance(given, str) and given else json.dumps(given)


def _differs(field: Any, given: Any) -> bool:
    if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
        return True
    usual = field.default if field.default is not dataclasses.MISSING else field.default_factory()
    return getattr(given, field.name) != usual


def kinds(base: type) -> Mapping[str, type]:
    """The kinds of a family that headway has, by name; programs may register more."""
    return {name: cls for name, cls in config_kinds.kinds(base).items() if cls.__module__.startswith("headway.")}
