"""What users see of headway that only its source shows: messages, environment variables, names of files and metrics."""

from __future__ import annotations

import ast
import itertools
import re
from collections import ChainMap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

FILE_NAME = re.compile(
    r"[\w\-]*(\.\w+)*\.(aac|aiff|bin|bmp|bz2|ckpt|csv|epd|flac|gguf|gif|gz|h5|hdf5|html|jinja|jpeg|jpg|json|jsonl|lock"
    r"|m4a|md|mkv|mov|mp3|mp4|npy|npz|ods|ogg|onnx|opus|parquet|pbm|pdf|pgm|pgn|png|ppm|pt|pth|safetensors|spm|srt|svg"
    r"|tar|tif|tiff|tiktoken|tsv|txt|vtt|wav|webm|webp|wma|xls|xlsm|xlsx|xz|zip|zst)"
)
METRIC = re.compile(r"headway_[a-z_]+")
LOG_METHODS = {"debug", "info", "warning", "error", "exception"}
PRINT_METHODS = {"note", "print", "print_result", "print_line"}
MAX_COMBINATIONS = 64  # templates of one expression that has several conditional parts
MAX_DEPTH = 3  # names of names that are followed to their values
Function = ast.FunctionDef | ast.AsyncFunctionDef
Values = Mapping[str, Sequence[ast.expr]]  # the expressions that are assigned to each name


class Source(NamedTuple):
    """A file of the package, with all nodes of its tree, outer ones first."""

    text: str
    tree: ast.Module
    nodes: list[ast.AST]


def read_sources(root: Path) -> list[Source]:
    texts = [path.read_text() for path in sorted((root / "src/headway").rglob("*.py"))]
    trees = [ast.parse(text) for text in texts]
    return [Source(text, tree, list(ast.walk(tree))) for text, tree in zip(texts, trees)]


def strings(sources: Iterable[Source], pattern: re.Pattern[str]) -> list[str]:
    """The strings in the source that a pattern matches completely."""
    constants = (node.value for source in sources for node in source.nodes if isinstance(node, ast.Constant))
    return sorted({value for value in constants if isinstance(value, str) and pattern.fullmatch(value)})


def environment_variables(sources: Sequence[Source]) -> list[str]:
    """Variables that os.environ or os.getenv reads, with {} for computed parts. Names of constants, and of loops over
    constants, are replaced by their values.
    """
    variables: set[str] = set()
    constants = assigned(node for source in sources for node in source.tree.body)
    for source in sources:
        if "environ" not in source.text and "getenv" not in source.text:
            continue
        known = ChainMap(looped(source.nodes), constants)
        for node in source.nodes:
            key = None
            if isinstance(node, ast.Subscript) and ast.unparse(node.value) == "os.environ":
                key = node.slice
            elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("os.getenv", "os.environ.get"):
                key = node.args[0]
            elif isinstance(node, ast.Compare) and ast.unparse(node.comparators[0]) == "os.environ":
                key = node.left
            if key is not None:
                variables |= templates(key, known)
    return sorted(variables)


def looped(nodes: Iterable[ast.AST]) -> dict[str, list[ast.expr]]:
    """What loops and comprehensions iterate over, by the names that they bind."""
    values: dict[str, list[ast.expr]] = {}
    for node in nodes:
        if isinstance(node, (ast.For, ast.comprehension)):
            items, iterable = [node.target], node.iter
            if isinstance(iterable, ast.Call) and isinstance(iterable.func, ast.Attribute):  # TABLE.items()
                iterable = iterable.func.value
            if isinstance(node.target, ast.Tuple):
                items = node.target.elts
            for item in items:
                if isinstance(item, ast.Name):
                    values.setdefault(item.id, []).append(iterable)
    return values


def messages(sources: Sequence[Source]) -> dict[str, list[str]]:
    """Templates of errors, log lines and printed lines: {} stands for a value. The message of an error with an HTTP
    status starts with the status and the code. Messages without a constant part are left out.
    """
    classes = {node.name: node for source in sources for node in source.nodes if isinstance(node, ast.ClassDef)}
    positions = message_positions(classes)
    constants = assigned(node for source in sources for node in source.tree.body)
    templates_of: dict[str, set[str]] = {"errors": set(), "logs": set(), "printed": set()}
    for call, values in (pair for source in sources for pair in calls(source, constants)):
        function = call.func
        name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
        owner = ast.unparse(function.value).lower() if isinstance(function, ast.Attribute) else ""
        if name in positions:
            keywords = {keyword.arg: keyword.value for keyword in call.keywords}
            position = positions[name]
            message = call.args[position] if len(call.args) > position else keywords.get("message")
            prefixes = {""}
            if position:
                status = call.args[0].value if isinstance(call.args[0], ast.Constant) else "{}"
                codes = templates(keywords["code"], values) if "code" in keywords else {"no code"}
                prefixes = {f"[{status} {code}] " for code in codes}
            if message is not None:
                templates_of["errors"] |= {start + text for start in prefixes for text in templates(message, values)}
        elif owner.endswith(("log", "logger")) and name in LOG_METHODS and call.args:
            texts = templates(call.args[0], values)
            templates_of["logs"] |= {re.sub(r"%[-+.\d]*[sdrfg]", "{}", text) for text in texts}
        elif (name == "print" and not owner) or ("terminal" in owner and name in PRINT_METHODS):
            templates_of["printed"] |= {text for argument in call.args for text in templates(argument, values)}
    return {kind: sorted(filter(has_words, texts)) for kind, texts in templates_of.items()}


def has_words(text: str) -> bool:
    return re.search(r"[A-Za-z]{2}", re.sub(r"\{\}|^\[.*?\] ", "", text)) is not None


def message_positions(classes: Mapping[str, ast.ClassDef]) -> dict[str, int]:
    """The classes of errors that users see, each with the position of the message among its arguments."""
    positions = {"UserError": 0, "ArgumentTypeError": 0}
    previous = 0
    while len(positions) > previous:
        previous = len(positions)
        for name, node in classes.items():
            bases = [base for base in (ast.unparse(b).rpartition(".")[2] for b in node.bases) if base in positions]
            if bases and name not in positions:
                makers = [part for part in node.body if isinstance(part, Function) and part.name == "__init__"]
                parameters = [argument.arg for maker in makers for argument in maker.args.args]
                own = parameters.index("message") - 1 if "message" in parameters else None
                positions[name] = positions[bases[0]] if own is None else own
    return positions


def calls(source: Source, constants: Values) -> Iterator[tuple[ast.Call, Values]]:
    """All calls of a file, each with the values of the names that it sees: of its functions, then of the package."""
    scopes: dict[ast.AST, ChainMap[str, Sequence[ast.expr]]] = {}
    module = ChainMap(dict(constants))
    for function in (node for node in source.nodes if isinstance(node, Function)):
        nodes = list(ast.walk(function))
        parameters = {argument.arg: () for argument in [*function.args.args, *function.args.kwonlyargs]}
        scope = scopes.get(function, module).new_child({**parameters, **assigned(nodes)})
        scopes.update((node, scope) for node in nodes if isinstance(node, (ast.Call, Function)))
    for node in source.nodes:
        if isinstance(node, ast.Call):
            yield node, scopes.get(node, module)


def assigned(nodes: Iterable[ast.AST]) -> dict[str, list[ast.expr]]:
    """The expressions that these nodes assign to each name."""
    values: dict[str, list[ast.expr]] = {}
    for node in nodes:
        pairs: list[tuple[ast.expr, ast.expr]] = []
        if isinstance(node, ast.Assign):
            pairs = [(target, node.value) for target in node.targets]
        elif isinstance(node, (ast.AnnAssign, ast.NamedExpr)) and node.value is not None:
            pairs = [(node.target, node.value)]
        for target, value in pairs:
            if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
                pairs += zip(target.elts, value.elts)
            elif isinstance(target, ast.Name):
                values.setdefault(target.id, []).append(value)
    return values


def templates(expression: ast.expr, values: Values, depth: int = 0) -> set[str]:
    """The strings that an expression may be, with {} for what only a run can show."""
    match expression:
        case ast.Constant(value=str(text)):
            return {text}
        case ast.JoinedStr(values=parts):
            return {"".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in parts)}
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            pairs = itertools.product(sorted(templates(left, values, depth)), sorted(templates(right, values, depth)))
            return {start + end for start, end in itertools.islice(pairs, MAX_COMBINATIONS)}
        case ast.IfExp(body=body, orelse=other):
            return templates(body, values, depth) | templates(other, values, depth)
        case ast.BoolOp(values=parts) | ast.Tuple(elts=parts) | ast.List(elts=parts) | ast.Dict(values=parts):
            return {text for part in parts for text in templates(part, values, depth)}
        case ast.Name(id=name) if values.get(name) and depth < MAX_DEPTH:
            return {text for value in values[name] for text in templates(value, values, depth + 1)}
    return {"{}"}
