"""api.md: what `import headway as hw` gives, from signatures and docstrings."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Iterator
from typing import Any

import headway as hw

HEAD = """# The Python API

What `import headway as hw` gives: [functions](#functions), the [model](#model) that `hw.load` returns, the
[settings](#settings-that-calls-take) that calls take, the [results](#results) they return, and [errors](#errors).
[In Python](../guides/python.md) introduces it. Shapes are written as jaxtyping does: B batch, T time (tokens), S source,
C vocabulary or classes, D width, H heads, N and M items.

Where a method takes *one or many*, one thing gives one answer and a list (or a column, or any iterable) gives a list.

*This page is written by `python docs/reference.py` from the code.*
"""

# The methods and attributes of a model, as a person looks for them.
MODEL = {
    "Texts": ("generate", "stream", "complete", "continuations", "chat", "chat_stream", "talk", "translate"),
    "Labels, vectors, masks": ("classify", "thresholds", "rerank", "answer", "tag", "embed", "fill"),
    "Images and sounds": ("caption", "match", "look", "transcribe", "transcriber"),
    "Time series": ("forecast",),
    "Episodes, robots, chess": ("rollout", "act", "policy", "move", "player"),
    "Scores, attention and logits": ("evaluate", "score", "attention", "lens", "logits"),
    "What it can do, ids, and what generates": (
        "verbs",
        "reads",
        "generate_ids",
        "prompt_ids",
        "session",
        "generator",
        "codec",
        "context",
        "device",
    ),
}
HIDDEN = {  # what a notebook shows, and what predictors call
    "card",
    "check_item_statistics",
    "check_texts",
    "has_input_statistics",
    "input_statistics",
    "open_session",
}
FUNCTIONS = (
    "train",
    "compare",
    "plan",
    "plan_gpus",
    "load",
    "connect",
    "quantize",
    "export",
    "verify",
    "recipes",
    "presets",
)
SETTINGS = ("Sampling", "Limits", "SearchConfig", "TranscriptionOptions", "Recipe")
ERRORS = ("UserError", "ConfigError", "PartialFailureError")


def page() -> str:
    """The whole page."""
    named = {*FUNCTIONS, *SETTINGS, *ERRORS, "Model", "__version__"}
    results = [name for name in hw.__all__ if name not in named]
    parts = [HEAD, "## Functions\n"]
    for name in FUNCTIONS:
        parts += _function(f"hw.{name}", getattr(hw, name), "###")
    parts += ["## Model\n", f"{_said(hw.Model)}\n"]
    for title, names in _methods().items():
        parts.append(f"### {title}\n")
        for name in names:
            parts += _member(name)
    parts.append("## Settings that calls take\n")
    for name in SETTINGS:
        parts += _record(name, getattr(hw, name))
    parts.append("## Results\n")
    for name in results:
        parts += _record(name, getattr(hw, name))
    parts.append("## Errors\n")
    parts += [f"**`hw.{name}`**: {_said(getattr(hw, name))}\n" for name in ERRORS]
    parts.append("`hw.ConfigError` and `hw.PartialFailureError` are `hw.UserError`, which is an Exception.\n")
    return "\n".join(parts).rstrip() + "\n"


def _methods() -> dict[str, tuple[str, ...]]:
    """The groups of a model's methods. A method that is in none of them is an error of this page."""
    public = {name for name in dir(hw.Model) if not name.startswith("_")} - HIDDEN
    missing = public ^ {name for names in MODEL.values() for name in names}
    if missing:
        raise ValueError(f"docs/pages/api.py groups a model's methods, and {', '.join(sorted(missing))} differ")
    return MODEL


def _member(name: str) -> Iterator[str]:
    found = inspect.getattr_static(hw.Model, name)
    if callable(found):
        yield from _function(f"model.{name}", found, "####", skip=1)
        return
    getter = found.fget if isinstance(found, property) else found.func  # a cached one
    yield f"#### `model.{name}`: `{getter.__annotations__.get('return', '')}`\n"
    yield f"{_said(found)}\n"


def _function(name: str, function: Any, depth: str, skip: int = 0) -> Iterator[str]:
    """A heading, the signature as code, and the docstring."""
    signature = inspect.signature(function)
    parts: list[str] = []
    kinds = [parameter.kind for parameter in signature.parameters.values()]
    for place, parameter in enumerate(signature.parameters.values()):
        if place < skip:
            continue
        if parameter.kind is parameter.KEYWORD_ONLY and parameter.KEYWORD_ONLY not in kinds[:place]:
            parts.append("*")
        default = "" if parameter.default is parameter.empty else f" = {_default(parameter.default)}"
        parts.append(f"{parameter.name}: {_type(parameter.annotation)}{default}")
    returns = f" -> {_type(signature.return_annotation)}"
    line = f"{name}({', '.join(parts)}){returns}"
    broken = f"{name}(\n" + "".join(f"    {part},\n" for part in parts) + f"){returns}"
    yield f"{depth} `{name}`\n"
    yield f"```text\n{line if len(line) <= 110 else broken}\n```\n"
    yield f"{_said(function)}\n"


def _record(name: str, cls: type) -> Iterator[str]:
    """A dataclass or a named tuple: its docs, its fields and its own methods."""
    yield f"### `hw.{name}`\n"
    yield f"{_said(cls)}\n"
    rows = [f"| `{field}` | {kind} | {default} |" for field, kind, default in _fields(cls)]
    defaults = any(not row.endswith("|  |") for row in rows)
    head = ["| field | type | default |", "|---|---|---|"]
    table = [*head, *rows] if defaults else [row.rsplit("|", 2)[0] + "|" for row in [*head, *rows]]
    if rows:
        yield "\n".join(table) + "\n"
    for method, found in vars(cls).items() if name not in SETTINGS else ():
        if inspect.isfunction(found) and not method.startswith("_") and method not in HIDDEN and found.__doc__:
            yield from _function(f"{re.sub(r'(?<!^)(?=[A-Z])', '_', name).lower()}.{method}", found, "####", skip=1)


def _fields(cls: type) -> Iterator[tuple[str, str, str]]:
    if dataclasses.is_dataclass(cls):
        for field in dataclasses.fields(cls):
            has = field.default is not dataclasses.MISSING
            yield field.name, _code(field.type), _code(_default(field.default)) if has else ""
        return
    defaults = getattr(cls, "_field_defaults", {})
    for name, hint in inspect.get_annotations(cls).items():
        text = getattr(hint, "__forward_arg__", hint)
        yield name, _code(text), _code(_default(defaults[name])) if name in defaults else ""


def _code(text: Any) -> str:
    return f"`{_type(text)}`".replace("|", "\\|")


def _type(annotation: Any) -> str:
    """An annotation as it is written, without the rooms of the package."""
    text = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", str(annotation))
    return re.sub(r"\b(?:[a-z_]+\.)+(?=[A-Z])", "", text)


def _default(value: Any) -> str:
    if dataclasses.is_dataclass(value):
        return f"{type(value).__name__}()"
    return f'"{value}"' if isinstance(value, str) else repr(value)


def _said(thing: Any) -> str:
    """A docstring as markdown; its lines "name: what it is" as a list."""
    blocks: list[str] = []
    for line in (inspect.getdoc(thing) or "").splitlines():
        noted = re.match(r"[a-z_]+(, [a-z_]+)*: ", line)
        if not line.strip():
            blocks.append("")
        elif noted:
            names = ", ".join(f"`{name}`" for name in noted[0][:-2].split(", "))
            blocks.append(f"- {names}: {line[noted.end() :]}")
        elif blocks and blocks[-1]:
            blocks[-1] += f" {line}"
        else:
            blocks.append(line)
    text = "\n".join(blocks)
    text = re.sub(r"\n(?=- `)", "\n\n", re.sub(r"\n+(?=- `)", "\n", text), count=1)
    return "`".join(piece if place % 2 else _letters(piece) for place, piece in enumerate(text.split("`"))).strip()


def _letters(text: str) -> str:
    """Text in which stars, lines and angles are letters, but for the dash that begins an item."""
    return re.sub(r"([*_|<])", r"\\\1", text)
