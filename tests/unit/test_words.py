"""What people read is plain English: help, errors, log lines, docs and docstrings have none of these patterns."""

from __future__ import annotations

import ast
import builtins
import re
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest

import headway as hw
from headway.app.cli.main import COMMANDS, module_of
from headway.app.cli.options import Parser, add_common
from package_trees import PACKAGE, nodes, trees

ROOT = Path(__file__).parents[2]
# Comments and docstrings of private functions here are rewritten with their code.
WAITING = ("engine", "generate", "serve", "domains/agents", "domains/trajectories", "domains/robotics", "domains/chess")

PATTERNS = {  # what is not written, and what is instead
    r"(?<![Tt]here )\b(is|are) none\b": "there is no X",
    r"(?<![Tt]here )\b(is|are) no (?!longer|more|less|fewer|different|better|worse|bigger|larger|smaller|faster)"
    r"(?!slower|one\b|such)[a-z]": "is not a X",
    r"\b(is|are|was|were) not had\b": "unknown X",
    r"\bbeside\b": "next to, compared with, in addition to",
    r"\banew\b": "again",
    r"\b(foretell|foretold|foretells)\b": "predict",
    r"\b(go|goes|going|went) on\b": "continue",
    r"\b(hang|hangs) on\b": "depend on",
    r"\bin place of\b": "instead of",
    r"\bwhat (is|was|are|were) (read|written|generated|asked|said|drawn|kept|free|given|shown|left|there|had|told)"
    r"\b": "a noun",
    r"\bwho asks?\b": "the client, the user",
    r"\b(is|are|was|were|be) asked\b": "requested",
    r"\bof (yours|ours|theirs|mine)\b": "your own",
    r"\bof [A-Z]\w+'s(?=[.,;:)]|$| and | or | is | are | that )": "X's, without of",
    r"(?:^|[.;] )(Told|Said|Shown|Kept|Meant|Read|Held) (is|are|was|were)\b": "subject, verb, object",
    r"\b(lies|lie) (in|at|there|on|under|below|above|next)\b": "is in",
    r"\bstands? (in|there|over|above|under|below|next|at)\b": "is in",
    r"\bfor ever\b": "forever, or never ends",
    r"\bwhole numbers?\b": "integer",
    r"\b(tokens|samples|steps|characters|times|sentences|games|words|frames|requests|rows|texts) an? "
    r"(second|minute|step|row|line|move|intent|file|layer|image|class|label)\b": "per",
    r"\bin the mean\b": "on average",
    r"\bnought\b": "zero",
    r"\blikeliest\b": "most probable",
    r"\bjudg(e|es|ed|ing)\b": "evaluate",
    r"(?<![.])\b(says|said|say)\b": "prints, reports, outputs",
    r"\b(tells|told|tell)\b": "reports, shows",
    r"\b(hear|hears|heard)\b": "transcribe, recognise",
    r"; give\b": "pass, add, choose, set",
    r"\b(that|it|them|these|this|those) alone\b": "only",
    r"\ball there (is|are)\b": "all",
    r"\bnothing but\b": "only",
    r"\bto the (letter|bit)\b": "exactly, bit for bit",
    r"\bsymbols?\b": "token",
    r"\bknows? nothing of\b": "does not know",
    r"\bwill do\b": "is enough",
    r"\bis made of\b(?! )": "consists of",
    r"\bmarks of\b": "special tokens of",
    r"\bwhere (that|this|it) is (so|not so)\b": "if so",
    r"\b(seldom|hither|thereof|wherein|whereof|therein|nigh)\b": "plain words",
    r"\bhas to be had\b": "is needed",
    r"\ba good (deal|many)\b": "many, much",
    r"\bpieces? by pieces?\b": "in chunks",
}
# Where a word means another thing: symbols of the copying problem, and of grammars.
ALLOWED = {r"\bsymbols?\b": "^claims/|^serve/schemas/"}


def docstrings() -> Iterator[tuple[str, str]]:
    for place, tree in trees().items():
        for node in nodes(tree):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                private = not isinstance(node, ast.Module) and node.name.startswith("_")
                if (text := ast.get_docstring(node)) and not (private and place.startswith(WAITING)):
                    yield f"{place}: {getattr(node, 'name', 'module')}", text


def messages() -> Iterator[tuple[str, str]]:
    """Strings in raised errors, in log lines, in what commands print, and in constants of messages."""
    for place, tree in trees().items():
        for node in nodes(tree):
            if isinstance(node, ast.Call) and _speaks(node.func):
                for part in nodes(node):
                    if isinstance(part, ast.Constant) and isinstance(part.value, str) and " " in part.value:
                        yield f"{place}:{part.lineno}", part.value


def _speaks(function: ast.expr) -> bool:
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    log = isinstance(function, ast.Attribute) and name in ("info", "warning", "error", "debug", "exception")
    return name.endswith("Error") or log or name in ("print", "print_line", "note")


def helps() -> Iterator[tuple[str, str]]:
    for name, summary in COMMANDS.items():
        parser = Parser(name, summary, "example")
        import_module(module_of(name)).arguments(parser)
        add_common(parser)
        yield f"headway {name} --help", re.sub(r"\s+", " ", parser.format_help())


def docs() -> Iterator[tuple[str, str]]:
    for path in [
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        ROOT / "SECURITY.md",
        *sorted((ROOT / "docs").rglob("*.md")),
    ]:
        text = re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
        yield str(path.relative_to(ROOT)), re.sub(r"`[^`\n]*`", "``", text)


SOURCES = {"docstrings": docstrings, "messages": messages, "help": helps, "docs": docs}


@cache
def texts(source: str) -> list[tuple[str, str]]:
    """Texts without line breaks and without the names in backticks."""
    lines = ((where, re.sub(r"[ \t]*\n[ \t]*", " ", text)) for where, text in SOURCES[source]())
    return [(where, re.sub(r"`[^`]*`", "``", line)) for where, line in lines]


def uses(source: str, pattern: str) -> list[str]:
    """Where a pattern is used, with some words around it."""
    found = []
    for where, text in texts(source):
        for match in re.finditer(pattern, text):
            around = text[max(0, match.start() - 40) : match.end() + 40]
            if pattern not in ALLOWED or not re.search(ALLOWED[pattern], where):
                found.append(f"{where}: ...{around}...")
    return found


@pytest.mark.parametrize("source", SOURCES)
def test_plain_english(source: str) -> None:
    found = {f"{pattern} (write: {better})": uses(source, pattern) for pattern, better in PATTERNS.items()}
    assert {pattern: lines for pattern, lines in found.items() if lines} == {}


def test_patterns_match() -> None:
    """The patterns find what they are for."""
    for text, pattern in {
        "the tokenizer is none of these": next(p for p in PATTERNS if "none" in p),
        "beside the batch": r"\bbeside\b",
        "40 tokens a second": next(p for p in PATTERNS if "second|minute" in p),
        "Told are how many": next(p for p in PATTERNS if "Told" in p),
    }.items():
        assert re.search(pattern, text)


@cache
def identifiers() -> frozenset[str]:
    """Every name in the sources: variables, attributes, parameters, keys, modules, and words within strings."""
    names: set[str] = set(dir(builtins))
    for top in ("src/headway", "tests", "benchmarks", "examples"):
        for path in (ROOT / top).rglob("*.py"):
            names.update((path.stem, path.name, *path.relative_to(ROOT).parts))
            own = trees() if top == "src/headway" else {}
            tree = own.get(str(path.relative_to(ROOT / top))) or ast.parse(path.read_text(encoding="utf-8"))
            for node in nodes(tree):
                fields = vars(node)
                for field in ("id", "attr", "arg", "name", "module", "asname"):
                    if isinstance(text := fields.get(field), str):
                        names.update(text.split("."))
                if isinstance(node, ast.Constant) and isinstance(node.value, str) and len(node.value) < 200:
                    names.update(re.findall(r"\w+", node.value))
    return frozenset(names)


@cache
def modules() -> dict[str, set[str]]:
    """What the modules of each name bind, and the names of modules in each package."""
    names: dict[str, set[str]] = {}
    for place, tree in trees().items():
        path = PACKAGE / place
        own = names.setdefault(path.parent.name if path.stem == "__init__" else path.stem, set())
        own.update(other.stem for other in path.parent.iterdir() if path.stem == "__init__")
        for node in nodes(tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                own.add(node.name)
            elif isinstance(node, ast.Name):
                own.add(node.id)
            elif isinstance(node, ast.alias):
                own.add((node.asname or node.name).split(".")[0])
            elif isinstance(node, ast.Attribute):
                own.add(node.attr)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.isidentifier():
                own.add(node.value)
    return names


OBJECTS = {"train", "model", "task", "optim", "schedule", "adapter", "parallel", "config", "run"}  # settings, variables
ENDINGS = {"py", "json", "jsonl", "html", "md", "csv", "npz", "safetensors"}
FOREIGN = {  # of other programs, files and formats
    *("cpu.cfs_quota_us", "lichess_db_puzzle.csv", "CHANGELOG.md", "FooConfig", "NAMESettings", "Qg7mate"),
    *("observation_0", "observation_1", "action_0", "reward_0", "terminal_0"),
    *("nn.Module", "TrainingArguments", "DPOTrainer", "GRPOTrainer", "tokenizer.bin"),
    *("chance_at_K", "neighbour_at_K", "image_recall_at_K", "map_batches"),
}


@cache
def types() -> set[str]:
    """Of the package's face, as variables in the reference are named."""
    return {re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower() for name in hw.__all__}


def unknown(text: str) -> list[str]:
    """Names in backticks that are nowhere in the sources, or not in the module that they name."""
    found = []
    for name in re.findall(r"(?<!`)`([A-Za-z_][\w.]*(?:\(\))?)`(?!`)", text):
        parts = name.removesuffix("()").strip(".").split(".")
        outside = len(parts) == 2 and parts[0] in modules() and parts[1] not in {*modules()[parts[0]], *ENDINGS}
        outside &= parts[0] not in OBJECTS
        known = all(part in identifiers() or (part == parts[0] and part in types()) for part in parts)
        if name not in FOREIGN and (outside or not known):
            found.append(name)
    return found


def test_names_in_docstrings_exist() -> None:
    assert {where: names for where, text in docstrings() if (names := unknown(text))} == {}


def test_names_in_docs_exist() -> None:
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
    texts = {
        path: re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
        for path in pages
    }
    assert {str(path): names for path, text in texts.items() if (names := unknown(text))} == {}
