"""verbs.pyi: the types of the verbs of models, from the signatures and docstrings of their predictors.

A predictor for one item or several has the first argument `A | Iterable[A]` and returns `R | list[R]`; the stub has an
overload for each. With an argument `n_best` each result is a list if it is set, and with `scores` the results are the
last two that the predictor returns.
"""

from __future__ import annotations

import ast
import builtins
import inspect
import subprocess
import sys
from functools import cache
from importlib import import_module
from inspect import Parameter
from pathlib import Path

from headway.app import verbs
from headway.app.predictors import alternatives, predictors, signature

HEAD = """# Written by `python docs/reference.py` from the predictors of the domains; do not edit.
# ruff: noqa
from typing import Literal, overload
"""
ROOT = Path(__file__).parents[2]
STUB = "src/headway/app/verbs.pyi"
_MODULES = {"numpy": "np"}  # modules in annotations, and what they are imported as


def verbs_stub() -> str:
    """The text of verbs.pyi."""
    parts: list[str] = []
    imports: set[str] = set()
    for cls in (verbs.LocalVerbs, verbs.RemoteVerbs):
        parts += ["", f"class {cls.__name__}:"]
        for name, method in vars(cls).items():
            if isinstance(method, verbs.VerbMethod):
                parts += _method(name, method.__doc__ or "", imports)
    text = "\n".join([HEAD, *sorted(imports), *parts])
    command = [sys.executable, "-m", "ruff", "format", "--stdin-filename", STUB, "-"]
    return subprocess.run(command, cwd=ROOT, input=text, check=True, stdout=subprocess.PIPE, text=True).stdout


def _method(verb: str, doc: str, imports: set[str]) -> list[str]:
    """A method, or its overloads; the docstring is in the first. Adds to the imports what the annotations need."""
    modules = {inspect.unwrap(function).__module__: None for function in predictors(verb)}
    parameters = [
        parameter.replace(annotation=_qualified(parameter.annotation, list(modules), imports))
        for parameter in list(signature(verb).parameters.values())[1:]
    ]
    returned = _qualified(signature(verb).return_annotation, list(modules), imports)
    results = alternatives(returned)
    inputs = [part for part in alternatives(parameters[0].annotation) if part != "None"]
    if len(results) < 2 or len(inputs) < 2:
        return _definition(verb, parameters, {}, returned, doc, is_overload=False)
    first, names = parameters[0].name, {parameter.name for parameter in parameters}
    one, many = {first: " | ".join(inputs[0::2])}, {first: " | ".join(inputs[1::2])}
    variants = [(one, results[0]), (many, results[1])]
    if "n_best" in names:
        lists = [({**changes, "n_best": "int"}, f"list[{result}]") for changes, result in variants]
        variants = [({**changes, "n_best": "None"}, result) for changes, result in variants] + lists
    if "scores" in names:
        variants = [({**changes, "scores": "Literal[False]"}, result) for changes, result in variants]
        scored = {"scores": "Literal[True]"}
        variants += [({**one, **scored}, results[-2]), ({**many, **scored}, results[-1])]
    if len(variants) > 2:
        variants.append(({}, returned))  # for values whose type is not known that precisely
    return [
        line
        for number, (changes, result) in enumerate(variants)
        for line in _definition(verb, parameters, changes, result, "" if number else doc, is_overload=True)
    ]


def _definition(
    verb: str, parameters: list[Parameter], changes: dict[str, str], result: str, doc: str, is_overload: bool
) -> list[str]:
    """The lines of a method, with the annotations that `changes` names. A changed one that excludes the default makes
    its parameter, and those after it, keyword-only.
    """
    arguments = ["self"]
    for parameter in parameters:
        annotation = changes.get(parameter.name, parameter.annotation)
        was_optional = parameter.default is not Parameter.empty
        has_default = was_optional and changes.get(parameter.name) not in ("int", "Literal[True]")
        if was_optional and not has_default:
            arguments.append("*")
        is_plain = isinstance(parameter.default, (str, int, float, tuple, type(None))) and not is_overload
        default = f" = {repr(parameter.default) if is_plain else '...'}" if has_default else ""
        arguments.append(f"{parameter.name}: {annotation}{default}")
    head = f"    def {verb}({', '.join(arguments)}) -> {result}:"
    body = inspect.cleandoc(doc).splitlines()
    closing = ['        """'] if len(body) > 1 else []
    text = [f"        {line}".rstrip() for line in body]
    lines = [f'        """{body[0]}' + ("" if closing else '"""'), *text[1:], *closing] if body else []
    return [*(["    @overload"] if is_overload else []), head, *lines, "        ..."]


def _qualified(annotation: str, modules: list[str], imports: set[str]) -> str:
    """An annotation, with names from headway as attributes of the predictors' modules that use them."""
    tree = ast.parse(annotation, mode="eval")
    for node in ast.walk(tree):
        if not isinstance(node, ast.Name) or hasattr(builtins, node.id):
            continue
        module = next(module for module in modules if node.id in _names(module))
        origin = _names(module)[node.id]
        if origin.startswith("headway"):
            alias = f"_{module.removesuffix('.predictors').rpartition('.')[2]}"
            imports.add(f"import {module} as {alias}")
            node.id = f"{alias}.{node.id}"
        else:
            is_module = node.id == _MODULES.get(origin)
            imports.add(f"import {origin} as {node.id}" if is_module else f"from {origin} import {node.id}")
    return ast.unparse(tree)


@cache
def _names(module: str) -> dict[str, str]:
    """The names of a module, each with the module that defines it."""
    names: dict[str, str] = {}
    for node in ast.walk(ast.parse(inspect.getsource(import_module(module)))):
        if isinstance(node, ast.ImportFrom):
            names |= {alias.name: str(node.module) for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {_MODULES[alias.name]: alias.name for alias in node.names if alias.name in _MODULES}
        elif isinstance(node, ast.Assign):
            names |= {ast.unparse(target): module for target in node.targets}
        elif isinstance(node, ast.ClassDef):
            names[node.name] = module
    return names
