"""Print everything that users see of headway as JSON, so that a refactoring can be shown not to change it.

    python benchmarks/surface.py                        # of this tree
    python benchmarks/surface.py --against REVISION     # differences from a branch, a tag or a commit

Each section is one key of the JSON:

- `api`: the names that `headway` exports: signatures, fields, public methods and attributes.
- `commands`: options, defaults, choices, help, and which values each option accepts. Nothing is run.
- `docstrings`: of the exported names and their methods.
- `environment_variables`: those that the package reads.
- `families`: published families: their tables; which presets and recipes each can express, with the config.json and the
  tensor names that an export writes.
- `file_names`: names and suffixes of the files that the package reads and writes.
- `http`: the server's OpenAPI document.
- `listed`: what `hw.recipes` and `hw.presets` return.
- `metrics`: names of the server's metrics.
- `presets`, `recipes`: their data, the names of their tensors in headway's own format, and the verbs of their models.
- `settings`: types and defaults of all settings and kinds, by the path that `--set` takes.
- `messages`: templates of errors, log lines and printed lines, with {} for values.

`--against` compares this tree with a temporary worktree of the revision, each with its own package. It prints a unified
diff with a line per value, then the messages that only one of the two has in any of its files, and exits with 1 if
there is a difference.

This script runs with the packages of both trees. If something that it uses moves within headway, add its new address to
`ADDRESSES` and leave the old one there.
"""

from __future__ import annotations

import argparse
import ast
import asyncio
import contextlib
import dataclasses
import difflib
import gc
import inspect
import io
import itertools
import json
import os
import re
import subprocess
import sys
import tomllib
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import surface_texts

ROOT = Path(__file__).resolve().parents[1]
ADDRESSES = {  # what this script uses in addition to exported names and the entry point; the first that exists counts
    "recipes": ("headway.domains:recipes",),
    "presets": ("headway.nn.models.presets:PRESETS",),
    "families": ("headway.formats.families:families",),
    "can_express": ("headway.formats.published:can_express",),
    "gguf_dialects": ("headway.formats.gguf.model:DIALECTS",),
    "gguf_writable": ("headway.formats.gguf.model:WRITABLE_FAMILIES",),
    "kinds": ("headway.config:kinds", "headway.config_kinds:kinds"),
    "renamed_settings": ("headway.config:RENAMED",),
    "shortcuts": ("headway.config:shortcuts", "headway.config_kinds:shortcuts"),
    "to_dict": ("headway.config:to_dict",),
    "usage": ("headway.formats.usage:Usage",),
    "verbs": ("headway.app.predictors:verbs",),
    "create_app": ("headway.serve.app:create_app",),
    "server_settings": ("headway.serve.interfaces:ServerSettings",),
}
PROBES = ("", "-1", "0", "1", "2", "0.5", "1.5", "nan", "1000000", "word", "a=b", "no/such/file")  # values of options


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", metavar="REVISION", help="compare with this revision")
    parser.add_argument(
        "--tree", type=Path, default=ROOT, help="checkout whose package is imported (default: this one)"
    )
    args = parser.parse_args()
    if args.against is None:
        print(json.dumps(plain(surface(args.tree.resolve())), indent=1, sort_keys=True))
        return
    from same import checkout  # imports headway, which --tree chooses

    with checkout(args.against) as tree:
        before, after = (json.loads(run(folder)) for folder in (tree, ROOT))
    lines = difference(before, after, args.against)
    print("\n".join(lines) or f"the surface is that of {args.against}")
    sys.exit(bool(lines))


def run(tree: Path) -> str:
    """The output of this script with the package of a checkout."""
    environment = {**os.environ, "PYTHONPATH": str(tree / "src")}
    command = [sys.executable, __file__, "--tree", str(tree)]
    return subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout


def difference(before: dict[str, Any], after: dict[str, Any], revision: str) -> list[str]:
    """A unified diff with a line per value. Messages are compared as sets, because they may move."""
    lines: list[str] = []
    for section in sorted({*before, *after} - {"messages"}):
        old, new = (list(flat(part.get(section), section)) for part in (before, after))
        lines += difflib.unified_diff(old, new, f"{section} of {revision}", f"{section} of this tree", n=0, lineterm="")
    for kind in sorted({*before["messages"], *after["messages"]}):
        old_texts, new_texts = (set(part["messages"].get(kind, ())) for part in (before, after))
        if old_texts != new_texts:
            lines.append(f"{kind}: {len(old_texts)} messages of {revision}, {len(new_texts)} of this tree")
            lines += [f"-{text}" for text in sorted(old_texts - new_texts)]
            lines += [f"+{text}" for text in sorted(new_texts - old_texts)]
    return lines


def flat(value: Any, path: str) -> Iterator[str]:
    """The values of nested dictionaries and lists, each with its path; texts in a list have no index."""
    if isinstance(value, dict) and value:
        for key in sorted(value):
            yield from flat(value[key], f"{path} > {key}")
    elif isinstance(value, list) and value:
        for index, item in enumerate(value):
            yield from flat(item, f"{path}[{index if isinstance(item, (dict, list)) else ''}]")
    else:
        yield f"{path}: {json.dumps(value)}"


def surface(root: Path) -> dict[str, Any]:
    gc.disable()  # it would search a million nodes of source for garbage
    os.environ |= {"COLUMNS": "100", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    sys.path.insert(0, str(root / "src"))
    import headway

    if not Path(headway.__file__).is_relative_to(root):
        sys.exit(f"headway is imported from {headway.__file__}, not from {root / 'src'}; remove it from PYTHONPATH")
    sources = surface_texts.read_sources(root)
    recipes = address("recipes")()
    presets = {name: make() for name, make in address("presets").items()}
    models = {f"preset {name}": model for name, model in presets.items()}
    models |= {f"recipe {name}": recipe.model for name, recipe in recipes.items()}
    to_dict = address("to_dict")
    return {
        "api": {name: exported(getattr(headway, name)) for name in headway.__all__},
        "commands": commands(root),
        "docstrings": dict(docstrings(headway)),
        "environment_variables": surface_texts.environment_variables(sources),
        "families": families(models),
        "file_names": surface_texts.strings(sources, surface_texts.FILE_NAME),
        "http": openapi(),
        "metrics": surface_texts.strings(sources, surface_texts.METRIC),
        "presets": {name: {**to_dict(model), **abilities(model)} for name, model in presets.items()},
        "recipes": {name: {**to_dict(recipe), **abilities(recipe.model)} for name, recipe in recipes.items()},
        "listed": {"recipes": headway.recipes(), "presets": headway.presets()},
        "settings": settings(headway.Recipe),
        "messages": surface_texts.messages(sources),
    }


def address(name: str) -> Any:
    """What is at the first of the `ADDRESSES` of a name that exists."""
    for place in ADDRESSES[name]:
        module, _, attribute = place.partition(":")
        with contextlib.suppress(ImportError, AttributeError):
            return getattr(import_module(module), attribute)
    sys.exit(f"headway has no {' or '.join(ADDRESSES[name])}; add the new address to ADDRESSES of {__file__}")


def plain(value: Any) -> Any:
    """A value for JSON. Equal dictionaries in a row, such as the blocks of a model, become one with their number."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted(map(plain, value))
    if isinstance(value, (list, tuple)):
        items = [(item, len(list(equal))) for item, equal in itertools.groupby(map(plain, value))]
        parts = [[{"repeated": n, **item}] if isinstance(item, dict) and n > 1 else [item] * n for item, n in items]
        return list(itertools.chain.from_iterable(parts))
    return value if value is None or isinstance(value, (bool, int, float, str)) else as_text(value)


def as_text(value: Any) -> str:
    """A value as text, without addresses in memory."""
    if isinstance(value, type) or inspect.isroutine(value):
        return value.__name__
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))


# Python


def exported(value: Any) -> Any:
    """An exported function, class or constant."""
    if inspect.isfunction(value):
        return {"function": signature(value)}
    if not isinstance(value, type):
        return {"constant": plain(value)}
    bases = [base.__name__ for base in value.__mro__[1:] if base.__module__ == "builtins" and base is not object]
    members: dict[str, Any] = {}
    for name in dir(value):
        owner = next(base for base in value.__mro__ if name in vars(base))
        if not name.startswith("_") and owner.__module__ != "builtins":
            members[name] = member(inspect.getattr_static(value, name))
    return {
        "class": signature(value),
        "bases": bases,
        "members": members,
        "attributes": sorted(attributes(value) - members.keys()),
        "overloads": overloads(value),
    }


def member(value: Any) -> str:
    """A method with its signature, a property with its type, or a class attribute with its value."""
    if isinstance(value, (staticmethod, classmethod)):
        return f"{type(value).__name__}{signature(value.__func__)}"
    if inspect.isfunction(value) or hasattr(value, "__signature__"):
        return signature(value)
    getter = getattr(value, "fget", None) or getattr(value, "func", None)  # of a property, of a cached property
    if getter is not None:
        return f"property{signature(getter).partition(')')[2]}"
    return "field" if type(value).__name__ == "_tuplegetter" else f"= {as_text(value)}"


def signature(function: Any) -> str:
    try:
        parsed = inspect.signature(function)
    except ValueError:  # of an exception that inherits its constructor
        return "(...)"
    parts = []
    stars = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    for parameter in parsed.parameters.values():
        has_star = any(part.startswith("*") for part in parts)
        if parameter.kind is parameter.KEYWORD_ONLY and not has_star:
            parts.append("*")
        text = stars.get(parameter.kind, "") + parameter.name
        if parameter.annotation is not parameter.empty:
            text += f": {annotation(parameter.annotation)}"
        parts.append(text if parameter.default is parameter.empty else f"{text} = {as_text(parameter.default)}")
    result = parsed.return_annotation
    return f"({', '.join(parts)})" + ("" if result is parsed.empty else f" -> {annotation(result)}")


def annotation(value: Any) -> str:
    """An annotation without quotes, modules and names of private classes, which may change."""
    value = getattr(value, "__forward_arg__", value)
    text = value if isinstance(value, str) else inspect.formatannotation(value)
    text = re.sub(r"\b(?:[a-z_]\w*\.)+(?=[A-Za-z_])|['\"]", "", text)
    return re.sub(r"\b_[A-Z]\w*", "PRIVATE", text)


@cache
def source_classes(path: Path) -> dict[str, ast.ClassDef]:
    tree = ast.parse(path.read_text()) if path.exists() else ast.Module([], [])
    return {node.name: node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}


def own_classes(cls: type) -> Iterator[ast.ClassDef]:
    """The source of a class and of its bases in headway, that of a stub (.pyi) first."""
    for base in cls.__mro__:
        if base.__module__.split(".")[0] == "headway":
            path = Path(inspect.getfile(base))
            for classes in (source_classes(path.with_suffix(".pyi")), source_classes(path)):
                yield from [classes[base.__name__]] if base.__name__ in classes else []


def attributes(cls: type) -> set[str]:
    """Names of the public attributes that methods of a class set."""
    return {
        node.attr
        for source in own_classes(cls)
        for node in ast.walk(source)
        if isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Store)
        and ast.unparse(node.value) == "self"
        and not node.attr.startswith("_")
    }


def overloads(cls: type) -> dict[str, list[str]]:
    """The signatures of overloaded methods, as type checkers read them."""
    signatures: dict[str, list[str]] = {}
    for source in own_classes(cls):
        for node in source.body:
            if isinstance(node, surface_texts.Function) and "overload" in map(ast.unparse, node.decorator_list):
                result = f" -> {annotation(ast.unparse(node.returns))}" if node.returns else ""
                text = f"({annotation(ast.unparse(node.args))}){result}"
                if text not in signatures.setdefault(node.name, []):
                    signatures[node.name].append(text)
    return signatures


def docstrings(package: types.ModuleType) -> Iterator[tuple[str, str]]:
    yield "headway", inspect.getdoc(package) or ""
    for name in package.__all__:
        value = getattr(package, name)
        if isinstance(value, type) or inspect.isfunction(value):
            yield name, inspect.getdoc(value) or ""
        for part in dir(value) if isinstance(value, type) else ():
            owner = next(base for base in value.__mro__ if part in vars(base))
            thing = inspect.getattr_static(value, part)
            if not part.startswith("_") and owner.__module__.startswith("headway") and not isinstance(thing, type):
                yield f"{name}.{part}", inspect.getdoc(thing) or ""


# Commands


class Parsed(BaseException):
    """Raised where a command would parse its arguments."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self.parser = parser


def commands(root: Path) -> dict[str, Any]:
    """The overview, and the parser of each command that it lists."""
    scripts = tomllib.loads((root / "pyproject.toml").read_text())["project"]["scripts"]
    module, _, name = scripts["headway"].partition(":")
    entry_point = getattr(import_module(module), name)
    overview = command(entry_point)
    assert isinstance(overview, str)
    names = re.findall(r"^  ([a-z]+(?: [a-z]+)?) {2,}\S", overview, re.MULTILINE)
    result: dict[str, Any] = {"overview": overview.splitlines()}
    for name in names:
        parser = command(entry_point, *name.split())
        assert isinstance(parser, argparse.ArgumentParser), name
        result[name] = describe_parser(parser)
    for group in {name.split()[0] for name in names if " " in name}:
        answer = command(entry_point, group)
        result[f"{group} (group)"] = answer.splitlines() if isinstance(answer, str) else answer.prog
    return result


def command(entry_point: Any, *arguments: str) -> argparse.ArgumentParser | str:
    """The parser that a command uses, or the output of one that parses nothing."""

    def stop(parser: argparse.ArgumentParser, *_: Any) -> Any:
        raise Parsed(parser)

    original = argparse.ArgumentParser.parse_known_args
    argparse.ArgumentParser.parse_known_args = stop  # type: ignore[method-assign]
    output = io.StringIO()
    try:
        with contextlib.redirect_stdout(output):
            entry_point(list(arguments))
    except Parsed as parsed:
        return parsed.parser
    finally:
        argparse.ArgumentParser.parse_known_args = original  # type: ignore[method-assign]
    return output.getvalue()


def describe_parser(parser: argparse.ArgumentParser) -> dict[str, Any]:
    arguments: dict[str, Any] = {}
    for action in parser._actions:
        arguments[", ".join(action.option_strings) or action.dest] = {
            "action": type(action).__name__.strip("_"),
            "dest": action.dest,
            "nargs": action.nargs,
            "const": plain(action.const),
            "default": plain(action.default),
            "required": action.required,
            "choices": plain(list(action.choices)) if action.choices is not None else None,
            "metavar": plain(action.metavar),
            "help": parser._get_formatter()._expand_help(action) if action.help else action.help,
            "accepts": accepted(action.type) if callable(action.type) else None,
        }
    return {
        "usage": " ".join(parser.format_usage().split()),
        "description": parser.description,
        "epilog": parser.epilog,
        "positional": [action.dest for action in parser._actions if not action.option_strings],
        "arguments": arguments,
        "groups": {
            group.title: [action.dest for action in group._group_actions] for group in parser._action_groups[2:]
        },
        "exclusive": [[action.dest for action in group._group_actions] for group in parser._mutually_exclusive_groups],
    }


def accepted(convert: Any) -> dict[str, str]:
    """What a type of options makes of each of the `PROBES`: a value, or the message of an error."""
    results = {}
    for text in PROBES:
        try:
            results[text] = as_text(convert(text))
        except argparse.ArgumentTypeError as error:
            results[text] = f"error: {error}"
        except Exception as error:
            results[text] = f"error: {type(error).__name__}"
    return results


# The server


def openapi() -> Any:
    """The document that a server returns; no model is loaded."""
    app = address("create_app")(None, address("server_settings")(log=False))
    scope = {
        "type": "http",
        "method": "GET",
        "path": "/openapi.json",
        "raw_path": b"/openapi.json",
        "query_string": b"",
        "headers": [(b"host", b"localhost")],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
        "scheme": "http",
        "http_version": "1.1",
        "root_path": "",
    }
    messages: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        messages.append(message)

    asyncio.run(app(scope, receive, send))
    return json.loads(b"".join(message.get("body", b"") for message in messages))


# Models, recipes and settings


def abilities(model: Any) -> dict[str, list[str]]:
    """The names of a model's tensors, with # for numbers of layers, and its verbs. Allocates no memory."""
    import torch  # pyright: ignore[reportMissingImports]

    with torch.device("meta"):
        names = numbered(model.build(None).state_dict())
    return {"tensors": names, "verbs": address("verbs")(model, address("usage")(), True)}


def numbered(names: Iterable[str]) -> list[str]:
    return sorted({re.sub(r"\d+", "#", name) for name in names})


def families(models: Mapping[str, Any]) -> dict[str, Any]:
    known, can_express = address("families")(), address("can_express")
    result: dict[str, Any] = {"gguf": {"read": sorted(address("gguf_dialects")), "written": address("gguf_writable")}}
    for name, family in known.items():
        tables = {field.name: getattr(family, field.name) for field in dataclasses.fields(family)}
        written_models = {}
        for model_name, model in models.items():
            if can_express(family, model):
                sources = (source for rule in family.rules(model) if not rule.is_copy for source in rule.sources)
                written_models[model_name] = {"config.json": family.write(model), "tensors": numbered(sources)}
        result[name] = {key: plain(value) for key, value in tables.items() if not inspect.isroutine(value)}
        result[name]["written"] = written_models
    return result


def settings(recipe: type) -> dict[str, Any]:
    """The settings below a recipe, each class once, by the shortest path that `--set` takes to it; PATH=KIND is a kind
    of the family at PATH.
    """
    paths: dict[type, str] = {recipe: "recipe"}
    waiting = [recipe]
    kinds_of: dict[type, dict[str, type]] = {}
    while waiting:
        cls = waiting.pop(0)
        with contextlib.suppress(KeyError):  # which is no family
            kinds = sorted(address("kinds")(cls).items(), key=lambda item: (item[0] != "transformer", item[0]))
            kinds_of[cls] = {kind: part for kind, part in kinds if is_own(part)}  # most paths start at a transformer
        for kind, part in kinds_of.get(cls, {}).items():
            if part not in paths:
                paths[part] = f"{paths[cls]}={kind}"
                waiting.append(part)
        for name, hint in sorted(hints(cls).items()):
            for part in classes_within(hint):
                if part not in paths:
                    paths[part] = name if cls is recipe else f"{paths[cls]}.{name}"
                    waiting.append(part)
    renamed = address("renamed_settings")
    return {
        path: {
            "fields": {
                field.name: {"type": typed(hints(cls)[field.name], paths), "default": default(field)}
                for field in dataclasses.fields(cls)
            },
            "kinds": sorted(kinds_of.get(cls, {})),
            "shortcuts": {name: inspect.getdoc(setter) or "" for name, setter in address("shortcuts")(cls).items()},
            "old_names": {old: new for base in cls.__mro__ for old, new in renamed.get(base.__name__, {}).items()},
        }
        for cls, path in paths.items()
    }


def is_own(cls: Any) -> bool:
    return isinstance(cls, type) and cls.__module__.split(".")[0] == "headway" and dataclasses.is_dataclass(cls)


def hints(cls: type) -> dict[str, Any]:
    names = {field.name for field in dataclasses.fields(cls)}
    return {name: hint for name, hint in typing.get_type_hints(cls, include_extras=True).items() if name in names}


def classes_within(hint: Any) -> Iterator[type]:
    """The config classes that a type consists of."""
    if is_own(hint):
        yield hint
    for part in get_args(hint):
        yield from classes_within(part)


def typed(hint: Any, paths: Mapping[type, str]) -> str:
    """A type as text, with <PATH> for config classes."""
    origin, parts = get_origin(hint), get_args(hint)
    if isinstance(hint, type) and hint in paths:
        return f"<{paths[hint]}>"
    if origin is Literal:
        return " | ".join(map(repr, parts))
    if origin is Annotated:
        checks = ", ".join(map(as_text, parts[1:]))
        return f"{typed(parts[0], paths)} ({checks})"
    if origin in (Union, types.UnionType):
        return " | ".join(typed(part, paths) for part in parts)
    if parts:
        return f"{getattr(origin, '__name__', origin)}[{', '.join(typed(part, paths) for part in parts)}]"
    return {type(None): "None", Ellipsis: "..."}.get(hint) or as_text(hint)


def default(field: dataclasses.Field[Any]) -> Any:
    if field.default is not dataclasses.MISSING:
        return address("to_dict")(field.default)
    if field.default_factory is not dataclasses.MISSING:
        return address("to_dict")(field.default_factory())
    return "required"


if __name__ == "__main__":
    main()
