"""The board of 1,000 runs: its first list, the time of a new point until it is on the page, and the cost of following.

    python benchmarks/board.py RUN [--runs 1000] [--seconds 30]    # RUN: a run that headway trained

The runs are copies of RUN's files without its weights, with 500 lines of metrics each. `first` are the seconds of the
first answer of GET /v1/runs of a new server, `list` those of an unchanged list. A writer then appends a line per second
to one run, which this process holds as a training does, and headless Chromium shows its curve. `point` are the seconds
from a line to its step on the page. `server` and `browser` are the processor seconds per second of both while this
happens; `server_idle` and `browser_idle` are those with another tab of the page.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

from playwright.sync_api import Page, sync_playwright

from headway.io.lease import Lease
from measure import spread, write_of_machine

LINES = 500  # lines of metrics per run
FILES = ("run.json", "recipe.json", "report.html")


def line(step: int) -> str:
    """A line of metrics as a training writes it."""
    return json.dumps({"step": step, "loss": 4 / (1 + step / 100), "lr": 0.01, "tokens": 1024 * step,
                       "tokens_per_second": 2817.2, "grad_norm": 0.87, "seconds": 0.4 * step}) + "\n"  # fmt: skip


def make_runs(source: Path, folder: Path, count: int) -> None:
    """Copies of a run, the first of which has not ended."""
    for number in range(count):
        path = folder / f"run-{number:04d}"
        path.mkdir(parents=True)
        for name in FILES:
            if (source / name).exists():
                shutil.copy(source / name, path)
        (path / "metrics.jsonl").write_text("".join(map(line, range(1, LINES + 1))))
    status = json.loads((folder / "run-0000" / "run.json").read_text())
    (folder / "run-0000" / "run.json").write_text(json.dumps({**status, "status": "running", "steps": 10 * LINES}))


@contextmanager
def serving(folder: Path) -> Iterator[tuple[str, list[int]]]:
    """The URL of a server of these runs, and its processes."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = ["serve", "--runs", str(folder), "--port", str(port), "--no-access-log", "--device", "cpu"]
    server = subprocess.Popen([sys.executable, "-m", "headway", *words], stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        while True:
            try:
                urlopen(f"{url}/health").read()
                break
            except (URLError, ConnectionError):
                time.sleep(0.1)
        yield url, descendants(server.pid)
    finally:
        server.terminate()
        server.wait()


def descendants(process: int) -> list[int]:
    """A process and all that it has started."""
    found, parents = [process], {}
    for name in filter(str.isdecimal, os.listdir("/proc")):
        try:
            fields = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents[int(name)] = int(fields[1])
    for parent in found:
        found += [child for child, its_parent in parents.items() if its_parent == parent]
    return found


def cpu_seconds(processes: list[int]) -> float:
    """Processor seconds of these processes so far."""
    total = 0
    for process in processes:
        try:
            fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        total += int(fields[11]) + int(fields[12])
    return total / os.sysconf("SC_CLK_TCK")


def timed(url: str) -> float:
    """Seconds until the whole answer is there."""
    started = time.perf_counter()
    urlopen(url).read()
    return time.perf_counter() - started


def follow(page: Page, metrics: Path, seconds: int, groups: dict[str, list[int]]) -> dict[str, Any]:
    """Append a line per second, and wait until the page shows its step."""
    points, before, started = [], {name: cpu_seconds(group) for name, group in groups.items()}, time.perf_counter()
    with metrics.open("a") as file:
        for step in range(LINES + 1, LINES + 1 + seconds):
            due = time.perf_counter() + 1
            file.write(line(step))
            file.flush()
            written = time.perf_counter()
            shown = "step => document.querySelector('#panel-runs .card p').textContent.includes(step)"
            page.wait_for_function(shown, arg=f"step {step:,} of", polling=20)  # milliseconds
            points.append(time.perf_counter() - written)
            time.sleep(max(0.0, due - time.perf_counter()))
    elapsed = time.perf_counter() - started
    return {"point": spread(points), "point_max": max(points)} | {
        name: (cpu_seconds(group) - before[name]) / elapsed for name, group in groups.items()
    }


def cost(page: Page, metrics: Path, seconds: int, groups: dict[str, list[int]]) -> dict[str, float]:
    """Processor seconds per second while a line per second is appended and nobody looks for it."""
    before, started = {name: cpu_seconds(group) for name, group in groups.items()}, time.perf_counter()
    first = 2 * LINES
    with metrics.open("a") as file:
        for step in range(first, first + seconds):
            file.write(line(step))
            file.flush()
            time.sleep(1)
    elapsed = time.perf_counter() - started
    return {name: (cpu_seconds(group) - before[name]) / elapsed for name, group in groups.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--seconds", type=int, default=30)
    parser.add_argument("--browser", default=shutil.which("chromium"))
    args = parser.parse_args()
    with TemporaryDirectory() as folder:
        runs = Path(folder) / "runs"
        make_runs(args.run, runs, args.runs)
        lease = Lease(runs / "run-0000" / ".lease")
        assert lease.take(lambda: True) is None
        firsts, lists = [], []
        for _ in range(3):
            with serving(runs) as (url, _):
                firsts.append(timed(f"{url}/v1/runs"))
        with serving(runs) as (url, server), sync_playwright() as playwright:
            firsts.append(timed(f"{url}/v1/runs"))
            version = json.loads(urlopen(f"{url}/v1/runs").read())["version"]
            lists = [timed(f"{url}/v1/runs?since={version}") for _ in range(10)]
            known = set(descendants(os.getpid()))
            browser = playwright.chromium.launch(executable_path=args.browser, args=["--no-sandbox"])
            groups = {"server": server, "browser": [one for one in descendants(os.getpid()) if one not in known]}
            page = browser.new_page()
            page.goto(f"{url}/#models")
            groups["browser"] = [one for one in descendants(os.getpid()) if one not in known]
            page.wait_for_timeout(3000)
            idle = cost(page, runs / "run-0001" / "metrics.jsonl", args.seconds, groups)
            page.get_by_role("tab", name="Runs").click()
            page.get_by_label("Search").fill("run-0000")
            page.get_by_role("button", name="run-0000", exact=True).click()
            page.locator(".chart polyline").wait_for()
            page.wait_for_timeout(3000)
            points = follow(page, runs / "run-0000" / "metrics.jsonl", args.seconds, {})
            page.wait_for_timeout(1000)
            costs = cost(page, runs / "run-0000" / "metrics.jsonl", args.seconds, groups)
            browser.close()
        lease.release()
    results = {"runs": args.runs, "first": spread(firsts), "list": spread(lists), **points, **costs}
    results |= {f"{name}_idle": value for name, value in idle.items()}
    print(json.dumps(results, indent=2))
    write_of_machine("board", results)


if __name__ == "__main__":
    main()
