"""The commands, settings, imports and Python of the README and of all pages are those of the program."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

import headway as hw
from headway.app.cli.main import COMMANDS, _find, module_of
from headway.app.cli.options import Parser, add_common
from headway.app.recipes import find_model_config, find_recipe
from headway.config import override, parse_settings
from package_trees import nodes, trees

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
pytestmark = pytest.mark.usefixtures("brief_samples")
RUN = "<!-- run -->\n"  # above a block of Python that a test runs
SHORT = {"train.steps": 10, "train.evaluate_limit": 20, "model.width": 32, "model.depth": 1, "train.batch_tokens": 512}


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path) -> list[tuple[str, str, bool]]:
    """Language and text of each block, and whether it is to run."""
    text = page.read_text(encoding="utf-8")
    found = re.finditer(r"(<!-- run -->\n)?^```(\w*)[^\n]*\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [(match[2], match[3], bool(match[1])) for match in found]


def commands(text: str) -> Iterator[str]:
    """The command lines of headway in a block."""
    for line in text.replace("\\\n", " ").splitlines():
        line = re.sub(r"^(\$ |\. \S+ && |\w+=\S+ )*", "", line.strip())
        line = re.sub(r"^torchrun .* -m headway", "headway", line)
        if line.startswith("headway "):
            yield line


@cache
def recipe_names() -> set[str]:
    return {row["name"] for row in hw.recipes()}


def check(line: str) -> None:
    """Parse a command, and look up its recipe and the names of its settings."""
    words = shlex.split(re.split(r" (?:[<>|]|2>|&&) ?", line)[0], comments=True)
    if words[1:] == ["--version"] or words[1:2] == ["COMMAND"]:
        return
    name, rest = _find(words[1:])
    command = import_module(module_of(name))
    parser = Parser(name, "a command", "an example")
    command.arguments(parser)
    add_common(parser)
    if "--help" in rest:
        return
    args = parser.parse_args(rest)
    recipe = getattr(args, "recipe", None)
    if recipe and not recipe.endswith(".json") and recipe.islower():
        assert recipe in recipe_names(), f"there is no recipe {recipe}"
        settings, found = parse_settings(args.set), find_recipe(recipe)
        if isinstance(model := settings.get("model"), str):
            del settings["model"]
            found = replace(found, model=find_model_config(model))
        if name != "compare" and getattr(args, "start", None) is None:
            override(found, settings)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_of_pages(page: Path) -> None:
    lines = [line for kind, text, _ in blocks(page) if kind in ("", "console", "bash", "sh") for line in commands(text)]
    assert lines or page != README
    for line in lines:
        check(line)


@pytest.mark.parametrize("name", COMMANDS)
def test_commands_of_help(name: str) -> None:
    lines = list(commands(import_module(module_of(name)).EXAMPLE))
    assert lines
    for line in lines:
        check(line)


def test_commands_of_docstrings() -> None:
    """Lines of docstrings that begin with a command, indented as a block."""
    for tree in trees().values():
        for node in nodes(tree):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and (doc := ast.get_docstring(node)):
                for line in re.findall(r"^    (headway .*)$", doc, re.MULTILINE):
                    check(line)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_python_of_pages(page: Path) -> None:
    """Every block compiles, and its imports resolve where the package is installed."""
    for kind, text, _ in blocks(page):
        if kind == "python":
            tree = ast.parse(text)
            for node in ast.walk(tree):
                if isinstance(node, ast.ImportFrom) and node.module and find_spec(node.module.partition(".")[0]):
                    module = importlib.import_module(node.module)
                    missing = [alias.name for alias in node.names if not hasattr(module, alias.name)]
                    assert not missing, f"{node.module} has no {', '.join(missing)}"
                if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "hw":
                    assert hasattr(hw, node.attr), f"headway has no {node.attr}"


@pytest.mark.parametrize("page", [page for page in PAGES if RUN in page.read_text(encoding="utf-8")], ids=name_of)
def test_python_that_runs(page: Path, data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks marked to run, one after the other; their minutes are shortened to a few steps of a small model."""
    monkeypatch.setenv("HEADWAY_DATA", str(data_dir))
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for kind, text, runs in blocks(page):
        if kind == "python" and runs:
            short = re.sub(r"minutes=[\d.]+", f"set={SHORT}", text)
            exec(compile(short, name_of(page), "exec"), names)


def test_links_lead_somewhere() -> None:
    """Links to files; `make docs` checks headings too."""
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{name_of(page)}: {target}"


def test_site_lists_every_page() -> None:
    """The navigation of mkdocs.yml has each page once; decisions are linked from their index."""
    listed = re.findall(r"(\S+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE)
    docs = ROOT / "docs"
    pages = {str(path.relative_to(docs)) for path in docs.rglob("*.md") if path.parent.name != "decisions"}
    assert sorted(listed) == sorted({*pages, "decisions/index.md"})


def test_environment_variables_are_listed() -> None:
    text = (ROOT / "docs/reference/environment.md").read_text(encoding="utf-8")
    source = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "src/headway").rglob("*.py"))
    used = {*re.findall(r"\"(HEADWAY_[A-Z]+(?:_[A-Z]+)*)\"", source)}
    assert len(used) > 8
    assert used <= {*re.findall(r"`(HEADWAY_\w+)`", text)}


def test_address_is_that_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pattern = r"https://github\.com/[\w-]+/headway"
    for page in (README, ROOT / "docs/start/install.md", ROOT / "CITATION.cff"):
        assert {*re.findall(pattern, page.read_text(encoding="utf-8"))} == {project["urls"]["Repository"]}, page.name


def test_first_screen() -> None:
    """What it is and for whom, the two commands, one way to a result; read in two minutes."""
    text = README.read_text(encoding="utf-8")
    first = text[: text.index("\n## ", text.index("## Your own data"))]
    for needed in ("make demo", "make test", "headway train text --data", "headway generate"):
        assert needed in first
    assert len(text.splitlines()) <= 170
