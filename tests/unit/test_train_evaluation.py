"""Several processes evaluate together and get the numbers of one."""

from __future__ import annotations

import json
import os
import socket
import sys
from pathlib import Path
from typing import Any

import torch

from headway.app.recipes import configure_recipe
from headway.errors import UserError
from headway.learn.learner import Learner
from headway.learn.parallel.processes import Processes
from headway.learn.recipe import open_task
from headway.nn.models import build
from processes import Program

TINY = {"model.width": 16, "model.depth": 1, "model.heads": 2}
WORDS = "one two three four five six seven eight nine ten"
RECIPES: dict[str, tuple[str, dict[str, Any]]] = {
    "text": ("a.txt", {"task.context": 16, "train.batch_tokens": 64, **TINY}),
    "classification": ("b.csv", {"train.batch_tokens": 64, **TINY}),
    "translation": ("c.tsv", {"train.batch_tokens": 64, **TINY}),
}


def _write(folder: Path) -> None:
    words = WORDS.split()
    lines = [" ".join(words[(i * k) % 10] for k in range(3 + i % 6)) for i in range(3000)]
    (folder / "a.txt").write_text("\n\n".join(lines))
    rows = [f"{line},{'long' if len(line.split()) > 5 else 'short'}" for line in lines]
    (folder / "b.csv").write_text("\n".join(["text,label", *rows]))
    (folder / "c.tsv").write_text("\n".join(f"{line}\t{line.upper()}" for line in lines))


def scores(folder: Path, rank: int) -> dict[str, dict[str, Any]]:
    """The scores of untrained models on their validation samples, and when one process asks to stop."""
    torch.set_num_threads(1)
    results: dict[str, dict[str, Any]] = {}
    with Processes(torch.device("cpu")) as processes:
        for name, (file, settings) in RECIPES.items():
            recipe = configure_recipe(name, str(folder / file), settings, 1)
            task = open_task(recipe, folder / f"{name}-{rank}")
            model = build(task.adapt(recipe.model), 1)
            learner = Learner(model, recipe, task, processes)
            results[name] = learner.evaluate("validation", 150)
            if learner.evaluate("validation", 150, stops=lambda: rank == 1) is None:
                results[f"{name} stopped"] = {"rank": processes.rank}
    return results


def test_three_processes_evaluate_as_one(tmp_path: Path) -> None:
    _write(tmp_path)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    shared = {"WORLD_SIZE": "3", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    path = os.pathsep.join(sys.path)
    programs = [
        Program(tmp_path, Path(__file__), str(tmp_path), str(rank), **shared, RANK=str(rank), PYTHONPATH=path)
        for rank in range(3)
    ]
    alone = json.loads(json.dumps(scores(tmp_path, 3)))
    for rank, program in enumerate(programs):
        out, err = program.wait()
        assert program.returncode == 0, err
        together = json.loads(out.splitlines()[-1])
        assert {name: together[name] for name in RECIPES} == alone
        stopped = {f"{name} stopped": {"rank": rank} for name in RECIPES}
        assert {name: value for name, value in together.items() if name not in RECIPES} == stopped


if __name__ == "__main__":
    try:
        print(json.dumps(scores(Path(sys.argv[1]), int(sys.argv[2]))))
    except UserError as error:
        sys.exit(str(error))
