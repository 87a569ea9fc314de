"""Whether every mixer trains with every generic recipe on a user's data when only the minutes are given.

    python benchmarks/every_mixer.py [MIXER ...]            # half a minute for each recipe and mixer, on one thread
    python benchmarks/every_mixer.py --report               # what trained, and what was refused and why

Data are drawn by samples.py. Each training is a process of its own with `--minutes 0.5` and nothing else set. A model
that a recipe cannot have (a bidirectional mixer in a model that writes) is refused in one line, which the results hold.
Finished rows are not repeated; several of these may run at once, each on a core of its own, with other mixers.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import math
import os
import subprocess
import sys
import time
from collections import Counter
from tempfile import TemporaryDirectory
from typing import Any

from headway.bench.benchmark import machine
from headway.config_kinds import kinds
from headway.nn.mixers import MixerConfig
from measure import RESULTS, ROOT
from samples import DRAWN, drawn

PATH = RESULTS / "every-mixer.json"
FOLDER = ROOT / ".cache" / "every-mixer"
MINUTES = 0.5
COUNT = 2000
FIRST = ("lstm", "gru", "elman", "attention")
RECIPES = [*(name for name in DRAWN if name not in ("instruct", "preference")), "ppo"]  # those need no start


def data_of(recipe: str) -> list[str]:
    """Samples that stay in the cache."""
    folder = FOLDER / recipe
    listed = folder / "paths.json"
    if not listed.is_file():
        listed.parent.mkdir(parents=True, exist_ok=True)
        listed.write_text(json.dumps([str(path) for path in drawn(recipe, COUNT, folder)]))
    return json.loads(listed.read_text())


def trained(recipe: str, mixer: str) -> dict[str, Any]:
    with TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "headway", "train", recipe, "--set", f"model.mixer={mixer}"]
        command += ["task.env=CartPole-v1"] if recipe == "ppo" else ["--data", *data_of(recipe)]
        command += ["--minutes", str(MINUTES), "--threads", "1"]
        started = time.monotonic()
        done = subprocess.run([*command, "--run", f"{folder}/run", "--json"], capture_output=True, text=True)
        row: dict[str, Any] = {"code": done.returncode, "seconds": round(time.monotonic() - started, 1)}
    if done.returncode:
        return {**row, "error": done.stderr.strip().splitlines()[-1].replace(str(ROOT), "")}
    summary = json.loads(done.stdout.strip().splitlines()[-1])
    best = summary["best"]
    finite = all(math.isfinite(value) for value in best.values() if isinstance(value, float))
    known = {name: summary[name] for name in ("step", "parameters")}
    return {**row, **known, "loss": best.get("loss"), "finite": finite}


def read() -> dict[str, Any]:
    return json.loads(PATH.read_text()) if PATH.is_file() else {"benchmark": "every-mixer", "rows": {}}


def keep(name: str, row: dict[str, Any]) -> None:
    """Add a row while no other process does."""
    with open(FOLDER / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        result = read()
        result["rows"][name] = row
        result["rows"] = dict(sorted(result["rows"].items()))
        PATH.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")


def report() -> None:
    rows = read()["rows"]
    for mixer in kinds(MixerConfig):
        own = {name.split(" ")[1]: row for name, row in rows.items() if name.split(" ")[0] == mixer}
        codes = Counter(row["code"] for row in own.values())
        late = max((row["seconds"] for row in own.values() if row["code"] == 0), default=0.0)
        print(f"{mixer:18} {codes[0]:3} of {len(own)} trained, at most {late:.1f} s")
        for recipe, row in own.items():
            if row["code"]:
                print(f"    {recipe}: exit {row['code']}: {row['error']}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("mixers", nargs="*", metavar="MIXER")
    parser.add_argument("--report", action="store_true")
    args = parser.parse_args()
    if args.report:
        report()
        return
    FOLDER.mkdir(parents=True, exist_ok=True)
    others = [kind for kind in kinds(MixerConfig) if kind not in FIRST]
    for mixer in args.mixers or (*FIRST, *others):
        for recipe in RECIPES:
            name = f"{mixer} {recipe}"
            if name in read()["rows"]:
                continue
            row = {**trained(recipe, mixer), "load_average": round(os.getloadavg()[0], 1)}
            keep(name, {**row, "processor": machine()["processor"], "date": time.strftime("%Y-%m-%d")})
            print(name, row, flush=True)


if __name__ == "__main__":
    main()
