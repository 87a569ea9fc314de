"""Measure the size and the structure of the package, so that a change can be compared with the code before it.

    python benchmarks/house.py                    # figures of this tree as JSON
    python benchmarks/house.py FOLDER             # figures of another checkout
    python benchmarks/house.py --write before     # also store them as a row of results/house.json; or: after
    python benchmarks/house.py --called-once      # list the short functions with one caller instead
    python benchmarks/house.py --check            # fail if a figure is worse than in that row, as `make lint` does

The figures describe the files of src/headway:

- `tokens_per_code_line`: Tokens except layout and comments, per line that contains code. Lines of docstrings, comments
  and blank lines are not lines of code.
- `header_share`: The share of lines before the first statement of a file that is not a docstring or an import.
- `mean_function_body`: Lines from the first statement after the docstring to the end of the function, including blank
  lines and comments between them. Decorators and the signature are not counted. A nested function counts as a function
  and within the body of the outer one. A function that consists of its docstring has 0 lines.
- `private_functions_used_once`: A private name that occurs once in the package in addition to its definition.
- `short_functions_called_once`: Functions with a body of less than six lines and one call, public and nested ones
  included. They are found by name, in the file for private and nested functions and in the package for others. A
  function counts if its name has one definition there and one reference, which is a call; strings and attributes of
  other objects with this name count as references. Left out are dunder methods, decorated functions, functions without
  statements, methods of protocols, and methods that a base class or a subclass in the package defines as well.
- `import_cycles`: Files that import each other, directly or not: the strongly connected components of the imports,
  including those in functions and under TYPE_CHECKING. An import of a name from a package counts for its `__init__`.
- `closure_of_a_forward`: The files that module-level imports reach from the model of the recipe `text` and its loss.
- `loaded_by_a_forward`: The modules in `sys.modules` after a language model has computed a loss and its gradients.
  The `__init__` of packages do not run, because they import modules that the computation does not need.
- `loaded_by_a_forward_with_packages`: The same as a user would run it.
- `modules_loaded`: The number of modules of the package in `sys.modules` after `hw.load` of a small language model.

`--check` allows `tokens_per_code_line` and `mean_function_body` to be 1 % worse. Both count lines, so a table or a call
that is written on one line instead of one line per item changes them, although the code is the same. All such lines of
the package together were about half of this tolerance.
"""

from __future__ import annotations

import argparse
import ast
import gc
import io
import json
import os
import re
import subprocess
import sys
import tokenize
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks/results/house.json"
MODELS = {"Transformer", "EncoderDecoder", "TwoTower", "Captioner", "Act", "Trajectories", "Model"}
LAYOUT = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
FORWARD = ("headway.nn.models.transformer", "headway.nn.kernels.cross_entropy", "headway.nn.models.heads")
SHORT = 6  # lines of a function body from which a function is not short
MAX_LINES = 600  # of a file
LAYOUT_TOLERANCE = 0.01  # relative, of figures that count lines
Function = ast.FunctionDef | ast.AsyncFunctionDef
Trees = Mapping[str, ast.Module]  # by the name of the module

RUN_FORWARD = """
import json, sys, types
from pathlib import Path

source, with_packages = Path(sys.argv[1]), sys.argv[2] == "with packages"
if not with_packages:
    for init in (source / "headway").rglob("__init__.py"):
        package = types.ModuleType(".".join(init.parent.relative_to(source).parts))
        package.__path__ = [str(init.parent)]
        sys.modules[package.__name__] = package

import torch
from headway.nn.mixers.attention import AttentionConfig
from headway.nn.models.block import BlockConfig
from headway.nn.models.stack import StackConfig
from headway.nn.models.transformer import TransformerConfig
from headway.visibility import Causal

block = BlockConfig(mixer=AttentionConfig(heads=2, pattern=Causal()))
model = TransformerConfig(width=16, vocab_size=32, stack=StackConfig((block,))).build()
ids = torch.zeros(2, 8, dtype=torch.long)
model.heads["vocabulary"].loss(model(ids).x, ids).total.backward()
modules = [module for name, module in sys.modules.items() if name.split(".")[0] == "headway"]
print(json.dumps(sorted(module.__file__ for module in modules if getattr(module, "__file__", None))))
"""
LOAD = "import sys, headway; headway.load(sys.argv[1]); print(sum(m.split('.')[0] == 'headway' for m in sys.modules))"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT, help="checkout to measure (default: this one)")
    parser.add_argument("--write", choices=("before", "after"), help="row of results/house.json to store")
    parser.add_argument("--check", action="store_true", help="compare this tree with the stored row `after`")
    parser.add_argument("--called-once", action="store_true", help="list the short functions with one caller")
    args = parser.parse_args()
    root = args.folder.resolve()
    gc.disable()  # a million nodes stay to the end, and it would look through them again and again
    if args.called_once:
        print("\n".join(short_functions_called_once(parse(read_sources(root)))))
        return
    if args.check:
        check(structure(read_sources(root)), json.loads(RESULTS.read_text())["after"])
        return
    figures = measure(root)
    print(json.dumps(figures, indent=1))
    if args.write:
        write_row(args.write, root, figures)


def check(figures: dict[str, Any], stored: dict[str, Any]) -> None:
    """Exit with an error if the structure is worse than stored: lines may grow with features, these figures not."""
    ours, theirs = (
        {
            "mean function body": -row["mean_function_body"],
            "tokens per line of code": row["tokens_per_code_line"],
            "short functions with one caller": row["short_functions_called_once"],
            "import cycles": len(row["import_cycles"]),
            "lines that a forward imports": row["closure_of_a_forward"]["lines"],
            "lines of the longest file": max(row["longest_file"], MAX_LINES),
        }
        for row in (figures, stored)
    )
    limits = dict(theirs)
    for name in ("mean function body", "tokens per line of code"):
        limits[name] += LAYOUT_TOLERANCE * abs(limits[name])
    worse = [f"{name}: {abs(ours[name])}, was {abs(theirs[name])}" for name in ours if ours[name] > limits[name]]
    if worse:
        sys.exit("the structure became worse than in benchmarks/results/house.json:\n" + "\n".join(worse))


def write_row(name: str, root: Path, figures: dict[str, Any]) -> None:
    """Store the figures with the commit that they describe; exit with an error if src has uncommitted changes."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=root, check=True, capture_output=True, text=True).stdout.strip()

    if git("status", "--porcelain", "--", "src"):
        sys.exit(f"{root}/src has changes that are not committed; commit them, because a row names its commit")
    rows = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    rows[name] = {"revision": git("rev-parse", "HEAD"), **figures}
    RESULTS.write_text(json.dumps(rows, indent=1) + "\n")


def read_sources(root: Path) -> dict[str, str]:
    """The text of each module of the package."""
    source = root / "src"
    paths = sorted((source / "headway").rglob("*.py"))
    return {
        ".".join(path.relative_to(source).with_suffix("").parts).removesuffix(".__init__"): path.read_text()
        for path in paths
    }


def parse(texts: Mapping[str, str]) -> dict[str, ast.Module]:
    return {name: ast.parse(text) for name, text in texts.items()}


def structure(texts: Mapping[str, str]) -> dict[str, Any]:
    """The figures that follow from the sources alone."""
    trees = parse(texts)
    lines = {name: text.count("\n") for name, text in texts.items()}
    functions = [node for tree in trees.values() for node in nodes(tree) if isinstance(node, Function)]
    classes = Counter(node.name for tree in trees.values() for node in nodes(tree) if isinstance(node, ast.ClassDef))
    private = Counter(node.name for node in functions if re.match(r"_[^_]", node.name))
    num_tokens, num_code_lines, names = 0, 0, Counter[str]()
    for name, text in texts.items():
        tokens = [token for token in tokenize.generate_tokens(io.StringIO(text).readline) if token.type not in LAYOUT]
        num_tokens += len(tokens)
        names.update(token.string for token in tokens if token.type == tokenize.NAME)
        covered = {line for token in tokens for line in range(token.start[0], token.end[0] + 1)}
        num_code_lines += len(covered - docstring_lines(trees[name]))
    packages: dict[str, dict[str, int]] = {}
    for name in texts:
        package = packages.setdefault(package_of(name, texts), {"files": 0, "lines": 0})
        package["files"] += 1
        package["lines"] += lines[name]
    imports = {name: set(imported_modules(tree.body, texts)) for name, tree in trees.items()}
    all_imports = {name: set(imported_modules(nodes(tree), texts)) for name, tree in trees.items()}
    reached = reachable(imports, FORWARD)
    outside = [tree for name, tree in trees.items() if not name.startswith(("headway.nn.models", "headway.engine"))]
    return {
        "files": len(texts),
        "lines": sum(lines.values()),
        "tokens": num_tokens,
        "code_lines": num_code_lines,
        "tokens_per_code_line": round(num_tokens / num_code_lines, 2),
        "longest_file": max(lines.values()),
        "packages": dict(sorted(packages.items())),
        "header_share": round(sum(header_lines(trees[name], lines[name]) for name in texts) / sum(lines.values()), 3),
        "functions": len(functions),
        "mean_function_body": round(sum(map(body_lines, functions)) / len(functions), 2),
        "short_functions_called_once": len(short_functions_called_once(trees)),
        "private_functions": sum(private.values()),
        "private_functions_used_once": sum(count for name, count in private.items() if names[name] == 2 * count),
        "import_cycles": import_cycles(all_imports),
        "closure_of_a_forward": {"files": len(reached), "lines": sum(lines[name] for name in reached)},
        "isinstance_of_models_outside": sum(map(count_model_checks, outside)),
        "class_names_twice": {name: count for name, count in sorted(classes.items()) if count > 1},
    }


def measure(root: Path) -> dict[str, Any]:
    formatting = subprocess.run(
        [sys.executable, "-m", "ruff", "format", "--check", "src"], cwd=root, capture_output=True, text=True
    )
    return {
        **structure(read_sources(root)),
        "unformatted_files": formatting.stdout.count("Would reformat: "),
        "loaded_by_a_forward": loaded_by_a_forward(root, "without packages"),
        "loaded_by_a_forward_with_packages": loaded_by_a_forward(root, "with packages"),
        "modules_loaded": modules_loaded(root),
    }


def package_of(module: str, modules: Mapping[str, str]) -> str:
    """The package of the first level: "nn" for headway.nn.models.stack, "headway" for files of the top level."""
    first = module.split(".")[1:2]
    is_package = first and any(name.startswith(f"headway.{first[0]}.") for name in modules)
    return first[0] if is_package else "headway"


def header_lines(tree: ast.Module, num_lines: int) -> int:
    """Lines before the first statement that is not a docstring or an import."""
    for node in tree.body:
        is_text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if not is_text and not isinstance(node, (ast.Import, ast.ImportFrom)):
            return first_line(node) - 1
    return num_lines


def first_line(node: ast.stmt) -> int:
    """The line on which a statement or its first decorator starts."""
    return min([node.lineno, *(decorator.lineno for decorator in getattr(node, "decorator_list", []))])


@cache
def nodes(tree: ast.Module) -> tuple[ast.AST, ...]:
    """The tree and all nodes below it, which every figure goes through."""
    return tuple(ast.walk(tree))


def docstring_lines(tree: ast.Module) -> set[int]:
    lines: set[int] = set()
    for node in nodes(tree):
        has_body = isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
        if has_body and ast.get_docstring(node) is not None:
            lines.update(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    return lines


def statements(function: Function) -> list[ast.stmt]:
    """The statements of a function after its docstring."""
    return function.body[1:] if ast.get_docstring(function) is not None else function.body


def body_lines(function: Function) -> int:
    body = statements(function)
    return (function.end_lineno or 0) - first_line(body[0]) + 1 if body else 0


def short_functions_called_once(trees: Trees) -> list[str]:
    """Each as MODULE:LINE NAME; see the module's docstring for what is counted."""
    references = {module: Counter(referenced_names(tree)) for module, tree in trees.items()}
    calls = {module: Counter(called_names(tree)) for module, tree in trees.items()}
    definitions = {
        module: Counter(node.name for node in nodes(tree) if isinstance(node, Function))
        for module, tree in trees.items()
    }
    in_package = [Counter[str](), Counter[str](), Counter[str]()]
    for total, counters in zip(in_package, (references, calls, definitions)):
        for counter in counters.values():
            total.update(counter)
    inherited = inherited_methods(trees)
    names = []
    for module, tree in trees.items():
        in_file = [references[module], calls[module], definitions[module]]
        for function, outer in functions_with_outer(tree):
            name, body = function.name, statements(function)
            is_method = isinstance(outer, ast.ClassDef)
            is_empty = not body or ast.unparse(body[0]) in ("...", "pass", "raise NotImplementedError")
            is_dunder = name.startswith("__") and name.endswith("__")
            if is_dunder or is_empty or function.decorator_list or body_lines(function) >= SHORT:
                continue
            if is_method and (outer.name, name) in inherited:
                continue
            is_local = name.startswith("_") or isinstance(outer, Function)
            if [counter[name] for counter in (in_file if is_local else in_package)] == [1, 1, 1]:
                names.append(f"{module}:{function.lineno} {name}")
    return names


def functions_with_outer(tree: ast.AST, outer: ast.AST | None = None) -> Iterator[tuple[Function, ast.AST | None]]:
    """All functions, each with the class or function that contains it."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, Function):
            yield node, outer
        yield from functions_with_outer(node, node if isinstance(node, (ast.ClassDef, Function)) else outer)


def referenced_names(tree: ast.Module) -> Iterator[str]:
    for node in nodes(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.isidentifier():
            yield node.value  # of a table of exports, or of getattr
        elif isinstance(node, ast.alias) and node.asname:
            yield node.name


def called_names(tree: ast.Module) -> Iterator[str]:
    for node in nodes(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, (ast.Name, ast.Attribute)):
            yield node.func.id if isinstance(node.func, ast.Name) else node.func.attr


def inherited_methods(trees: Trees) -> set[tuple[str, str]]:
    """Pairs of a class and a method that a base class or subclass defines as well, or that belongs to a protocol."""
    classes = {node.name: node for tree in trees.values() for node in nodes(tree) if isinstance(node, ast.ClassDef)}
    bases = {name: {ast.unparse(b).split("[")[0].split(".")[-1] for b in node.bases} for name, node in classes.items()}
    methods = {name: {part.name for part in node.body if isinstance(part, Function)} for name, node in classes.items()}
    pairs = {(name, method) for name in classes if "Protocol" in bases[name] for method in methods[name]}
    for name in classes:
        for base in reachable(bases, bases[name]) & classes.keys():
            for method in methods[name] & methods[base]:
                pairs |= {(name, method), (base, method)}
    return pairs


def imported_modules(tree_nodes: Sequence[ast.AST], modules: Mapping[str, Any]) -> Iterator[str]:
    """The modules of the package that the imports among these nodes name."""
    for node in tree_nodes:
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("headway"):
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                yield submodule if submodule in modules else node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules)


def reachable(graph: Mapping[str, set[str]], starts: Sequence[str] | set[str]) -> set[str]:
    """All nodes on paths from the starts, these included."""
    reached: set[str] = set()
    waiting = list(starts)
    while waiting:
        name = waiting.pop()
        if name not in reached:
            reached.add(name)
            waiting.extend(graph.get(name, ()))
    return reached


def import_cycles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """The files of each cycle, the largest cycle first."""
    reached = {name: reachable(graph, graph[name]) for name in graph}
    cycles = {frozenset(other for other in reached[name] if name in reached.get(other, ())) for name in graph}
    return sorted((sorted(cycle) for cycle in cycles if len(cycle) > 1), key=lambda cycle: (-len(cycle), cycle))


def count_model_checks(tree: ast.Module) -> int:
    """The number of isinstance(x, M) where M, or an item of a tuple, is a model."""
    calls = [
        node for node in nodes(tree) if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "isinstance"
    ]
    return sum(
        bool(MODELS & set(re.findall(r"\w+", ast.unparse(call.args[1])))) for call in calls if len(call.args) > 1
    )


def run_python(root: Path, *arguments: str) -> str:
    """The output of Python with the package of a checkout."""
    environment = {**os.environ, "PYTHONPATH": str(root / "src")}
    command = [sys.executable, *arguments]
    return subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout


def loaded_by_a_forward(root: Path, packages: str) -> dict[str, int]:
    paths = json.loads(run_python(root, "-c", RUN_FORWARD, str(root / "src"), packages))
    return {"files": len(paths), "lines": sum(Path(path).read_text().count("\n") for path in paths)}


def modules_loaded(root: Path) -> int:
    with TemporaryDirectory() as folder:
        text = Path(folder) / "text.txt"
        text.write_text("\n".join(f"line {n} of a text about {n % 17}" for n in range(2000)))
        small = ["model.width=16", "model.depth=1", "model.heads=2", "task.size=300", "train.steps=1"]
        options = ["--data", str(text), "--run", f"{folder}/run", "--set", *small]
        run_python(root, "-m", "headway", "train", "text", *options)
        return int(run_python(root, "-c", LOAD, f"{folder}/run"))


if __name__ == "__main__":
    main()
