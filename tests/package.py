"""Builds wheel and sdist, checks what they hold, and starts the wheel in an empty environment: `make package`.

The environment has no packages of its own but the wheel; those that headway needs are found where this program runs, so
that nothing is downloaded twice.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = (
    "learn/report/page.html",
    "learn/plan/references.json",
    "learn/report/parts.html",
    "claims/claims.html",
    "py.typed",
    "app/verbs.pyi",
)
FEW = ("model.width=32", "model.heads=2", "train.steps=4", "train.evaluate_limit=4")


def main() -> None:
    """Raises AssertionError or CalledProcessError for what is wrong."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "dist"
        run(sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(ROOT))
        (wheel,), (sdist,) = out.glob("*.whl"), out.glob("*.tar.gz")
        check_content(wheel, sdist)
        start(wheel, Path(folder) / "environment")
    print("wheel and sdist are complete, and the wheel starts")


def check_content(wheel: Path, sdist: Path) -> None:
    """The wheel has all modules and pages, and neither holds anything else."""
    source = ROOT / "src/headway"
    modules = {f"headway/{path.relative_to(source)}" for path in source.rglob("*.py")}
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        (metadata,) = (archive.read(n).decode() for n in archive.namelist() if n.endswith("METADATA"))
    parts = [*source.rglob("*.css"), *source.glob("serve/page/*")]
    assert names == modules | {f"headway/{page}" for page in PAGES} | {
        f"headway/{path.relative_to(source)}" for path in parts
    }
    for needed in ("Summary: ", "License-Expression: MIT", "Project-URL: Repository", "Requires-Python: >=3.11"):
        assert needed in metadata, needed
    with tarfile.open(sdist) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    assert {"README.md", "LICENSE", "pyproject.toml"} <= inside
    assert not [name for name in inside if name.startswith(("runs/", ".venv/", "build/"))]


def start(wheel: Path, environment: Path) -> None:
    """Install the wheel alone and run it; its dependencies come from the packages of this Python."""
    venv.create(environment, with_pip=False)
    python = environment / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", str(wheel))
    (site,) = environment.glob("lib/python*/site-packages")
    own = next(Path(path) for path in sys.path if path.endswith("site-packages"))
    packages = [path for path in own.iterdir() if "headway" not in path.name.lower()]
    for path in packages:
        if not (site / path.name).exists():
            (site / path.name).symlink_to(path)
    program, folder = str(environment / "bin" / "headway"), environment / "run"
    # What `headway demo` trains, for a few steps instead of minutes.
    training = ["train", "pronounce", "--threads", "1", "--run", str(folder), "--set", *FEW]
    for arguments in (["--version"], ["recipes"], training, ["show", str(folder)]):
        run(program, *arguments)
    assert (folder / "report.html").is_file()
    assert len(run(program, "translate", str(folder), "--backend", "torch", text="headway\n").splitlines()) == 1


def run(*command: str, text: str | None = None) -> str:
    """What the command prints, if it reads a text."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    pipe = None if text is None else subprocess.PIPE
    folder = tempfile.gettempdir()
    return subprocess.run(command, check=True, env=environment, cwd=folder, input=text, stdout=pipe, text=True).stdout


if __name__ == "__main__":
    main()
